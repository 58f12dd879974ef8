"""Module state whose length depends on the training so far, not on the config."""

from collections.abc import Mapping
from typing import Any

from torch import nn


class Resizable(nn.Module):
    """A module with buffers that get the length of the checkpoint when it is loaded.

    Attributes:
        resizable: names of these buffers. Only their first dimension may change.
    """

    resizable: frozenset[str]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in self.resizable:
            saved = state_dict.get(prefix + name)
            if saved is not None:
                buffer = getattr(self, name)
                setattr(self, name, buffer.new_zeros(len(saved), *buffer.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)
