"""The head for global matching: one embedding per sample."""

from torch import nn
from torch.nn import functional as F

from model.backbones import BackboneOutput
from model.features import Encoded, at_least_fp32


class GlobalHead(nn.Module):
    """A head without parameters: the embedding is the normalised pooled feature.

    Args:
        dim: width of the backbone's pooled features.
        grid: (rows, columns) of patches. Every head gets it; this head does not use it.
    """

    reads_attention = False

    def __init__(self, dim: int, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.embed_dim = dim
        self.slots = {"global": 1}
        self.widths = (dim,)

    def image(self, output: BackboneOutput) -> Encoded:
        return self._encode(output)

    def text(self, output: BackboneOutput) -> Encoded:
        return self._encode(output)

    def _encode(self, output: BackboneOutput) -> Encoded:
        pooled = at_least_fp32(output.pooled)
        return Encoded(pooled, F.normalize(pooled, dim=-1), output.tokens, output.mask)
