"""Claim: fp16 with a scaler, bf16 and fp32 train the same model and have nearly the same gradients."""

from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.gpu_claims.bench import Bench
from benchmarks.gpu_claims.steps import Recipe, Trainee, seconds_each, some_recipes

PRECISIONS = {"32-true": 1.0, "bf16-mixed": 0.97, "16-mixed": 0.99}  # -> smallest allowed cosine to fp32's gradients
FIRST, *_, LAST = PRECISIONS
PAIRS = 16  # small enough for fp32
WEIGHTY = 1e-3  # a tensor is compared alone if its gradient has this share of the norm of all gradients

Gradients = dict[str, Tensor]


def precision(bench: Bench) -> None:
    """Compares gradients at the same weights, and then takes steps in each precision."""
    parts = {}
    for recipe in some_recipes(bench):
        exact: Gradients = {}
        for name in PRECISIONS:
            parts[f"{recipe.label}, {name}"] = partial(_compare, bench, recipe, name, exact)
    bench.parts(parts)


def _compare(bench: Bench, recipe: Recipe, name: str, exact: Gradients) -> None:
    """Compares one precision with fp32, whose gradients the first call stores in `exact` and the last call removes."""
    trainee = Trainee(recipe.compose(f"trainer.precision={name}"), bench.device, PAIRS if bench.on_gpu else 8)
    for dropout in (part for part in trainee.module.modules() if isinstance(part, nn.Dropout)):
        dropout.p = 0.0  # dropout would differ between precisions
    found = _gradients(trainee)
    if name == FIRST:
        exact |= found
    cosine, (worst, at) = _cosines(found, exact) if exact else (None, (None, "-"))
    del found
    if name == LAST:
        exact.clear()
    before = trainee.scaler.get_scale()
    losses: list[Tensor] = []
    seconds = seconds_each(bench, lambda: losses.append(trainee.step()), most=1.5)
    bench.row(
        recipe=recipe.label,
        precision=name,
        cosine_to_fp32=None if cosine is None else f"{cosine:.5f}",
        lowest_of_a_tensor=None if worst is None else f"{worst:.5f}",
        which=at,
        loss=losses[0].item(),
        steps=str(len(losses)),
        loss_scale=f"{before:g} -> {trainee.scaler.get_scale():g}" if trainee.scaler.is_enabled() else "-",
        pairs_a_second=trainee.size / seconds,
    )
    bench.expect(bool(torch.stack(losses).isfinite().all()), "a loss is not finite")
    if cosine is not None:
        bench.expect(cosine >= PRECISIONS[name], f"gradients have a cosine of {cosine:.4f} to those of fp32")


def _gradients(trainee: Trainee) -> Gradients:
    """Returns the gradients at the initial weights. As a scaler does, it lowers fp16's scale until all are finite."""
    scale = 2.0**16 if trainee.scaler.is_enabled() else 1.0
    while True:
        trainee.module.zero_grad()
        (trainee.loss()[0] * scale).backward()
        found = {n: p.grad / scale for n, p in trainee.module.named_parameters() if p.grad is not None}
        if scale <= 1 or all(bool(gradient.isfinite().all()) for gradient in found.values()):
            trainee.module.zero_grad()
            return found
        scale /= 2


def _cosines(found: Gradients, exact: Gradients) -> tuple[float, tuple[float, str]]:
    """Returns the cosine of all gradients together, and the lowest cosine of a tensor above `WEIGHTY` with its name."""
    products = {name: _products(found[name], gradient) for name, gradient in exact.items()}
    dot, own, other = (sum(values) for values in zip(*products.values(), strict=True))
    alone = [(d / (a * b) ** 0.5, name) for name, (d, a, b) in products.items() if a and b > WEIGHTY**2 * other]
    return dot / (own * other) ** 0.5, min(alone)


def _products(a: Tensor, b: Tensor) -> tuple[float, float, float]:
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b), float(a @ a), float(b @ b)
