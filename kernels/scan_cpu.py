"""The CPU scan as PyTorch operators: autograd, torch.compile and torch.export see one opaque op and its gradient.

`scan` runs one direction, `scan_pair` a forward and a backward one that share the gate z, and averages them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from minivim.kernels import host, scan_numba
from minivim.kernels.host import compute_dtype, partition, pointer, rows, walk
from minivim.kernels.lanes import LOG2E
from minivim.kernels.scan_numba import CHUNK, RECORD
from torch import Tensor

MAX_STATES = 64  # the backward pass keeps its sums on the stack


class Direction(NamedTuple):
    """One scan, as the kernels want it: one dtype, unit stride along channels and states, A = A^T log2(e)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    bias: Tensor | None
    softplus: bool
    reverse: bool


def pad_states(x: Tensor, dtype: torch.dtype) -> Tensor:
    """States are taken four at a time; the missing ones are zero."""
    missing = -x.shape[-1] % 4
    return rows(F.pad(x, (0, missing)) if missing else x, dtype)


def direction(u, delta, A, B, C, D, bias, softplus, reverse, dtype) -> Direction:
    A = (pad_states(A, dtype) * LOG2E).t().contiguous()
    D, bias = (x if x is None else rows(x, dtype) for x in (D, bias))
    return Direction(
        rows(u, dtype), rows(delta, dtype), A, pad_states(B, dtype), pad_states(C, dtype), D, bias, softplus, reverse
    )


def forward_record(part: Direction, z, out, state, index: int, share: int) -> list[int]:
    """The fields of `scan_numba` that both passes read; state (B, 1 or chunks + 1, N, E)."""
    back = part.reverse
    arrays = [field for x in (part.u, part.delta, z, out, part.B, part.C) for field in walk(x, back)]
    between = state.stride(1) if state.shape[1] > 1 else 0
    vectors = [part.A.data_ptr(), pointer(part.D), pointer(part.bias), state.data_ptr(), state.stride(0), between]
    return [*arrays, *vectors, int(part.softplus), int(index > 0), share]


def run(name: str, parts: list[Direction], records: list[list[int]]) -> None:
    """One launch for all directions."""
    (batch, L, E), N = parts[0].u.shape, parts[0].A.shape[0]
    fields = [field for record in records for field in record + [0] * (RECORD - len(record))]
    sizes = [batch, L, E, N, len(parts)]
    host.run(scan_numba, name, parts[0].u.dtype, sizes, fields, batch * L * E * N * len(parts))


def forward(parts: list[Direction], z, initial_state, save: bool, out_dtype) -> tuple[Tensor, Tensor]:
    """out (B, L, E) and the states (directions, B, 1 or chunks + 1, N, E), of which the last is the final one."""
    u = parts[0].u
    batch, L, E = u.shape
    N = parts[0].A.shape[0]
    states = u.new_empty(len(parts), batch, slots(L, save), N, E)
    states[:, :, 0] = 0
    if initial_state is not None:
        states[0, :, 0, : initial_state.shape[2]] = initial_state.transpose(1, 2)
    z = None if z is None else rows(z, u.dtype)
    out = torch.empty(batch, L, E, dtype=u.dtype)
    records = [forward_record(part, z, out, states[i], i, len(parts)) for i, part in enumerate(parts)]
    run("forward", parts, records)
    return out.to(out_dtype), states


def backward(parts: list[Direction], z, states, dout, dlast) -> tuple[list[tuple[Tensor, ...]], Tensor | None]:
    """For each direction (du, ddelta, dA, dB, dC, dD, dbias, dh0), in the kernels' layout, and dz."""
    u = parts[0].u
    batch, L, E = u.shape
    N = parts[0].A.shape[0]
    slabs, groups = partition(batch, E)
    z, dout = None if z is None else rows(z, u.dtype), rows(dout, u.dtype)
    dz = None if z is None else torch.empty(batch, L, E, dtype=u.dtype)
    records, buffers = [], []
    for i, part in enumerate(parts):
        du, ddelta = (torch.empty(batch, L, E, dtype=u.dtype) for _ in range(2))
        sums = torch.empty(2, groups, batch, L, N, dtype=u.dtype)
        dA = torch.zeros(slabs, N, E, dtype=u.dtype)
        dD, dbias = (torch.zeros(slabs, E, dtype=u.dtype) for _ in range(2))
        dh = torch.zeros(batch, N, E, dtype=u.dtype)
        if dlast is not None:
            dh[:, : dlast.shape[2]] = dlast.transpose(1, 2)
        back = part.reverse
        start, step_b, step_t = walk(du, back)
        shift = start - du.data_ptr()
        gradients = [start, ddelta.data_ptr() + shift, 0 if dz is None else dz.data_ptr() + shift, step_b, step_t]
        (dB, sum_b, sum_t), (dC, _, _) = walk(sums[0, 0], back), walk(sums[1, 0], back)
        partial = [dB, dC, batch * L * N, sum_b, sum_t, dA.data_ptr(), dh.data_ptr(), dD.data_ptr(), dbias.data_ptr()]
        forward_fields = forward_record(part, z, None, states[i], i, len(parts))
        records.append([*forward_fields, *walk(dout, back), *gradients, *partial])
        buffers.append((du, ddelta, dA, *sums, dD, dbias, dh))
    run("backward", parts, records)
    reduced = [
        (du, ddelta, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dbias.sum(0), dh)
        for du, ddelta, dA, dB, dC, dD, dbias, dh in buffers
    ]
    return reduced, dz


