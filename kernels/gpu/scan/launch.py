"""The Triton scan as PyTorch operators: one for any number of directions (one, or both of a Vim block)."""

from typing import NamedTuple

import torch
import triton
from minivim.kernels import operators
from minivim.kernels.gpu import gate as gates
from minivim.kernels.gpu.host import accumulator, rows
from minivim.kernels.gpu.scan import kernels
from minivim.kernels.operators import compute_dtype
from torch import Tensor

LOG2E = 1.4426950408889634
K = 32  # steps between two states that the forward pass keeps
BLOCK_BACKWARD = 32  # channels of a program of the backward pass
FILLED = 528 * 2.5  # warps that keep an H200's 528 schedulers busy


class Plan(NamedTuple):
    """How a scan is cut: V channels a lane, chunks of `steps` steps."""

    V: int
    chunks: int
    steps: int


def plan(directions: int, batch: int, L: int, E: int) -> Plan:
    """As many channels a lane as keep the GPU full; where one does not, chunks of time, which cost twice the exps."""
    for V in (4, 2, 1):
        if directions * batch * E / (32 * V) >= FILLED and E % V == 0:
            return Plan(V, 1, L)
    wanted = FILLED / max(1, directions * batch * triton.cdiv(E, 32))
    chunks = 1
    while chunks < wanted and L >= 2 * chunks * K:
        chunks *= 2
    steps = triton.cdiv(triton.cdiv(L, chunks), K) * K
    return Plan(1, triton.cdiv(L, steps), steps)


class Scan(NamedTuple):
    """The inputs as the kernels want them; `next` counts elements from the first direction's tensor to the second's."""

    u: Tensor
    delta: Tensor
    u_next: int
    delta_next: int
    A: Tensor  # (directions, N, E), A log2(e)
    B: Tensor  # (directions, B, L, N)
    C: Tensor
    D: Tensor | None  # (directions, E)
    bias: Tensor | None
    acc: torch.dtype


def together(tensors: list[Tensor]) -> tuple[Tensor, int]:
    """The first direction's tensor and how far behind it the second's lies; a copy where their strides differ."""
    tensors = [rows(x) for x in tensors]
    first = tensors[0]
    if len(tensors) == 1:
        return first, 0
    apart = tensors[1].data_ptr() - first.data_ptr()
    if tensors[1].stride() != first.stride() or tensors[1].dtype != first.dtype or apart % first.element_size():
        first = torch.stack(tensors)
        return first[0], first.stride(0)
    return first, apart // first.element_size()


