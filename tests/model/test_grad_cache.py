"""GradCache: the gradients of the plain step, under dropout, AMP, LoRA and checkpointing."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import load_backbone
from model.backbones.lora import add_lora
from model.features import Encoded, Encoder, Features, PartEncoded
from model.grad_cache import GradCache, refuse_unlike
from model.heads import GlobalHead, PartHead, TokenSelectionHead
from model.objectives import ModelSpec, Objective, build_objective
from model.tbps import TBPS
from utils.errors import UserError

CONFIG = Path(__file__).parents[2] / "config"
TOKEN_TERMS = {"mlm", "efa"}
PRESETS = sorted(path.stem for path in (CONFIG / "loss").glob("[!_]*.yaml"))
PARTS = {"global": 1, "coarse": 1, "fine": 2}  # of the head that "part_cmr" asks for
BATCH, MICRO, WIDTH, VOCABULARY = 7, 3, 8, 20
END_OF_TEXT = 3
VIEWS = ("image", "image_aug", "image_ss1", "image_ss2")

Gradients = dict[str, Tensor]


class NoisyEncoder(nn.Module):
    """One hidden layer with dropout per tower; counts how many rows it sees at a time.

    Args:
        blocks: embeddings of a sample, the global one included.
    """

    def __init__(self, blocks: int = 1) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Dropout(0.4), nn.Linear(WIDTH, (blocks - 1) * WIDTH)) if blocks > 1 else None
        self.vision = nn.Sequential(nn.Linear(3 * 4 * 4, 16), nn.GELU(), nn.Dropout(0.4), nn.Linear(16, WIDTH))
        self.language = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Dropout(0.4), nn.Linear(16, WIDTH))
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.bias = nn.Parameter(torch.tensor(-1.0))
        self.rows: list[int] = []

    def encode_image(self, pixels: Tensor) -> Encoded:
        return self._encode(self.vision(pixels.flatten(1) / 255)[:, None])

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        return self._encode(self.language(ids))

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        return self.log_scale.exp(), self.bias

    def _encode(self, tokens: Tensor) -> Encoded:
        self.rows.append(len(tokens))
        pooled = tokens.mean(dim=1).float()
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        if self.parts is None:
            return Encoded(pooled, F.normalize(pooled, dim=-1), tokens, mask)
        slots = torch.cat([pooled[:, None], self.parts(pooled).unflatten(1, (-1, WIDTH))], dim=1)
        return PartEncoded(pooled, F.normalize(slots, dim=-1).flatten(1), tokens, mask, slots)


class InMicroBatches:
    """The plain step in the same micro-batches: what autograd makes of them when everything is kept."""

    def __init__(self, encoder: Encoder, micro_batch: int) -> None:
        self.encoder = encoder
        self.micro_batch = micro_batch
        self.logit_scale_and_bias = encoder.logit_scale_and_bias

    def encode_image(self, pixels: Tensor) -> Encoded:
        return self._join([self.encoder.encode_image(rows) for rows in pixels.split(self.micro_batch)])

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        both = zip(ids.split(self.micro_batch), mask.split(self.micro_batch), strict=True)
        return self._join([self.encoder.encode_text(*rows) for rows in both])

    def _join(self, parts: list[Encoded]) -> Encoded:
        return type(parts[0])(*(torch.cat([getattr(part, field) for part in parts]) for field in vars(parts[0])))


def objective_of(
    preset: str, *, width: int = WIDTH, slots: Mapping[str, int] = {"global": 1}, without: set[str] = TOKEN_TERMS
) -> Objective:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        loss = compose("demo", overrides=[f"loss={preset}", "loss.softlabel_ratio=0.5"]).loss
    terms: Any = OmegaConf.to_container(loss.terms, resolve=True)
    terms = {name: term for name, term in terms.items() if name not in without}
    if "simclr" in terms:
        terms["simclr"]["hidden_dim"] = 16
    torch.manual_seed(1)
    spec = ModelSpec(sum(slots.values()) * width, width, num_classes=4, vocab_size=VOCABULARY, slots=slots)
    return build_objective(OmegaConf.create(terms), spec)


def gradients(
    objective: Objective,
    encoder: nn.Module,
    wrap: Callable[[Encoder], Encoder],
    *,
    side: int = 4,
    amp: torch.dtype | None = None,
    recompute: bool = True,
) -> Gradients:
    """Returns name -> gradient of one step from one random state, and the loss as "loss"."""
    draw = torch.Generator().manual_seed(2)
    images = {v: torch.randint(256, (BATCH, 3, side, side), generator=draw, dtype=torch.uint8) for v in VIEWS}
    ids = torch.randint(4, VOCABULARY, (BATCH, 6), generator=draw)
    ids[:, -1] = END_OF_TEXT
    model = nn.ModuleDict({"objective": objective, "encoder": encoder})
    model.zero_grad()
    torch.manual_seed(3)
    with nullcontext() if amp is None else torch.autocast("cpu", amp):
        features = Features(
            wrap(encoder),  # type: ignore[arg-type]
            images,
            dict.fromkeys(("text", "text_masked"), (ids, torch.ones_like(ids, dtype=torch.bool))),
            dict.fromkeys(("pids", "image_labels", "text_labels"), torch.tensor([0, 0, 1, 1, 2, 3, 3]))
            | {"pair_weights": torch.tensor([1.0, 0, 1, 1, 0, 1, 1])},
            epoch=0.5,
            recompute=recompute,
        )
        total = objective(features).total
    total.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {"loss": total.detach()}


def assert_equal(found: Gradients, expected: Gradients, *, rtol: float = 1e-5) -> None:
    """Equal up to rounding; gradients that are zero in exact arithmetic are measured by the largest of all."""
    assert found.keys() == expected.keys()
    largest = max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradients_are_those_of_the_plain_step_under_dropout(preset: str) -> None:
    torch.manual_seed(0)
    slots = PARTS if preset == "part_cmr" else {"global": 1}
    encoder, objective = NoisyEncoder(sum(slots.values())), objective_of(preset, slots=slots)
    cached = gradients(objective, encoder, lambda plain: GradCache(plain, MICRO))
    once = len(encoder.rows) // 2
    assert max(encoder.rows) == MICRO
    assert sorted(encoder.rows[:once]) == sorted(encoder.rows[once:])
    assert_equal(cached, gradients(objective, encoder, lambda plain: InMicroBatches(plain, MICRO)))
    assert cached["encoder.vision.0.weight"].abs().sum() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_that_compare_again_in_backward_are_the_same(preset: str) -> None:
    torch.manual_seed(0)
    slots = PARTS if preset == "part_cmr" else {"global": 1}
    encoder, objective = NoisyEncoder(sum(slots.values())).eval(), objective_of(preset, slots=slots)
    slow, fast = (
        gradients(objective, encoder, lambda plain: plain, recompute=recompute) for recompute in (True, False)
    )
    assert_equal(slow, fast)


def test_an_observer_sees_each_micro_batch_of_images_once_with_tokens_and_without_gradient() -> None:
    torch.manual_seed(0)
    encoder, seen = NoisyEncoder().eval(), list[Encoded]()
    pixels = torch.randint(256, (BATCH, 3, 4, 4), dtype=torch.uint8)
    cache = GradCache(encoder, MICRO, seen.append)
    ids = torch.randint(VOCABULARY, (BATCH, 6))
    texts = cache.encode_text(ids, torch.ones_like(ids, dtype=torch.bool))
    (cache.encode_image(pixels).embedding * texts.embedding).sum().backward()
    assert [len(part.tokens) for part in seen] == [3, 3, 1]
    assert not any(part.tokens.requires_grad for part in seen)
    torch.testing.assert_close(torch.cat([part.tokens for part in seen]), encoder.encode_image(pixels).tokens)


@pytest.mark.parametrize("preset", ["hybrid_circle", "irra"])
def test_without_randomness_the_size_of_the_micro_batch_has_no_influence(preset: str) -> None:
    torch.manual_seed(0)
    encoder, objective = NoisyEncoder().eval(), objective_of(preset)
    plain = gradients(objective, encoder, lambda encoder: encoder)
    for micro_batch in (1, 4, BATCH, 100):
        assert_equal(gradients(objective, encoder, lambda e, m=micro_batch: GradCache(e, m)), plain)  # type: ignore[misc]


def test_after_the_step_the_random_state_is_that_of_the_plain_step() -> None:
    torch.manual_seed(0)
    encoder, objective = NoisyEncoder(), objective_of("baseline")
    after = []
    for wrap in (GradCache, InMicroBatches):
        gradients(objective, encoder, lambda e, wrap=wrap: wrap(e, MICRO))  # type: ignore[misc]
        after.append(torch.get_rng_state())
    assert torch.equal(*after)


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize(("family", "use_dora"), [("siglip", False), ("clip", False), ("siglip", True)])
def test_real_towers_with_lora_amp_and_activation_checkpointing(
    family: str, use_dora: bool, checkpointing: bool, amp: torch.dtype | None, hub_folders: dict[str, Path]
) -> None:
    backbone = load_backbone(
        family,
        family,
        hub_folders[family],
        (32, 32),
        sigmoid=family == "siglip",
        max_length=6,
        gradient_checkpointing=checkpointing,
    )
    torch.manual_seed(0)
    target = r".*\.self_attn\.(q|k|v|out)_proj"
    add_lora(backbone, r=4, alpha=8, dropout=0.3, target=target, use_dora=use_dora)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    encoder = TBPS(backbone, GlobalHead(backbone.embed_dim)).train()
    objective = objective_of("tbps_clip", width=backbone.embed_dim)
    cached = gradients(objective, encoder, lambda e: GradCache(e, MICRO), side=32, amp=amp)
    plain = gradients(objective, encoder, lambda e: InMicroBatches(e, MICRO), side=32, amp=amp)
    assert_equal(cached, plain, rtol=1e-4 if amp is None else 0.05)
    adapters = [gradient for name, gradient in cached.items() if "lora_A" in name]
    assert len(adapters) == 16
    magnitudes = [gradient for name, gradient in cached.items() if "lora_magnitude_vector" in name]
    assert len(magnitudes) == (16 if use_dora else 0)
    assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in adapters + magnitudes)


def test_the_embeddings_of_a_part_head_are_cached_as_well(hub_folders: dict[str, Path]) -> None:
    backbone = load_backbone("clip", "clip", hub_folders["clip"], (32, 32), sigmoid=False, max_length=6)
    torch.manual_seed(0)
    head = PartHead(backbone.embed_dim, backbone.grid, coarse=2, fine=2)
    encoder = TBPS(backbone, head)
    objective = objective_of("part_cmr", width=backbone.embed_dim, slots=head.slots)
    cached = gradients(objective, encoder, lambda e: GradCache(e, MICRO), side=32)
    assert_equal(cached, gradients(objective, encoder, lambda e: e, side=32), rtol=1e-4)
    assert cached["encoder.head.decoder.tokens"].abs().sum() > 0


def test_under_amp_micro_batches_add_up_in_fp32() -> None:
    """1,024 equal micro-batches: a sum in bf16 would stall at 256 times the first share."""
    weight = nn.Parameter(torch.ones(1, 1))

    class Product(NoisyEncoder):
        def encode_image(self, pixels: Tensor) -> Encoded:
            pooled = (pixels.flatten(1)[:, :1].float() @ weight).float()
            return Encoded(pooled, pooled, pooled[:, None], pooled.bool())

    with torch.autocast("cpu", torch.bfloat16):
        encoded = GradCache(Product(), 1).encode_image(torch.ones(1024, 3, 2, 2, dtype=torch.uint8))
    encoded.embedding.sum().backward()
    assert weight.grad is not None
    assert weight.grad.item() == 1024


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_taken_or_a_term_of_it_is_refused_by_name(preset: str) -> None:
    objective = objective_of(preset, slots=PARTS, without=set())
    reading = [name for name in objective.terms if name in TOKEN_TERMS]
    if reading:
        with pytest.raises(UserError, match=rf"loss\.terms\.{reading[0]} reads tokens"):
            refuse_unlike(nn.Identity(), objective)
    else:
        refuse_unlike(nn.Identity(), objective)
    refuse_unlike(nn.Identity(), objective_of(preset, slots=PARTS))


@pytest.mark.parametrize(("preset", "term"), [("irra", "mlm"), ("fmfa", "mlm")])
def test_a_term_that_reads_tokens_is_refused_by_name(preset: str, term: str) -> None:
    with pytest.raises(UserError, match=rf"loss\.terms\.{term} reads tokens.*~loss\.terms\.{term}"):
        refuse_unlike(nn.Identity(), objective_of(preset, without=set()))
    with pytest.raises(UserError, match=r"loss\.terms\.efa reads tokens"):
        refuse_unlike(nn.Identity(), objective_of("fmfa", without={"mlm"}))
    refuse_unlike(nn.Identity(), objective_of(preset))


def test_a_head_that_normalises_over_the_batch_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"^head=token_selection normalises over the whole batch.*micro_batch=null$"):
        refuse_unlike(TokenSelectionHead(4, (8, 2), text_length=12), objective_of("sdm"))
