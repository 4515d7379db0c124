"""The functions that all Triton kernels share, by powers of two, which the hardware has."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(x):
    """log(1 + e) with e = exp(x); log(w) e / (w - 1) with w = 1 + e as rounded is exact where 1 + e loses digits."""
    e = tl.exp2(x * LOG2E)
    w = 1.0 + e
    return tl.where(x > 20.0, x, tl.where(w == 1.0, e, tl.log2(w) * LN2 * (e / (w - 1.0))))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(x * -LOG2E))


@triton.jit
def step_size(raw, inside, SOFTPLUS: tl.constexpr):
    """delta from what was loaded plus its bias; 0, which leaves the state alone, beyond the last channel or step."""
    delta = softplus(raw) if SOFTPLUS else raw
    return tl.where(inside, delta, 0.0)
