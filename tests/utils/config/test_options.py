"""What of a config cannot be, and what makes a run one to try things out."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tests.small_run import CONFIG_DIR
from utils.config.options import check_options, check_overrides, limited, noise_told
from utils.config.resolvers import register_resolvers
from utils.errors import UserError

register_resolvers()


@pytest.fixture(autouse=True)
def hydra() -> Iterator[None]:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        yield
    HydraConfig.instance().cfg = None


def composed(*overrides: str) -> DictConfig:
    return compose("demo", overrides=list(overrides))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trainer.max_epochs=", "trainer.max_epochs: '' given, expected at least 1, a whole number: schedules"),
        ("trainer.max_epochs=0", "trainer.max_epochs: 0 given, expected at least 1"),
        ("trainer.max_epochs=null", "trainer.max_epochs: null given, expected at least 1"),
        (
            "trainer.check_val_every_n_epoch=5",
            "trainer.check_val_every_n_epoch=5 is above trainer.max_epochs=4: no epoch",
        ),
        ("trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch: 0 given"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches: 0 given, expected a number of batches"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches: 0 given"),
        ("trainer.limit_test_batches=1.5", "trainer.limit_test_batches: 1.5 given"),
        ("trainer.limit_test_batches=few", "trainer.limit_test_batches: 'few' given"),
        ("trainer.log_every_n_steps=0", "trainer.log_every_n_steps: 0 given, expected at least 1, a whole number"),
        ("trainer.accumulate_grad_batches=1.5", "trainer.accumulate_grad_batches: 1.5 given"),
        ("dataset.eval_batch_size=null", "dataset.eval_batch_size: null given"),
        ("dataset.batch_size=true", "dataset.batch_size: True given"),
        ("dataset.noise_file=5", "dataset.noise_file: 5 given, expected the path of a .npy file or null"),
        (
            "dataset.further_captions=para",
            "dataset.further_captions: 'para' given, expected a mapping such as",
        ),
        ("shown_queries=-1", "shown_queries: -1 given, expected at least 0"),
        ("shown_queries=[3,x]", r"shown_queries: \[3, 'x'\] given, expected at least 0"),
        ("evaluation.rerank=k_reciprocol", "no such re-ranker. Did you mean 'k_reciprocal'"),
        ("~evaluation.metrics.R1", "callbacks.last.monitor=val/t2i/R1: evaluation.metrics has no R1; choose one of R5"),
        ("lora.r=-3", "lora.r: -3 given"),
        ("seed=-1", "seed: -1 given"),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run would leave the run without .* use debug=fast instead"),
        ("+trainer.overfit_batches=1", "use debug=overfit instead"),
    ],
)
def test_numbers_that_cannot_be_are_refused_by_name(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_options(composed(override))


@pytest.mark.parametrize("debug", [(), ("debug=fast",), ("debug=limit",), ("debug=overfit",)])
@pytest.mark.parametrize("task", ["train", "test", "plan", "export", "embed"])
def test_what_the_configs_have_is_accepted(task: str, debug: tuple[str, ...]) -> None:
    check_options(composed(f"task={task}", *debug))


def test_a_test_is_not_asked_for_what_only_training_reads() -> None:
    check_options(composed("task=test", "trainer.max_epochs=0", "trainer.limit_val_batches=0"))


def check_given(*overrides: str) -> None:
    cfg = compose("demo", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    check_overrides(composed(*overrides))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "optimizer.param_groups.default.lr=",
            "optimizer.param_groups.default.lr: '' given, expected a number, such as",
        ),
        ("loss.terms.nitc.weight=abc", "loss.terms.nitc.weight: 'abc' given, expected a number, such as 1.0"),
        (
            "backbone.description.repository=x",
            "backbone.description says what backbone=tiny_siglip is, and is no option",
        ),
        ("~dataset.description.source", "write a YAML beside config/dataset/drawn.yaml"),
        ("compile=yes", "compile: 'yes' given, expected true or false"),
        (
            "loss.terms=null",
            "loss.terms: null given, but nitc, cross_modal_circle are set below loss.terms",
        ),
    ],
)
def test_an_override_of_another_kind_than_the_config_has_is_refused(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_given(override)


def test_overrides_of_the_right_kind_pass() -> None:
    check_given(
        "experiment=irra",
        "trainer.devices=auto",
        "dataset.num_workers=auto",
        "trainer.gradient_clip_val=null",
        "trainer.deterministic=warn",
        "callbacks.last=null",
        "optimizer.param_groups.default.lr=1",
        "aug.image=[]",
        "~loss.terms.id",
        "+loss/term@loss.terms.efa=efa",
        "+trainer.max_steps=2",
        "dataset.val_identities=3",
    )


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((), ""),
        (("trainer.limit_train_batches=1.0",), ""),
        (("trainer.limit_train_batches=0.5",), "50 % of the batches of a training epoch; of data"),
        (("debug=fast",), "debug=fast; 1 of the batches of a training epoch; of data"),
        (("debug=fast", "task=test"), "debug=fast; of data"),
    ],
)
def test_a_run_that_leaves_something_out_says_what(overrides: tuple[str, ...], told: str) -> None:
    assert limited(composed(*overrides), ["of data"] if told else []) == told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((), ""),
        (("dataset.noise_rate=0.25",), "trained with 25 % of the captions permuted"),
        (("dataset.noise_file=noise/CUHK_0.2.npy",), "trained with captions moved as in CUHK_0.2.npy"),
        (("dataset.noise_rate=0.2", "task=test"), ""),
        (("dataset.noise_rate=0.2", "task=test", "ckpt_path=a.ckpt"), "trained with 20 % of the captions permuted"),
    ],
)
def test_a_run_says_with_which_noise_its_weights_were_trained(overrides: tuple[str, ...], told: str) -> None:
    assert noise_told(composed(*overrides)) == told
