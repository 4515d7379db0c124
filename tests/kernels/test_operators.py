"""Each operator runs with its tensors' GPU as the current one."""

from contextlib import contextmanager

import pytest
import torch
from minivim.kernels import operators

from minivim.ops import add_rms_norm, available_backends, causal_conv_silu, selective_scan

numba_only = pytest.mark.skipif("numba" not in available_backends("cpu"), reason="needs numba")


class OnSecondGPU(torch.Tensor):
    """A tensor that says it lies on cuda:1."""

    is_cuda = True
    device = torch.device("cuda", 1)


def scan(x):
    B = torch.ones(2, 5, 4)
    return selective_scan(x, x, -torch.ones(6, 4), B, B, backend="numba")


def convolution(x):
    return causal_conv_silu(x, torch.ones(6, 4), torch.ones(6), backend="numba")


def norm(x):
    return add_rms_norm(x, x, torch.ones(6), backend="numba")[0]


@numba_only
@pytest.mark.parametrize("call", [scan, convolution, norm])
def test_forward_and_backward_are_guarded(call, monkeypatch):
    guarded = []

    @contextmanager
    def note(arguments):
        guarded.append("enter")
        yield
        guarded.append("leave")

    monkeypatch.setattr(operators, "guard", note)
    x = torch.ones(2, 5, 6, requires_grad=True)
    y = call(x)
    assert guarded == ["enter", "leave"]
    y.sum().backward()
    assert guarded == ["enter", "leave"] * 2


@pytest.mark.parametrize("wrap", [lambda x: (x, 3), lambda x: (None, x), lambda x: ([x, x], None)])
def test_the_first_tensors_gpu_is_made_current(wrap, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device", lambda device: ("current", device))
    x = torch.ones(2).as_subclass(OnSecondGPU)
    assert operators.guard(wrap(x)) == ("current", torch.device("cuda", 1))


def test_a_cpu_needs_no_guard():
    with operators.guard((torch.ones(2),)) as nothing:
        assert nothing is None
