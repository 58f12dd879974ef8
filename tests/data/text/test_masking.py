from collections import Counter

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from data.batch import Tokens
from data.text.masking import ADDED_MASK_TOKEN, DRAWS, MaskedTokens, Masker, TokenNoise, Vocabulary
from data.text.tokens import Tokenize
from model.tiny.build import MAKERS
from utils.continuing.composed import described
from utils.errors import UserError

CAPTIONS = ["a man in a red coat", "a woman with a bag", "blue"]
LENGTH = 12


@pytest.fixture(params=["tiny_siglip", "tiny_clip"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    backbone = described("backbone", request.param)
    return MAKERS[backbone.family](backbone.description.architecture, CAPTIONS)[1]


def masked(masker: Masker, tokens: Tokens, seed: int = 0) -> MaskedTokens:
    return masker(tokens, draws(len(tokens.ids), seed))


def draws(captions: int, seed: int) -> Tensor:
    return torch.rand(captions, 3, LENGTH, generator=torch.Generator().manual_seed(seed))


def test_a_missing_mask_token_is_added_after_the_last_id(tokenizer: PreTrainedTokenizerFast) -> None:
    before = len(tokenizer)
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.added
    assert tokenizer.mask_token == ADDED_MASK_TOKEN
    assert vocabulary.mask_id == vocabulary.max_id == before
    again = Vocabulary(tokenizer)
    assert not again.added
    assert again.mask_id == before


def test_a_mask_token_of_the_vocabulary_is_written_and_is_no_word(tokenizer: PreTrainedTokenizerFast) -> None:
    before, man = len(tokenizer), tokenizer("man")["input_ids"][-2]
    vocabulary = Vocabulary(tokenizer, mask_id=man)
    masker = Masker(vocabulary)
    assert not vocabulary.added
    assert (len(tokenizer), vocabulary.mask_id) == (before, man)
    tokens = Tokenize(tokenizer, LENGTH)(CAPTIONS)
    results = [masked(masker, tokens, seed) for seed in range(200)]
    labels = torch.stack([result.labels for result in results])
    written = torch.stack([result.tokens.ids for result in results])[labels != -100]
    assert (labels != man).all()
    assert (written == man).float().mean().item() == pytest.approx(0.8, abs=0.05)


def test_special_and_padding_tokens_are_never_masked_and_a_word_always_is(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker(Vocabulary(tokenizer))
    tokens = Tokenize(tokenizer, LENGTH)(CAPTIONS)
    special = torch.isin(tokens.ids, torch.tensor(tokenizer.all_special_ids)) | ~tokens.mask
    for seed in range(50):
        result = masked(masker, tokens, seed)
        predicted = result.labels != -100
        assert not (predicted & special).any()
        assert predicted.any(dim=1).all()
        assert torch.equal(result.labels[predicted], tokens.ids[predicted])
        assert torch.equal(result.tokens.ids[~predicted], tokens.ids[~predicted])
        assert torch.equal(result.tokens.mask, tokens.mask)


def test_each_word_is_masked_with_its_own_probability(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker(Vocabulary(tokenizer))
    tokens = Tokenize(tokenizer, LENGTH)(["a man in a red coat"] * 4000)
    words = masker.vocabulary.is_word(tokens)
    probabilities = torch.linspace(0.3, 0.95, LENGTH).expand(4000, -1)
    changed, chosen = masker.mask(tokens, draws(4000, seed=1), probabilities)
    torch.testing.assert_close(chosen.float().mean(0), probabilities[0] * words[0], atol=0.03, rtol=0)
    assert torch.equal(changed.ids[~chosen], tokens.ids[~chosen])
    assert (changed.ids == masker.vocabulary.mask_id)[chosen].float().mean().item() == pytest.approx(0.8, abs=0.02)


def test_one_word_is_masked_if_no_draw_is_below_its_probability(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker(Vocabulary(tokenizer))
    tokens = Tokenize(tokenizer, LENGTH)(CAPTIONS)
    uniform = draws(len(CAPTIONS), seed=2)
    none, every = (masker.mask(tokens, uniform, share)[1] for share in (0.0, 1.0))
    assert none.sum(dim=1).tolist() == [1, 1, 1]
    assert torch.equal(every, masker.vocabulary.is_word(tokens))
    place = int(none[0].nonzero())
    others = torch.arange(LENGTH) != place
    nearer = torch.where(others & every[0], (uniform[0, 0] - 1e-3).clamp_min(0), 0.0).expand(len(CAPTIONS), -1)
    assert not masker.mask(tokens, uniform, nearer)[1][0, place], "the excess counts, not the draw alone"


def test_a_caption_without_words_has_nothing_masked(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker(Vocabulary(tokenizer))
    tokens = Tokenize(tokenizer, LENGTH)(["...", "a man"])
    result = masked(masker, tokens)
    assert (result.labels[0] == -100).all()
    assert torch.equal(result.tokens.ids[0], tokens.ids[0])
    assert (result.labels[1] != -100).any()


def test_the_shares_are_those_of_bert(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = Vocabulary(tokenizer)
    masker = Masker(vocabulary)
    word = tokenizer("man")["input_ids"][-2]
    ids = torch.full((4000, LENGTH), word)
    result = masked(masker, Tokens(ids, torch.ones_like(ids, dtype=torch.bool)))
    predicted = result.labels != -100
    at_least_one = 0.85**LENGTH / LENGTH
    assert predicted.float().mean().item() == pytest.approx(0.15 + at_least_one, abs=0.005)
    written = Counter(result.tokens.ids[predicted].tolist())
    others = set(written) - {vocabulary.mask_id, word}
    assert written[vocabulary.mask_id] / predicted.sum() == pytest.approx(0.8, abs=0.02)
    assert written[word] / predicted.sum() == pytest.approx(0.1, abs=0.02)
    assert sum(written[i] for i in others) / predicted.sum() == pytest.approx(0.1, abs=0.02)
    assert not others & set(tokenizer.all_special_ids)
    assert max(written) <= vocabulary.max_id


def test_each_row_depends_on_its_own_draws_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    masker = Masker(Vocabulary(tokenizer))
    tokens = Tokenize(tokenizer, LENGTH)(CAPTIONS)
    together = masker(tokens, draws(3, seed=1))
    for row in range(3):
        alone = masker(Tokens(tokens.ids[row : row + 1], tokens.mask[row : row + 1]), draws(3, seed=1)[row : row + 1])
        assert torch.equal(alone.tokens.ids[0], together.tokens.ids[row])
        assert torch.equal(alone.labels[0], together.labels[row])


def test_words_are_masked_replaced_and_removed_in_the_shares_of_rde(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = Vocabulary(tokenizer)
    tokens = Tokenize(tokenizer, LENGTH)(CAPTIONS)
    noise = TokenNoise(vocabulary, p=0.2, masked=0.6, replaced=0.2)
    count = {"words": 0, "removed": 0, "masked": 0}
    for seed in range(300):
        draws = torch.rand(len(CAPTIONS), DRAWS, LENGTH, generator=torch.Generator().manual_seed(seed))
        changed = noise(tokens, draws)
        whether, how, which = draws.unbind(1)
        for row in range(len(CAPTIONS)):
            expected = []
            for place in range(LENGTH):
                if not tokens.mask[row, place]:
                    continue
                token, drawn = tokens.ids[row, place].item(), whether[row, place] < 0.2
                if token in tokenizer.all_special_ids or not drawn:
                    expected.append(token)
                elif how[row, place] < 0.6:
                    expected.append(vocabulary.mask_id)
                elif how[row, place] < 0.8:
                    expected.append(vocabulary.words[int(which[row, place] * len(vocabulary.words))].item())
            size = len(expected)
            ids, mask = changed.ids[row], changed.mask[row]
            if tokenizer.padding_side == "left":
                ids, mask = ids.roll(size), mask.roll(size)
            assert ids[:size].tolist() == expected
            assert mask.tolist() == [True] * size + [False] * (LENGTH - size)
            assert (ids[size:] == tokenizer.pad_token_id).all()
        words = vocabulary.is_word(tokens)
        count["words"] += int(words.sum())
        count["removed"] += int(tokens.mask.sum() - changed.mask.sum())
        count["masked"] += int((changed.ids == vocabulary.mask_id).sum())
    assert count["masked"] / count["words"] == pytest.approx(0.12, abs=0.02)
    assert count["removed"] / count["words"] == pytest.approx(0.04, abs=0.01)


@pytest.mark.parametrize("shares", [(-0.1, 0.6, 0.2), (0.2, 0.9, 0.2), (0.2, -0.1, 0.2), (1.1, 0.5, 0.5)])
def test_shares_that_are_none_are_refused(tokenizer: PreTrainedTokenizerFast, shares: tuple[float, ...]) -> None:
    p, masked, replaced = shares
    with pytest.raises(UserError, match=r"^aug\.tokens: p="):
        TokenNoise(Vocabulary(tokenizer), p=p, masked=masked, replaced=replaced)
