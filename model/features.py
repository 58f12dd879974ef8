"""What the losses of one step may look at: encoded views, labels, logit scale and bias."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def at_least_fp32(tensor: Tensor) -> Tensor:
    """Returns `tensor` in fp32, or in its own type where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Encoded:
    """One encoded view of B samples.

    pooled: ``(B, D)`` the backbone's pooled feature, not normalised.
    embedding: ``(B, E)`` what is compared and ranked. Unit norm; a head with K blocks returns K
        concatenated unit-norm blocks, so that an inner product is a sum of K cosines.
    tokens: ``(B, L, D)`` the sequence behind `pooled`, in the same space.
    mask: ``(B, L)`` bool, true on content: words for a text (not padding), patches for an image (not [CLS]).
    """

    pooled: Tensor
    embedding: Tensor
    tokens: Tensor
    mask: Tensor

    @property
    def unnormalized(self) -> Tensor:
        """What `embedding` is computed from by normalising alone: ``(B, D)``, or ``(B, K, D)`` of K blocks."""
        return self.pooled

    @property
    def slots(self) -> Tensor:
        """``(B, K, D)``: what the K blocks of `embedding` are before they are normalised."""
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
    """What `Features` needs of a model; `model.tbps.TBPS` is one."""

    def encode_image(self, pixels: Tensor) -> Encoded: ...
    def encode_text(self, ids: Tensor, mask: Tensor) -> Encoded: ...
    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]: ...


def no_gather(tensor: Tensor) -> Tensor:
    """Returns the rows of the only process."""
    return tensor


