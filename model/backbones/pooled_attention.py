"""The attention of a tower's pooled position to its tokens, in the last layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

PROJECTIONS: Final = (("q_proj", "k_proj"), ("query", "key"))  # names of modules in transformers


class PooledAttention:
    """A recorder of the attention of one position to all tokens, mean over heads.

    It keeps the queries and keys that the last layer computes, and computes one row of attention per head from them.
    So the layer keeps its fused attention, and no matrix of size (L, L) is made. The row has no gradient.

    Args:
        queries, keys: the projections of the last layer.
        heads: number of attention heads.
    """

    def __init__(self, queries: nn.Module, keys: nn.Module, heads: int) -> None:
        self._heads = heads
        self._kept: dict[str, Tensor] = {}
        self._records = False
        queries.register_forward_hook(partial(self._keep, "queries"))
        keys.register_forward_hook(partial(self._keep, "keys"))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keeps what the forward pass in the block computes. Other passes, such as recomputations, are not kept."""
        self._records = True
        try:
            yield
        finally:
            self._records = False

    @torch.no_grad()
    def take(self, position: int | Tensor = 0, visible: Tensor | None = None) -> Tensor:
        """Returns the attention ``(B, L)`` in the recorded pass, in fp32. Rows sum to 1.

        Args:
            position: the attending position, one for all samples or one each ``(B,)``.
            visible: bool ``(B, L)``, true on the tokens that this position may attend to. None: all tokens.
        """
        queries, keys = (self._kept.pop(name).unflatten(-1, (self._heads, -1)) for name in ("queries", "keys"))
        query = queries[torch.arange(queries.shape[0], device=queries.device), position]
        # Products that are added up, because autocast would compute a matrix product in 16 bits.
        scores = (query.float()[:, None] * keys.float()).sum(dim=-1) * query.shape[-1] ** -0.5  # (B, L, heads)
        if visible is not None:
            scores = scores.masked_fill(~visible[:, :, None], -torch.inf)
        return scores.softmax(dim=1).mean(dim=2)

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._records:
            self._kept[name] = output.detach()


class PoolingHeadAttention(PooledAttention):
    """A recorder of the attention of SigLIP's pooling head to the patches, mean over heads.

    Args:
        attention: the attention of the head. It returns its weights anyway, one row per image.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        self._kept = {}
        self._records = False
        attention.register_forward_hook(partial(self._keep, "weights"))

    def take(self, position: int | Tensor = 0, visible: Tensor | None = None) -> Tensor:
        """Returns the attention ``(B, L)`` in the recorded pass, in fp32. The head attends to all patches."""
        return self._kept.pop("weights").squeeze(1).float()

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._records:
            self._kept[name] = output[1].detach()


def last_layer(tower: Any) -> PooledAttention:
    """Returns a recorder of the last layer of a tower of transformers.

    Raises:
        LookupError: the tower has no attention.
    """
    for module in reversed(list(tower.modules())):
        for queries, keys in PROJECTIONS:
            if hasattr(module, queries) and hasattr(module, keys):
                return PooledAttention(
                    getattr(module, queries), getattr(module, keys), tower.config.num_attention_heads
                )
    raise LookupError(f"{type(tower).__name__} has no attention")
