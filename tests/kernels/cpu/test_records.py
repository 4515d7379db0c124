"""Records: what Python packs under a name, compiled code reads under that name."""

import itertools
import struct
from array import array
from typing import NamedTuple

import pytest

pytest.importorskip("numba", reason="numba is not installed")

from minivim.kernels.cpu import records
from minivim.kernels.cpu.lanes import unpack
from minivim.kernels.cpu.records import Conv, Header, Norm, Walk, layout, pack
from numba import njit

KINDS = [kind for kind in vars(records).values() if isinstance(kind, type) and hasattr(kind, "_fields")]


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
    memory = array("q", pack(packed))
    address, count = memory.buffer_info()
    read, behind = njit(lambda address: unpack(address, kind))(address)
    assert read._asdict() == written._asdict()
    assert behind == address + 8 * count


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)])
def test_fields_go_by_their_names_in_any_order(order):
    fields = [("eps", float), ("x", Walk), ("y", Walk), ("K", int)]
    kind = NamedTuple("kind", [fields[i] for i in order])
    x, y = pack(Walk(5, 6, 7)), pack(Walk(start=-1, row=-2, step=-3))
    memory = array("q", pack(Header(*range(8)), kind(K=4, y=y, eps=0.5, x=x)))

    @njit
    def read(address):
        header, place = unpack(address, Header)
        record, _ = unpack(place, kind)
        return header.counter, header.directions, record.eps, record.x.step, record.y.start, record.K

    assert read(memory.buffer_info()[0]) == (0, 7, 0.5, 7, -1, 4)


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
