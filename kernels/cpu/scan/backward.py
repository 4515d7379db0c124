"""The selective scan on a CPU, backward: each chunk forward again from the h that `forward.py` kept, then back.

With a[t] = exp(delta[t] A), g[t] = d loss / d h[t] and dy = d loss / d y:

    g[t] = C[t] dy[t] + a[t+1] g[t+1]      dC[t] = sum_e dy[t] h[t]      dB[t] = sum_e g[t] delta[t] u[t]
    q[t] = g[t] a[t] h[t-1]                dA = sum_t delta[t] q[t]
    d(delta u)[t] = sum_n g[t] B[t]        d delta[t] = sum_n A q[t] + u[t] d(delta u)[t]

Tasks, tiles and records as in `forward.py`. Sums that several tasks share are left in parts; `reduce` adds them up in
a fixed order, so that two runs give the same bits.
"""

from collections import namedtuple

from minivim.kernels.cpu.lanes import (
    LANES,
    compiled,
    exp2_four,
    fma,
    load,
    load_four,
    load_part,
    pointer,
    sigmoid,
    softplus_and_slope,
    splat,
    stack,
    store,
    store_part,
    store_total,
    take_ticket,
    unpack,
    zero,
)
from minivim.kernels.cpu.records import Header, Scan, ScanGradient, ScanSums
from minivim.kernels.cpu.scan.forward import CHUNK, clear, load_inputs, transpose_A
from minivim.kernels.cpu.tasks import Tile, load_tile, next_task, place_of, store_tile, widest
from numba import float32, float64

LN2 = 0.6931471805599453
# What a thread works in: A (N, width); a and a h of four states; dB and dC (steps, N) lane by lane; eight tiles.
Memory = namedtuple("Memory", "A saved dB dC dt dtu dy y ddt ddtu slope gate")


@compiled
def recompute_step(h, a, dtu_i, B_n, place, saved):
    """One state, one step forward: saves a and a h, returns the new h."""
    ah = a * h
    store(saved, place, a)
    store(saved, place + LANES, ah)
    return fma(dtu_i, B_n, ah)


@compiled
def reverse_step(g, A, dA, now, ddt, ddtu, B, C, saved, place, dB, dC, sums):
    """One state, one step back: returns the new g, dA and the two sums over states, d delta / ln 2 and d (delta u)."""
    dt, dtu, dy = now
    a, ah = load(saved, place), load(saved, place + LANES)
    g = fma(dy, C, g)
    store(dC, sums, fma(dy, fma(dtu, B, ah), load(dC, sums)))
    store(dB, sums, fma(g, dtu, load(dB, sums)))
    q = g * ah
    return g * a, fma(dt, q, dA), fma(q, A, ddt), fma(g, B, ddtu)


