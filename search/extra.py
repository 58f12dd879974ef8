"""The packages of the extra ``search``."""

from importlib.util import find_spec
from typing import Final

from utils.errors import UserError

PACKAGES: Final = ("lancedb", "starlette", "uvicorn")


def check_extra() -> None:
    """Raises `UserError` if a package of the extra is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"search needs packages that are not installed ({', '.join(missing)}); run `uv sync --extra search`"
        )
