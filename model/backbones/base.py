"""The interface of every backbone: two towers whose features lie in one space."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model.backbones.pooled_attention import PooledAttention, last_layer
from model.backbones.position_embeddings import Positions
from utils.errors import UserError

Tower = Literal["image", "text"]


class BackboneOutput(NamedTuple):
    """pooled ``(B, D)``, tokens ``(B, L, D)`` in the space of pooled, mask ``(B, L)`` true on content.

    The patches of an image are its last tokens, row by row. A [CLS] token, if there is one, comes before them.
    attention: the attention of the pooled position to each token in the last layer, mean over heads, without gradient;
        -1 at tokens that are no patches or words: [CLS], start, end and padding. Shape: ``(B, L)``. None unless
        `Backbone.record_attention` was called.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor
    attention: Tensor | None = None


class Backbone(nn.Module):
    """A vision tower and a text tower with one interface.

    A subclass pools and projects as its family does. `model` is the transformers model, or a peft model around it.

    Args:
        model: has `vision_model`, `text_model` and `logit_scale`. Its vision tower is fitted to `grid` in place.
        mean, std: mean and deviation of the three channels, for pixels from 0 to 1.
        grid: (rows, columns) of patches.
        sigmoid: whether the model was pre-trained with the pairwise sigmoid loss.
        pos_interpolation: one of `model.backbones.position_embeddings.MODES`, to resize positions to `grid`.
        native: positions of patches and their grid, to use instead of the model's own. None: the model's own.
    """

    model_class: type[PreTrainedModel]
    token_embedding: str = "token_embedding"  # name of the module with the token table, in the text tower's embeddings
    max_logit_scale: float | None = None
    has_hub_format: bool = True  # whether transformers has a class for it, `model_class`
    fixed_length: bool = True  # whether captions need padding to the full length: other padding, other embedding

    def __init__(
        self,
        model: PreTrainedModel,
        mean: list[float],
        std: list[float],
        grid: tuple[int, int],
        *,
        sigmoid: bool,
        pos_interpolation: str,
        native: Positions | None = None,
    ) -> None:
        super().__init__()
        self.sigmoid = sigmoid
        self._grid = grid
        self._pos_interpolation = pos_interpolation
        self.model: Any = model  # with adapters a `PeftModel` around it
        self.has_adapters = False
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self._attention: dict[Tower, PooledAttention] = {}
        self.fit_to_grid(native)

    @property
    def hub_model(self) -> Any:
        """The transformers model, with its adapters if there are any."""
        return self.model.get_base_model() if self.has_adapters else self.model

    @property
    def embed_dim(self) -> int:
        raise NotImplementedError

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches at the configured image size; (0, 0) if the image tower has no patches."""
        return self._grid

    @property
    def vocab_size(self) -> int:
        return len(self.token_table)

    @property
    def token_table(self) -> nn.Parameter:
        """The embeddings of the vocabulary ``(V, D)``."""
        return getattr(self.text_embeddings, self.token_embedding).weight

    @property
    def text_embeddings(self) -> Any:
        """The module of the text tower that has the token table."""
        return self.hub_model.text_model.embeddings

    def check_token_id(self, largest: int) -> None:
        """Raises `UserError` if the token table has no row `largest`, which would cause NaN or a device assert."""
        if largest >= self.vocab_size:
            raise UserError(
                f"token id {largest} is outside the backbone's table of {self.vocab_size} tokens: the tokenizer and "
                "the weights in the checkpoint folder do not match; run prepare_checkpoints.py again."
            )

    @torch.no_grad()
    def resize_token_embeddings(self, rows: int) -> None:
        """Grows the token table to `rows` rows if it has fewer. Each new row is the mean of the old rows."""
        old, missing = self.token_table, rows - self.vocab_size
        if missing > 0:
            # transformers' function of this name fails for a CLIPModel, which does not know its token table.
            table = torch.cat([old, old.mean(dim=0).expand(missing, -1)])
            grown = nn.Embedding.from_pretrained(table, freeze=not old.requires_grad)
            setattr(self.text_embeddings, self.token_embedding, grown)
            self.hub_model.config.text_config.vocab_size = rows

    def fit_to_grid(self, native: Positions | None) -> None:
        """Fits the vision tower to `grid`, in place. Positions come from `native`, or from the tower if it is None."""
        raise NotImplementedError

    def hub_weights(self) -> dict[str, Tensor]:
        """Returns the weights that `model_class` can load: positions are resized to the square grid of its config."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of both towers. A frozen tower stays in evaluation mode: its batch statistics do not change."""
        super().train(mode)
        for tower in (self.hub_model.vision_model, self.hub_model.text_model):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def positions(self) -> Tensor | None:
        """Returns the positions ``(prefix + rows * columns, D)`` of the image tower at `grid`; None if it has none."""
        raise NotImplementedError

    def compile_towers(self) -> None:
        """Lets torch.compile compile both towers at their first call. The names of weights do not change.

        Code that was compiled before in this process is dropped: it does not see hooks, which record attention.
        Captions keep one length, because each other length would be compiled again.
        """
        torch.compiler.reset()
        self.fixed_length = True
        for tower in (self.hub_model.vision_model, self.hub_model.text_model):
            tower.compile()

    def record_attention(self) -> None:
        """Lets `image` and `text` return attention. It is called once, after adapters are added.

        Raises:
            UserError: a tower has no attention to its tokens.
        """
        self._attention = self.attention_recorders()

    def attention_recorders(self) -> dict[Tower, PooledAttention]:
        """Returns a new recorder of the last layer of each tower."""
        try:
            return {"image": last_layer(self.hub_model.vision_model), "text": last_layer(self.hub_model.text_model)}
        except LookupError as error:
            raise UserError(
                f"head=token_selection selects tokens by attention, but {error}; choose another backbone or head"
            ) from error

    def recording(self, tower: Tower) -> AbstractContextManager[None]:
        """Returns a context in which a forward pass of the tower keeps its attention, if it is asked for."""
        return self._attention[tower].recording() if self._attention else nullcontext()

    def image_attention(self, patches: Tensor) -> Tensor | None:
        """Returns `BackboneOutput.attention` of the recorded images. `patches` ``(B, L)`` is true on patches."""
        if not self._attention:
            return None
        return self._attention["image"].take().masked_fill(~patches, -1.0)

    def text_attention(
        self, mask: Tensor, position: int | Tensor, visible: Tensor | None, *, starts: bool
    ) -> Tensor | None:
        """Returns `BackboneOutput.attention` of the recorded texts, whose last token is no word.

        Args:
            mask: bool ``(B, L)``, true on tokens, false on padding.
            position, visible: as in `PooledAttention.take`.
            starts: whether the first token is no word either.
        """
        if not self._attention:
            return None
        place = mask.cumsum(dim=1)
        words = mask & (place < place[:, -1:]) & (place > int(starts))
        return self._attention["text"].take(position, visible).masked_fill(~words, -1.0)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Returns uint8 pixels ``(B, 3, H, W)`` as floats, normalised as in pre-training."""
        return (pixels.float() / 255 - self.mean) / self.std  # type: ignore[operator]

    def image(self, pixels: Tensor) -> BackboneOutput:
        """Returns the features of uint8 pixels ``(B, 3, H, W)``."""
        raise NotImplementedError

    def text(self, ids: Tensor, mask: Tensor) -> BackboneOutput:
        """Returns the features of token ids ``(B, L)``. `mask` ``(B, L)`` is true on tokens, false on padding."""
        raise NotImplementedError

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """Returns (logit_scale, logit_bias): scalars with gradient, the scale after exp."""
        scale = self.hub_model.logit_scale.squeeze().exp()
        if self.max_logit_scale is not None:
            scale = scale.clamp(max=self.max_logit_scale)
        bias = getattr(self.hub_model, "logit_bias", None)
        return scale, torch.zeros_like(scale) if bias is None else bias.squeeze()


def last_of(mask: Tensor) -> Tensor:
    """Returns the position ``(B,)`` of the last token in each row of `mask` ``(B, L)``."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(dim=1)
