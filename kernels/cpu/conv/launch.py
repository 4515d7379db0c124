"""The CPU convolution as a PyTorch operator: autograd, torch.compile and torch.export see one opaque op."""

from minivim.kernels import operators
from minivim.kernels.cpu import host
from minivim.kernels.cpu.conv import loops
from minivim.kernels.cpu.host import groups_of, header, rows, walk
from minivim.kernels.cpu.records import Conv, ConvGradient
from minivim.kernels.operators import cast, compute_dtype
from torch import Tensor


@operators.operator("conv_cpu", "numba")
def conv(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """silu of the depthwise causal convolution; x (B, L, E), weight (E, K), bias (E,); reverse looks ahead."""
    dtype, (batch, L, E), K = compute_dtype(x), x.shape, weight.shape[1]
    x_rows, w, bias = rows(x, dtype), cast(weight, dtype).contiguous(), rows(bias, dtype)
    y = x_rows.new_empty(batch, L, E)
    record = Conv(K=K, x=walk(x_rows, reverse), weight=w.data_ptr(), bias=bias.data_ptr(), y=walk(y, reverse))
    host.run(loops, "forward", dtype, header(batch, L, E, groups_of(E)), [record], batch * L * E * K)
    return cast(y, x.dtype)


@conv.register_fake
def _(x, weight, bias, reverse):
    return x.new_empty(x.shape)


@operators.operator("conv_cpu_backward", "numba")
def conv_backward(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    dtype, (batch, L, E), K = compute_dtype(x), x.shape, weight.shape[1]
    x_rows, dy, w = rows(x, dtype), rows(dy, dtype), cast(weight, dtype).contiguous()
    bias_row = rows(bias, dtype)
    head = header(batch, L, E, groups_of(E))
    dx, sums = x_rows.new_empty(batch, L, E), x_rows.new_empty(head.slabs, K + 1, E)
    record = ConvGradient(
        K=K,
        x=walk(x_rows, reverse),
        weight=w.data_ptr(),
        bias=bias_row.data_ptr(),
        dy=walk(dy, reverse),
        dx=walk(dx, reverse),
        sums=sums.data_ptr(),
    )
    host.run(loops, "backward", dtype, head, [record], batch * L * E * K)
    total = sums.sum(0)
    return cast(dx, x.dtype), cast(total[:K].t().contiguous(), weight.dtype), cast(total[K].clone(), bias.dtype)


@conv_backward.register_fake
def _(x, weight, bias, dy, reverse):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def save_inputs(ctx, inputs, output):
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def conv_gradient(ctx, saved, dy):
    return *operators.entry(conv_backward, saved)(*saved, dy, ctx.reverse), None


operators.differentiate(conv, save_inputs, conv_gradient)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    tensors = (x, weight, bias)
    return operators.entry(conv, tensors, operators.wants_gradient(tensors))(*tensors, reverse)
