"""The CPU scan as PyTorch operators: autograd, torch.compile and torch.export see one opaque op and its gradient.

`scan` runs one direction, `scan_pair` a forward and a backward one that share the gate z, and averages them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from minivim.kernels import operators
from minivim.kernels.cpu import host
from minivim.kernels.cpu.host import address_of, groups_of, header, rows, walk
from minivim.kernels.cpu.records import Scan, ScanGradient, ScanSums, pack_walk
from minivim.kernels.cpu.scan import backward as backward_loops
from minivim.kernels.cpu.scan import forward as forward_loops
from minivim.kernels.cpu.scan.forward import CHUNK
from minivim.kernels.operators import cast, compute_dtype
from torch import Tensor


class Direction(NamedTuple):
    """One scan, as the kernels want it: one dtype, unit stride along channels, states in fours."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    softplus: bool
    reverse: bool


def padded(A: Tensor) -> int:
    """The number of states, rounded up to a multiple of 4."""
    return A.shape[-1] + -A.shape[-1] % 4


def pad_states(x: Tensor, dtype: torch.dtype) -> Tensor:
    """States are taken four at a time; the missing ones are zero."""
    return rows(F.pad(x, (0, padded(x) - x.shape[-1])) if x.shape[-1] % 4 else x, dtype)


def direction(u, delta, A, B, C, D, bias, softplus, reverse, dtype) -> Direction:
    u, delta, B, C = rows(u, dtype), rows(delta, dtype), pad_states(B, dtype), pad_states(C, dtype)
    D, bias = None if D is None else rows(D, dtype), None if bias is None else rows(bias, dtype)
    return Direction(u, delta, cast(A, dtype), B, C, D, bias, softplus, reverse)


def record(part: Direction, z, out, state, index: int, share: int, fresh: bool) -> Scan:
    """What both passes read; state (B, 1 or chunks + 1, N, E)."""
    back, between = part.reverse, state.stride(1) if state.shape[1] > 1 else 0
    return Scan(
        N=padded(part.A),
        states=part.A.shape[1],
        u=walk(part.u, back),
        delta=walk(part.delta, back),
        z=walk(z, back),
        out=walk(out, back),
        B=walk(part.B, back),
        C=walk(part.C, back),
        A=pack_walk(part.A.data_ptr(), *part.A.stride()),
        D=address_of(part.D),
        bias=address_of(part.bias),
        state=pack_walk(state.data_ptr(), state.stride(0), between),
        softplus=part.softplus,
        accumulate=index > 0,
        share=share,
        fresh=fresh,
    )


