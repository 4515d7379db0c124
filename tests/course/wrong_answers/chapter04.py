"""Answers to the exercises of chapter 04 as learners give them, and the hint that each must get."""

import math

import torch

from minivim.hippo import legs, legt
from minivim.lti import fft_convolution, kernel


def loop_of_legs(N, above=0.0, shift=0):
    """A by two loops, with the slips that loops invite."""
    A, B = torch.zeros(N, N).double(), torch.zeros(N).double()
    for n in range(N):
        B[n] = math.sqrt(2 * (n + shift) + 1)
        for k in range(N):
            A[n, k] = -(n + shift + 1) if n == k else -math.sqrt((2 * n + 1) * (2 * k + 1)) * (1 if k < n else above)
    return A, B


def generating(A, B, C, L, z, power, cut=True):
    """C (I - X) (I - A z)^-1 B, where X is `power` of z A, A, L."""
    identity = torch.eye(len(A)).to(torch.complex128)
    step = z * A.to(torch.complex128)
    row = C.to(step) @ (identity - power(step, A.to(step), L)) if cut else C.to(step)
    return (row @ torch.linalg.solve(identity - step, B.to(step)))[0, 0]


def power(X, n):
    return torch.linalg.matrix_power(X, n)


def woodbury(d, p, q, b, sign=-1, one=1, conjugate=True):
    row = q.conj() if conjugate else q
    return b / d + sign * p / d * (row * b / d).sum() / (one + (row * p / d).sum())


def cut_by(A, B, C, z, rest, invert=torch.linalg.inv):
    """C (I - rest) (I - A z)^-1 B."""
    A, B, C, rest = (each.to(torch.complex128) for each in (A, B, C, rest))
    identity = torch.eye(len(A))
    return (C @ (identity - rest) @ invert(identity - z * A) @ B)[0, 0]


def inverse_of_sum(X):
    """(I + A z)^-1 from X = I - A z."""
    return torch.linalg.inv(2 * torch.eye(len(X)) - X)


def vandermonde(Lambda, B, C, delta, L, exact=True, sign=1, first=0):
    """The weighted powers (H, M, L), complex."""
    x = delta[:, None] * Lambda
    B_bar = (torch.exp(x) - 1) / Lambda * B if exact else delta[:, None] * B
    return (C * B_bar)[..., None] * torch.exp(sign * x[..., None] * torch.arange(first, L + first))


