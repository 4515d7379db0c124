"""A compiled backend proves itself before "auto" takes it; what cannot, is not taken, and says so once."""

import json
import subprocess
import sys
import time
import warnings

import pytest
import torch
from minivim.kernels import forks, store
from torch.func import vmap

from minivim.ops import available_backends, choose_backend, implementations, proof, selective_scan, verdict

CPU = torch.device("cpu")
with_numba = pytest.mark.skipif("numba" not in available_backends("cpu"), reason="numba is not installed")
with_triton = pytest.mark.skipif(not implementations.INSTALLED["triton"], reason="triton is not installed")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has asked nothing yet, and a folder that holds no verdict."""
    monkeypatch.setattr(verdict, "known", {})
    monkeypatch.setattr(verdict, "said", set())
    monkeypatch.setattr(store, "folder", lambda: tmp_path)
    return tmp_path


def planted(monkeypatch, name, **changes):
    """Put a wrong operation into a backend."""
    monkeypatch.setitem(implementations.LOADED, name, implementations.load(name)._replace(**changes))


def wrong_by_a_percent(function):
    def wrong(*inputs):
        out, last = function(*inputs)
        return out * 1.01, last

    return wrong


@with_numba
def test_numba_is_examined_once_and_the_next_process_reads_the_verdict(fresh, monkeypatch, capfd):
    assert choose_backend("auto", CPU).name == "numba"
    assert capfd.readouterr().err.count("compiling and checking the numba kernels on cpu; this happens once") == 1
    assert list(json.loads((fresh / verdict.FILE).read_text()).values()) == [None]
    monkeypatch.setattr(verdict, "known", {})  # as in the next process
    monkeypatch.setattr(verdict, "check", lambda *_: pytest.fail("it was examined again"))
    assert choose_backend("auto", CPU).name == "numba"
    assert capfd.readouterr().err == ""


@with_numba
def test_a_wrong_kernel_falls_back_with_one_warning(fresh, monkeypatch):
    planted(monkeypatch, "numba", scan=wrong_by_a_percent(implementations.load("numba").scan))
    with pytest.warns(RuntimeWarning, match="'numba' is not used on cpu: its scan differs from that of 'chunked' by"):
        assert choose_backend("auto", CPU).name == "chunked"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend("auto", CPU).name == "chunked"
    assert choose_backend("numba", CPU).name == "numba"  # who asks for it by name gets it


@with_numba
@pytest.mark.parametrize("operation", ["bidirectional_scan", "conv", "add_norm"])
def test_a_kernel_that_raises_is_a_failed_examination(operation, fresh, monkeypatch):
    def broken(*_):
        raise OSError("no space left")

    changes = {operation: broken} | ({"bidirectional_conv": broken} if operation == "conv" else {})
    planted(monkeypatch, "numba", **changes)
    assert "it cannot run here (OSError: no space left)" in proof.examine("numba", CPU)


@with_numba
def test_a_gradient_that_is_wrong_is_seen(monkeypatch):
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, dx):
            return dx / 2

    numba = implementations.load("numba")
    planted(monkeypatch, "numba", add_norm=lambda x, r, w, eps: numba.add_norm(x, r, Halved.apply(w), eps))
    assert "its gradient of norm_weight differs" in proof.examine("numba", CPU)
    planted(monkeypatch, "numba", add_norm=lambda x, r, w, eps: (numba.add_norm(x, r, w, eps)[0] * float("nan"), x))
    assert "its norm differs from that of 'chunked' by nan" in proof.examine("numba", CPU)


@with_triton
def test_triton_proves_itself_in_the_interpreter(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    monkeypatch.setattr(proof, "SIZES", (1, 5, 3, 2))
    assert proof.examine("triton", CPU) is None
    planted(monkeypatch, "triton", scan=wrong_by_a_percent(implementations.load("triton").scan))
    assert "its scan differs from that of 'chunked'" in proof.examine("triton", CPU)


@pytest.mark.parametrize(
    ("child", "said"),
    [
        ("import os; os.abort()", "ended with exit code -6"),
        ("import sys; sys.exit('CUDA error: an illegal memory access')", "exit code 1 (CUDA error: an illegal"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
        ("raise RuntimeError('no device')", "exit code 1 (RuntimeError: no device)"),
    ],
    ids=["crashes", "fails", "hangs", "raises"],
)
def test_a_child_that_crashes_or_hangs_is_a_failed_examination(child, said, fresh, monkeypatch):
    real = subprocess.run

    def run(command, **options):
        return real([sys.executable, "-c", child], **options)

    monkeypatch.setattr(proof.subprocess, "run", run)
    monkeypatch.setattr(proof, "CHILD_SECONDS", 1.0 if "sleep" in child else 60.0)
    start = time.monotonic()
    found = proof.in_a_child("triton", CPU)
    assert said in found
    assert time.monotonic() - start < 30


def test_the_child_examines_what_it_is_told(monkeypatch):
    assert proof.in_a_child("chunked", CPU) is None
    assert "it cannot run here" in proof.in_a_child("numbat", CPU)


def test_on_a_gpu_a_child_decides_and_triton_is_what_auto_takes(fresh, monkeypatch):
    monkeypatch.setitem(implementations.INSTALLED, "triton", True)
    monkeypatch.setattr(verdict, "accelerator", lambda device: "a GPU")
    asked = []
    monkeypatch.setattr(proof, "in_a_child", lambda name, device: asked.append((name, str(device))))
    assert verdict.holds("triton", "cuda", 1, False)
    assert verdict.holds("triton", "cuda", 1, False)
    assert asked == [("triton", "cuda:1")]
    assert available_backends("cuda")[0] == "triton"


@with_numba
def test_nothing_is_examined_inside_a_transform_or_a_fork(fresh, monkeypatch, unchecked):
    monkeypatch.setattr(verdict, "check", lambda *_: pytest.fail("it was examined"))

    def ask(x):
        assert choose_backend("auto", CPU).name == "chunked"
        return x

    with pytest.warns(RuntimeWarning, match="nothing may be compiled inside a trace, a vmap or a forked worker"):
        vmap(ask)(torch.ones(2))
    verdict.said.clear()
    with pytest.warns(RuntimeWarning, match="call it once outside"):
        torch.jit.trace(ask, torch.ones(2), check_trace=False)  # whose check calls it untraced
    verdict.said.clear()
    monkeypatch.setattr(forks, "forked", True)
    with pytest.warns(RuntimeWarning, match="forked worker"):
        ask(None)
    assert verdict.known == {}, "what had to wait is no verdict"


@with_numba
def test_a_compiled_function_finds_the_verdict_on_disk(fresh, monkeypatch, unchecked):
    choose_backend("auto", CPU)
    monkeypatch.setattr(verdict, "known", {})
    u, A, B = torch.rand(1, 5, 4), -torch.rand(4, 3), torch.rand(1, 5, 3)
    compiled = torch.compile(lambda u: selective_scan(u, u, A, B, B), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(u), selective_scan(u, u, A, B, B, backend="reference"))
    assert verdict.known == {("numba", "cpu"): True}


@with_numba
def test_a_damaged_verdict_is_asked_for_again(fresh):
    for text in ("", "[1]", "{", '"yes"'):
        verdict.known.clear()
        (fresh / verdict.FILE).write_text(text)
        assert choose_backend("auto", CPU).name == "numba"
        assert isinstance(json.loads((fresh / verdict.FILE).read_text()), dict)


@with_numba
def test_other_versions_or_another_processor_are_another_question(fresh, monkeypatch):
    before = verdict.circumstances("numba", CPU)
    monkeypatch.setattr(verdict, "processor", lambda: "another")
    assert verdict.circumstances("numba", CPU) != before
    monkeypatch.undo()
    monkeypatch.setattr(verdict, "version", lambda package: "9.9")
    assert verdict.circumstances("numba", CPU) != before


@with_numba
def test_the_examination_knows_nothing_of_the_callers_modes(fresh):
    """Under no_grad, autocast, inference mode and hooks on saved tensors it still has gradients of float32."""
    packed = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), hooks:
        assert verdict.check("numba", CPU) is None
    assert packed == []
