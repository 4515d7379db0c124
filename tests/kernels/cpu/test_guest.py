"""The CPU kernels as guests in a process: one opaque op for PyTorch, threads, forks, the cache, odd machines."""

import os
import subprocess
import sys
import textwrap
from array import array
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("numba", reason="numba is not installed")

from minivim.kernels.cpu import threads as parallel
from minivim.kernels.cpu.conv.launch import conv
from minivim.kernels.cpu.lanes import LANES
from minivim.kernels.cpu.scan.launch import scan
from minivim.kernels.cpu.scan.pair import scan_pair

from minivim.ops import causal_conv_silu, selective_scan


def direction(batch=2, L=19, E=12, N=4):
    shapes = ((batch, L, E), (batch, L, E), (E, N), (batch, L, N), (batch, L, N), (E,), (E,))
    u, delta, A, B, C, D, bias = (torch.randn(shape) for shape in shapes)
    return u, delta, -A.abs(), B, C, D, bias


def scan_arguments(**sizes):
    u, delta, A, B, C, D, bias = direction(**sizes)
    return u, delta, A, B, C, D, torch.randn_like(u), bias, torch.randn(u.shape[0], *A.shape)


def leaves(tensors):
    return [x.detach().requires_grad_() for x in tensors]


OPS = {
    "scan": (scan, lambda: (*leaves(scan_arguments()), True, False, True)),
    "scan reversed, bare": (scan, lambda: (*leaves(direction()[:5]), None, None, None, None, False, True, True)),
    "scan without gradient": (scan, lambda: (*scan_arguments(), True, True, False)),
    "scan of odd sizes": (scan, lambda: (*leaves(scan_arguments(batch=1, L=1, E=1, N=1)), True, False, True)),
    "both directions": (scan_pair, lambda: (*leaves((*direction(), *direction(), torch.randn(2, 19, 12))), True, True)),
    "convolution": (conv, lambda: (*leaves((torch.randn(2, 19, 12), torch.randn(12, 4), torch.randn(12))), True)),
}


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    """PyTorch's own test of an operator: schema, fake implementation, gradient, and all of it while compiling."""
    op, arguments = OPS[name]
    torch.library.opcheck(op, arguments())


def block(x, weight, conv_bias, delta, A, B, C, D, bias):
    u = causal_conv_silu(x, weight, conv_bias)
    return selective_scan(u, delta, A, B, C, D, x, bias, True, reverse=True)


def test_compile_and_export_see_one_graph(unchecked):
    u, delta, A, B, C, D, bias = direction()
    inputs = leaves((u, torch.randn(12, 4), torch.randn(12), delta, A, B, C, D, bias))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    plain, traced = block(*inputs), compiled(*inputs)
    torch.testing.assert_close(traced, plain)
    for a, b in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (plain, traced)), strict=True):
        torch.testing.assert_close(a, b)

    class Block(torch.nn.Module):
        def forward(self, *tensors):
            return block(*tensors)

    with torch.no_grad():
        exported = torch.export.export(Block(), tuple(x.detach() for x in inputs))
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert sum("minivim.scan_cpu" in name for name in names) == 1
    assert sum("minivim.conv_cpu" in name for name in names) == 1
    torch.testing.assert_close(exported.module()(*inputs), plain)


