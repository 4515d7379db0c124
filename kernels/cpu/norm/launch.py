"""Add and RMSNorm on the CPU as a PyTorch operator: autograd, torch.compile and torch.export see one opaque op."""

import struct

import torch
from minivim.kernels import operators
from minivim.kernels.cpu import host
from minivim.kernels.cpu.host import partition, pointer
from minivim.kernels.cpu.norm import loops
from torch import Tensor


def sizes(x: Tensor) -> list[int]:
    """Rows, D, and one group of channels."""
    return [x.numel() // x.shape[-1], x.shape[-1], 1]


def rows(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()


@operators.operator("add_norm_cpu", "numba")
def add_norm(update: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm of update + residual in the weight's dtype, that sum, and the factor by which each row was scaled."""
    dtype = torch.promote_types(update.dtype, torch.float32)
    update, residual, w = (rows(x, dtype) for x in (update, residual, weight))
    total, y, scales = torch.empty_like(update), torch.empty_like(update), update.new_empty(update.shape[:-1])
    fields = [pointer(x) for x in (update, residual, w, total, y, scales)]
    fields.append(*struct.unpack("q", struct.pack("d", eps)))
    host.run(loops, "forward", dtype, sizes(update), fields, update.numel())
    return y.to(weight.dtype), total, scales


@add_norm.register_fake
def _(update, residual, weight, eps):
    dtype = torch.promote_types(update.dtype, torch.float32)
    total, scales = update.new_empty(update.shape, dtype=dtype), update.new_empty(update.shape[:-1], dtype=dtype)
    return update.new_empty(update.shape, dtype=weight.dtype), total, scales


@operators.operator("add_norm_cpu_backward", "numba")
def add_norm_backward(
    total: Tensor, weight: Tensor, scales: Tensor, dy: Tensor, dtotal: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of the sum, which update and residual share, and of the weight."""
    dtype = total.dtype
    w, dy, dtotal = (rows(x, dtype) for x in (weight, dy, dtotal))
    dr, dw = torch.empty_like(total), total.new_empty(partition(sizes(total)[0], 1)[0], total.shape[-1])
    fields = [pointer(x) for x in (total, w, scales, dy, dtotal, dr, dw)]
    host.run(loops, "backward", dtype, sizes(total), fields, total.numel())
    return dr, dw.sum(0).to(weight.dtype)


@add_norm_backward.register_fake
def _(total, weight, scales, dy, dtotal):
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def save_inputs(ctx, inputs, output):
    update, residual, weight, _ = inputs
    ctx.dtype, ctx.add = update.dtype, residual is not None
    ctx.save_for_backward(output[1], weight, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def add_norm_gradient(ctx, saved, dy, dtotal, _):
    total, weight, scales = saved
    if dy is None:
        dy = torch.zeros_like(total)
    dr, dw = operators.entry(add_norm_backward, (total,))(total, weight, scales, dy, dtotal)
    return dr.to(ctx.dtype), dr if ctx.add else None, dw, None


operators.differentiate(add_norm, save_inputs, add_norm_gradient)


def add_rms_norm(update: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(RMSNorm of the sum, the sum)."""
    tensors = (update, residual, weight)
    y, total, _ = operators.entry(add_norm, tensors, operators.wants_gradient(tensors))(*tensors, eps)
    return y, total
