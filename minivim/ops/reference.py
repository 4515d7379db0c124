"""The scan, its convolution and its norm, written to be read: every backend computes these functions.

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * u[t]
    y[t] = C[t] . h[t] + D * u[t]              out[t] = y[t] * silu(z[t])

Eq. 2 of Mamba (arXiv 2312.00752) with the discretization that its code and Vim's use: A by ZOH, B by Euler.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minivim.kernels.operators import compute_dtype


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


def conv_reference(
    x: Float[Tensor, "B L E"], weight: Float[Tensor, "E K"], bias: Float[Tensor, " E"], reverse: bool = False
) -> Float[Tensor, "B L E"]:
    """The convolution through F.conv1d, which wants time last: two transposes and, in reverse, two flips."""
    y = x.transpose(1, 2)
    y = F.pad(y.flip(-1) if reverse else y, (weight.shape[1] - 1, 0))
    y = F.conv1d(y, weight[:, None, :], bias, groups=x.shape[2])
    return F.silu((y.flip(-1) if reverse else y).transpose(1, 2))


def add_norm_reference(
    update: Float[Tensor, "B L D"], residual: Float[Tensor, "B L D"] | None, weight: Float[Tensor, " D"], eps: float
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """The two steps one after the other: (RMSNorm of the sum in the weight's dtype, the sum)."""
    total = update.to(torch.promote_types(update.dtype, torch.float32))
    if residual is not None:
        total = residual + total
    return F.rms_norm(total.to(weight.dtype), weight.shape, weight, eps), total
