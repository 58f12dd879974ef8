"""Claim: noise-aware masking on a GPU has the CPU's probabilities, costs a caption's forward pass, and is continued."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.gpu_claims.bench import GIB, Bench
from benchmarks.gpu_claims.kernels import counted_synchronizations
from benchmarks.gpu_claims.steps import TINY, Recipe, Trainee, seconds_each
from benchmarks.gpu_claims.training import KERNELS, Runs, largest_gap
from data.batch import MASK_DRAWS, TEXT_MASKED, Tokens
from data.text.masking import DRAWS, Masker, Vocabulary
from lightning_masking import masked_features
from model.features import Features, no_gather
from model.noise_aware_masking import NoiseAwareMasking, masking_probabilities
from model.tiny.build import MAKERS
from utils.continuing.composed import described
from utils.training.precision import AUTOCAST

PAIRS: Final = 1_000_000  # rows of the table
CLOSE: Final = 1e-4  # allowed difference of a probability in fp32
DEAR: Final = 1.25  # largest allowed ratio of the time of a step to that of one with uniform masking


def pretrain(bench: Bench) -> None:
    """Compares probabilities with the CPU, steps with uniform masking, and a killed run with an undisturbed one."""
    runs = Runs(bench)
    with ThreadPoolExecutor(2) as pool:
        try:
            overrides = (*KERNELS["deterministic"], "experiment=pretrain", "trainer.max_epochs=2")
            whole = pool.submit(runs.undisturbed, "pretrain-whole", overrides)
            cut = pool.submit(runs.killed, "pretrain-cut", overrides)
            steps = {f"steps, {name}": partial(_steps, bench, name) for name in ("plain", "GradCache")}
            continued = {"continued": lambda: _continued(bench, whole.result(), cut.result())}
            bench.parts({"probabilities": partial(_probabilities, bench), **steps, **continued})
        finally:
            runs.close()


def _probabilities(bench: Bench) -> None:
    draw = torch.Generator().manual_seed(0)
    words, patches = (torch.randn(64, count, 512, generator=draw, dtype=torch.float64) for count in (77, 193))
    is_word = torch.arange(77) < torch.randint(2, 77, (64, 1), generator=draw)
    is_patch = (torch.arange(193) > 0).expand(64, -1)
    expected = masking_probabilities(words, patches, is_word, is_patch, 0.15)
    for dtype in (torch.float32, torch.bfloat16):
        tokens = (tensor.to(bench.device, dtype) for tensor in (words, patches))
        found = masking_probabilities(*tokens, is_word.to(bench.device), is_patch.to(bench.device), 0.15)
        gap = float((found.cpu() - expected).abs().max())
        bench.row(tokens_in=str(dtype).removeprefix("torch."), largest_difference=gap)
        bench.expect(dtype != torch.float32 or gap <= CLOSE, f"a probability differs by {gap:.2g} from fp64")


def _steps(bench: Bench, name: str) -> None:
    size = () if bench.on_gpu else TINY
    small = "grad_cache.micro_batch=null dataset.batch_size=64" if name == "plain" else "dataset.batch_size=256"
    sizes = small.split() if bench.on_gpu else ["grad_cache.micro_batch=" + ("null" if name == "plain" else "3")]
    recipe = Recipe("clip" if bench.on_gpu else "demo", ("experiment=pretrain",), size)
    seconds = {}
    for masking in ("uniform", "noise_aware"):
        trainee = Masked(recipe.compose(*sizes, f"masking={masking}"), bench.device)
        trainee.step()
        places: Any = {}
        with counted_synchronizations() if bench.on_gpu else nullcontext(places) as places:
            trainee.step()
        allocated, _ = trainee.peak()
        seconds[masking] = seconds_each(bench, trainee.step, most=2.0)
        bench.row(
            step=name,
            pairs=str(trainee.size),
            masking=masking,
            ms_a_step=1000 * seconds[masking],
            allocated_GiB=allocated,
            table_GiB=trainee.table / GIB,
            synchronizations=str(sum(places.values())),
        )
        bench.expect(not places, f"a step with masking={masking} waits for the GPU: {dict(places)}")
        del trainee
        bench.free()
    ratio = seconds["noise_aware"] / seconds["uniform"]
    bench.note(f"{name}: a step takes {ratio:.2f} times as long as with uniform masking")
    bench.expect(not bench.on_gpu or ratio <= DEAR, f"a step takes {ratio:.2f} times as long as with uniform masking")


def _continued(bench: Bench, whole: Any, cut: Any) -> None:
    gap = largest_gap(whole.weights, cut.weights)
    bench.row(run="experiment=pretrain", continued_from_step=str(cut.continued_from), gap_of_continued=gap)
    bench.expect(gap == 0, f"continued, weights or probabilities differ by up to {gap:.3g}")


class Masked(Trainee):
    """A `Trainee` whose captions are masked in the step, if its config says so, with a table of `PAIRS` rows."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._table: NoiseAwareMasking | None = self.module.masking
        plain: Tokens = self.batch[TEXT_MASKED]
        backbone = described("backbone", "tiny_clip")
        tokenizer = MAKERS[backbone.family](backbone.description.architecture, ["a man in a red coat"])[1]
        self._masker = Masker(Vocabulary(tokenizer)).on(self.device)
        self.batch |= {MASK_DRAWS: torch.rand(self.size, DRAWS, plain.ids.shape[1], device=self.device)}
        if self._table is not None:
            self._table.begin(PAIRS, pads_left=False)

    @property
    def table(self) -> int:
        """The bytes of the table."""
        return 0 if self._table is None else self._table.steps.numel()

    def loss(self, precision: str | None = None) -> tuple[Tensor, Features]:
        if self._table is None:
            return super().loss(precision)
        dtype = AUTOCAST[precision or self.precision]
        with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            features = masked_features(self.module, self.batch, 0.0, no_gather, self._table, self._masker)
            return self.module.objective(features).total, features