def slots(L: int, save: bool) -> int:
    return -(-L // CHUNK) + 1 if save else 1


def forward(parts: list[Direction], z, initial_state, save: bool, out_dtype) -> tuple[Tensor, Tensor]:
    """out (B, L, E) and the states (directions, B, 1 or chunks + 1, N, E), of which the last is the final one."""
    u = parts[0].u
    (batch, L, E), N = u.shape, padded(parts[0].A)
    states = u.new_empty(len(parts), batch, slots(L, save), N, E)
    if initial_state is not None:
        states[0, :, 0] = pad_states(initial_state, u.dtype).transpose(1, 2)
    z = None if z is None else rows(z, u.dtype)
    out = u.new_empty(batch, L, E)
    fresh = initial_state is None
    records = [record(part, None, out, states[i], i, 1, fresh) for i, part in enumerate(parts[:-1])]
    records.append(record(parts[-1], z, out, states[-1], len(parts) - 1, len(parts), fresh))
    head = header(batch, L, E, groups_of(E), len(parts))
    host.run(forward_loops, "forward", u.dtype, head, records, batch * L * E * N * len(parts))
    return cast(out, out_dtype), states


def backward(parts: list[Direction], z, states, dout, dlast) -> tuple[list[tuple[Tensor, ...]], Tensor | None]:
    """For each direction (du, ddelta, dA, dB, dC, dD, dbias, dh0), and dz."""
    u, states_of_A = parts[0].u, parts[0].A.shape[1]
    (batch, L, E), N, dtype = u.shape, padded(parts[0].A), u.dtype
    head = header(batch, L, E, groups_of(E), len(parts))
    slabs, groups = head.slabs, head.groups
    z, dout = None if z is None else rows(z, dtype), rows(dout, dtype)
    dz = None if z is None else u.new_empty(batch, L, E)
    records, gradients, targets = [], [], []
    for i, part in enumerate(parts):
        back = part.reverse
        du, ddelta = u.new_empty(batch, L, E), u.new_empty(batch, L, E)
        sums = u.new_empty(2, groups, batch, L, N)  # dB and dC of each group of channels
        totals = u.new_empty(slabs, N + 2, E)  # dA, dD and dbias of each part of the batch
        dh = u.new_empty(batch, N, E)
        if dlast is not None:
            dh.copy_(pad_states(dlast, dtype).transpose(1, 2))
        records.append(record(part, z, None, states[i], i, len(parts), dlast is None))
        records.append(
            ScanGradient(
                dout=walk(dout, back),
                du=walk(du, back),
                ddelta=walk(ddelta, back),
                dz=walk(dz, back),
                dB=walk(sums[0, 0], back),
                dC=groups * batch * L * N,
                group=batch * L * N,
                totals=totals.data_ptr(),
                dh=dh.data_ptr(),
            )
        )
        shapes = ((E, states_of_A), (batch, L, states_of_A), (batch, L, states_of_A), (E,), (E,))
        dA, dB, dC, dD, dbias = (u.new_empty(shape) for shape in shapes)
        targets.append(
            ScanSums(
                N=N,
                states=states_of_A,
                parts=sums.data_ptr(),
                dB=dB.data_ptr(),
                dC=dC.data_ptr(),
                totals=totals.data_ptr(),
                dA=dA.data_ptr(),
                dD=dD.data_ptr(),
                dbias=dbias.data_ptr(),
            )
        )
        gradients.append((du, ddelta, dA, dB, dC, dD, dbias, dh[:, :states_of_A].transpose(1, 2), sums, totals))
    host.run(backward_loops, "backward", dtype, head, records, batch * L * E * N * len(parts))
    host.run(backward_loops, "reduce", dtype, head, targets, groups * batch * L * N)
    return [each[:8] for each in gradients], dz


@operators.operator("scan_cpu", "numba")
def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, L, E), last state (B, E, N), saved states; shapes and meaning as in `minivim.selective_scan`."""
    part = direction(u, delta, A, B, C, D, delta_bias, softplus, reverse, compute_dtype(u))
    out, states = forward([part], z, initial_state, save, u.dtype)
    last_state = states[0, :, -1] if A.shape[1] % 4 == 0 else states[0, :, -1, : A.shape[1]]
    return out, last_state.mT.clone(memory_format=torch.contiguous_format), states


@scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, initial_state, softplus, reverse, save):
    (batch, L, E), N, dtype = u.shape, A.shape[1], compute_dtype(u)
    states = u.new_empty(1, batch, slots(L, save), padded(A), E, dtype=dtype)
    return u.new_empty(u.shape), u.new_empty(batch, E, N, dtype=dtype), states


def in_dtypes(gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The gradients of u, delta, A, B and C in the inputs' dtypes, the others as they are."""
    return [*(cast(g, x.dtype) for g, x in zip(gradients, inputs, strict=False)), *gradients[len(inputs) :]]


@operators.operator("scan_cpu_backward", "numba")
def scan_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    dout: Tensor,
    dlast: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> list[Tensor]:
    """The gradients of u, delta, A, B, C, D, delta_bias, initial_state and z (the last absent without z)."""
    part = direction(u, delta, A, B, C, D, delta_bias, softplus, reverse, states.dtype)
    [gradients], dz = backward([part], z, states, dout, dlast)
    return in_dtypes(gradients, (u, delta, A, B, C)) + ([] if z is None else [cast(dz, z.dtype)])


def fake_gradients(u, delta, A, B, C, dtype) -> list[Tensor]:
    (batch, _, E), N = u.shape, A.shape[1]
    like = [x.new_empty(x.shape) for x in (u, delta, A, B, C)]
    dh = u.new_empty(batch, padded(A), E, dtype=dtype)[:, :N].transpose(1, 2)
    return [*like, *(u.new_empty(E, dtype=dtype) for _ in "Db"), dh]


@scan_backward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, states, dout, dlast, softplus, reverse):
    return fake_gradients(u, delta, A, B, C, states.dtype) + ([] if z is None else [z.new_empty(z.shape)])


def optional(gradient: Tensor, x: Tensor | None) -> Tensor | None:
    return None if x is None else cast(gradient, x.dtype)


def save_inputs(ctx, inputs, output):
    *tensors, ctx.softplus, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def scan_gradient(ctx, saved, dout, dlast, _):
    u, delta, A, B, C, D, z, delta_bias, initial_state, states = saved
    if dout is None:
        dout = torch.zeros_like(u)
    run_backward = operators.entry(scan_backward, saved)
    du, ddelta, dA, dB, dC, dD, dbias, dh, *dz = run_backward(
        u, delta, A, B, C, D, z, delta_bias, states, dout, dlast, ctx.softplus, ctx.reverse
    )
    dD, dbias, dh = optional(dD, D), optional(dbias, delta_bias), optional(dh, initial_state)
    return du, ddelta, dA, dB, dC, dD, dz[0] if dz else None, dbias, dh, None, None, None


operators.differentiate(scan, save_inputs, scan_gradient)


def selective_scan(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse
) -> tuple[Tensor, Tensor]:
    """(out, last state); states are saved only if a gradient may be asked for."""
    operators.check_states(A, "numba")
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    save = operators.wants_gradient(tensors)
    out, last_state, _ = operators.entry(scan, tensors, save)(*tensors, delta_softplus, reverse, save)
    return out, last_state
