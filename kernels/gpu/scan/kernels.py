"""The selective scan on a GPU in Triton: sequential in time, channels as lanes, all N states of a channel in registers.

    h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t]        y[t] = C[t] . h[t] + D u[t]

One program owns BLOCK channels of one row of the batch, in one direction, over one chunk of time. A reversed direction
walks from L - 1 down; nothing is flipped. `u` and `delta` of the second direction lie `*_next` elements behind those of
the first, whatever lies between. A is A log2(e), transposed to (directions, N, E), so that exp is one exp2.

Several chunks of time: `scan_states` finds what each chunk adds to the state and by how much it fades,
`combine_states` walks over the chunks, and then all chunks run at once, each from the state before it.
"""

import triton
import triton.language as tl
from minivim.kernels.gpu.maths import LN2, sigmoid, step_size


# E_units is not told to be a multiple of 16: lanes would load 4 channels of A at once and share out their states.
@triton.jit(do_not_specialize_on_alignment=["E_units"])
def scan_forward(
    u, delta, z, A, B, C, D, bias, start, y, out, states, last,
    L, steps, chunks, E_units, u_next, delta_next, u_b, u_t, delta_b, delta_t, z_b, z_t, STATES: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, V: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, MASK: tl.constexpr, START: tl.constexpr, SAVE: tl.constexpr,
):  # fmt: skip
    """y (directions, B, L, E), gated into `out` if there is a z; h before every K-th step; the last h."""
    row, direction = tl.program_id(1), tl.program_id(2)
    b, chunk, batch = (row // chunks).to(tl.int64), row % chunks, tl.num_programs(1) // chunks
    E = E_units * V  # so that the compiler knows the width of a vector, and keeps all states of a channel in one thread
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    # x == x: true everywhere; the interpreter of Triton 3.3 cannot make a True that is not compared
    inside, some = (d < E) if MASK else (d == d), (n < STATES) if N != STATES else (n == n)
    cell = inside[None, :] & some[:, None]
    place = n[:, None] * E + d[None, :]
    a_log2 = tl.load(A + direction * STATES * E + place, mask=cell, other=0.0)
    skip = 0.0 if D is None else tl.load(D + direction * E + d, mask=inside, other=0.0)
    shift = 0.0 if bias is None else tl.load(bias + direction * E + d, mask=inside, other=0.0)
    run = (direction * batch + b) * chunks + chunk
    h = tl.load(start + run * STATES * E + place, mask=cell, other=0.0) if START else tl.zeros([N, BLOCK], ACC)
    low, high = chunk * steps, tl.minimum((chunk + 1) * steps, L)
    backwards = direction + REVERSE
    sign, first = 1 - 2 * backwards, low + backwards * (L - 1 - 2 * low)
    u_p = u + direction * u_next + b * u_b + first.to(tl.int64) * u_t + d
    delta_p = delta + direction * delta_next + b * delta_b + first.to(tl.int64) * delta_t + d
    token = (direction * batch + b) * L + first
    B_p, C_p, y_p = B + token * STATES + n, C + token * STATES + n, y + token * E + d
    z_p = u_p if z is None else z + b * z_b + first.to(tl.int64) * z_t + d
    out_p = y_p if z is None else out + token * E + d
    u_ahead = tl.load(u_p, mask=inside, other=0.0)
    raw_ahead = tl.load(delta_p, mask=inside, other=0.0)
    if z is not None:
        z_ahead = tl.load(z_p, mask=inside, other=0.0)
    for head in range(low, high, K):
        if SAVE:
            kept = (direction * batch + b) * tl.cdiv(L, K) + head // K
            tl.store(states + kept * STATES * E + place, h, mask=cell)
        for i in range(head, tl.minimum(head + K, high)):
            # An offset that is one number, not a pointer that moves: B and C then go straight to the registers.
            t, ahead = (i - low).to(tl.int64) * sign, (tl.minimum(i + 1, high - 1) - low).to(tl.int64) * sign
            u_i, raw = u_ahead.to(ACC), raw_ahead.to(ACC) + shift
            u_ahead = tl.load(u_p + ahead * u_t, mask=inside, other=0.0)  # a step early: memory is far
            raw_ahead = tl.load(delta_p + ahead * delta_t, mask=inside, other=0.0)
            B_i = tl.load(B_p + t * STATES, mask=some, other=0.0)
            C_i = tl.load(C_p + t * STATES, mask=some, other=0.0)
            if z is not None:
                z_i = z_ahead.to(ACC)
                z_ahead = tl.load(z_p + ahead * z_t, mask=inside, other=0.0)
            delta_i = step_size(raw, inside, SOFTPLUS)
            h = tl.exp2(delta_i[None, :] * a_log2) * h + (delta_i * u_i)[None, :] * B_i[:, None]
            y_i = tl.sum(h * C_i[:, None], axis=0) + skip * u_i
            if z is None or SAVE:
                tl.store(y_p + t * E, y_i.to(y.dtype.element_ty), mask=inside)
            if z is not None:
                tl.store(out_p + t * E, (y_i * z_i * sigmoid(z_i)).to(out.dtype.element_ty), mask=inside)
    if chunk == chunks - 1:
        tl.store(last + (direction * batch + b) * STATES * E + place, h, mask=cell)


@triton.jit(do_not_specialize_on_alignment=["E_units"])  # as above
def scan_states(
    x, delta, A, B, bias, added, faded,
    L, steps, chunks, E_units, x_next, delta_next, x_b, x_t, delta_b, delta_t, STATES: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, V: tl.constexpr, ACC: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, MASK: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to a state that enters as 0, and the sum of its delta: the state fades by exp(A sum).

    ADJOINT: the same for the backward pass, against the scan's own direction: r = a (r + C dy), with C, dy as B, x.
    """
    row, direction = tl.program_id(1), tl.program_id(2)
    b, chunk, batch = (row // chunks).to(tl.int64), row % chunks, tl.num_programs(1) // chunks
    E = E_units * V
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    inside, some = (d < E) if MASK else (d == d), (n < STATES) if N != STATES else (n == n)
    cell = inside[None, :] & some[:, None]
    place = n[:, None] * E + d[None, :]
    a_log2 = tl.load(A + direction * STATES * E + place, mask=cell, other=0.0)
    shift = 0.0 if bias is None else tl.load(bias + direction * E + d, mask=inside, other=0.0)
    low, high = chunk * steps, tl.minimum((chunk + 1) * steps, L)
    begin = high - 1 if ADJOINT else low
    backwards = direction + REVERSE
    sign, first = 1 - 2 * backwards, begin + backwards * (L - 1 - 2 * begin)
    sign = -sign if ADJOINT else sign
    x_p = x + direction * x_next + b * x_b + first.to(tl.int64) * x_t + d
    delta_p = delta + direction * delta_next + b * delta_b + first.to(tl.int64) * delta_t + d
    B_p = B + ((direction * batch + b) * L + first) * STATES + n
    h, total = tl.zeros([N, BLOCK], ACC), tl.zeros([BLOCK], ACC)
    x_ahead, raw_ahead = tl.load(x_p, mask=inside, other=0.0), tl.load(delta_p, mask=inside, other=0.0)
    for i in range(low, high):
        t, ahead = (i - low).to(tl.int64) * sign, (tl.minimum(i + 1, high - 1) - low).to(tl.int64) * sign
        x_i, raw = x_ahead.to(ACC), raw_ahead.to(ACC) + shift
        x_ahead = tl.load(x_p + ahead * x_t, mask=inside, other=0.0)
        raw_ahead = tl.load(delta_p + ahead * delta_t, mask=inside, other=0.0)
        B_i = tl.load(B_p + t * STATES, mask=some, other=0.0)
        delta_i = step_size(raw, inside, SOFTPLUS)
        a = tl.exp2(delta_i[None, :] * a_log2)
        if ADJOINT:
            h = a * (h + x_i[None, :] * B_i[:, None])
        else:
            h = a * h + (delta_i * x_i)[None, :] * B_i[:, None]
        total += delta_i
    run = (direction * batch + b) * chunks + chunk
    tl.store(added + run * STATES * E + place, h, mask=cell)
    tl.store(faded + run * E + d, total, mask=inside)


@triton.jit
def combine_states(
    A, added, faded, start, begins, chunks, E, STATES: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr, START: tl.constexpr, ADJOINT: tl.constexpr,
):  # fmt: skip
    """The state that enters each chunk, from chunk to chunk; start (directions, B, N, E)."""
    b, direction, batch = tl.program_id(1).to(tl.int64), tl.program_id(2), tl.num_programs(1)
    d, n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    inside = d < E
    cell = inside[None, :] & (n < STATES)[:, None]
    place = n[:, None] * E + d[None, :]
    a_log2 = tl.load(A + direction * STATES * E + place, mask=cell, other=0.0)
    row = direction * batch + b
    h = tl.load(start + row * STATES * E + place, mask=cell, other=0.0) if START else tl.zeros([N, BLOCK], ACC)
    for i in range(chunks):
        run = row * chunks + (chunks - 1 - i if ADJOINT else i)
        tl.store(begins + run * STATES * E + place, h, mask=cell)
        total = tl.load(faded + run * E + d, mask=inside, other=0.0)
        h = tl.exp2(total[None, :] * a_log2) * h + tl.load(added + run * STATES * E + place, mask=cell, other=0.0)


@triton.jit
def adjoint_step(r, a, ah, dy, delta, du_in, B, C, a_log2):
    """One step back: r for the step before, and the parts of the gradients of dA, dB, dC, delta and delta u.

    g = r + C dy is the gradient of h, a h the state that the step before left over; r = a g goes on.
    """
    h = ah + du_in[:, None] * B[None, :]
    g = r + dy[:, None] * C[None, :]
    q = g * ah
    dB, dC = tl.sum(g * du_in[:, None], axis=0), tl.sum(dy[:, None] * h, axis=0)
    return g * a, delta[:, None] * q, dB, dC, tl.sum(q * a_log2, axis=1) * LN2, tl.sum(g * B[None, :], axis=1)


@triton.jit
def scan_backward(
    u, delta, dy, A, B, C, D, bias, states, start, scratch, du, ddelta, dA, dB, dC, dD, dbias, dstart,
    L, steps, chunks, E, u_next, delta_next, u_b, u_t, delta_b, delta_t, STATES: tl.constexpr,
    N: tl.constexpr, BLOCK: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
    REVERSE: tl.constexpr, SOFTPLUS: tl.constexpr, MASK: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    """All gradients of one chunk: K steps forward again from a kept h, leaving delta and every second h in `scratch`.

    States across the lanes too, (BLOCK, N), so that the sums over channels cost few shuffles. Sums over the batch, the
    chunks and the blocks of channels are left in parts and added up outside, in a fixed order.
    """
    block, row, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, chunk, batch = (row // chunks).to(tl.int64), row % chunks, tl.num_programs(1) // chunks
    d, n = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, N)
    inside, some = (d < E) if MASK else (d == d), (n < STATES) if N != STATES else (n == n)
    cell = inside[:, None] & some[None, :]
    place = n[None, :] * E + d[:, None]
    a_log2 = tl.load(A + direction * STATES * E + place, mask=cell, other=0.0)
    skip = tl.zeros([BLOCK], ACC) if D is None else tl.load(D + direction * E + d, mask=inside, other=0.0)
    shift = tl.zeros([BLOCK], ACC) if bias is None else tl.load(bias + direction * E + d, mask=inside, other=0.0)
    line = direction * batch + b
    run = line * chunks + chunk
    r = tl.load(start + run * STATES * E + place, mask=cell, other=0.0) if START else tl.zeros([BLOCK, N], ACC)
    sum_A = tl.zeros([BLOCK, N], ACC)
    sum_D, sum_bias = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    low, high = chunk * steps, tl.minimum((chunk + 1) * steps, L)
    backwards = direction + REVERSE
    own = (run * tl.num_programs(0) + block) * (K // 2 * N + K) * BLOCK
    saved_delta = scratch + own + K // 2 * N * BLOCK + tl.arange(0, BLOCK)
    saved = scratch + own + n[None, :] * BLOCK + tl.arange(0, BLOCK)[:, None]
    u += direction * u_next + b * u_b + d
    delta += direction * delta_next + b * delta_b + d
    dy += b * L * E + d  # the same for both directions
    B += line * L * STATES + n
    C += line * L * STATES + n
    du += line * L * E + d
    ddelta += line * L * E + d
    part = (direction * tl.num_programs(0) + block) * batch + b
    dB += part * L * STATES + n
    dC += part * L * STATES + n
    heads = tl.cdiv(high - low, K)
    for j in range(heads):
        head = low + (heads - 1 - j) * K
        kept = line * tl.cdiv(L, K) + head // K
        h = tl.load(states + kept * STATES * E + place, mask=cell, other=0.0)
        for i in range(K // 2):
            tl.store(saved + i * BLOCK * N, h)
            for k in tl.static_range(2):
                s = tl.minimum(head + 2 * i + k, high - 1)
                t = (s + backwards * (L - 1 - 2 * s)).to(tl.int64)
                u_i = tl.load(u + t * u_t, mask=inside, other=0.0).to(ACC)
                raw = tl.load(delta + t * delta_t, mask=inside, other=0.0).to(ACC) + shift
                B_i = tl.load(B + t * STATES, mask=some, other=0.0)
                delta_i = step_size(raw, inside & (head + 2 * i + k < high), SOFTPLUS)
                tl.store(saved_delta + (2 * i + k) * BLOCK, delta_i)
                h = tl.exp2(delta_i[:, None] * a_log2) * h + (delta_i * u_i)[:, None] * B_i[None, :]
        tl.debug_barrier()  # what one lane left in scratch another may read
        for back in range(K // 2):
            i = K // 2 - 1 - back
            s = head + 2 * i
            here, next_ = inside & (s < high), inside & (s + 1 < high)
            s0, s1 = tl.minimum(s, high - 1), tl.minimum(s + 1, high - 1)
            t0, t1 = (s0 + backwards * (L - 1 - 2 * s0)).to(tl.int64), (s1 + backwards * (L - 1 - 2 * s1)).to(tl.int64)
            u0 = tl.load(u + t0 * u_t, mask=here, other=0.0).to(ACC)
            u1 = tl.load(u + t1 * u_t, mask=next_, other=0.0).to(ACC)
            raw0 = tl.load(delta + t0 * delta_t, mask=here, other=0.0).to(ACC) + shift
            raw1 = tl.load(delta + t1 * delta_t, mask=next_, other=0.0).to(ACC) + shift
            dy0 = tl.load(dy + t0 * E, mask=here, other=0.0).to(ACC)
            dy1 = tl.load(dy + t1 * E, mask=next_, other=0.0).to(ACC)
            B0, B1 = tl.load(B + t0 * STATES, mask=some, other=0.0), tl.load(B + t1 * STATES, mask=some, other=0.0)
            C0, C1 = tl.load(C + t0 * STATES, mask=some, other=0.0), tl.load(C + t1 * STATES, mask=some, other=0.0)
            delta0, delta1 = tl.load(saved_delta + 2 * i * BLOCK), tl.load(saved_delta + (2 * i + 1) * BLOCK)
            a0, a1 = tl.exp2(delta0[:, None] * a_log2), tl.exp2(delta1[:, None] * a_log2)
            ah0 = a0 * tl.load(saved + i * BLOCK * N)
            ah1 = a1 * (ah0 + (delta0 * u0)[:, None] * B0[None, :])
            r, dA1, dB1, dC1, dd1, s1_ = adjoint_step(r, a1, ah1, dy1, delta1, delta1 * u1, B1, C1, a_log2)
            r, dA0, dB0, dC0, dd0, s0_ = adjoint_step(r, a0, ah0, dy0, delta0, delta0 * u0, B0, C0, a_log2)
            slope0, slope1 = (sigmoid(raw0), sigmoid(raw1)) if SOFTPLUS else (1.0, 1.0)
            dd0, dd1 = (dd0 + s0_ * u0) * slope0, (dd1 + s1_ * u1) * slope1
            sum_A += dA0 + dA1
            sum_D += dy0 * u0 + dy1 * u1
            sum_bias += tl.where(here, dd0, 0.0) + tl.where(next_, dd1, 0.0)
            tl.store(dB + t1 * STATES, dB1, mask=some & (s + 1 < high))
            tl.store(dC + t1 * STATES, dC1, mask=some & (s + 1 < high))
            tl.store(du + t1 * E, (s1_ * delta1 + skip * dy1).to(du.dtype.element_ty), mask=next_)
            tl.store(ddelta + t1 * E, dd1.to(ddelta.dtype.element_ty), mask=next_)
            tl.store(dB + t0 * STATES, dB0, mask=some & (s < high))
            tl.store(dC + t0 * STATES, dC0, mask=some & (s < high))
            tl.store(du + t0 * E, (s0_ * delta0 + skip * dy0).to(du.dtype.element_ty), mask=here)
            tl.store(ddelta + t0 * E, dd0.to(ddelta.dtype.element_ty), mask=here)
        tl.debug_barrier()
    tl.store(dA + run * STATES * E + place, sum_A, mask=cell)
    tl.store(dD + run * E + d, sum_D, mask=inside)
    tl.store(dbias + run * E + d, sum_bias, mask=inside)
    if chunk == 0:
        tl.store(dstart + line * STATES * E + place, r, mask=cell)
