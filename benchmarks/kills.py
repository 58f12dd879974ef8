"""Kills of runs at random instants and at every hook: continued runs have to end with the same result.

uv run benchmarks/kills.py --chains 8               random kills, 8 chains for each mode
uv run benchmarks/kills.py --hooks                  one kill at every hook and file operation of an epoch
uv run benchmarks/kills.py --chains 4 --sigterm     SIGTERM, which lets a run save, instead of kills

A chain is one run that is killed and continued with `ckpt_path=last` until it ends. It is identical to an undisturbed
run if last.ckpt (weights, optimizer, schedule, callbacks, counters), the best file and its weights, metrics.json and
the rows of logs/steps.csv are equal, except throughput and memory, and no unfinished files are left. Each run is a fork
of this process, which has already imported all modules.
"""

import argparse
import importlib
import os
import random
import runpy
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402

from benchmarks.kill_instants import LOOKED_AT, Instants  # noqa: E402
from data.synthetic import SyntheticSpec, generate  # noqa: E402
from prepare_checkpoints import prepare  # noqa: E402
from tests.forked import forked  # noqa: E402
from tests.same_run import differences  # noqa: E402
from tests.small_run import ANY_METHOD  # noqa: E402

SHORT = (
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=2",
    "logger=csv",
    "shown_queries=0",
    "callbacks.last.mode=min",  # R@1 falls on so little data, so this replaces the best file
)
EVERY_2 = "callbacks.last.every_n_steps=2"  # of 6, so that it falls on an epoch's last step
CLIP = "backbone=tiny_clip"
CLUSTERS = tuple(
    f"pseudo_label.{of}.{setting}"
    for of, settings in {
        "images": ("k1=3", "k2=2", "eps=0.45", "min_samples=2"),
        "texts": ("k1=4", "k2=2", "eps=0.45", "min_samples=3"),
    }.items()
    for setting in settings
)
MODES = {
    "epochs": ("loss=baseline",),
    "every 2 steps": ("loss=baseline", EVERY_2),
    "accumulated": ("loss=baseline", "trainer.accumulate_grad_batches=4", "callbacks.last.every_n_steps=1"),
    "LoRA": ("loss=baseline", EVERY_2, CLIP, "lora=default"),
    "GradCache": ("loss=baseline", EVERY_2, "grad_cache.micro_batch=3"),
    "CPCL": ("experiment=cpcl", CLIP, EVERY_2, "pseudo_label.every_n_epochs=2", *CLUSTERS),
    "RDE": ("experiment=rde", CLIP, EVERY_2, "dataset.noise_rate=0.3", "head.width=32"),
    "2 workers": ("loss=baseline", EVERY_2, "dataset.num_workers=2"),
    "one epoch": ("loss=baseline", "callbacks.last.every_n_steps=3", "trainer.max_epochs=1"),
    "early stopping": ("loss=baseline", EVERY_2, "callbacks=early_stopping", "callbacks.early_stopping.patience=1"),
    "IRRA": ("experiment=irra", CLIP, EVERY_2),
    "every 2nd epoch validated": (
        "loss=baseline",
        EVERY_2,
        "callbacks=early_stopping",
        "trainer.limit_train_batches=4",
        "trainer.check_val_every_n_epoch=2",
        "trainer.max_epochs=4",
    ),
    "validated within epochs": ("loss=baseline", EVERY_2, "+trainer.val_check_interval=0.5"),
}
# On so little data R@1 falls with every epoch, so mode=min replaces the best file.
EVERY_HOOK = (  # relabels, counts for early stopping, saves on an epoch's last step, and replaces the best file
    "experiment=cpcl",
    CLIP,
    *CLUSTERS,
    "callbacks=early_stopping",
    "callbacks.last.every_n_steps=3",
)
SETTING_UP = 0.15  # approximate share of a run's CPU time before training; a kill in this time loses nothing


def run_trainer(arguments: list[str], log: Path, get_ready: Callable[[], None]) -> tuple[int, float]:
    """Runs trainer.py with `arguments` in a fork prepared by `get_ready`. Returns how it ended and its CPU seconds."""

    def work() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.setpgid(0, 0)
        sys.argv = ["trainer.py", *arguments]
        quiet_report()
        get_ready()
        runpy.run_path(str(ROOT / "trainer.py"), run_name="__main__")

    before = os.times()
    status = forked(work)
    after = os.times()
    return status, sum(after[2:4]) - sum(before[2:4])


def quiet_report() -> None:
    """Turns off the plots of the report, which are not compared and take as long as the training of a small run."""
    from utils.report.run_report import RunReport

    RunReport.draw = lambda *_: None  # type: ignore[method-assign,assignment]


def run_chain(
    mode: tuple[str, ...], root: Path, out: Path, endings: list[Callable[[], None]]
) -> tuple[Path, int, list[float]]:
    """Starts a run and continues it until it ends by itself.

    Args:
        endings: one function for each attempt except the last. It prepares the process to be killed.

    Returns:
        The run's folder, the number of kills, and the CPU seconds of each attempt.
    """
    out.mkdir(parents=True)
    ended, seconds = 0, []
    for ending in [*endings, lambda: None]:
        newest = max(out.glob("*/*/"), default=None)
        is_saved = newest is not None and (newest / "checkpoints" / "last.ckpt").exists()
        places = [f"dataset_root_dir={root}", f"output_dir={out}", *(["ckpt_path=last"] if is_saved else [])]
        status, took = run_trainer([*ANY_METHOD, *SHORT, *mode, *places], out / "log.txt", ending)
        seconds.append(took)
        if status == 0:
            break
        if status not in (-signal.SIGKILL, -signal.SIGPROF, 128 + signal.SIGTERM):
            raise RuntimeError(f"{out}: a run ended with status {status}; see log.txt there")
        ended += 1
    return max(out.glob("*/*/")), ended, seconds


