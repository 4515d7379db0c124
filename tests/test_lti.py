"""Linear state-space models: against the joint Gaussian by brute force, scipy, direct sums and autograd."""

import math

import numpy as np
import pytest
import torch

from minivim.lti import (
    LinearGaussian,
    controllability,
    fft_convolution,
    impulse_response,
    is_controllable,
    is_observable,
    is_stable,
    kalman_filter,
    kernel,
    observability,
    recurrence,
    rts_smoother,
    simulate,
)

signal = pytest.importorskip("scipy.signal")
stats = pytest.importorskip("scipy.stats")
LENGTHS = [1, 2, 3, 17]
SIZES = [(1, 1, 1), (2, 1, 1), (3, 2, 2), (2, 0, 3)]  # (N, M, P)
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def covariances(*shape, rank=None):
    """Random covariance matrices (..., n, n), of a lower rank if asked for."""
    root = torch.randn(*shape[:-1], rank or shape[-1], dtype=torch.float64)
    return root @ root.mT / shape[-1]


def system(N, M, P, L=None, rank=None):
    """A random model in float64; time-varying in everything if L is given."""
    lead = () if L is None else (L,)

    def matrix(*shape):
        return torch.randn(*lead, *shape, dtype=torch.float64)

    Q, R = covariances(*lead, N, N, rank=rank), covariances(*lead, P, P) + 0.1 * torch.eye(P)
    A = 0.9 * torch.linalg.qr(matrix(N, N))[0]  # neither exploding nor vanishing, also as a product of different ones
    mean, covariance = torch.randn(N, dtype=torch.float64), covariances(N, N, rank=rank)
    return LinearGaussian(A, matrix(N, M), matrix(P, N), matrix(P, M), Q, R, mean, covariance)


def rounded(model, dtype):
    return LinearGaussian(*(getattr(model, name).to(dtype) for name in LinearGaussian.__dataclass_fields__))


def joint(model, u):
    """Mean and covariance of all h and of all y, and their cross-covariance, from the definition.

    All h and y are linear in the independent (h[0], w[0], .., w[L-1], v[0], .., v[L-1]): we carry the coefficients.
    """
    L, N, P = len(u), len(model.mean), model.C.shape[-2]
    *_, Q, R = zip(*(model.at(t) for t in range(L)), strict=True)
    noise = torch.block_diag(model.covariance, *Q, *R)
    mean, rows = model.mean, torch.eye(N, len(noise), dtype=u.dtype)
    means_h, rows_h, means_y, rows_y = [], [], [], []
    for t in range(L):
        A, B, C, D, _, _ = model.at(t)
        seen = C @ rows
        seen[:, N + L * N + t * P : N + L * N + (t + 1) * P] += torch.eye(P)
        means_h, rows_h = [*means_h, mean], [*rows_h, rows]
        means_y, rows_y = [*means_y, C @ mean + D @ u[t]], [*rows_y, seen]
        mean, rows = A @ mean + B @ u[t], A @ rows
        rows[:, N + t * N : N + (t + 1) * N] += torch.eye(N)
    H, Y = torch.cat(rows_h), torch.cat(rows_y)
    return torch.cat(means_h), torch.cat(means_y), H @ noise @ H.mT, H @ noise @ Y.mT, Y @ noise @ Y.mT


def posterior(moments, y, seen):
    """Mean (L, N) and covariance (L, N, N) of every h given the first `seen` measurements, by conditioning."""
    mean_h, mean_y, hh, hy, yy = moments
    N, count = len(mean_h) // len(y), seen * y.shape[1]
    gain = torch.linalg.solve(yy[:count, :count], hy[:, :count].mT).mT
    mean = mean_h + gain @ (y.flatten()[:count] - mean_y[:count])
    covariance = hh - gain @ hy[:, :count].mT
    blocks = [covariance[t * N : (t + 1) * N, t * N : (t + 1) * N] for t in range(len(y))]
    return mean.view(-1, N), torch.stack(blocks)


