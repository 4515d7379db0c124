"""The selective scan on a CPU, forward: sequential in time, LANES channels at once, no (B, L, E, N) array.

One task is a slab of the batch and a group of channels; threads take tasks from a counter, so the result does not
depend on how many there are. Time is cut into chunks of CHUNK steps: a chunk of a block of LANES channels lives in the
first cache level, and h at the start of every chunk is kept for the backward pass, `backward.py`.

A time-reversed scan is the same code on negative strides. Several directions share one call, one gate z and one
output, their mean: the last one adds what the others left there, and gates. Sizes, addresses and strides (in elements)
travel in one int64 array: a header, then a record for each direction; address 0 means absent. N is a multiple of 4;
the states that A lacks are zero.
"""

from minivim.kernels.cpu.lanes import (
    LANES,
    LOG2E,
    exp2_four,
    fma,
    load,
    load_four,
    load_part,
    next_task,
    pointer,
    prefetch,
    sigmoid,
    softplus,
    splat,
    stack,
    store,
    store_part,
    unpack,
    zero,
)
from numba import float32, float64, int64, njit

CHUNK = 16  # steps between two saved states: at N = 16 they cost as much memory as one (B, L, E) tensor
HEADER = 9  # counter, tasks, slabs, groups, B, L, E, N, directions
FORWARD = 31  # fields of a record that the forward pass needs
RECORD = 49  # all fields: the backward pass adds 18


@njit(error_model="numpy")
def pack(record, e, width, E, N, packed, dtype):
    """A log2(e), transposed to (N, width), for the channels from `e` on; zero beyond the last channel and state."""
    fields = unpack(record, FORWARD)
    A, A_e, A_n, states = pointer(fields[18], dtype), fields[27], fields[28], fields[29]
    for n in range(N):
        for k in range(width):
            inside = n < states and e + k < E
            packed[n * width + k] = A[(e + k) * A_e + n * A_n] * LOG2E if inside else 0.0


@njit(error_model="numpy")
def clear(address, place, rows, count, E, dtype):
    """Zero `count` channels of `rows` rows of a (..., E) array, the first of them at `place`."""
    memory = pointer(address, dtype)
    for row in range(rows):
        for k in range(count):
            memory[place + row * E + k] = 0.0


@njit(error_model="numpy")
def load_inputs(record, b, first, steps, e, count, ahead, dt, u, dtype):
    """Fill dt (delta and bias, before softplus) and u of one tile; steps beyond the last keep what they held."""
    fields = unpack(record, FORWARD)
    u_a, u_b, u_t, delta_a, delta_b, delta_t = fields[:6]
    bias = fields[20]
    bias_e = zero(dtype)
    if bias != 0:
        bias_e = load_part(pointer(bias, dtype), e, count)
    load_tile(u_a, b * u_b + first * u_t + e, u_t, steps, count, ahead, u, dtype)
    load_tile(delta_a, b * delta_b + first * delta_t + e, delta_t, steps, count, ahead, dt, dtype)
    for i in range(0, CHUNK * LANES, LANES):
        store(dt, i, load(dt, i) + bias_e)


@njit(error_model="numpy")
def load_tile(address, start, stride, steps, count, ahead, tile, dtype):
    """Copy `steps` rows to the tile, and ask for the rows `ahead` steps further on, the next tile's."""
    memory = pointer(address, dtype)
    for i in range(steps):
        place = start + i * stride
        store(tile, i * LANES, load_part(memory, place, count))
        prefetch(memory, place + ahead * stride)


@njit(error_model="numpy")
def store_tile(address, start, stride, steps, count, tile, accumulate, dtype):
    for i in range(steps):
        place, value = start + i * stride, load(tile, i * LANES)
        if accumulate:
            value = value + load_part(pointer(address, dtype), place, count)
        store_part(pointer(address, dtype), place, value, count)


