"""The tests of search need the packages of ``uv sync --extra search``; `.ci/run` installs them."""

from importlib.util import find_spec

collect_ignore_glob = ["*"] if find_spec("lancedb") is None else []
