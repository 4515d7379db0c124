"""Add and RMSNorm on the CPU as a PyTorch operator: autograd, torch.compile and torch.export see one opaque op."""

import torch
from minivim.kernels import operators
from minivim.kernels.cpu import host
from minivim.kernels.cpu.host import address_of
from minivim.kernels.cpu.norm import loops
from minivim.kernels.cpu.records import Header, Norm, NormGradient
from minivim.kernels.operators import cast
from torch import Tensor


def slabs_of(x: Tensor) -> Header:
    """Slabs of the rows, which are never cut."""
    return host.header(x.numel() // x.shape[-1], 1, x.shape[-1], groups=1)


def contiguous(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else cast(x, dtype).contiguous()


@operators.operator("add_norm_cpu", "numba")
def add_norm(update: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """RMSNorm of update + residual in the weight's dtype, that sum, and the factor by which each row was scaled."""
    dtype = torch.promote_types(update.dtype, torch.float32)
    update, residual, w = (contiguous(x, dtype) for x in (update, residual, weight))
    total, y, scales = torch.empty_like(update), torch.empty_like(update), update.new_empty(update.shape[:-1])
    record = Norm(
        update=update.data_ptr(),
        residual=address_of(residual),
        weight=w.data_ptr(),
        total=total.data_ptr(),
        y=y.data_ptr(),
        scales=scales.data_ptr(),
        eps=eps,
    )
    host.run(loops, "forward", dtype, slabs_of(update), [record], update.numel())
    return cast(y, weight.dtype), total, scales


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
    w, dy, dtotal = (contiguous(x, dtype) for x in (weight, dy, dtotal))
    head = slabs_of(total)
    dr, sums = torch.empty_like(total), total.new_empty(head.slabs, head.E)
    record = NormGradient(
        total=total.data_ptr(),
        weight=w.data_ptr(),
        scales=scales.data_ptr(),
        dy=dy.data_ptr(),
        dtotal=address_of(dtotal),
        dr=dr.data_ptr(),
        sums=sums.data_ptr(),
    )
    host.run(loops, "backward", dtype, head, [record], total.numel())
    return dr, cast(sums.sum(0), weight.dtype)


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
    return cast(dr, ctx.dtype), dr if ctx.add else None, dw, None


operators.differentiate(add_norm, save_inputs, add_norm_gradient)


def add_rms_norm(update: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(RMSNorm of the sum, the sum)."""
    tensors = (update, residual, weight)
    y, total, _ = operators.entry(add_norm, tensors, operators.wants_gradient(tensors))(*tensors, eps)
    return y, total
