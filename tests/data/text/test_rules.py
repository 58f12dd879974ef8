"""Text rules that come with a backbone. The rules of open_clip are tested with its models."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer, PreTrainedTokenizerFast
from transformers.models.siglip2 import Siglip2Tokenizer

from data.text.tokens import Tokenize, load_tokenizer
from utils.errors import UserError

CAPTIONS = ("A Man in a RED coat", "a man in a red coat", "Một Người phụ nữ mặc ÁO đỏ", "Straße İSTANBUL, 5 x  7!")
LENGTH = 64


def gemma_folder(folder: Path, *, rows: int = 256_000, keep: str = "GemmaTokenizer") -> Path:
    """Writes config and tokenizer in the format of google/siglip2-base-patch16-256, with a vocabulary of captions."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special[:5], show_progress=False)
    core.train_from_iterator([*CAPTIONS, *map(str.lower, CAPTIONS)], trainer)
    state = json.loads(core.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in special[5:]:
        vocabulary[byte] = len(vocabulary)
    core = Tokenizer.from_str(json.dumps(state))
    core.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    roles = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, padding_side="right", **roles).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = {"tokenizer_class": keep, "add_bos_token": False, "add_eos_token": True}
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "text_config": {"vocab_size": rows}}))
    return folder


def test_siglip2_reads_lower_case_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    folder = gemma_folder(tmp_path)
    keeps_case = GemmaTokenizer.from_pretrained(folder)
    assert keeps_case(CAPTIONS[0])["input_ids"] != keeps_case(CAPTIONS[1])["input_ids"]
    ids, _ = Tokenize(load_tokenizer(folder), LENGTH)(CAPTIONS)
    assert ids.shape == (4, LENGTH)
    assert ids[0].tolist() == ids[1].tolist()
    reference = Siglip2Tokenizer.from_pretrained(folder)(
        list(CAPTIONS), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    assert ids.tolist() == reference["input_ids"].tolist()
    long = Tokenize(load_tokenizer(folder), 8)(["a red coat " * 9]).ids
    assert long[0, -1] == 1  # the end token stays


@pytest.mark.parametrize(("rows", "keep"), [(500, "GemmaTokenizer"), (256_000, "PreTrainedTokenizerFast")])
def test_siglip2_is_known_by_its_tokenizer_or_its_vocabulary(tmp_path: Path, rows: int, keep: str) -> None:
    tokenizer = load_tokenizer(gemma_folder(tmp_path, rows=rows, keep=keep))
    assert tokenizer("A MAN")["input_ids"] == tokenizer("a man")["input_ids"]


def test_other_models_keep_case(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(gemma_folder(tmp_path, rows=500, keep="PreTrainedTokenizerFast"))
    assert tokenizer("A MAN")["input_ids"] != tokenizer("a man")["input_ids"]


def test_a_tokenizer_that_keeps_case_is_caught(tmp_path: Path) -> None:
    folder = gemma_folder(tmp_path, keep="PreTrainedTokenizerFast")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"] += [{**content["added_tokens"][0], "id": 5, "content": "MAN", "special": False}]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"keeps the case of texts, but SigLIP 2 was trained on lower-cased texts"):
        load_tokenizer(folder)
