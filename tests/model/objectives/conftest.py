"""A tiny encoder, batches of drawn noise, and the loss group of the config composed for real."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F

from model.features import Encoded, Features, PartEncoded
from model.objectives import ModelSpec

CONFIG = Path(__file__).parents[3] / "config"
WIDTH, VOCABULARY, LENGTH, PATCH = 8, 32, 5, 4
IMAGE_VIEWS = ("image", "image_aug", "image_ss1", "image_ss2")
TEXT_VIEWS = ("text", "text_masked")
SLOTS = {"global": 1, "coarse": 2, "fine": 3}

MakeFeatures = Callable[..., Features]
ComposeLoss = Callable[..., DictConfig]


class TinyEncoder(nn.Module):
    """One linear layer over patches, one token table: enough for a gradient to arrive at."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Linear(3 * PATCH * PATCH, WIDTH)
        self.language = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def encode_image(self, pixels: Tensor) -> Encoded:
        patches = F.unfold(pixels / 255, PATCH, stride=PATCH).transpose(1, 2)  # (B, N, 3 * PATCH * PATCH)
        return self._encode(self.vision(patches), torch.ones(patches.shape[:2], dtype=torch.bool))

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        return self._encode(self.language(ids), mask)

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        return self.log_scale.exp(), self.bias

    def _encode(self, tokens: Tensor, mask: Tensor) -> Encoded:
        pooled = (tokens * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return Encoded(pooled, F.normalize(pooled, dim=-1), tokens, mask)


class PartEncoder(TinyEncoder):
    """Its embeddings beyond the global one are linear in that one."""

    def __init__(self) -> None:
        super().__init__()
        self.further = nn.Linear(WIDTH, (sum(SLOTS.values()) - 1) * WIDTH)

    def _encode(self, tokens: Tensor, mask: Tensor) -> Encoded:
        pooled = super()._encode(tokens, mask).pooled
        slots = torch.cat([pooled, self.further(pooled)], dim=1).unflatten(1, (-1, WIDTH))
        return PartEncoded(pooled, F.normalize(slots, dim=-1).flatten(1), tokens, mask, slots)


@pytest.fixture
def encoder() -> TinyEncoder:
    torch.manual_seed(0)
    return TinyEncoder()


@pytest.fixture
def part_encoder() -> PartEncoder:
    torch.manual_seed(0)
    return PartEncoder()


@pytest.fixture
def spec() -> ModelSpec:
    return ModelSpec(embed_dim=WIDTH, pooled_dim=WIDTH, num_classes=6, vocab_size=VOCABULARY)


@pytest.fixture
def part_spec() -> ModelSpec:
    """Of `part_encoder`."""
    return ModelSpec(sum(SLOTS.values()) * WIDTH, WIDTH, num_classes=6, vocab_size=VOCABULARY, slots=SLOTS)


@pytest.fixture
def make_features(encoder: TinyEncoder) -> MakeFeatures:
    """``make_features(pids (B,), epoch=0.0, encoder=encoder, **labels)`` -> B random samples with every view."""

    def make(pids: Tensor, epoch: float = 0.0, encoder: TinyEncoder = encoder, **own: Tensor) -> Features:
        draw = torch.Generator().manual_seed(1)
        size = (len(pids), 3, 2 * PATCH, PATCH)
        images = {v: torch.randint(256, size, generator=draw, dtype=torch.uint8) for v in IMAGE_VIEWS}
        ids = {v: torch.randint(VOCABULARY, (len(pids), LENGTH), generator=draw) for v in TEXT_VIEWS}
        mask = torch.arange(LENGTH) < torch.randint(1, LENGTH + 1, (len(pids), 1), generator=draw)
        words = torch.where(torch.arange(LENGTH) < 1, ids["text"], -100)  # to predict: the first of each
        labels = {"pids": pids, "image_labels": pids, "text_labels": pids, "pair_weights": torch.ones(len(pids))}
        labels |= {"mlm_labels": words, "mlm_positions": torch.arange(len(pids)) * LENGTH}
        return Features(encoder, images, {v: (ids[v], mask) for v in TEXT_VIEWS}, labels | own, epoch=epoch)

    return make


@pytest.fixture
def compose_loss(tmp_path: Path) -> ComposeLoss:
    """``compose_loss(*overrides)`` -> a config that holds the loss group alone, hybrid_circle by default."""
    (tmp_path / "primary.yaml").write_text(
        "defaults: [{loss: hybrid_circle}, _self_]\n"
        "backbone: {sigmoid: true}\n"
        f"hydra: {{searchpath: ['file://{CONFIG}']}}\n"
    )

    def compose_with(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("primary", list(overrides))

    return compose_with
