"""Chapter 04, long memory: the checkers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minivim.course.exercises.checking import compare, exercise
from minivim.discretize import discretize_diagonal
from minivim.hippo import legs, legt, reconstruct
from minivim.lti import kernel
from minivim.s4.generating import diagonal_kernel, initial_system
from minivim.s4.nd import fft_convolution_2d


def _generator(seed: int) -> torch.Generator:
    """Random numbers that are the same for everybody."""
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=_generator(seed), dtype=dtype)


@exercise("04.1", "Read the line")
def read_line(answer: Callable) -> None:
    """h_0 + h_1 sqrt(3) (2x - 1) for floats."""
    root = math.sqrt(3)
    for h_0, h_1, x in [(4.0, root, 0.75), (4.0, root, 0.0), (-1.0, 0.4, 1.0), (2.0, -3.0, 0.1)]:
        state, place = torch.tensor([h_0, h_1]).double(), torch.tensor([x]).double()
        expected = reconstruct(state, place).item()
        causes = {
            "the factor sqrt(3) of g_1 is missing": h_0 + h_1 * (2 * x - 1),
            "g_1 is sqrt(3) (2x - 1), not sqrt(3) x: at x = 1/2 it is 0": h_0 + h_1 * root * x,
            "g_1 is sqrt(3) (2x - 1), not x: this is mean plus slope times x": h_0 + h_1 * x,
            "2x - 1 needs brackets: sqrt(3) multiplies the 1, too": h_0 + h_1 * root * 2 * x - 1,
            "g_1 rises: it is 2x - 1, not 1 - 2x": h_0 - h_1 * root * (2 * x - 1),
            "the mean h_0 is missing": h_1 * root * (2 * x - 1),
            "this is g_1 with x - 1 in place of 2x - 1": h_0 + h_1 * root * (x - 1),
        }
        compare(answer(h_0, h_1, x), expected, "the line", given=f"h_0 = {h_0}, h_1 = {h_1}, x = {x}", causes=causes)


@exercise("04.2", "The LegS matrix")
def legs_matrices(answer: Callable) -> None:
    """(A, B) of HiPPO-LegS, stable."""
    for N in (3, 1, 2, 8):
        A, B = legs(N)
        low, diagonal = torch.tril(A, -1), torch.arange(1, N + 1).double()
        counted = torch.sqrt(2 * diagonal + 1)
        causes = {
            "A has the sign of HiPPO's paper; put the minus inside, so that A is stable": (-A, B),
            "A is transposed: the entries stand below the diagonal, k < n": (A.mT, B),
            "this is LegT: above the diagonal LegS has zeros": legt(N),
            "the diagonal is -(n + 1), not -(2n + 1)": (low - torch.diag(2 * diagonal - 1), B),
            "the diagonal is missing: it is -(n + 1)": (low, B),
            "the diagonal has the wrong sign: it is -(n + 1)": (low + torch.diag(diagonal), B),
            "above the diagonal LegS has zeros, k > n": (low + low.mT - torch.diag(diagonal), B),
            "the diagonal is -(n + 1) with n from 0, not -n": (low - torch.diag(diagonal - 1), B),
            "n counts from 0: B[0] is sqrt(1), not sqrt(3)": (
                -torch.tril(torch.outer(counted, counted), -1) - torch.diag(diagonal + 1),
                counted,
            ),
            "the square roots are missing below the diagonal": (
                -torch.tril(torch.outer(B**2, B**2), -1) - torch.diag(diagonal),
                B,
            ),
            "the square root is missing in B": (A, B**2),
        }
        compare(answer(N), (A, B), "(A, B)", given=f"N = {N}", causes=causes)


@exercise("04.3", "The generating function at one point")
def generating_function(answer: Callable) -> None:
    """Sum of C A_bar^k B_bar z^k for k below L, at any complex z."""
    for N, L, z, seed in [(4, 7, 0.6 - 0.7j, 2), (1, 5, 0.5 + 0.0j, 0), (3, 8, complex(0, 1), 1), (4, 16, -1 + 0j, 3)]:
        A, B, C = (
            _normal(N, N, seed=seed) / (2 * math.sqrt(N)),
            _normal(N, 1, seed=seed + 10),
            _normal(1, N, seed=seed + 20),
        )
        K = kernel(A, B, C, L)[:, 0, 0].to(torch.complex128)

        def total(length: int, z: complex = z, A: Tensor = A, B: Tensor = B, C: Tensor = C) -> Tensor:
            numbers = kernel(A, B, C, length)[:, 0, 0].to(torch.complex128)
            return (numbers * z ** torch.arange(length)).sum()

        endless = torch.linalg.solve(torch.eye(N) - z * A, B.to(torch.complex128))
        power = torch.linalg.matrix_power(A, L).to(endless)

        def cut(rest: Tensor, C: Tensor = C, endless: Tensor = endless) -> Tensor:
            return (C.to(endless) @ (endless - rest @ endless))[0, 0]

        causes = {
            "the sum is not cut off at L: multiply C by I - A_bar^L z^L": total(400),
            "z^L is missing beside A_bar^L; it is 1 for a root of unity only": cut(power),
            "z must be raised to the power L, too: z^L A_bar^L": cut(z * power),
            "A_bar must be raised to the power L, too: z^L A_bar^L": cut(z**L * A),
            "the signs are minus: both I - A_bar^L z^L and I - A_bar z": (
                C.to(endless) @ (torch.eye(N) + z**L * power) @ torch.linalg.solve(torch.eye(N) + z * A, B.to(endless))
            )[0, 0],
            "`A_bar ** L` is taken entry by entry; use torch.linalg.matrix_power": cut(z**L * A**L),
            "the inverse is missing: (I - A_bar z)^-1, not I - A_bar z": (
                C.to(endless) @ (torch.eye(N) - z**L * power) @ (torch.eye(N) - z * A) @ B.to(endless)
            )[0, 0],
            "this is one term too many: k runs to L - 1": total(L + 1),
            "this is one term too few: the power is L, not L - 1": total(L - 1),
            "z is missing: this is the sum of the kernel": K.sum(),
            "this is the conjugate: C and z must not be conjugated": total(L).conj(),
        }
        given = f"N = {N}, L = {L}, z = {z}"
        compare(answer(A, B, C, L, z), total(L), "K_hat(z)", given=given, causes=causes)


@exercise("04.4", "Woodbury for rank one")
def solve_rank_one(answer: Callable) -> None:
    """(diag(d) + p q^*)^-1 b."""
    for N, seed in [(3, 1), (1, 0), (8, 2)]:
        d, p, q, b = _normal(4, N, seed=seed, dtype=torch.complex128)
        d = d + 2
        expected = torch.linalg.solve(torch.diag(d) + torch.outer(p, q.conj()), b)
        product = (q.conj() * b / d).sum()
        share = (q.conj() * p / d).sum()
        causes = {
            "q must be conjugated: q^* is the conjugate transpose": torch.linalg.solve(
                torch.diag(d) + torch.outer(p, q), b
            ),
            "q must be conjugated in the denominator, too": b / d - p / d * product / (1 + (q * p / d).sum()),
            "q must be conjugated in the numerator, too": b / d - p / d * (q * b / d).sum() / (1 + share),
            "b is not divided by d under q^*: the formula has q^* X^-1": b / d
            - p / d * (q.conj() * b).sum() / (1 + share),
            "p is not divided by d in the denominator: it has q^* X^-1 p": b / d
            - p / d * product / (1 + (q.conj() * p).sum()),
            "q^* v is one number, a sum over n; the sums are missing": b / d
            - p / d * q.conj() * b / d / (1 + q.conj() * p / d),
            "the sign in front of the fraction is a minus": b / d + p / d * product / (1 + share),
            "the 1 in the denominator is missing": b / d - p / d * product / share,
            "the denominator is 1 + q^* X^-1 p; the sign is a plus": b / d - p / d * product / (1 - share),
            "this is the diagonal alone; the rank-one part is missing": b / d,
            "p is not divided by d in the fraction's numerator": b / d - p * product / (1 + share),
            "this is the product (diag(d) + p q^*) b; its inverse is asked for": d * b + p * (q.conj() * b).sum(),
        }
        compare(answer(d, p, q, b), expected, "h", tolerance=1e-8, given=f"N = {N}, complex numbers", causes=causes)


@exercise("04.5", "S4D's kernel")
def s4d_kernel(answer: Callable) -> None:
    """2 Re of the sum over C B_bar A_bar^k, by ZOH."""
    for H, M, L, seed in [(3, 4, 9, 1), (1, 1, 4, 0), (2, 8, 16, 2)]:
        Lambda = torch.complex(-0.2 - _normal(H, M, seed=seed).abs(), 3 * _normal(H, M, seed=seed + 10))
        B, C = _normal(2, H, M, seed=seed + 20, dtype=torch.complex128)
        delta = 0.1 + _normal(H, seed=seed + 30).abs()
        A_bar, factor = discretize_diagonal(Lambda, delta[:, None])
        expected = diagonal_kernel(A_bar, C * factor * B, L)
        by_bilinear, factor_of_bilinear = discretize_diagonal(Lambda, delta[:, None], "bilinear")
        undone = (C * factor * B)[..., None] * torch.exp((delta[:, None] * Lambda)[..., None] * torch.arange(L))
        causes = {
            "the conjugates are missing: twice the real part": expected / 2,
            "B_bar is Euler's delta B; by ZOH it is (exp(delta Lambda) - 1) / Lambda B": diagonal_kernel(
                A_bar, C * delta[:, None] * B, L
            ),
            "B_bar is divided by delta Lambda; by ZOH it is (exp(delta Lambda) - 1) / Lambda B": diagonal_kernel(
                A_bar, C * factor / delta[:, None] * B, L
            ),
            "the - 1 of B_bar is missing": diagonal_kernel(A_bar, C * A_bar / Lambda * B, L),
            "C is missing": diagonal_kernel(A_bar, factor * B, L),
            "the powers begin at A_bar^0 = 1, not at A_bar": diagonal_kernel(A_bar, C * factor * B * A_bar, L),
            "the exponent has the wrong sign: A_bar = exp(delta Lambda)": diagonal_kernel(1 / A_bar, C * factor * B, L),
            "C must not be conjugated": diagonal_kernel(A_bar, C.conj() * factor * B, L),
            "B is missing": diagonal_kernel(A_bar, C * factor, L),
            "B_bar is missing: this has B in its place": diagonal_kernel(A_bar, C * B, L),
            "this is the bilinear rule; ZOH is asked for": diagonal_kernel(by_bilinear, C * factor_of_bilinear * B, L),
            "the result is complex: take twice the real part": undone.sum(dim=1),
            "delta is missing in the powers": diagonal_kernel(Lambda.exp(), C * factor * B, L),
        }
        compare(answer(Lambda, B, C, delta, L), expected, "K", given=f"H = {H}, M = {M}, L = {L}", causes=causes)


def _inverse_law(N: int, n: Tensor) -> Tensor:
    """The imaginary parts of S4D-Inv."""
    return N / math.pi * (N / (2 * n + 1) - 1)


@exercise("04.6", "Initial eigenvalues")
def initial_eigenvalues(answer: Callable) -> None:
    """S4D-Lin and S4D-Inv."""
    for name, N in [("lin", 8), ("lin", 2), ("inv", 4), ("inv", 16)]:
        A, _ = initial_system(name, N)
        n = torch.arange(N).double()
        kept = n[: N // 2]
        other = initial_system("inv" if name == "lin" else "lin", N)[0]
        causes = {
            "all N are here; of each conjugate pair one is kept, so N/2": torch.complex(
                torch.full_like(n, -0.5), math.pi * n if name == "lin" else _inverse_law(N, n)
            ),
            "these are the eigenvalues of the other name": other,
            "the real part is +1/2: such a state explodes": torch.complex(-A.real, A.imag),
            "the real part is -1/2, not -1": torch.complex(2 * A.real, A.imag),
            "the real part is missing; it is -1/2": torch.complex(0 * A.real, A.imag),
            "these are the imaginary parts; an eigenvalue is -1/2 plus i times them": A.imag,
            "these are the conjugates: of each pair the one with a positive imaginary part is kept": A.conj(),
            "pi is missing": torch.complex(A.real, A.imag / math.pi if name == "lin" else A.imag * math.pi),
            "n counts from 0, not from 1": torch.complex(
                A.real, math.pi * (kept + 1) if name == "lin" else _inverse_law(N, kept + 1)
            ),
        }
        if name == "inv":
            causes["the bracket holds N / (2n + 1) - 1, with the minus 1 inside"] = torch.complex(
                A.real, N / math.pi * N / (2 * kept + 1) - 1
            )
            causes["N is the number of all states, not N/2"] = torch.complex(A.real, _inverse_law(N // 2, kept))
        compare(answer(name, N), A, "the eigenvalues", given=f'name = "{name}", N = {N}', causes=causes)


@exercise("04.7", "Two sides, one filter")
def separable_filter(answer: Callable) -> None:
    """The image convolved with an outer product."""
    for H, W, seed in [(5, 3, 1), (1, 4, 0), (6, 6, 2)]:
        image, vertical, horizontal = _normal(H, W, seed=seed), _normal(H, seed=seed + 10), _normal(W, seed=seed + 20)
        one, other = torch.zeros(H).double(), torch.zeros(W).double()
        one[0] = other[0] = 1

        def by(down: Tensor, along: Tensor, image: Tensor = image) -> Tensor:
            return fft_convolution_2d(image, torch.outer(down, along))

        expected = by(vertical, horizontal)
        wrapped = torch.fft.irfft2(torch.fft.rfft2(image) * torch.fft.rfft2(torch.outer(vertical, horizontal)), (H, W))
        causes = {
            "only the rows are filtered; then the columns, over what that gave": by(one, horizontal),
            "only the columns are filtered; the rows, too": by(vertical, other),
            "the two results are added; the second filter must run over the result of the first": by(one, horizontal)
            + by(vertical, other),
            "this is a product pixel by pixel, not a convolution": image * torch.outer(vertical, horizontal),
            "the ends wrap around: pad with zeros": wrapped,
            "the two results are multiplied; the second filter must run over the result of the first": by(
                one, horizontal
            )
            * by(vertical, other),
            "a kernel is reversed: K[0] belongs to the pixel itself": by(vertical.flip(0), horizontal.flip(0)),
            "the result is still transposed": expected.mT,
        }
        if H == W:
            causes["vertical and horizontal are swapped"] = by(horizontal, vertical)
        compare(
            answer(image, vertical, horizontal),
            expected,
            "the filtered image",
            tolerance=1e-8,
            given=f"H = {H}, W = {W}",
            causes=causes,
        )
