"""The selective scan on a CPU, forward: sequential in time, LANES channels at once, no (B, L, E, N) array.

Time is cut into chunks of CHUNK steps: a chunk of a block of LANES channels lives in the first cache level, and h at
the start of every chunk is kept for the backward pass, `backward.py`.

A time-reversed scan is the same code on negative strides. Several directions share one call, one gate z and one
output, their mean: the last one adds what the others left there, and gates. N is a multiple of 4; the states that A
lacks are zero.
"""

from minivim.kernels.cpu.lanes import (
    LANES,
    LOG2E,
    compiled,
    exp2_four,
    fma,
    load,
    load_four,
    load_part,
    pointer,
    sigmoid,
    softplus,
    splat,
    stack,
    store,
    store_part,
    unpack,
    zero,
)
from minivim.kernels.cpu.records import Header, Scan
from minivim.kernels.cpu.tasks import Tile, load_tile, next_task, store_tile, widest
from numba import float32, float64

CHUNK = 16  # steps between two saved states: at N = 16 they cost as much memory as one (B, L, E) tensor


@compiled
def transpose_A(part, task, E, packed, dtype):
    """A log2(e), transposed to (N, width), for the channels of a task; zero beyond the last channel and state."""
    A = pointer(part.A.start, dtype)
    for n in range(part.N):
        for k in range(task.width):
            inside = n < part.states and task.start + k < E
            A_kn = A[(task.start + k) * part.A.row + n * part.A.step] if inside else 0.0
            packed[n * task.width + k] = A_kn * LOG2E


@compiled
def clear(address, place, rows, task, E, dtype):
    """Zero the channels of a task in `rows` rows of an array (..., E), the first of which begins at `place`."""
    memory = pointer(address, dtype)
    for row in range(rows):
        for e in range(task.start, min(task.stop, E)):
            memory[place + row * E + e] = 0.0


@compiled
def load_inputs(part, tile, ahead, dt, u, dtype):
    """Fill dt (delta and bias, before softplus) and u of one tile; steps beyond the last keep what they held."""
    bias = zero(dtype)
    if part.bias != 0:
        bias = load_part(pointer(part.bias, dtype), tile.e, tile.count)
    load_tile(part.u, tile, ahead, u, dtype)
    load_tile(part.delta, tile, ahead, dt, dtype)
    for i in range(0, CHUNK * LANES, LANES):
        store(dt, i, load(dt, i) + bias)


@compiled
def forward_tile(part, task, tile, E, A, dt, u, y, dtype):
    """One tile; A (N, width) as `transpose_A` left it."""
    B_p, C_p, state_p = pointer(part.B.start, dtype), pointer(part.C.start, dtype), pointer(part.state.start, dtype)
    B_t, C_t, count, width = part.B.step, part.C.step, tile.count, task.width
    load_inputs(part, tile, CHUNK, dt, u, dtype)
    if part.softplus:
        for i in range(0, CHUNK * LANES, 4 * LANES):
            store(dt, i, softplus(load_four(dt, i)))
    D = zero(dtype)
    if part.D != 0:
        D = load_part(pointer(part.D, dtype), tile.e, count)
    for i in range(0, CHUNK * LANES, LANES):
        store(y, i, D * load(u, i))
        store(u, i, load(dt, i) * load(u, i))  # from here on: delta * u
    B_0, C_0 = tile.b * part.B.row + tile.first * B_t, tile.b * part.C.row + tile.first * C_t
    h_0 = tile.b * part.state.row + (tile.first // CHUNK) * part.state.step + tile.e
    for n in range(0, part.N, 4):
        a, h = n * width + tile.e - task.start, h_0 + n * E
        A0, A1, A2, A3 = load(A, a), load(A, a + width), load(A, a + 2 * width), load(A, a + 3 * width)
        h0, h1 = load_part(state_p, h, count), load_part(state_p, h + E, count)
        h2, h3 = load_part(state_p, h + 2 * E, count), load_part(state_p, h + 3 * E, count)
        for i in range(tile.steps):
            dt_i, dtu_i, y_i = load(dt, i * LANES), load(u, i * LANES), load(y, i * LANES)
            B_i, C_i = B_0 + i * B_t + n, C_0 + i * C_t + n
            a0, a1, a2, a3 = exp2_four(dt_i * A0, dt_i * A1, dt_i * A2, dt_i * A3)
            h0 = fma(a0, h0, dtu_i * splat(B_p, B_i))
            h1 = fma(a1, h1, dtu_i * splat(B_p, B_i + 1))
            h2 = fma(a2, h2, dtu_i * splat(B_p, B_i + 2))
            h3 = fma(a3, h3, dtu_i * splat(B_p, B_i + 3))
            y_i = fma(h0, splat(C_p, C_i), fma(h1, splat(C_p, C_i + 1), y_i))
            store(y, i * LANES, fma(h2, splat(C_p, C_i + 2), fma(h3, splat(C_p, C_i + 3), y_i)))
        h = h + part.state.step
        store_part(state_p, h, h0, count)
        store_part(state_p, h + E, h1, count)
        store_part(state_p, h + 2 * E, h2, count)
        store_part(state_p, h + 3 * E, h3, count)
    if part.accumulate:
        load_tile(part.out, tile, CHUNK, u, dtype)
        for i in range(0, CHUNK * LANES, LANES):
            store(y, i, load(y, i) + load(u, i))
    if part.z.start != 0:
        load_tile(part.z, tile, CHUNK, dt, dtype)
    for i in range(0, CHUNK * LANES, 4 * LANES):
        y_i = load_four(y, i) * (1.0 / part.share)
        if part.z.start != 0:
            z_i = load_four(dt, i)
            y_i = y_i * z_i * sigmoid(z_i)
        store(y, i, y_i)
    store_tile(part.out, tile, y, False, dtype)


@compiled
def forward(arguments, dtype):
    header, records = unpack(arguments, Header)
    L, E, N = header.L, header.E, unpack(records, Scan)[0].N
    dt, u, y = stack(CHUNK * LANES, dtype), stack(CHUNK * LANES, dtype), stack(CHUNK * LANES, dtype)
    A = stack(N * widest(header), dtype)
    task = next_task(arguments, header)
    while task.number < header.tasks:
        place = records
        for _ in range(header.directions):
            part, place = unpack(place, Scan)
            transpose_A(part, task, E, A, dtype)
            for b in range(task.first, task.last):
                if part.fresh:
                    clear(part.state.start, b * part.state.row, N, task, E, dtype)
                for first in range(0, L, CHUNK):
                    for e in range(task.start, task.stop, LANES):
                        tile = Tile(b, first, min(CHUNK, L - first), e, E - e)
                        forward_tile(part, task, tile, E, A, dt, u, y, dtype)
        task = next_task(arguments, header)


# `compile.address` finds these by name.
def forward_float32(arguments):
    forward(arguments, float32)


def forward_float64(arguments):
    forward(arguments, float64)
