"""What the launchers hand to the kernels: records of numbers with names, one after the other in memory.

A launch is a `Header` and, for each direction, the records of its operation. Python builds them by name, `pack` lays
them out, and `lanes.unpack` reads them by the same classes: whole numbers and addresses (0 means absent) as int64, a
`float` as float64. A record within a record lies in its place; Python puts it there packed.
"""

import struct
from functools import cache
from itertools import chain
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
    dC: int  # so many elements behind dB
    group: int  # stride from one group's dB to the next
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


LETTERS = {int: "q", bool: "q", float: "d"}


@cache
def layout(*kinds: type) -> struct.Struct:
    """Records of these kinds one after the other; a record within a record stands there packed."""
    fields = [field for kind in kinds for field in get_type_hints(kind).values()]
    return struct.Struct(
        "".join([LETTERS[field] if field in LETTERS else f"{layout(field).size}s" for field in fields])
    )


def pack(*records: NamedTuple) -> bytes:
    """The records as the kernels read them."""
    return layout(*map(type, records)).pack(*chain.from_iterable(records))


pack_walk = layout(Walk).pack  # (start, row, step), without building a Walk: a launch has a dozen of them
