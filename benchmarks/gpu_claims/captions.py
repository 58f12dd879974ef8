"""Claim: captions of usual length make a step shorter than captions that fill all positions."""

from functools import partial

import torch

from benchmarks.gpu_claims.bench import Bench
from benchmarks.gpu_claims.steps import Recipe, Trainee, seconds_each, some_recipes

MEAN, DEVIATION, LEAST = 28.0, 9.0, 14  # tokens of a caption of CUHK-PEDES, roughly


def captions(bench: Bench) -> None:
    """Takes steps with captions of usual and of full length, with recipes whose captions may be cut."""
    recipe = some_recipes(bench)[0]
    own = () if bench.on_gpu else ("backbone=tiny_clip", "backbone.max_length=77")
    made = Recipe(recipe.name, (*recipe.overrides, *own), recipe.size)
    bench.parts({made.label: partial(_compare, bench, made)})


def _compare(bench: Bench, recipe: Recipe) -> None:
    cfg = recipe.compose()
    size, most = cfg.dataset.batch_size, cfg.backbone.max_length
    draw = torch.Generator().manual_seed(0)
    usual = torch.normal(MEAN, DEVIATION, (size,), generator=draw).round().clamp(LEAST, most).long()
    seconds: dict[str, float] = {}
    for name, lengths in (("full", torch.full((size,), most)), ("usual", usual)):
        trainee = Trainee(cfg, bench.device, captions=lengths)
        trainee.step()
        seconds[name] = seconds_each(bench, trainee.step, most=3.0)
        bench.row(
            recipe=recipe.label,
            captions=name,
            tokens_of_a_caption=float(lengths.float().mean()),
            positions=str(trainee.batch["text"].ids.shape[1]),
            ms_a_step=1000 * seconds[name],
            of_full=seconds[name] / seconds["full"],
        )
    if bench.on_gpu:
        share = seconds["usual"] / seconds["full"]
        bench.expect(share <= 1.0, f"a step of usual captions takes {share:.2f} times that of full ones")
