"""Where compiled kernels are kept: never those of other lines, never in a place that cannot be written."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from minivim.kernels import store

from minivim.ops import available_backends

ROOT = Path(__file__).resolve().parents[2]
# The convolution is the kernel that compiles most quickly of those that use every room: lanes, threads, host.
CONV = """
import torch, minivim
from minivim.ops import causal_conv_silu
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    y = causal_conv_silu(torch.ones(1, 5, 4), torch.ones(4, 3), torch.ones(4), backend="numba")
print(len(recorder.buffer) > 0, y.sum().item())
"""
needs_numba = pytest.mark.skipif("numba" not in available_backends("cpu"), reason="numba is not installed")


@pytest.fixture
def package(tmp_path):
    """A copy of the package whose kernels have a file where their cache would be made."""
    copy, ignore = tmp_path / "source" / "minivim", shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minivim", copy, ignore=ignore)
    shutil.copytree(ROOT / "kernels", copy / "kernels", ignore=ignore)
    (copy / "kernels" / "__pycache__").write_text("a file here keeps even root from writing")
    return copy


def run(package, code=CONV, **environment):
    """What the code prints in a fresh process that uses this copy, and what it says on stderr."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment = kept | {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"} | environment
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=package.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@needs_numba
def test_an_edit_of_any_kernel_is_compiled_anew(package, tmp_path):
    """Also of one that is only imported by the kernel that runs."""
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    (compiled, value), _ = run(package, **cache)
    assert compiled == "True"
    texts = {package / "kernels" / "cpu" / name: None for name in ("lanes.py", "conv/loops.py")}
    for path in texts:
        texts[path] = path.read_text()
        changed = texts[path].replace("types.float32: [1.0, 0.693", "types.float32: [2.0, 0.693", 1)
        changed = changed.replace("s_i * sigmoid(s_i)", "sigmoid(s_i)", 1)
        assert changed != texts[path]
        path.write_text(changed)
        compiled, other = run(package, **cache)[0]
        assert compiled == "True" and other != value, path
        path.write_text(texts[path])
    assert run(package, **cache)[0] == ["False", value]


@needs_numba
def test_without_a_home_and_a_writable_package_it_runs_with_one_warning(package, tmp_path):
    (tmp_path / "temporary").mkdir()
    places = {"HOME": "/proc/none", "TMPDIR": str(tmp_path / "temporary")}
    code = "import torch, minivim; print(minivim.create_model('vim_nano_patch2_8')(torch.ones(1, 3, 8, 8)).shape)"
    _, said = run(package, code, **places)
    assert said.count("Warning:") == 1
    assert "compiled kernels are kept in" in said and "set NUMBA_CACHE_DIR" in said
    assert run(package, **places)[0][0] == "False", "the temporary folder serves the next process"


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def put_a_folder_in_its_place(path):
    path.unlink()
    path.mkdir()


@needs_numba
def test_a_damaged_cache_costs_a_compilation_and_no_more(package, tmp_path):
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    (_, value), _ = run(package, **cache)
    for damage in (cut_short, put_a_folder_in_its_place):
        files = [path for path in (tmp_path / "cache").rglob("*.nb[ic]") if "forward_float32" in path.name]
        assert len(files) >= 2
        for path in files:
            damage(path)
        (compiled, *values), said = run(package, **cache)
        assert (compiled, values) == ("True", [value])
        assert said.count("RuntimeWarning: the compiled kernels in") == 1
        assert run(package, **cache)[0] == ["False", value], "the next process finds it whole"


def test_the_fingerprint_depends_on_every_line_and_every_name(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(store, "PACKAGE", tmp_path)
    seen = set()
    for name, text in (("b.py", "1"), ("b.py", "2"), ("a/c.py", ""), ("a/d.py", "3")):
        (tmp_path / name).write_text(text)
        seen.add(store.fingerprint.__wrapped__())
    (tmp_path / "a" / "d.py").rename(tmp_path / "a" / "e.py")
    assert len(seen | {store.fingerprint.__wrapped__()}) == 5


def test_the_first_place_that_can_be_written_is_taken(tmp_path, monkeypatch):
    """NUMBA_CACHE_DIR, the package, XDG_CACHE_HOME, the home: each one is next when a file bars the one before."""
    monkeypatch.setattr(store, "PACKAGE", tmp_path / "package")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    places = ["named", "package/__pycache__", "shared/minivim", "home/.cache/minivim"]
    for place in places:
        assert store.folder.__wrapped__().parent == tmp_path / place
        barred = tmp_path / place
        shutil.rmtree(barred)
        barred.write_text("")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="this system knows no owners")
def test_a_temporary_folder_that_others_can_write_holds_no_code(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "lasting_places", lambda: iter(()))
    monkeypatch.setattr(store, "temporary_place", lambda: tmp_path / "open")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.warns(RuntimeWarning, match="for this process only"):
        assert store.folder.__wrapped__() is None
    (tmp_path / "open").chmod(0o700)
    with pytest.warns(RuntimeWarning, match=f"are kept in {tmp_path}"):
        assert store.folder.__wrapped__().parent == tmp_path / "open"
