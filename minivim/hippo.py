"""HiPPO: linear systems whose state holds the coefficients of the past in a basis of functions (arXiv 2008.07669).

The state h of N numbers is the projection of the input u onto N orthonormal functions g_0 .. g_(N-1) on [0, 1]:

    h_n(t) = integral of u(start + x * (t - start)) g_n(x) dx over x in [0, 1]         (x = 0: oldest, x = 1: now)

    legs     start = 0, the whole past           Legendre polynomials      h' = (A h + B u) / t
    legt     start = t - window                  Legendre polynomials      h' = (A h + B u) / window
    fourier  start = t - window                  1, cosines and sines      h' = (A h + B u) / window

A here is stable (its eigenvalues have negative real parts). The HiPPO paper writes h' = -A h + B u, so its A is minus
ours; S4 (arXiv 2111.00396, Eq. 2) carries the minus sign inside A, as here. legs is exact for every input. legt and
fourier must forget u(t - window), which the state knows only approximately: they are exact for what the basis holds.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from minivim.discretize import discretize

MEASURES = ("legs", "legt", "fourier")


def _check_size(N: int) -> None:
    if N < 1:
        raise ValueError(f"N is {N}; a state has at least 1 number")


def legs(N: int) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"]]:
    """(A, B) of LegS, scaled Legendre: h' = (A h + B u) / t remembers the whole past; float64.

    A[n, k] = -sqrt((2n + 1)(2k + 1)) below the diagonal, -(n + 1) on it, 0 above; B[n] = sqrt(2n + 1).
    HiPPO, arXiv 2008.07669, Theorem 2. Raises ValueError for N < 1.
    """
    _check_size(N)
    B = torch.arange(1, 2 * N, 2, dtype=torch.float64).sqrt()
    return -torch.tril(torch.outer(B, B), diagonal=-1) - torch.diag(torch.arange(1, N + 1).double()), B


def legt(N: int) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"]]:
    """(A, B) of LegT, translated Legendre: h' = (A h + B u) / window remembers the last `window`; float64.

    A[n, k] = -sqrt((2n + 1)(2k + 1)) where k <= n, times (-1)^(n - k) where k > n; B[n] = sqrt(2n + 1).
    HiPPO, arXiv 2008.07669, Theorem 1 with orthonormal polynomials. Raises ValueError for N < 1.
    """
    _check_size(N)
    B = torch.arange(1, 2 * N, 2, dtype=torch.float64).sqrt()
    signs = (-1.0) ** torch.arange(N).double()
    return -torch.tril(torch.outer(B, B)) - torch.triu(torch.outer(signs * B, signs * B), diagonal=1), B


def fourier(N: int) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"]]:
    """(A, B) of a sliding window in the basis 1, cos, sin, cos, sin, ...: h' = (A h + B u) / window; float64.

    A = rotation of each (cos, sin) pair - 2 g g^T and B = 2 g, where g holds the basis functions at 0.
    arXiv 2206.12037, S4-FouT. Raises ValueError unless N is odd: one constant and whole pairs.
    """
    _check_size(N)
    if N % 2 == 0:
        raise ValueError(f"N is {N}; for fourier it must be odd: one constant and pairs of cosine and sine")
    g = basis(N, torch.zeros(1, dtype=torch.float64), "fourier")[0]
    frequencies = torch.zeros(N - 1, dtype=torch.float64)
    frequencies[1::2] = 2 * math.pi * torch.arange(1, (N + 1) // 2).double()  # between a cosine and its sine
    return torch.diag(frequencies, 1) - torch.diag(frequencies, -1) - 2 * torch.outer(g, g), 2 * g


def _matrices(N: int, measure: str) -> tuple[Tensor, Tensor]:
    if measure not in MEASURES:
        raise ValueError(f"measure is {measure!r}; it must be one of {', '.join(map(repr, MEASURES))}")
    return {"legs": legs, "legt": legt, "fourier": fourier}[measure](N)


def basis(N: int, points: Float[Tensor, " M"], measure: str = "legs") -> Float[Tensor, "M N"]:
    """g_n(points): the orthonormal functions on [0, 1] that the state of `measure` holds coefficients of.

    legs and legt: sqrt(2n + 1) P_n(2x - 1) with the Legendre polynomials P_n; fourier: 1, sqrt(2) cos(2 pi k x),
    sqrt(2) sin(2 pi k x). points: positions in the remembered interval, 0 oldest, 1 now.
    """
    if measure == "fourier":
        angles = 2 * math.pi * points[:, None] * torch.arange(1, N // 2 + 1).to(points)
        waves = torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(1)
        return torch.cat((torch.ones_like(points)[:, None], math.sqrt(2) * waves), dim=1)[:, :N]
    z = 2 * points - 1
    polynomials = [torch.ones_like(z), z]
    for n in range(1, N - 1):  # Bonnet's recursion
        polynomials.append(((2 * n + 1) * z * polynomials[n] - n * polynomials[n - 1]) / (n + 1))
    return torch.stack(polynomials[:N], dim=1) * torch.arange(1, 2 * N, 2).to(points).sqrt()


def remember(
    u: Float[Tensor, " L"], N: int, measure: str = "legs", window: int | None = None, method: str = "zoh"
) -> Float[Tensor, "L N"]:
    """The state after each sample of u, computed online: only the last state is ever needed.

    u[k] is the input from time k to k + 1, so the state h[k] belongs to time k + 1. window, in samples, for legt and
    fourier. method as in `minivim.discretize`. legs is time-invariant in log t: dh / d log t = A h + B u, so a step
    from k to k + 1 has the size log((k + 1) / k), and with "zoh" nothing is approximated.
    Raises ValueError for an unknown measure, and when window is given to legs or not to the others.
    """
    A, B = _matrices(N, measure)
    if (window is None) != (measure == "legs"):
        must = "None: legs remembers the whole past" if measure == "legs" else "a length in samples"
        raise ValueError(f"window is {window}; with measure {measure!r} it must be {must}")
    previous = torch.zeros(N, dtype=u.dtype, device=u.device)
    if window is None:  # legs
        # All that lies between time 0 and 1 is u[0], so the state is that constant; the equation goes on from there.
        previous[0] = u[0]
        delta = torch.cat((torch.zeros(1), torch.log1p(1 / torch.arange(1, len(u)).double())))
    else:
        delta = torch.tensor([1 / window], dtype=torch.float64)
    shape = (*delta.shape, N)
    A_bar, B_bar = discretize(A.expand(*shape, N), B.expand(shape)[..., None], delta, method)
    states = []
    A_bar, B_bar = A_bar.to(u).expand(len(u), N, N), B_bar[..., 0].to(u).expand(len(u), N)
    for k, sample in enumerate(u):
        previous = A_bar[k] @ previous + B_bar[k] * sample
        states.append(previous)
    return torch.stack(states)


def reconstruct(
    h: Float[Tensor, "*shape N"], points: Float[Tensor, " M"], measure: str = "legs"
) -> Float[Tensor, "*shape M"]:
    """The remembered input at `points` of the remembered interval (0 oldest, 1 now): sum over n of h_n g_n(points)."""
    return h @ basis(h.shape[-1], points, measure).T


class DPLR(NamedTuple):
    """LegS as diagonal plus low rank: A = V (diag(Lambda) - P P^*) V^* with unitary V, and B in the same basis."""

    Lambda: Complex[Tensor, " N"]
    P: Complex[Tensor, " N"]
    B: Complex[Tensor, " N"]
    V: Complex[Tensor, "N N"]


def dplr(N: int) -> DPLR:
    """LegS in the basis of eigenvectors of its normal part, complex128, Lambda sorted by imaginary part.

    A + P P^T with P[n] = sqrt(n + 1/2) is -1/2 on the diagonal and skew-symmetric beside it: it is normal, so a
    unitary V makes it diagonal, and every Lambda has real part -1/2. Lambda comes in conjugate pairs, and -1/2 alone
    when N is odd. S4, arXiv 2111.00396, Theorem 1 and Appendix C.1; S4D, arXiv 2206.11893, section 4.
    """
    A, B = legs(N)
    P = B / math.sqrt(2)
    skew = A + torch.outer(P, P) + torch.eye(N, dtype=A.dtype) / 2
    # i times a real skew-symmetric matrix is Hermitian, for which eigenvectors are computed stably.
    imaginary, V = torch.linalg.eigh(-1j * skew)
    Lambda = torch.complex(torch.full_like(imaginary, -0.5), imaginary)
    return DPLR(Lambda, V.mH @ P.to(V), V.mH @ B.to(V), V)
