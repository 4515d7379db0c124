"""Linear state-space models: noise, filter and smoother; kernel, recurrence and convolution; stability and rank.

Control's convention, for the models with noise (Kalman, 1960):

    h[t+1] = A h[t] + B u[t] + w[t]        y[t] = C h[t] + D u[t] + v[t]
    w[t] ~ N(0, Q)        v[t] ~ N(0, R)        h[0] ~ N(mean, covariance)

S4's and Mamba's convention, where h[t] has already seen u[t] (arXiv 2111.00396, Eq. 3 and 4):

    h[t] = A h[t-1] + B u[t]        y[t] = C h[t] + D u[t]        h[-1] = 0

so that y = K * u with K[k] = C A^k B. Sizes: N states, M inputs, P outputs, L steps.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from jaxtyping import Float, Inexact
from torch import Tensor


def _check(name: str, tensor: Tensor, shape: tuple, like: Tensor | None = None) -> None:
    """Raise if `tensor` has another shape (None: any size) or, where `like` is given, another dtype."""
    fits = len(shape) == tensor.ndim and all(map(lambda want, have: want in (None, have), shape, tensor.shape))
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be ({sizes})")
    if like is not None and tensor.dtype != like.dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}; it must be {like.dtype}, as the rest of the model")


def _check_covariance(name: str, covariance: Tensor) -> None:
    values = covariance.detach()
    tolerance = 100 * torch.finfo(values.dtype).eps * values.abs().amax().item()
    if (values - values.mT).abs().amax() > tolerance:
        raise ValueError(f"{name} is not symmetric; it must be a covariance matrix")
    lowest = torch.linalg.eigvalsh(values).amin().item()
    if lowest < -tolerance:
        raise ValueError(f"{name} has the eigenvalue {lowest:.3g}; it must be a covariance matrix, so none is negative")


@dataclass(frozen=True)
class LinearGaussian:
    """h[t+1] = A h[t] + B u[t] + w[t], y[t] = C h[t] + D u[t] + v[t], with w ~ N(0, Q) and v ~ N(0, R).

    The state starts at h[0] ~ N(mean, covariance). Source: Kalman, 1960.

    Shapes: A (N, N), B (N, M), C (P, N), D (P, M), Q (N, N), R (P, P), mean (N,), covariance (N, N). Any of the first
    six may vary in time: then it has a leading axis of length L, and A[t], B[t], Q[t] lead from h[t] to h[t+1].
    Q and covariance may be singular; M may be 0. All share one floating dtype.
    Raises ValueError for a wrong shape or for a Q, R or covariance that is no covariance, TypeError for a mixed dtype.
    """

    A: Float[Tensor, "... N N"]
    B: Float[Tensor, "... N M"]
    C: Float[Tensor, "... P N"]
    D: Float[Tensor, "... P M"]
    Q: Float[Tensor, "... N N"]
    R: Float[Tensor, "... P P"]
    mean: Float[Tensor, " N"]
    covariance: Float[Tensor, "N N"]

    def __post_init__(self) -> None:
        _check("mean", self.mean, (None,))
        if not self.mean.is_floating_point():
            raise TypeError(f"mean has dtype {self.mean.dtype}; it must be a floating dtype, such as torch.float64")
        N = len(self.mean)
        self._check_matrix("A", N, N)
        self._check_matrix("B", N, None)
        self._check_matrix("C", None, N)
        self._check_matrix("D", self.C.shape[-2], self.B.shape[-1])
        self._check_matrix("Q", N, N)
        self._check_matrix("R", self.C.shape[-2], self.C.shape[-2])
        _check("covariance", self.covariance, (N, N), like=self.mean)
        for name in ("Q", "R", "covariance"):
            _check_covariance(name, getattr(self, name))

    def _check_matrix(self, name: str, *shape: int | None) -> None:
        matrix = getattr(self, name)
        _check(name, matrix, (self.length, *shape) if matrix.ndim == 3 else shape, like=self.mean)

    @property
    def length(self) -> int | None:
        """L, the number of steps of a time-varying model; None for a time-invariant one."""
        return next((len(each) for each in self._matrices() if each.ndim == 3), None)

    def at(self, t: int) -> tuple[Tensor, ...]:
        """A, B, C, D, Q, R of step t."""
        return tuple(each[t] if each.ndim == 3 else each for each in self._matrices())

    def _matrices(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)[:6]]


def _check_sequence(model: LinearGaussian, name: str, sequence: Tensor, size: int, length: int | None = None) -> None:
    """Raise unless `sequence` is (L, size); L is `length` or, where that is None, any that suits the model."""
    _check(name, sequence, (length or model.length, size), like=model.mean)
    if len(sequence) == 0:
        raise ValueError(f"{name} has 0 steps; it must have at least 1")


def _root(covariance: Tensor) -> Tensor:
    """S with S S^T = covariance; Cholesky's factor would need a covariance that is not singular."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


