"""PCM and ICPM against per-sample loops on float64 scalars, and their terms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.features import Encoder, Features
from model.objectives import ModelSpec, sdm
from model.objectives.base import LossTerm
from model.objectives.prototypes import ICPM, MATCHINGS, PCM, icpm, pcm
from model.prototypes import Modality
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

DIM = 8
SCALE, EPS = 20.0, 1e-8
IMAGE_LABELS = torch.tensor([0, 1, 1, 0, 2, -1])
TEXT_LABELS = torch.tensor([3, 3, 0, -1, 1, 2])
OUTLIERS = torch.full((6,), -1)
CLUSTERED = (IMAGE_LABELS >= 0) & (TEXT_LABELS >= 0)

MakeTerm = Callable[..., LossTerm]
MakeFeatures = Callable[[Tensor, Tensor], Features]


def units(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)), dim=1).to(dtype)


def slow_pcm(features: Tensor, prototypes: Tensor, labels: Tensor, temperature: Tensor) -> Tensor:
    total, count = torch.zeros((), dtype=torch.float64), 0
    for feature, label in zip(features, labels.tolist(), strict=True):
        if label >= 0:
            exponentials = [((feature * c).sum() / temperature).exp() for c in prototypes]
            total, count = total - (exponentials[label] / sum(exponentials)).log(), count + 1
    return total / count


def slow_icpm(image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor) -> Tensor:
    total = 0 * (image.sum() + text.sum())
    clustered = [i for i in range(len(image)) if image_labels[i] >= 0 and text_labels[i] >= 0]
    for queries, targets, labels in ((image, text, text_labels), (text, image, image_labels)):
        for i in clustered:
            exponentials = [(SCALE * (queries[i] * target).sum()).exp() for target in targets]
            positives = [float(i == j or (labels[i] == labels[j] and labels[i] >= 0)) for j in range(len(labels))]
            for exponential, positive in zip(exponentials, positives, strict=True):
                p = exponential / sum(exponentials)
                total = total + p * (p.log() - math.log(positive / sum(positives) + EPS)) / len(clustered)
    return total


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("labels", [IMAGE_LABELS, TEXT_LABELS, torch.zeros(6, dtype=torch.int64)])
def test_pcm_equals_the_slow_loop_in_value_and_gradient(labels: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    prototypes, temperature = units(4, 2), torch.tensor(0.1)
    fast_inputs = [units(6, 1, dtype).requires_grad_(), temperature.to(dtype).requires_grad_()]
    slow_inputs = [units(6, 1, torch.float64).requires_grad_(), temperature.double().requires_grad_()]
    fast = pcm(fast_inputs[0], prototypes.to(dtype), labels, fast_inputs[1])
    expected = slow_pcm(slow_inputs[0], prototypes.double(), labels, slow_inputs[1])
    assert fast.dtype == dtype
    torch.testing.assert_close(fast.double(), expected, rtol=tolerance, atol=tolerance)
    assert_same_gradients(fast, fast_inputs, expected, slow_inputs, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize(
    ("image_labels", "text_labels"),
    [(IMAGE_LABELS, TEXT_LABELS), (OUTLIERS, TEXT_LABELS), (IMAGE_LABELS, OUTLIERS), (torch.zeros(6), torch.zeros(6))],
)
def test_icpm_equals_the_slow_loop_in_value_and_gradient(
    image_labels: Tensor, text_labels: Tensor, dtype: torch.dtype, tolerance: float
) -> None:
    fast_inputs = [units(6, seed, dtype).requires_grad_() for seed in (1, 2)]
    slow_inputs = [units(6, seed, torch.float64).requires_grad_() for seed in (1, 2)]
    fast = icpm(fast_inputs[0], fast_inputs[1], image_labels, text_labels, SCALE, EPS)
    expected = slow_icpm(slow_inputs[0], slow_inputs[1], image_labels, text_labels)
    assert fast.dtype == dtype
    torch.testing.assert_close(fast.double(), expected, rtol=tolerance, atol=tolerance)
    assert_same_gradients(fast, fast_inputs, expected, slow_inputs, tolerance)


def assert_same_gradients(
    fast: Tensor, fast_inputs: list[Tensor], expected: Tensor, slow_inputs: list[Tensor], tolerance: float
) -> None:
    gradients = torch.autograd.grad(fast, fast_inputs), torch.autograd.grad(expected, slow_inputs)
    for got, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("clusters", [0, 4])
def test_pcm_without_clustered_samples_is_a_connected_zero(clusters: int) -> None:
    features, temperature = units(6, 1).requires_grad_(), torch.tensor(0.1, requires_grad=True)
    loss = pcm(features, units(clusters, 2), OUTLIERS, temperature)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, (features, temperature)):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_pcm_does_not_overflow() -> None:
    features = units(6, 1).requires_grad_()
    loss = pcm(features, -features.detach(), torch.arange(6), 1e-6)
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_icpm_with_the_same_labels_on_both_sides_is_sdm() -> None:
    image, text, labels = units(6, 1), units(6, 2), torch.tensor([0, 1, 1, 0, 2, 3])
    assert torch.equal(icpm(image, text, labels, labels, SCALE), sdm(image, text, labels, SCALE))


def test_icpm_without_clustered_pairs_is_a_connected_zero() -> None:
    image, text = units(6, 1).requires_grad_(), units(6, 2)
    loss = icpm(image, text, IMAGE_LABELS, OUTLIERS, SCALE)
    assert loss == 0
    assert torch.equal(*torch.autograd.grad(loss, image), torch.zeros_like(image))


def test_icpm_takes_the_labels_of_the_target_modality() -> None:
    """Aligned texts that share a cluster are positives of each other's images, whatever those images' labels."""
    image = F.one_hot(torch.tensor([0, 0, 1])).float()
    shared, apart = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    both = icpm(image, image, shared, shared)
    assert both < icpm(image, image, apart, shared) < icpm(image, image, apart, apart)
    torch.testing.assert_close(icpm(image, image, apart, shared), icpm(image, image, shared, apart))


@pytest.fixture
def make_labeled(encoder: Encoder) -> MakeFeatures:
    """``make_labeled(image_labels, text_labels)`` -> features of six random pairs with pseudo labels."""

    def make(image_labels: Tensor, text_labels: Tensor) -> Features:
        draw = torch.Generator().manual_seed(1)
        images = {"image": torch.randint(256, (6, 3, 8, 4), generator=draw, dtype=torch.uint8)}
        texts = {"text": (torch.randint(32, (6, 5), generator=draw), torch.ones(6, 5, dtype=torch.bool))}
        return Features(encoder, images, texts, {"image_labels": image_labels, "text_labels": text_labels})

    return make


def filled(spec: ModelSpec, **options: object) -> PCM:
    term = make_term(PCM, spec, **options)  # type: ignore[arg-type]
    images, texts = Modality(units(9, 3), torch.arange(9) % 3), Modality(units(9, 4), torch.arange(9) % 4)
    term.reset_prototypes(images, texts, seed=0)
    return term


@pytest.mark.parametrize("matching", MATCHINGS)
def test_pcm_term_sums_both_directions(matching: str, spec: ModelSpec, make_labeled: MakeFeatures) -> None:
    term, features = filled(spec, matching=matching, temperature=0.1), make_labeled(IMAGE_LABELS, TEXT_LABELS)
    loss, stats = term(features)
    image, text = features.embedding("image"), features.embedding("text")
    to_images, to_texts = (image, text) if matching == "single_modal" else (text, image)
    expected = pcm(to_images, term.image_memory.prototypes, IMAGE_LABELS.where(CLUSTERED, -1), 0.1)
    expected = expected + pcm(to_texts, term.text_memory.prototypes, TEXT_LABELS.where(CLUSTERED, -1), 0.1)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(stats()["image_temperature"], torch.tensor(0.1))


@pytest.mark.parametrize(
    "labels", [(IMAGE_LABELS, TEXT_LABELS), (OUTLIERS, OUTLIERS)], ids=["clusters", "outliers-only"]
)
@pytest.mark.parametrize("make", [filled, lambda spec: make_term(ICPM, spec)], ids=["pcm", "icpm"])
def test_terms_reach_both_towers_and_their_own_parameters(
    make: MakeTerm,
    labels: tuple[Tensor, Tensor],
    spec: ModelSpec,
    make_labeled: MakeFeatures,
    encoder: torch.nn.Module,
) -> None:
    term, features = make(spec), make_labeled(*labels)
    loss, stats = term(features)
    loss.backward()
    assert loss.isfinite()
    assert features.accessed == term.needs
    for parameter in (*term.parameters(), encoder.vision.weight, encoder.language[1].weight):  # type: ignore[union-attr, index]
        assert isinstance(parameter, Tensor)
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert all(stat.shape == () and stat.isfinite() and not stat.requires_grad for stat in stats().values())


def test_after_a_step_the_memories_follow_their_own_modality(spec: ModelSpec, make_labeled: MakeFeatures) -> None:
    term, features = filled(spec), make_labeled(IMAGE_LABELS, TEXT_LABELS)
    expected = filled(spec)
    term(features)[0].backward()
    term.after_step(features)
    expected.image_memory.update(features.embedding("image"), IMAGE_LABELS.where(CLUSTERED, -1))
    expected.text_memory.update(features.embedding("text"), TEXT_LABELS.where(CLUSTERED, -1))
    assert torch.equal(term.image_memory.prototypes, expected.image_memory.prototypes)
    assert torch.equal(term.text_memory.prototypes, expected.text_memory.prototypes)
    assert not torch.equal(term.image_memory.prototypes, filled(spec).image_memory.prototypes)


def test_the_prototypes_are_saved_and_come_back(spec: ModelSpec) -> None:
    saved, loaded = filled(spec), make_term(PCM, spec)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.image_memory.prototypes.shape == (3, DIM)
    assert torch.equal(loaded.text_memory.prototypes, saved.text_memory.prototypes)


def test_a_temperature_is_learned_but_never_below_its_bound(spec: ModelSpec, make_labeled: MakeFeatures) -> None:
    term = filled(spec, temperature=0.01)
    term.image_log_temperature.data -= 1
    _, stats = term(make_labeled(IMAGE_LABELS, TEXT_LABELS))
    torch.testing.assert_close(stats()["image_temperature"], torch.tensor(0.01))


def test_icpm_term_is_icpm(spec: ModelSpec, make_labeled: MakeFeatures) -> None:
    features = make_labeled(IMAGE_LABELS, TEXT_LABELS)
    loss, stats = make_term(ICPM, spec, logit_scale=SCALE)(features)
    image, text = features.embedding("image"), features.embedding("text")
    torch.testing.assert_close(loss, icpm(image, text, IMAGE_LABELS, TEXT_LABELS, SCALE))
    torch.testing.assert_close(stats()["image_positives"], torch.tensor(10 / 6))
    torch.testing.assert_close(stats()["text_positives"], torch.tensor(8 / 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "cross"}, "matching=cross is unknown; expected cross_modal or single_modal"),
        ({"temperature": 0.0}, "temperature: 0.0 given"),
        ({"momentum": 2.0}, "momentum: 2.0 given"),
    ],
)
def test_misspelt_options_stop_before_training(options: dict[str, object], message: str, spec: ModelSpec) -> None:
    with pytest.raises(UserError, match=message):
        filled(spec, **options)
