"""The two families of learned linear systems inside S4's layers: a diagonal A, and a diagonal minus rank one.

A system has no skip D and no batch: its `kernel` is what a layer convolves with, its `advance` is one step.
Complex numbers are learned as their real and imaginary parts, and only one of each conjugate pair is kept.
"""

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor, nn

from minivim.discretize import discretize, discretize_diagonal
from minivim.hippo import dplr
from minivim.s4.generating import both_of_pair, dense, diagonal_kernel, dplr_kernel
from minivim.s4.lssl import log_step_sizes


def as_parameter(x: Complex[Tensor, "*shape"]) -> nn.Parameter:
    """Complex numbers as pairs (real, imaginary) of the default dtype: `.double()`, optimizers and files know those."""
    return nn.Parameter(torch.view_as_real(x.resolve_conj()).contiguous().to(torch.get_default_dtype()))


def as_complex(parameter: Float[Tensor, "*shape 2"]) -> Complex[Tensor, "*shape"]:
    """Undo `as_parameter`, in double precision."""
    return torch.view_as_complex(parameter.double())


def _product(row: Complex[Tensor, "*#batch N_kept"], column: Complex[Tensor, "*#batch N_kept"]) -> Tensor:
    """row times column over all N states, of which one of each pair stands here; (..., 1)."""
    return both_of_pair((row * column).sum(-1, keepdim=True))


class DiagonalSystem(nn.Module):
    """H systems h' = A h + B u, y = C h with a diagonal A, made discrete by `method`.

    A (N_kept,) or, with `shared` False, (H, N_kept): N_kept = N/2 complex numbers, one of each conjugate pair, or N
    real ones. Learned: log delta (H,), log(-Re A), Im A, C. B stays fixed, because only the products C_n B_n matter.
    """

    B: Tensor
    frequency: nn.Parameter | None

    def __init__(
        self,
        H: int,
        A: Inexact[Tensor, " N_kept"],
        B: Inexact[Tensor, " N_kept"],
        method: str,
        shared: bool = False,
        delta_min: float = 0.001,
        delta_max: float = 0.1,
    ):
        super().__init__()
        discretize_diagonal(A, 1.0, method)  # an unknown method is an error now, not at the first batch
        dtype = torch.get_default_dtype()
        self.method = method
        self.log_delta = log_step_sizes(H, delta_min, delta_max)
        A = A if shared else A.expand(H, -1)
        self.log_decay = nn.Parameter(torch.log(-A.real).to(dtype))
        if A.is_complex():
            self.frequency = nn.Parameter(A.imag.to(dtype).clone())
            self.C = as_parameter(torch.randn(H, A.shape[-1], dtype=torch.complex128))
            self.register_buffer("B", torch.view_as_real(B.to(torch.complex128)).to(dtype))
        else:
            self.frequency = None
            self.C = nn.Parameter(torch.randn(H, A.shape[-1]))
            self.register_buffer("B", B.to(dtype))

    def discretized(
        self,
    ) -> tuple[Inexact[Tensor, "H N_kept"], Inexact[Tensor, "H N_kept"], Inexact[Tensor, "H N_kept"]]:
        """(A_bar, B_bar, C), each (H, N_kept), complex128 or, for real systems, float64."""
        A, B, C = -self.log_decay.double().exp(), self.B.double(), self.C.double()
        if self.frequency is not None:
            A, B, C = torch.complex(A, self.frequency.double()), torch.view_as_complex(B), torch.view_as_complex(C)
        A_bar, factor = discretize_diagonal(A, self.log_delta.double().exp()[:, None], self.method)
        return A_bar, factor * B, C

    def kernel(self, L: int) -> Float[Tensor, "H L"]:
        """K[k] = C A_bar^k B_bar, k = 0 .. L - 1, in float64."""
        A_bar, B_bar, C = self.discretized()
        return diagonal_kernel(A_bar, C * B_bar, L)

    def initial_state(self, batch: int) -> Inexact[Tensor, "batch H N_kept"]:
        """Zeros (batch, H, N_kept)."""
        dtype = torch.float64 if self.frequency is None else torch.complex128
        return torch.zeros(batch, *self.C.shape[:2], dtype=dtype, device=self.C.device)

    def advance(
        self, u: Float[Tensor, "batch H"], state: Inexact[Tensor, "batch H N_kept"]
    ) -> tuple[Float[Tensor, "batch H"], Inexact[Tensor, "batch H N_kept"]]:
        """One step: (y, next state)."""
        A_bar, B_bar, C = self.discretized()
        state = A_bar * state + B_bar * u[..., None]
        return both_of_pair((C * state).sum(-1)), state


