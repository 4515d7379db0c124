"""The Mamba block: one direction, one token after the other (Mamba, arXiv 2312.00752, section 3.4).

    in_proj      D -> 2E: the input x of the state-space model, and the gate z
    conv         depthwise causal convolution over the last K tokens, then SiLU: u
    x_proj       E -> R + 2N: from u, what makes the model selective: dt, B and C of every token
    dt_proj      R -> E; plus its bias and through softplus: the step size delta
    A            -exp(A_log): negative, one row of N decay rates for each of the E channels
    scan         h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t];  y[t] = C[t] . h[t] + D u[t]
    gate         y * silu(z)
    out_proj     E -> D

D, E = 2D: model and inner width. N: state size. R: rank of delta. K: width of the convolution. L: tokens.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minivim.models.plain import is_plain
from minivim.ops import Backend, causal_conv_silu, choose_backend, selective_scan

DELTA_MIN, DELTA_MAX = 0.001, 0.1  # the range of delta at initialization, Mamba, section 3.6


class MambaState(NamedTuple):
    """What one token hands to the next in `MambaBlock.step`."""

    conv: Float[Tensor, "B K-1 E"]  # the last K - 1 inputs of the convolution
    ssm: Float[Tensor, "B E N"]  # the state h of the scan


class SelectiveSSM(nn.Module):
    """The selective state-space model of one direction: convolution, delta, B and C, scan, gate.

    `reverse=True` walks from the last token to the first; nothing is flipped in memory.
    """

    def __init__(self, inner_dim: int, state_dim: int, dt_rank: int, conv_kernel: int, reverse: bool = False):
        super().__init__()
        self.backend = "auto"
        self.split = (dt_rank, state_dim, state_dim)
        self.reverse = reverse
        self.conv_weight = nn.Parameter(torch.empty(inner_dim, conv_kernel))
        self.conv_bias = nn.Parameter(torch.empty(inner_dim))
        self.x_proj = nn.Linear(inner_dim, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner_dim)
        self.A_log = nn.Parameter(torch.empty(inner_dim, state_dim))
        self.D = nn.Parameter(torch.empty(inner_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """delta log-uniform in [0.001, 0.1] (Mamba, section 3.6), A = -(1 .. N) (S4D-Real), D = 1."""
        E, K = self.conv_weight.shape
        for parameter in (self.conv_weight, self.conv_bias):
            nn.init.uniform_(parameter, -(K**-0.5), K**-0.5)
        self.x_proj.reset_parameters()
        R = self.split[0]
        nn.init.uniform_(self.dt_proj.weight, -(R**-0.5), R**-0.5)
        delta = torch.empty_like(self.dt_proj.bias).uniform_(math.log(DELTA_MIN), math.log(DELTA_MAX)).exp()
        self.dt_proj.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
        N = self.A_log.shape[1]
        self.A_log.copy_(torch.arange(1, N + 1, device=self.A_log.device).log().expand(E, N))
        nn.init.ones_(self.D)

    def conv(self, x: Float[Tensor, "B L E"], backend: str | Backend = "auto") -> Float[Tensor, "B L E"]:
        """Depthwise causal convolution and SiLU: the input u of the scan."""
        return causal_conv_silu(x, self.conv_weight, self.conv_bias, reverse=self.reverse, backend=backend)

    def select(self, u: Float[Tensor, "B L E"]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """What the tokens choose, and what they share: (u, delta, A, B, C, D, delta_bias) of `selective_scan`.

        delta_bias is None where a layer in the place of dt_proj has added its own.
        """
        dt, B, C = self.x_proj(u).split(self.split, dim=-1)  # views: the kernels take strided B and C
        if is_plain(self.dt_proj, nn.Linear):
            delta, delta_bias = F.linear(dt, self.dt_proj.weight), self.dt_proj.bias  # the scan adds it in float32
        else:
            delta, delta_bias = self.dt_proj(dt), None
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        return u, delta, A, B, C, self.D, delta_bias

    def scan(self, u: Float[Tensor, "B L E"], z: Float[Tensor, "B L E"], backend: str | Backend = "auto", **state):
        """Selection, recurrence and gate; `state`: initial_state and return_last_state of `selective_scan`."""
        u, delta, A, B, C, D, delta_bias = self.select(u)
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, True, reverse=self.reverse, backend=backend, **state)

    def forward(
        self,
        x: Float[Tensor, "B L E"],
        z: Float[Tensor, "B L E"],
        backend: str | Backend | None = None,
        state: MambaState | None = None,
    ) -> Float[Tensor, "B L E"] | tuple[Float[Tensor, "B L E"], MambaState]:
        """x, z (B, L, E) -> gated output (B, L, E); after the tokens of a `state` also the state that these leave.

        `backend` is the block's choice; None: this model's own.
        """
        backend = choose_backend(backend or self.backend, x.device)
        if state is None:
            return self.scan(self.conv(x, backend), z, backend)
        if self.reverse:
            raise ValueError("reverse is True; it must be False where a state comes from the tokens before")
        window = torch.cat((state.conv, x), dim=1)
        u = self.conv(window, backend)[:, -x.shape[1] :]
        y, h = self.scan(u, z, backend, initial_state=state.ssm, return_last_state=True)
        return y, MambaState(window[:, x.shape[1] :], h)


def run_ssm(
    ssm: nn.Module, x: Float[Tensor, "B L E"], z: Float[Tensor, "B L E"], backend: Backend
) -> Float[Tensor, "B L E"]:
    """Call a block's state-space model; what a user put in its place is given x and z only."""
    return ssm(x, z, backend) if isinstance(ssm, SelectiveSSM) else ssm(x, z)


