"""Tasks: threads that take them share out every row of the batch and every channel."""

import itertools
from array import array

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from minivim.kernels.cpu import host
from minivim.kernels.cpu.lanes import LANES, unpack
from minivim.kernels.cpu.records import Header, pack
from minivim.kernels.cpu.tasks import next_task, widest
from numba import njit


@njit
def take_all(address, table, widths):
    """The tasks of a launch in the order in which they are taken, until none is left."""
    header, _ = unpack(address, Header)
    widths[0] = widest(header)
    task = next_task(address, header)
    while task.number < header.tasks:
        table[task.number] = (task.slab, task.group, task.start, task.stop, task.width, task.first, task.last)
        task = next_task(address, header)


@pytest.mark.parametrize("batch", [1, 5, 8, 21])
@pytest.mark.parametrize("E", [1, LANES, 12 * LANES + 1, 31 * LANES])
def test_tasks_cover_each_row_and_channel_once(batch, E):
    header = host.header(batch, 7, E, host.groups_of(E))
    memory = array("q", pack(header))
    table, widths = np.full((header.tasks, 7), -1), np.zeros(1, dtype=np.int64)
    take_all(memory.buffer_info()[0], table, widths)
    assert memory[0] == header.tasks + 1
    seen = np.zeros((batch, -(-E // LANES) * LANES), dtype=int)
    for slab, group, start, stop, width, first, last in table:
        assert (slab, group) in itertools.product(range(header.slabs), range(header.groups))
        assert width == stop - start and start % LANES == 0
        seen[first:last, start:stop] += 1
    assert (seen == 1).all()
    assert len({(slab, group) for slab, group, *_ in table}) == header.tasks
    assert widths[0] == table[:, 4].max()
