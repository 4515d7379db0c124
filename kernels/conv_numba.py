"""Depthwise causal convolution and SiLU on a CPU, channel-last, forward and backward.

    s[t] = bias + sum_k w[k] x[t - K + 1 + k]        y[t] = silu(s[t])
    ds[t] = dy[t] silu'(s[t])     dx[t] = sum_k w[k] ds[t + K - 1 - k]     dw[k] = sum_{b,t} ds[t] x[t - K + 1 + k]

Tasks, slabs, groups, strides and the int64 array as in `scan_numba`; w is transposed to (K, E). A tile is TILE steps of
LANES channels; the backward pass goes back in time and keeps the K - 1 values of ds that the next tile needs.
"""

from minivim.kernels.lanes import (
    LANES,
    fma,
    load,
    load_four,
    load_part,
    next_task,
    pointer,
    sigmoid,
    stack,
    store,
    store_part,
    unpack,
    zero,
)
from numba import float32, float64, int64, njit

TILE = 32  # steps, a multiple of 4


@njit(error_model="numpy")
def convolve(x_p, row, x_t, first, steps, e, count, weights, bias, K, x, s, dtype):
    """The sums s of one tile; x receives the tile's inputs and, before them, the K - 1 that they look back on."""
    for i in range(steps + K - 1):
        t = first + i - K + 1
        x_i = zero(dtype)
        if t >= 0:
            x_i = load_part(x_p, row + t * x_t + e, count)
        store(x, i * LANES, x_i)
    for i in range(steps):
        s_i = bias
        for k in range(K):
            s_i = fma(load(weights, k * LANES), load(x, (i + k) * LANES), s_i)
        store(s, i * LANES, s_i)


@njit(error_model="numpy")
def load_weights(w, E, e, count, K, weights, dtype):
    for k in range(K):
        store(weights, k * LANES, load_part(pointer(w, dtype), k * E + e, count))


@njit(error_model="numpy")
def forward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, K, x, x_b, x_t, y, y_b, y_t, w, bias = unpack(counter, 16)
    x_p, y_p = pointer(x, dtype), pointer(y, dtype)
    weights, inputs = stack(K * LANES, dtype), stack((TILE + K) * LANES, dtype)
    tile = stack(TILE * LANES, dtype)
    blocks = (E + LANES - 1) // LANES
    task = next_task(counter)
    while task < tasks:
        slab, group = task // groups, task % groups
        for block in range(group * blocks // groups, (group + 1) * blocks // groups):
            e, count = block * LANES, E - block * LANES
            bias_e = load_part(pointer(bias, dtype), e, count)
            load_weights(w, E, e, count, K, weights, dtype)
            for b in range(slab * batch // slabs, (slab + 1) * batch // slabs):
                for first in range(0, L, TILE):
                    steps = min(TILE, L - first)
                    convolve(x_p, b * x_b, x_t, first, steps, e, count, weights, bias_e, K, inputs, tile, dtype)
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s = load_four(tile, i)
                        store(tile, i, s * sigmoid(s))
                    for i in range(steps):
                        store_part(y_p, b * y_b + (first + i) * y_t + e, load(tile, i * LANES), count)
        task = next_task(counter)


@njit(error_model="numpy")
def backward_tile(dx_p, place, d_t, steps, count, weights, sums, K, x, ds, dtype):
    """dx of one tile, and what it adds to dw and dbias; behind the tile's own ds stand K - 1 values of the next."""
    for i in range(steps):
        dx = zero(dtype)
        for k in range(K):
            dx = fma(load(weights, k * LANES), load(ds, (i + K - 1 - k) * LANES), dx)
        store_part(dx_p, place + i * d_t, dx, count)
    for k in range(K):
        sum_k = load(sums, k * LANES)
        for i in range(steps):
            sum_k = fma(load(ds, i * LANES), load(x, (i + k) * LANES), sum_k)
        store(sums, k * LANES, sum_k)
    sum_bias = load(sums, K * LANES)
    for i in range(steps):
        sum_bias = sum_bias + load(ds, i * LANES)
    store(sums, K * LANES, sum_bias)


@njit(error_model="numpy")
def backward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, K, x, x_b, x_t, dy, dy_b, dy_t, w, bias, dx, d_b, d_t, dw = unpack(
        counter, 20
    )
    x_p, dy_p, dx_p, dw_p = pointer(x, dtype), pointer(dy, dtype), pointer(dx, dtype), pointer(dw, dtype)
    weights, sums, after = stack(K * LANES, dtype), stack((K + 1) * LANES, dtype), stack(K * LANES, dtype)
    ds, dy_tile = stack((TILE + K) * LANES, dtype), stack(TILE * LANES, dtype)
    inputs = stack((TILE + K) * LANES, dtype)
    blocks, chunks = (E + LANES - 1) // LANES, (L + TILE - 1) // TILE
    task = next_task(counter)
    while task < tasks:
        slab, group = task // groups, task % groups
        for block in range(group * blocks // groups, (group + 1) * blocks // groups):
            e, count = block * LANES, E - block * LANES
            bias_e = load_part(pointer(bias, dtype), e, count)
            load_weights(w, E, e, count, K, weights, dtype)
            for k in range(K + 1):
                store(sums, k * LANES, zero(dtype))
            for b in range(slab * batch // slabs, (slab + 1) * batch // slabs):
                for k in range(K - 1):
                    store(after, k * LANES, zero(dtype))
                for chunk in range(chunks - 1, -1, -1):
                    first = chunk * TILE
                    steps = min(TILE, L - first)
                    convolve(x_p, b * x_b, x_t, first, steps, e, count, weights, bias_e, K, inputs, ds, dtype)
                    for i in range(steps):
                        store(dy_tile, i * LANES, load_part(dy_p, b * dy_b + (first + i) * dy_t + e, count))
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s = load_four(ds, i)
                        g = sigmoid(s)
                        store(ds, i, load_four(dy_tile, i) * g * ((1.0 - g) * s + 1.0))
                    for k in range(K - 1):
                        store(ds, (steps + k) * LANES, load(after, k * LANES))
                    place = b * d_b + first * d_t + e
                    backward_tile(dx_p, place, d_t, steps, count, weights, sums, K, inputs, ds, dtype)
                    for k in range(K - 1):
                        store(after, k * LANES, load(ds, k * LANES))
            for k in range(K + 1):  # the last row is the gradient of the bias
                store_part(dw_p, (slab * (K + 1) + k) * E + e, load(sums, k * LANES), count)
        task = next_task(counter)


def forward_float32(arguments):
    forward(arguments, float32)


def forward_float64(arguments):
    forward(arguments, float64)


def backward_float32(arguments):
    backward(arguments, float32)


def backward_float64(arguments):
    backward(arguments, float64)
