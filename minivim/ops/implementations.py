"""The backends as records: what each computes, what it needs, how it is loaded."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from minivim.ops.chunked import chunked_scan
from minivim.ops.reference import add_norm_reference, conv_reference, scan_reference


class Backend(NamedTuple):
    """The five operations of a Vim block in one implementation; arguments are positional, and checked by who calls."""

    name: str
    scan: Callable  # (u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse) -> out, last state
    bidirectional_scan: Callable  # (ahead, back, z) -> out
    conv: Callable  # (x, weight, bias, reverse) -> y
    bidirectional_conv: Callable  # (x, (weight, bias) ahead, (weight, bias) back) -> y ahead, y back
    add_norm: Callable  # (update, residual, weight, eps) -> norm, sum


# What each needs: device type, module, extra that installs it. "auto" takes the first that has proved itself.
NEEDS = {
    "numba": ("cpu", "numba", "numba"),
    "triton": ("cuda", "triton", "triton"),
    "chunked": (None, None, None),
    "reference": (None, None, None),
}

# Looked up once: whether a module is installed does not change while a program runs.
INSTALLED = {name: module is None or find_spec(module) is not None for name, (_, module, _) in NEEDS.items()}


def missing(backend: str) -> str | None:
    """Why `backend` cannot run on this machine and what to do, or None if it can."""
    _, module, extra = NEEDS[backend]
    if INSTALLED[backend]:
        return None
    return f"{module} is not installed; install it with: pip install 'minivim[{extra}]'"


def can_run(backend: str, kind: str) -> bool:
    """Whether `backend` is installed and runs on devices of this kind ("cpu", "cuda", ...)."""
    return NEEDS[backend][0] in (None, kind) and INSTALLED[backend]


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The names of the backends that can run on `device`, best first."""
    return tuple(name for name in NEEDS if can_run(name, torch.device(device).type))


LOADED: dict[str, Backend] = {}  # a plain dict, which torch.compile can look into


def one_after_the_other(scan: Callable, ahead: tuple, back: tuple, z: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
    """Both directions by two scans of their own, averaged."""
    one, two = (
        scan(*tensors[:6], z, tensors[6], True, None, reverse)[0] for tensors, reverse in ((ahead, False), (back, True))
    )
    return (one + two) / 2


def one_and_the_other(conv: Callable, x: Float[Tensor, "B L E"], ahead: tuple, back: tuple) -> tuple:
    """Both directions by two convolutions."""
    return conv(x, *ahead, False), conv(x, *back, True)


def load(name: str) -> Backend:
    """The backend of that name; its modules are imported when it is first asked for."""
    if name not in LOADED:
        LOADED[name] = build(name)
    return LOADED[name]


def build(name: str) -> Backend:
    """Import a backend's modules and gather their functions."""
    if name == "numba":
        from minivim.kernels.cpu.conv.launch import causal_conv_silu as conv
        from minivim.kernels.cpu.norm.launch import add_rms_norm
        from minivim.kernels.cpu.scan.launch import selective_scan
        from minivim.kernels.cpu.scan.pair import bidirectional_scan

        return Backend(name, selective_scan, bidirectional_scan, conv, partial(one_and_the_other, conv), add_rms_norm)
    if name == "triton":
        from minivim.kernels.gpu.conv import launch as conv_gpu
        from minivim.kernels.gpu.scan import launch as scan_gpu

        scans = scan_gpu.selective_scan, scan_gpu.bidirectional_scan
        return Backend(name, *scans, conv_gpu.causal_conv_silu, conv_gpu.bidirectional_conv_silu, add_norm_reference)
    scan = {"chunked": chunked_scan, "reference": scan_reference}[name]
    both = partial(one_after_the_other, scan), conv_reference, partial(one_and_the_other, conv_reference)
    return Backend(name, scan, *both, add_norm_reference)