def case(N, M, P, L, varying, rank=None):
    model = system(N, M, P, L if varying else None, rank)
    u = torch.randn(L, M, dtype=torch.float64)
    return model, u, simulate(model, u)[1]


def near(ours, exact, tolerance):
    assert ours.shape == exact.shape
    assert (ours - exact).abs().max() <= tolerance * max(1, exact.abs().max())


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("N, M, P", SIZES)
def test_filter_and_smoother_are_the_posterior_of_the_joint_gaussian(N, M, P, L, varying, dtype, tolerance):
    model, u, y = case(N, M, P, L, varying)
    ours = rounded(model, dtype)
    filtered = kalman_filter(ours, u.to(dtype), y.to(dtype))
    smooth_mean, smooth_covariance = rts_smoother(ours, filtered)
    moments = joint(model, u)
    assert filtered.mean.dtype == smooth_covariance.dtype == dtype
    for t in range(L):
        for given, mean, covariance in (
            (t, filtered.predicted_mean, filtered.predicted_covariance),
            (t + 1, filtered.mean, filtered.covariance),
            (L, smooth_mean, smooth_covariance),
        ):
            exact_mean, exact_covariance = posterior(moments, y, given)
            near(mean[t], exact_mean[t], tolerance)
            near(covariance[t], exact_covariance[t], tolerance)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("N, M, P", SIZES)
def test_log_likelihood_is_the_log_of_the_joint_density(N, M, P, L, varying):
    model, u, y = case(N, M, P, L, varying)
    _, mean, _, _, covariance = joint(model, u)
    exact = stats.multivariate_normal(mean, covariance).logpdf(y.flatten().numpy())
    assert math.isclose(kalman_filter(model, u, y).log_likelihood, exact, rel_tol=1e-10)


@pytest.mark.parametrize("L", LENGTHS)
def test_singular_noise_is_no_trouble(L):
    model, u, y = case(3, 1, 1, L, varying=True, rank=1)
    means, covariances_ = rts_smoother(model, kalman_filter(model, u, y))
    exact_means, exact_covariances = posterior(joint(model, u), y, L)
    near(means, exact_means, 1e-10)
    near(covariances_, exact_covariances, 1e-10)


