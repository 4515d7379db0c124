"""torch.compile for the model in training: what it needs on this machine, and how it is asked for."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

CXX = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
# What writes machine code: the variable that names a compiler, and what PyTorch and Triton try without it.
COMPILERS = {"cpu": ("CXX", (CXX,)), "cuda": ("CC", ("gcc", "clang"))}


def lacking(device: torch.device) -> str | None:
    """What torch.compile needs for this device and does not find; None if nothing."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "triton, which is not installed"
    variable, usual = COMPILERS.get(device.type, COMPILERS["cpu"])
    commands = (os.environ[variable],) if variable in os.environ else usual
    if not any(map(shutil.which, commands)):
        return f"a compiler: {' or '.join(commands)} is not found; install it, or name yours in the variable {variable}"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform == "linux" and not header.exists():  # elsewhere they come with Python
        return f"Python's headers: {header} is not found; install python3-dev or its like"
    try:
        torch.compile(nn.Identity())
    except RuntimeError as error:  # also for a Python that is too new
        return f"what PyTorch needs ({error})"
    return None


def check_compiler(device: torch.device) -> None:
    """Raise a ValueError where torch.compile cannot work, before anybody waits for it."""
    missing = lacking(device)
    if missing:
        raise ValueError(f"compile is True; it must be False on this machine, which lacks {missing}")


def compiled(model: nn.Module) -> nn.Module:
    """A callable that runs `model` compiled; the model itself, its names and its evaluation stay as they were.

    One graph for each size of batch, of which `accumulate` makes two at most; a graph in pieces is an error.
    """
    torch.compiler.reset()  # PyTorch counts recompilations by function: those of a former run's model are not ours
    return torch.compile(model, fullgraph=True, dynamic=False)  # type: ignore[return-value]  # of a module it is one
