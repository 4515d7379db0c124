"""Depthwise convolution and SiLU on a GPU, in both directions of a Vim block at once: x is read from memory once.

    s_0[t] = bias_0 + sum_k w_0[k] x[t - K + 1 + k]      s_1[t] = bias_1 + sum_k w_1[k] x[t + K - 1 - k]
    y = silu(s)                                          ds = dy silu'(s)
    dx[t] = sum_k w_0[k] ds_0[t + K - 1 - k] + w_1[k] ds_1[t - K + 1 + k]

A program owns TIME steps of BLOCK channels. Neighbouring steps are loaded again for each k: the first cache has them.
One direction alone is the same code with DIRECTIONS = 1; REVERSE = 1 makes it the one that looks ahead.
"""

import triton
import triton.language as tl
from minivim.kernels.gpu.maths import sigmoid


@triton.jit
def shifted(rows, t, shift, L, stride, inside):
    """The tile's rows `shift` steps later, zero outside the sequence."""
    there = t + shift
    valid = (there >= 0) & (there < L)
    return tl.load(rows + there.to(tl.int64)[:, None] * stride, mask=valid[:, None] & inside[None, :], other=0.0)


@triton.jit
def sums(rows, weight, bias, r, t, e, L, E, stride, inside, K: tl.constexpr, ACC: tl.constexpr, REVERSE: tl.constexpr):
    """s of one direction; weight (directions, K, E), bias (directions, E)."""
    s = tl.load(bias + r * E + e, mask=inside, other=0.0)[None, :] + tl.zeros([t.shape[0], e.shape[0]], ACC)
    sign = 1 - 2 * (r + REVERSE)
    for k in tl.static_range(K):
        w = tl.load(weight + (r * K + k) * E + e, mask=inside, other=0.0)
        s += w[None, :] * shifted(rows, t, sign * (k - K + 1), L, stride, inside).to(ACC)
    return s


@triton.jit
def conv_forward(
    x, weight, bias, y, L, E, x_b, x_t,
    DIRECTIONS: tl.constexpr, K: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """y (directions, B, L, E)."""
    b, batch = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    t, e = tl.program_id(1) * TIME + tl.arange(0, TIME), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < E
    rows = x + b * x_b + e[None, :]
    for r in tl.static_range(DIRECTIONS):
        s = sums(rows, weight, bias, r, t, e, L, E, x_t, inside, K, ACC, REVERSE)
        place = ((r * batch + b) * L + t)[:, None] * E + e[None, :]
        tl.store(y + place, (s * sigmoid(s)).to(y.dtype.element_ty), mask=(t < L)[:, None] & inside[None, :])


@triton.jit
def conv_backward_sums(
    x, weight, bias, dy, ds, dweight, dbias, L, E, x_b, x_t, dy_r, dy_b, dy_t,
    DIRECTIONS: tl.constexpr, K: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """ds (directions, B, L, E), and each program's part of the gradients of weight and bias."""
    b, batch = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    t, e = tl.program_id(1) * TIME + tl.arange(0, TIME), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < E
    valid = (t < L)[:, None] & inside[None, :]
    rows = x + b * x_b + e[None, :]
    part = b * tl.num_programs(1) + tl.program_id(1)
    for r in tl.static_range(DIRECTIONS):
        s = sums(rows, weight, bias, r, t, e, L, E, x_t, inside, K, ACC, REVERSE)
        g = sigmoid(s)
        dy_i = tl.load(dy + r * dy_r + b * dy_b + t.to(tl.int64)[:, None] * dy_t + e[None, :], mask=valid, other=0.0)
        ds_i = dy_i.to(ACC) * g * (1.0 + s * (1.0 - g))
        tl.store(ds + ((r * batch + b) * L + t)[:, None] * E + e[None, :], ds_i.to(ds.dtype.element_ty), mask=valid)
        sign = 1 - 2 * (r + REVERSE)
        of = (r * batch * tl.num_programs(1) + part) * E + e
        tl.store(dbias + of, tl.sum(ds_i, axis=0), mask=inside)
        for k in tl.static_range(K):
            x_k = shifted(rows, t, sign * (k - K + 1), L, x_t, inside).to(ACC)
            of = ((r * batch * tl.num_programs(1) + part) * K + k) * E + e
            tl.store(dweight + of, tl.sum(ds_i * x_k, axis=0), mask=inside)


@triton.jit
def conv_backward_input(
    ds, weight, dx, L, E,
    DIRECTIONS: tl.constexpr, K: tl.constexpr, TIME: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """dx (B, L, E): the convolution of ds against its own direction."""
    b, batch = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    t, e = tl.program_id(1) * TIME + tl.arange(0, TIME), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < E
    total = tl.zeros([TIME, BLOCK], ACC)
    for r in tl.static_range(DIRECTIONS):
        rows = ds + (r * batch + b) * L * E + e[None, :]
        sign = 1 - 2 * (r + REVERSE)
        for k in tl.static_range(K):
            w = tl.load(weight + (r * K + k) * E + e, mask=inside, other=0.0)
            total += w[None, :] * shifted(rows, t, sign * (K - 1 - k), L, E, inside).to(ACC)
    place = (b * L + t)[:, None] * E + e[None, :]
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=(t < L)[:, None] & inside[None, :])
