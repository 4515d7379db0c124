"""The selective scan in pure PyTorch, for wherever no kernel runs: faster than the reference, and in O(B L E) memory.

Chunks of CHUNK steps: what does not depend on h is computed for a whole chunk at once, and only h itself step by step.
The backward pass is derived by hand. With a[t] = exp(delta[t] A), dy = d loss / d y, g[t] = d loss / d h[t]:

    g[t] = C[t] dy[t] + a[t+1] g[t+1]     dC = sum_e dy h            dB = sum_e g delta u
    q[t] = g[t] a[t] h[t-1]               dA = sum_{b,t} delta q     d delta = sum_n A q + u d(delta u)
    d(delta u) = sum_n g B                du = delta d(delta u) + D dy

Only h at the start of each chunk is kept; the backward pass computes the others again.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minivim.kernels.derivatives import first_derivative, refuse_transforms
from minivim.kernels.operators import compute_dtype

CHUNK = 32


def _step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool, dtype: torch.dtype):
    """(delta after bias and softplus, its derivative) of one chunk."""
    delta = delta.to(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    return (F.softplus(delta), torch.sigmoid(delta)) if delta_softplus else (delta, torch.ones_like(delta))


def _run_chunk(u, delta, A, B, h, reverse):
    """a = exp(delta A) and all states of one chunk, both (B, K, E, N), from the state h before it."""
    a = torch.exp(delta[..., None] * A)
    states = (delta * u)[..., None] * B[:, :, None, :]
    for h_t, a_t in _walk(reverse, states, a):
        h = h_t.addcmul_(a_t, h)
    return a, states


def _walk(reverse: bool, *tensors: Tensor):
    """The steps of (B, K, ...) tensors, in the direction of time."""
    steps = range(tensors[0].shape[1])
    # Not unbind: what it returns may not be changed in place where autograd looks on, as in an exported model.
    return ([x.select(1, t) for x in tensors] for t in (reversed(steps) if reverse else steps))


def spans(L: int, reverse: bool) -> list[slice]:
    """The chunks, in the order in which the scan meets them."""
    chunks = [slice(start, min(start + CHUNK, L)) for start in range(0, L, CHUNK)]
    return chunks[::-1] if reverse else chunks


class ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse):
        dtype = compute_dtype(u)
        A_ = A.to(dtype)
        h = u.new_zeros(u.shape[0], *A.shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
        out, starts = torch.empty_like(u), []
        for span in spans(u.shape[1], reverse):
            starts.append(h)
            u_, B_, C_ = (x[:, span].to(dtype) for x in (u, B, C))
            delta_, _ = _step_sizes(delta[:, span], delta_bias, delta_softplus, dtype)
            _, states = _run_chunk(u_, delta_, A_, B_, h, reverse)
            y = torch.einsum("bken,bkn->bke", states, C_)
            if D is not None:
                y = y + D.to(dtype) * u_
            out[:, span] = y if z is None else y * F.silu(z[:, span].to(dtype))
            h = states[:, 0 if reverse else -1].clone()
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, initial_state, torch.stack(starts))
        ctx.delta_softplus, ctx.reverse = delta_softplus, reverse
        return out, h

    def gradient(ctx, saved, dout, dlast):
        u, delta, A, B, C, D, z, delta_bias, initial_state, starts = saved
        dtype, reverse = starts.dtype, ctx.reverse
        A_, D_ = A.to(dtype), None if D is None else D.to(dtype)
        du, ddelta, dB, dC, dz = (None if x is None else torch.empty_like(x) for x in (u, delta, B, C, z))
        dA, dD, dbias = torch.zeros_like(A_), A_.new_zeros(A.shape[0]), A_.new_zeros(A.shape[0])
        carry = dlast  # a[t+1] g[t+1]: what reaches h[t] from the steps after it
        for span, h in reversed(list(zip(spans(u.shape[1], reverse), starts, strict=True))):
            u_, B_, C_, dy = (x[:, span].to(dtype) for x in (u, B, C, dout))
            delta_, slope = _step_sizes(delta[:, span], delta_bias, ctx.delta_softplus, dtype)
            a, states = _run_chunk(u_, delta_, A_, B_, h, reverse)
            if z is not None:
                z_ = z[:, span].to(dtype)
                s = torch.sigmoid(z_)
                y = torch.einsum("bken,bkn->bke", states, C_) + (0 if D is None else D_ * u_)
                dz[:, span] = dy * y * s * (1 + z_ * (1 - s))
                dy = dy * z_ * s
            g = dy[..., None] * C_[:, :, None, :]
            for g_t, a_t in _walk(not reverse, g, a):
                carry = a_t * g_t.add_(carry)
            before = torch.cat((states[:, 1:], h[:, None]) if reverse else (h[:, None], states[:, :-1]), dim=1)
            q = g * a * before
            d_input = torch.einsum("bken,bkn->bke", g, B_)
            d_step = (torch.einsum("bken,en->bke", q, A_) + u_ * d_input) * slope
            d_u = delta_ * d_input if D is None else delta_ * d_input + D_ * dy
            du[:, span], ddelta[:, span] = d_u, d_step
            dC[:, span] = torch.einsum("bke,bken->bkn", dy, states)
            dB[:, span] = torch.einsum("bken,bke->bkn", g, delta_ * u_)
            dA += torch.einsum("bke,bken->en", delta_, q)
            dD += (dy * u_).sum((0, 1))
            dbias += d_step.sum((0, 1))
        dA, dD, dbias, dinitial = (
            None if x is None else d.to(x.dtype)
            for d, x in ((dA, A), (dD, D), (dbias, delta_bias), (carry, initial_state))
        )
        return du, ddelta, dA, dB, dC, dD, dz, dbias, None, dinitial, None

    backward = staticmethod(first_derivative("chunked", gradient))


def chunked_scan(
    u: Float[Tensor, "B L E"],
    delta: Float[Tensor, "B L E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B L N"],
    C: Float[Tensor, "B L N"],
    D: Float[Tensor, " E"] | None = None,
    z: Float[Tensor, "B L E"] | None = None,
    delta_bias: Float[Tensor, " E"] | None = None,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "B E N"] | None = None,
    reverse: bool = False,
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B E N"]]:
    """(out, last state) of `minivim.selective_scan`, whose arguments these are. Mamba (arXiv 2312.00752), Eq. 2."""
    if not torch.compiler.is_compiling():
        refuse_transforms("chunked", (u, delta, A, B, C, D, z, delta_bias, initial_state))
    return ChunkedScan.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, reverse)
