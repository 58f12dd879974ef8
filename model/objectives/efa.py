"""Explicit fine-grained alignment of words and patches (EFA, from FMFA, 2025)."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.features import Encoded, Features, no_gather
from model.objectives.base import LossTerm, ModelSpec, Stats
from model.objectives.pairs import FORMS, at_least_fp32, masked_mean
from utils.errors import UserError, check_choice

RELEASED_MARGINS: Final = (0.1, 0.9)  # of texts, of images


def efa(
    text_tokens: Tensor,
    image_tokens: Tensor,
    text_mask: Tensor,
    margin_text: float,
    margin_image: float,
    lambda_: float = 1.0,
    tau: float = 1.0,
    sigma: float | None = None,
    *,
    chunk_size: int | None = 8,
    gather: Callable[[Tensor], Tensor] = no_gather,
) -> Tensor:
    """Returns the EFA loss, a scalar in fp32 or wider.

    Source: FMFA, eqs. (5)-(12). A pair has one joint embedding per word: a mixture of its patches (`patch_weights`).
    H_ij (`_hard_similarities`) compares the tokens of sample i with the tokens of sample j. There are four such
    matrices: text to joint and joint to text (`margin_text`), image to joint and joint to image (`margin_image`).
    Each of the four adds (1/B) sum_i log sum_{j != i} exp((H_ij - H_ii + margin) / tau).
    Decisions: every other pair of the batch is a negative, even one of the same identity. Padding is ignored. A
    batch of one pair has no negatives: the loss is zero, connected to the graph.

    Args:
        text_tokens: ``(B, L, D)``.
        image_tokens: patches ``(B, N, D)``, without [CLS].
        text_mask: bool ``(B, L)``, true on words; at least one in each caption.
        margin_text, margin_image: by how much the pair itself has to score higher than its negatives.
        lambda_: sharpness of the pooling over tokens.
        tau: temperature of the loss.
        sigma: see `patch_weights`.
        chunk_size: number of samples whose B x L x N similarities are in memory at a time. They are computed again in
            the backward pass. None: all are computed at once and kept. Value and gradient are the same.
        gather: as in `Features`. Each process compares its own tokens with the joint embeddings of all processes.
    """
    text, image = at_least_fp32(text_tokens), at_least_fp32(image_tokens)
    joint = gather(F.normalize(patch_weights(text, image, sigma) @ image, dim=2))  # (W*B, L, D)
    joint_mask = gather(text_mask)
    all_patches = text_mask.new_ones(image.shape[:2])
    losses: list[Tensor] = []
    for tokens, mask, margin in ((text, text_mask, margin_text), (image, all_patches, margin_image)):
        tokens = F.normalize(tokens, dim=2)
        to_joint, to_tokens = _hard_matrices(tokens, mask, joint, joint_mask, lambda_, chunk_size)
        losses += [_ranking(gather(to_joint), margin, tau), _ranking(gather(to_tokens).T, margin, tau)]
    return torch.stack(losses).sum()


def released_efa(
    text_tokens: Tensor,
    image_tokens: Tensor,
    *,
    chunk_size: int | None = 8,
    gather: Callable[[Tensor], Tensor] = no_gather,
) -> Tensor:
    """Returns the EFA loss as FMFA's released code computes it, a scalar in fp32 or wider.

    Source: the authors' code, which differs from eqs. (8)-(12) of the paper. H_ij compares the tokens of sample i, text
    tokens (margin 0.1) or image tokens (margin 0.9), with the joint embeddings of sample j. The other direction is not
    used. The rows of H are normalised to unit norm. Each modality adds
    (1/B) sum_j [log sum_i exp(H_ij - H_ii + margin) + log sum_i exp(H_ij - H_jj + margin)], where exp(...) is replaced
    by 1 for i = j. All text tokens are used, padding included. A batch of one pair: zero, connected to the graph.

    Args:
        text_tokens: ``(B, L, D)``.
        image_tokens: patches ``(B, N, D)``, without [CLS].
        chunk_size, gather: as in `efa`.
    """
    text, image = at_least_fp32(text_tokens), at_least_fp32(image_tokens)
    joint = gather(F.normalize(patch_weights(text, image) @ image, dim=2))  # (W*B, L, D)
    all_words = torch.ones(joint.shape[:2], dtype=torch.bool, device=joint.device)
    losses: list[Tensor] = []
    for tokens, margin in zip((text, image), RELEASED_MARGINS, strict=True):
        tokens = F.normalize(tokens, dim=2)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        to_joint, _ = _hard_matrices(tokens, mask, joint, all_words, 1.0, chunk_size)
        hard = F.normalize(gather(to_joint), dim=1)  # (W*B, W*B)
        own = torch.eye(len(hard), dtype=torch.bool, device=hard.device)
        for of_own in (hard.diagonal()[:, None], hard.diagonal()[None, :]):
            gaps = (hard - of_own + margin).masked_fill(own, 0)
            losses.append(gaps.logsumexp(dim=0).mean())
    return torch.stack(losses).sum()


def relative_similarities(text_tokens: Tensor, image_tokens: Tensor) -> Tensor:
    """Returns ``(B, L, N)``, from 0 for a word's least similar patch to 1 for its most similar patch (eq. (5)).

    Decision: if all patches are equally similar to a word, up to rounding, all of them get 1.

    Args:
        text_tokens: ``(B, L, D)``.
        image_tokens: ``(B, N, D)``.
    """
    text, image = at_least_fp32(text_tokens), at_least_fp32(image_tokens)
    inner = text @ image.mT
    low, high = inner.amin(dim=2, keepdim=True), inner.amax(dim=2, keepdim=True)
    largest = text.detach().norm(dim=2, keepdim=True) * image.detach().norm(dim=2).amax(dim=1)[:, None, None]
    flat = high - low <= 1e-6 * largest
    span = (high - low).masked_fill(flat, 1)
    return ((inner - low) / span).masked_fill(flat, 1)


def sparse_similarities(relative: Tensor, sigma: float | None = None) -> Tensor:
    """Returns `relative` ``(B, L, N)`` with values below `sigma` (None: 1 / N) set to zero (eq. (6))."""
    threshold = 1 / relative.shape[2] if sigma is None else sigma
    return relative.masked_fill(relative < threshold, 0)


def patch_weights(text_tokens: Tensor, image_tokens: Tensor, sigma: float | None = None) -> Tensor:
    """Returns ``(B, L, N)``: the share of each patch in the joint embedding of each word (eqs. (5)-(7)).

    Args:
        text_tokens: ``(B, L, D)``.
        image_tokens: ``(B, N, D)``.
        sigma: patches with a relative similarity below it have no share. None: 1 / N.
    """
    kept = sparse_similarities(relative_similarities(text_tokens, image_tokens), sigma)
    return kept / kept.sum(dim=2, keepdim=True)


def _hard_matrices(
    tokens: Tensor, mask: Tensor, joint: Tensor, joint_mask: Tensor, lambda_: float, chunk_size: int | None
) -> tuple[Tensor, Tensor]:
    """Returns H ``(B, W*B)`` in both directions: tokens i to joint embeddings j, and joint embeddings j to tokens i."""

    def compare(rows: Tensor, rows_mask: Tensor) -> tuple[Tensor, Tensor]:
        return _hard_similarities(rows, rows_mask, joint, joint_mask, lambda_)

    if chunk_size is None:
        return compare(tokens, mask)
    chunks = [
        checkpoint(compare, *rows, use_reentrant=False, preserve_rng_state=False)
        for rows in zip(tokens.split(chunk_size), mask.split(chunk_size), strict=True)
    ]
    to_joint, to_tokens = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return to_joint, to_tokens


def _hard_similarities(a: Tensor, a_mask: Tensor, b: Tensor, b_mask: Tensor, lambda_: float) -> tuple[Tensor, Tensor]:
    """Returns the hard similarities of all samples i of `a` to all j of `b`, and of j to i, both ``(A, B)``.

    The score of a valid token is its cosine to the closest valid token of the other side (eq. (9)). The score of a
    sample is (1 / lambda) log sum exp(lambda * score) over its tokens (eq. (10)).

    Args:
        a, b: unit tokens ``(A, L, D)`` and ``(B, M, D)``.
        a_mask, b_mask: bool ``(A, L)`` and ``(B, M)``, true on valid tokens.
    """
    cosines = torch.einsum("ald,bmd->ablm", a, b)
    valid = a_mask[:, None, :, None] & b_mask[None, :, None, :]
    cosines = cosines.masked_fill_(~valid, -torch.inf)
    a_to_b, b_to_a = (cosines.max(dim=dim).values for dim in (3, 2))
    return (lambda_ * a_to_b).logsumexp(dim=2) / lambda_, (lambda_ * b_to_a).logsumexp(dim=2) / lambda_


def _ranking(hard: Tensor, margin: float, tau: float) -> Tensor:
    """Returns the loss of one direction (eq. (11)). Row i of `hard` ``(B, B)`` belongs to anchor i."""
    if len(hard) == 1:
        return 0 * hard.sum()
    own = torch.eye(len(hard), dtype=torch.bool, device=hard.device)
    gaps = (hard - hard.diagonal()[:, None] + margin) / tau
    return gaps.masked_fill(own, -torch.inf).logsumexp(dim=1).mean()


class EFA(LossTerm):
    """`efa` or `released_efa` of the words of view "text" and the patches of view "image".

    Args:
        margin_text, margin_image, lambda_, tau, sigma: as in `efa`; form ``paper`` uses them.
        form: ``paper`` (`efa`) or ``released`` (`released_efa`, which has fixed constants).
        chunk_size: as in `efa`.
    """

    needs = frozenset({"image", "text"})
    reads_tokens = True
    fixed_length = True

    def __init__(
        self,
        *,
        spec: ModelSpec,
        form: str,
        margin_text: float,
        margin_image: float,
        lambda_: float,
        tau: float,
        sigma: float | None,
        chunk_size: int | None,
    ) -> None:
        super().__init__(spec=spec)
        check_choice("form", form, FORMS)
        for option, value in (("lambda_", lambda_), ("tau", tau), ("chunk_size", chunk_size)):
            if value is not None and value <= 0:
                raise UserError(f"{option}: {value} given, expected a number above 0")
        if sigma is not None and not 0 <= sigma <= 1:
            raise UserError(f"sigma: {sigma} given, expected a number from 0 to 1, or null for 1 / number of patches")
        self.form = form
        self.margin_text = margin_text
        self.margin_image = margin_image
        self.lambda_ = lambda_
        self.tau = tau
        self.sigma = sigma if form == "paper" else None
        self.chunk_size = chunk_size
        self._patches = spec.patches

    def forward(self, features: Features) -> tuple[Tensor, Stats]:
        image, text = features.image("image"), features.text("text")
        patches = self._patches_of(image)
        if self.form == "released":
            loss = released_efa(text.tokens, patches, chunk_size=self.chunk_size, gather=features.gather)
        else:
            loss = efa(
                text.tokens,
                patches,
                text.mask,
                self.margin_text,
                self.margin_image,
                self.lambda_,
                self.tau,
                self.sigma,
                chunk_size=self.chunk_size,
                gather=features.gather,
            )

        def stats() -> dict[str, Tensor]:
            kept = (patch_weights(text.tokens, patches, self.sigma) > 0).sum(dim=2)
            kept, mask = features.gather(kept), features.gather(text.mask)
            return {"patches_per_word": masked_mean(kept.float(), mask)}

        return loss, stats

    @torch.no_grad()
    def similarity_maps(self, text: Encoded, image: Encoded) -> tuple[Tensor, Tensor]:
        """Returns similarities of words and patches ``(B, L, N)``, before and after sparsification.

        The values, from 0 to 1, follow eqs. (5) and (6). Row i of `text` and row i of `image` are one pair. Rows of
        padding are zero. `patch_weights` is the second matrix with each row divided by its sum.
        """
        before = relative_similarities(text.tokens, self._patches_of(image))
        after = sparse_similarities(before, self.sigma)
        padding = ~text.mask[:, :, None]
        return before.masked_fill(padding, 0), after.masked_fill(padding, 0)

    def _patches_of(self, image: Encoded) -> Tensor:
        """Returns the tokens ``(B, N, D)`` of an image view without [CLS]."""
        return image.tokens if self._patches is None else image.tokens[:, -self._patches :]
