"""Discretization: against scipy, the defining integral, finite differences, and the orders of convergence."""

import math

import numpy as np
import pytest
import torch

from minivim.discretize import discretize, discretize_diagonal

signal = pytest.importorskip("scipy.signal")
METHODS = {
    "zoh": ("zoh", None),
    "bilinear": ("bilinear", None),
    "euler": ("euler", None),
    "backward_euler": ("backward_diff", None),
    "generalized_bilinear": ("gbt", 0.3),
}


def system(N, M=1, dtype=torch.float64):
    A = torch.randn(N, N, dtype=torch.float64) - 2 * torch.eye(N)
    B = torch.randn(N, M, dtype=A.dtype)
    return A.to(dtype), B.to(dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("N, M", [(1, 1), (2, 1), (4, 3), (16, 1)])
@pytest.mark.parametrize("delta", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_dense_equals_scipy(method, N, M, delta, dtype, tolerance):
    A, B = system(N, M, dtype)
    name, alpha = METHODS[method]
    C, D = np.zeros((1, N)), np.zeros((1, M))
    expected = signal.cont2discrete((A.double().numpy(), B.double().numpy(), C, D), delta, name, alpha)[:2]
    for ours, theirs in zip(discretize(A, B, delta, method, alpha), expected, strict=True):
        theirs = torch.from_numpy(theirs)
        assert ours.dtype == dtype
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("complex_", [False, True])
def test_diagonal_equals_dense(method, complex_):
    a = -torch.rand(6, dtype=torch.float64) * 3
    a = torch.complex(a, torch.randn(6, dtype=torch.float64)) if complex_ else a
    B, alpha = torch.randn(6, 1, dtype=a.dtype), METHODS[method][1]
    for delta in (1e-6, 0.01, 0.7):
        A_bar, factor = discretize_diagonal(a, delta, method, alpha)
        dense_A, dense_B = discretize(torch.diag(a), B, delta, method, alpha)
        torch.testing.assert_close(torch.diag(A_bar), dense_A, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(factor[:, None] * B, dense_B, rtol=1e-10, atol=1e-14)


def test_zoh_is_the_integral_also_where_A_is_singular():
    """h' = v, v' = u: after delta at constant u, h = delta^2 / 2 and v = delta."""
    A, B = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double(), torch.tensor([[0.0], [1.0]]).double()
    A_bar, B_bar = discretize(A, B, 0.5)
    torch.testing.assert_close(A_bar, torch.tensor([[1.0, 0.5], [0.0, 1.0]]).double())
    torch.testing.assert_close(B_bar, torch.tensor([[0.125], [0.5]]).double())
    A_bar, factor = discretize_diagonal(torch.tensor([0.0, -1e-12]).double(), 0.5)
    torch.testing.assert_close(A_bar, torch.ones(2).double())
    torch.testing.assert_close(factor, torch.full((2,), 0.5).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
def test_zoh_of_the_fastest_and_of_the_slowest_decay(dtype):
    """Far beyond what exp can hold, all is forgotten: B_bar = -B / A. Close to no decay at all, B_bar = delta B."""
    A = torch.tensor([-1e4, -1e-6], dtype=dtype)
    A_bar, factor = discretize_diagonal(A, 1.0)
    torch.testing.assert_close(A_bar, torch.tensor([0, 1 - 1e-6], dtype=dtype))
    torch.testing.assert_close(factor, torch.tensor([1e-4, 1 - 5e-7], dtype=dtype))


@pytest.mark.parametrize("method, order", [("euler", 1), ("backward_euler", 1), ("bilinear", 2)])
def test_the_error_shrinks_with_its_order(method, order):
    """At a fixed time, halving delta divides the error of exp by 2^order; ZOH has none."""
    a = torch.tensor([-1.0, -0.3]).double()
    errors = []
    for steps in (64, 128):
        A_bar, _ = discretize_diagonal(a, 1.0 / steps, method)
        errors.append((A_bar**steps - a.exp()).abs())
    assert torch.allclose((errors[0] / errors[1]).log2(), torch.tensor(float(order)).double(), atol=0.05)
    exact, _ = discretize_diagonal(a, 1.0 / 64)
    torch.testing.assert_close(exact**64, a.exp())


def test_stability_regions():
    """A decaying mode decays: with ZOH, bilinear, backward Euler always, with Euler while |1 + delta A| < 1."""
    a = torch.complex(torch.linspace(-50, -0.01, 40), torch.linspace(-30, 30, 40)).to(torch.complex128)
    for method in ("zoh", "bilinear", "backward_euler"):
        assert (discretize_diagonal(a, 1.0, method)[0].abs() < 1).all()
    assert torch.equal(discretize_diagonal(a, 1.0, "euler")[0].abs() < 1, (1 + a).abs() < 1)


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method):
    alpha = METHODS[method][1]
    A, B = (x.requires_grad_() for x in system(3, 2))
    delta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: discretize(*x, method, alpha), (A, B, delta))
    a = torch.tensor([-1.0, -0.2, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, d: discretize_diagonal(a[:2], d, method, alpha), (a, delta))


def test_batches_of_systems_and_of_steps():
    A, B = torch.stack([system(3)[0] for _ in range(4)]), torch.stack([system(3)[1] for _ in range(4)])
    delta = torch.rand(4, dtype=torch.float64)
    A_bar, B_bar = discretize(A, B, delta, "bilinear")
    for i in range(4):
        torch.testing.assert_close((A_bar[i], B_bar[i]), discretize(A[i], B[i], delta[i].item(), "bilinear"))
    a = -torch.rand(5, 1, dtype=torch.float64)
    assert discretize_diagonal(a, torch.rand(7, dtype=torch.float64))[1].shape == (5, 7)
    assert math.isclose(discretize_diagonal(a[0], 0.1, "euler")[1].item(), 0.1)


@pytest.mark.parametrize(
    "method, alpha, sentence",
    [
        ("tustin", None, "method is 'tustin'; it must be one of 'euler', 'bilinear'"),
        ("generalized_bilinear", None, "alpha is None; .* a number from 0 to 1"),
        ("generalized_bilinear", 1.5, "alpha is 1.5; .* a number from 0 to 1"),
        ("zoh", 0.5, "alpha is 0.5; only method 'generalized_bilinear' takes one"),
    ],
)
def test_a_wrong_method_or_alpha_is_named(method, alpha, sentence):
    with pytest.raises(ValueError, match=sentence):
        discretize(*system(2), 0.1, method, alpha)
    with pytest.raises(ValueError, match=sentence):
        discretize_diagonal(torch.tensor([-1.0]), 0.1, method, alpha)
