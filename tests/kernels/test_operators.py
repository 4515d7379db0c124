"""Each operator runs with its tensors' GPU as the current one."""

from contextlib import contextmanager

import pytest
import torch
from minivim.kernels import operators


class OnSecondGPU(torch.Tensor):
    """A tensor that says it lies on cuda:1."""

    is_cuda = True
    device = torch.device("cuda", 1)


def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.mark.parametrize(("backend", "is_guarded"), [("triton", True), ("numba", False)])
def test_forward_and_backward_are_guarded_where_a_gpu_may_run_them(backend, is_guarded, monkeypatch):
    guarded = []

    @contextmanager
    def note(arguments):
        guarded.append("enter")
        yield
        guarded.append("leave")

    monkeypatch.setattr(operators, "guard", note)
    double = operators.operator(f"double_{backend}", backend)(twice)
    operators.differentiate(
        double, lambda ctx, inputs, output: None, lambda ctx, saved, dy: operators.entry(double, (dy,))(dy)
    )
    x = torch.ones(2, requires_grad=True)
    for each in (operators.entry(double, (x,), gradient=True), double):  # without the dispatcher, and with it
        guarded.clear()
        y = each(x)
        assert guarded == ["enter", "leave"] * is_guarded
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert guarded == ["enter", "leave"] * 2 * is_guarded
        assert gradient.tolist() == [2, 2]


@pytest.mark.parametrize("wrap", [lambda x: (x, 3), lambda x: (None, x), lambda x: ([x, x], None)])
def test_the_first_tensors_gpu_is_made_current(wrap, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: ("current", device))
    x = torch.ones(2).as_subclass(OnSecondGPU)
    assert operators.guard(wrap(x)) == ("current", torch.device("cuda", 1))


def test_a_cpu_needs_no_guard():
    with operators.guard((torch.ones(2),)) as nothing:
        assert nothing is None