class MambaBlock(nn.Module):
    """The one-directional Mamba block, (B, L, D) -> (B, L, D). Mamba, Figure 3."""

    def __init__(
        self, embed_dim: int, *, expand: int = 2, state_dim: int = 16, dt_rank: int | None = None, conv_kernel: int = 4
    ):
        super().__init__()
        inner_dim = expand * embed_dim
        dt_rank = math.ceil(embed_dim / 16) if dt_rank is None else dt_rank
        self.backend = "auto"
        self.in_proj = nn.Linear(embed_dim, 2 * inner_dim, bias=False)
        self.ssm = SelectiveSSM(inner_dim, state_dim, dt_rank, conv_kernel)
        self.out_proj = nn.Linear(inner_dim, embed_dim, bias=False)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The whole sequence at once; token t of the output depends on tokens 0 .. t only."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        return self.out_proj(run_ssm(self.ssm, x, z, choose_backend(self.backend, x.device)))

    def initial_state(self, batch: int) -> MambaState:
        """The state before the first token: zeros."""
        ssm = self._stateful_ssm()
        (E, K), N = ssm.conv_weight.shape, ssm.A_log.shape[1]
        return MambaState(ssm.conv_weight.new_zeros(batch, K - 1, E), ssm.A_log.new_zeros(batch, E, N))

    def step(self, token: Float[Tensor, "B D"], state: MambaState) -> tuple[Float[Tensor, "B D"], MambaState]:
        """One token at a time, in constant memory: (output, next state); equal to `forward` token by token.

        Hooks of `ssm` run, and see (output, next state). Raises TypeError if `ssm` is no SelectiveSSM.
        """
        x, z = self.in_proj(token[:, None]).chunk(2, dim=-1)
        y, state = self._stateful_ssm()(x, z, choose_backend(self.backend, token.device), state=state)
        return self.out_proj(y)[:, 0], state

    def _stateful_ssm(self) -> SelectiveSSM:
        if not isinstance(self.ssm, SelectiveSSM):
            raise TypeError(f"ssm is a {type(self.ssm).__name__}; to go step by step it must be a SelectiveSSM")
        return self.ssm