def test_called_from_several_python_threads():
    inputs = [scan_arguments(batch=2, L=70, E=96, N=16) for _ in range(4)]
    expected = [scan(*x, True, False, False)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            results = list(pool.map(lambda x: scan(*x, True, False, False)[0], inputs))
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("find", ["OpenMP", "no OpenMP"])
def test_both_kinds_of_threads_give_the_same_bits(find, monkeypatch):
    arguments = scan_arguments(batch=3, L=70, E=200, N=16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = scan(*arguments, True, False, True)
    try:
        torch.set_num_threads(3)
        if find == "no OpenMP":
            monkeypatch.setattr(parallel, "openmp", lambda: None)
        for ours, one in zip(scan(*arguments, True, False, True), expected, strict=True):
            assert torch.equal(ours[..., 1:, :], one[..., 1:, :])
    finally:
        torch.set_num_threads(before)


def test_as_many_threads_as_pytorch_may_use(monkeypatch):
    asked = []
    monkeypatch.setattr(parallel, "openmp", lambda: lambda address, data, threads, flags: asked.append(threads))
    arguments, before = array("q", [0] * 4), torch.get_num_threads()
    try:
        for threads in (2, 5, 64):
            torch.set_num_threads(threads)
            parallel.launch(0, arguments, 8)
    finally:
        torch.set_num_threads(before)
    assert asked == [2, 5, 8]


def python(code, **environment):
    """Run code in a fresh Python, as a user does; fails on anything but a clean end within two minutes."""
    environment = {"OMP_NUM_THREADS": "2"} | environment
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_loader_worker_neither_hangs_nor_dies():
    """The parent has used its threads when the worker is forked; the worker scans too and gets the same bits."""
    result = python(
        """
        import torch
        from torch.utils.data import DataLoader, Dataset
        from minivim import selective_scan

        torch.manual_seed(0)
        shapes = ((2, 70, 96), (2, 70, 96), (96, 16), (2, 70, 16), (2, 70, 16))
        inputs = [torch.randn(shape) for shape in shapes]
        inputs[2] = -inputs[2].abs()

        class Scans(Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, i):
                return selective_scan(*inputs, delta_softplus=True, backend="numba")

        expected = Scans()[0]
        for out in DataLoader(Scans(), batch_size=None, num_workers=2, multiprocessing_context="fork"):
            assert torch.equal(out, expected)
        assert torch.equal(Scans()[0], expected)
        print("done")
        """
    )
    assert result.stdout.strip() == "done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_worker_forked_before_the_first_scan_examines_nothing_and_works_alone(tmp_path):
    """Nothing of the kernels is loaded when the worker is forked; it must know all the same that it is one."""
    result = python(
        """
        import os, sys, warnings
        import minivim
        import torch
        from minivim.ops import choose_backend, verdict

        assert "minivim.kernels.cpu.threads" not in sys.modules
        verdict.check = lambda *_: sys.exit("it was examined in a forked worker")
        if os.fork():
            _, status = os.wait()
            sys.exit(os.waitstatus_to_exitcode(status))
        warnings.simplefilter("ignore")
        assert choose_backend("auto", torch.device("cpu")).name == "chunked"
        from minivim.kernels.cpu import threads

        threads.openmp = threads.python_threads = lambda: sys.exit("it waits for threads that it has not")
        u, A = torch.ones(2, 70, 96), -torch.ones(96, 4)
        minivim.selective_scan(u, u, A, u[..., :4], u[..., :4], backend="numba")
        print("done", flush=True)
        """,
        NUMBA_CACHE_DIR=str(tmp_path),
    )
    assert result.stdout.strip() == "done"


@pytest.mark.parametrize("lanes", [8, 16])
def test_either_width_of_vector_is_right(lanes, tmp_path):
    """Machines with and without 512-bit vectors run other code: both are tried here, whatever this machine has."""
    feature = "True" if lanes == 16 else "False"
    result = python(
        f"""
        import llvmlite.binding as llvm
        import numba
        import torch

        numba.njit(lambda: 0)()  # numba reads the real features here
        features = llvm.get_host_cpu_features
        llvm.get_host_cpu_features = lambda: {{"avx512f": {feature}}}
        from minivim.kernels.cpu import lanes
        llvm.get_host_cpu_features = features
        from minivim.ops import scan_reference, selective_scan
        assert lanes.LANES == {lanes}

        torch.manual_seed(0)
        for E in (5, 16, 100):
            shapes = ((2, 21, E), (2, 21, E), (E, 4), (2, 21, 4), (2, 21, 4), (E,), (2, 21, E), (E,))
            inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
            inputs[2] = inputs[2].detach().abs().neg().requires_grad_()
            ours, theirs = selective_scan(*inputs, True, backend="numba"), scan_reference(*inputs, True)[0]
            torch.testing.assert_close(ours, theirs)
            for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (ours, theirs))):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        print("done")
        """,
        NUMBA_CACHE_DIR=str(tmp_path),  # the usual cache is for this machine's width
    )
    assert result.stdout.strip() == "done"


def test_compiled_once_and_then_read_from_the_cache(tmp_path):
    """A second process finds the machine code on disk: no compilation, so no LLVM module is built."""
    code = """
        import torch
        from numba.core import event
        from minivim import selective_scan

        with event.install_recorder("numba:compile") as recorder:
            x = torch.randn(1, 5, 8)
            selective_scan(x, x.abs(), -torch.ones(8, 4), torch.randn(1, 5, 4), torch.randn(1, 5, 4), backend="numba")
        print(len(recorder.buffer) > 0)
    """
    answers = [python(code, NUMBA_CACHE_DIR=str(tmp_path)).stdout.strip() for _ in range(2)]
    assert answers == ["True", "False"]


def test_lanes_fit_this_machine():
    assert LANES in (8, 16)