def simulate(
    model: LinearGaussian, u: Float[Tensor, "L M"], generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "L N"], Float[Tensor, "L P"]]:
    """One random run (h, y) of the model: h (L, N), y (L, P). The same generator state gives the same run.

    Raises ValueError or TypeError for a u that does not fit the model.
    """
    _check_sequence(model, "u", u, model.B.shape[-1])
    L, N, P = len(u), len(model.mean), model.C.shape[-2]
    start, w, v = (
        torch.randn(*shape, generator=generator, dtype=u.dtype, device=u.device) for shape in ((N,), (L, N), (L, P))
    )
    w = (_root(model.Q) @ w[..., None])[..., 0]
    v = (_root(model.R) @ v[..., None])[..., 0]
    state = model.mean + _root(model.covariance) @ start
    h, y = [], []
    for t in range(L):
        A, B, C, D, _, _ = model.at(t)
        h.append(state)
        y.append(C @ state + D @ u[t] + v[t])
        state = A @ state + B @ u[t] + w[t]
    return torch.stack(h), torch.stack(y)


class Filtered(NamedTuple):
    """What a Kalman filter knows at each step.

    mean, covariance: of h[t] given y[0] .. y[t]; predicted_mean, predicted_covariance: given y[0] .. y[t-1].
    log_likelihood: log p(y[0] .. y[L-1]), natural logarithm.
    """

    mean: Float[Tensor, "L N"]
    covariance: Float[Tensor, "L N N"]
    predicted_mean: Float[Tensor, "L N"]
    predicted_covariance: Float[Tensor, "L N N"]
    log_likelihood: Float[Tensor, ""]


def _correct(mean: Tensor, covariance: Tensor, C: Tensor, R: Tensor, innovation: Tensor) -> tuple[Tensor, ...]:
    """(mean, covariance, log density of the innovation): what is known once y is; innovation = y - its prediction."""
    factor, failed = torch.linalg.cholesky_ex(C @ covariance @ C.mT + R)
    if failed:
        raise ValueError("the covariance of a measurement, C covariance C^T + R, is not positive; R must make it so")
    gain = torch.cholesky_solve(C @ covariance, factor).mT
    # Joseph's form: a sum of positive terms stays a covariance in float32, the difference P - gain C P may not.
    keep = torch.eye(len(mean), dtype=mean.dtype, device=mean.device) - gain @ C
    covariance = keep @ covariance @ keep.mT + gain @ R @ gain.mT
    scaled = torch.linalg.solve_triangular(factor, innovation[:, None], upper=False)
    log_density = -(scaled**2).sum() / 2 - factor.diagonal().log().sum() - len(innovation) * math.log(2 * math.pi) / 2
    return mean + gain @ innovation, covariance, log_density


