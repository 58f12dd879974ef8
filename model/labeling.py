"""The interface of a labelling: what a method finds out about its training pairs before an epoch, such as clusters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from model.resizable import Resizable
from utils.errors import check_positive

if TYPE_CHECKING:
    from model.objectives.base import Objective


class EncodedPairs(NamedTuple):
    """The training set, encoded in evaluation mode. There is one pair for each text.

    images, texts: embeddings. Shapes: ``(N, E)``, ``(P, E)``.
    text_images: the image of each text. Shape: ``(P,)``.
    image_pids, text_pids: identities. A labelling that does not `reads_pids` uses them for statistics only.
    logit_scale, logit_bias: of the encoder.
    true_pairs: bool ``(P,)``, false for the pairs with drawn noise, for statistics only. None: the truth is not known.
    """

    images: Tensor
    texts: Tensor
    text_images: Tensor
    image_pids: Tensor
    text_pids: Tensor
    logit_scale: Tensor
    logit_bias: Tensor
    true_pairs: Tensor | None = None


class Labeling(Resizable):
    """Labels of the training pairs, found before every `every_n_epochs`-th epoch. Checkpoints contain them.

    Args:
        name: name of the option `pseudo_label`.
        every_n_epochs: number of epochs from one search to the next.

    Attributes:
        provides: names of the labels that losses can read. Each is a buffer of this name, empty before the first
            `take`. Shape: ``(P,)``.
        reads_pids: whether training may read identities.
    """

    provides: ClassVar[frozenset[str]]
    reads_pids: ClassVar[bool]

    def __init__(self, *, name: str, every_n_epochs: int) -> None:
        super().__init__()
        check_positive("pseudo_label.every_n_epochs", every_n_epochs)
        self.name = name
        self.every_n_epochs = every_n_epochs

    def due(self, epoch: int) -> bool:
        """Returns whether new labels have to be found before `epoch`, counted from 0."""
        return len(self.stages) == 0 or epoch % self.every_n_epochs == 0

    def of(self, pairs: Tensor) -> dict[str, Tensor]:
        """Returns the labels of the `pairs` ``(B,)``."""
        return {name: getattr(self, name)[pairs] for name in self.provides}

    @property
    def stages(self) -> Tensor:
        """The stage of each pair, as in `TBPSDataModule.set_stages`. Shape: ``(P,)``."""
        return torch.ones(len(getattr(self, min(self.provides))), dtype=torch.int64)

    def preset(self, pairs: int, device: torch.device | str = "cpu") -> None:
        """Gives each pair a label without a search, for measurements of a training step."""
        for name in self.provides:
            empty = getattr(self, name)
            places = torch.arange(pairs, device=device) // 2
            setattr(self, name, torch.ones_like(places, dtype=empty.dtype) if empty.is_floating_point() else places)

    def find(self, pairs: EncodedPairs, objective: "Objective", seed: int) -> Any:
        """Returns what is found, which `take` then keeps. One process finds it for all."""
        raise NotImplementedError

    def take(self, found: Any, pairs: EncodedPairs, objective: "Objective", seed: int) -> None:
        """Keeps what was found, and resets the prototypes of `objective`. All processes call it."""
        raise NotImplementedError

    def statistics(self, found: Any, pairs: EncodedPairs) -> Mapping[str, float]:
        """Returns figures to log."""
        raise NotImplementedError

    def describe(self) -> str:
        """Returns one line that describes the latest labels."""
        raise NotImplementedError

    def announce(self) -> str:
        """Returns one line for the first screen."""
        raise NotImplementedError
