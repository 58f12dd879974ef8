"""Search in folders of images by sentence or picture: an index in LanceDB, and a page.

Needs the packages of ``uv sync --extra search``.
"""

from utils.errors import UserError

try:
    from search.index import Index
except ModuleNotFoundError as error:
    if error.name not in ("lancedb", "pyarrow"):
        raise
    raise UserError(f"search needs a package that is not installed ({error.name}); run `uv sync --extra search`") from error

__all__ = ["Index"]
