"""Depthwise causal convolution and SiLU on a CPU, channel-last, forward and backward.

    s[t] = bias + sum_k w[k] x[t - K + 1 + k]        y[t] = silu(s[t])
    ds[t] = dy[t] silu'(s[t])     dx[t] = sum_k w[k] ds[t + K - 1 - k]     dw[k] = sum_{b,t} ds[t] x[t - K + 1 + k]

Tasks, slabs, groups, strides and the int64 array as in `scan/forward.py`; w is (E, K), contiguous. A tile is TILE
steps of LANES channels; the backward pass goes back in time and keeps the K - 1 values of ds that the next tile
needs. All channels of a group take their turn at a tile before time goes on, so that each line of the cache is
fetched once.
"""

from minivim.kernels.cpu.lanes import (
    LANES,
    fma,
    load,
    load_four,
    load_part,
    next_task,
    pointer,
    prefetch,
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
def convolve(x_p, row, x_t, first, steps, e, count, ahead, weights, place, width, bias, K, x, s, dtype):
    """The sums s of one tile; x receives the tile's inputs and, before them, the K - 1 that they look back on."""
    for i in range(steps + K - 1):
        t = first + i - K + 1
        x_i = zero(dtype)
        if t >= 0:
            x_i = load_part(x_p, row + t * x_t + e, count)
        store(x, i * LANES, x_i)
        prefetch(x_p, row + (t + ahead) * x_t + e)
    for i in range(steps):
        s_i = bias
        for k in range(K):
            s_i = fma(load(weights, k * width + place), load(x, (i + k) * LANES), s_i)
        store(s, i * LANES, s_i)


@njit(error_model="numpy")
def pack(w, start, width, E, K, weights, dtype):
    """The weights of a group, transposed to (K, width); zero beyond the last channel."""
    w_p = pointer(w, dtype)
    for k in range(K):
        for i in range(width):
            weights[k * width + i] = w_p[(start + i) * K + k] if start + i < E else 0.0


@njit(error_model="numpy")
def forward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, K, x, x_b, x_t, y, y_b, y_t, w, bias = unpack(counter, 16)
    x_p, y_p = pointer(x, dtype), pointer(y, dtype)
    inputs, tile = stack((TILE + K) * LANES, dtype), stack(TILE * LANES, dtype)
    blocks = (E + LANES - 1) // LANES
    weights = stack(K * LANES * ((blocks + groups - 1) // groups), dtype)
    task = next_task(counter)
    while task < tasks:
        slab, group = task // groups, task % groups
        start, stop = group * blocks // groups * LANES, (group + 1) * blocks // groups * LANES
        width = stop - start
        pack(w, start, width, E, K, weights, dtype)
        for b in range(slab * batch // slabs, (slab + 1) * batch // slabs):
            for first in range(0, L, TILE):
                steps = min(TILE, L - first)
                for e in range(start, stop, LANES):
                    count, place = E - e, e - start
                    bias_e = load_part(pointer(bias, dtype), e, count)
                    convolve(
                        x_p,
                        b * x_b,
                        x_t,
                        first,
                        steps,
                        e,
                        count,
                        TILE,
                        weights,
                        place,
                        width,
                        bias_e,
                        K,
                        inputs,
                        tile,
                        dtype,
                    )
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s = load_four(tile, i)
                        store(tile, i, s * sigmoid(s))
                    for i in range(steps):
                        store_part(y_p, b * y_b + (first + i) * y_t + e, load(tile, i * LANES), count)
        task = next_task(counter)


@njit(error_model="numpy")
def backward_tile(dx_p, dx_0, d_t, steps, count, weights, sums, place, width, K, x, ds, dtype):
    """dx of one tile, and what it adds to dw and dbias; behind the tile's own ds stand K - 1 values of the next."""
    for i in range(steps):
        dx = zero(dtype)
        for k in range(K):
            dx = fma(load(weights, k * width + place), load(ds, (i + K - 1 - k) * LANES), dx)
        store_part(dx_p, dx_0 + i * d_t, dx, count)
    for k in range(K):
        sum_k = load(sums, k * width + place)
        for i in range(steps):
            sum_k = fma(load(ds, i * LANES), load(x, (i + k) * LANES), sum_k)
        store(sums, k * width + place, sum_k)
    sum_bias = load(sums, K * width + place)
    for i in range(steps):
        sum_bias = sum_bias + load(ds, i * LANES)
    store(sums, K * width + place, sum_bias)


@njit(error_model="numpy")
def backward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, K, x, x_b, x_t, dy, dy_b, dy_t, w, bias, dx, d_b, d_t, dw = unpack(
        counter, 20
    )
    x_p, dy_p, dx_p, dw_p = pointer(x, dtype), pointer(dy, dtype), pointer(dx, dtype), pointer(dw, dtype)
    ds, dy_tile, inputs = stack((TILE + K) * LANES, dtype), stack(TILE * LANES, dtype), stack((TILE + K) * LANES, dtype)
    blocks, chunks = (E + LANES - 1) // LANES, (L + TILE - 1) // TILE
    widest = LANES * ((blocks + groups - 1) // groups)
    weights, sums, after = stack(K * widest, dtype), stack((K + 1) * widest, dtype), stack(K * widest, dtype)
    task = next_task(counter)
    while task < tasks:
        slab, group = task // groups, task % groups
        start, stop = group * blocks // groups * LANES, (group + 1) * blocks // groups * LANES
        width = stop - start
        pack(w, start, width, E, K, weights, dtype)
        for i in range((K + 1) * width):
            sums[i] = 0.0
        for b in range(slab * batch // slabs, (slab + 1) * batch // slabs):
            for i in range((K - 1) * width):
                after[i] = 0.0
            for chunk in range(chunks - 1, -1, -1):
                first = chunk * TILE
                steps = min(TILE, L - first)
                for e in range(start, stop, LANES):
                    count, place = E - e, e - start
                    bias_e = load_part(pointer(bias, dtype), e, count)
                    convolve(
                        x_p,
                        b * x_b,
                        x_t,
                        first,
                        steps,
                        e,
                        count,
                        -TILE,
                        weights,
                        place,
                        width,
                        bias_e,
                        K,
                        inputs,
                        ds,
                        dtype,
                    )
                    for i in range(steps):
                        dy_i = b * dy_b + (first + i) * dy_t + e
                        store(dy_tile, i * LANES, load_part(dy_p, dy_i, count))
                        prefetch(dy_p, dy_i - TILE * dy_t)
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s = load_four(ds, i)
                        g = sigmoid(s)
                        store(ds, i, load_four(dy_tile, i) * g * ((1.0 - g) * s + 1.0))
                    for k in range(K - 1):
                        store(ds, (steps + k) * LANES, load(after, k * width + place))
                    dx_0 = b * d_b + first * d_t + e
                    backward_tile(dx_p, dx_0, d_t, steps, count, weights, sums, place, width, K, inputs, ds, dtype)
                    for k in range(K - 1):
                        store(after, k * width + place, load(ds, k * LANES))
        for k in range(K + 1):  # the last row is the gradient of the bias
            for e in range(start, stop, LANES):
                store_part(dw_p, (slab * (K + 1) + k) * E + e, load(sums, k * width + e - start), E - e)
        task = next_task(counter)


def forward_float32(arguments):
    forward(arguments, float32)


def forward_float64(arguments):
    forward(arguments, float64)


def backward_float32(arguments):
    backward(arguments, float32)


def backward_float64(arguments):
    backward(arguments, float64)
