"""What the CPU operators share: addresses and strides of tensors, the header of a launch."""

import os
from array import array
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple

import torch
from minivim.kernels.cpu.compile import address
from minivim.kernels.cpu.lanes import LANES
from minivim.kernels.cpu.records import Header, pack, pack_walk
from minivim.kernels.cpu.threads import launch
from minivim.kernels.operators import cast
from torch import Tensor

SLABS = 8  # parts of the batch: tasks enough for many cores, few partial sums over the batch
# Channels of one task, which share cache lines and their partial sums of dB and dC; more cores need more tasks.
GROUP = (12 if (os.cpu_count() or 1) <= 4 else 6) * LANES
ABSENT = pack_walk(0, 0, 0)
SMALL = 2**15  # multiplications below which waking a second thread costs more than it brings


def header(batch: int, L: int, E: int, groups: int, directions: int = 1) -> Header:
    """A task is a slab of the batch and a group of channels, whatever the number of threads."""
    slabs = min(batch, SLABS)
    return Header(0, slabs * groups, slabs, groups, batch, L, E, directions)


def groups_of(channels: int) -> int:
    return -(-channels // GROUP)


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype` with neighbouring channels side by side in memory; a copy only where it must be."""
    x = cast(x, dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def walk(x: Tensor | None, reverse: bool) -> bytes:
    """The `Walk` through x (batch, L, channels), packed; from its last step to its first if reverse."""
    if x is None:
        return ABSENT
    start, (row, step, _) = x.data_ptr(), x.stride()
    if reverse:
        return pack_walk(start + (x.shape[1] - 1) * step * x.element_size(), row, -step)
    return pack_walk(start, row, step)


def address_of(x: Tensor | None) -> int:
    """The address of x, 0 for None."""
    return 0 if x is None else x.data_ptr()


def run(
    module: ModuleType, name: str, dtype: torch.dtype, head: Header, records: Iterable[NamedTuple], work: int
) -> None:
    """Hand all tasks to the threads; work counts multiplications."""
    arguments = array("q", pack(head, *records))
    launch(address(module, name, dtype), arguments, 1 if work < SMALL else head.tasks)