def slots(L: int, save: bool) -> int:
    return -(-L // CHUNK) + 1 if save else 1


@host.operator("scan_cpu")
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
    last_state = states[0, :, -1, : A.shape[1]].transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return out, last_state, states


@scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, initial_state, softplus, reverse, save):
    (batch, L, E), N, dtype = u.shape, A.shape[1], compute_dtype(u)
    states = u.new_empty(1, batch, slots(L, save), N + -N % 4, E, dtype=dtype)
    return u.new_empty(u.shape), u.new_empty(batch, E, N, dtype=dtype), states


@host.operator("scan_cpu_backward")
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
    return in_layout(gradients, u, delta, A, B, C) + ([] if z is None else [dz.to(z.dtype)])


def in_layout(gradients, u, delta, A, B, C) -> list[Tensor]:
    """From the kernels' layout to the inputs' shapes and dtypes."""
    du, ddelta, dA, dB, dC, dD, dbias, dh = gradients
    N = A.shape[1]
    return [
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA[:N].t().contiguous().to(A.dtype),
        dB[..., :N].to(B.dtype).contiguous(),
        dC[..., :N].to(C.dtype).contiguous(),
        dD,
        dbias,
        dh[:, :N].transpose(1, 2).contiguous(),
    ]


def fake_gradients(u, delta, A, B, C, dtype) -> list[Tensor]:
    batch, _, E = u.shape
    like = [x.new_empty(x.shape) for x in (u, delta, A, B, C)]
    return [*like, *(u.new_empty(E, dtype=dtype) for _ in "Db"), u.new_empty(batch, E, A.shape[1], dtype=dtype)]


@scan_backward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, states, dout, dlast, softplus, reverse):
    return fake_gradients(u, delta, A, B, C, states.dtype) + ([] if z is None else [z.new_empty(z.shape)])


def optional(gradient: Tensor, x: Tensor | None) -> Tensor | None:
    return None if x is None else gradient.to(x.dtype)


def save_inputs(ctx, inputs, output):
    *tensors, ctx.softplus, ctx.reverse, _ = inputs
    ctx.initial_state = tensors.pop()
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def scan_gradient(ctx, dout, dlast, _):
    u, delta, A, B, C, D, z, delta_bias, states = ctx.saved_tensors
    if dout is None:
        dout = torch.zeros_like(u)
    du, ddelta, dA, dB, dC, dD, dbias, dh, *dz = scan_backward(
        u, delta, A, B, C, D, z, delta_bias, states, dout, dlast, ctx.softplus, ctx.reverse
    )
    dD, dbias, dh = optional(dD, D), optional(dbias, delta_bias), optional(dh, ctx.initial_state)
    return du, ddelta, dA, dB, dC, dD, dz[0] if dz else None, dbias, dh, None, None, None


scan.register_autograd(scan_gradient, setup_context=save_inputs)


def check_states(A: Tensor) -> None:
    if A.shape[1] > MAX_STATES:
        raise ValueError(f"A has {A.shape[1]} states; backend 'numba' takes at most {MAX_STATES}: use 'chunked'")


def selective_scan(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse
) -> tuple[Tensor, Tensor]:
    """(out, last state); states are saved only if a gradient may be asked for."""
    check_states(A)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    save = host.wants_gradient(tensors)
    out, last_state, _ = host.entry(scan, u, save)(*tensors, delta_softplus, reverse, save)
    return out, last_state
