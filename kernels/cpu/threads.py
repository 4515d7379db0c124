"""Run one compiled function on several threads: on PyTorch's own OpenMP threads where they can be found.

Two thread pools on the same cores wait for each other, so the kernels join the pool that PyTorch's matrix products
already use. Without one (macOS, Windows) Python threads do the same work; the compiled code holds no lock.
"""

import ctypes
import re
from array import array
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from minivim.kernels import forks

Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def loaded_libraries() -> list[str]:
    """The paths of all files in this process's map, whatever their folders are called; none where there is no map."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    fields = [line.split(maxsplit=5) for line in maps.read_text(errors="surrogateescape").split("\n")]
    # The kernel writes a newline in a name as \\012, and leaves every other character alone.
    return sorted({parts[5].replace("\\012", "\n") for parts in fields if len(parts) == 6})


@cache
def openmp():
    """GOMP_parallel of the OpenMP library that is already loaded, or None."""
    names = [name for name in loaded_libraries() if re.fullmatch(r"lib(gomp|iomp5|omp)\b.*", name.rpartition("/")[2])]
    # PyTorch's own copy first: others may have been loaded by other packages.
    for name in sorted(names, key=lambda name: "torch" not in name):
        try:
            function = ctypes.CDLL(name).GOMP_parallel
        except (OSError, AttributeError):  # replaced on the disk since it was loaded; another compiler's OpenMP
            continue
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None


@cache
def python_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="minivim")


def launch(address: int, arguments: array, threads: int) -> None:
    """Call the function at `address` with a pointer to `arguments` (int64), on `threads` threads at once; wait for all.

    The function itself hands out the work: arguments[0] is the counter from which each thread takes its next task.
    """
    data, _ = arguments.buffer_info()
    threads = 1 if forks.forked else min(threads, torch.get_num_threads())
    if threads == 1:
        Kernel(address)(data)
    elif (parallel := openmp()) is not None:
        parallel(address, data, threads, 0)
    else:
        others = [python_threads().submit(Kernel(address), data) for _ in range(threads - 1)]
        Kernel(address)(data)
        for other in others:
            other.result()