class Features:
    """The encoded views of one training step, each computed the first time a loss asks for it.

    Image views that `expect` announced are encoded in one pass through the vision tower. `embedding`, `pooled`
    and `slots` come gathered over all processes, with gradient, and so do `pids` and `labels`: a loss sees the
    global batch. `image`, `text` and `label` return this process' rows only, tokens included. Encoding runs under
    the AMP mode that was on when the object was made, also when a loss asks from within its own fp32 region.

    Args:
        encoder: encodes pixels and tokens.
        images: view name -> uint8 ``(B, 3, H, W)``.
        texts: view name -> (ids ``(B, L)``, mask ``(B, L)``).
        labels: label name -> ``(B, ...)``. "pids" are the identities ``(B,)``, absent where the method may
            not know them.
        epoch: training progress in epochs, fractional (for ramps).
        gather: ``(B, ...) -> (W*B, ...)`` concatenates the rows of all W processes, with gradient.
        recompute: whether memory goes before speed: announced image views are not encoded together, which takes a
            copy of their pixels, and losses compute their comparisons again in backward.
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
        """The AMP mode of the step, for the modules of a loss that are heavy enough to want it."""
        return torch.autocast(self._device, dtype=self._amp_dtype, enabled=self._amp_dtype is not None)

    def fp32(self) -> AbstractContextManager[None]:
        """AMP switched off: what losses run under."""
        return torch.autocast(self._device, enabled=False)

    def expect(self, views: Iterable[str]) -> None:
        """Announces the views that will be asked for, so that images among them are encoded together."""
        self._expected = tuple(view for view in self._images if view in set(views))

    def image(self, view: str = "image") -> Encoded:
        """This process' encoded image view."""
        self.accessed.add(view)
        if view not in self._encoded:
            self._refuse_no_grad(view)
            together = [v for v in self._expected if v not in self._encoded]
            self._encode_images([view] if self._recompute or view not in together else together)
        return self._encoded[view]

    def text(self, view: str = "text") -> Encoded:
        """This process' encoded text view."""
        self.accessed.add(view)
        if view not in self._encoded:
            self._refuse_no_grad(view)
            with self.amp():
                self._encoded[view] = self._encoder.encode_text(*self._texts[view])
            self._sources.append(self._encoded[view].unnormalized)
        return self._encoded[view]

    def embedding(self, view: str) -> Tensor:
        """Gathered embeddings ``(W*B, E)`` of an image or text view, unit norm per block."""
        return self._global(view, "embedding")

    def pooled(self, view: str) -> Tensor:
        """Gathered pooled features ``(W*B, D)`` of an image or text view, not normalised."""
        return self._global(view, "pooled")

    def slots(self, view: str) -> Tensor:
        """Gathered embeddings ``(W*B, K, D)`` of an image or text view before they are normalised, global first."""
        slots = self._global(view, "slots")
        if isinstance(self._encoded[view], PartEncoded):
            self.accessed.add("parts")
        return slots

    def sources(self) -> list[Tensor]:
        """Returns what the embeddings that losses have read are computed from, with gradient.

        Under `recompute` there are none: each gradient there would encode every micro-batch again.
        """
        return [] if self._recompute else [source for source in self._sources if source.requires_grad]

    def register(self, name: str, compute: Callable[[str], Tensor]) -> None:
        """Lets losses read ``compute(view)`` as ``shared(name, view)``; it runs once for each view asked for."""
        self._registered[name] = compute

    def shared(self, name: str, view: str) -> Tensor:
        """Returns what one loss makes of a view for all, such as the "id_logits" of the identity classifier."""
        self.accessed.add(name)
        if name not in self._registered:
            raise LookupError(f"no loss registers {name!r}: a loss that reads it must list {name!r} in needs")
        if (name, view) not in self._shared:
            self._shared[name, view] = self._registered[name](view)
        return self._shared[name, view]

    def checkpointed(self, compare: Callable[..., Tensor], *embeddings: Tensor) -> Tensor:
        """Returns ``compare(*embeddings)``, which holds matrices of the size of the batch squared until backward.

        Where memory goes before speed it holds none and is computed again; `compare` then must not draw at random.
        """
        if not self._recompute:
            return compare(*embeddings)
        return checkpoint(compare, *embeddings, use_reentrant=False, preserve_rng_state=False)

    @property
    def pids(self) -> Tensor:
        """Gathered identities ``(W*B,)``."""
        return self.labels("pids")

    def labels(self, name: str) -> Tensor:
        """Gathered labels ``(W*B, ...)`` of that name."""
        own = self.label(name)
        if (name, "") not in self._gathered:
            self._gathered[name, ""] = self._gather(own)
        return self._gathered[name, ""]

    def gather(self, rows: Tensor) -> Tensor:
        """Rows ``(W*B, ...)`` of all processes from this one's ``(B, ...)``, with gradient."""
        return self._gather(rows)

    def label(self, name: str) -> Tensor:
        """This process' label ``(B, ...)`` of that name."""
        self.accessed.add(name)
        if name not in self._labels:
            raise LookupError(f"this batch carries no {name!r}: a loss that reads it must list {name!r} in needs")
        return self._labels[name]

    def logit_scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """(logit_scale, logit_bias) of the backbone: scalars with gradient, the scale exponentiated."""
        return self._encoder.logit_scale_and_bias()

    def _global(self, view: str, part: str) -> Tensor:
        key = (view, part)
        if key not in self._gathered:
            self._refuse_no_grad(view)
            encoded = self.image(view) if view in self._images else self.text(view)
            self._gathered[key] = self._gather(getattr(encoded, part))
        self.accessed.add(view)
        return self._gathered[key]

    def _encode_images(self, views: list[str]) -> None:
        sizes = [len(self._images[view]) for view in views]
        pixels = self._images[views[0]] if len(views) == 1 else torch.cat([self._images[view] for view in views])
        with self.amp():
            encoded = self._encoder.encode_image(pixels)
        self._sources.append(encoded.unnormalized)
        for view, *rows in zip(views, *(part.split(sizes) for part in vars(encoded).values()), strict=True):
            self._encoded[view] = type(encoded)(*rows)

    def _refuse_no_grad(self, view: str) -> None:
        if not torch.is_grad_enabled():
            raise RuntimeError(
                f"view {view!r} was first asked for under no_grad; it would be remembered without gradient "
                "for every loss of the step: ask for it outside no_grad, then detach"
            )
