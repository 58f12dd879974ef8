"""Claim: two processes on one card, each with half of a batch, have the same gradients as one with the whole batch.

    torchrun --nproc-per-node=2 -m benchmarks.gpu_claims.processes FOLDER

runs the two processes, which write FOLDER/gradients-RANK.pt, and errors to FOLDER/problem-RANK.txt.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from benchmarks.gpu_claims.bench import Bench
from benchmarks.gpu_claims.steps import TINY, Trainee, composed
from data.batch import Batch
from model.features import no_gather
from utils.training.gather import gather_rows

ROOT: Final = Path(__file__).parents[2]
PAIRS: Final = 8
# In fp64, differences come only from errors. Losses: N-ITC of two views, C-ITC, and Circle losses over all pairs.
OVERRIDES: Final = ("loss=hybrid_circle", "~loss.terms.simclr", *TINY, "trainer.precision=32-true")
EQUAL: Final = 1e-6  # allowed difference, relative to the largest gradient

Gather = Callable[[Tensor], Tensor]


def processes(bench: Bench) -> None:
    """Tries gloo directly, and then with rows gathered on the CPU, because gloo may not gather on a GPU."""
    ways = {"gloo": "device"}
    if bench.on_gpu:
        ways |= {"gloo, rows gathered on the CPU": "cpu", "nccl": "nccl"}
    bench.parts({name: partial(_compare, bench, name, way) for name, way in ways.items()})


def _compare(bench: Bench, name: str, way: str) -> None:
    folder = bench.folder / f"processes-{way}"
    folder.mkdir(exist_ok=True)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [*start, "-m", "benchmarks.gpu_claims.processes", str(folder), way, str(bench.device)]
    status, text = _run(line, max(1.0, bench.left()))
    problems = sorted(folder.glob("problem-*.txt"))
    if status or problems:
        text = problems[0].read_text(encoding="utf-8") if problems else text
        reason = (text.strip().splitlines() or [f"status {status}"])[-1]
        if way == "nccl":
            bench.note(f"nccl does not take two processes on one card: {reason}")
            return
        raise RuntimeError(f"{reason}\n{text[-4000:]}")
    expected = _gradients(_trainee(bench.device), no_gather, Whole)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    gaps = {}
    for rank in range(2):
        found = torch.load(folder / f"gradients-{rank}.pt", map_location=bench.device)
        gaps[rank] = max(float((found[key] - value).abs().max()) for key, value in expected.items()) / largest
    bench.row(backend=name, gap_of_rank_0=gaps[0], gap_of_rank_1=gaps[1], of="the largest gradient")
    bench.expect(max(gaps.values()) <= EQUAL, f"gradients differ by {max(gaps.values()):.3g} of the largest")


def _run(line: list[str], seconds: float) -> tuple[int | str, str]:
    """Returns the exit status and the output of a command. If the time is over, it is terminated, not killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = subprocess.STDOUT
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=both, text=True) as process:
        try:
            text = process.communicate(timeout=seconds)[0]
            return process.returncode, text
        except subprocess.TimeoutExpired:
            process.terminate()  # lets torchrun end its processes, which a kill would leave running
            text, _ = process.communicate()
            return "timeout", f"{text}\nno end within {seconds:.0f} s"


class Whole(nn.Module):
    """A module whose forward pass is the loss of a batch, so that DDP can wrap it."""

    def __init__(self, trainee: Trainee, gather: Gather) -> None:
        super().__init__()
        self.module = trainee.module
        self._gather = gather

    def forward(self, batch: Batch) -> Tensor:
        total = self.module.objective(self.module.features(batch, gather=self._gather)).total
        return total + 0 * torch.stack(self.module.encoder.logit_scale_and_bias()).sum()  # as LitTBPS does for DDP


def _trainee(device: torch.device) -> Trainee:
    trainee = Trainee(composed("demo", *OVERRIDES), device, PAIRS)
    trainee.module.double()
    return trainee


def _gradients(
    trainee: Trainee, gather: Callable[[Tensor], Tensor], wrap: Callable[..., nn.Module]
) -> dict[str, Tensor]:
    model = wrap(trainee, gather)  # has to exist until gradients are exchanged
    model(trainee.batch).backward()
    return {name: p.grad for name, p in trainee.module.named_parameters() if p.grad is not None}


def _on_cpu(rows: Tensor) -> Tensor:
    """Gathers the rows of all processes on the CPU."""
    return gather_rows(rows.cpu()).to(rows.device)


def main(folder: Path, way: str, device: torch.device) -> None:
    rank = int(os.environ["RANK"])
    try:
        dist.init_process_group("nccl" if way == "nccl" else "gloo", timeout=timedelta(minutes=1))
        trainee = _trainee(device)
        half = PAIRS // dist.get_world_size()
        trainee.batch = tree_map_only(Tensor, lambda rows: rows[rank * half :][:half], trainee.batch)
        gather = _on_cpu if way == "cpu" else gather_rows
        found = _gradients(trainee, gather, lambda *of: DistributedDataParallel(Whole(*of)))
        torch.save(found, folder / f"gradients-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
    except Exception:
        (folder / f"problem-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise


if __name__ == "__main__":
    arguments: Any = sys.argv[1:]
    main(Path(arguments[0]), arguments[1], torch.device(arguments[2]))
