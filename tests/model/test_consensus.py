"""Confident consensus division: against a direct transcription, on noise that is known, and its statistics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.nn import functional as F

from model.consensus import Consensus, Division
from model.labeling import EncodedPairs
from model.objectives import TAL, EmbeddedPairs, ModelSpec, Objective, tal
from tests.model.objectives.make_term import make_term
from utils.errors import UserError

PAIRS, WIDTHS, BATCH = 300, (6, 4), 50
ONE = torch.ones(())


def unit(count: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def encoded(noise: float) -> EncodedPairs:
    """150 images with two texts each, near their image in both blocks; the texts of a share of the pairs are moved."""
    images = [unit(PAIRS // 2, width, seed) for seed, width in enumerate(WIDTHS)]
    text_images = torch.arange(PAIRS) // 2
    source = torch.arange(PAIRS)
    moved = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(9))[: int(noise * PAIRS)]
    source[moved] = moved.roll(1)
    texts = [
        F.normalize(image[text_images[source]] + 0.1 * unit(PAIRS, width, 20 + width), dim=1)
        for image, width in zip(images, WIDTHS, strict=True)
    ]
    pids = torch.arange(PAIRS // 2)
    true = source == torch.arange(PAIRS)
    both = torch.cat(images, dim=1), torch.cat(texts, dim=1)
    return EncodedPairs(*both, text_images, pids, pids[text_images], ONE, ONE, true if noise else None)


@pytest.fixture
def objective() -> Objective:
    spec = ModelSpec(embed_dim=sum(WIDTHS), pooled_dim=6, num_classes=PAIRS // 2, vocab_size=9, widths=WIDTHS)
    return Objective({"tal": make_term(TAL, spec, weighted=True)})


def made(fit: str = "auto", noise_rate: float = 0.0) -> Consensus:
    return Consensus(name="consensus", every_n_epochs=1, batch_size=BATCH, fit=fit, noise_rate=noise_rate)


def transcribed(pairs: EncodedPairs, seed: int, settings: dict[str, float]) -> tuple[list[list[bool]], np.ndarray]:
    """The votes ``(2, P)`` and the scaled losses ``(2, P)``, batch by batch and pair by pair."""
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(seed))
    losses = np.zeros((2, PAIRS))
    for start in range(0, PAIRS, BATCH):
        rows = order[start : start + BATCH].tolist()
        for block, columns in enumerate((slice(0, 6), slice(6, 10))):
            image = pairs.images[pairs.text_images[rows]][:, columns]
            for place, row in enumerate(rows):
                weights = torch.zeros(len(rows))
                weights[place] = 1
                loss = tal(image, pairs.texts[rows][:, columns], pairs.text_pids[rows], weights=weights)
                losses[block, row] = loss.item()
    votes = []
    for block in range(2):
        losses[block] = (losses[block] - losses[block].min()) / (losses[block].max() - losses[block].min())
        column = losses[block].reshape(-1, 1)
        mixture = GaussianMixture(2, random_state=seed, **settings).fit(column)
        probabilities = mixture.predict_proba(column)[:, mixture.means_.argmin()]
        limit = 0.5 if probabilities.min() <= 0.5 else np.sort(probabilities)[PAIRS // 100]
        votes.append([bool(p > limit) for p in probabilities])
    return votes, losses


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
def test_it_is_the_transcription_and_finds_noise(objective: Objective, noise: float) -> None:
    pairs, labeling = encoded(noise), made(noise_rate=noise)
    settings = {"max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}
    if noise > 0.4:
        settings = {"max_iter": 100, "tol": 1e-4, "reg_covar": 1e-6}
    found = labeling.find(pairs, objective, seed=3)
    votes, losses = transcribed(pairs, 3, settings)
    torch.testing.assert_close(found.losses, torch.from_numpy(losses.mean(axis=0)).float(), rtol=1e-3, atol=1e-4)
    for pair, (first, second) in enumerate(zip(*votes, strict=True)):
        assert found.disputed[pair].item() == (first != second)
        if first == second:
            assert found.weights[pair].item() == float(first)
    assert set(found.weights.tolist()) <= {0.0, 1.0}
    figures = labeling.statistics(found, pairs)
    assert figures["kept"] == found.weights.mean().item()
    if noise:
        assert figures["auc"] >= 0.99
        assert figures["kept_clean"] >= 0.95
        assert figures["kept"] == pytest.approx(1 - noise, abs=0.1)
    else:
        assert "auc" not in figures


def test_a_coin_falls_for_about_half_of_the_disputed_pairs_and_depends_on_the_seed(objective: Objective) -> None:
    pairs, labeling = encoded(0.0), made()
    half = torch.arange(PAIRS) % 2 == 0

    def losses(batch: EmbeddedPairs) -> Tensor:
        return torch.stack([torch.zeros(len(batch.pids)), batch.text[:, 0]], dim=1)

    pairs = pairs._replace(texts=torch.where(half[:, None], 0.0, 1.0).expand(PAIRS, sum(WIDTHS)))
    objective.pair_losses = losses  # type: ignore[method-assign]
    first, again, other = (labeling.find(pairs, objective, seed) for seed in (0, 0, 1))
    assert first.disputed.equal(~half), "the first column is constant: every pair is clean for it"
    assert (first.weights[half] == 1).all()
    assert 0.35 < first.weights[~half].mean().item() < 0.65
    assert first.weights.equal(again.weights)
    assert not first.weights.equal(other.weights)


def test_weights_are_kept_read_and_saved(objective: Objective) -> None:
    labeling = made()
    assert labeling.due(3), "there are no weights yet"
    found = Division(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.1, 0.9, 0.2]), torch.zeros(3).bool())
    labeling.take(found, encoded(0.0), objective, seed=0)
    assert labeling.of(torch.tensor([1, 2]))["pair_weights"].tolist() == [0, 1]
    assert labeling.stages.tolist() == [1, 1, 1]
    assert labeling.describe() == "labels  2 of 3 pairs are taken to match (66.7 %)"
    again = made()
    again.load_state_dict(labeling.state_dict())
    assert again.pair_weights.equal(labeling.pair_weights)
    assert again.losses.equal(labeling.losses)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "exact"}, r"^pseudo_label\.fit=exact is unknown; expected auto or coarse or fine"),
        ({"batch_size": 0}, r"^pseudo_label\.batch_size"),
        ({"every_n_epochs": 0}, r"^pseudo_label\.every_n_epochs"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, int | str], message: str) -> None:
    settings: dict[str, object] = {"every_n_epochs": 1, "batch_size": 4, "fit": "auto", "noise_rate": 0.0, **options}
    build: Callable[..., Consensus] = Consensus
    with pytest.raises(UserError, match=message):
        build(name="consensus", **settings)
