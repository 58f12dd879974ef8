"""Heads: from what a backbone gives to what is compared."""

from torch import nn
from torch.nn import functional as F

from model.backbones import BackboneOutput
from model.features import Encoded


class GlobalHead(nn.Module):
    """Compares the pooled features themselves: one unit-norm block, no parameters.

    Args:
        dim: width of the backbone's pooled features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed_dim = dim

    def image(self, output: BackboneOutput) -> Encoded:
        return self._encode(output)

    def text(self, output: BackboneOutput) -> Encoded:
        return self._encode(output)

    def _encode(self, output: BackboneOutput) -> Encoded:
        pooled = output.pooled.float()
        return Encoded(pooled, F.normalize(pooled, dim=-1), output.tokens, output.mask, output.prefix)