def test_a_state_without_any_noise_stays_what_it_is():
    """Nothing is uncertain, so no measurement may change the mean, and the pseudo-inverse of 0 is 0."""
    zero = torch.zeros(2, 2, dtype=torch.float64)
    model = system(2, 1, 1)
    model = LinearGaussian(model.A, model.B, model.C, model.D, zero, model.R, model.mean, zero)
    u, y = torch.randn(5, 1, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    means, covariances_ = rts_smoother(model, kalman_filter(model, u, y))
    assert torch.equal(means, simulate(model, u)[0])
    assert not covariances_.any()


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
def test_laws_of_the_covariances(dtype, tolerance):
    """Symmetric, positive; a measurement never adds uncertainty, and neither does looking back."""
    model, u, y = case(4, 1, 2, 65, varying=True)
    filtered = kalman_filter(rounded(model, dtype), u.to(dtype), y.to(dtype))
    mean, covariance = rts_smoother(rounded(model, dtype), filtered)
    for each in (filtered.predicted_covariance, filtered.covariance, covariance):
        near(each, each.mT, tolerance)
        assert torch.linalg.eigvalsh(each).min() > 0
    for larger, smaller in ((filtered.predicted_covariance, filtered.covariance), (filtered.covariance, covariance)):
        assert torch.linalg.eigvalsh(larger - smaller).min() > -tolerance
    assert torch.equal(mean[-1], filtered.mean[-1])
    assert torch.equal(covariance[-1], filtered.covariance[-1])


@pytest.mark.parametrize("N", [2, 4])
def test_covariances_stay_positive_in_float32_where_a_measurement_is_sharp(N):
    """A vague start and a sharp sensor: differences of covariances, as in the textbook, go below -1 here."""
    A, no_input = 0.99 * torch.linalg.qr(torch.randn(N, N))[0].double(), torch.zeros(40, 0).double()
    identity, C = torch.eye(N).double(), torch.randn(1, N).double()
    Q, R = 1e-4 * identity, torch.tensor([[0.1]]).double()
    mean = torch.zeros(N).double()
    exact = LinearGaussian(A, no_input[:N], C, no_input[:1], Q, R, mean, 1e4 * identity)
    single, y = rounded(exact, torch.float32), simulate(exact, no_input)[1]
    filtered = kalman_filter(single, no_input.float(), y.float())
    for covariance in (filtered.covariance, rts_smoother(single, filtered)[1]):
        assert torch.linalg.eigvalsh(covariance.double()).min() > 0
    truth = rts_smoother(exact, kalman_filter(exact, no_input, y))[1]
    assert (rts_smoother(single, filtered)[1] - truth)[N:].abs().max() < 0.01 * truth[N:].abs().max()


@pytest.mark.parametrize("N, M, P", SIZES)
def test_simulate_has_the_moments_of_the_joint_gaussian(N, M, P):
    model = system(N, M, P, L=3, rank=1)
    u, runs = torch.randn(3, M, dtype=torch.float64), 1000
    h, y = (torch.stack(each).flatten(1) for each in zip(*(simulate(model, u) for _ in range(runs)), strict=True))
    mean_h, mean_y, hh, hy, yy = joint(model, u)
    mean, covariance = torch.cat((mean_h, mean_y)), torch.cat((torch.cat((hh, hy), 1), torch.cat((hy.mT, yy), 1)))
    found = torch.cat((h, y), 1)
    deviation = covariance.diagonal().sqrt()
    assert ((found.mean(0) - mean).abs() <= 5 * deviation / runs**0.5 + 1e-12).all()
    error = (found.T.cov() - covariance).abs()
    assert (error <= 8 * deviation[:, None] * deviation / runs**0.5 + 1e-12).all()


def test_simulate_repeats_with_the_state_of_its_generator():
    model, u = system(2, 1, 1), torch.zeros(7, 1, dtype=torch.float64)
    first, again, other = (simulate(model, u, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_matrix_given_for_every_step_is_the_same_as_given_once():
    model, u, y = case(3, 2, 2, 17, varying=False)
    repeated = [each.expand(17, *each.shape) for each in model.at(0)]
    for first in range(6):  # each of the six alone may vary
        mixed = [repeated[i] if i == first else each for i, each in enumerate(model.at(0))]
        varying = LinearGaussian(*mixed, model.mean, model.covariance)
        assert varying.length == 17
        torch.testing.assert_close(kalman_filter(varying, u, y), kalman_filter(model, u, y))
    assert model.length is None


# ---- kernel, recurrence, convolution ---------------------------------------------------------------------------------


def matrices(N, M, P, dtype=torch.float64):
    shapes = ((N, N), (N, M), (P, N), (P, M))
    A, B, C, D = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return [each.to(dtype) for each in (0.9 * A / torch.linalg.eigvals(A).abs().max(), B, C, D)]


def by_definition(K, u):
    """y[t] = sum over k of K[k] u[t-k], (L, P, M) and (L, M), by two loops."""
    return torch.stack([sum(K[k] @ u[t - k] for k in range(t + 1)) for t in range(len(u))])


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 197])
@pytest.mark.parametrize("N, M, P", [(1, 1, 1), (2, 1, 1), (4, 3, 2)])
def test_impulse_response_equals_scipy(N, M, P, length, dtype, tolerance):
    A, B, C, D = matrices(N, M, P, dtype)
    arrays = [each.double().numpy() for each in (A, B, C, D)]
    _, expected = signal.dimpulse((*arrays, 1), n=length + 1)  # scipy gives NaN for n = 1
    ours = impulse_response(A, B, C, D, length)
    assert ours.dtype == dtype
    near(ours.double(), torch.from_numpy(np.stack(expected, axis=-1))[:length], tolerance)
    assert torch.equal(kernel(A, B, C, length)[:-1], ours[1:])  # the step by which the two conventions differ


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize("L", [1, 2, 3, 63, 64, 65, 197])
@pytest.mark.parametrize("N, M, P", [(1, 1, 1), (4, 3, 2)])
def test_recurrence_is_convolution_with_the_kernel(N, M, P, L, dtype, tolerance):
    A, B, C, D = matrices(N, M, P)
    u = torch.randn(L, M, dtype=torch.float64)
    h, expected = torch.zeros(N, dtype=torch.float64), []
    for t in range(L):
        h = A @ h + B @ u[t]
        expected.append(C @ h + D @ u[t])
    expected = torch.stack(expected)
    near(recurrence(*(each.to(dtype) for each in (A, B, C, u, D))).double(), expected, tolerance)
    K = kernel(*(each.to(dtype) for each in (A, B, C)), L)
    near(by_definition(K.double(), u) + u @ D.mT, expected, tolerance)
    fft = fft_convolution(u.to(dtype).T, K.permute(1, 2, 0)).sum(1).T  # a sum over the inputs, for each output
    near(fft.double() + u @ D.mT, expected, tolerance)


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS, ids=["float64", "float32"])
@pytest.mark.parametrize("L", [1, 2, 3, 63, 64, 65, 197])
def test_fft_convolution_equals_the_direct_one(L, dtype, tolerance):
    u, K = torch.randn(2, 3, L, dtype=torch.float64), torch.randn(3, L, dtype=torch.float64)
    expected = [[np.convolve(u[b, c], K[c])[:L] for c in range(3)] for b in range(2)]
    ours = fft_convolution(u.to(dtype), K.to(dtype))
    assert ours.dtype == dtype
    near(ours.double(), torch.from_numpy(np.array(expected)), tolerance)


