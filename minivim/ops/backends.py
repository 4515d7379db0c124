"""The choice of a backend, in the open: by name, or the best one that has proved itself on the device."""

import os

import torch

from minivim.ops.implementations import INSTALLED, NEEDS, Backend, can_run, load, missing
from minivim.ops.verdict import holds


def choose_backend(backend: str | Backend, device: torch.device) -> Backend:
    """The backend that will run: the best for "auto". ValueError if it is unknown or cannot run, with the reason."""
    if isinstance(backend, Backend):
        return backend
    if backend == "auto":
        return load(best(device))
    if backend in NEEDS and can_run(backend, device.type):
        return load(backend)
    if backend == "triton" and INSTALLED[backend] and os.environ.get("TRITON_INTERPRET") == "1":
        return load(backend)
    names = ", ".join(map(repr, ("auto", *NEEDS)))
    if backend not in NEEDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {names}")
    reason = missing(backend) or f"it runs on {NEEDS[backend][0]} only"
    raise ValueError(f"backend is {backend!r}, which cannot run on device {device}: {reason}")


def best(device: torch.device) -> str:
    """The first backend for this device that needs no compiler, or has proved itself here."""
    compiling = torch.compiler.is_compiling()
    for name, (_, compiler, _) in NEEDS.items():
        if can_run(name, device.type) and (compiler is None or holds(name, device.type, device.index, compiling)):
            return name
    raise AssertionError("a backend without a compiler runs everywhere")
