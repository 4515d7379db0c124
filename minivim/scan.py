"""The selective scan: its contract, the naive reference, and the choice of backend.

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * u[t]
    y[t] = C[t] . h[t] + D * u[t]              out[t] = y[t] * silu(z[t])

Eq. 2 of Mamba (arXiv 2312.00752) with the discretization that its code and Vim's use: A by ZOH, B by Euler.
The reference is written to be read, not to be fast.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def compute_dtype(u: Tensor) -> torch.dtype:
    """The dtype of the state: float64 for float64 input, else float32, whatever the input's precision."""
    return torch.float64 if u.dtype == torch.float64 else torch.float32


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
    """The scan as a loop over t; autograd differentiates it. Returns (out, last state). Mamba, Algorithm 2."""
    dtype = compute_dtype(u)
    out_dtype = u.dtype
    u, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    if initial_state is None:
        h = u.new_zeros(u.shape[0], *A.shape)
    else:
        h = initial_state.to(dtype)
    # unbind, because indexing u[:, t] makes autograd build a full zero tensor at every step.
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


def available_backends(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The backends that can run on `device`, best first."""
    return ("reference",)


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, *,
    initial_state=None, return_last_state=False, reverse=False, backend="auto",
):
    """Interim: validation and the fast backends follow."""
    out, last = scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse)
    return (out, last.float() if last.dtype != torch.float64 else last) if return_last_state else out
