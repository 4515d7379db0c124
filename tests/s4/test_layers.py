"""S4, DSS, S4D, S4ND: convolution against recurrence, kernels against dense powers and scipy, gradients, bad input."""

import math

import pytest
import torch

from minivim.discretize import discretize
from minivim.hippo import dplr, legs
from minivim.lti import kernel as dense_kernel
from minivim.s4 import DSS, LSSL, S4, S4D, S4ND
from minivim.s4.generating import INITS, diagonal_kernel, dplr_kernel, initial_system, powers
from minivim.s4.nd import fft_convolution_2d
from tests.s4.test_lssl import LENGTHS, PRECISIONS, by_steps

signal = pytest.importorskip("scipy.signal")
each_precision = pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS, ids=["float64", "float32"])
LAYERS = {
    "S4": S4,
    "DSS": DSS,
    "S4D-bilinear": lambda H, N: S4D(H, N, method="bilinear"),
    **{f"S4D-{init}": lambda H, N, init=init: S4D(H, N, init) for init in INITS},
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def dense_system(layer):
    """(A_bar, B_bar, C) of all N states, dense: (H, N, N), (H, N, 1), (H, 1, N), from the continuous matrices."""
    system = layer.system
    delta = system.log_delta.double().exp()
    if isinstance(layer, S4):
        Lambda, P, B, C = (torch.cat((each, each.conj()), dim=-1) for each in system.continuous())
        A, method = torch.diag_embed(Lambda) - torch.einsum("hi,hj->hij", P, P.conj()), "bilinear"
    else:
        A, B, C, method = -system.log_decay.double().exp(), system.B.double(), system.C.double(), system.method
        if system.frequency is not None:
            A = torch.complex(A, system.frequency.double())
            B, C = torch.view_as_complex(B), torch.view_as_complex(C)
            A, B, C = (torch.cat((each, each.conj()), dim=-1) for each in (A, B, C))
        A, B = torch.diag_embed(A.expand_as(C)), B.expand_as(C)
    A_bar, B_bar = discretize(A, B[..., None], delta, method)
    return A_bar, B_bar, C[:, None]


# ---- convolution, recurrence, kernel ---------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("L", LENGTHS)
@each_precision
def test_convolution_equals_recurrence(make, L, dtype, tolerance):
    layer = make(3, 8).to(dtype)
    u = torch.randn(2, L, 3, dtype=dtype)
    with torch.no_grad():
        convolved, stepped = layer(u), by_steps(layer, u)
    assert convolved.shape == u.shape
    assert convolved.dtype == stepped.dtype == dtype
    assert (convolved - stepped).abs().max() <= tolerance


@each_layer
@pytest.mark.parametrize("N", [2, 64])
@each_precision
def test_they_still_agree_after_1024_steps(make, N, dtype, tolerance):
    layer = make(3, N).to(dtype)
    u = torch.randn(1, 1024, 3, dtype=dtype)
    with torch.no_grad():
        assert (layer(u) - by_steps(layer, u)).abs().max() <= tolerance


@each_layer
@pytest.mark.parametrize("N", [2, 16])
@pytest.mark.parametrize("L", LENGTHS)
@each_precision
def test_kernel_equals_powers_of_the_dense_matrix(make, N, L, dtype, tolerance):
    layer = make(2, N).to(dtype)
    with torch.no_grad():
        expected = dense_kernel(*dense_system(layer), L)[..., 0, 0]
        kernel = layer.kernel(L)
    assert kernel.shape == (2, L)
    assert kernel.dtype == dtype
    assert (kernel - expected).abs().max() <= tolerance * max(1, expected.abs().max())


@each_layer
def test_a_short_kernel_is_the_beginning_of_a_long_one(make):
    layer = make(3, 8).double()
    with torch.no_grad():
        torch.testing.assert_close(layer.kernel(64)[:, :17], layer.kernel(17), rtol=1e-10, atol=1e-11)


def test_s4_at_the_start_is_hippo_as_scipy_computes_it():
    """A and B in the basis of real numbers, where S4 has never been: HiPPO-LegS itself, discretized by scipy."""
    N, L = 16, 65
    layer = S4(2, N).double()
    A, B = legs(N)
    V = dplr(N).V[:, N // 2 :]
    for channel in range(2):
        delta = layer.system.log_delta[channel].exp().item()
        C = 2 * (torch.view_as_complex(layer.system.C[channel]) @ V.mH).real.detach()[None].numpy()
        matrices = (A.numpy(), B[:, None].numpy(), C, torch.zeros(1, 1).numpy())
        A_bar, B_bar = signal.cont2discrete(matrices, delta, "gbt", 0.5)[:2]
        expected = dense_kernel(torch.from_numpy(A_bar), torch.from_numpy(B_bar), torch.from_numpy(C), L)[:, 0, 0]
        found = layer.kernel(L)[channel].detach()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # the parameters were rounded to float32


def test_zoh_is_the_continuous_system_under_a_held_input():
    """scipy integrates h' = A h + u with u constant between samples; only sums of exponentials are exact there."""
    layer = S4D(1, 6, "lin").double()
    A, B, C = (each.detach() for each in dense_system(layer))
    u = torch.randn(1, 30, 1).double()
    h, expected = torch.zeros(6, 1, dtype=torch.complex128), []
    for t in range(30):
        h = A[0] @ h + B[0] * u[0, t]
        expected.append((C[0] @ h).real.squeeze())
    y = layer(u)[0, :, 0] - layer.D * u[0, :, 0]
    torch.testing.assert_close(y, torch.stack(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("L", LENGTHS)
def test_the_pieces_of_the_kernels(L):
    """Powers, the diagonal kernel and Algorithm 1 on arbitrary numbers, not those of an initialisation."""
    A = torch.randn(3, 5, dtype=torch.complex128)
    A = A / A.abs().max() * 0.99
    k = torch.arange(L)
    torch.testing.assert_close(powers(A, L), A[..., None] ** k, rtol=1e-10, atol=1e-12)
    weights = torch.randn(3, 5, dtype=torch.complex128)
    expected = 2 * (weights[..., None] * A[..., None] ** k).sum(1).real
    torch.testing.assert_close(diagonal_kernel(A, weights, L), expected, rtol=1e-10, atol=1e-12)

    Lambda = torch.complex(-torch.rand(2, 3).double(), torch.randn(2, 3).double() * 5)
    P, B, C = torch.randn(3, 2, 3, dtype=torch.complex128)
    Lambda, P, B, C = (torch.cat((each, each.conj()), dim=-1) for each in (Lambda, P, B, C))
    delta = torch.tensor([0.1, 0.7]).double()
    A = torch.diag_embed(Lambda) - P[..., :, None] * P[..., None, :].conj()
    A_bar, B_bar = discretize(A, B[..., None], delta, "bilinear")
    expected = dense_kernel(A_bar, B_bar, C[:, None], L)[..., 0, 0]
    assert expected.imag.abs().max() < 1e-12  # pairs make a real system
    truncated = C - (C[:, None] @ torch.linalg.matrix_power(A_bar, L))[:, 0]
    found = dplr_kernel(Lambda, P, B, truncated, delta, L)
    torch.testing.assert_close(found, expected.real, rtol=1e-10, atol=1e-10)


# ---- laws ------------------------------------------------------------------------------------------------------------


@each_layer
def test_the_future_does_not_change_the_past(make):
    layer, u = make(3, 8).double(), torch.randn(1, 20, 3).double()
    changed = u.clone()
    changed[:, 12:] += 1
    with torch.no_grad():
        difference = (layer(u) - layer(changed)).abs().amax(dim=(0, 2))
    assert difference[:12].max() < 1e-12
    assert difference[12:].min() > 1e-3


@each_layer
def test_gradients_are_right(make):
    layer = make(2, 4).double()
    u = torch.randn(1, 5, 2).double().requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def outputs(u, *values):
        overridden = dict(zip(names, values, strict=True))
        stepped = torch.func.functional_call(_Stepped(layer), {f"layer.{key}": x for key, x in overridden.items()}, u)
        return torch.func.functional_call(layer, overridden, u), stepped

    assert torch.autograd.gradcheck(outputs, (u, *parameters))


class _Stepped(torch.nn.Module):
    """The layer run as a recurrence, so that functional_call reaches its parameters."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, u):
        return by_steps(self.layer, u)


@each_layer
def test_every_parameter_learns(make):
    layer = make(3, 8)
    layer(torch.randn(2, 30, 3)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert (parameter.grad != 0).float().mean() > 0.8, (
            name
        )  # where a frequency is 0, the imaginary part of C has no effect


@each_layer
def test_stable_whatever_is_learned(make):
    layer = make(4, 8).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
        eigenvalues = torch.linalg.eigvals(dense_system(layer)[0])
        assert eigenvalues.abs().max() < 1
        assert layer.kernel(64).isfinite().all()


@each_layer
def test_step_sizes_start_between_their_bounds(make):
    delta = make(1000, 2).system.log_delta.exp()
    assert 0.001 <= delta.min() < 0.0011
    assert 0.09 < delta.max() <= 0.1 * (1 + 1e-6)
    assert abs((delta < 0.01).float().mean() - 0.5) < 0.06  # uniform in the logarithm


def test_a_decay_that_underflows_gives_numbers():
    layer = S4D(1, 4, "real").double()
    with torch.no_grad():
        layer.system.log_decay.fill_(10)
        layer.system.log_delta.fill_(math.log(0.01))  # A_bar is exp(-220), and its fourth power 0
    kernel = layer.kernel(5)
    kernel.sum().backward()
    assert kernel[0, 4] == 0
    assert all(parameter.grad.isfinite().all() for parameter in layer.system.parameters())


# ---- initialisations -------------------------------------------------------------------------------------------------


def test_initialisations_by_hand():
    pi = math.pi
    expected = {"lin": [-0.5, -0.5 + 1j * pi], "inv": [-0.5 + 12j / pi, -0.5 + 4j / pi / 3], "real": [-1, -2, -3, -4]}
    for init, values in expected.items():
        A, B = initial_system(init, 4)
        torch.testing.assert_close(A, torch.tensor(values).to(A), rtol=1e-6, atol=0)
        assert torch.equal(B, torch.ones_like(A))


def test_legs_keeps_one_eigenvalue_of_each_pair():
    A, B = initial_system("legs", 64)
    assert A.shape == B.shape == (32,)
    assert (A.imag > 0).all()
    assert torch.equal(A.real, torch.full((32,), -0.5).double())
    # inv follows the law that these eigenvalues obey as N grows: the largest is near N^2 / pi.
    assert abs(A.imag.max() / initial_system("inv", 64)[0].imag.max() - 1) < 0.05


@pytest.mark.parametrize("basis", [0, 3])
def test_the_diagonal_approaches_hippo_as_the_state_grows(basis):
    """S4D, Theorem 3: exp(t A) B of the diagonal with B / 2 tends to that of LegS, which is known for all N."""
    t = 0.05 * torch.arange(1, 61).double()
    errors = []
    for N in (16, 64, 256):
        A, B = legs(N)
        A_bar, _ = discretize(A, B[:, None], 0.05)
        exact = dense_kernel(A_bar, B[:, None], torch.eye(N).double()[basis, None], 61)[1:, 0, 0]
        diagonal, half_B = initial_system("legs", N)
        row = dplr(N).V[basis, N // 2 :]
        approximate = 2 * (row * torch.exp(t[:, None] * diagonal) @ half_B).real
        errors.append((exact - approximate).square().mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


# ---- two dimensions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 7), (8, 8), (5, 3), (17, 32)])
@each_precision
def test_in_two_dimensions_convolution_equals_two_recurrences(init, H, W, dtype, tolerance):
    layer, u = S4ND(3, 4, init).to(dtype), torch.randn(2, H, W, 3, dtype=dtype)
    with torch.no_grad():
        convolved, stepped = layer(u), by_steps(layer, u)
    assert convolved.shape == u.shape
    assert convolved.dtype == stepped.dtype == dtype
    assert (convolved - stepped).abs().max() <= tolerance


@pytest.mark.parametrize(("H", "W"), [(1, 1), (4, 7), (8, 8)])
def test_in_two_dimensions_scipy_convolves_the_same(H, W):
    u, K = torch.randn(2, H, W).double(), torch.randn(2, H, W).double()
    expected = [signal.convolve2d(a, b)[:H, :W] for a, b in zip(u.numpy(), K.numpy(), strict=True)]
    found = fft_convolution_2d(u, K)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=1e-10)


def test_an_image_kernel_is_an_outer_product():
    layer = S4ND(3, 8)
    K = layer.kernel(9, 6).detach().double()
    assert K.shape == (3, 9, 6)
    values = torch.linalg.svdvals(K)
    assert (values[:, 1:] < 1e-6 * values[:, :1]).all()
    torch.testing.assert_close(
        K[:, :, 0], (layer.vertical.kernel(9) * layer.horizontal.kernel(1)).detach(), rtol=1e-5, atol=1e-7
    )


def test_gradients_in_two_dimensions():
    layer = S4ND(1, 2).double()
    u = torch.randn(1, 3, 2, 1).double().requires_grad_()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def output(u, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), u)

    assert torch.autograd.gradcheck(output, (u, *parameters))


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S4(2, 5), "N is 5; it must be even"),
        (lambda: S4D(2, 5), "N is 5; with init 'lin' it must be even"),
        (lambda: S4D(2, 0, "real"), "N is 0; with init 'real' it must be at least 1"),
        (lambda: S4D(2, 4, "hippo"), "init is 'hippo'; it must be one of 'lin', 'inv', 'real', 'legs'"),
        (lambda: S4D(2, 4, method="exact"), "method is 'exact'"),
        (lambda: DSS(2, 4, 0.2, 0.1), "delta_min is 0.2, delta_max 0.1"),
        (lambda: S4(2, 4).kernel(0), "L is 0"),
        (lambda: S4(2, 4)(torch.ones(1, 3, 5)), r"u has shape \(1, 3, 5\); it must be \(B, L, 2\)"),
        (lambda: S4(2, 4)(torch.ones(1, 0, 2)), r"u has shape \(1, 0, 2\)"),
        (lambda: S4(2, 4).step(torch.ones(1, 2), torch.ones(3, 2, 2)), r"state \(3, 2, 2\); they must be \(B, 2\)"),
        (lambda: S4ND(2, 4)(torch.ones(1, 3, 2)), r"u has shape \(1, 3, 2\); it must be \(B, H, W, 2\)"),
        (lambda: S4ND(2, 4).kernel(0, 3), "H is 0 and W is 3"),
        (lambda: S4ND(2, 4).step(torch.ones(1, 3, 2), torch.ones(1, 4, 2, 2)), r"they must be \(B, W, 2\)"),
        (lambda: fft_convolution_2d(torch.ones(3, 4), torch.ones(4, 3)), r"K has the sides \(4, 3\)"),
    ],
)
def test_bad_arguments_are_named(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_all_layers_stand_in_one_place():
    assert LSSL.__module__ == "minivim.s4.lssl"
    for layer in (LSSL(2, 4), S4(2, 4), DSS(2, 4), S4D(2, 4)):
        assert layer(torch.ones(1, 6, 2)).shape == (1, 6, 2)
