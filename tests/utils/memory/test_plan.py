"""The plan: what fits, what is asked of the trace, and what a user reads."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from utils.config.resolvers import register_resolvers
from utils.errors import UserError
from utils.memory.plan import MOST, Traced, largest_that_fits, make_plan, processes
from utils.memory.trace import GIB, StepMemory

CONFIG = Path(__file__).parents[3] / "config"
PAIR = GIB // 8  # bytes that a pair takes in `trace`


def config(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("demo", overrides=["run_dir=.", "dataset.batch_size=64", *overrides])


def trace(cfg: DictConfig, batch_size: int) -> Traced:
    """A GiB each of weights and optimizer state, and an eighth for every pair that is encoded at a time."""
    at_a_time = cfg.grad_cache.micro_batch or batch_size
    pair = PAIR // 4 if cfg.backbone.gradient_checkpointing else PAIR
    state = GIB // 4 if cfg.optimizer.algorithm == "adamw8bit" else GIB
    return Traced(StepMemory(GIB, 0, state, min(at_a_time, batch_size) * pair), 3_000_000, 1_000)


@pytest.mark.parametrize("start", [1, 7, 10, 11, 50])
@pytest.mark.parametrize(("base", "expected"), [(0, 10), (95, 0), (91, 0), (90, 1), (-10_000, 64)])
def test_the_largest_that_fits_is_found_from_anywhere(start: int, base: int, expected: int) -> None:
    """Of 10 * size + base <= 100, with a bend that no line foresees."""

    def total(size: int) -> int:
        return 10 * size + base + (size // 9)

    best = max((size for size in range(65) if size and total(size) <= 100), default=0)
    assert abs(best - expected) <= 1
    assert largest_that_fits(total, 100, start, total(start), most=64) == best


@pytest.mark.parametrize("multiple_of", [3, 4, 24])
def test_the_largest_that_fits_is_a_multiple(multiple_of: int) -> None:
    tried: list[int] = []

    def total(size: int) -> int:
        tried.append(size)
        return 10 * size

    assert largest_that_fits(total, 505, 24, 240, most=96, multiple_of=multiple_of) == 50 // multiple_of * multiple_of
    assert all(size % multiple_of == 0 for size in tried)
    assert len(tried) <= 4


@pytest.mark.parametrize("start", [1, 8, 1000, 100_000])
@pytest.mark.parametrize("square", [0, 40, 1000])
def test_the_largest_that_fits_is_found_soon_where_losses_grow_by_the_square(start: int, square: int) -> None:
    tried: list[int] = []

    def total(size: int) -> int:
        tried.append(size)
        return 30_000_000 + 2_000_000 * size + square * size**2

    best = largest_that_fits(total, 11 * GIB, start, total(start), most=MOST)
    assert total(best) <= 11 * GIB < total(best + 1)
    assert len(tried) <= 20


def test_a_plan_says_what_a_step_takes_and_what_fits() -> None:
    plan = make_plan(config("plan.memory_gb=12"), trace)
    assert plan.fits
    assert plan.peak == 2 * GIB + 64 * PAIR + GIB
    assert (plan.size, plan.largest, plan.remedies) == (64, 72, [])
    assert "dataset.batch_size=64 fits 12.00 GiB; the largest that fits: 72" in str(plan)
    assert "3,000,000 parameters, 1,000 of them trained" in str(plan)
    rows = [line.split() for line in str(plan).splitlines() if line.startswith("| ")]
    sizes = {" ".join(row[1:-3]): row[-2] for row in rows[1:]}
    assert sizes == {
        "weights": "1.00",
        "gradients": "0.00",
        "optimizer state": "1.00",
        "activations": "8.00",
        "reserve": "1.00",
        "together": "11.00",
    }


def test_remedies_add_up_until_it_fits() -> None:
    plan = make_plan(config("plan.memory_gb=4.5"), trace)
    assert not plan.fits
    assert plan.largest == 12
    assert plan.remedies == [
        ("backbone.gradient_checkpointing=true", 4 * GIB),
        ("backbone.gradient_checkpointing=true optimizer.algorithm=adamw8bit", 13 * GIB // 4),
    ]
    assert plan.advice == [
        "dataset.batch_size=64 does not fit 4.50 GiB; the largest that fits: 12",
        "with backbone.gradient_checkpointing=true it takes 5.00 GiB",
        "with backbone.gradient_checkpointing=true optimizer.algorithm=adamw8bit it takes 4.25 GiB",
    ]


def test_a_remedy_that_training_refuses_is_left_out() -> None:
    def refusing(cfg: DictConfig, batch_size: int) -> Traced:
        if cfg.backbone.gradient_checkpointing:
            raise UserError("these towers cannot recompute activations")
        return trace(cfg, batch_size)

    keys = [keys for keys, _ in make_plan(config("plan.memory_gb=3.5"), refusing).remedies]
    assert keys == ["optimizer.algorithm=adamw8bit", "optimizer.algorithm=adamw8bit grad_cache.micro_batch=16"]


def test_a_batch_of_one_that_does_not_fit_is_said_in_one_sentence() -> None:
    plan = make_plan(config("plan.memory_gb=3"), trace)
    assert plan.largest == 0
    assert plan.advice[0] == "dataset.batch_size=64 does not fit 3.00 GiB, and no smaller value does"


def test_under_grad_cache_the_micro_batch_is_what_varies() -> None:
    plan = make_plan(config("plan.memory_gb=12", "dataset.batch_size=1024", "grad_cache.micro_batch=16"), trace)
    assert plan.fits
    assert (plan.varied, plan.size, plan.largest) == ("grad_cache.micro_batch", 16, 72)
    whole = make_plan(config("plan.memory_gb=1000", "dataset.batch_size=100", "grad_cache.micro_batch=16"), trace)
    assert whole.largest == 100


def test_the_identity_sampler_takes_whole_persons() -> None:
    plan = make_plan(config("plan.memory_gb=12.4", "dataset.sampler=identity", "dataset.num_instance=4"), trace)
    assert plan.largest == 72


def test_a_process_of_several_has_its_share_of_the_batch() -> None:
    sizes: list[int] = []

    def noting(cfg: DictConfig, batch_size: int) -> Traced:
        sizes.append(batch_size)
        return trace(cfg, batch_size)

    cfg = config("trainer.devices=2", "trainer.num_nodes=2")
    assert processes(cfg) == 4
    assert make_plan(cfg, noting).size == 16
    assert sizes[0] == 16


def test_more_than_anybody_trains_is_not_looked_for() -> None:
    plan = make_plan(config("plan.memory_gb=100000"), trace)
    assert plan.largest == MOST
    assert plan.advice == [f"dataset.batch_size=64 fits 100000.00 GiB; the largest that fits: at least {MOST}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("plan.memory_gb=0",), r"plan\.memory_gb: 0 given, expected more than plan\.reserve_gb=1\.0"),
        (("plan.reserve_gb=12",), r"plan\.memory_gb: 12 given, expected more than plan\.reserve_gb=12"),
        (("plan.reserve_gb=-1",), r"plan\.reserve_gb=-1, .* at least 0"),
        (("dataset.batch_size=0",), r"dataset\.batch_size: 0 given, expected at least 1"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(config(*overrides), trace)