class DPLRSystem(nn.Module):
    """H systems h' = (diag(Lambda) - P P^*) h + B u, y = C h, made discrete by the bilinear rule.

    N/2 of each: one of every conjugate pair. Learned, per channel: log delta, log(-Re Lambda), Im Lambda, P, B, C.
    The real part of A, diag(Re Lambda) - P P^*, is negative definite whatever they are.
    """

    def __init__(self, H: int, N: int, delta_min: float = 0.001, delta_max: float = 0.1):
        super().__init__()
        dtype = torch.get_default_dtype()
        if N < 2 or N % 2:
            raise ValueError(f"N is {N}; it must be even: complex states come in conjugate pairs")
        Lambda, P, B, _ = (each[N // 2 :] for each in dplr(N))
        self.log_delta = log_step_sizes(H, delta_min, delta_max)
        self.log_decay = nn.Parameter(torch.log(-Lambda.real).expand(H, -1).to(dtype).clone())
        self.frequency = nn.Parameter(Lambda.imag.expand(H, -1).to(dtype).clone())
        self.P, self.B = (as_parameter(each.expand(H, -1)) for each in (P, B))
        self.C = as_parameter(torch.randn(H, N // 2, dtype=torch.complex128))

    def continuous(self) -> tuple[Complex[Tensor, "H N_kept"], ...]:
        """(Lambda, P, B, C), each (H, N/2), complex128: one of every pair."""
        Lambda = torch.complex(-self.log_decay.double().exp(), self.frequency.double())
        return Lambda, *(as_complex(each) for each in (self.P, self.B, self.C))

    def kernel(self, L: int) -> Float[Tensor, "H L"]:
        """K[k] = C A_bar^k B_bar, k = 0 .. L - 1, in float64.

        The series of the generating function ends at k = L - 1, which needs C (I - A_bar^L) in place of C. S4's code
        learns that product for one L; here C is learned, so the kernel of a shorter length is its beginning.
        """
        delta = self.log_delta.double().exp()
        Lambda, P, B, C = (torch.cat((each, each.conj()), dim=-1) for each in self.continuous())
        A_bar, _ = discretize(dense(Lambda, P), B[..., None], delta, "bilinear")
        rest = C[:, None] @ torch.linalg.matrix_power(A_bar, L)
        return dplr_kernel(Lambda, P, B, C - rest[:, 0], delta, L)

    def initial_state(self, batch: int) -> Complex[Tensor, "batch H N_kept"]:
        """Zeros (batch, H, N/2)."""
        return torch.zeros(batch, *self.frequency.shape, dtype=torch.complex128, device=self.frequency.device)

    def advance(
        self, u: Float[Tensor, "batch H"], state: Complex[Tensor, "batch H N_kept"]
    ) -> tuple[Float[Tensor, "batch H"], Complex[Tensor, "batch H N_kept"]]:
        """One step, (y, next state), in O(N): (2/delta - A) h = (2/delta + A) h_previous + 2 B u by Woodbury."""
        Lambda, P, B, C = self.continuous()
        rate = 2 / self.log_delta.double().exp()[:, None]
        right = (rate + Lambda) * state - P * _product(P.conj(), state) + 2 * B * u[..., None]
        resolvent = 1 / (rate - Lambda)
        correction = _product(P.conj(), resolvent * right) / (1 + _product(P.conj(), resolvent * P))
        state = resolvent * (right - P * correction)
        return _product(C, state)[..., 0], state