@compiled
def backward_states(part, gradient, task, tile, E, memory, dtype):
    """All states of one tile: forward again from the saved h, then back."""
    A, saved, dB, dC, dt, dtu = memory.A, memory.saved, memory.dB, memory.dC, memory.dt, memory.dtu
    dy, y, ddt, ddtu = memory.dy, memory.y, memory.ddt, memory.ddtu
    B_p, C_p, state_p = pointer(part.B.start, dtype), pointer(part.C.start, dtype), pointer(part.state.start, dtype)
    dA_p, dh_p = pointer(gradient.totals, dtype), pointer(gradient.dh, dtype)
    N, B_t, C_t, count, width = part.N, part.B.step, part.C.step, tile.count, task.width
    B_first, C_first = tile.b * part.B.row + tile.first * B_t, tile.b * part.C.row + tile.first * C_t
    h_first = tile.b * part.state.row + (tile.first // CHUNK) * part.state.step + tile.e
    for n in range(0, N, 4):
        a, h, B_0, C_0 = n * width + tile.e - task.start, h_first + n * E, B_first + n, C_first + n
        g, s = (tile.b * N + n) * E + tile.e, (task.slab * (N + 2) + n) * E + tile.e
        A0, A1, A2, A3 = load(A, a), load(A, a + width), load(A, a + 2 * width), load(A, a + 3 * width)
        h0, h1 = load_part(state_p, h, count), load_part(state_p, h + E, count)
        h2, h3 = load_part(state_p, h + 2 * E, count), load_part(state_p, h + 3 * E, count)
        for i in range(tile.steps):
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
        for i in range(tile.steps - 1, -1, -1):
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


@compiled
def add_part(address, place, value, count, dtype):
    memory = pointer(address, dtype)
    store_part(memory, place, value + load_part(memory, place, count), count)


@compiled
def backward_tile(part, gradient, task, tile, E, memory, dtype):
    """The gradients of one tile; dB and dC are summed over the tiles of a group, lane by lane."""
    dt, dtu, dy, y = memory.dt, memory.dtu, memory.dy, memory.y
    ddt, ddtu, slope, gate = memory.ddt, memory.ddtu, memory.slope, memory.gate
    load_inputs(part, tile, -CHUNK, dt, dtu, dtype)
    load_tile(gradient.dout, tile, -CHUNK, dy, dtype)
    D = zero(dtype)
    if part.D != 0:
        D = load_part(pointer(part.D, dtype), tile.e, tile.count)
    if part.softplus:
        for i in range(0, CHUNK * LANES, 4 * LANES):
            dt_i, slope_i = softplus_and_slope(load_four(dt, i))
            store(dt, i, dt_i)
            store(slope, i, slope_i)
    if part.z.start != 0:
        load_tile(part.z, tile, -CHUNK, gate, dtype)
    for i in range(0, CHUNK * LANES, 4 * LANES):
        dy_i = load_four(dy, i) * (1.0 / part.share)
        if part.z.start != 0:
            z_i = load_four(gate, i)
            s_i = sigmoid(z_i)
            store(gate, i, dy_i * s_i * ((1.0 - s_i) * z_i + 1.0))
            dy_i = dy_i * z_i * s_i
        store(dy, i, dy_i)
    for i in range(0, CHUNK * LANES, LANES):
        store(y, i, D * load(dtu, i))
        store(dtu, i, load(dt, i) * load(dtu, i))
        store(ddt, i, zero(dtype))
        store(ddtu, i, zero(dtype))
    backward_states(part, gradient, task, tile, E, memory, dtype)
    u, u_0 = pointer(part.u.start, dtype), place_of(part.u, tile)
    sum_D, sum_bias = zero(dtype), zero(dtype)
    for i in range(tile.steps):
        u_i = load_part(u, u_0 + i * part.u.step, tile.count)
        dy_i, ddtu_i = load(dy, i * LANES), load(ddtu, i * LANES)
        ddt_i = fma(ddtu_i, u_i, load(ddt, i * LANES) * LN2)
        if part.softplus:
            ddt_i = ddt_i * load(slope, i * LANES)
        sum_bias = sum_bias + ddt_i
        sum_D = fma(dy_i, u_i, sum_D)
        store(ddt, i * LANES, ddt_i)
        store(ddtu, i * LANES, fma(ddtu_i, load(dt, i * LANES), D * dy_i))
    for i in range(0, CHUNK * LANES, LANES):
        store(gate, i, load(gate, i) * load(y, i))
    store_tile(gradient.du, tile, ddtu, False, dtype)
    store_tile(gradient.ddelta, tile, ddt, False, dtype)
    if part.z.start != 0:
        store_tile(gradient.dz, tile, gate, part.accumulate, dtype)
    behind_A = (task.slab * (part.N + 2) + part.N) * E + tile.e
    add_part(gradient.totals, behind_A, sum_D, tile.count, dtype)
    add_part(gradient.totals, behind_A + E, sum_bias, tile.count, dtype)


@compiled
def store_sums(gradient, group, b, first, steps, N, dB, dC, dtype):
    """What a group of channels adds to dB and dC: sums over the lanes, in memory that no other thread writes."""
    memory = pointer(gradient.dB.start, dtype)
    for i in range(steps):
        place = group * gradient.group + b * gradient.dB.row + (first + i) * gradient.dB.step
        for n in range(N):
            store_total(memory, place + n, load(dB, (i * N + n) * LANES))
            store_total(memory, place + gradient.dC + n, load(dC, (i * N + n) * LANES))


@compiled
def backward(arguments, dtype):
    header, records = unpack(arguments, Header)
    L, E, N, tile_size = header.L, header.E, unpack(records, Scan)[0].N, CHUNK * LANES
    memory = Memory(
        A=stack(N * widest(header), dtype),
        saved=stack(8 * tile_size, dtype),
        dB=stack(N * tile_size, dtype),
        dC=stack(N * tile_size, dtype),
        dt=stack(tile_size, dtype),
        dtu=stack(tile_size, dtype),
        dy=stack(tile_size, dtype),
        y=stack(tile_size, dtype),
        ddt=stack(tile_size, dtype),
        ddtu=stack(tile_size, dtype),
        slope=stack(tile_size, dtype),
        gate=stack(tile_size, dtype),
    )
    chunks = (L + CHUNK - 1) // CHUNK
    task = next_task(arguments, header)
    while task.number < header.tasks:
        place = records
        for _ in range(header.directions):
            part, place = unpack(place, Scan)
            gradient, place = unpack(place, ScanGradient)
            transpose_A(part, task, E, memory.A, dtype)
            clear(gradient.totals, task.slab * (N + 2) * E, N + 2, task, E, dtype)
            for b in range(task.first, task.last):
                if part.fresh:
                    clear(gradient.dh, b * N * E, N, task, E, dtype)
                for chunk in range(chunks - 1, -1, -1):
                    first = chunk * CHUNK
                    steps = min(CHUNK, L - first)
                    for i in range(0, N * tile_size, LANES):
                        store(memory.dB, i, zero(dtype))
                        store(memory.dC, i, zero(dtype))
                    for e in range(task.start, task.stop, LANES):
                        backward_tile(part, gradient, task, Tile(b, first, steps, e, E - e), E, memory, dtype)
                    store_sums(gradient, task.group, b, first, steps, N, memory.dB, memory.dC, dtype)
        task = next_task(arguments, header)


@compiled
def reduce(arguments, dtype):
    """The sums over groups of channels (dB, dC) and over parts of the batch (dA, dD, dbias), in the inputs' layout."""
    header, records = unpack(arguments, Header)
    E, tasks, groups, rows = header.E, header.tasks, header.groups, header.batch * header.L
    task = take_ticket(arguments)
    while task < tasks:
        place = records
        for _ in range(header.directions):
            part, place = unpack(place, ScanSums)
            N, states = part.N, part.states
            parts_p, totals_p, dA_p = pointer(part.parts, dtype), pointer(part.totals, dtype), pointer(part.dA, dtype)
            for k in range(2):
                target = pointer(part.dC if k else part.dB, dtype)
                for row in range(task * rows // tasks, (task + 1) * rows // tasks):
                    for n in range(states):
                        target[row * states + n] = parts_p[(k * groups * rows + row) * N + n]
                    for group in range(1, groups):
                        for n in range(states):
                            target[row * states + n] += parts_p[((k * groups + group) * rows + row) * N + n]
            for e in range(task * E // tasks, (task + 1) * E // tasks):
                for n in range(N + 2):
                    total = totals_p[n * E + e]
                    for slab in range(1, header.slabs):
                        total += totals_p[(slab * (N + 2) + n) * E + e]
                    if n < states:
                        dA_p[e * states + n] = total
                    elif n == N:
                        pointer(part.dD, dtype)[e] = total
                    elif n == N + 1:
                        pointer(part.dbias, dtype)[e] = total
        task = take_ticket(arguments)


# `compile.address` finds these by name.
def backward_float32(arguments):
    backward(arguments, float32)


def backward_float64(arguments):
    backward(arguments, float64)


def reduce_float32(arguments):
    reduce(arguments, float32)


def reduce_float64(arguments):
    reduce(arguments, float64)