@njit(error_model="numpy")
def forward_tile(record, b, first, steps, start, width, e, E, N, A, dt, u, y, dtype):
    """`steps` steps from `first` on, for LANES channels from `e` on; A (N, width) begins with channel `start`."""
    fields = unpack(record, FORWARD)
    z, z_b, z_t, out, out_b, out_t, B, B_b, B_t, C, C_b, C_t, _, D = fields[6:20]
    state, state_b, state_t, use_softplus, accumulate, share = fields[21:27]
    B_p, C_p, state_p = pointer(B, dtype), pointer(C, dtype), pointer(state, dtype)
    count = E - e
    load_inputs(record, b, first, steps, e, count, CHUNK, dt, u, dtype)
    if use_softplus:
        for i in range(0, CHUNK * LANES, 4 * LANES):
            store(dt, i, softplus(load_four(dt, i)))
    D_e = zero(dtype)
    if D != 0:
        D_e = load_part(pointer(D, dtype), e, count)
    for i in range(0, CHUNK * LANES, LANES):
        store(y, i, D_e * load(u, i))
        store(u, i, load(dt, i) * load(u, i))  # from here on: delta * u
    B_0, C_0 = b * B_b + first * B_t, b * C_b + first * C_t
    for n in range(0, N, 4):
        a, h = n * width + e - start, b * state_b + (first // CHUNK) * state_t + n * E + e
        A0, A1, A2, A3 = load(A, a), load(A, a + width), load(A, a + 2 * width), load(A, a + 3 * width)
        h0, h1 = load_part(state_p, h, count), load_part(state_p, h + E, count)
        h2, h3 = load_part(state_p, h + 2 * E, count), load_part(state_p, h + 3 * E, count)
        for i in range(steps):
            dt_i, dtu_i, y_i = load(dt, i * LANES), load(u, i * LANES), load(y, i * LANES)
            B_i, C_i = B_0 + i * B_t + n, C_0 + i * C_t + n
            a0, a1, a2, a3 = exp2_four(dt_i * A0, dt_i * A1, dt_i * A2, dt_i * A3)
            h0 = fma(a0, h0, dtu_i * splat(B_p, B_i))
            h1 = fma(a1, h1, dtu_i * splat(B_p, B_i + 1))
            h2 = fma(a2, h2, dtu_i * splat(B_p, B_i + 2))
            h3 = fma(a3, h3, dtu_i * splat(B_p, B_i + 3))
            y_i = fma(h0, splat(C_p, C_i), fma(h1, splat(C_p, C_i + 1), y_i))
            store(y, i * LANES, fma(h2, splat(C_p, C_i + 2), fma(h3, splat(C_p, C_i + 3), y_i)))
        h = h + state_t
        store_part(state_p, h, h0, count)
        store_part(state_p, h + E, h1, count)
        store_part(state_p, h + 2 * E, h2, count)
        store_part(state_p, h + 3 * E, h3, count)
    place = b * out_b + first * out_t + e
    if accumulate:
        load_tile(out, place, out_t, steps, count, CHUNK, u, dtype)
        for i in range(0, CHUNK * LANES, LANES):
            store(y, i, load(y, i) + load(u, i))
    if z != 0:
        load_tile(z, b * z_b + first * z_t + e, z_t, steps, count, CHUNK, dt, dtype)
    for i in range(0, CHUNK * LANES, 4 * LANES):
        y_i = load_four(y, i) * (1.0 / share)
        if z != 0:
            z_i = load_four(dt, i)
            y_i = y_i * z_i * sigmoid(z_i)
        store(y, i, y_i)
    store_tile(out, place, out_t, steps, count, y, 0, dtype)


@njit(error_model="numpy")
def forward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, N, directions = unpack(counter, HEADER)
    dt, u, y = stack(CHUNK * LANES, dtype), stack(CHUNK * LANES, dtype), stack(CHUNK * LANES, dtype)
    blocks = (E + LANES - 1) // LANES
    A = stack(N * LANES * ((blocks + groups - 1) // groups), dtype)
    task = next_task(counter)
    while task < tasks:
        slab, group = task // groups, task % groups
        start, stop = group * blocks // groups * LANES, (group + 1) * blocks // groups * LANES
        width = stop - start
        for direction in range(directions):
            record = pointer(arguments + 8 * (HEADER + direction * RECORD), int64)
            fields = unpack(record, FORWARD)
            state, state_b, fresh = fields[21], fields[22], fields[30]
            pack(record, start, width, E, N, A, dtype)
            for b in range(slab * batch // slabs, (slab + 1) * batch // slabs):
                if fresh:
                    clear(state, b * state_b + start, N, min(width, E - start), E, dtype)
                for first in range(0, L, CHUNK):
                    steps = min(CHUNK, L - first)
                    for e in range(start, stop, LANES):
                        forward_tile(record, b, first, steps, start, width, e, E, N, A, dt, u, y, dtype)
        task = next_task(counter)


def forward_float32(arguments):
    forward(arguments, float32)


def forward_float64(arguments):
    forward(arguments, float64)
