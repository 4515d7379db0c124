"""The OpenMP library is found whatever the folder is called that it was loaded from."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from minivim.kernels.cpu import threads

FOLDERS = ("my project", "Müllers Übung", "a\tb (deleted)", "tr\n\nail ", "x y/z w")
SCAN = """
import ctypes, sys
copies = sys.argv[1:]
for copy in copies:
    ctypes.CDLL(copy, mode=ctypes.RTLD_GLOBAL)
import torch
torch.set_num_threads(2)
import minivim
from minivim.kernels.cpu import threads
found = threads.loaded_libraries()
threads.loaded_libraries = lambda: copies[:1]
u, B = torch.rand(4, 300, 64), torch.rand(4, 300, 16)
out = minivim.selective_scan(u, u, -torch.rand(64, 16), B, B, backend="numba")
print(set(copies) <= set(found), threads.openmp() is not None)
"""


def test_a_virtual_environment_may_lie_anywhere(tmp_path):
    """The map of a process spells blanks and line ends in its own way; all these folders are found in one."""
    libraries = sorted((Path(find_spec("torch").origin).parent / "lib").glob("libgomp*"))
    if not libraries:
        pytest.skip("this torch brings no OpenMP of its own")
    homes = [tmp_path / folder / "torch" / "lib" for folder in FOLDERS]
    for home in homes:
        home.mkdir(parents=True)
    copies = [str(shutil.copy(libraries[0], home)) for home in homes]
    done = subprocess.run([sys.executable, "-c", SCAN, *copies], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "True"]


def test_what_cannot_be_loaded_again_is_passed_over(monkeypatch, tmp_path):
    gone = [str(tmp_path / "torch" / "libgomp.so.1 (deleted)"), "/nowhere/libomp.so", "/nowhere/libgompertz.so"]
    monkeypatch.setattr(threads, "loaded_libraries", lambda: gone)
    assert threads.openmp.__wrapped__() is None
