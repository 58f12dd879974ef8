"""Errors that a user can cause, and the command-line exit on them."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Final, NoReturn

EXIT_STATUS = 2
LONGEST: Final = 500  # characters of a message


class UserError(ValueError):
    """One sentence for the user: what is wrong, where, what was expected and what to do about it.

    The message is one line of at most `LONGEST` printable characters, even if it quotes names, paths or file content.
    PyTorch makes an error of a loading process anew from its printed traceback, of which only the message is kept.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message.rpartition(f"{type(self).__name__}: ")[2]))


def one_line(message: str) -> str:
    """Returns `message` as one line of at most `LONGEST` printable characters, without terminal control codes.

    A longer message is shortened in two steps: long words (paths, names) lose their middle, then the message loses
    its middle. It keeps its beginning, which says what is wrong, and its end, which says what to do.
    """
    text = " ".join(_without_middle(message, 20 * LONGEST).split())
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    for longest_word in (200, 100, 50):
        if len(text) > LONGEST:
            text = " ".join(_without_middle(word, longest_word) for word in text.split(" "))
    return _without_middle(text, LONGEST)


def _without_middle(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    kept = longest - len("...")
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error message without its final period, or the error's type name."""
    lines = (line.strip().rstrip(".") for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@contextmanager
def library_errors(what: str, advice: str) -> Iterator[None]:
    """Raises `UserError` "`what` (reason); `advice`" for any error of a library that reads a file.

    Put only the reading inside: a bug of this project would be reported as a fault of the file.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # from Rust
            raise
        asks_for_code = "trust_remote_code" in str(error)
        reason = "it names code of its own, which is not run" if asks_for_code else first_line(error.__cause__ or error)
        raise UserError(f"{what} ({reason}); {advice}") from error


def nearest(word: str, options: list[str] | tuple[str, ...] | set[str], *, cutoff: float = 0.5) -> str:
    """Returns ``" Did you mean 'x'?"`` for the option nearest to `word`, or an empty string."""
    match = get_close_matches(word, list(options), n=1, cutoff=cutoff)
    return f" Did you mean {match[0]!r}?" if match else ""


def check_choice(key: str, value: str, options: tuple[str, ...]) -> None:
    """Checks that `value`, given for the config's `key`, is one of `options`.

    Raises:
        UserError: if it is not.
    """
    if value not in options:
        raise UserError(f"{key}={value} is unknown; expected {' or '.join(options)}." + nearest(value, options))


def check_positive(key: str, value: int) -> None:
    """Checks that `value`, given for the config's `key`, is a whole number of at least 1.

    Raises:
        UserError: if it is not.
    """
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{key}: {value} given, expected at least 1, a whole number")


def fail(message: str) -> NoReturn:
    """Prints `message` as one line on standard error and ends the process with status 2."""
    print("error: " + one_line(message), file=sys.stderr, flush=True)
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
    from utils.config.surroundings import settle_surroundings

    settle_surroundings()
    with one_sentence_errors():
        sys.exit(command() or 0)