def kalman_filter(model: LinearGaussian, u: Float[Tensor, "L M"], y: Float[Tensor, "L P"]) -> Filtered:
    """What y[0] .. y[t] say about h[t], for every t: exact, as all is Gaussian. Differentiable.

    u (L, M) and y (L, P) in the model's dtype. Source: Kalman, "A New Approach to Linear Filtering and Prediction
    Problems", 1960. Raises ValueError or TypeError for a u or y that does not fit the model, and ValueError where a
    measurement has no density (R and what C sees of the covariance both singular).
    """
    _check_sequence(model, "u", u, model.B.shape[-1])
    _check_sequence(model, "y", y, model.C.shape[-2], len(u))
    mean, covariance, steps = model.mean, model.covariance, []
    for t in range(len(u)):
        A, B, C, D, Q, R = model.at(t)
        predicted = mean, covariance
        mean, covariance, log_density = _correct(*predicted, C, R, y[t] - C @ mean - D @ u[t])
        steps.append((mean, covariance, *predicted, log_density))
        mean, covariance = A @ mean + B @ u[t], A @ covariance @ A.mT + Q
    *moments, log_densities = (torch.stack(each) for each in zip(*steps, strict=True))
    return Filtered._make((*moments, log_densities.sum()))


def rts_smoother(model: LinearGaussian, filtered: Filtered) -> tuple[Float[Tensor, "L N"], Float[Tensor, "L N N"]]:
    """(mean, covariance) of h[t] given all of y, (L, N) and (L, N, N): a walk back over what the filter found.

    Source: Rauch, Tung and Striebel, "Maximum Likelihood Estimates of Linear Dynamic Systems", 1965.
    Raises ValueError or TypeError for a `filtered` that does not come from a model of this size.
    """
    _check_sequence(model, "filtered.mean", filtered.mean, len(model.mean))
    mean, covariance = filtered.mean[-1], filtered.covariance[-1]
    identity = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    steps = [(mean, covariance)]
    for t in range(len(filtered.mean) - 2, -1, -1):
        A, _, _, _, Q, _ = model.at(t)
        # The pseudo-inverse, because a state that is known exactly has a covariance of zero.
        inverse = torch.linalg.pinv(filtered.predicted_covariance[t + 1], hermitian=True)
        gain = filtered.covariance[t] @ A.mT @ inverse
        mean = filtered.mean[t] + gain @ (mean - filtered.predicted_mean[t + 1])
        # Again a sum of positive terms: P[t] + gain (P_smooth[t+1] - P_predicted[t+1]) gain^T, but fit for float32.
        keep = identity - gain @ A
        covariance = keep @ filtered.covariance[t] @ keep.mT + gain @ (Q + covariance) @ gain.mT
        steps.append((mean, covariance))
    means, covariances = zip(*reversed(steps), strict=True)
    return torch.stack(means), torch.stack(covariances)


def kernel(
    A: Inexact[Tensor, "*batch N N"], B: Inexact[Tensor, "*batch N M"], C: Inexact[Tensor, "*batch P N"], length: int
) -> Inexact[Tensor, "*batch length P M"]:
    """K[k] = C A^k B for k = 0 .. length-1, by repeated products (arXiv 2111.00396, Eq. 5). Differentiable.

    Leading axes are systems of their own. Raises ValueError for a length below 1.
    """
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1")
    powers = [B]
    for _ in range(length - 1):
        powers.append(A @ powers[-1])
    return C.unsqueeze(-3) @ torch.stack(powers, dim=-3)


def impulse_response(
    A: Inexact[Tensor, "N N"],
    B: Inexact[Tensor, "N M"],
    C: Inexact[Tensor, "P N"],
    D: Inexact[Tensor, "P M"],
    length: int,
) -> Inexact[Tensor, "length P M"]:
    """D, C B, C A B, C A^2 B, ...: the output of control's convention after an input of 1 at step 0, else 0.

    One step later than `kernel`: there u[t] enters y[t] through the state, here it reaches the state at t+1.
    Raises ValueError for a length below 1.
    """
    return torch.cat((D[None], kernel(A, B, C, length)[:-1]))


