"""The scan's backend of a whole model, chosen once a run."""

import torch
from torch import nn

from minivim.ops import choose_backend


def apply_backend(model: nn.Module, backend: str, device: torch.device) -> str:
    """Set the scan's backend in all mixers; returns the name of the one that will run."""
    set_backend = getattr(model, "set_backend", None)
    if set_backend is None:
        if backend != "auto":
            raise ValueError(f"backend is {backend!r}; it must be 'auto' for a model without a scan")
        return "none"
    set_backend(backend)
    return choose_backend(backend, device).name
