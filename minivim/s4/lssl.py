"""LSSL, the linear state-space layer (arXiv 2110.13985): one model, run as a convolution or as a recurrence.

Channel i of H is a system of its own, h[t] = A_bar h[t-1] + B_bar u[t], y[t] = C h[t] + D u[t], with h[-1] = 0.
As it is linear and the same at all times, it is the convolution of u with the kernel K[k] = C A_bar^k B_bar.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minivim.discretize import discretize
from minivim.hippo import legs
from minivim.lti import fft_convolution


def krylov(A: Float[Tensor, "*batch N N"], b: Float[Tensor, "*batch N"], length: int) -> Float[Tensor, "*batch N L"]:
    """The columns b, A b, A^2 b, ..., length of them, in log2(length) products: each doubles what is there."""
    columns = b[..., None]
    while columns.shape[-1] < length:
        columns = torch.cat((columns, A @ columns), dim=-1)
        A = A @ A
    return columns[..., :length]


def log_step_sizes(H: int, delta_min: float, delta_max: float) -> nn.Parameter:
    """log delta (H,), uniform between the logarithms of the bounds. Raises ValueError for bounds out of order."""
    if not 0 < delta_min <= delta_max:
        raise ValueError(f"delta_min is {delta_min}, delta_max {delta_max}; 0 < delta_min <= delta_max must hold")
    low, high = math.log(delta_min), math.log(delta_max)
    return nn.Parameter(low + (high - low) * torch.rand(H))


class LSSL(nn.Module):
    """H state-space models side by side: (B, L, H) -> (B, L, H), by FFT; arXiv 2110.13985, section 3.

    All channels share A (N, N) and B (N,) of HiPPO-LegS, which stay fixed: they decide what a state can remember.
    Each channel learns what to do with it: its step size delta, its C (N,) and its skip D. The paper learns A too, but
    within a family of structured matrices: a free A would not stay stable. Discretized by the bilinear rule.
    delta starts log-uniform in [delta_min, delta_max]; a channel looks back over about 1 / delta steps.
    Raises ValueError for sizes or step sizes that cannot be.
    """

    A: Tensor
    B: Tensor

    def __init__(self, H: int, N: int, delta_min: float = 0.001, delta_max: float = 0.1):
        super().__init__()
        if H < 1:
            raise ValueError(f"H is {H}; it must be at least 1")
        A, B = legs(N)
        self.register_buffer("A", A.to(torch.get_default_dtype()))
        self.register_buffer("B", B.to(torch.get_default_dtype()))
        self.C = nn.Parameter(torch.randn(H, N))
        self.D = nn.Parameter(torch.randn(H))
        self.log_delta = log_step_sizes(H, delta_min, delta_max)

    def discretized(self) -> tuple[Float[Tensor, "H N N"], Float[Tensor, "H N"]]:
        """A_bar (H, N, N) and B_bar (H, N): one A and B, H step sizes."""
        H, N = self.C.shape
        A_bar, B_bar = discretize(
            self.A.expand(H, N, N), self.B[:, None].expand(H, N, 1), self.log_delta.exp(), "bilinear"
        )
        return A_bar, B_bar.squeeze(-1)

    def kernel(self, L: int) -> Float[Tensor, "H L"]:
        """K[k] = C A_bar^k B_bar for k = 0 .. L - 1.

        With k = j m + i it is (C A_bar^(j m)) (A_bar^i B_bar): about sqrt(L) rows times sqrt(L) columns. So there are
        no L vectors of N numbers in memory, as in a loop that autograd records, but about 2 sqrt(L) of them.
        """
        if L < 1:
            raise ValueError(f"L is {L}; it must be at least 1")
        A_bar, B_bar = self.discretized()
        m = math.isqrt(L - 1) + 1
        columns = krylov(A_bar, B_bar, m)
        rows = krylov(torch.linalg.matrix_power(A_bar, m).mT, self.C, -(-L // m))
        return (rows.mT @ columns).flatten(1)[:, :L]

    def forward(self, u: Float[Tensor, "B L H"]) -> Float[Tensor, "B L H"]:
        H = len(self.D)
        if u.ndim != 3 or u.shape[2] != H:
            raise ValueError(f"u has shape {tuple(u.shape)}; it must be (B, L, {H})")
        y = fft_convolution(u.transpose(1, 2), self.kernel(u.shape[1]))
        return y.transpose(1, 2) + self.D * u

    def initial_state(self, batch: int) -> Float[Tensor, "B H N"]:
        """The state before the first input: zeros (batch, H, N)."""
        return self.C.new_zeros(batch, *self.C.shape)

    def step(
        self, u: Float[Tensor, "B H"], state: Float[Tensor, "B H N"]
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H N"]]:
        """One token in, one token out: u (B, H), state (B, H, N) -> y (B, H) and the next state.

        A loop over steps from `initial_state` gives what `forward` gives. Each call discretizes anew, so that it is
        right after any change of the parameters and the state holds nothing but h. That takes about H N^3
        multiplications; the step itself takes B H N^2.
        """
        H, N = self.C.shape
        if u.ndim != 2 or u.shape[1] != H or state.shape != (len(u), H, N):
            shapes = f"u has shape {tuple(u.shape)}, state {tuple(state.shape)}"
            raise ValueError(f"{shapes}; they must be (B, {H}) and (B, {H}, {N})")
        A_bar, B_bar = self.discretized()
        state = torch.einsum("hnm,bhm->bhn", A_bar, state) + B_bar * u[..., None]
        return (state * self.C).sum(-1) + self.D * u, state
