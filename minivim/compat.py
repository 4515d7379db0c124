"""The selective scan, and one step of it, under mamba_ssm's names, argument orders and layouts: drop-ins."""

from typing import Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from minivim.kernels.operators import MAX_STATES, compute_dtype
from minivim.ops import selective_scan
from minivim.ops.scan import Expected, check_tensors, sizes


@overload
def selective_scan_fn(
    u: Float[Tensor, "B E L"],
    delta: Float[Tensor, "B E L"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "E N"] | Float[Tensor, "B ... N L"],
    C: Float[Tensor, "E N"] | Float[Tensor, "B ... N L"],
    D: Float[Tensor, " E"] | None = ...,
    z: Float[Tensor, "B E L"] | None = ...,
    delta_bias: Float[Tensor, " E"] | None = ...,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
) -> Float[Tensor, "B E L"]: ...
@overload
def selective_scan_fn(
    u: Float[Tensor, "B E L"],
    delta: Float[Tensor, "B E L"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "E N"] | Float[Tensor, "B ... N L"],
    C: Float[Tensor, "E N"] | Float[Tensor, "B ... N L"],
    D: Float[Tensor, " E"] | None = ...,
    z: Float[Tensor, "B E L"] | None = ...,
    delta_bias: Float[Tensor, " E"] | None = ...,
    delta_softplus: bool = ...,
    *,
    return_last_state: Literal[True],
) -> tuple[Float[Tensor, "B E L"], Float[Tensor, "B E N"]]: ...
def selective_scan_fn(
    u: Float[Tensor, "B E L"],
    delta: Float[Tensor, "B E L"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "E N"] | Float[Tensor, "B ... N L"],
    C: Float[Tensor, "E N"] | Float[Tensor, "B ... N L"],
    D: Float[Tensor, " E"] | None = None,
    z: Float[Tensor, "B E L"] | None = None,
    delta_bias: Float[Tensor, " E"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Float[Tensor, "B E L"] | tuple[Float[Tensor, "B E L"], Float[Tensor, "B E N"]]:
    """`mamba_ssm.ops.selective_scan_interface.selective_scan_fn` on any device, through `minivim.selective_scan`.

    u, delta, z (B, E, L); A (E, N), real; D, delta_bias (E,). B and C, each: (B, N, L), chosen by each token;
    (B, G, N, L), the same for G groups of E / G channels; (E, N), fixed: one for each channel, whatever the token.
    A fixed one costs N times the memory. More than 64 states run in the backend "chunked", as no kernel takes them.
    Returns out (B, E, L) in u's dtype, with return_last_state also the last state (B, E, N).
    Raises TypeError or ValueError for complex tensors, for wrong shapes, for channels not divisible by G.
    """
    (batch, E, L), (_, N) = sizes("u", u, "(B, E, L)"), sizes("A", A, "(E, N)")
    tokens, channels = ("(B, E, L)", (batch, E, L)), ("(E,)", (E,))
    maps = ("(E, N)", (E, N)), ("(B, N, L)", (batch, N, L)), ("(B, G, N, L)", (batch, None, N, L))
    check_tensors(
        [
            ("u", u, *tokens),
            ("delta", delta, *tokens),
            ("A", A, "(E, N)", (E, N)),
            _layout("B", B, *maps),
            _layout("C", C, *maps),
        ],
        [("D", D, *channels), ("z", z, *tokens), ("delta_bias", delta_bias, *channels)],
    )
    u, delta, z = u.transpose(1, 2), delta.transpose(1, 2), None if z is None else z.transpose(1, 2)
    B, C = (x[:, None] if x.ndim == 3 else x for x in (B, C))
    B, C = (x.permute(0, 3, 1, 2) if x.ndim == 4 else x for x in (B, C))
    _check_groups(B, C, E, "channels")
    scan = _scan_groups if B.ndim == C.ndim == 4 else _scan_channels
    out, last = scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    out = out.transpose(1, 2)
    return (out, last) if return_last_state else out


def selective_state_update(
    state: Float[Tensor, "rows *H P N"],
    x: Float[Tensor, "B *H P"],
    dt: Float[Tensor, "B *H P"],
    A: Float[Tensor, "*H P N"],
    B: Float[Tensor, "B ... N"],
    C: Float[Tensor, "B ... N"],
    D: Float[Tensor, "*H P"] | None = None,
    z: Float[Tensor, "B *H P"] | None = None,
    dt_bias: Float[Tensor, "*H P"] | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, "B *H P"]:
    """`mamba_ssm.ops.triton.selective_state_update.selective_state_update` on any device: one token of the scan.

    Without heads: x, dt, z (B, P), A (P, N), D, dt_bias (P,), state (B, P, N); with heads each has H before P.
    B, C (B, N), or (B, G, N) for G groups of H / G heads.
    `state`, of any floating dtype, is updated in place; what is computed is float32 (float64 for float64 x).
    state_batch_indices (B,): the row of `state` that belongs to each x; -1 is padding: no row, and out is 0.
    Returns out in x's dtype and shape. Unlike mamba_ssm's, it is differentiable: generate under no_grad.
    Raises TypeError or ValueError for complex tensors, wrong shapes or rows, and for heads not divisible by G.
    """
    B, C = _check_update(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices)
    if state_batch_indices is None:
        return _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
    used = state_batch_indices >= 0
    rows, out = state_batch_indices[used].long(), torch.zeros_like(x)
    if len(rows):
        own = state[rows]
        x, dt, B, C, z = x[used], dt[used], B[used], C[used], None if z is None else z[used]
        out[used] = _update(own, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
        state[rows] = own
    return out


def _update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus) -> Tensor:
    """A scan of one token, from `state` and into it; the channels of all heads stand side by side."""
    u, delta, gate = (None if each is None else each.flatten(1)[:, None] for each in (x, dt, z))
    D, dt_bias = (None if each is None else each.flatten() for each in (D, dt_bias))
    before = state.flatten(1, -2).clone()  # the backward pass wants it as it was
    out, last = _scan_groups(u, delta, A.flatten(0, -2), B, C, D, gate, dt_bias, dt_softplus, before)
    state.copy_(last.view(state.shape))
    return out.view(x.shape)


def _check_update(state, x, dt, A, B, C, D, z, dt_bias, rows) -> tuple[Tensor, Tensor]:
    """TypeError or ValueError for what does not fit together; returns B and C as (B, 1, G, N)."""
    heads = isinstance(state, Tensor) and state.ndim == 4
    axes = ("(B, H, P, N)", "(B, H, P)", "(H, P, N)", "(H, P)") if heads else ("(B, P, N)", "(B, P)", "(P, N)", "(P,)")
    entries, *own, N = sizes("state", state, axes[0])
    batch = entries if rows is None else sizes("x", x, axes[1])[0]
    tokens, channels = (axes[1], (batch, *own)), (axes[3], tuple(own))
    maps = ("(B, N)", (batch, N)), ("(B, G, N)", (batch, None, N))
    check_tensors(
        [
            ("state", state, axes[0], (entries, *own, N)),
            ("x", x, *tokens),
            ("dt", dt, *tokens),
            ("A", A, axes[2], (*own, N)),
            _layout("B", B, *maps),
            _layout("C", C, *maps),
        ],
        [("D", D, *channels), ("z", z, *tokens), ("dt_bias", dt_bias, *channels)],
    )
    if rows is not None:
        _check_rows(rows, batch, entries)
    B, C = ((each[:, None] if each.ndim == 2 else each)[:, None] for each in (B, C))
    _check_groups(B, C, own[0] if heads else 1, "heads")
    return B, C


def _check_rows(rows: object, batch: int, entries: int) -> None:
    """TypeError or ValueError unless these are the numbers of existing rows, one for each of the batch."""
    if not isinstance(rows, Tensor) or rows.dtype not in (torch.int32, torch.int64):
        given = f"has dtype {rows.dtype}" if isinstance(rows, Tensor) else f"is a {type(rows).__name__}"
        raise TypeError(f"state_batch_indices {given}; it must be a tensor of int32 or int64")
    if rows.shape != (batch,):
        raise ValueError(f"state_batch_indices has shape {tuple(rows.shape)}; it must be (B,) = {(batch,)}")
    if (rows >= entries).any():
        raise ValueError(f"state_batch_indices has {int(rows.max())}; it must be below {entries}, the rows of state")


def _layout(name: str, x: object, *layouts: tuple[str, tuple[int | None, ...]]) -> Expected:
    """What `check_tensors` asks of x: the layout with as many axes as x has, where None is any size."""
    if not isinstance(x, Tensor):
        return name, x, "", ()  # refused there
    for letters, shape in layouts:
        if len(shape) == x.ndim:
            found = zip(x.shape, shape, strict=True)
            return name, x, letters, tuple(own if size is None else size for own, size in found)
    every = " or ".join(letters for letters, _ in layouts)
    raise ValueError(f"{name} has shape {tuple(x.shape)}; it must be {every}")


def _check_groups(B: Tensor, C: Tensor, count: int, parts: str) -> None:
    """ValueError unless B and C, where they are (B, L, G, N), have as many groups, and these divide the count."""
    groups = {name: x.shape[2] for name, x in (("B", B), ("C", C)) if x.ndim == 4}
    if len(set(groups.values())) > 1:
        raise ValueError(f"C has {groups['C']} groups; it must have as many as B, which has {groups['B']}")
    for name, number in groups.items():
        if number == 0 or count % number:
            raise ValueError(f"{name} has {number} groups; their number must divide the {count} {parts}")


def _scan_groups(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state=None) -> tuple[Tensor, Tensor]:
    """A scan for each group of channels, whose B and C are B[:, :, g] and C[:, :, g], (B, L, G, N)."""
    groups, width = B.shape[2], A.shape[0] // B.shape[2]
    backend = "auto" if A.shape[1] <= MAX_STATES else "chunked"
    results = []
    for g in range(groups):
        own = slice(g * width, (g + 1) * width)
        z_g, state = None if z is None else z[..., own], None if initial_state is None else initial_state[:, own]
        D_g, bias_g = None if D is None else D[own], None if delta_bias is None else delta_bias[own]
        tensors = u[..., own], delta[..., own], A[own], B[:, :, g], C[:, :, g], D_g, z_g, bias_g
        results.append(
            selective_scan(*tensors, delta_softplus, initial_state=state, return_last_state=True, backend=backend)
        )
    outs, lasts = zip(*results, strict=True)
    return torch.cat(outs, dim=2), torch.cat(lasts, dim=1)


def _scan_channels(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> tuple[Tensor, Tensor]:
    """A scan of E * N channels with one state each, for maps that differ from channel to channel, (E, N).

    B stands in what goes in, C in what is read of the states: h[t] = exp(delta[t] A) h[t-1] + delta[t] (B u[t]).
    """
    (E, N), out_dtype, dtype = A.shape, u.dtype, compute_dtype(u)
    # Cast first: what is repeated has a sum for its gradient, and that is not to be taken in half precision.
    u, delta, B, C = (x.to(dtype) for x in (u, delta, B, C))
    B, C = (x if x.ndim == 2 else x.repeat_interleave(E // x.shape[2], dim=2) for x in (B, C))  # (..., E, N)
    inputs, delta = (u[..., None] * B).flatten(2), delta.repeat_interleave(N, dim=2)
    bias = None if delta_bias is None else delta_bias.to(dtype).repeat_interleave(N)
    one = inputs.new_ones(*inputs.shape[:2], 1)
    tensors = inputs, delta, A.reshape(-1, 1), one, one, None, None, bias
    states, last = selective_scan(*tensors, delta_softplus, return_last_state=True)
    y = (states.unflatten(2, (E, N)) * C).sum(-1)
    y = y if D is None else y + D.to(dtype) * u
    y = y if z is None else y * F.silu(z.to(dtype))
    return y.to(out_dtype), last.view(-1, E, N)
