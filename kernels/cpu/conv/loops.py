"""Depthwise causal convolution and SiLU on a CPU, channel-last, forward and backward.

    s[t] = bias + sum_k w[k] x[t - K + 1 + k]        y[t] = silu(s[t])
    ds[t] = dy[t] silu'(s[t])     dx[t] = sum_k w[k] ds[t + K - 1 - k]     dw[k] = sum_{b,t} ds[t] x[t - K + 1 + k]

A tile is TILE steps of LANES channels; the backward pass goes back in time and keeps the K - 1 values of ds that the
next tile needs. All channels of a task take their turn at a tile before time goes on, so that each line of the cache
is fetched once.
"""

from minivim.kernels.cpu.lanes import (
    LANES,
    compiled,
    fma,
    load,
    load_four,
    load_part,
    pointer,
    prefetch,
    sigmoid,
    stack,
    store,
    store_part,
    unpack,
    zero,
)
from minivim.kernels.cpu.records import Conv, ConvGradient, Header
from minivim.kernels.cpu.tasks import Tile, load_tile, next_task, place_of, store_tile, widest
from numba import float32, float64

TILE = 32  # steps, a multiple of 4


@compiled
def convolve(part, task, tile, ahead, weights, x, s, dtype):
    """The sums s of one tile; x receives the tile's inputs and, before them, the K - 1 that they look back on."""
    K, x_p, row = part.K, pointer(part.x.start, dtype), tile.b * part.x.row + tile.e
    for i in range(tile.steps + K - 1):
        t = tile.first + i - K + 1
        x_i = zero(dtype)
        if t >= 0:
            x_i = load_part(x_p, row + t * part.x.step, tile.count)
        store(x, i * LANES, x_i)
        prefetch(x_p, row + (t + ahead) * part.x.step)
    bias = load_part(pointer(part.bias, dtype), tile.e, tile.count)
    for i in range(tile.steps):
        s_i = bias
        for k in range(K):
            s_i = fma(load(weights, k * task.width + tile.e - task.start), load(x, (i + k) * LANES), s_i)
        store(s, i * LANES, s_i)


@compiled
def transpose_weights(part, task, E, weights, dtype):
    """The weights of a task's channels, transposed to (K, width); zero beyond the last channel."""
    memory = pointer(part.weight, dtype)
    for k in range(part.K):
        for i in range(task.width):
            inside = task.start + i < E
            weights[k * task.width + i] = memory[(task.start + i) * part.K + k] if inside else 0.0


@compiled
def forward(arguments, dtype):
    header, place = unpack(arguments, Header)
    part, _ = unpack(place, Conv)
    x, s = stack((TILE + part.K) * LANES, dtype), stack(TILE * LANES, dtype)
    weights = stack(part.K * widest(header), dtype)
    task = next_task(arguments, header)
    while task.number < header.tasks:
        transpose_weights(part, task, header.E, weights, dtype)
        for b in range(task.first, task.last):
            for first in range(0, header.L, TILE):
                for e in range(task.start, task.stop, LANES):
                    tile = Tile(b, first, min(TILE, header.L - first), e, header.E - e)
                    convolve(part, task, tile, TILE, weights, x, s, dtype)
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s_i = load_four(s, i)
                        store(s, i, s_i * sigmoid(s_i))
                    store_tile(part.y, tile, s, False, dtype)
        task = next_task(arguments, header)


@compiled
def backward_tile(part, task, tile, weights, sums, x, ds, dtype):
    """dx of one tile, and what it adds to dw and dbias; behind the tile's own ds stand K - 1 values of the next."""
    K, width, place = part.K, task.width, tile.e - task.start
    dx_p, dx_0 = pointer(part.dx.start, dtype), place_of(part.dx, tile)
    for i in range(tile.steps):
        dx = zero(dtype)
        for k in range(K):
            dx = fma(load(weights, k * width + place), load(ds, (i + K - 1 - k) * LANES), dx)
        store_part(dx_p, dx_0 + i * part.dx.step, dx, tile.count)
    for k in range(K):
        sum_k = load(sums, k * width + place)
        for i in range(tile.steps):
            sum_k = fma(load(ds, i * LANES), load(x, (i + k) * LANES), sum_k)
        store(sums, k * width + place, sum_k)
    sum_bias = load(sums, K * width + place)
    for i in range(tile.steps):
        sum_bias = sum_bias + load(ds, i * LANES)
    store(sums, K * width + place, sum_bias)


@compiled
def backward(arguments, dtype):
    header, place = unpack(arguments, Header)
    part, _ = unpack(place, ConvGradient)
    K, chunks, widest_task = part.K, (header.L + TILE - 1) // TILE, widest(header)
    x, ds, dy = stack((TILE + K) * LANES, dtype), stack((TILE + K) * LANES, dtype), stack(TILE * LANES, dtype)
    weights, after = stack(K * widest_task, dtype), stack(K * widest_task, dtype)
    sums, sums_p = stack((K + 1) * widest_task, dtype), pointer(part.sums, dtype)
    task = next_task(arguments, header)
    while task.number < header.tasks:
        width = task.width
        transpose_weights(part, task, header.E, weights, dtype)
        for i in range((K + 1) * width):
            sums[i] = 0.0
        for b in range(task.first, task.last):
            for i in range((K - 1) * width):
                after[i] = 0.0
            for chunk in range(chunks - 1, -1, -1):
                first = chunk * TILE
                for e in range(task.start, task.stop, LANES):
                    tile = Tile(b, first, min(TILE, header.L - first), e, header.E - e)
                    convolve(part, task, tile, -TILE, weights, x, ds, dtype)
                    load_tile(part.dy, tile, -TILE, dy, dtype)
                    for i in range(0, TILE * LANES, 4 * LANES):
                        s = load_four(ds, i)
                        g = sigmoid(s)
                        store(ds, i, load_four(dy, i) * g * ((1.0 - g) * s + 1.0))
                    for k in range(K - 1):
                        store(ds, (tile.steps + k) * LANES, load(after, k * width + e - task.start))
                    backward_tile(part, task, tile, weights, sums, x, ds, dtype)
                    for k in range(K - 1):
                        store(after, k * width + e - task.start, load(ds, k * LANES))
        for k in range(K + 1):  # the last row is the gradient of the bias
            for e in range(task.start, task.stop, LANES):
                row = (task.slab * (K + 1) + k) * header.E
                store_part(sums_p, row + e, load(sums, k * width + e - task.start), header.E - e)
        task = next_task(arguments, header)


# `compile.address` finds these by name.
def forward_float32(arguments):
    forward(arguments, float32)


def forward_float64(arguments):
    forward(arguments, float64)


def backward_float32(arguments):
    backward(arguments, float32)


def backward_float64(arguments):
    backward(arguments, float64)
