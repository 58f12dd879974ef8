"""Fuzzing with damaged and hostile files: each file has to be used or refused in one sentence, and never executed.

    uv run benchmarks/fuzz.py [--mutations 1400] [--seed 0] [--only "archives" 17] [--limit 10]

Every mutation runs in a separate forked child with limits on time and memory. An audit hook (the canary) reports
processes that the child starts, connections, new imports, and writes outside its folder. The table counts mutations
that were refused (one `UserError`), accepted, or ended in a traceback or a hang. Each failure is printed, and `--only`
repeats one mutation. The exit status is 1 if there was a failure.
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

MEMORY: Final = 4 << 30  # bytes that a child may allocate in addition to those at its start
WAITING: Final = 6  # factor from the limit on CPU seconds to the limit on wall time, for busy machines
STARTED: Final = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn")
CONNECTED: Final = ("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "webbrowser.open")
CHANGED: Final = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")


class Outcome(NamedTuple):
    """end: refused, accepted, traceback or hang. message: shown to the user. canaries: forbidden actions."""

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
    """Valid files, made once, and children that use damaged copies of them.

    Args:
        folder: empty folder for the valid files and the copies.
        limit: CPU seconds of a child.
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
        gc.freeze()  # garbage collection in a child would copy memory pages
        for kind in KINDS.values():
            _, outcome = self.attempt(kind)
            if outcome.end != "accepted" or outcome.canaries:
                raise RuntimeError(f"{kind.name}: a valid file is not accepted: {outcome}")

    def _make_sound(self) -> str:
        self.work.mkdir()
        make_sound(self.sound, self.work)
        return json.dumps(sorted(sys.modules))

    def attempt(self, kind: Kind, rng: Random | None = None) -> tuple[str, Outcome]:
        """Lets a child use a copy of a valid file, damaged by `rng`. Returns the damage and the outcome."""
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
    """Returns the result of `work` in a forked child, or None if the time is over or the child dies."""
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
    """Limits this process to its current memory plus `MEMORY`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def watch(folder: Path, modules: list[str]) -> list[str]:
    """Returns a list to which an audit hook adds every forbidden action of this process.

    Args:
        folder: the only folder in which the process may write.
        modules: modules that a run with valid files imports. Importing other packages is forbidden.
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
    """Returns how the use of a file ends, and the message that the user sees."""
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
    """Prints a failure and the options that repeat it."""
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
    """Parses the command line, and prints the table and the failures. Returns 1 if there are failures."""
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
    os._exit(status)  # skips destructors of libraries, which print warnings about leaks
