"""The depthwise causal convolution with SiLU: against F.conv1d in float64, finite differences, and its own laws."""

import pytest
import torch

from minivim.ops import available_backends, causal_conv_silu
from minivim.ops.reference import conv_reference

BACKENDS = [name for name in ("numba", "reference") if name in available_backends("cpu")]


def problem(batch, L, E, K, dtype=torch.float64):
    return [torch.randn(*shape, dtype=torch.float64).to(dtype) for shape in ((batch, L, E), (E, K), (E,))]


def run(inputs, backend, reverse=False):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = causal_conv_silu(*leaves, reverse=reverse, backend=backend)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_formula_written_out(backend):
    x, weight, bias = problem(2, 9, 3, 4)
    for reverse in (False, True):
        y = causal_conv_silu(x, weight, bias, reverse=reverse, backend=backend)
        for t in range(9):
            s = bias.clone()
            for k in range(4):
                source = t + 3 - k if reverse else t - 3 + k
                if 0 <= source < 9:
                    s = s + weight[:, k] * x[:, source]
            torch.testing.assert_close(y[:, t], (s * torch.sigmoid(s)).expand(2, 3))


@pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("L", [1, 2, 3, 31, 32, 33, 63, 64, 65, 197])
def test_kernel_equals_the_reference(L, reverse):
    for batch, E, K in ((1, 1, 4), (2, 16, 4), (9, 50, 4), (1, 7, 1), (2, 9, 7)):
        inputs = problem(batch, L, E, K)
        for ours, theirs in zip(run(inputs, "numba", reverse), run(inputs, "reference", reverse), strict=True):
            torch.testing.assert_close(ours, theirs)
        single = [x.float() for x in inputs]
        exact = run([x.double() for x in single], "reference", reverse)
        for ours, theirs in zip(run(single, "numba", reverse), exact, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    inputs = [x.requires_grad_() for x in problem(2, 35, 3, 4)]
    assert torch.autograd.gradcheck(lambda *x: causal_conv_silu(*x, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reverse_is_flip_conv_flip_and_looks_ahead_only(backend):
    x, weight, bias = problem(1, 40, 5, 4)
    reverse = causal_conv_silu(x, weight, bias, reverse=True, backend=backend)
    torch.testing.assert_close(reverse, causal_conv_silu(x.flip(1), weight, bias, backend=backend).flip(1))
    x.requires_grad_()
    y = causal_conv_silu(x, weight, bias, reverse=True, backend=backend)
    (gradient,) = torch.autograd.grad(y[0, 20].sum(), x)
    assert gradient[0].abs().sum(-1).nonzero().flatten().tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_half_precision_and_repeatable(backend):
    x, weight, bias = problem(3, 33, 24, 4, torch.float32)
    view = torch.cat((x, x), dim=2)[..., :24]
    once, again = (causal_conv_silu(view, weight, bias, backend=backend) for _ in range(2))
    assert torch.equal(once, again)
    torch.testing.assert_close(once, causal_conv_silu(x, weight, bias, backend=backend))
    half = causal_conv_silu(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), backend=backend)
    exact = conv_reference(*(v.bfloat16().double() for v in (x, weight, bias)))
    assert half.dtype == torch.bfloat16
    # conv1d rounds its sum to bfloat16 before SiLU, the kernel only the result
    assert (half - exact).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (((3, 5), (5, 4), (5,)), r"x has shape \(3, 5\).* must be \(B, L, E\), \(E, K\) and \(E,\)"),
        (((1, 3, 5), (4, 4), (5,)), r"weight \(4, 4\)"),
        (((1, 3, 5), (5, 4), (4,)), r"bias \(4,\)"),
        (((1, 3, 5), (5, 1, 4), (5,)), r"weight \(5, 1, 4\)"),
    ],
)
def test_bad_shapes_are_named(shapes, sentence, unchecked):
    with pytest.raises(ValueError, match=sentence):
        causal_conv_silu(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="backend is 'fast'; it must be one of 'auto', "):
        causal_conv_silu(*problem(1, 3, 5, 4), backend="fast")
