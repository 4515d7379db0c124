"""What the launchers hand to the kernels: records of numbers with names, one after the other in memory.

A launch is a `Header` and, for each direction, the records of its operation. Python builds them by name, `packed` lays
them out, and `lanes.unpack` reads them by the same classes: whole numbers and addresses (0 means absent) as int64, a
`float` as float64, a record within a record in its place.
"""

import struct
from array import array
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple, get_type_hints


class Header(NamedTuple):
    """How a launch is cut into tasks: slabs of the batch times groups of channels."""

    counter: int  # the next task; threads count it up, so it comes first
    tasks: int
    slabs: int
    groups: int
    batch: int
    L: int
    E: int
    directions: int


class Walk(NamedTuple):
    """A way through an array (rows, steps, channels): the address of its first step, and two strides in elements."""

    start: int
    row: int
    step: int


class Scan(NamedTuple):
    """One direction of a scan, for both passes."""

    N: int  # states, rounded up to a multiple of 4
    states: int  # those that A has
    u: Walk
    delta: Walk
    z: Walk
    out: Walk
    B: Walk
    C: Walk
    A: Walk  # from channel to channel, and from state to state
    D: int
    bias: int
    state: Walk  # (batch, saved states, N, E)
    softplus: bool
    accumulate: bool  # add to what the direction before left in `out` and `dz`
    share: int  # directions that the result is divided by
    fresh: bool  # h, or in the backward pass its gradient, starts at zero


class ScanGradient(NamedTuple):
    """What the backward pass of a direction needs beside its `Scan`."""

    dout: Walk
    du: Walk
    ddelta: Walk
    dz: Walk
    dB: Walk  # of the first group of channels
    dC: Walk
    group: int  # stride from one group's dB and dC to the next
    totals: int  # (slabs, N + 2, E): dA, dD and dbias of each part of the batch
    dh: int


class ScanSums(NamedTuple):
    """What `reduce` adds up for a direction, and where the sums go."""

    N: int
    states: int
    parts: int  # (2, groups, batch, L, N): dB and dC of each group of channels
    dB: int
    dC: int
    totals: int
    dA: int
    dD: int
    dbias: int


class Conv(NamedTuple):
    """The convolution, forward."""

    K: int
    x: Walk
    weight: int  # (E, K)
    bias: int
    y: Walk


class ConvGradient(NamedTuple):
    """The convolution, backward."""

    K: int
    x: Walk
    weight: int
    bias: int
    dy: Walk
    dx: Walk
    sums: int  # (slabs, K + 1, E): dw and dbias of each part of the batch


class Norm(NamedTuple):
    """Add and RMSNorm, forward."""

    update: int
    residual: int
    weight: int
    total: int
    y: int
    scales: int
    eps: float


class NormGradient(NamedTuple):
    """Add and RMSNorm, backward."""

    total: int
    weight: int
    scales: int
    dy: int
    dtotal: int
    dr: int
    sums: int  # (slabs, E): dw of each part of the rows


@cache
def layout(kind: type) -> str:
    """The format of a record, or of one of its fields, in the letters of `struct`."""
    if issubclass(kind, tuple):
        return "".join(map(layout, get_type_hints(kind).values()))
    return "d" if kind is float else "q"


def packed(records: Iterable[NamedTuple]) -> array:
    """The records one after the other, as the kernels read them."""
    layouts, numbers = "", []
    for record in records:
        layouts += layout(type(record))
        for value in record:
            if isinstance(value, tuple):
                numbers += value
            else:
                numbers.append(value)
    return array("q", struct.pack(layouts, *numbers))