def recurrence(
    A: Inexact[Tensor, "*system N N"],
    B: Inexact[Tensor, "*system N M"],
    C: Inexact[Tensor, "*system P N"],
    u: Inexact[Tensor, "*batch L M"],
    D: Inexact[Tensor, "*system P M"] | None = None,
) -> Inexact[Tensor, "*batch L P"]:
    """y of h[t] = A h[t-1] + B u[t], y[t] = C h[t] + D u[t], h[-1] = 0, step by step (arXiv 2111.00396, Eq. 3).

    The leading axes of u (..., L, M) are sequences; those of the matrices are systems and broadcast against them.
    Without D there is no skip. Differentiable. Raises ValueError for a u of another number of inputs, or of no steps.
    """
    if u.ndim < 2 or u.shape[-1] != B.shape[-1] or u.shape[-2] == 0:
        raise ValueError(f"u has shape {tuple(u.shape)}; it must be (..., L, {B.shape[-1]}) with L at least 1")
    inputs = u @ B.mT
    states = [inputs[..., 0, :]]
    for t in range(1, u.shape[-2]):
        states.append((A @ states[-1][..., None])[..., 0] + inputs[..., t, :])
    y = torch.stack(states, dim=-2) @ C.mT
    return y if D is None else y + u @ D.mT


def fft_convolution(u: Float[Tensor, "*batch L"], K: Float[Tensor, "*batch_of_K L"]) -> Float[Tensor, "... L"]:
    """y[t] = K[0] u[t] + K[1] u[t-1] + ... + K[t] u[0], in O(L log L). Differentiable.

    u (..., L) and K (..., L), real; leading axes broadcast. Both are padded with L zeros: without them the end of u
    would wrap around into the beginning of y. Raises ValueError for different lengths, TypeError for complex numbers.
    """
    L = u.shape[-1]
    if K.shape[-1] != L:
        raise ValueError(f"K has length {K.shape[-1]}; it must be {L}, the length of u")
    for name, tensor in (("u", u), ("K", K)):
        if tensor.is_complex():
            raise TypeError(f"{name} has dtype {tensor.dtype}; it must be real")
    return torch.fft.irfft(torch.fft.rfft(u, 2 * L) * torch.fft.rfft(K, 2 * L), 2 * L)[..., :L]


def is_stable(A: Inexact[Tensor, "N N"], continuous: bool = False) -> bool:
    """Whether the state fades by itself: all eigenvalues inside the unit circle, or, for h' = A h, left of zero."""
    values = torch.linalg.eigvals(A)
    return bool((values.real < 0).all() if continuous else (values.abs() < 1).all())


def controllability(A: Inexact[Tensor, "N N"], B: Inexact[Tensor, "N M"]) -> Inexact[Tensor, "N NM"]:
    """[B, A B, ..., A^(N-1) B], (N, N M): its columns span the states that inputs can reach in N steps from 0.

    Source: Kalman, "On the General Theory of Control Systems", 1960.
    """
    identity = torch.eye(len(A), dtype=A.dtype, device=A.device)
    return kernel(A, B, identity, len(A)).movedim(0, 1).flatten(1)


def observability(A: Inexact[Tensor, "N N"], C: Inexact[Tensor, "P N"]) -> Inexact[Tensor, "NP N"]:
    """C, C A, ..., C A^(N-1) below each other, (N P, N): what N measurements without noise see of h[0].

    Source: as for `controllability`, its dual.
    """
    identity = torch.eye(len(A), dtype=A.dtype, device=A.device)
    return kernel(A, identity, C, len(A)).flatten(0, 1)


def is_controllable(A: Inexact[Tensor, "N N"], B: Inexact[Tensor, "N M"]) -> bool:
    """Whether inputs can drive the state anywhere: the rank of `controllability` is N. For moderate N, float64."""
    return int(torch.linalg.matrix_rank(controllability(A, B))) == len(A)


def is_observable(A: Inexact[Tensor, "N N"], C: Inexact[Tensor, "P N"]) -> bool:
    """Whether the outputs determine the state: the rank of `observability` is N. For moderate N, in float64."""
    return int(torch.linalg.matrix_rank(observability(A, C))) == len(A)