def eigenvalues(name, N, size=None, start=0, count=None):
    n = torch.arange(start, start + (count or N // 2)).double()
    size = size or N
    imaginary = math.pi * n if name == "lin" else size / math.pi * (size / (2 * n + 1) - 1)
    return torch.complex(torch.full_like(n, -0.5), imaginary)


WRONG = {
    "04.1": [
        (lambda h_0, h_1, x: h_0 + h_1 * (2 * x - 1), r"sqrt\(3\) of g_1 is missing"),
        (lambda h_0, h_1, x: h_0 + h_1 * math.sqrt(3) * x, "at x = 1/2 it is 0"),
        (lambda h_0, h_1, x: h_1 * math.sqrt(3) * (2 * x - 1), "the mean h_0 is missing"),
        (lambda h_0, h_1, x: h_0 + h_1 * math.sqrt(3) * (1 - 2 * x), "2x - 1, not 1 - 2x"),
        (lambda h_0, h_1, x: h_0 + h_1 * x, "mean plus slope times x"),
        (lambda h_0, h_1, x: h_0 + h_1 * math.sqrt(3) * 2 * x - 1, "2x - 1 needs brackets"),
    ],
    "04.2": [
        (lambda N: (-legs(N)[0], legs(N)[1]), "put the minus inside"),
        (lambda N: (legs(N)[0].T, legs(N)[1]), "A is transposed"),
        (legt, "this is LegT"),
        (lambda N: loop_of_legs(N, above=1.0), "above the diagonal LegS has zeros"),
        (lambda N: (legs(N)[0].tril(-1), legs(N)[1]), "the diagonal is missing"),
        (lambda N: (legs(N)[0].tril(-1) - legs(N)[0].diagonal().diag(), legs(N)[1]), "diagonal has the wrong sign"),
        (lambda N: (loop_of_legs(N)[0] + torch.eye(N), loop_of_legs(N)[1]), "n from 0, not -n"),
        (lambda N: (legs(N)[0], legs(N)[1] ** 2), "square root is missing in B"),
        (lambda N: legs(N)[0], "must be a tuple of 2 values"),
    ],
    "04.3": [
        (lambda A, B, C, L, z: generating(A, B, C, L, z, None, cut=False), "not cut off at L"),
        (lambda A, B, C, L, z: generating(A, B, C, L, z, lambda step, A, L: power(A, L)), r"z\^L is missing"),
        (lambda A, B, C, L, z: generating(A, B, C, L, z, lambda step, A, L: power(step, L + 1)), "one term too many"),
        (lambda A, B, C, L, z: generating(A, B, C, L, z, lambda step, A, L: power(step, L - 1)), "one term too few"),
        (
            lambda A, B, C, L, z: cut_by(
                A, B, C, z, -(z**L) * power(A, L), lambda X: torch.linalg.inv(2 * torch.eye(len(X)) - X)
            ),
            "the signs are minus",
        ),
        (lambda A, B, C, L, z: kernel(A, B, C, L).sum().to(torch.complex128), "z is missing"),
        (lambda A, B, C, L, z: generating(A, B, C, L, z.conjugate(), lambda step, A, L: power(step, L)), "conjugate"),
        (lambda A, B, C, L, z: cut_by(A, B, C, z, z * power(A, L)), "z must be raised"),
        (lambda A, B, C, L, z: cut_by(A, B, C, z, z**L * A), "A_bar must be raised"),
        (lambda A, B, C, L, z: cut_by(A, B, C, z, (z * A) ** L), "entry by entry"),
        (lambda A, B, C, L, z: cut_by(A, B, C, z, z**L * power(A, L), torch.clone), "the inverse is missing"),
    ],
    "04.4": [
        (lambda d, p, q, b: woodbury(d, p, q, b, conjugate=False), "q must be conjugated"),
        (lambda d, p, q, b: woodbury(d, p, q, b, sign=1), "the sign in front of the fraction"),
        (lambda d, p, q, b: woodbury(d, p, q, b, one=0), "the 1 in the denominator"),
        (lambda d, p, q, b: b / d, "the diagonal alone"),
        (
            lambda d, p, q, b: b / d - p / d * (q.conj() * b / d).sum() / (1 + (q * p / d).sum()),
            "in the denominator, too",
        ),
        (
            lambda d, p, q, b: b / d - p / d * (q * b / d).sum() / (1 + (q.conj() * p / d).sum()),
            "in the numerator, too",
        ),
        (lambda d, p, q, b: b / d - p / d * (q.conj() * b).sum() / (1 + (q.conj() * p / d).sum()), "b is not divided"),
        (
            lambda d, p, q, b: b / d - p / d * (q.conj() * b / d).sum() / (1 + (q.conj() * p).sum()),
            "p is not divided by d in the denominator",
        ),
        (lambda d, p, q, b: b / d - p / d * q.conj() * b / d / (1 + q.conj() * p / d), "the sums are missing"),
        (lambda d, p, q, b: d * b + p * (q.conj() * b).sum(), "its inverse is asked for"),
    ],
    "04.5": [
        (lambda *given: vandermonde(*given).sum(1).real, "conjugates are missing"),
        (lambda *given: 2 * vandermonde(*given, exact=False).sum(1).real, "Euler's delta B"),
        (lambda *given: 2 * vandermonde(*given, sign=-1).sum(1).real, "exponent has the wrong sign"),
        (lambda *given: 2 * vandermonde(*given, first=1).sum(1).real, r"begin at A_bar\^0"),
        (lambda *given: vandermonde(*given).sum(1), "the result is complex"),
        (lambda Lambda, B, C, delta, L: 2 * vandermonde(Lambda, B, C.conj(), delta, L).sum(1).real, "must not be conj"),
        (
            lambda Lambda, B, C, delta, L: 2 * vandermonde(Lambda, B, C / delta[:, None], delta, L).sum(1).real,
            "divided by delta Lambda",
        ),
        (lambda Lambda, B, C, delta, L: 2 * vandermonde(Lambda, B, C * 0 + 1, delta, L).sum(1).real, "C is missing"),
    ],
    "04.6": [
        (lambda name, N: eigenvalues(name, N, count=N), "so N/2"),
        (lambda name, N: eigenvalues(name, N, start=1), "n counts from 0"),
        (lambda name, N: eigenvalues(name, N, size=N / 2), "all states, not N/2"),
        (lambda name, N: eigenvalues("lin", N), "the other name"),
        (lambda name, N: eigenvalues(name, N) + 1, r"real part is \+1/2"),
        (lambda name, N: eigenvalues(name, N).conj(), "these are the conjugates"),
        (lambda name, N: eigenvalues(name, N) + 0.5, "the real part is missing"),
        (lambda name, N: eigenvalues(name, N).imag, "these are the imaginary parts"),
        (
            lambda name, N: eigenvalues(name, N) + (0 if name == "lin" else 1j * (N / math.pi - 1)),
            "with the minus 1 inside",
        ),
    ],
    "04.7": [
        (lambda image, vertical, horizontal: fft_convolution(image, horizontal), "only the rows"),
        (lambda image, vertical, horizontal: fft_convolution(image.mT, vertical).mT, "only the columns"),
        (
            lambda image, vertical, horizontal: (
                fft_convolution(image, horizontal) + fft_convolution(image.mT, vertical).mT
            ),
            "the two results are added",
        ),
        (lambda image, vertical, horizontal: image * vertical[:, None] * horizontal, "pixel by pixel"),
        (
            lambda image, vertical, horizontal: (
                fft_convolution(image, horizontal) * fft_convolution(image.mT, vertical).mT
            ),
            "the two results are multiplied",
        ),
        (
            lambda image, vertical, horizontal: (
                fft_convolution(fft_convolution(image, horizontal.flip(0)).mT, vertical.flip(0)).mT
            ),
            "a kernel is reversed",
        ),
        (
            lambda image, vertical, horizontal: fft_convolution(fft_convolution(image, horizontal).mT, vertical),
            "transposed|shape",
        ),
    ],
}
