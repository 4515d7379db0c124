"""The selective scan on a CPU, backward: each chunk forward again from the h that `forward.py` kept, then back.

With a[t] = exp(delta[t] A), g[t] = d loss / d h[t] and dy = d loss / d y:

    g[t] = C[t] dy[t] + a[t+1] g[t+1]      dC[t] = sum_e dy[t] h[t]      dB[t] = sum_e g[t] delta[t] u[t]
    q[t] = g[t] a[t] h[t-1]                dA = sum_t delta[t] q[t]
    d(delta u)[t] = sum_n g[t] B[t]        d delta[t] = sum_n A q[t] + u[t] d(delta u)[t]

Tasks, strides and records as in `forward.py`. Sums that several tasks share are left in parts; `reduce` adds them up in
a fixed order, so that two runs give the same bits.
"""

from minivim.kernels.cpu.lanes import (
    LANES,
    exp2_four,
    fma,
    load,
    load_four,
    load_part,
    next_task,
    pointer,
    sigmoid,
    softplus_and_slope,
    splat,
    stack,
    store,
    store_part,
    store_total,
    unpack,
    zero,
)
from minivim.kernels.cpu.scan.forward import (
    CHUNK,
    HEADER,
    RECORD,
    clear,
    load_inputs,
    load_tile,
    pack,
    store_tile,
)
from numba import float32, float64, int64, njit

REDUCE = 7  # fields of each direction for the last sums
LN2 = 0.6931471805599453


@njit(error_model="numpy")
def recompute_step(h, a, dtu_i, B_n, place, saved):
    """One state, one step forward: saves a and a h, returns the new h."""
    ah = a * h
    store(saved, place, a)
    store(saved, place + LANES, ah)
    return fma(dtu_i, B_n, ah)


@njit(error_model="numpy")
def reverse_step(g, A, dA, now, ddt, ddtu, B, C, saved, place, dB, dC, sums):
    """One state, one step back: returns the new g, dA and the two sums over states, d delta / ln 2 and d (delta u)."""
    dt, dtu, dy = now
    a, ah = load(saved, place), load(saved, place + LANES)
    g = fma(dy, C, g)
    store(dC, sums, fma(dy, fma(dtu, B, ah), load(dC, sums)))
    store(dB, sums, fma(g, dtu, load(dB, sums)))
    q = g * ah
    return g * a, fma(dt, q, dA), fma(q, A, ddt), fma(g, B, ddtu)


