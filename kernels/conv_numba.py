"""Depthwise causal convolution and SiLU on a CPU, channel-last, forward and backward.

    s[t] = bias + sum_k w[k] x[t - K + 1 + k]        y[t] = silu(s[t])
    ds[t] = dy[t] silu'(s[t])     dx[t] = sum_k w[k] ds[t + K - 1 - k]     dw[k] = sum_{b,t} ds[t] x[t - K + 1 + k]

Tasks, slabs, groups, strides and the int64 array as in `scan_numba`; w is transposed to (K, E). A tile is TILE steps of
LANES channels; the backward pass goes back in time and keeps the K - 1 values of ds that the next tile needs.
"""

from numba import float32, float64, int64, njit

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

TILE = 32  # steps, a multiple of 4


@njit(error_model="numpy")
def convolve(x_p, row, x_t, first, steps, e, count, weights, bias, K, tile, dtype):
    """The sums s of one tile."""
    for i in range(steps):
        t = first + i
        s = bias
        for k in range(max(0, K - 1 - t), K):
            s = fma(load(weights, k * LANES), load_part(x_p, row + (t - K + 1 + k) * x_t + e, count), s)
        store(tile, i * LANES, s)


@njit(error_model="numpy")
def load_weights(w, E, e, count, K, weights, dtype):
    for k in range(K):
        store(weights, k * LANES, load_part(pointer(w, dtype), k * E + e, count))


@njit(error_model="numpy")
def forward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, K, x, x_b, x_t, y, y_b, y_t, w, bias = unpack(counter, 16)
    x_p, y_p = pointer(x, dtype), pointer(y, dtype)
    weights, tile = stack(K * LANES, dtype), stack(TILE * LANES, dtype)
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
                    convolve(x_p, b * x_b, x_t, first, steps, e, count, weights, bias_e, K, tile, dtype)
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s = load_four(tile, i)
                        store(tile, i, s * sigmoid(s))
                    for i in range(steps):
                        store_part(y_p, b * y_b + (first + i) * y_t + e, load(tile, i * LANES), count)
        task = next_task(counter)


@njit(error_model="numpy")
def backward_tile(x_p, row, x_t, dx_p, dx_row, d_t, first, steps, e, count, weights, sums, K, ds, dtype):
    """dx of one tile, and what it adds to dw and dbias; behind the tile's own ds stand K - 1 values of the next tile."""
    for i in range(steps):
        t, ds_i = first + i, load(ds, i * LANES)
        store(sums, K * LANES, load(sums, K * LANES) + ds_i)
        dx = zero(dtype)
        for k in range(K):
            dx = fma(load(weights, k * LANES), load(ds, (i + K - 1 - k) * LANES), dx)
            if t - K + 1 + k >= 0:
                x_k = load_part(x_p, row + (t - K + 1 + k) * x_t + e, count)
                store(sums, k * LANES, fma(ds_i, x_k, load(sums, k * LANES)))
        store_part(dx_p, dx_row + t * d_t + e, dx, count)


@njit(error_model="numpy")
def backward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, K, x, x_b, x_t, dy, dy_b, dy_t, w, bias, dx, d_b, d_t, dw = unpack(counter, 20)
    x_p, dy_p, dx_p, dw_p = pointer(x, dtype), pointer(dy, dtype), pointer(dx, dtype), pointer(dw, dtype)
    weights, sums, after = stack(K * LANES, dtype), stack((K + 1) * LANES, dtype), stack(K * LANES, dtype)
    ds, dy_tile = stack((TILE + K) * LANES, dtype), stack(TILE * LANES, dtype)
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
                    convolve(x_p, b * x_b, x_t, first, steps, e, count, weights, bias_e, K, ds, dtype)
                    for i in range(steps):
                        store(dy_tile, i * LANES, load_part(dy_p, b * dy_b + (first + i) * dy_t + e, count))
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s = load_four(ds, i)
                        g = sigmoid(s)
                        store(ds, i, load_four(dy_tile, i) * g * ((1.0 - g) * s + 1.0))
                    for k in range(K - 1):
                        store(ds, (steps + k) * LANES, load(after, k * LANES))
                    backward_tile(
                        x_p, b * x_b, x_t, dx_p, b * d_b, d_t, first, steps, e, count, weights, sums, K, ds, dtype
                    )
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