def stacked(tensors: list[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    return None if tensors[0] is None else torch.stack([x.to(dtype) for x in tensors])


def prepare(u, delta, A, B, C, D, bias) -> Scan:
    """Lists with one tensor a direction."""
    acc = compute_dtype(u[0])
    (u_first, u_next), (delta_first, delta_next) = together(u), together(delta)
    logs = stacked([(x.to(acc) * LOG2E).t() for x in A], acc)
    return Scan(
        u_first,
        delta_first,
        u_next,
        delta_next,
        logs,
        stacked(B, acc),
        stacked(C, acc),
        stacked(D, acc),
        stacked(bias, acc),
        acc,
    )


def constants(scan: Scan, block: int, reverse: bool, softplus: bool) -> dict:
    """What all kernels are compiled for."""
    N, E = scan.A.shape[1:]
    return {
        "STATES": N,
        "N": triton.next_power_of_2(N),
        "BLOCK": block,
        "ACC": accumulator(scan.acc),
        "REVERSE": int(reverse),
        "SOFTPLUS": softplus,
        "MASK": E % block != 0,
        "num_warps": 1,
    }


def begin_states(scan: Scan, cut: Plan, x, x_next, BC, start, reverse, softplus, adjoint: bool) -> Tensor:
    """The state that enters each chunk (directions, B, chunks, N, E)."""
    (batch, L, E), (directions, N, _) = x.shape, scan.A.shape
    added = torch.empty(directions, batch, cut.chunks, N, E, dtype=scan.acc, device=x.device)
    faded = torch.empty(directions, batch, cut.chunks, E, dtype=scan.acc, device=x.device)
    fixed = constants(scan, 32 * cut.V, reverse, softplus)
    kernels.scan_states[(triton.cdiv(E, 32 * cut.V), batch * cut.chunks, directions)](
        x, scan.delta, scan.A, BC, scan.bias, added, faded,
        L, cut.steps, cut.chunks, E // cut.V, x_next, scan.delta_next, *x.stride()[:2], *scan.delta.stride()[:2],
        V=cut.V, ADJOINT=adjoint, **fixed,
    )  # fmt: skip
    begins = torch.empty_like(added)
    kernels.combine_states[(triton.cdiv(E, 32), batch, directions)](
        scan.A, added, faded, start, begins, cut.chunks, E,
        STATES=N, N=fixed["N"], BLOCK=32, ACC=fixed["ACC"], START=start is not None, ADJOINT=adjoint, num_warps=1,
    )  # fmt: skip
    return begins


def forward(scan: Scan, cut: Plan, z, start, reverse: bool, softplus: bool, save: bool):
    """(y, gated out or None, kept states, last state); y (directions, B, L, E), states (directions, B, ., N, E)."""
    u, (directions, N, E) = scan.u, scan.A.shape
    batch, L, _ = u.shape
    new = {"dtype": scan.acc, "device": u.device}
    gated = z is not None and directions == 1
    y = torch.empty(directions, batch, L, E, dtype=u.dtype, device=u.device)
    out = torch.empty(batch, L, E, dtype=u.dtype, device=u.device) if gated else None
    states = torch.empty(directions, batch, triton.cdiv(L, K) if save else 0, N, E, **new)
    last = torch.empty(directions, batch, N, E, **new)
    if cut.chunks > 1:
        start = begin_states(scan, cut, u, scan.u_next, scan.B, start, reverse, softplus, adjoint=False)
    block = 32 * cut.V
    kernels.scan_forward[(triton.cdiv(E, block), batch * cut.chunks, directions)](
        u, scan.delta, z if gated else None, scan.A, scan.B, scan.C, scan.D, scan.bias, start, y, out, states, last,
        L, cut.steps, cut.chunks, E // cut.V, scan.u_next, scan.delta_next, *u.stride()[:2], *scan.delta.stride()[:2],
        *(z.stride()[:2] if gated else (0, 0)),
        V=cut.V, K=K, START=start is not None, SAVE=save, **constants(scan, block, reverse, softplus),
    )  # fmt: skip
    return y, out, states, last


def gate(y: Tensor, z: Tensor, dout: Tensor | None, acc: torch.dtype):
    """out, or with dout (dy, dz)."""
    directions, batch, L, E = y.shape
    block = min(1024, triton.next_power_of_2(E))
    fixed = {"R": directions, "BLOCK": block, "ACC": accumulator(acc)}
    grid, sizes = (batch * L, triton.cdiv(E, block)), (batch * L, L, E, *z.stride()[:2])
    if dout is None:
        out = torch.empty_like(y[0])
        gates.gate_forward[grid](y, z, out, *sizes, **fixed)
        return out
    dy, dz = torch.empty_like(y[0]), torch.empty(z.shape, dtype=z.dtype, device=z.device)
    gates.gate_backward[grid](y, z, dout, dy, dz, *sizes, **fixed)
    return dy, dz


def backward(scan: Scan, cut: Plan, dy: Tensor, states: Tensor, dlast: Tensor | None, reverse: bool, softplus: bool):
    """(du, ddelta, dA, dB, dC, dD, dbias, dstart), each with the directions in front; A, start as (N, E)."""
    u, (directions, N, E) = scan.u, scan.A.shape
    batch, L, _ = u.shape
    new = {"dtype": scan.acc, "device": u.device}
    blocks = triton.cdiv(E, BLOCK_BACKWARD)
    fixed = constants(scan, BLOCK_BACKWARD, reverse, softplus)
    scratch = torch.empty(directions * batch * cut.chunks * blocks, K // 2 * fixed["N"] + K, BLOCK_BACKWARD, **new)
    du = torch.empty(directions, batch, L, E, dtype=u.dtype, device=u.device)
    ddelta = torch.empty(directions, batch, L, E, dtype=scan.delta.dtype, device=u.device)
    dB, dC = (torch.empty(directions, blocks, batch, L, N, **new) for _ in range(2))
    dA = torch.empty(directions, batch * cut.chunks, N, E, **new)
    dD, dbias = (torch.empty(directions, batch * cut.chunks, E, **new) for _ in range(2))
    dstart = torch.empty(directions, batch, N, E, **new)
    if cut.chunks > 1:
        dlast = begin_states(scan, cut, dy, 0, scan.C, dlast, reverse, softplus, adjoint=True)
    kernels.scan_backward[(blocks, batch * cut.chunks, directions)](
        u, scan.delta, dy, scan.A, scan.B, scan.C, scan.D, scan.bias, states, dlast, scratch,
        du, ddelta, dA, dB, dC, dD, dbias, dstart,
        L, cut.steps, cut.chunks, E, scan.u_next, scan.delta_next, *u.stride()[:2], *scan.delta.stride()[:2],
        K=K, START=dlast is not None, **fixed,
    )  # fmt: skip
    return du, ddelta, dA.sum(1), dB.sum(1), dC.sum(1), dD.sum(1), dbias.sum(1), dstart


@operators.operator("scan_gpu", "triton")
def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    start: Tensor | None,
    u_b: Tensor | None,
    delta_b: Tensor | None,
    A_b: Tensor | None,
    B_b: Tensor | None,
    C_b: Tensor | None,
    D_b: Tensor | None,
    bias_b: Tensor | None,
    softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out (B, L, E), last state (B, E, N), y before the gate (empty without one), kept states.

    With a second direction, `*_b`, which walks against the first, out is the mean of both, and no last state is given.
    """
    prepared = directions((u, delta, A, B, C, D, bias), (u_b, delta_b, A_b, B_b, C_b, D_b, bias_b))
    cut = plan(len(prepared.A), *u.shape)
    start = None if start is None else start.to(prepared.acc).transpose(1, 2).contiguous()
    z = None if z is None else rows(z)
    y, out, states, last = forward(prepared, cut, z, start, reverse, softplus, save)
    if z is None:
        out, y = y[0], y.new_empty(0)
    elif out is None:
        out = gate(y, z, None, prepared.acc)
    last = last[0].transpose(1, 2) if u_b is None else last.new_empty(0)
    return out, last, y, states


def directions(first: tuple, second: tuple) -> Scan:
    return prepare(*([a] if second[0] is None else [a, b] for a, b in zip(first, second, strict=True)))


@scan.register_fake
def _(u, delta, A, B, C, D, z, bias, start, u_b, delta_b, A_b, B_b, C_b, D_b, bias_b, softplus, reverse, save):
    (batch, L, E), N, R, acc = u.shape, A.shape[1], 1 if u_b is None else 2, compute_dtype(u)
    last = u.new_empty(batch, N, E, dtype=acc).transpose(1, 2) if u_b is None else u.new_empty(0, dtype=acc)
    y = u.new_empty(0) if z is None else u.new_empty(R, batch, L, E)
    return u.new_empty(u.shape), last, y, u.new_empty(R, batch, -(-L // K) if save else 0, N, E, dtype=acc)


@operators.operator("scan_gpu_backward", "triton")
def scan_backward(
    first: list[Tensor],
    second: list[Tensor],
    D: list[Tensor],
    bias: list[Tensor],
    z: Tensor | None,
    y: Tensor,
    states: Tensor,
    dout: Tensor,
    dlast: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> list[Tensor]:
    """du, ddelta, dA, dB, dC, dD, dbias, each with the directions in front, dstart (B, E, N), and dz if there is z."""
    both = [[a, b] for a, b in zip(first, second, strict=True)] if second else [[a] for a in first]
    prepared = prepare(*both, D or [None], bias or [None])
    cut = plan(len(prepared.A), *first[0].shape)
    dout, dz = dout.contiguous(), []
    if z is not None:
        dout, gradient = gate(y, rows(z), dout, prepared.acc)
        dz = [gradient]
    if dlast is not None:
        dlast = dlast.to(prepared.acc).transpose(1, 2).contiguous()
    *gradients, dstart = backward(prepared, cut, dout, states, dlast, reverse, softplus)
    gradients[2] = gradients[2].transpose(1, 2)
    return [*gradients, dstart[0].transpose(1, 2), *dz]


@scan_backward.register_fake
def _(first, second, D, bias, z, y, states, dout, dlast, softplus, reverse):
    u, delta, A = first[:3]
    (batch, L, E), N, R, acc = u.shape, A.shape[1], 2 if second else 1, states.dtype
    like = [u.new_empty(R, *u.shape), u.new_empty(R, *u.shape, dtype=delta.dtype)]
    like += [u.new_empty(R, N, E, dtype=acc).transpose(1, 2)]
    like += [u.new_empty(R, batch, L, N, dtype=acc) for _ in "BC"] + [u.new_empty(R, E, dtype=acc) for _ in "Db"]
    dstart = u.new_empty(batch, N, E, dtype=acc).transpose(1, 2)
    return [*like, dstart, *([] if z is None else [z.new_empty(z.shape)])]


def save_inputs(ctx, inputs, output):
    *tensors, ctx.softplus, ctx.reverse, _ = inputs
    ctx.save_for_backward(*tensors, output[2], output[3])
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.set_materialize_grads(False)


def scan_gradient(ctx, saved, dout, dlast, _y, _states):
    u, delta, A, B, C, D, z, bias, start, *second, y, states = saved
    first = (u, delta, A, B, C, D, bias)
    given = [first] if second[0] is None else [first, tuple(second)]
    dout = torch.zeros_like(u) if dout is None else dout
    dlast = dlast if second[0] is None else None
    found = operators.entry(scan_backward, (u,))(
        list(first[:5]),
        [] if second[0] is None else second[:5],
        [x[5] for x in given if x[5] is not None],
        [x[6] for x in given if x[6] is not None],
        *(z, y, states, dout, dlast, ctx.softplus, ctx.reverse),
    )
    dstart, dz = None if start is None else found[7].to(start.dtype), None if z is None else found[8]

    def of(direction: int) -> list[Tensor | None]:
        inputs = given[direction]
        return [None if x is None else g[direction].to(x.dtype) for g, x in zip(found, inputs, strict=False)]

    *ahead, dbias = of(0)
    return *ahead, dz, dbias, dstart, *(of(1) if len(given) > 1 else [None] * 7), None, None, None


operators.differentiate(scan, save_inputs, scan_gradient)


def selective_scan(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse
) -> tuple[Tensor, Tensor]:
    """(out, last state); states are kept only if a gradient may be asked for."""
    operators.check_states(A, "triton")
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, *[None] * 7)
    save = operators.wants_gradient(tensors)
    return operators.entry(scan, tensors, save)(*tensors, delta_softplus, reverse, save)[:2]


def bidirectional_scan(ahead: tuple[Tensor, ...], back: tuple[Tensor, ...], z: Tensor) -> Tensor:
    """Mean of both directions, gated; ahead, back: (u, delta, A, B, C, D, delta_bias), delta before softplus."""
    operators.check_states(ahead[2], "triton")
    *first, bias = ahead
    tensors = (*first, z, bias, None, *back)
    save = operators.wants_gradient(tensors)
    return operators.entry(scan, tensors, save)(*tensors, True, False, save)[0]
