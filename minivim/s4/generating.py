"""The convolution kernels of S4 and of its diagonal versions, and the eigenvalues that they start from.

All are K[k] = C A_bar^k B_bar for k = 0 .. L - 1, computed without forming powers of a dense matrix L times:

    diagonal    K[k] = sum over n of C_n B_bar_n A_bar_n^k                                 (arXiv 2206.11893, section 3)
    DPLR        K from its generating function at the L-th roots of unity                  (arXiv 2111.00396, Alg. 1)

A real system has complex eigenvalues in conjugate pairs. One of each pair is kept; both together give twice the real
part of one. So N real states are N/2 complex numbers.
"""

import math

import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from minivim.hippo import dplr

INITS = ("lin", "inv", "real", "legs")


def initial_system(init: str, N: int) -> tuple[Inexact[Tensor, " N_kept"], Inexact[Tensor, " N_kept"]]:
    """(A, B), diagonal: N/2 complex numbers, one of each pair, or for "real" N real ones; double precision.

    A_n with n = 0, 1, ...: "lin" -1/2 + i pi n; "inv" -1/2 + i (N / pi) (N / (2n + 1) - 1); "real" -(n + 1), as in
    Mamba; "legs" the eigenvalues of the normal part of HiPPO-LegS. B is 1, and for "legs" half of HiPPO's B in the
    basis of the eigenvectors: with it the kernels approach those of HiPPO-LegS as N grows (Theorem 3).
    S4D, arXiv 2206.11893, section 4. Raises ValueError for an unknown init, and an odd N unless init is "real".
    """
    if init not in INITS:
        raise ValueError(f"init is {init!r}; it must be one of {', '.join(map(repr, INITS))}")
    if N < 1 or (N % 2 and init != "real"):
        must = "at least 1" if init == "real" else "even: complex states come in conjugate pairs"
        raise ValueError(f"N is {N}; with init {init!r} it must be {must}")
    if init == "legs":
        Lambda, _, B, _ = dplr(N)
        return Lambda[N // 2 :], B[N // 2 :] / 2
    if init == "real":
        A = -torch.arange(1, N + 1, dtype=torch.float64)
    else:
        n = torch.arange(N // 2, dtype=torch.float64)
        imaginary = math.pi * n if init == "lin" else N / math.pi * (N / (2 * n + 1) - 1)
        A = torch.complex(torch.full_like(n, -0.5), imaginary)
    return A, torch.ones_like(A)


def both_of_pair(x: Inexact[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x plus its conjugate, 2 Re x; a real x stands for itself."""
    return 2 * x.real if x.is_complex() else x


def powers(A: Inexact[Tensor, "*shape"], count: int) -> Inexact[Tensor, "*shape count"]:
    """1, A, A^2, .. elementwise, count of them: each product doubles how many there are, so rounding grows slowly."""
    columns = torch.ones_like(A)[..., None]
    while columns.shape[-1] < count:
        columns = torch.cat((columns, columns * A[..., None]), dim=-1)
        A = A * A
    return columns[..., :count]


def diagonal_kernel(A_bar: Inexact[Tensor, "*#H N"], weights: Inexact[Tensor, "*H N"], L: int) -> Float[Tensor, "*H L"]:
    """K[k] = sum over n of weights_n A_bar_n^k, with weights = C * B_bar, and over conjugates where A_bar is complex.

    The powers form a Vandermonde matrix (N, L). It is never built: with k = j m + i the sum is a product of a matrix
    of weights_n A_bar_n^(j m) with one of A_bar_n^i, both about sqrt(L) wide.
    """
    m = math.isqrt(L - 1) + 1
    columns = powers(A_bar, m)
    rows = weights[..., None] * powers(columns[..., -1] * A_bar, -(-L // m))
    return both_of_pair(rows.mT @ columns).flatten(-2)[..., :L]


def dense(Lambda: Complex[Tensor, "H N"], P: Complex[Tensor, "H N"]) -> Complex[Tensor, "H N N"]:
    """A = diag(Lambda) - P P^*."""
    return torch.diag_embed(Lambda) - P[..., :, None] * P[..., None, :].conj()


def dplr_kernel(
    Lambda: Complex[Tensor, "H N"],
    P: Complex[Tensor, "H N"],
    B: Complex[Tensor, "H N"],
    C_truncated: Complex[Tensor, "H N"],
    delta: Float[Tensor, " H"],
    L: int,
) -> Float[Tensor, "H L"]:
    """K[k] = C A_bar^k B_bar of A = diag(Lambda) - P P^*, bilinear, from C_truncated = C (I - A_bar^L).

    All N states stand here, both of each conjugate pair, so that K is real. At the L-th roots of unity z,

        sum over k of K[k] z^k = C_truncated (I - A_bar z)^-1 B_bar
                               = 2 (c_B - (1 + z) c_P p_B / (1 + (1 + z) p_P))

    where c_B is short for sum over n of C_truncated_n B_n / (points - (1 + z) Lambda_n), c_P and p_B, p_P likewise
    with P and its conjugate (Woodbury), and points = 2 (1 - z) / delta. Nothing here divides by 1 + z, so z = -1 is a
    point like any other. The sum over k is a discrete Fourier transform; its inverse is K.
    S4, arXiv 2111.00396, section 3.2, Algorithm 1 and Appendix C.3.
    """
    z = torch.exp(-2j * math.pi / L * torch.arange(L // 2 + 1, dtype=delta.dtype, device=delta.device))
    plus = (1 + z)[:, None]
    shared = 1 / (2 * (1 - z)[:, None] / delta[:, None, None] - plus * Lambda[:, None])  # (H, L // 2 + 1, N)
    columns = torch.stack((B, P), dim=-1)
    from_C, from_P = (shared * row[:, None] @ columns for row in (C_truncated, P.conj()))
    (c_B, c_P), (p_B, p_P) = from_C.unbind(-1), from_P.unbind(-1)
    return torch.fft.irfft(2 * (c_B - (1 + z) * c_P * p_B / (1 + (1 + z) * p_P)), L)
