"""How the doctor counts the captions that a tokenizer cuts."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.annotations.records import Annotation
from data.doctor import main
from data.doctor.summary import token_summary
from utils.errors import UserError

IMAGES = [
    Annotation(1, 1, "train", "1.jpg", ("one two three four five six", "one two")),
    Annotation(2, 2, "train", "2.jpg", ("one two three four five", "one two three four five six seven")),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer that makes one token of each word and says that five fit."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[UNK]", model_max_length=5
    )
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize(("max_length", "limit", "cut"), [(None, 5, 2), (6, 6, 1), (7, 7, 0), (1, 1, 4)])
def test_captions_over_the_limit_are_counted(folder: Path, max_length: int | None, limit: int, cut: int) -> None:
    summary = token_summary(IMAGES, folder, max_length)
    assert (summary["max_length"], summary["cut"], summary["share"], summary["longest"]) == (limit, cut, cut / 4, 7)


def test_no_captions_are_no_error(folder: Path) -> None:
    assert token_summary([], folder, None)["share"] == 0


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer folder .*nowhere does not exist"):
        token_summary(IMAGES, tmp_path / "nowhere", None)
    with pytest.raises(UserError, match=r"holds no tokenizer that transformers can load"):
        token_summary(IMAGES, tmp_path, None)


def test_a_tokenizer_without_a_limit_needs_one(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    del settings["model_max_length"]
    config.write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"does not say how many tokens fit; add --max-length"):
        token_summary(IMAGES, folder, None)
    assert token_summary(IMAGES, folder, 5)["cut"] == 2


def test_the_command_reports_the_cut_as_a_warning(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "RSTPReid" / "imgs"
    images.mkdir(parents=True)
    entries = []
    for pid, split in enumerate(("train", "val", "test")):
        Image.new("RGB", (8, 16), (pid, 0, 0)).save(images / f"{pid}.jpg")
        captions = IMAGES[0].captions
        entries.append({"id": pid, "split": split, "img_path": f"{pid}.jpg", "captions": captions})
    (images.parent / "data_captions.json").write_text(json.dumps(entries))
    assert main(["rstpreid", "--root", str(tmp_path), "--tokenizer", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "3 (50.0%) at 5 tokens; the longest has 6" in printed
    assert "captions cut to 5 tokens: 3" in printed