def test_convolution_is_causal():
    u, K = torch.randn(65, dtype=torch.float64), torch.randn(65, dtype=torch.float64)
    changed = u.clone()
    changed[40] += 1
    difference = (fft_convolution(changed, K) - fft_convolution(u, K)).abs()
    assert difference[:40].max() < 1e-12
    torch.testing.assert_close(difference[40:], K[:25].abs())


def test_leading_axes_are_systems_and_sequences():
    A, B, C, _ = (torch.stack(each) for each in zip(*(matrices(3, 2, 1) for _ in range(5)), strict=True))
    K, u = kernel(A, B, C, 17), torch.randn(4, 5, 17, 2, dtype=torch.float64)
    y = recurrence(A, B, C, u)
    assert (K.shape, y.shape) == ((5, 17, 1, 2), (4, 5, 17, 1))
    for i in range(5):
        torch.testing.assert_close(K[i], kernel(A[i], B[i], C[i], 17))
        torch.testing.assert_close(y[:, i], recurrence(A[i], B[i], C[i], u[:, i]))


def test_a_complex_diagonal_system_is_the_sum_of_its_modes():
    a = 0.95 * torch.exp(1j * torch.tensor([0.3, -0.3, 1.0]).double())
    B, C = torch.randn(3, 1, dtype=a.dtype), torch.randn(1, 3, dtype=a.dtype)
    powers = a[:, None] ** torch.arange(65)
    torch.testing.assert_close(kernel(torch.diag(a), B, C, 65)[:, 0, 0], (C[0] * B[:, 0]) @ powers)


def test_gradients():
    A, B, C, D = (each.requires_grad_() for each in matrices(3, 2, 1))
    u = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: kernel(*x, 5), (A, B, C))
    assert torch.autograd.gradcheck(recurrence, (A, B, C, u, D))
    K = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fft_convolution, (u[0].T, K))


