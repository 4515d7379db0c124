"""Files of torch.save, read without running what may be pickled in them.

torch.load(weights_only=True) makes tensors, numbers, strings and containers of these, and refuses every other class.
Training scripts store their command line and their best score beside the weights, so a few more names are let through,
each as a class or function that can do no harm: a namespace, paths that touch no disk, and NumPy's numbers.
"""

import re
import warnings
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch

from minivim.checks import printable


class NumpyType:
    """Stands for numpy.dtype: keeps the code and the byte order."""

    def __init__(self, code: object, *flags: object):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


def numpy_number(kind: NumpyType, data: bytes) -> object:
    """Stands for NumPy's scalars: the Python number, flag or string of these bytes; objects are refused by NumPy."""
    return np.frombuffer(data, np.dtype(f"{kind.order}{kind.code}"))[0].item()


# What a pickle may name besides torch's own list, and what stands for it. Python 3.13 calls pathlib pathlib._local.
HARMLESS: list[Callable | tuple[Callable, str]] = [
    (Namespace, "argparse.Namespace"),
    (NumpyType, "numpy.dtype"),
    (numpy_number, "numpy.core.multiarray.scalar"),
    (numpy_number, "numpy._core.multiarray.scalar"),
]
for room in ("pathlib", "pathlib._local"):
    for flavour in ("Posix", "PurePosix"):
        HARMLESS.append((PurePosixPath, f"{room}.{flavour}Path"))
    for flavour in ("Windows", "PureWindows"):
        HARMLESS.append((PureWindowsPath, f"{room}.{flavour}Path"))


def read_pickled(path: Path) -> object:
    """What torch.save has written, on the CPU. Raises ValueError for all but tensors, plain values and HARMLESS."""
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other formats, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types, none of which says which file
        raise ValueError(
            f"path is {str(path)!r}; it must be a checkpoint that torch.load(weights_only=True) reads ({reason(error)})"
        ) from None  # torch's own message advises to run the code


def reason(error: Exception) -> str:
    """Why a file was refused: the class that it names, or the kind of error."""
    found = re.search(r"GLOBAL (\S{1,80})", str(error))
    return f"it holds {printable(found[1])}, which is no tensor or plain value" if found else type(error).__name__
