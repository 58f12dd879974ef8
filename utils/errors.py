"""Errors that a user can cause, and how a command line ends on one."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import NoReturn

EXIT_STATUS = 2


class UserError(ValueError):
    """One sentence for the user: what is wrong, where, what was expected and what to do about it."""


def nearest(word: str, options: list[str] | tuple[str, ...] | set[str], *, cutoff: float = 0.5) -> str:
    """Returns ``" Did you mean 'x'?"`` for the option nearest to `word`, or an empty string."""
    match = get_close_matches(word, list(options), n=1, cutoff=cutoff)
    return f" Did you mean {match[0]!r}?" if match else ""


def check_choice(key: str, value: str, options: tuple[str, ...]) -> None:
    """Passes when `value`, given for the config's `key`, is one of `options`.

    Raises:
        UserError: it is not.
    """
    if value not in options:
        raise UserError(f"{key}={value} is unknown; expected {' or '.join(options)}." + nearest(value, options))


def check_positive(key: str, value: int) -> None:
    """Passes when `value`, given for the config's `key`, is a whole number of at least 1.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{key}: {value} given, expected at least 1, a whole number")


def fail(message: str) -> NoReturn:
    """Prints `message` as one line on standard error and ends the process with status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(EXIT_STATUS)


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Ends the process with one sentence, without a traceback, when a `UserError` reaches it."""
    try:
        yield
    except UserError as error:
        fail(str(error))


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Runs a command-line entry point and exits with the status it returns (0 for None)."""
    from utils.surroundings import settle_surroundings

    settle_surroundings()
    with one_sentence_errors():
        sys.exit(command() or 0)
