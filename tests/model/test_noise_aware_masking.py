"""Noise-aware masking: its probabilities against slow loops, and the table that keeps them."""

import math

import pytest
import torch
from torch import Tensor

from model.features import Encoded
from model.noise_aware_masking import (
    STEPS,
    UNSEEN,
    MatchedCaptions,
    NoiseAwareMasking,
    PlainCaptions,
    masking_probabilities,
)
from utils.errors import UserError

BATCH, LENGTH, PATCHES, WIDTH, SHARE = 5, 9, 7, 4, 0.15
IS_WORD = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
for row, words in enumerate((7, 4, 1, 0, 6)):  # behind the token of the start; one caption has no words
    IS_WORD[row, 1 : 1 + words] = True
IS_PATCH = torch.ones(BATCH, PATCHES, dtype=torch.bool)
IS_PATCH[:, 0] = False


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def transcribed(words: Tensor, patches: Tensor) -> Tensor:
    """The equation as it is written, with one number at a time."""
    found = torch.zeros(BATCH, LENGTH, dtype=torch.float64)
    for b in range(BATCH):
        mismatch = {}
        for i in range(LENGTH):
            if not IS_WORD[b, i]:
                continue
            cosines = []
            for j in range(PATCHES):
                if IS_PATCH[b, j]:
                    word, patch = words[b, i].tolist(), patches[b, j].tolist()
                    product = sum(x * y for x, y in zip(word, patch, strict=True))
                    cosines.append(product / (math.hypot(*word) * math.hypot(*patch)))
            mismatch[i] = 1 - max(cosines)
        for i, value in mismatch.items():
            found[b, i] = min(max(value - sum(mismatch.values()) / len(mismatch) + SHARE, 0.0), 1.0)
    return found


def test_probabilities_equal_a_direct_transcription() -> None:
    words, patches = drawn(BATCH, LENGTH, WIDTH), drawn(BATCH, PATCHES, WIDTH, seed=1)
    found = masking_probabilities(words, patches, IS_WORD, IS_PATCH, SHARE)
    torch.testing.assert_close(found, transcribed(words, patches), rtol=0, atol=1e-12)
    assert (found == 0)[IS_WORD].any(), "some are clipped"
    assert found[2, 1].item() == pytest.approx(SHARE), "a single word has the mean"
    assert not found[~IS_WORD].any()


def test_padding_and_the_cls_token_have_no_influence() -> None:
    words, patches = drawn(BATCH, LENGTH, WIDTH), drawn(BATCH, PATCHES, WIDTH, seed=1)
    expected = masking_probabilities(words, patches, IS_WORD, IS_PATCH, SHARE)
    other = words.masked_fill(~IS_WORD[..., None], 100.0), patches.masked_fill(~IS_PATCH[..., None], 100.0)
    torch.testing.assert_close(masking_probabilities(*other, IS_WORD, IS_PATCH, SHARE), expected)
    shorter = masking_probabilities(words[:, :8], patches, IS_WORD[:, :8], IS_PATCH, SHARE)
    torch.testing.assert_close(shorter, expected[:, :8])


@pytest.mark.parametrize("sizes", [[5], [2, 2, 1]])
def test_a_batch_in_parts_is_the_whole_batch_and_another_view_is_left_alone(sizes: list[int]) -> None:
    table, patches = drawn(20, WIDTH), drawn(BATCH, PATCHES, WIDTH, seed=1)
    ids = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % 20
    captions = PlainCaptions(ids, torch.ones_like(ids, dtype=torch.bool), IS_WORD)
    matched = MatchedCaptions(captions, lambda ids, mask: table[ids].requires_grad_(), SHARE)
    for _ in range(2):
        for tokens, mask in zip(patches.split(sizes), IS_PATCH.split(sizes), strict=True):
            matched(Encoded(tokens[:, 0], tokens[:, 0], tokens, mask))
    expected = masking_probabilities(table[ids], patches, IS_WORD, IS_PATCH, SHARE)
    torch.testing.assert_close(matched.probabilities, expected)
    assert not matched.probabilities.requires_grad


@pytest.mark.parametrize("pads_left", [False, True])
def test_the_table_returns_what_it_keeps_whatever_the_length_of_a_batch(pads_left: bool) -> None:
    masking = NoiseAwareMasking(name="noise_aware", share=SHARE, max_length=LENGTH)
    masking.begin(10, pads_left=pads_left)
    first, short, long = torch.tensor([7, 2, 4]), torch.zeros(3, 6), torch.zeros(3, LENGTH)
    assert torch.equal(masking.of(first, long), torch.full((3, LENGTH), SHARE))
    kept = drawn(3, 6).abs().clamp(0, 1).float()
    masking.keep(first, kept)
    torch.testing.assert_close(masking.of(first, short), kept, rtol=0, atol=0.5 / STEPS + 1e-6)
    inner = masking.of(first, long)[:, -6:] if pads_left else masking.of(first, long)[:, :6]
    assert torch.equal(inner, masking.of(first, short))
    assert (masking.steps[torch.tensor([0, 1, 3, 5, 6, 8, 9])] == UNSEEN).all(), "others keep theirs"
    assert masking.steps.element_size() == 1


def test_a_checkpoint_of_another_training_set_is_refused() -> None:
    saved, masking = (NoiseAwareMasking(name="noise_aware", share=SHARE, max_length=LENGTH) for _ in range(2))
    saved.begin(1200, pads_left=False)
    saved.keep(torch.tensor([3]), torch.ones(1, LENGTH))
    masking.load_state_dict(saved.state_dict())
    masking.begin(1200, pads_left=False)
    assert torch.equal(masking.steps, saved.steps)
    with pytest.raises(UserError, match=r"^the checkpoint has masking probabilities of 1,200 pairs, but this training"):
        masking.begin(1300, pads_left=False)


@pytest.mark.parametrize("share", [0.0, 1.0, 15])
def test_a_share_that_masks_none_or_all_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"^masking\.share: .* given, expected a number above 0 and below 1"):
        NoiseAwareMasking(name="noise_aware", share=share, max_length=LENGTH)


def test_a_pair_that_a_batch_has_twice_keeps_the_newer_row_whole() -> None:
    """With several threads, torch writes the halves of a row in any order if its index comes twice."""
    masking = NoiseAwareMasking(name="noise_aware", share=SHARE, max_length=77)
    masking.begin(256, pads_left=False)
    draw, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(20):
            pairs = torch.arange(512)[torch.randperm(512, generator=draw)] % 256
            own = torch.arange(512) % STEPS
            masking.keep(pairs, (own / STEPS)[:, None].expand(-1, 77))
            newest = {int(pair): int(step) for pair, step in zip(pairs, own, strict=True)}
            expected = torch.tensor([newest[pair] for pair in range(256)], dtype=torch.uint8)
            assert torch.equal(masking.steps, expected[:, None].expand(-1, 77))
    finally:
        torch.set_num_threads(threads)
