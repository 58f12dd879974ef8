"""The encoder: a backbone and a head. Training and ranking use the same one."""

from collections.abc import Mapping
from typing import Protocol

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from model.backbones import Backbone, BackboneOutput
from model.backbones.lora import add_lora
from model.features import Encoded


class Head(Protocol):
    """The methods that `TBPS` calls on a head. A head is also an `nn.Module`.

    slots: number of embeddings per sample at each level, in the order of the blocks of `Encoded.embedding`.
    embed_dim: width of `Encoded.embedding`. A head with blocks of several widths also has `widths`, and a head that
        reads `BackboneOutput.attention` has `reads_attention`.
    """

    embed_dim: int

    @property
    def slots(self) -> Mapping[str, int]: ...

    def image(self, output: BackboneOutput) -> Encoded: ...
    def text(self, output: BackboneOutput) -> Encoded: ...


class TBPS(nn.Module):
    """An encoder of images and captions into one space.

    Embeddings are normalised only here, in fp32, so training and ranking always agree.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        if getattr(head, "reads_attention", False):
            backbone.record_attention()

    @property
    def embed_dim(self) -> int:
        return self.head.embed_dim

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each block of `Encoded.embedding`; their sum is `embed_dim`."""
        return getattr(self.head, "widths", (self.embed_dim,))

    @property
    def provides(self) -> frozenset[str]:
        """The needs of losses that the encoder meets: "parts" if the head has several levels of embeddings."""
        return frozenset({"parts"} if len(self.head.slots) > 1 else ())

    def encode_image(self, pixels: Tensor) -> Encoded:
        """Returns the encoded view of uint8 pixels ``(B, 3, H, W)``."""
        return self.head.image(self.backbone.image(pixels))

    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded:
        """Returns the encoded view of token ids ``(B, L)``. The mask ``(B, L)`` is true on tokens, false on padding."""
        return self.head.text(self.backbone.text(ids, mask))

    def grow_like(self, weights: Mapping[str, Tensor]) -> None:
        """Grows the token table to the size in `weights`, to which training may have added a mask token."""
        table = next(name for name, p in self.named_parameters() if p is self.backbone.token_table)
        if table in weights:
            self.backbone.resize_token_embeddings(len(weights[table]))

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """Returns (logit_scale, logit_bias) of the backbone."""
        return self.backbone.logit_scale_and_bias()


def build_encoder(cfg: DictConfig, *, weights: bool = True) -> TBPS:
    """Returns the encoder that `cfg.backbone`, `cfg.lora` and `cfg.head` describe.

    Args:
        weights: as in `load_backbone`. If false, towers are not compiled either.
    """
    backbone = instantiate(cfg.backbone, **({} if weights else {"weights": False}))
    if cfg.lora.r > 0:
        add_lora(backbone, **{k: v for k, v in cfg.lora.items() if k != "name"})
    if cfg.compile and weights:
        backbone.compile_towers()
    return TBPS(backbone, instantiate(cfg.head)(backbone.embed_dim, backbone.grid))
