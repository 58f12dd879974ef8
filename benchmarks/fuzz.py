"""Spoiled and hostile files of every kind: each is either used or refused in one sentence, and none is obeyed.

    uv run benchmarks/fuzz.py [--mutations 1400] [--seed 0] [--only "archives" 17] [--limit 10]

Every mutation is tried in a forked child of its own, with a limit on time and memory. A canary watches it: an audit
hook reports what is started, connected to, imported anew, or written outside the child's folder. The table counts what
was refused (one `UserError`), accepted, or ended in a traceback or a hang. Failures are told one by one; `--only`
repeats one. Ends with status 1 if there was any.
"""

import argparse
import gc
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "offline",
    "HF_HUB_OFFLINE": "1",
}
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from hydra.errors import InstantiationException
from prettytable import PrettyTable

from benchmarks.fuzz_kinds import KINDS, AcceptedError, Kind, import_all, make_sound, stop_where_nothing_more_is_read
from utils.config.hydra_errors import job_sentence, user_error
from utils.errors import LONGEST, fail

MEMORY: Final = 4 << 30  # bytes that a child may have beside those that it starts with
WAITING: Final = 6  # times the limit on its seconds of work: on a busy machine a child waits for its turn
STARTED: Final = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
CONNECTED: Final = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open")
CHANGED: Final = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


class Outcome(NamedTuple):
    """end: refused, accepted, traceback or hang. message: what the user reads. canaries: what was done besides."""

    end: str
    message: str
    canaries: list[str]


class Failure(NamedTuple):
    """A mutation that was neither used nor refused in one sentence."""

    kind: str
    number: int
    how: str
    outcome: Outcome


class Fuzz:
    """Sound files, made once, and children that use spoiled copies of them.

    Args:
        folder: an empty one for both.
        limit: seconds of work that a child has.
    """

    def __init__(self, folder: Path, *, limit: int = 10) -> None:
        self.folder, self.limit = folder, limit
        self.sound, self.work = folder / "sound", folder / "work"
        self.sound.mkdir()
        torch.set_num_threads(1)
        made = in_child(self._make_sound, seconds=600) or "nothing"
        if made.startswith("Traceback"):
            raise RuntimeError(f"the sound files cannot be made: {made}")
        self.modules = json.loads(made)
        import_all(self.modules)
        stop_where_nothing_more_is_read()
        gc.freeze()  # children would copy what they collect
        for kind in KINDS.values():
            _, outcome = self.attempt(kind)
            if outcome.end != "accepted" or outcome.canaries:
                raise RuntimeError(f"{kind.name}: what is sound is not accepted: {outcome}")

    def _make_sound(self) -> str:
        self.work.mkdir()
        make_sound(self.sound, self.work)
        return json.dumps(sorted(sys.modules))

    def attempt(self, kind: Kind, rng: Random | None = None) -> tuple[str, Outcome]:
        """Has a child use a copy of a sound file, spoiled by `rng`; returns how it was spoiled and what came of it."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        told = in_child(lambda: self._copy(kind, rng), seconds=600) or "Traceback"
        if told.startswith("Traceback"):
            raise RuntimeError(f"{kind.name} cannot be spoiled: {told}")
        result = in_child(lambda: self._use(kind), seconds=self.limit)
        if result is None:
            return told, Outcome("hang", "", [])
        outcome = Outcome(*json.loads(result))
        return told, outcome._replace(canaries=outcome.canaries + self._left_behind())

    def _copy(self, kind: Kind, rng: Random | None) -> str:
        kind.copy(self.sound, self.work)
        return "sound" if rng is None else kind.spoil(rng, self.sound, self.work)

    def _use(self, kind: Kind) -> str:
        limit_memory()
        os.chdir(self.work)
        canaries = watch(self.work, self.modules)
        return json.dumps([*outcome_of(lambda: kind.use(self.sound, self.work)), canaries])

    def _left_behind(self) -> list[str]:
        return [f"{path} was made" for path in self.folder.rglob("canary")]


def in_child(work: Callable[[], str], *, seconds: int) -> str | None:
    """Returns what `work` returns in a forked child; None if that takes longer, or if the child dies."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            silence = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1) if os.environ.get("FUZZ_STDERR") else (0, 1, 2):
                os.dup2(silence, stream)
            result = work().encode()
        except BaseException:
            result = traceback.format_exc().encode()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(result)
        os._exit(0)
    os.close(writing)
    content, end = b"", time.monotonic() + WAITING * seconds
    with os.fdopen(reading, "rb") as pipe:
        while time.monotonic() < end and select.select([pipe], [], [], max(0, end - time.monotonic()))[0]:
            part = os.read(pipe.fileno(), 1 << 16)
            content += part
            if not part:
                break
        else:
            content = b""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return content.decode() or None


