"""The OpenMP library is found whatever the folder is called that it was loaded from."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from minivim.kernels.cpu import threads

SCAN = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import torch
torch.set_num_threads(2)
import minivim
from minivim.kernels.cpu import threads
u, B = torch.rand(4, 300, 64), torch.rand(4, 300, 16)
out = minivim.selective_scan(u, u, -torch.rand(64, 16), B, B, backend="numba")
print(threads.openmp() is not None and sys.argv[1] in threads.loaded_libraries())
"""


@pytest.mark.parametrize("folder", ["my project", "Müllers Übung", "a\tb (deleted)", "tr\n\nail ", "x y/z w"])
def test_a_virtual_environment_may_lie_anywhere(folder, tmp_path):
    libraries = sorted((Path(find_spec("torch").origin).parent / "lib").glob("libgomp*"))
    if not libraries:
        pytest.skip("this torch brings no OpenMP of its own")
    home = tmp_path / folder / "torch" / "lib"
    home.mkdir(parents=True)
    copy = shutil.copy(libraries[0], home)
    done = subprocess.run([sys.executable, "-c", SCAN, str(copy)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_what_cannot_be_loaded_again_is_passed_over(monkeypatch, tmp_path):
    gone = [str(tmp_path / "torch" / "libgomp.so.1 (deleted)"), "/nowhere/libomp.so", "/nowhere/libgompertz.so"]
    monkeypatch.setattr(threads, "loaded_libraries", lambda: gone)
    assert threads.openmp.__wrapped__() is None
