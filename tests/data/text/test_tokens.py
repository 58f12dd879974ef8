from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BatchEncoding, PreTrainedTokenizerFast

from data.text.tokens import Tokenize, load_tokenizer
from utils.errors import UserError

WORDS = ["</s>", "[UNK]", "áo", "đỏ", "quần", "xanh"]


def siglip_like() -> PreTrainedTokenizerFast:
    """Returns a tokenizer that ends and pads with the same </s> and announces no mask, like SigLIP's."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="</s>",
        eos_token="</s>",
        unk_token="[UNK]",
        model_max_length=4,
        model_input_names=["input_ids"],
    )


class TestTokenize:
    def test_always_padded_to_the_full_length_with_a_mask_over_the_end_token(self) -> None:
        ids, mask = Tokenize(siglip_like(), 6)(["áo đỏ", "quần"])
        assert ids.tolist() == [[2, 3, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]]
        assert mask.tolist() == [[True] * 3 + [False] * 3, [True] * 2 + [False] * 4]
        assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)

    def test_a_long_caption_is_cut_and_keeps_its_end_token(self) -> None:
        ids, mask = Tokenize(siglip_like(), 4)(["áo đỏ quần xanh áo đỏ"])
        assert ids.tolist() == [[2, 3, 4, 0]]
        assert mask.all()

    def test_counts_are_those_before_cutting(self, capfd: pytest.CaptureFixture[str]) -> None:
        captions = ["áo đỏ quần", "áo đỏ quần quần", "áo " * 9]
        assert Tokenize(siglip_like(), 4).count(captions) == (2, 10, 4)
        assert capfd.readouterr().err == ""


class TestMemory:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_counted_captions_are_not_tokenised_again_and_stay_the_same(
        self, side: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tokenizer = siglip_like()
        tokenizer.padding_side = side
        captions = ["áo đỏ", "quần", "áo đỏ quần xanh áo đỏ", "", "quần", "đỏ đỏ đỏ", "xanh áo"]
        expected = Tokenize(tokenizer, 4)(captions)
        tokenize = Tokenize(tokenizer, 4)
        tokenize.count(captions[:4])
        tokenize.count(captions[2:])
        calls: list[list[str]] = []
        monkeypatch.setattr(
            type(tokenizer), "__call__", lambda _, texts, **options: calls.append(texts) or expected_call(texts)
        )

        def expected_call(texts: list[str]) -> BatchEncoding:
            return BatchEncoding({"input_ids": torch.ones(len(texts), 4), "attention_mask": torch.ones(len(texts), 4)})

        order = [5, 2, 6, 0, 3, 1, 4, 5]
        found = tokenize([captions[i] for i in order])
        assert calls == []
        for part, whole in zip(found, expected, strict=True):
            assert part.dtype == whole.dtype
            assert torch.equal(part, whole[order])
        tokenize(["áo đỏ", "áo"])
        assert calls == [["áo đỏ", "áo"]]


class TestLoadTokenizer:
    def test_what_was_saved(self, tmp_path: Path) -> None:
        siglip_like().save_pretrained(tmp_path)
        assert Tokenize(load_tokenizer(tmp_path), 3)(["xanh"]).ids.tolist() == [[5, 0, 0]]

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nowhere does not exist; `uv run prepare_checkpoints\.py`"):
            load_tokenizer(tmp_path / "nowhere")

    def test_a_folder_without_a_tokenizer(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no tokenizer that transformers can load"):
            load_tokenizer(tmp_path)