def limit_memory() -> None:
    """Lets this process have `MEMORY` beside what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def watch(folder: Path, modules: list[str]) -> list[str]:
    """Returns a list to which an audit hook adds whatever this process does that no reader of files should.

    Args:
        folder: where it may write.
        modules: what a sound run imports; packages of others are not to be imported.
    """
    canaries: list[str] = []
    known = {name.partition(".")[0] for name in (*sys.modules, *modules)} | set(sys.builtin_module_names)
    allowed = (str(folder), "/dev/null")

    def outside(path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and not os.path.realpath(os.fsdecode(path)).startswith(
            allowed
        )

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTED or event in CONNECTED:
            canaries.append(f"{event} {arguments!a:.100}")
        elif event == "open":
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
            if writes and outside(path):
                canaries.append(f"open {path!a:.100} {mode}")
        elif event in CHANGED:
            if any(outside(path) for path in arguments[:2]):
                canaries.append(f"{event} {arguments!a:.100}")
        elif event == "import":
            if arguments[0].partition(".")[0] not in known:
                canaries.append(f"import {arguments[0]}")
        elif event == "exec" and "canary" in repr(getattr(arguments[0], "co_consts", "")):
            canaries.append("exec")

    sys.addaudithook(hook)
    return canaries


def outcome_of(use: Callable[[], object]) -> tuple[str, str]:
    """Returns how using a file ends, and what the user reads then."""
    try:
        use()
    except AcceptedError:
        return "accepted", ""
    except Exception as error:
        told = job_sentence(error)
        if told is None or (isinstance(error, InstantiationException) and told != str(user_error(error))):
            return "traceback", "".join(traceback.format_exception(error))
        with redirect_stderr(StringIO()) as printed, suppress(SystemExit):
            fail(told)
        return "refused", printed.getvalue().removesuffix("\n").removeprefix("error: ")
    except BaseException as error:
        return "traceback", "".join(traceback.format_exception(error))
    return "accepted", ""


def tell(failure: Failure) -> None:
    """Prints a failure where it is found, and how to repeat it."""
    kind, number, how, outcome = failure
    print(f'--only "{kind}" {number}: {how}\n{outcome.end} {outcome.canaries}\n{outcome.message[-1500:]}\n', flush=True)


def drawn(seed: int, kind: str, number: int) -> Random:
    """Returns the random generator of one mutation."""
    return Random(f"{seed} {kind} {number}")


def run(fuzz: Fuzz, counts: dict[str, int], seed: int) -> tuple[PrettyTable, list[Failure]]:
    """Returns the table of all mutations, and the failures."""
    table = PrettyTable(
        ["kind", "mutations", "refused", "accepted", "tracebacks", "hangs", "canaries", "longest message", "seconds"],
        align="r",
    )
    table.align["kind"] = "l"
    failures = []
    for name, count in counts.items():
        start, outcomes = time.monotonic(), []
        for number in range(count):
            how, outcome = fuzz.attempt(KINDS[name], drawn(seed, name, number))
            outcomes.append(outcome)
            long = outcome.end == "refused" and (len(outcome.message) > LONGEST or "\n" in outcome.message)
            if outcome.end in ("traceback", "hang") or outcome.canaries or long:
                failures.append(Failure(name, number, how, outcome))
                tell(failures[-1])
        ends = [outcome.end for outcome in outcomes]
        longest = max((len(outcome.message) for outcome in outcomes if outcome.end == "refused"), default=0)
        canaries = sum(bool(outcome.canaries) for outcome in outcomes)
        seconds = f"{time.monotonic() - start:.0f}"
        row = [ends.count("refused"), ends.count("accepted"), ends.count("traceback"), ends.count("hang"), canaries]
        table.add_row([name, count, *row, longest, seconds])
    return table, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, prints the table and the failures; returns 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1400, help="over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=10, help="seconds of work for a child")
    parser.add_argument("--folder", type=Path, help="where to make the files (default: the system's temporary folder)")
    parser.add_argument("--only", nargs=2, metavar=("KIND", "NUMBER"), help="one mutation, with all that it prints")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fuzz.", dir=options.folder) as folder:
        fuzz = Fuzz(Path(folder).resolve(), limit=options.limit)
        if options.only:
            name, number = options.only
            how, outcome = fuzz.attempt(KINDS[name], drawn(options.seed, name, int(number)))
            print(how, *outcome, sep="\n")
            return 0
        counts = dict.fromkeys(KINDS, options.mutations // len(KINDS))
        table, failures = run(fuzz, counts, options.seed)
    print(table)
    return bool(failures)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # not through the destructors of libraries, which print that they leak
