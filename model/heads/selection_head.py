"""The token selection head of RDE (Qin et al., CVPR 2024): a global embedding and one of the most attended tokens."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from model.backbones import BackboneOutput
from model.features import Encoded, at_least_fp32
from utils.errors import UserError
from utils.training.gather import gather_rows


@dataclass(frozen=True)
class SelectionEncoded(Encoded):
    """An encoded view with a global embedding and one of selected tokens.

    raw: ``(B, D + W)``, both embeddings before normalisation.
    """

    raw: Tensor

    @property
    def unnormalized(self) -> Tensor:
        return self.raw


class MaskedBatchNorm(nn.Module):
    """Batch normalisation over the tokens that a mask selects, of all processes; otherwise as `nn.BatchNorm1d`.

    The statistics of training are those of the whole batch on any number of processes, also on CPUs.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns normalised tokens ``(B, K, C)``. `mask` ``(B, K)`` is true on the tokens that count."""
        tokens = at_least_fp32(tokens)
        mean, var = self.running_mean, self.running_var
        if self.training:
            chosen = mask[:, :, None].to(tokens.dtype)
            count = _over_processes(chosen.sum(dim=(0, 1)))
            mean = _over_processes((tokens * chosen).sum(dim=(0, 1))) / count
            var = _over_processes(((tokens - mean).square() * chosen).sum(dim=(0, 1))) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                unbiased = var * count / (count - 1).clamp_min(1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return (tokens - mean) * (var + self.eps).rsqrt() * self.weight + self.bias


class TokenMLP(nn.Module):
    """Two linear layers, with batch normalisation of the hidden layer of `width` / 2."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, width // 2)
        self.norm = MaskedBatchNorm(width // 2)
        self.output = nn.Linear(width // 2, width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns ``(B, K, W)`` of tokens ``(B, K, D)``. `mask` ``(B, K)`` is true on the tokens that count."""
        return self.output(self.norm(self.hidden(tokens), mask).relu())


class SelectedTokens(nn.Module):
    """The embedding of a modality's selected tokens: ``Linear(f) + MLP(f)`` of each unit-norm token, max-pooled.

    Args:
        dim: width of the tokens.
        width: width of the embedding.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, width)
        self.mlp = TokenMLP(dim, width)

    def forward(self, tokens: Tensor, attention: Tensor, count: int) -> Tensor:
        """Returns embeddings ``(B, W)``, not normalised, of the `count` tokens with the highest attention.

        A caption with fewer words has fewer tokens. The embedding of a caption without words is zero.

        Args:
            tokens: ``(B, L, D)``.
            attention: as in `BackboneOutput`. Shape: ``(B, L)``.
        """
        values, places = attention.topk(count)
        mask = values >= 0
        chosen = tokens.gather(1, places[:, :, None].expand(-1, -1, tokens.shape[2]))
        chosen = F.normalize(at_least_fp32(chosen), dim=-1)
        mapped = at_least_fp32(self.linear(chosen) + self.mlp(chosen, mask))
        highest = mapped.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)
        return highest.masked_fill(~mask.any(dim=1, keepdim=True), 0.0)


class TokenSelectionHead(nn.Module):
    """A head whose embedding is [global unit | selected unit]. Its score is the sum of two cosines.

    Source: RDE, section 3.2, and the authors' code. The global embedding is the backbone's pooled feature. The second
    one is computed from the tokens to which the pooled position attends most in the last layer: int(ratio * N) of N
    patches, and int(ratio * (L - 2)) of L positions of a caption, or fewer if it has fewer words.

    Decision: batch normalisation counts selected words only. The released code also counts padding, in an order that
    its sorting leaves open.

    Args:
        dim: width of the backbone's tokens and pooled features.
        grid: (rows, columns) of patches.
        text_length: L, the positions of a caption that is padded to the full length.
        ratio: share of the tokens that are selected, above 0 and at most 1.
        width: width of the second embedding.

    Raises:
        UserError: `ratio` selects no patch, or `width` is not positive and even.
    """

    reads_attention = True

    def __init__(
        self, dim: int, grid: tuple[int, int], *, text_length: int, ratio: float = 0.3, width: int = 1024
    ) -> None:
        super().__init__()
        patches = grid[0] * grid[1]
        if not 0 < ratio <= 1 or int(ratio * patches) < 1:
            raise UserError(
                f"head.ratio: {ratio} given, expected a share up to 1 that selects one of {patches} patches"
            )
        if width < 2 or width % 2:
            raise UserError(f"head.width: {width} given, expected an even number, such as 1024")
        self.slots = {"global": 1}
        self.widths = (dim, width)
        self.embed_dim = dim + width
        self._patch_count = int(ratio * patches)
        self._word_count = max(1, int(ratio * (text_length - 2)))
        self.image_selection = SelectedTokens(dim, width)
        self.text_selection = SelectedTokens(dim, width)

    def image(self, output: BackboneOutput) -> SelectionEncoded:
        return self._encoded(output, self.image_selection, self._patch_count)

    def text(self, output: BackboneOutput) -> SelectionEncoded:
        return self._encoded(output, self.text_selection, min(self._word_count, output.tokens.shape[1]))

    def _encoded(self, output: BackboneOutput, selection: SelectedTokens, count: int) -> SelectionEncoded:
        if output.attention is None:
            raise RuntimeError("call record_attention() of the backbone before this head encodes")
        pooled = at_least_fp32(output.pooled)
        raw = torch.cat([pooled, selection(output.tokens, output.attention, count)], dim=1)
        embedding = torch.cat([F.normalize(block, dim=-1) for block in raw.split(self.widths, dim=1)], dim=1)
        return SelectionEncoded(pooled, embedding, output.tokens, output.mask, raw)


def _over_processes(summed: Tensor) -> Tensor:
    """Returns the sum of `summed` ``(C,)`` over all processes, with gradient."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return summed
    return gather_rows(summed[None]).sum(dim=0)
