"""Work on many items, in threads on all cores."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final, TypeVar

from utils.training.progress import Bar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD: Final = 256  # results computed ahead of the caller


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], *, total: int, title: str, unit: str
) -> Iterator[Result]:
    """Yields the result of `work` for each item, in order, and shows the progress."""
    with ThreadPoolExecutor() as pool:
        tasks = (pool.submit(work, item) for item in items)
        ahead = deque(islice(tasks, AHEAD))
        with Bar(total=total, desc=title, unit=unit) as bar:
            while ahead:
                yield ahead.popleft().result()
                ahead.extend(islice(tasks, 1))
                bar.update()