@pytest.mark.parametrize("varying", [False, True])
def test_gradient_of_the_log_likelihood(varying):
    """All eight parts of the model and both sequences; Q, R and the covariance through factors, to stay symmetric."""
    model, u, y = case(2, 1, 2, 3, varying)
    parts = [model.A, model.B, model.C, model.D, *map(torch.linalg.cholesky, (model.Q, model.R))]
    parts += [model.mean, torch.linalg.cholesky(model.covariance), u, y]

    def log_likelihood(A, B, C, D, Q, R, mean, covariance, u, y):
        return kalman_filter(
            LinearGaussian(A, B, C, D, Q @ Q.mT, R @ R.mT, mean, covariance @ covariance.mT), u, y
        ).log_likelihood

    assert torch.autograd.gradcheck(log_likelihood, [each.clone().requires_grad_() for each in parts])


# ---- stability, controllability, observability -----------------------------------------------------------------------


def test_stability():
    rotation = torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()  # eigenvalues +-i: neither grows nor fades
    assert is_stable(0.999 * rotation)
    assert not is_stable(rotation)
    assert not is_stable(torch.diag(torch.tensor([0.5, -1.1]).double()))
    assert is_stable(rotation - 0.01 * torch.eye(2), continuous=True)
    assert not is_stable(rotation, continuous=True)
    assert not is_stable(torch.diag(torch.tensor([-3.0, 0.1]).double()), continuous=True)


