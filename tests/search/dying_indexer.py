"""An indexer that kills itself, in a process that forks before LanceDB works: its threads do not survive a fork."""

from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from search import indexing
from search.index import Index
from search.tables import Tables
from tests.forked import die
from tests.search.color_encoder import ColorEncoder

BATCH: Final = 16
PLACES: Final = {
    "while encoding": (ColorEncoder, "images", False),
    "after a commit": (Tables, "write", True),
    "between encoding and commit": (indexing._Indexing, "_encoded", True),
    "before the pieces are joined": (Tables, "settle", False),
}


def index_and_die(photos: Path, place: Path, when: str, call: int) -> int | None:
    """Returns how a process ended that indexed and died at the n-th call of a function: before or after its work."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=_index_and_die, args=(photos, place, when, call))
    process.start()
    process.join()
    return process.exitcode


def _index_and_die(photos: Path, place: Path, when: str, call: int) -> None:
    owner, name, is_after = PLACES[when]
    works, calls = getattr(owner, name), 0

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not is_after:
            die()
        result = works(*arguments, **options)
        if calls == call:
            die()
        return result

    setattr(owner, name, watched)
    indexing.BATCH = BATCH  # type: ignore[misc]
    Index.open(place).add_folder(photos, ColorEncoder())
