"""The Triton convolution as a PyTorch operator, for one direction or both."""

import torch
import triton
from minivim.kernels import operators
from minivim.kernels.gpu.conv import kernels
from minivim.kernels.gpu.host import accumulator, rows
from minivim.kernels.operators import compute_dtype
from torch import Tensor

TIME, BLOCK = 32, 64  # steps and channels of a program


def given(first: Tensor, second: Tensor | None) -> list[Tensor]:
    """One tensor for each direction that there is."""
    return [first] if second is None else [first, second]


def launch(x: Tensor, weights: list[Tensor], biases: list[Tensor], reverse: bool):
    """(x, weight (directions, K, E), bias, grid, constants) as the kernels want them."""
    batch, L, E = x.shape
    acc = compute_dtype(x)
    weight = torch.stack([w.to(acc).t() for w in weights])
    fixed = {"DIRECTIONS": len(weights), "K": weight.shape[1], "TIME": TIME, "BLOCK": BLOCK, "REVERSE": int(reverse)}
    fixed["ACC"] = accumulator(acc)
    grid = (triton.cdiv(E, BLOCK), triton.cdiv(L, TIME), batch)
    return rows(x), weight, torch.stack([b.to(acc) for b in biases]), grid, fixed


@operators.operator("conv_gpu", "triton")
def conv(
    x: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor | None, bias_b: Tensor | None, reverse: bool
) -> Tensor:
    """silu of the convolutions (directions, B, L, E); the second, `*_b`, looks the other way than the first."""
    weights, biases = given(weight, weight_b), given(bias, bias_b)
    x, w, c, grid, fixed = launch(x, weights, biases, reverse)
    y = torch.empty(len(weights), *x.shape, dtype=x.dtype, device=x.device)
    kernels.conv_forward[grid](x, w, c, y, *x.shape[1:], *x.stride()[:2], **fixed)
    return y


@conv.register_fake
def _(x, weight, bias, weight_b, bias_b, reverse):
    return x.new_empty(1 if weight_b is None else 2, *x.shape)


@operators.operator("conv_gpu_backward", "triton")
def conv_backward(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], dy: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the weights (directions, E, K) and of the biases (directions, E)."""
    x, w, c, grid, fixed = launch(x, weights, biases, reverse)
    (directions, K, E), parts = w.shape, grid[1] * grid[2]
    dy = rows(dy)
    ds = torch.empty(directions, *x.shape, dtype=w.dtype, device=x.device)
    dweight = torch.empty(directions, parts, K, E, dtype=w.dtype, device=x.device)
    dbias = torch.empty(directions, parts, E, dtype=w.dtype, device=x.device)
    kernels.conv_backward_sums[grid](
        x, w, c, dy, ds, dweight, dbias, *x.shape[1:], *x.stride()[:2], *dy.stride()[:3], **fixed
    )
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kernels.conv_backward_input[grid](ds, w, dx, *x.shape[1:], **fixed)
    return dx, dweight.sum(1).transpose(1, 2), dbias.sum(1)


@conv_backward.register_fake
def _(x, weights, biases, dy, reverse):
    (E, K), R, acc = weights[0].shape, len(weights), compute_dtype(x)
    return x.new_empty(x.shape), x.new_empty(R, K, E, dtype=acc).transpose(1, 2), x.new_empty(R, E, dtype=acc)


def save_inputs(ctx, inputs, output):
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def conv_gradient(ctx, saved, dy):
    x, weight, bias, weight_b, bias_b = saved
    weights, biases = given(weight, weight_b), given(bias, bias_b)
    dx, dw, dbias = operators.entry(conv_backward, (x,))(x, weights, biases, dy, ctx.reverse)
    second = (None, None) if weight_b is None else (dw[1].to(weight_b.dtype), dbias[1].to(bias_b.dtype))
    return dx, dw[0].to(weight.dtype), dbias[0].to(bias.dtype), *second, None


operators.differentiate(conv, save_inputs, conv_gradient)


def causal_conv_silu(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
    """One direction, (B, L, E)."""
    tensors = (x, weight, bias, None, None)
    return operators.entry(conv, tensors, operators.wants_gradient(tensors))(*tensors, reverse)[0]


def bidirectional_conv_silu(x: Tensor, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    """Both directions (2, B, L, E), the first looking back, the second ahead."""
    tensors = (x, *first, *second)
    return operators.entry(conv, tensors, operators.wants_gradient(tensors))(*tensors, False)
