"""The selective scan: its contract, the naive reference, and the choice of backend.

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * u[t]
    y[t] = C[t] . h[t] + D * u[t]              out[t] = y[t] * silu(z[t])

Eq. 2 of Mamba (arXiv 2312.00752) with the discretization that its code and Vim's use: A by ZOH, B by Euler.
The reference is written to be read, not to be fast; every other backend computes the same function and gradients.
"""

import os
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minivim.chunked import chunked_scan
from minivim.kernels.operators import compute_dtype

# What each backend needs: device type, module, extra that installs it. "auto" takes the first that can run.
BACKENDS = {
    "numba": ("cpu", "numba", "numba"),
    "chunked": (None, None, None),
    "triton": ("cuda", "triton", "triton"),
    "reference": (None, None, None),
}


def scan_reference(
    u: Float[Tensor, "B L E"],
    delta: Float[Tensor, "B L E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B L N"],
    C: Float[Tensor, "B L N"],
    D: Float[Tensor, " E"] | None = None,
    z: Float[Tensor, "B L E"] | None = None,
    delta_bias: Float[Tensor, " E"] | None = None,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "B E N"] | None = None,
    reverse: bool = False,
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]:
    """The scan as a loop over t, differentiated by autograd: (out in u's dtype, last state). Mamba, Algorithm 2."""
    dtype, out_dtype = compute_dtype(u), u.dtype
    u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(dtype)
    # unbind, because the gradient of u[:, t] is a full tensor of zeros at every step.
    steps = list(zip(*(x.unbind(1) for x in (u, delta, B, C)), strict=True))
    y = []
    for u_t, delta_t, B_t, C_t in reversed(steps) if reverse else steps:
        A_bar = torch.exp(delta_t[:, :, None] * A)  # (B, E, N)
        B_bar = delta_t[:, :, None] * B_t[:, None, :]  # (B, E, N)
        h = A_bar * h + B_bar * u_t[:, :, None]
        y.append((h * C_t[:, None, :]).sum(-1))
    out = torch.stack(y[::-1] if reverse else y, dim=1)
    if D is not None:
        out = out + D.to(dtype) * u
    if z is not None:
        out = out * F.silu(z.to(dtype))
    return out.to(out_dtype), h


# Looked up once: whether a module is installed does not change while a program runs.
INSTALLED = {name: module is None or find_spec(module) is not None for name, (_, module, _) in BACKENDS.items()}


def missing(backend: str) -> str | None:
    """Why `backend` cannot run on this machine and what to do, or None if it can."""
    _, module, extra = BACKENDS[backend]
    if INSTALLED[backend]:
        return None
    return f"{module} is not installed; install it with: pip install 'minivim[{extra}]'"


def can_run(backend: str, kind: str) -> bool:
    """Whether `backend` is installed and runs on devices of this kind ("cpu", "cuda", ...)."""
    return BACKENDS[backend][0] in (None, kind) and INSTALLED[backend]


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The names of the backends that can run on `device`, best first."""
    return tuple(name for name in BACKENDS if can_run(name, torch.device(device).type))


def choose_backend(backend: str, device: torch.device) -> str:
    """The backend that will run: the best for "auto". ValueError if it is unknown or cannot run, with the reason."""
    if backend == "auto":
        return next(name for name in BACKENDS if can_run(name, device.type))
    interpreted = backend == "triton" and INSTALLED[backend] and os.environ.get("TRITON_INTERPRET") == "1"
    if backend in BACKENDS and can_run(backend, device.type) or interpreted:
        return backend
    names = ", ".join(map(repr, ("auto", *BACKENDS)))
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {names}")
    reason = missing(backend) or f"it runs on {BACKENDS[backend][0]} only"
    raise ValueError(f"backend is {backend!r}, which cannot run on device {device}: {reason}")


def _check_inputs(u, delta, A, B, C, D, z, delta_bias, initial_state) -> None:
    """TypeError or ValueError for anything but floating tensors of the shapes in `selective_scan`, on one device."""
    for name, x in (("u", u), ("A", A)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
    if u.ndim != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}; it must be (B, L, E)")
    if A.ndim != 2:
        raise ValueError(f"A has shape {tuple(A.shape)}; it must be (E, N)")
    (batch, L, E), N = u.shape, A.shape[1]
    if 0 in (batch, L, E, N):
        raise ValueError(
            f"u has shape {(batch, L, E)} and A {tuple(A.shape)}; no size of (B, L, E) and (E, N) may be 0"
        )
    tokens, states = ("(B, L, E)", (batch, L, E)), ("(B, L, N)", (batch, L, N))
    channels = ("(E,)", (E,))
    for name, x, (letters, shape), optional in (
        ("u", u, tokens, False),
        ("delta", delta, tokens, False),
        ("A", A, ("(E, N)", (E, N)), False),
        ("B", B, states, False),
        ("C", C, states, False),
        ("D", D, channels, True),
        ("z", z, tokens, True),
        ("delta_bias", delta_bias, channels, True),
        ("initial_state", initial_state, ("(B, E, N)", (batch, E, N)), True),
    ):
        if x is None and optional:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is a {type(x).__name__}; it must be a tensor")
        if x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {letters} = {shape}")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; it must be a real floating-point type")
        if x.device != u.device:
            raise ValueError(f"{name} is on device {x.device}; it must be on {u.device}, as u is")


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
    backend: str = "auto",
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
    _check_inputs(u, delta, A, B, C, D, z, delta_bias, initial_state)
    chosen = choose_backend(backend, u.device)
    if chosen == "numba":
        from minivim.kernels.scan_cpu import selective_scan as scan
    elif chosen == "triton":
        from minivim.kernels.scan_gpu import selective_scan as scan
    else:
        scan = chunked_scan if chosen == "chunked" else scan_reference
    out, last_state = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse)
    return (out, last_state) if return_last_state else out


def bidirectional_scan(
    ahead: tuple[Float[Tensor, "..."], ...],
    back: tuple[Float[Tensor, "..."], ...],
    z: Float[Tensor, "B L E"],
    *,
    backend: str = "auto",
) -> Float[Tensor, "B L E"]:
    """The two directions of a Vim block, averaged and gated: (y_ahead + y_back) / 2 * silu(z). Vim, Algorithm 1.

    ahead, back  the first seven arguments of `selective_scan` but z: u, delta, A, B, C, D, delta_bias, each with its
                 own u; delta before softplus. `back` walks from L - 1 down to 0.
    Returns (B, L, E) in u's dtype. Raises as `selective_scan` does.
    """
    chosen = choose_backend(backend, z.device)
    if chosen in ("numba", "triton"):
        if chosen == "numba":
            from minivim.kernels.scan_pair import bidirectional_scan as scan
        else:
            from minivim.kernels.scan_gpu import bidirectional_scan as scan
        for *tensors, delta_bias in (ahead, back):
            _check_inputs(*tensors, z, delta_bias, None)
        return scan(ahead, back, z)
    y = [
        selective_scan(*tensors[:6], z, tensors[6], True, reverse=reverse, backend=backend)
        for tensors, reverse in ((ahead, False), (back, True))
    ]
    return (y[0] + y[1]) / 2
