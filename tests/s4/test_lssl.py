"""LSSL: convolution against recurrence and against scipy, the laws of a linear system, gradients, bad input."""

import math

import pytest
import torch
from torch import nn

from minivim.hippo import legs
from minivim.s4.lssl import LSSL, krylov

LENGTHS = (1, 2, 3, 63, 64, 65, 197)
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def by_steps(layer, u):
    """Outputs of the recurrence over axis 1: the tokens of a sequence, the rows of an image."""
    state = layer.initial_state(len(u)) if u.ndim == 3 else layer.initial_state(len(u), u.shape[2])
    outputs = []
    for t in range(u.shape[1]):
        y, state = layer.step(u[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("N", [1, 2, 16, 64])
@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_convolution_equals_recurrence(N, L, dtype, tolerance):
    layer = LSSL(3, N).to(dtype)
    u = torch.randn(2, L, 3, dtype=dtype)
    with torch.no_grad():
        convolved, stepped = layer(u), by_steps(layer, u)
    assert convolved.shape == (2, L, 3)
    assert convolved.dtype == dtype
    assert (convolved - stepped).abs().max() <= tolerance * stepped.abs().max()


@pytest.mark.parametrize("L", LENGTHS)
def test_equals_scipy(L):
    """scipy discretizes and simulates; its y[t] = C x[t] + D u[t] reads the state before the input."""
    signal = pytest.importorskip("scipy.signal")
    layer = LSSL(2, 4, delta_min=0.05).double()
    u = torch.randn(1, L, 2).double()
    A, B = layer.A.numpy(), layer.B[:, None].numpy()
    expected = []
    for channel in range(2):
        C, D = layer.C[channel, None].detach().numpy(), layer.D[channel].reshape(1, 1).detach().numpy()
        delta = layer.log_delta[channel].exp().item()
        A_bar, B_bar = signal.cont2discrete((A, B, C, D), delta, "gbt", 0.5)[:2]  # "bilinear" is the same rule
        system = (A_bar, B_bar, C @ A_bar, C @ B_bar + D, 1)
        expected.append(torch.from_numpy(signal.dlsim(system, u[0, :, channel].numpy())[1][:, 0]))
    torch.testing.assert_close(layer(u)[0], torch.stack(expected, dim=-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("L", LENGTHS)
def test_kernel_is_the_answer_to_an_impulse(L):
    layer = LSSL(3, 8).double()
    impulse = torch.zeros(1, L, 3).double()
    impulse[:, 0] = 1
    answer = by_steps(layer, impulse)[0].T.clone()
    answer[:, 0] -= layer.D
    torch.testing.assert_close(layer.kernel(L), answer, rtol=1e-10, atol=1e-10)


def test_a_longer_kernel_starts_with_the_shorter_one():
    layer = LSSL(2, 16).double()
    for L in LENGTHS:
        torch.testing.assert_close(layer.kernel(197)[:, :L], layer.kernel(L), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_krylov_equals_the_loop(length):
    A, b = torch.randn(2, 5, 5).double() / 5, torch.randn(2, 5).double()
    loop = [b]
    for _ in range(length - 1):
        loop.append((A @ loop[-1][..., None])[..., 0])
    torch.testing.assert_close(krylov(A, b, length), torch.stack(loop, dim=-1), rtol=1e-12, atol=1e-12)


def test_is_linear_time_invariant_and_causal_and_keeps_channels_apart():
    layer = LSSL(3, 8).double()
    u, v = torch.randn(2, 2, 65, 3).double()
    with torch.no_grad():
        y = layer(u)
        torch.testing.assert_close(layer(2 * u - 3 * v), 2 * y - 3 * layer(v), rtol=1e-10, atol=1e-10)
        late = torch.cat((torch.zeros(2, 7, 3).double(), u), dim=1)
        torch.testing.assert_close(layer(late)[:, 7:], y, rtol=1e-10, atol=1e-10)
        changed = u.clone()
        changed[:, 40:, 1] += 1
        difference = (layer(changed) - y).abs()
    assert difference[:, :40].max() < 1e-12
    assert difference[:, 40:, [0, 2]].max() == 0
    assert difference[:, 40:, 1].min() > 1e-6


def test_gradients_by_finite_differences():
    layer = LSSL(2, 3, delta_min=0.05).double()
    u = torch.randn(1, 7, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]
    assert sorted(names) == ["C", "D", "log_delta"]

    def run(u, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (u,))

    assert torch.autograd.gradcheck(run, (u, *layer.parameters()))


def test_both_modes_have_the_same_gradients():
    layer = LSSL(2, 8).double()
    u = torch.randn(2, 33, 2).double()
    gradients = [
        torch.autograd.grad((run(u) ** 2).sum(), layer.parameters()) for run in (layer, lambda u: by_steps(layer, u))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_starts_with_hippo_and_step_sizes_in_their_range():
    layer = LSSL(500, 4, delta_min=0.01, delta_max=0.2)
    A, B = legs(4)
    torch.testing.assert_close(layer.A, A.float())
    torch.testing.assert_close(layer.B, B.float())
    delta = layer.log_delta.exp()
    assert 0.01 * (1 - 1e-5) <= delta.min() <= 0.0102
    assert 0.196 <= delta.max() <= 0.2 * (1 + 1e-5)
    assert abs(delta.log().mean() - math.log(0.01 * 0.2) / 2) < 0.15  # log-uniform: the middle is the geometric mean


def test_stays_bounded_for_a_long_time():
    layer = LSSL(4, 64)
    kernel = layer.kernel(100_000).detach()
    assert kernel.isfinite().all()
    assert kernel[:, -100:].abs().max() < 1e-5 * kernel.abs().max()


def test_learns_to_report_the_past():
    """The input of 5 steps ago; a layer without memory stays at the variance of the input, which is 1."""
    model = nn.Sequential(nn.Linear(1, 4), LSSL(4, 16, 0.05, 0.2), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(150):
        u = torch.randn(16, 32, 1)
        loss = (model(u)[:, 5:] - u[:, :-5]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "H is 0; it must be at least 1"),
        ((2, 0), "N is 0"),
        ((2, 4, 0.0, 0.1), "delta_min is 0.0, delta_max 0.1; 0 < delta_min <= delta_max must hold"),
        ((2, 4, 0.2, 0.1), "delta_min is 0.2, delta_max 0.1"),
    ],
)
def test_refuses_a_layer_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        LSSL(*arguments)


def test_refuses_inputs_of_another_shape(unchecked):
    layer = LSSL(3, 4)
    with pytest.raises(ValueError, match=r"u has shape \(2, 5, 4\); it must be \(B, L, 3\)"):
        layer(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"u has shape \(5, 3\); it must be \(B, L, 3\)"):
        layer(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="L is 0; it must be at least 1"):
        layer(torch.zeros(2, 0, 3))
    with pytest.raises(ValueError, match=r"u has shape \(2, 4\), state \(2, 3, 4\); they must be"):
        layer.step(torch.zeros(2, 4), layer.initial_state(2))
    with pytest.raises(ValueError, match=r"u has shape \(2, 3\), state \(1, 3, 4\); they must be"):
        layer.step(torch.zeros(2, 3), layer.initial_state(1))
