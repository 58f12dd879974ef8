"""Search in folders of images by sentence or picture: an index in LanceDB, and a page.

Its packages come with ``uv sync --extra search``; without them, `Index` raises `UserError`.
"""

from typing import TYPE_CHECKING, Any

from search.extra import check_extra

if TYPE_CHECKING:
    from search.index import Index

__all__ = ["Index"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_extra()
    from search.index import Index

    return Index
