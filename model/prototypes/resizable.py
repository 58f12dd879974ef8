"""State whose length follows from the training so far, not from the config."""

from collections.abc import Mapping
from typing import Any

from torch import nn


class Resizable(nn.Module):
    """A module with buffers that take over the length they have in a checkpoint.

    Attributes:
        resizable: names of these buffers; their other dimensions are fixed.
    """

    resizable: frozenset[str]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in self.resizable:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                buffer = getattr(self, name)
                setattr(self, name, buffer.new_zeros(len(saved), *buffer.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)
