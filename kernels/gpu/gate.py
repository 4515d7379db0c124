"""The gate of a Vim block on a GPU: the mean of the directions times silu(z), and back, in one pass each."""

import triton
import triton.language as tl
from minivim.kernels.gpu.maths import sigmoid


@triton.jit
def gate_forward(y, z, out, rows, L, E, z_b, z_t, R: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """out = mean of y (R, rows, E) * silu(z); z is strided (B, L, E)."""
    row, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < E
    total = tl.zeros([BLOCK], ACC)
    for direction in tl.static_range(R):
        total += tl.load(y + (direction * rows + row) * E + e, mask=inside, other=0.0).to(ACC)
    z_i = tl.load(z + row // L * z_b + row % L * z_t + e, mask=inside, other=0.0).to(ACC)
    tl.store(out + row * E + e, (total * (1.0 / R) * z_i * sigmoid(z_i)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward(y, z, dout, dy, dz, rows, L, E, z_b, z_t, R: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """dy, the same for all directions, and dz."""
    row, e = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < E
    total = tl.zeros([BLOCK], ACC)
    for direction in tl.static_range(R):
        total += tl.load(y + (direction * rows + row) * E + e, mask=inside, other=0.0).to(ACC)
    z_i = tl.load(z + row // L * z_b + row % L * z_t + e, mask=inside, other=0.0).to(ACC)
    g = tl.load(dout + row * E + e, mask=inside, other=0.0).to(ACC) * (1.0 / R)
    s = sigmoid(z_i)
    tl.store(dy + row * E + e, (g * z_i * s).to(dy.dtype.element_ty), mask=inside)
    tl.store(dz + row * E + e, (g * total * s * (1.0 + z_i * (1.0 - s))).to(dz.dtype.element_ty), mask=inside)
