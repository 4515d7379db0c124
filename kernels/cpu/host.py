"""What the CPU operators share: addresses and strides of tensors, the header of a launch."""

import os
from array import array
from types import ModuleType

import torch
from minivim.kernels.cpu.compile import address
from minivim.kernels.cpu.lanes import LANES
from minivim.kernels.cpu.threads import launch
from torch import Tensor

SLABS = 8  # parts of the batch: tasks enough for many cores, few partial sums over the batch
# Channels of one task, which share cache lines and their partial sums of dB and dC; more cores need more tasks.
GROUP = (12 if (os.cpu_count() or 1) <= 4 else 6) * LANES
SMALL = 2**15  # multiplications below which waking a second thread costs more than it brings


def partition(batch: int, channels: int) -> tuple[int, int]:
    """(slabs, groups): a task is a slab of the batch and a group of channels, whatever the number of threads."""
    return min(batch, SLABS), -(-channels // GROUP)


def run(module: ModuleType, name: str, dtype: torch.dtype, sizes: list[int], fields: list[int], work: int) -> None:
    """Hand all tasks to the threads; sizes begin with batch, L, E; work counts multiplications."""
    slabs, groups = partition(sizes[0], sizes[2])
    arguments = array("q", [0, slabs * groups, slabs, groups, *sizes, *fields])
    launch(address(module, name, dtype), arguments, 1 if work < SMALL else slabs * groups)


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype` with neighbouring channels side by side in memory; a copy only where it must be."""
    if x.dtype != dtype:
        x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def walk(x: Tensor | None, reverse: bool) -> tuple[int, int, int]:
    """Address of the first step, and the strides from one row of the batch and from one step to the next."""
    if x is None:
        return 0, 0, 0
    start, (batch, time, _) = x.data_ptr(), x.stride()
    return (start + (x.shape[1] - 1) * time * x.element_size(), batch, -time) if reverse else (start, batch, time)


def pointer(x: Tensor | None) -> int:
    """The address of x, 0 for None."""
    return 0 if x is None else x.data_ptr()
