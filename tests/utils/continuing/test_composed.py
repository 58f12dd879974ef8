"""How a config was composed, in one form: the variant of tables and dashboards."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.small_run import command
from utils.config.resolvers import register_resolvers, run_info
from utils.continuing.composed import Composed, normal_form, with_composed
from utils.continuing.option_rules import RULES, matches, rule_of, table
from utils.continuing.plain_values import flat
from utils.report.provenance import code, options_hash

register_resolvers()
ROOT = Path(__file__).parents[3]


def variant(*overrides: str, before: Composed | None = None) -> str:
    with command(*overrides) as cfg:
        return run_info(with_composed(cfg, before), language="en", val_is_test=False)["variant"]


SAME = [
    ("loss.terms.nitc.weight=0.0001", "optimizer=cir", "img_size_str=64x32"),
    ("img_size_str='(64,32)'", "optimizer=cir", "++loss.terms.nitc.weight=1e-4"),
    ("optimizer=cir", "loss.terms.nitc.weight=1.0e-04", "img_size_str=\"'(64, 32)'\"", "dataset.num_workers=3"),
    (
        *(
            "loss.terms.nitc.weight=${optimizer.param_groups.default.lr}",
            "trainer.devices=2",
            "logger=csv",
            "output_dir=/x",
            "compile=true",
        ),
        *("optimizer=cir", "img_size_str=64x32", "callbacks.last.every_n_steps=3", "dataset.cache=false", "seed=7"),
        *("dataset_root_dir=/data", "dataset=rstpreid", "dataset.eval_batch_size=3", "trainer.log_every_n_steps=3"),
    ),
]


@pytest.mark.parametrize("overrides", SAME)
def test_the_variant_has_one_form_whatever_the_order_spelling_and_machine(overrides: tuple[str, ...]) -> None:
    assert variant(*overrides) == "img_size_str=64x32 loss.terms.nitc.weight=0.0001 optimizer=cir"


def test_what_changes_a_result_is_in_the_variant() -> None:
    overrides = (
        *("~loss.terms.cross_modal_circle", "+loss/term@loss.terms.more=id", "trainer.max_epochs=3", "aug.image=[]"),
        *("callbacks=early_stopping", "backbone.folder=/x/irra_checkpoints", "lora=default", "lora.r=4"),
    )
    assert variant(*overrides) == (
        "aug.image=[] backbone.folder=irra_checkpoints callbacks=early_stopping lora.r=4 "
        "loss/term@loss.terms.more=id trainer.max_epochs=3 ~loss.terms.cross_modal_circle"
    )


def test_a_continued_run_has_the_overrides_of_all_its_starts() -> None:
    begun_with = ["lora.r=0", "trainer.max_epochs=2", "~loss.terms.cross_modal_circle"]
    before = Composed("demo", {"optimizer": "tiny"}, begun_with)
    assert variant("~loss.terms.cross_modal_circle", "trainer.max_epochs=4", before=before) == (
        "lora.r=0 trainer.max_epochs=4 ~loss.terms.cross_modal_circle"
    )


def test_the_hash_of_options_is_that_of_what_changes_a_result() -> None:
    def hash_of(*overrides: str, name: str = "demo") -> str:
        with command(*overrides, "run_dir=x", name=name) as cfg:
            return options_hash(OmegaConf.to_container(with_composed(cfg), resolve=True))  # type: ignore[arg-type]

    expected = hash_of(*SAME[0])
    assert hash_of(*SAME[1]) == hash_of(*SAME[2]) == expected
    assert hash_of(*SAME[0], "seed=9", "dataset_root_dir=/elsewhere", "logger=none") == expected
    assert hash_of(*SAME[0], "loss.terms.cross_modal_circle.gamma=3") != expected
    assert hash_of(*SAME[0], "dataset.proportion=0.5") != expected
    assert hash_of(name="clip") != hash_of(name="m_siglip")


def test_every_pattern_of_a_rule_is_of_an_option_and_the_first_that_matches_counts() -> None:
    keys = {"trainer", "optimizer", "trainer.min_epochs"}
    for overrides in ((), ("callbacks=early_stopping", "experiment=fmfa")):
        with command(*overrides, "run_dir=x") as cfg:
            keys |= {key for key, _ in flat(OmegaConf.to_container(cfg, resolve=True))}
    used = {pattern for rule in RULES for pattern in rule.keys if any(matches(key, pattern) for key in keys)}
    known_later = {"callbacks.*.dirpath", "callbacks.*.filename"}  # of Lightning's own callbacks
    assert {pattern for rule in RULES for pattern in rule.keys} - used <= known_later
    assert rule_of("callbacks.last.folder").continued == "here"
    assert rule_of("loss.terms.nitc.weight").continued == rule_of("anything.new").continued == "fixed"


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    assert table() in (ROOT / "docs" / "continuing.md").read_text(encoding="utf-8")


def test_the_code_is_told_by_commit_and_by_its_files() -> None:
    found = dict(code())
    assert len(found["sources"]) == 64
    assert found["commit"] is None or len(found["commit"]) == 40
    assert (found["commit"] is None) == (found["clean"] is None)
    json.dumps(found)


def test_a_file_that_another_config_does_not_name_is_null() -> None:
    config = OmegaConf.create({"dataset": {"annotations": None}, "backbone": {"folder": "a/b"}})
    assert normal_form(["dataset.annotations", "backbone.folder"], config, {}) == [
        "backbone.folder=b",
        "dataset.annotations=null",
    ]