def killed_after(seconds: float, signum: int) -> Callable[[], None]:
    """Returns a function that lets the process die, or get SIGTERM, after this much CPU time."""

    def arm() -> None:
        if signum == signal.SIGTERM:
            signal.signal(signal.SIGPROF, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        signal.setitimer(signal.ITIMER_PROF, seconds)

    return arm


def import_all(root: Path, folder: Path) -> None:
    """Imports all modules of a run in this process, so that its forks do not have to."""
    names = folder / "modules.txt"

    def tell() -> None:
        from utils.report.run_report import RunReport

        close = RunReport.close

        def closing(report: RunReport) -> None:
            names.write_text("\n".join(sys.modules))
            close(report)

        RunReport.close = closing  # type: ignore[method-assign]

    run_chain((*MODES["LoRA"], "trainer.max_epochs=1"), root, folder / "imports", [tell])
    for name in names.read_text().splitlines():
        with suppress(Exception):
            importlib.import_module(name)


def kill_at_random(options: argparse.Namespace, root: Path, folder: Path) -> bool:
    """Prints a line for each mode. Returns whether all chains were identical."""
    signum = signal.SIGTERM if options.sigterm else signal.SIGPROF
    total: Counter[str] = Counter()
    print(f"{'mode':<26} {'identical':>9} {'chains':>7} {'kills':>6} {'seconds':>8}")
    for number, (mode, overrides) in enumerate(MODES.items()):
        if options.modes and mode not in options.modes:
            continue
        begun, rng = time.monotonic(), random.Random(f"{options.seed}/{mode}")
        expected, _, [seconds] = run_chain(overrides, root, folder / f"{number}-whole", [])
        counts: Counter[str] = Counter()
        for chain in range(options.chains):
            moments = [rng.uniform(SETTING_UP, 0.95) * seconds for _ in range(rng.randint(2, 4))]
            out = folder / f"{number}-{chain}"
            found, ended, _ = run_chain(overrides, root, out, [killed_after(moment, signum) for moment in moments])
            told = differences(expected, found)
            counts += Counter(identical=not told, chains=1, kills=ended)
            for line in told:
                print(f"  {mode}, chain {chain}: {line}", flush=True)
            if not told:
                shutil.rmtree(out)
        total += counts
        line = [f"{counts[key]}" for key in ("identical", "chains", "kills")]
        print(f"{mode:<26} {line[0]:>9} {line[1]:>7} {line[2]:>6} {time.monotonic() - begun:>8.0f}", flush=True)
    print(f"{'all':<26} {total['identical']:>9} {total['chains']:>7} {total['kills']:>6}")
    return total["identical"] == total["chains"]


def kill_at_hooks(options: argparse.Namespace, root: Path, folder: Path) -> bool:
    """Prints how many kills at each instant did not change the result. Returns whether this holds for all."""
    names = folder / "names.txt"
    expected, _, _ = run_chain(EVERY_HOOK, root, folder / "whole", [])
    watched, _, _ = run_chain(EVERY_HOOK, root, folder / "watched", [Instants(names)])
    if differences(expected, watched):
        raise RuntimeError("a run that is watched is not the run that is not")
    times = Counter(names.read_text().splitlines())
    rng = random.Random(options.seed)
    print(f"{len(times)} instants of epoch {LOOKED_AT}, {sum(times.values())} times in all; each is died at once")
    identical = 0
    for number, (name, count) in enumerate(times.items()):
        out, which = folder / f"hook-{number}", rng.randint(1, count)
        found, ended, _ = run_chain(EVERY_HOOK, root, out, [Instants(names, (name, which))])
        told = differences(expected, found) + ([] if ended else ["it was not killed"])
        identical += not told
        for line in told:
            print(f"  {name}, time {which} of {count}: {line}", flush=True)
        if not told:
            shutil.rmtree(out)
    print(f"identical: {identical} of {len(times)}")
    return identical == len(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--chains", type=int, default=7, help="random chains for each mode")
    parser.add_argument("--hooks", action="store_true", help="kill at every hook instead")
    parser.add_argument("--sigterm", action="store_true", help="send SIGTERM instead of killing")
    parser.add_argument("--modes", nargs="+", choices=MODES, metavar="MODE", help=f"of: {', '.join(MODES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where runs lie; those that differ stay there (default: none stay)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        root = folder / "data"
        if not root.exists():
            spec = SyntheticSpec(train=12, val=4, test=4, images_per_identity=2, height=64, width=32)
            root.mkdir(parents=True)
            generate(root, spec, workers=1)
            for name in ("tiny_siglip", "tiny_clip"):
                prepare(name, root, steps=1)
        import_all(root, folder)
        kill = kill_at_hooks if options.hooks else kill_at_random
        sys.exit(0 if kill(options, root, folder) else 1)


if __name__ == "__main__":
    main()
