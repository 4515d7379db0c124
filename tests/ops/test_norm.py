"""Add and RMSNorm in one: against the formula, autograd in float64, finite differences, and its own laws."""

import pytest
import torch

from minivim.ops import add_rms_norm, available_backends

BACKENDS = [name for name in ("numba", "reference") if name in available_backends("cpu")]
only_with_numba = pytest.mark.skipif("numba" not in BACKENDS, reason="numba is not installed")


def problem(batch, L, D, residual=True, dtype=torch.float64):
    update, stream, weight = torch.randn(batch, L, D), torch.randn(batch, L, D) * 3, torch.rand(D) + 0.5
    return [x if x is None else x.to(dtype) for x in (update, stream if residual else None, weight)]


def run(inputs, backend):
    """The normalised sum, the sum, and the gradients of a loss in which both take part."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    y, total = add_rms_norm(*leaves, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    loss = (y * weights[0]).sum() + (total * weights[1]).sum()
    return [y.detach(), total.detach(), *torch.autograd.grad(loss, [x for x in leaves if x is not None])]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_formula_written_out(backend):
    update, residual, weight = problem(2, 3, 5)
    y, total = add_rms_norm(update, residual, weight, backend=backend)
    for b in range(2):
        for t in range(3):
            r = update[b, t] + residual[b, t]
            torch.testing.assert_close(total[b, t], r)
            torch.testing.assert_close(y[b, t], r / ((r**2).sum() / 5 + 1e-5).sqrt() * weight)


@only_with_numba
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("D", [1, 7, 8, 9, 16, 63, 64, 65, 192])
def test_kernel_equals_the_reference(D, residual):
    for batch, L in ((1, 1), (1, 7), (2, 65), (9, 33)):
        inputs = problem(batch, L, D, residual)
        for ours, theirs in zip(run(inputs, "numba"), run(inputs, "reference"), strict=True):
            torch.testing.assert_close(ours, theirs)
        single = [x if x is None else x.float() for x in inputs]
        exact = run([x if x is None else x.double() for x in single], "reference")
        for ours, theirs in zip(run(single, "numba"), exact, strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    inputs = [x.requires_grad_() for x in problem(2, 3, 11)]
    assert torch.autograd.gradcheck(lambda *x: add_rms_norm(*x, backend=backend), inputs)
    assert torch.autograd.gradcheck(lambda *x: add_rms_norm(*x, backend=backend)[1], inputs)  # only the sum is used


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_scale_changes_nothing_and_a_row_of_zeros_stays_zero(backend):
    update, residual, weight = problem(1, 4, 24)
    y, _ = add_rms_norm(update, residual, weight, backend=backend)
    larger, _ = add_rms_norm(1e4 * update, 1e4 * residual, weight, backend=backend)
    torch.testing.assert_close(larger, y, rtol=1e-4, atol=1e-4)
    zeros, _ = add_rms_norm(torch.zeros_like(update), None, weight, backend=backend)
    assert torch.equal(zeros, torch.zeros_like(zeros))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_float32_stream(backend, dtype):
    update, residual, weight = problem(2, 5, 48, dtype=torch.float32)
    y, total = add_rms_norm(update.to(dtype), residual, weight.to(dtype), backend=backend)
    assert (y.dtype, total.dtype) == (dtype, torch.float32)
    assert torch.equal(total, update.to(dtype) + residual)
    exact, _ = add_rms_norm(update.to(dtype).double(), residual.double(), weight.to(dtype).double())
    assert (y - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()
    first, stream = add_rms_norm(update.to(dtype), None, weight, backend=backend)
    assert (first.dtype, stream.dtype) == (torch.float32, torch.float32)


@only_with_numba
def test_strided_repeatable_and_on_any_number_of_threads():
    update, residual, weight = problem(4, 300, 40, dtype=torch.float32)
    view = torch.cat((update, update), dim=2)[..., :40]
    expected = run((update, residual, weight), "numba")
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            for ours, theirs in zip(run((view, residual, weight), "numba"), expected, strict=True):
                assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(threads)


def test_bad_shapes_and_backends_are_named(unchecked):
    update, residual, weight = problem(1, 3, 8)
    for bad in ((update, residual[:, :2], weight), (update, residual, weight[:5])):
        with pytest.raises(ValueError, match=r"update has shape \(1, 3, 8\), weight .*must be \(B, L, D\)"):
            add_rms_norm(*bad)
    with pytest.raises(ValueError, match="backend is 'quick'"):
        add_rms_norm(update, residual, weight, backend="quick")


def test_it_is_pytorchs_norm_of_the_sum():
    update, residual, weight = problem(1, 2, 6)
    y, total = add_rms_norm(update, residual, weight)
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(total, (6,), weight, eps=1e-5))
