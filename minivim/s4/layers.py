"""One layer around three systems: S4, DSS, S4D. What they have in common is said in `minivim.s4`."""

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from minivim.lti import fft_convolution
from minivim.s4.generating import initial_system
from minivim.s4.systems import DiagonalSystem, DPLRSystem


class _Layer(nn.Module):
    """A system and a skip D: (B, L, H) -> (B, L, H), in the dtype of u."""

    def __init__(self, H: int, system: DiagonalSystem | DPLRSystem):
        super().__init__()
        self.system = system
        self.D = nn.Parameter(torch.randn(H))

    def kernel(self, L: int) -> Float[Tensor, "H L"]:
        """K[k] = C A_bar^k B_bar of every channel, k = 0 .. L - 1, in the dtype of the parameters.

        Raises ValueError for L < 1.
        """
        if L < 1:
            raise ValueError(f"L is {L}; a kernel has at least 1 number")
        return self.system.kernel(L).to(self.D)

    def forward(self, u: Float[Tensor, "B L H"]) -> Float[Tensor, "B L H"]:
        H = len(self.D)
        if u.ndim != 3 or u.shape[2] != H or u.shape[1] < 1:
            raise ValueError(f"u has shape {tuple(u.shape)}; it must be (B, L, {H}) with L >= 1")
        y = fft_convolution(u.mT, self.kernel(u.shape[1]))
        return y.mT + self.D * u

    def initial_state(self, batch: int) -> Inexact[Tensor, "batch H N_kept"]:
        """The state before the first token: zeros (batch, H, N/2), complex128; for real systems (batch, H, N)."""
        return self.system.initial_state(batch)

    def step(
        self, u: Float[Tensor, "batch H"], state: Inexact[Tensor, "batch H N_kept"]
    ) -> tuple[Float[Tensor, "batch H"], Inexact[Tensor, "batch H N_kept"]]:
        """One token in, one out: u (B, H) and a state from `initial_state` or `step` -> y (B, H), next state.

        Each call discretizes anew, so that it is right after any change of the parameters.
        Raises ValueError for shapes that do not fit the layer.
        """
        H = len(self.D)
        expected = self.system.initial_state(0).shape[1:]
        if u.ndim != 2 or u.shape[1] != H or state.shape != (len(u), *expected):
            shapes = f"u has shape {tuple(u.shape)}, state {tuple(state.shape)}"
            raise ValueError(f"{shapes}; they must be (B, {H}) and (B, {', '.join(map(str, expected))})")
        y, state = self.system.advance(u, state)
        return y.to(u) + self.D * u, state


class S4(_Layer):
    """S4, arXiv 2111.00396: A is HiPPO-LegS at the start, and always diagonal minus rank one (DPLR).

    H channels, N real states each, N even. delta starts log-uniform in [delta_min, delta_max], in steps of the
    sequence. The kernel is Algorithm 1 of the paper; `step` uses the DPLR form, in O(N), not a dense matrix.
    Raises ValueError for an odd N or bounds of delta out of order.
    """

    def __init__(self, H: int, N: int, delta_min: float = 0.001, delta_max: float = 0.1):
        super().__init__(H, DPLRSystem(H, N, delta_min, delta_max))


class S4D(_Layer):
    """S4D, arXiv 2206.11893: A is diagonal and starts as `initial_system(init, N)`: "lin", "inv", "legs" or "real".

    H channels, N real states each, N even unless init is "real". method: as in `discretize_diagonal`.
    Raises ValueError for an unknown init or method, an odd N, or bounds of delta out of order.
    """

    def __init__(
        self,
        H: int,
        N: int,
        init: str = "lin",
        method: str = "zoh",
        delta_min: float = 0.001,
        delta_max: float = 0.1,
    ):
        A, B = initial_system(init, N)
        super().__init__(H, DiagonalSystem(H, A, B, method, False, delta_min, delta_max))


class DSS(_Layer):
    """DSS, arXiv 2203.14343, in its form DSS_exp: A is diagonal and shared by all channels, B is 1, ZOH.

    A starts at the eigenvalues of the normal part of HiPPO-LegS; H channels, N real states each, N even. The paper's
    other form, DSS_softmax, divides each power series by its sum over L steps: that allows any A, but ties the layer
    to one L. DSS_exp is Proposition 1 (a), with Re A = -exp(.). Errors as for `S4`.
    """

    def __init__(self, H: int, N: int, delta_min: float = 0.001, delta_max: float = 0.1):
        A, _ = initial_system("legs", N)
        super().__init__(H, DiagonalSystem(H, A, torch.ones_like(A), "zoh", True, delta_min, delta_max))
