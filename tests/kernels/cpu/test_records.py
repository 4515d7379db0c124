"""Records: what Python packs under a name, compiled code reads under that name; tasks share out a launch."""

import itertools
import struct
from array import array
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from minivim.kernels.cpu import host, records
from minivim.kernels.cpu.lanes import LANES, unpack
from minivim.kernels.cpu.records import Conv, Header, Norm, Walk, layout, pack
from minivim.kernels.cpu.tasks import next_task, widest
from numba import njit

KINDS = [kind for kind in vars(records).values() if isinstance(kind, type) and hasattr(kind, "_fields")]


def memory(content: bytes) -> tuple[array, int]:
    """The content at an address, and what keeps it alive."""
    kept = array("q", content)
    return kept, kept.buffer_info()[0]


def numbered(kind, numbers):
    """A record that holds another number in each place, as Python has it and as it is packed."""
    values = {
        name: numbered(field, numbers)[0] if issubclass(field, tuple) else field(next(numbers))
        for name, field in kind.__annotations__.items()
    }
    packed = {name: pack(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return kind(**values), kind(**packed)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_compiled_code_reads_every_record_as_it_was_written(kind):
    written, packed = numbered(kind, itertools.count(3))
    kept, address = memory(pack(packed))
    read, behind = njit(lambda address: unpack(address, kind))(address)
    assert read._asdict() == written._asdict()
    assert behind == address + 8 * len(kept)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_fields_go_by_their_names_in_any_order(order):
    fields = [("eps", float), ("x", Walk), ("y", Walk), ("K", int)]
    kind = NamedTuple("kind", [fields[i] for i in order])
    x, y = pack(Walk(5, 6, 7)), pack(Walk(start=-1, row=-2, step=-3))
    _kept, address = memory(pack(Header(*range(8)), kind(K=4, y=y, eps=0.5, x=x)))

    @njit
    def read(address):
        header, place = unpack(address, Header)
        record, _ = unpack(place, kind)
        return header.counter, header.directions, record.eps, record.x.step, record.y.start, record.K

    assert read(address) == (0, 7, 0.5, 7, -1, 4)


def test_a_record_that_is_not_whole_is_an_error():
    x = pack(Walk(0, 0, 0))
    whole = {"K": 4, "x": x, "weight": 0, "bias": 0, "y": x}
    for name in whole:
        with pytest.raises(TypeError, match=f"missing 1 required positional argument: '{name}'"):
            Conv(**{key: value for key, value in whole.items() if key != name})
    with pytest.raises(TypeError, match="'stride'"):
        Conv(**whole, stride=1)
    for name, wrong in (("K", 4.0), ("x", 0), ("bias", None)):
        with pytest.raises(struct.error):
            pack(Conv(**whole | {name: wrong}))
    assert layout(Conv).size == 8 * 9 and layout(Norm, Header).size == 8 * 15


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
    kept, address = memory(pack(header))
    table, widths = np.full((header.tasks, 7), -1), np.zeros(1, dtype=np.int64)
    take_all(address, table, widths)
    assert kept[0] == header.tasks + 1
    seen = np.zeros((batch, -(-E // LANES) * LANES), dtype=int)
    for slab, group, start, stop, width, first, last in table:
        assert (slab, group) in itertools.product(range(header.slabs), range(header.groups))
        assert width == stop - start and start % LANES == 0
        seen[first:last, start:stop] += 1
    assert (seen == 1).all()
    assert len({(slab, group) for slab, group, *_ in table}) == header.tasks
    assert widths[0] == table[:, 4].max()
