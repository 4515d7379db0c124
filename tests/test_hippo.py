"""HiPPO: the states equal the defining integrals; the matrices, their eigenvalues and the DPLR form."""

import math

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre

from minivim.hippo import DPLR, basis, dplr, fourier, legs, legt, reconstruct, remember

integrate = pytest.importorskip("scipy.integrate")
signal = pytest.importorskip("scipy.signal")
WINDOWS = {"legt": legt, "fourier": fourier}


def legendre_function(n, x):
    """The orthonormal polynomial of degree n on [0, 1], by numpy."""
    return math.sqrt(2 * n + 1) * legendre.legval(2 * x - 1, np.eye(n + 1)[n])


def fourier_function(n, x):
    if n == 0:
        return np.ones_like(x)
    wave = np.cos if n % 2 else np.sin
    return math.sqrt(2) * wave(2 * np.pi * ((n + 1) // 2) * x)


def projection(u, n, function):
    """The integral of u(x) function_n(x) over [0, 1]."""
    return integrate.quad(lambda x: u(x) * function(n, x), 0, 1, epsabs=1e-13, epsrel=1e-13, limit=200)[0]


def projection_of_samples(u, N, at):
    """The same for a signal that is u[k] between k and k + 1, up to time `at`: polynomials, so Gauss is exact."""
    nodes, weights = legendre.leggauss(N)
    x = (np.arange(at)[:, None] + (nodes + 1) / 2) / at
    return np.array([(legendre_function(n, x) @ weights / 2 @ u[:at].numpy()) / at for n in range(N)])


# ---- what a state holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("L", [1, 2, 3, 63, 64, 65, 197])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_legs_holds_the_projection_of_the_whole_past(N, L, dtype, tolerance):
    u = torch.randn(L, dtype=torch.float64)
    h = remember(u.to(dtype), N)
    assert h.shape == (L, N)
    assert h.dtype == dtype
    for at in {1, (L + 1) // 2, L}:
        expected = torch.from_numpy(projection_of_samples(u, N, at))
        assert (h[at - 1] - expected).abs().max() <= tolerance


def test_legs_does_not_know_how_fast_time_runs():
    """A signal played at half the speed leaves the same state: no step size has to be chosen."""
    u = torch.randn(50, dtype=torch.float64)
    slow = remember(u.repeat_interleave(2), 16)[1::2]
    torch.testing.assert_close(slow, remember(u, 16), rtol=0, atol=1e-11)


@pytest.mark.parametrize("measure", WINDOWS)
def test_a_window_holds_the_projection_of_its_part_of_the_past(measure):
    """u lies in the span of the basis at all times, so nothing is approximated but by the sampling."""
    N, window, L = 5, 400, 3200
    if measure == "legt":
        polynomial = np.array([0.3, -1.0, 0.5, 0.7])
        u = lambda time: np.polynomial.polynomial.polyval(time / L, polynomial)  # noqa: E731  # used once
        function = legendre_function
    else:
        u = lambda time: 1 + np.cos(2 * np.pi * time / window) - np.sin(4 * np.pi * time / window)  # noqa: E731  # used once
        function = fourier_function
    times = torch.arange(L, dtype=torch.float64)
    h = remember(torch.from_numpy(u(times.numpy() + 0.5)), N, measure, window)
    for n in range(N):
        expected = projection(lambda x: u(L - window + x * window), n, function)
        assert abs(h[-1, n].item() - expected) < 5e-4  # of the order of (4 pi / 400)^2, the error of the sampling


@pytest.mark.parametrize("measure", WINDOWS)
def test_a_window_satisfies_its_equation_exactly(measure):
    """The time derivative of the defining integrals, by a difference of order 4, is A h + B u for u in the span."""
    N, step = 5, 1e-2
    A, B = WINDOWS[measure](N)
    function = legendre_function if measure == "legt" else fourier_function
    u = (lambda s: s**3 - s + 0.2) if measure == "legt" else (lambda s: np.cos(2 * np.pi * s) + np.sin(4 * np.pi * s))
    for time in (0.0, 0.3):

        def state(shift, time=time):
            return torch.tensor([projection(lambda x: u(time + shift + x - 1), n, function) for n in range(N)]).double()

        slope = (8 * (state(step) - state(-step)) - (state(2 * step) - state(-2 * step))) / (12 * step)
        torch.testing.assert_close(slope, A @ state(0) + B * u(time), rtol=0, atol=2e-4)


@pytest.mark.parametrize("measure, N", [("legt", 6), ("fourier", 7)])
def test_a_window_is_the_system_that_scipy_simulates(measure, N):
    A, B = WINDOWS[measure](N)
    u = torch.randn(65, dtype=torch.float64)
    matrices = (A.numpy(), B[:, None].numpy(), np.eye(N), np.zeros((N, 1)))
    discrete = signal.cont2discrete(matrices, 1 / 20, "zoh")
    # scipy's state is the one before the input: one zero more, and the answer moves up by one.
    _, _, states = signal.dlsim(discrete, np.append(u.numpy(), 0))
    torch.testing.assert_close(remember(u, N, measure, 20), torch.from_numpy(states[1:]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("measure, window", [("legs", None), ("legt", 400), ("fourier", 400)])
def test_methods_agree_as_the_steps_shrink(measure, window):
    time = torch.linspace(0, 1, 801, dtype=torch.float64)[:-1]
    u = torch.sin(5 * time) + time**2
    exact, bilinear = (remember(u, 7, measure, window, method) for method in ("zoh", "bilinear"))
    assert (exact - bilinear)[-1].abs().max() < 2e-3
    assert not torch.equal(exact, bilinear)


# ---- reconstruction --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure, function", [("legs", legendre_function), ("fourier", fourier_function)])
def test_basis_equals_numpy_and_is_orthonormal(measure, function):
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = np.stack([function(n, x.numpy()) for n in range(9)], axis=1)
    torch.testing.assert_close(basis(9, x, measure), torch.from_numpy(expected), rtol=0, atol=1e-12)
    nodes, weights = (torch.from_numpy(each) for each in legendre.leggauss(60))
    g = basis(9, (nodes + 1) / 2, measure)
    torch.testing.assert_close(g.T @ (weights[:, None] / 2 * g), torch.eye(9, dtype=g.dtype), rtol=0, atol=1e-12)


@pytest.mark.parametrize("N", [1, 2, 3])
def test_basis_of_a_small_size_is_the_start_of_a_large_one(N):
    x = torch.rand(4, dtype=torch.float64)
    for measure in ("legs", "legt", "fourier"):
        assert torch.equal(basis(N, x, measure), basis(9, x, measure)[:, :N])


def test_more_numbers_remember_more():
    time = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1] + 0.0005
    u = torch.sin(20 * time) * (1 + time)
    errors = [(reconstruct(remember(u, N)[-1], time) - u).square().mean().sqrt().item() for N in (4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 < errors[0]  # the samples are steps of 1 / 1000: finer than that it cannot be


def test_reconstruct_keeps_leading_dimensions():
    assert reconstruct(torch.randn(2, 3, 5), torch.rand(7)).shape == (2, 3, 7)


# ---- matrices --------------------------------------------------------------------------------------------------------


def test_legs_by_hand():
    A, B = legs(3)
    expected = [[-1, 0, 0], [-math.sqrt(3), -2, 0], [-math.sqrt(5), -math.sqrt(15), -3]]
    torch.testing.assert_close(A, torch.tensor(expected).double())
    torch.testing.assert_close(B, torch.tensor([1, math.sqrt(3), math.sqrt(5)]).double())


@pytest.mark.parametrize("matrices, N", [(legs, 1), (legs, 20), (legt, 1), (legt, 20), (fourier, 1), (fourier, 21)])
def test_systems_are_stable(matrices, N):
    A, _ = matrices(N)
    eigenvalues = torch.linalg.eigvals(A)
    assert eigenvalues.real.max() < 0
    if matrices is legs:
        torch.testing.assert_close(eigenvalues.real.sort().values, -torch.arange(N, 0, -1).double())


def test_a_constant_leaves_only_the_constant():
    """The rest point of h' = A h + B u at u = 1 is the projection of 1: the first unit vector."""
    for matrices in (legs, legt, fourier):
        A, B = matrices(7)
        torch.testing.assert_close(torch.linalg.solve(-A, B), torch.eye(7).double()[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("N", [1, 2, 3, 16, 64, 128])
def test_dplr_is_legs(N):
    A, B = legs(N)
    Lambda, P, B_tilde, V = dplr(N)
    assert isinstance(dplr(N), DPLR)
    rebuilt = V @ (torch.diag(Lambda) - torch.outer(P, P.conj())) @ V.mH
    assert (rebuilt - A).abs().max() < 1e-12 * N**2  # the largest entries grow with N
    assert (V @ B_tilde - B).abs().max() < 1e-12 * N
    assert (V.mH @ V - torch.eye(N)).abs().max() < 1e-12


@pytest.mark.parametrize("N", [2, 3, 64, 65])
def test_the_eigenvalues_of_the_normal_part(N):
    Lambda = dplr(N).Lambda
    assert torch.equal(Lambda.real, torch.full((N,), -0.5).double())
    torch.testing.assert_close(Lambda.imag, -Lambda.imag.flip(0), rtol=0, atol=1e-11 * N)
    A, B = legs(N)
    normal = (A + torch.outer(B, B) / 2).numpy()
    theirs = np.linalg.eigvals(normal)
    assert np.abs(np.sort(theirs.imag) - Lambda.imag.numpy()).max() < 1e-10 * N


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named(unchecked):
    u = torch.randn(4)
    for matrices in (legs, legt, fourier):
        with pytest.raises(ValueError, match="N is 0"):
            matrices(0)
    with pytest.raises(ValueError, match=r"N is 4; for fourier it must be odd"):
        fourier(4)
    with pytest.raises(ValueError, match="measure is 'legz'"):
        remember(u, 4, "legz")
    with pytest.raises(ValueError, match="window is None; with measure 'legt' it must be a length"):
        remember(u, 4, "legt")
    with pytest.raises(ValueError, match="window is 3; with measure 'legs' it must be None"):
        remember(u, 4, "legs", 3)
