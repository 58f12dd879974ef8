"""Identity classification against a loop on float64 scalars, and its term."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import Features
from model.objectives import ID, ModelSpec, Objective, id_loss
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

CLASSES = 6

MakeFeatures = Callable[..., Features]


def scores(batch: int, seed: int) -> Tensor:
    return 3 * torch.randn(batch, CLASSES, generator=torch.Generator().manual_seed(seed))


def slow_id_loss(image: Tensor, text: Tensor, pids: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for logits in (image, text):
        for row, pid in zip(logits, pids.tolist(), strict=True):
            exponentials = [score.exp() for score in row]
            total = total - (exponentials[pid] / sum(exponentials)).log() / (2 * len(pids))
    return total


@pytest.mark.parametrize("batch", [2, 5, 24])
def test_equals_the_slow_loop_in_value_and_gradient(batch: int) -> None:
    pids = torch.arange(batch) % CLASSES
    fast_inputs = [scores(batch, seed).requires_grad_() for seed in (1, 2)]
    slow_inputs = [scores(batch, seed).double().requires_grad_() for seed in (1, 2)]
    fast = id_loss(fast_inputs[0], fast_inputs[1], pids)
    slow = slow_id_loss(slow_inputs[0], slow_inputs[1], pids)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-6)
    for got, expected in zip(
        torch.autograd.grad(fast, fast_inputs), torch.autograd.grad(slow, slow_inputs), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)


def test_slots_are_summed() -> None:
    image, text = (torch.stack([scores(5, seed), scores(5, seed + 7)], dim=1) for seed in (1, 2))
    pids = torch.tensor([0, 0, 1, 5, 3])
    apart = id_loss(image[:, 0], text[:, 0], pids) + id_loss(image[:, 1], text[:, 1], pids)
    torch.testing.assert_close(id_loss(image, text, pids), apart)


def test_half_precision_scores_are_compared_in_fp32() -> None:
    image, text, pids = (1000 * scores(5, 1)).half(), scores(5, 2).half(), torch.arange(5)
    loss = id_loss(image, text, pids)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, id_loss(image.float(), text.float(), pids))


def test_one_classifier_serves_both_modalities(spec: ModelSpec, make_features: MakeFeatures) -> None:
    term = make_term(ID, spec)
    assert [(name, tuple(p.shape)) for name, p in term.named_parameters()] == [
        ("classifier.weight", (spec.num_classes, spec.pooled_dim)),
        ("classifier.bias", (spec.num_classes,)),
    ]
    pids = torch.tensor([0, 0, 1, 5])
    features = make_features(pids)
    image, text = (F.linear(features.pooled(view), *term.classifier.parameters()) for view in ("image", "text"))
    term.register_in(features)
    loss, stats = term(features)
    torch.testing.assert_close(loss, id_loss(image, text, pids))
    for name, logits in (("image_accuracy", image), ("text_accuracy", text)):
        hits = sum(row.argmax().item() == pid for row, pid in zip(logits, pids.tolist(), strict=True))
        assert stats()[name].item() == pytest.approx(hits / 4)


def test_accuracy_counts_the_samples_whose_own_identity_scores_highest(
    spec: ModelSpec, make_features: MakeFeatures
) -> None:
    term, features = make_term(ID, spec), make_features(torch.tensor([0, 0, 0, 5]))
    term.classifier.bias.data[0] = 9  # the others are close to zero
    term.register_in(features)
    _, stats = term(features)
    assert {name: value.item() for name, value in stats().items()} == {"image_accuracy": 0.75, "text_accuracy": 0.75}


def test_starts_undecided_and_close_to_zero(make_features: MakeFeatures, spec: ModelSpec) -> None:
    torch.manual_seed(0)
    wide = make_term(ID, ModelSpec(embed_dim=64, pooled_dim=512, num_classes=1000, vocab_size=1))
    assert wide.classifier.weight.std().item() == pytest.approx(0.001, rel=0.01)
    assert torch.equal(wide.classifier.bias, torch.zeros(1000))
    loss = Objective({"id": make_term(ID, spec)})(make_features(torch.arange(6))).total
    assert loss.item() == pytest.approx(torch.tensor(float(spec.num_classes)).log().item(), abs=0.01)


def test_classifies_in_fp32_under_amp(spec: ModelSpec, make_features: MakeFeatures) -> None:
    term = make_term(ID, spec)
    seen: list[torch.dtype] = []
    term.classifier.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        features = make_features(torch.arange(3))
    Objective({"id": term})(features)
    assert seen == [torch.float32, torch.float32]


def test_every_slot_has_a_classifier_of_its_own(
    part_spec: ModelSpec, make_features: MakeFeatures, part_encoder: nn.Module
) -> None:
    term, pids = make_term(ID, part_spec), torch.tensor([0, 0, 1, 5])
    features = make_features(pids, encoder=part_encoder)
    loss = Objective({"id": term})(features).total
    weights, biases = term.classifier.weight.split(CLASSES), term.classifier.bias.split(CLASSES)
    assert len(weights) == sum(part_spec.slots.values())
    expected = torch.zeros(())
    for slot, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        image, text = (F.linear(features.slots(view)[:, slot], weight, bias) for view in ("image", "text"))
        expected = expected + id_loss(image, text, pids)
    torch.testing.assert_close(loss, expected)
    assert term.needs == {"image", "text", "pids", "parts"}


def test_two_terms_do_not_provide_the_same(spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=r"loss.terms.id and loss.terms.id_too both provide 'id_logits'"):
        Objective({"id": make_term(ID, spec), "id_too": make_term(ID, spec)})