@njit(error_model="numpy")
def backward_states(record, b, slab, first, steps, start, width, e, E, N, A, tiles, saved, dB, dC, dtype):
    """All states of one tile: forward again from the saved h, then back."""
    dt, dtu, dy, y, ddt, ddtu = tiles[:6]
    fields = unpack(record, RECORD)
    B, B_b, B_t, C, C_b, C_t = fields[12:18]
    state, state_b, state_t = fields[21:24]
    dA, dh = fields[44], fields[45]
    B_p, C_p, state_p = pointer(B, dtype), pointer(C, dtype), pointer(state, dtype)
    dA_p, dh_p = pointer(dA, dtype), pointer(dh, dtype)
    count = E - e
    for n in range(0, N, 4):
        a, h = n * width + e - start, b * state_b + (first // CHUNK) * state_t + n * E + e
        g, s = (b * N + n) * E + e, (slab * (N + 2) + n) * E + e
        B_0, C_0 = b * B_b + first * B_t + n, b * C_b + first * C_t + n
        A0, A1, A2, A3 = load(A, a), load(A, a + width), load(A, a + 2 * width), load(A, a + 3 * width)
        h0, h1 = load_part(state_p, h, count), load_part(state_p, h + E, count)
        h2, h3 = load_part(state_p, h + 2 * E, count), load_part(state_p, h + 3 * E, count)
        for i in range(steps):
            dt_i, dtu_i, y_i = load(dt, i * LANES), load(dtu, i * LANES), load(y, i * LANES)
            B_i, C_i, place = B_0 + i * B_t, C_0 + i * C_t, 8 * i * LANES
            a0, a1, a2, a3 = exp2_four(dt_i * A0, dt_i * A1, dt_i * A2, dt_i * A3)
            h0 = recompute_step(h0, a0, dtu_i, splat(B_p, B_i), place, saved)
            h1 = recompute_step(h1, a1, dtu_i, splat(B_p, B_i + 1), place + 2 * LANES, saved)
            h2 = recompute_step(h2, a2, dtu_i, splat(B_p, B_i + 2), place + 4 * LANES, saved)
            h3 = recompute_step(h3, a3, dtu_i, splat(B_p, B_i + 3), place + 6 * LANES, saved)
            y_i = fma(h0, splat(C_p, C_i), fma(h1, splat(C_p, C_i + 1), y_i))
            store(y, i * LANES, fma(h2, splat(C_p, C_i + 2), fma(h3, splat(C_p, C_i + 3), y_i)))
        g0, g1 = load_part(dh_p, g, count), load_part(dh_p, g + E, count)
        g2, g3 = load_part(dh_p, g + 2 * E, count), load_part(dh_p, g + 3 * E, count)
        dA0, dA1 = load_part(dA_p, s, count), load_part(dA_p, s + E, count)
        dA2, dA3 = load_part(dA_p, s + 2 * E, count), load_part(dA_p, s + 3 * E, count)
        for i in range(steps - 1, -1, -1):
            now = load(dt, i * LANES), load(dtu, i * LANES), load(dy, i * LANES)
            ddt_i, ddtu_i = load(ddt, i * LANES), load(ddtu, i * LANES)
            B_i, C_i, place, sums = B_0 + i * B_t, C_0 + i * C_t, 8 * i * LANES, (i * N + n) * LANES
            B_n, C_n = splat(B_p, B_i), splat(C_p, C_i)
            g0, dA0, ddt_i, ddtu_i = reverse_step(g0, A0, dA0, now, ddt_i, ddtu_i, B_n, C_n, saved, place, dB, dC, sums)
            B_n, C_n, place, sums = splat(B_p, B_i + 1), splat(C_p, C_i + 1), place + 2 * LANES, sums + LANES
            g1, dA1, ddt_i, ddtu_i = reverse_step(g1, A1, dA1, now, ddt_i, ddtu_i, B_n, C_n, saved, place, dB, dC, sums)
            B_n, C_n, place, sums = splat(B_p, B_i + 2), splat(C_p, C_i + 2), place + 2 * LANES, sums + LANES
            g2, dA2, ddt_i, ddtu_i = reverse_step(g2, A2, dA2, now, ddt_i, ddtu_i, B_n, C_n, saved, place, dB, dC, sums)
            B_n, C_n, place, sums = splat(B_p, B_i + 3), splat(C_p, C_i + 3), place + 2 * LANES, sums + LANES
            g3, dA3, ddt_i, ddtu_i = reverse_step(g3, A3, dA3, now, ddt_i, ddtu_i, B_n, C_n, saved, place, dB, dC, sums)
            store(ddt, i * LANES, ddt_i)
            store(ddtu, i * LANES, ddtu_i)
        store_part(dh_p, g, g0, count)
        store_part(dh_p, g + E, g1, count)
        store_part(dh_p, g + 2 * E, g2, count)
        store_part(dh_p, g + 3 * E, g3, count)
        store_part(dA_p, s, dA0, count)
        store_part(dA_p, s + E, dA1, count)
        store_part(dA_p, s + 2 * E, dA2, count)
        store_part(dA_p, s + 3 * E, dA3, count)


@njit(error_model="numpy")
def add_part(address, place, value, count, dtype):
    memory = pointer(address, dtype)
    store_part(memory, place, value + load_part(memory, place, count), count)


@njit(error_model="numpy")
def backward_tile(record, b, slab, first, steps, start, width, e, E, N, A, tiles, saved, dB, dC, dtype):
    """The gradients of one tile; dB and dC are summed over the tiles of a group, lane by lane."""
    dt, dtu, dy, y, ddt, ddtu, slope, gate = tiles
    fields = unpack(record, RECORD)
    z, z_b, z_t = fields[6:9]
    D, use_softplus, accumulate, share = fields[19], fields[24], fields[25], fields[26]
    u_a, u_b, u_t = fields[:3]
    dout, dout_b, dout_t, du, ddelta, dz, d_b, d_t = fields[31:39]
    dD, dbias = fields[46:48]
    count = E - e
    load_inputs(record, b, first, steps, e, count, -CHUNK, dt, dtu, dtype)
    load_tile(dout, b * dout_b + first * dout_t + e, dout_t, steps, count, -CHUNK, dy, dtype)
    D_e = zero(dtype)
    if D != 0:
        D_e = load_part(pointer(D, dtype), e, count)
    if use_softplus:
        for i in range(0, CHUNK * LANES, 4 * LANES):
            dt_i, slope_i = softplus_and_slope(load_four(dt, i))
            store(dt, i, dt_i)
            store(slope, i, slope_i)
    if z != 0:
        load_tile(z, b * z_b + first * z_t + e, z_t, steps, count, -CHUNK, gate, dtype)
    for i in range(0, CHUNK * LANES, 4 * LANES):
        dy_i = load_four(dy, i) * (1.0 / share)
        if z != 0:
            z_i = load_four(gate, i)
            s_i = sigmoid(z_i)
            store(gate, i, dy_i * s_i * ((1.0 - s_i) * z_i + 1.0))
            dy_i = dy_i * z_i * s_i
        store(dy, i, dy_i)
    for i in range(0, CHUNK * LANES, LANES):
        store(y, i, D_e * load(dtu, i))
        store(dtu, i, load(dt, i) * load(dtu, i))
        store(ddt, i, zero(dtype))
        store(ddtu, i, zero(dtype))
    backward_states(record, b, slab, first, steps, start, width, e, E, N, A, tiles, saved, dB, dC, dtype)
    sum_D, sum_bias = zero(dtype), zero(dtype)
    for i in range(steps):
        u_i = load_part(pointer(u_a, dtype), b * u_b + (first + i) * u_t + e, count)
        dy_i, ddtu_i = load(dy, i * LANES), load(ddtu, i * LANES)
        ddt_i = fma(ddtu_i, u_i, load(ddt, i * LANES) * LN2)
        if use_softplus:
            ddt_i = ddt_i * load(slope, i * LANES)
        sum_bias = sum_bias + ddt_i
        sum_D = fma(dy_i, u_i, sum_D)
        store(ddt, i * LANES, ddt_i)
        store(ddtu, i * LANES, fma(ddtu_i, load(dt, i * LANES), D_e * dy_i))
    for i in range(0, CHUNK * LANES, LANES):
        store(gate, i, load(gate, i) * load(y, i))
    place = b * d_b + first * d_t + e
    store_tile(du, place, d_t, steps, count, ddtu, 0, dtype)
    store_tile(ddelta, place, d_t, steps, count, ddt, 0, dtype)
    if z != 0:
        store_tile(dz, place, d_t, steps, count, gate, accumulate, dtype)
    add_part(dD, slab * (N + 2) * E + e, sum_D, count, dtype)
    add_part(dbias, slab * (N + 2) * E + e, sum_bias, count, dtype)


@njit(error_model="numpy")
def store_sums(record, group, b, first, steps, N, dB, dC, dtype):
    """What a group of channels adds to dB and dC: sums over the lanes, in memory that no other thread writes."""
    fields = unpack(record, RECORD)
    dB_a, dC_a, sum_g, sum_b, sum_t = fields[39:44]
    for i in range(steps):
        for n in range(N):
            place, lanes = group * sum_g + b * sum_b + (first + i) * sum_t + n, (i * N + n) * LANES
            store_total(pointer(dB_a, dtype), place, load(dB, lanes))
            store_total(pointer(dC_a, dtype), place, load(dC, lanes))


@njit(error_model="numpy")
def backward(arguments, dtype):
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, N, directions = unpack(counter, HEADER)
    tile = CHUNK * LANES
    tiles = (
        stack(tile, dtype),
        stack(tile, dtype),
        stack(tile, dtype),
        stack(tile, dtype),
        stack(tile, dtype),
        stack(tile, dtype),
        stack(tile, dtype),
        stack(tile, dtype),
    )
    saved, dB, dC = stack(8 * tile, dtype), stack(N * tile, dtype), stack(N * tile, dtype)
    blocks, chunks = (E + LANES - 1) // LANES, (L + CHUNK - 1) // CHUNK
    A = stack(N * LANES * ((blocks + groups - 1) // groups), dtype)
    task = next_task(counter)
    while task < tasks:
        slab, group = task // groups, task % groups
        start, stop = group * blocks // groups * LANES, (group + 1) * blocks // groups * LANES
        width = stop - start
        for direction in range(directions):
            record = pointer(arguments + 8 * (HEADER + direction * RECORD), int64)
            fields = unpack(record, RECORD)
            dA, dh, fresh = fields[44], fields[45], fields[48]
            pack(record, start, width, E, N, A, dtype)
            clear(dA, slab * (N + 2) * E + start, N + 2, min(width, E - start), E, dtype)
            for b in range(slab * batch // slabs, (slab + 1) * batch // slabs):
                if fresh:
                    clear(dh, b * N * E + start, N, min(width, E - start), E, dtype)
                for chunk in range(chunks - 1, -1, -1):
                    first = chunk * CHUNK
                    steps = min(CHUNK, L - first)
                    for i in range(0, N * tile, LANES):
                        store(dB, i, zero(dtype))
                        store(dC, i, zero(dtype))
                    for e in range(start, stop, LANES):
                        backward_tile(
                            record, b, slab, first, steps, start, width, e, E, N, A, tiles, saved, dB, dC, dtype
                        )
                    store_sums(record, group, b, first, steps, N, dB, dC, dtype)
        task = next_task(counter)


@njit(error_model="numpy")
def reduce(arguments, dtype):
    """The sums over groups of channels (dB, dC) and over parts of the batch (dA, dD, dbias), in the inputs' layout."""
    counter = pointer(arguments, int64)
    _, tasks, slabs, groups, batch, L, E, N, directions, states = unpack(counter, 10)
    rows = batch * L
    task = next_task(counter)
    while task < tasks:
        for direction in range(directions):
            record = pointer(arguments + 8 * (10 + direction * REDUCE), int64)
            sums, dB, dC, totals, dA, dD, dbias = unpack(record, REDUCE)
            sums_p, totals_p, dA_p = pointer(sums, dtype), pointer(totals, dtype), pointer(dA, dtype)
            for k in range(2):
                target = pointer(dC if k else dB, dtype)
                for row in range(task * rows // tasks, (task + 1) * rows // tasks):
                    for n in range(states):
                        target[row * states + n] = sums_p[(k * groups * rows + row) * N + n]
                    for group in range(1, groups):
                        for n in range(states):
                            target[row * states + n] += sums_p[((k * groups + group) * rows + row) * N + n]
            for e in range(task * E // tasks, (task + 1) * E // tasks):
                for n in range(N + 2):
                    total = totals_p[n * E + e]
                    for slab in range(1, slabs):
                        total += totals_p[(slab * (N + 2) + n) * E + e]
                    if n < states:
                        dA_p[e * states + n] = total
                    elif n == N:
                        pointer(dD, dtype)[e] = total
                    elif n == N + 1:
                        pointer(dbias, dtype)[e] = total
        task = next_task(counter)


def backward_float32(arguments):
    backward(arguments, float32)


def backward_float64(arguments):
    backward(arguments, float64)


def reduce_float32(arguments):
    reduce(arguments, float32)


def reduce_float64(arguments):
    reduce(arguments, float64)
