"""The selective scan as people call it: checked arguments, a chosen backend. `reference.py` says what it computes."""

from collections.abc import Sequence
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from minivim.ops.backends import choose_backend
from minivim.ops.implementations import Backend, one_after_the_other


def sizes(name: str, x: object, letters: str) -> torch.Size:
    """The shape of a tensor that has the axes `letters`, none of them empty; TypeError or ValueError otherwise."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if x.ndim != len(letters.split(", ")):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {letters}")
    if 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; no size of {letters} may be 0")
    return x.shape


Expected = tuple[str, object, str, tuple[int, ...]]  # name, what was given, its axes as letters, its shape


def check_tensors(required: Sequence[Expected], optional: Sequence[Expected] = ()) -> None:
    """Raise unless each is a dense real tensor of its shape, on the device of the first; an optional one may be None.

    TypeError or ValueError, which name the argument, what it was and what it must be.
    """
    leader, strided, device = required[0][0], torch.strided, getattr(required[0][1], "device", None)
    for name, x, letters, shape in (*required, *[each for each in optional if each[1] is not None]):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
        if x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {letters} = {shape}")
        if x.layout is not strided:
            raise TypeError(f"{name} has layout {x.layout}; it must be dense (torch.strided)")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; it must be a real floating-point type")
        if x.device != device:
            raise ValueError(f"{name} is on device {x.device}; it must be on {device}, as {leader} is")


def _check(u, delta, A, B, C, D, z, delta_bias, initial_state) -> None:
    """TypeError or ValueError for anything but floating tensors of the shapes in `selective_scan`, on one device."""
    (batch, L, E), (_, N) = sizes("u", u, "(B, L, E)"), sizes("A", A, "(E, N)")
    tokens, states = ("(B, L, E)", (batch, L, E)), ("(B, L, N)", (batch, L, N))
    channels = ("(E,)", (E,))
    check_tensors(
        [
            ("u", u, *tokens),
            ("delta", delta, *tokens),
            ("A", A, "(E, N)", (E, N)),
            ("B", B, *states),
            ("C", C, *states),
        ],
        [
            ("D", D, *channels),
            ("z", z, *tokens),
            ("delta_bias", delta_bias, *channels),
            ("initial_state", initial_state, "(B, E, N)", (batch, E, N)),
        ],
    )


@overload
def selective_scan(
    u: Float[Tensor, "B L E"],
    delta: Float[Tensor, "B L E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B L N"],
    C: Float[Tensor, "B L N"],
    D: Float[Tensor, " E"] | None = ...,
    z: Float[Tensor, "B L E"] | None = ...,
    delta_bias: Float[Tensor, " E"] | None = ...,
    delta_softplus: bool = ...,
    *,
    initial_state: Float[Tensor, "B E N"] | None = ...,
    return_last_state: Literal[False] = ...,
    reverse: bool = ...,
    backend: str | Backend = ...,
) -> Float[Tensor, "B L E"]: ...
@overload
def selective_scan(
    u: Float[Tensor, "B L E"],
    delta: Float[Tensor, "B L E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B L N"],
    C: Float[Tensor, "B L N"],
    D: Float[Tensor, " E"] | None = ...,
    z: Float[Tensor, "B L E"] | None = ...,
    delta_bias: Float[Tensor, " E"] | None = ...,
    delta_softplus: bool = ...,
    *,
    initial_state: Float[Tensor, "B E N"] | None = ...,
    return_last_state: Literal[True],
    reverse: bool = ...,
    backend: str | Backend = ...,
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]: ...
def selective_scan(
    u: Float[Tensor, "B L E"],
    delta: Float[Tensor, "B L E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B L N"],
    C: Float[Tensor, "B L N"],
    D: Float[Tensor, " E"] | None = None,
    z: Float[Tensor, "B L E"] | None = None,
    delta_bias: Float[Tensor, " E"] | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: Float[Tensor, "B E N"] | None = None,
    return_last_state: bool = False,
    reverse: bool = False,
    backend: str | Backend = "auto",
) -> Float[Tensor, "B L E"] | tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]:
    """The selective scan of Mamba (arXiv 2312.00752, Eq. 2 and Algorithm 2), with skip D and gate silu(z).

    u            (B, L, E)  input; any real floating dtype, the state is float32 (float64 for float64)
    delta        (B, L, E)  step size in tokens: after adding delta_bias (E,) and, if delta_softplus, softplus
    A            (E, N)     diagonal state matrix, negative for a memory that fades
    B, C         (B, L, N)  input and output maps, chosen by each token
    D, z         (E,), (B, L, E)  skip and gate, each may be None
    initial_state  (B, E, N)  the state before the first step, zero by default
    reverse      walk from L - 1 down to 0; nothing is flipped in memory
    backend      "auto" (the first of `available_backends`), "numba", "triton", "chunked" or "reference"; with
                 TRITON_INTERPRET=1 in the environment Triton's interpreter runs "triton" on a CPU, for tests

    Returns out (B, L, E) in u's dtype; with return_last_state also the last state (B, E, N), float32 (float64).
    Raises TypeError or ValueError, which name the argument, what it was and what it must be.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    scan = choose_backend(backend, u.device).scan
    out, last_state = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse)
    return (out, last_state) if return_last_state else out


def bidirectional_scan(
    ahead: tuple[Float[Tensor, "..."] | None, ...],
    back: tuple[Float[Tensor, "..."] | None, ...],
    z: Float[Tensor, "B L E"],
    *,
    backend: str | Backend = "auto",
) -> Float[Tensor, "B L E"]:
    """The two directions of a Vim block, averaged and gated: (y_ahead + y_back) / 2 * silu(z). Vim, Algorithm 1.

    ahead, back  the first seven arguments of `selective_scan` but z: u, delta, A, B, C, D, delta_bias, each with its
                 own u and N; delta before softplus. `back` walks from L - 1 down to 0.
    Returns (B, L, E) in u's dtype. Raises as `selective_scan` does.
    """
    for u, delta, A, B, C, D, delta_bias in (ahead, back):
        _check(u, delta, A, B, C, D, z, delta_bias, None)
    backend = choose_backend(backend, z.device)
    skips_and_biases = (*ahead[5:], *back[5:])
    states = [None if A is None else A.shape for _, _, A, *_ in (ahead, back)]
    if states[0] != states[1] or any(x is None for x in skips_and_biases):  # one launch is for like scans
        return one_after_the_other(backend.scan, ahead, back, z)
    return backend.bidirectional_scan(ahead, back, z)
