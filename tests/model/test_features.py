"""Features: lazy, encoded once, gathered once, under the AMP mode of the step."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import Encoded, Features, PartEncoded

BATCH, WIDTH = 3, 4


@dataclass
class Calls:
    """Rows of every call, in order."""

    images: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    gathers: list[int] = field(default_factory=list)


class CountingEncoder(nn.Module):
    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls
        self.vision = nn.Linear(3 * 4, WIDTH)
        self.language = nn.Embedding(10, WIDTH)

    def encode_image(self, pixels: Tensor) -> Encoded:
        self.calls.images.append(len(pixels))
        return self._encode(self.vision(pixels.flatten(1) / 255)[:, None])

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        self.calls.texts.append(len(ids))
        return self._encode(self.language(ids))

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(10.0), torch.tensor(-1.0)

    def _encode(self, tokens: Tensor) -> Encoded:
        pooled = tokens.mean(dim=1)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        return Encoded(pooled, F.normalize(pooled.float(), dim=-1), tokens, mask)


class PartialEncoder(CountingEncoder):
    """Has two slots: the pooled feature, and the first token."""

    def _encode(self, tokens: Tensor) -> Encoded:
        one = super()._encode(tokens)
        slots = torch.stack([one.pooled, tokens[:, 0]], dim=1)
        return PartEncoded(one.pooled, F.normalize(slots, dim=2).flatten(1), one.tokens, one.mask, slots)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def encoder(calls: Calls) -> CountingEncoder:
    torch.manual_seed(0)
    return CountingEncoder(calls)


def make(encoder: CountingEncoder, **labels: Tensor) -> Features:
    """Features of three image views and one text view, as if one of two processes that hold the same rows."""

    def gather(rows: Tensor) -> Tensor:
        encoder.calls.gathers.append(len(rows))
        return torch.cat([rows, rows])

    draw = torch.Generator().manual_seed(1)
    images = {
        view: torch.randint(256, (BATCH, 3, 2, 2), generator=draw, dtype=torch.uint8)
        for view in ("image", "image_aug", "image_ss1")
    }
    texts = {"text": (torch.randint(10, (BATCH, 5), generator=draw), torch.ones(BATCH, 5, dtype=torch.bool))}
    return Features(encoder, images, texts, labels, gather=gather)


def test_nothing_is_encoded_before_it_is_asked_for_and_nothing_twice(encoder: CountingEncoder, calls: Calls) -> None:
    features = make(encoder)
    assert calls == Calls()
    assert features.accessed == set()
    assert features.image() is features.image("image")
    features.text()
    features.text()
    assert (calls.images, calls.texts) == ([BATCH], [BATCH])
    assert features.accessed == {"image", "text"}


def test_expected_image_views_share_one_pass_and_equal_separate_ones(encoder: CountingEncoder, calls: Calls) -> None:
    together, apart = make(encoder), make(encoder)
    together.expect({"image", "image_aug", "text", "pids"})
    for view in ("image_aug", "image", "image_ss1"):
        for part in ("pooled", "embedding", "tokens", "mask"):
            joint, single = getattr(together.image(view), part), getattr(apart.image(view), part)
            torch.testing.assert_close(joint, single)
    assert sorted(calls.images) == [BATCH, BATCH, BATCH, BATCH, 2 * BATCH]


def test_expected_text_views_share_one_pass_and_equal_separate_ones(encoder: CountingEncoder, calls: Calls) -> None:
    draw = torch.Generator().manual_seed(2)
    texts = {
        view: (torch.randint(10, (BATCH, 5), generator=draw), torch.ones(BATCH, 5, dtype=torch.bool))
        for view in ("text", "text_masked")
    }
    together, apart = (Features(encoder, {}, texts, {}) for _ in range(2))
    together.expect({"text", "text_masked"})
    for view in texts:
        torch.testing.assert_close(vars(together.text(view)), vars(apart.text(view)))
    assert sorted(calls.texts) == [BATCH, BATCH, 2 * BATCH]
    assert [len(source) for source in together.sources()] == [2 * BATCH]


def test_a_view_that_was_expected_but_not_asked_for_does_not_count_as_accessed(
    encoder: CountingEncoder,
) -> None:
    features = make(encoder)
    features.expect({"image", "image_aug"})
    features.image("image")
    assert features.accessed == {"image"}


def test_a_first_access_under_no_grad_is_refused_a_second_is_not(encoder: CountingEncoder, calls: Calls) -> None:
    features = make(encoder)
    with torch.no_grad():
        for access in (features.image, features.text):
            with pytest.raises(RuntimeError, match="first requested under no_grad"):
                access()
        with pytest.raises(RuntimeError, match="'image_aug' was first requested under no_grad"):
            features.embedding("image_aug")
    assert calls == Calls()
    trained = features.embedding("image")
    with torch.no_grad():
        assert features.embedding("image") is trained
    assert trained.requires_grad


def test_every_tensor_is_gathered_once_with_gradient(encoder: CountingEncoder, calls: Calls) -> None:
    features = make(encoder, pids=torch.tensor([4, 4, 9]))
    for _ in range(2):
        assert features.embedding("image").shape == (2 * BATCH, WIDTH)
        assert features.pooled("image").shape == (2 * BATCH, WIDTH)
        assert features.embedding("text").shape == (2 * BATCH, WIDTH)
        assert features.pids.tolist() == [4, 4, 9, 4, 4, 9]
    assert len(calls.gathers) == 4
    assert features.image().embedding.shape == (BATCH, WIDTH)
    assert features.accessed == {"image", "text", "pids"}
    features.embedding("text").sum().backward()
    assert encoder.language.weight.grad is not None


def test_slots_are_the_embeddings_before_they_are_normalised(encoder: CountingEncoder, calls: Calls) -> None:
    features = make(encoder)
    assert torch.equal(features.slots("image"), features.pooled("image")[:, None])
    assert features.accessed == {"image"}
    parts = make(PartialEncoder(calls))
    parts.expect({"image", "image_aug"})
    for view in ("image", "image_aug", "text"):
        slots = parts.slots(view)
        assert slots.shape == (2 * BATCH, 2, WIDTH)
        assert parts.slots(view) is slots
        torch.testing.assert_close(F.normalize(slots, dim=2).flatten(1), parts.embedding(view))
    assert parts.accessed == {"image", "image_aug", "text", "parts"}
    assert calls.images == [BATCH, 2 * BATCH]


def test_what_a_loss_registers_is_computed_once_for_each_view_that_is_asked_for(encoder: CountingEncoder) -> None:
    features = make(encoder)
    computed: list[str] = []

    def double(view: str) -> Tensor:
        computed.append(view)
        return 2 * features.pooled(view)

    features.register("double", double)
    assert computed == []
    for _ in range(2):
        assert torch.equal(features.shared("double", "image"), 2 * features.pooled("image"))
    assert torch.equal(features.shared("double", "text"), 2 * features.pooled("text"))
    assert computed == ["image", "text"]
    assert features.accessed == {"image", "text", "double"}
    with pytest.raises(LookupError, match="no loss registers 'half': a loss that reads it must list 'half' in needs"):
        features.shared("half", "image")


def test_what_a_loss_registers_cannot_replace_the_features_themselves(encoder: CountingEncoder) -> None:
    features, untouched = make(encoder), make(encoder)
    for name in ("pooled", "embedding", "slots"):
        features.register(name, lambda view: torch.zeros(1))
        assert torch.equal(features.shared(name, "image"), torch.zeros(1))
        assert torch.equal(getattr(features, name)("image"), getattr(untouched, name)("image"))


def test_encoding_runs_under_the_amp_mode_of_the_step(encoder: CountingEncoder) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        features = make(encoder)
    with features.fp32():
        assert not torch.is_autocast_enabled("cpu")
        assert features.image().tokens.dtype == torch.bfloat16
        with features.amp():
            assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cpu")


def test_without_amp_encoding_stays_in_fp32(encoder: CountingEncoder) -> None:
    features = make(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        assert features.image().tokens.dtype == torch.float32


def test_labels_are_this_process_rows(encoder: CountingEncoder, calls: Calls) -> None:
    words, pids = torch.arange(BATCH * 5).view(BATCH, 5), torch.tensor([4, 4, 9])
    features = make(encoder, pids=pids, mlm_labels=words)
    assert features.label("mlm_labels") is words
    assert features.label("pids") is pids
    assert calls.gathers == []
    assert features.accessed == {"mlm_labels", "pids"}


def test_a_batch_without_a_label_says_so(encoder: CountingEncoder) -> None:
    with pytest.raises(LookupError, match="must list 'pids' in needs"):
        _ = make(encoder).pids
    with pytest.raises(LookupError, match="carries no 'mlm_labels'"):
        make(encoder, pids=torch.arange(BATCH)).label("mlm_labels")


def test_labels_of_any_name_are_gathered_once(encoder: CountingEncoder, calls: Calls) -> None:
    features = make(encoder, image_labels=torch.tensor([0, -1, 2]))
    for _ in range(2):
        assert features.labels("image_labels").tolist() == [0, -1, 2, 0, -1, 2]
    assert calls.gathers == [BATCH]
    assert features.accessed == {"image_labels"}
