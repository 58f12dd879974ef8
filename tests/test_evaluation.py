"""How a split is read and encoded for ranking: in which precision, and with which filter images are resized."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

import trainer
from model.features import Encoded
from model.tbps import TBPS
from tests.small_run import CONFIG_DIR, SMALL
from utils.errors import UserError
from utils.ranking.metrics import STANDARD, measure, recall
from utils.ranking.positives import load_ranks
from utils.report.comparison import compare_runs


@pytest.mark.parametrize(
    ("asked", "used", "dtype"),
    [
        ("auto", "32-true", None),
        ("bf16-mixed", "bf16-mixed", torch.bfloat16),
        ("trainer", "bf16-mixed", torch.bfloat16),
    ],
)
def test_evaluation_has_a_precision_of_its_own_which_is_said_and_recorded(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asked: str,
    used: str,
    dtype: torch.dtype | None,
) -> None:
    seen: dict[bool, set[torch.dtype | None]] = {True: set(), False: set()}

    def watched(self: TBPS, ids: Tensor, mask: Tensor) -> Encoded:
        active = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        if ids.device.type != "meta":  # on it the cost is counted
            seen[self.training].add(active)
        return encode(self, ids, mask)

    encode = TBPS.encode_text
    monkeypatch.setattr(TBPS, "encode_text", watched)
    overrides = ("trainer.precision=bf16-mixed", f"evaluation.precision={asked}", "loss=baseline", "logger=csv")
    places = (f"dataset_root_dir={small_root}", f"run_dir={tmp_path}", "dataset.interpolation=bilinear")
    small = [option for option in SMALL if "simclr" not in option]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("demo", overrides=[*small, *overrides, *places])
    trainer.train(cfg)
    assert seen == {True: {torch.bfloat16}, False: {dtype}}
    record = json.loads((tmp_path / "metrics.json").read_text())["provenance"]
    assert (record["encoded_in"], record["data"]["interpolation"]) == (used, "bilinear")
    printed = capsys.readouterr().out
    assert "\nimages  resized to 64x32, bilinear\n" in printed
    said = "\nranks   images and captions are encoded in 32-true; trainer.precision is bf16-mixed\n" in printed
    assert said == (used != "bf16-mixed")


def test_the_ranks_of_the_test_give_its_metrics_and_others_can_be_asked_for(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("+evaluation.metrics.R2={_target_:utils.ranking.metrics.recall,_partial_:true,k:2}",)
    again = ("evaluation.rerank=k_reciprocal", "evaluation.rerankers.k_reciprocal.top=10")
    places = ("task=test", f"dataset_root_dir={small_root}", f"run_dir={tmp_path}", "logger=csv")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("demo", overrides=[*SMALL, *own, *again, *places])
    returned = trainer.test(cfg)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    ranks = {direction: found for direction, (found, _) in load_ranks(tmp_path / "ranks.npz").items()}
    metrics = STANDARD | {"R2": partial(recall, k=2)}
    for direction in ("t2i", "i2t"):
        assert measure(ranks[direction], metrics).as_row() == saved["metrics"][direction]
        assert returned[f"test/{direction}/R2"] == saved["metrics"][direction]["R2"]
    assert measure(ranks["t2i_k_reciprocal"], metrics).as_row() == saved["reranked"]["t2i"]
    assert not {"test/t2i_k_reciprocal/R1"} & returned.keys()
    files = {file.name for file in tmp_path.iterdir()}
    assert "tsne.png" not in files
    assert {"ranked.jpg", "similarities.png"} <= files
    assert "R2" in str(compare_runs([tmp_path / "metrics.json"]))
    printed = capsys.readouterr().out
    assert re.search(r"^reranked \d+ captions by k_reciprocal in \d", printed, re.MULTILINE)


def test_changed_captions_and_images_are_ranked_beside_the_plain_ones(
    small_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = {"first_words": "[1.0,0.1]", "exchange_colors": "[1.0]", "hide_below": "[0,1]", "shrink": "null"}
    own = [f"evaluation.changes.{name}.levels={asked}" for name, asked in levels.items() if asked != "null"]
    own += [f"~evaluation.changes.{name}" for name in ("drop_words", "hide_above", "grey")]
    own += ["evaluation.changes.shrink=null", "evaluation=robustness", "shown_queries=[3,0]", "evaluation.figures=pdf"]
    places = ("task=test", f"dataset_root_dir={small_root}", f"run_dir={tmp_path}", "logger=csv")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("demo", overrides=[*SMALL, *own, *places])
    trainer.test(cfg)
    saved = json.loads((tmp_path / "metrics.json").read_text())
    found = {(row["change"], row["level"]): row["metrics"] for row in saved["changed"]}
    by_name = [("first_words", "1"), ("first_words", "0.1"), ("exchange_colors", "1"), ("hide_below", "0")]
    assert list(found)[:5] == [*by_name, ("hide_below", "1")]
    assert found["first_words", "1"] == found["hide_below", "0"] == saved["metrics"], "where nothing changes"
    assert found["first_words", "0.1"]["t2i"]["mAP"] != saved["metrics"]["t2i"]["mAP"]
    hidden = found["hide_below", "1"]["t2i"]["mAP"]
    assert hidden < saved["metrics"]["t2i"]["mAP"], "all images are the same, and ties count against the query"
    lengths = [row["metrics"] for row in saved["changed"] if row["change"] == "caption length"]
    assert sum(row["t2i"]["queries"] for row in lengths) == saved["metrics"]["t2i"]["queries"]
    printed = capsys.readouterr().out
    assert re.search(r"^\| first_words +\| +0.1 \| +[\d.]+ \([+-]", printed, re.MULTILINE)
    assert re.search(r"^cost    [\d,]+ parameters, all trained; [\d.]+ GFLOPs an image", printed, re.MULTILINE)
    figures = {file.name for file in tmp_path.glob("*.pdf")}
    assert figures == {"ranked.pdf", "robustness.pdf", "similarities.pdf"}
    cfg.evaluation.figures, cfg.run_dir = "PNG", str(tmp_path / "refused")
    with pytest.raises(UserError, match=r"evaluation\.figures=PNG is unknown; expected none or pdf or svg"):
        trainer.test(cfg)
    cfg.evaluation.figures, cfg.shown_queries = "none", [0, 16]
    with pytest.raises(UserError, match=r"shown_queries=\[0, 16\]: the test split has the captions 0 to 15"):
        trainer.test(cfg)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Changed captions and images, R1, %" in page