@pytest.mark.parametrize("N, M, P", [(1, 1, 1), (3, 1, 2), (5, 2, 1)])
def test_reach_and_sight_by_their_definition(N, M, P):
    A, B, C, _ = matrices(N, M, P)
    inputs, start = torch.randn(N, M, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    reached, outputs, free = torch.zeros(N, dtype=torch.float64), [], start
    for t in range(N):
        reached = A @ reached + B @ inputs[t]
        outputs.append(C @ free)
        free = A @ free
    torch.testing.assert_close(controllability(A, B) @ inputs.flip(0).flatten(), reached)
    torch.testing.assert_close(observability(A, C) @ start, torch.cat(outputs))
    assert is_controllable(A, B)
    assert is_observable(A, C)


def test_what_cannot_be_reached_or_seen_is_found():
    """A car with position and velocity; then a hidden part that touches neither input nor output."""
    A = torch.tensor([[1.0, 0.1], [0.0, 1.0]]).double()
    assert is_observable(A, torch.tensor([[1.0, 0.0]]).double())  # velocity from positions
    assert not is_observable(A, torch.tensor([[0.0, 1.0]]).double())  # but never a position from velocities
    assert is_controllable(A, torch.tensor([[0.0], [1.0]]).double())
    assert not is_controllable(A, torch.tensor([[1.0], [0.0]]).double())
    reachable, B, C, _ = matrices(3, 1, 1)
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    hidden = basis @ torch.block_diag(reachable, torch.diag(torch.tensor([0.5, -0.7]).double())) @ basis.T
    zeros = torch.zeros(2, 1, dtype=torch.float64)
    unreached, unseen = basis @ torch.cat((B, zeros)), torch.cat((C, zeros.T), 1) @ basis.T
    assert torch.linalg.matrix_rank(controllability(hidden, unreached), rtol=1e-10) == 3
    assert torch.linalg.matrix_rank(observability(hidden, unseen), rtol=1e-10) == 3
    assert not is_controllable(hidden, unreached)
    assert not is_observable(hidden, unseen)


# ---- bad input -------------------------------------------------------------------------------------------------------


def with_part(**changed):
    model = system(2, 1, 1)
    return LinearGaussian(**{name: getattr(model, name) for name in LinearGaussian.__dataclass_fields__} | changed)


@pytest.mark.parametrize(
    "changed, error, sentence",
    [
        ({"A": torch.zeros(2, 3).double()}, ValueError, r"A has shape \(2, 3\); it must be \(2, 2\)"),
        ({"B": torch.zeros(2).double()}, ValueError, r"B has shape \(2,\); it must be \(2, any\)"),
        ({"C": torch.zeros(1, 3).double()}, ValueError, r"C has shape \(1, 3\); it must be \(any, 2\)"),
        ({"D": torch.zeros(1, 2).double()}, ValueError, r"D has shape \(1, 2\); it must be \(1, 1\)"),
        ({"R": torch.eye(2).double()}, ValueError, r"R has shape \(2, 2\); it must be \(1, 1\)"),
        ({"mean": torch.zeros(2, 1).double()}, ValueError, r"mean has shape \(2, 1\); it must be \(any\)"),
        ({"mean": torch.zeros(2, dtype=torch.long)}, TypeError, "mean has dtype torch.int64; it must be a floating"),
        ({"A": torch.eye(2)}, TypeError, "A has dtype torch.float32; it must be torch.float64"),
        ({"Q": -torch.eye(2).double()}, ValueError, "Q has the eigenvalue -1; it must be a covariance"),
        ({"Q": torch.tensor([[1.0, 0.5], [0, 1]]).double()}, ValueError, "Q is not symmetric; it must be a covariance"),
        ({"covariance": torch.zeros(3, 2, 2).double()}, ValueError, r"covariance has shape .*; it must be \(2, 2\)"),
        (
            {"A": torch.zeros(5, 2, 2).double(), "R": torch.ones(4, 1, 1).double()},
            ValueError,
            r"R has shape \(4, 1, 1\); it must be \(5, 1, 1\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_together_is_refused(unchecked, changed, error, sentence):
    with pytest.raises(error, match=sentence):
        with_part(**changed)


def test_sequences_that_do_not_fit_are_refused(unchecked):
    model, u, y = case(2, 1, 1, 5, varying=True)
    for call, error, sentence in (
        (lambda: simulate(model, u[:4]), ValueError, r"u has shape \(4, 1\); it must be \(5, 1\)"),
        (lambda: simulate(with_part(), u[:0]), ValueError, "u has 0 steps; it must have at least 1"),
        (lambda: kalman_filter(with_part(), u, y[:4]), ValueError, r"y has shape \(4, 1\); it must be \(5, 1\)"),
        (lambda: kalman_filter(model, u, y.float()), TypeError, "y has dtype torch.float32; it must be torch.float64"),
        (lambda: rts_smoother(system(3, 1, 1), kalman_filter(model, u, y)), ValueError, "filtered.mean has shape"),
    ):
        with pytest.raises(error, match=sentence):
            call()
    certain = with_part(R=torch.zeros(1, 1).double(), covariance=torch.zeros(2, 2).double())
    with pytest.raises(
        ValueError, match=r"the covariance of a measurement, C covariance C\^T \+ R, is not positive; R must"
    ):
        kalman_filter(certain, u, y)


def test_wrong_arguments_of_kernel_and_convolution_are_named(unchecked):
    A, B, C, D = matrices(2, 1, 1)
    u = torch.randn(5, dtype=torch.float64)
    for call, error, sentence in (
        (lambda: kernel(A, B, C, 0), ValueError, "length is 0; it must be at least 1"),
        (lambda: impulse_response(A, B, C, D, 0), ValueError, "length is 0; it must be at least 1"),
        (lambda: recurrence(A, B, C, u), ValueError, r"u has shape \(5,\); it must be \(..., L, 1\)"),
        (lambda: recurrence(A, B, C, u[None]), ValueError, r"u has shape \(1, 5\); it must be \(..., L, 1\)"),
        (lambda: recurrence(A, B, C, u[:0, None]), ValueError, "with L at least 1"),
        (lambda: fft_convolution(u, u[:4]), ValueError, "K has length 4; it must be 5, the length of u"),
        (lambda: fft_convolution(u, u + 0j), TypeError, "K has dtype torch.complex128; it must be real"),
    ):
        with pytest.raises(error, match=sentence):
            call()
