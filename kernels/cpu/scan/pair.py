"""Both directions of a Vim block in one operator: two scans that share the gate z, and the mean of the two.

out = (scan(forward) + scan(backward, reversed)) / 2 * silu(z)
"""

import torch
from minivim.kernels import operators
from minivim.kernels.cpu.scan.launch import backward, direction, fake_gradients, forward, in_dtypes, padded, slots
from minivim.kernels.operators import cast, compute_dtype
from torch import Tensor


def both(tensors, softplus: bool, dtype: torch.dtype):
    """The two directions from the fourteen tensors u, delta, A, B, C, D, delta_bias, first forward, then backward."""
    ahead = direction(*tensors[:7], softplus, False, dtype)
    return [ahead, direction(*tensors[7:14], softplus, True, dtype)]


@operators.operator("scan_pair_cpu", "numba")
def scan_pair(
    u_f: Tensor,
    delta_f: Tensor,
    A_f: Tensor,
    B_f: Tensor,
    C_f: Tensor,
    D_f: Tensor,
    bias_f: Tensor,
    u_b: Tensor,
    delta_b: Tensor,
    A_b: Tensor,
    B_b: Tensor,
    C_b: Tensor,
    D_b: Tensor,
    bias_b: Tensor,
    z: Tensor,
    softplus: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """out (B, L, E) and the saved states of both directions."""
    tensors = (u_f, delta_f, A_f, B_f, C_f, D_f, bias_f, u_b, delta_b, A_b, B_b, C_b, D_b, bias_b)
    return forward(both(tensors, softplus, compute_dtype(u_f)), z, None, save, u_f.dtype)


@scan_pair.register_fake
def _(u_f, delta_f, A_f, B_f, C_f, D_f, bias_f, u_b, delta_b, A_b, B_b, C_b, D_b, bias_b, z, softplus, save):
    batch, L, E = u_f.shape
    states = u_f.new_empty(2, batch, slots(L, save), padded(A_f), E, dtype=compute_dtype(u_f))
    return u_f.new_empty(u_f.shape), states


@operators.operator("scan_pair_cpu_backward", "numba")
def scan_pair_backward(tensors: list[Tensor], z: Tensor, states: Tensor, dout: Tensor, softplus: bool) -> list[Tensor]:
    """The gradients of the fourteen tensors, in their order, and of z."""
    gradients, dz = backward(both(tensors, softplus, states.dtype), z, states, dout, None)
    ahead, back = (in_dtypes(g, tensors[i : i + 5])[:7] for g, i in zip(gradients, (0, 7), strict=True))
    return [*ahead, *back, cast(dz, z.dtype)]


@scan_pair_backward.register_fake
def _(tensors, z, states, dout, softplus):
    fakes = (fake_gradients(*tensors[i : i + 5], states.dtype)[:7] for i in (0, 7))
    return [gradient for fake in fakes for gradient in fake] + [z.new_empty(z.shape)]


def save_inputs(ctx, inputs, output):
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def scan_pair_gradient(ctx, saved, dout, _):
    if dout is None:
        return (None,) * 17
    *tensors, z, states = saved
    gradients = operators.entry(scan_pair_backward, tensors)(tensors, z, states, dout, ctx.softplus)
    return *(cast(g, x.dtype) for g, x in zip(gradients, (*tensors, z), strict=True)), None, None


operators.differentiate(scan_pair, save_inputs, scan_pair_gradient)


def bidirectional_scan(ahead: tuple[Tensor, ...], back: tuple[Tensor, ...], z: Tensor) -> Tensor:
    """Mean of both directions, gated; ahead, back: (u, delta, A, B, C, D, delta_bias), delta before softplus."""
    operators.check_states(ahead[2], "numba")
    tensors = (*ahead, *back, z)
    save = operators.wants_gradient(tensors)
    out, _ = operators.entry(scan_pair, tensors, save)(*tensors, True, save)
    return out
