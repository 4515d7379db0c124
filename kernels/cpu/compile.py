"""Machine code by name: compiled at its first use, then read from disk, and compiled anew where the disk fails."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from minivim.kernels import store
from numba import cfunc, config, int64, void
from numba.core.ccallback import CFunc
from numba.core.errors import NumbaError

SIGNATURE = void(int64)
compiled_kernels = []  # keeps the machine code alive


def compile_into(folder: Path, entry: Callable) -> CFunc:
    """Compile with numba's cache in `folder`, or read what is there; the user's own functions keep their place."""
    before, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        return cfunc(SIGNATURE, cache=True)(entry)
    finally:
        config.CACHE_DIR = before


def compile_entry(entry: Callable) -> CFunc:
    """The compiled entry. A file that is damaged or cannot be written costs a compilation, and raises nothing."""
    folder = store.folder()
    if folder is None:
        return cfunc(SIGNATURE)(entry)
    try:
        return compile_into(folder, entry)
    except NumbaError:  # the kernel is to blame, not the disk
        raise
    except Exception as error:  # pickle raises a dozen types at a file cut short, the system its own at a full disk
        store.discard(folder, error)
    try:
        return compile_into(folder, entry)
    except OSError:
        return cfunc(SIGNATURE)(entry)


@cache
def address(module: ModuleType, name: str, dtype: torch.dtype) -> int:
    """The machine code of a kernel."""
    compiled = compile_entry(getattr(module, f"{name}_{str(dtype).removeprefix('torch.')}"))
    compiled_kernels.append(compiled)
    return compiled.address
