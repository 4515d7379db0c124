"""From a differential equation to a recurrence: h' = A h + B u becomes h[t] = A_bar h[t-1] + B_bar u[t].

The input is held at u[t] for a time delta. Exact for such an input is ZOH (zero-order hold):

    A_bar = exp(delta A)        B_bar = integral of exp(s A) B ds over s in [0, delta] = A^-1 (exp(delta A) - I) B

The others replace the derivative by a difference, of which a share alpha is taken at the new state:

    A_bar = (I - alpha delta A)^-1 (I + (1 - alpha) delta A)        B_bar = (I - alpha delta A)^-1 delta B

alpha = 0 is forward Euler, 1 backward Euler, 1/2 the bilinear (Tustin) rule of S4 (arXiv 2111.00396, Eq. 3). Mamba
(arXiv 2312.00752, Eq. 4) states ZOH; its code takes ZOH for A and delta B, as Euler's rules do, for B.
"""

import math

import torch
from jaxtyping import Inexact
from torch import Tensor

TERMS = 16  # of the series: 0.5^17 / 17! is below the rounding of float64
SHARES = {"euler": 0.0, "bilinear": 0.5, "backward_euler": 1.0}


def _share(method: str, alpha: float | None) -> float:
    if method == "generalized_bilinear":
        if alpha is None or not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha!r}; for method 'generalized_bilinear' it must be a number from 0 to 1")
        return alpha
    if alpha is not None:
        raise ValueError(f"alpha is {alpha!r}; only method 'generalized_bilinear' takes one, and method is {method!r}")
    if method not in SHARES:
        names = ", ".join(map(repr, (*SHARES, "generalized_bilinear", "zoh")))
        raise ValueError(f"method is {method!r}; it must be one of {names}")
    return SHARES[method]


def _exponential(X: Tensor) -> Tensor:
    """exp(X) by Taylor's series of X / 2^k, squared k times; torch.linalg.matrix_exp is off by 1e-10 in float64."""
    size = X.detach().abs().sum(-1).max().item()
    halvings = max(0, math.ceil(math.log2(size)) + 1) if size > 0 else 0
    identity = torch.eye(X.shape[-1], dtype=X.dtype, device=X.device)
    X, result = X / 2**halvings, identity
    for order in range(TERMS, 0, -1):
        result = identity + X @ result / order
    for _ in range(halvings):
        result = result @ result
    return result


def discretize(
    A: Inexact[Tensor, "*batch N N"],
    B: Inexact[Tensor, "*batch N M"],
    delta: float | Inexact[Tensor, "*#batch"],
    method: str = "zoh",
    alpha: float | None = None,
) -> tuple[Inexact[Tensor, "*batch N N"], Inexact[Tensor, "*batch N M"]]:
    """(A_bar, B_bar) of h' = A h + B u with a dense A; A may be singular.

    A (..., N, N), B (..., N, M), delta > 0 in the unit of time of A, a number or (...).
    method: "zoh", "bilinear", "euler", "backward_euler", or "generalized_bilinear" with alpha in [0, 1].
    Raises ValueError for an unknown method or an alpha that does not belong to it.
    """
    delta = torch.as_tensor(delta, dtype=A.dtype, device=A.device)[..., None, None]
    N, M = B.shape[-2:]
    if method == "zoh" and alpha is None:
        # exp of delta [[A, B], [0, 0]] holds both, and needs no inverse of A (Van Loan, 1978).
        system = torch.cat((torch.cat((A, B), dim=-1), A.new_zeros(*A.shape[:-2], M, N + M)), dim=-2)
        both = _exponential(delta * system)[..., :N, :]
        return both[..., :N], both[..., N:]
    share = _share(method, alpha)
    identity = torch.eye(N, dtype=A.dtype, device=A.device)
    right = torch.cat((identity + (1 - share) * delta * A, delta * B), dim=-1)
    both = torch.linalg.solve(identity - share * delta * A, right)
    return both[..., :N], both[..., N:]


def discretize_diagonal(
    A: Inexact[Tensor, "*shape"],
    delta: float | Inexact[Tensor, "*shape_of_delta"],
    method: str = "zoh",
    alpha: float | None = None,
) -> tuple[Inexact[Tensor, "..."], Inexact[Tensor, "..."]]:
    """(A_bar, factor) for a diagonal A: everything is elementwise, and B_bar = factor * B.

    A holds the diagonal, real or complex, zeros allowed; A and delta are broadcast against each other.
    method, alpha and errors as in `discretize`.
    """
    delta = torch.as_tensor(delta, dtype=None if isinstance(delta, Tensor) else A.real.dtype, device=A.device)
    x = delta * A
    if method == "zoh" and alpha is None:
        # expm1(x) is exp(x) - 1 without the cancellation where x is small.
        zero = A == 0
        safe = torch.where(zero, torch.ones_like(A), A)
        return torch.exp(x), torch.where(zero, delta.to(x.dtype), torch.expm1(x) / safe)
    share = _share(method, alpha)
    denominator = 1 - share * x
    return (1 + (1 - share) * x) / denominator, delta / denominator
