"""The inputs of the losses in one training step: encoded views, labels, logit scale and bias."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Returns `tensor` in fp32, or in its own type if that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Encoded:
    """One encoded view of B samples.

    pooled: ``(B, D)``, the backbone's pooled feature, not normalised.
    embedding: ``(B, E)``, the vector that is compared and ranked. It has unit norm. A head with K blocks concatenates
        K unit-norm blocks, so that an inner product is a sum of K cosines.
    tokens: ``(B, L, D)``, the sequence from which `pooled` was computed, in the same space.
    mask: ``(B, L)`` bool, true on content: words of a text (not padding), patches of an image (not [CLS]).
    """

    pooled: Tensor
    embedding: Tensor
    tokens: Tensor
    mask: Tensor

    @property
    def unnormalized(self) -> Tensor:
        """The embedding before normalisation: ``(B, D)``, or ``(B, K, D)`` for K blocks."""
        return self.pooled

    @property
    def slots(self) -> Tensor:
        """The K blocks of `embedding` before normalisation: ``(B, K, D)``."""
        return self.pooled[:, None]


@dataclass(frozen=True)
class PartEncoded(Encoded):
    """An encoded view with several embeddings per sample.

    parts: ``(B, K, D)``, not normalised, global first.
    """

    parts: Tensor

    @property
    def unnormalized(self) -> Tensor:
        return self.parts

    @property
    def slots(self) -> Tensor:
        return self.parts


class Encoder(Protocol):
    """The methods that `Features` calls on a model. `model.tbps.TBPS` has them."""

    def encode_image(self, pixels: Tensor) -> Encoded: ...
    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded: ...
    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]: ...


def no_gather(tensor: Tensor) -> Tensor:
    """Returns `tensor` unchanged: the gather function of a run with one process."""
    return tensor


class Features:
    """The encoded views of one training step, each computed the first time a loss asks for it.

    Views that `expect` announced are encoded in one pass through their tower. `embedding`, `pooled`,
    `slots`, `pids` and `labels` return the rows of all processes (the global batch), the first three with gradient.
    `image`, `text` and `label` return only the rows of this process, tokens included. Encoding runs in the AMP mode
    that was on when the object was made, even if a loss asks from inside an fp32 region.

    Args:
        encoder: encodes pixels and tokens.
        images: view name -> uint8 ``(B, 3, H, W)``.
        texts: view name -> (ids ``(B, L)``, mask ``(B, L)``).
        labels: label name -> ``(B, ...)``. "pids" are the identities ``(B,)``; they are absent if the method trains
            without identities.
        epoch: training progress in epochs, fractional. Ramps read it.
        gather: ``(B, ...) -> (W*B, ...)``, concatenates the rows of all W processes, with gradient.
        recompute: whether to save memory at the cost of time: image views are encoded one by one, which saves a copy
            of their pixels, and losses compute their comparisons again in the backward pass.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Mapping[str, Tensor],
        texts: Mapping[str, tuple[Tensor, Tensor]],
        labels: Mapping[str, Tensor],
        *,
        epoch: float = 0.0,
        gather: Callable[[Tensor], Tensor] = no_gather,
        recompute: bool = False,
    ) -> None:
        self.epoch = epoch
        self.accessed: set[str] = set()
        self._encoder = encoder
        self._images = images
        self._texts = texts
        self._labels = labels
        self._gather = gather
        self._recompute = recompute
        self._encoded: dict[str, Encoded] = {}
        self._sources: list[Tensor] = []
        self._gathered: dict[tuple[str, str], Tensor] = {}
        self._registered: dict[str, Callable[[str], Tensor]] = {}
        self._shared: dict[tuple[str, str], Tensor] = {}
        self._expected: tuple[str, ...] = ()
        device = next(iter({**images, **{k: v[0] for k, v in texts.items()}}.values())).device.type
        self._device = device
        self._amp_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def amp(self) -> AbstractContextManager[None]:
        """Returns a context with the AMP mode of the step, for large modules of a loss."""
        return torch.autocast(self._device, dtype=self._amp_dtype, enabled=self._amp_dtype is not None)

    def fp32(self) -> AbstractContextManager[None]:
        """Returns a context without AMP. Losses run in it."""
        return torch.autocast(self._device, enabled=False)

    def expect(self, views: Iterable[str]) -> None:
        """Announces which views the losses will ask for, so that those of a tower are encoded together."""
        self._expected = tuple(view for view in (*self._images, *self._texts) if view in set(views))

    def image(self, view: str = "image") -> Encoded:
        """Returns the encoded image view of this process."""
        images = {name: (pixels,) for name, pixels in self._images.items()}
        return self._view(view, self._encoder.encode_image, images)

    def text(self, view: str = "text") -> Encoded:
        """Returns the encoded text view of this process."""
        return self._view(view, self._encoder.encode_text, self._texts)

    def embedding(self, view: str) -> Tensor:
        """Returns the gathered embeddings ``(W*B, E)`` of an image or text view. Each block has unit norm."""
        return self._global(view, "embedding")

    def pooled(self, view: str) -> Tensor:
        """Returns the gathered pooled features ``(W*B, D)`` of an image or text view, not normalised."""
        return self._global(view, "pooled")

    def slots(self, view: str) -> Tensor:
        """Returns the gathered slots ``(W*B, K, D)`` of an image or text view, not normalised, global first."""
        slots = self._global(view, "slots")
        if isinstance(self._encoded[view], PartEncoded):
            self.accessed.add("parts")
        return slots

    def sources(self) -> list[Tensor]:
        """Returns the features before normalisation of all views encoded so far, with gradient.

        Under `recompute` the list is empty, because each gradient there would encode every micro-batch again.
        """
        return [] if self._recompute else [source for source in self._sources if source.requires_grad]

    def register(self, name: str, compute: Callable[[str], Tensor]) -> None:
        """Lets losses read ``compute(view)`` as ``shared(name, view)``. It is computed once for each requested view."""
        self._registered[name] = compute

    def shared(self, name: str, view: str) -> Tensor:
        """Returns a tensor that one loss computes from a view for all losses, such as "id_logits"."""
        self.accessed.add(name)
        if name not in self._registered:
            raise LookupError(f"no loss registers {name!r}: a loss that reads it must list {name!r} in needs")
        if (name, view) not in self._shared:
            self._shared[name, view] = self._registered[name](view)
        return self._shared[name, view]

    def checkpointed(self, compare: Callable[..., Tensor], *embeddings: Tensor) -> Tensor:
        """Returns ``compare(*embeddings)``, which may keep matrices of size (batch, batch) until the backward pass.

        Under `recompute` it keeps none and is computed again in the backward pass. `compare` must not be random.
        """
        if not self._recompute:
            return compare(*embeddings)
        return checkpoint(compare, *embeddings, use_reentrant=False, preserve_rng_state=False)

    @property
    def pids(self) -> Tensor:
        """The gathered identities ``(W*B,)``."""
        return self.labels("pids")

    def labels(self, name: str) -> Tensor:
        """Returns the gathered labels ``(W*B, ...)`` of that name."""
        own = self.label(name)
        if (name, "") not in self._gathered:
            self._gathered[name, ""] = self._gather(own)
        return self._gathered[name, ""]

    def gather(self, rows: Tensor) -> Tensor:
        """Returns the rows ``(W*B, ...)`` of all processes, with gradient. `rows` ``(B, ...)`` are of this process."""
        return self._gather(rows)

    def label(self, name: str) -> Tensor:
        """Returns the labels ``(B, ...)`` of that name in this process."""
        self.accessed.add(name)
        if name not in self._labels:
            raise LookupError(f"this batch carries no {name!r}: a loss that reads it must list {name!r} in needs")
        return self._labels[name]

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """Returns (logit_scale, logit_bias) of the backbone: scalars with gradient, the scale after exp."""
        return self._encoder.logit_scale_and_bias()

    def _global(self, view: str, part: str) -> Tensor:
        key = (view, part)
        if key not in self._gathered:
            self._refuse_no_grad(view)
            encoded = self.image(view) if view in self._images else self.text(view)
            self._gathered[key] = self._gather(getattr(encoded, part))
        self.accessed.add(view)
        return self._gathered[key]

    def _view(self, view: str, encode: Callable[..., Encoded], inputs: Mapping[str, tuple[Tensor, ...]]) -> Encoded:
        """Returns an encoded view; the other expected views of `inputs` are encoded with it."""
        self.accessed.add(view)
        if view not in self._encoded:
            self._refuse_no_grad(view)
            together = [other for other in self._expected if other in inputs and other not in self._encoded]
            self._encode([view] if self._recompute or view not in together else together, encode, inputs)
        return self._encoded[view]

    def _encode(
        self, views: list[str], encode: Callable[..., Encoded], inputs: Mapping[str, tuple[Tensor, ...]]
    ) -> None:
        columns = zip(*(inputs[view] for view in views), strict=True)
        with self.amp():
            encoded = encode(*(rows[0] if len(views) == 1 else torch.cat(rows) for rows in columns))
        self._sources.append(encoded.unnormalized)
        sizes = [len(inputs[view][0]) for view in views]
        for view, *rows in zip(views, *(part.split(sizes) for part in vars(encoded).values()), strict=True):
            self._encoded[view] = type(encoded)(*rows)

    def _refuse_no_grad(self, view: str) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError(
                f"view {view!r} was first requested under no_grad, so every loss of the step would get it without "
                "gradient: request it outside no_grad, then detach"
            )
