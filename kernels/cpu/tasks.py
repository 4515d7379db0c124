"""How the compiled code divides a launch: tasks that threads take from a counter, and tiles of a task.

A task is a slab of the batch and a group of channels, whatever the number of threads, so that the result does not
depend on it. A tile is a few steps of LANES channels.
"""

from typing import NamedTuple

from minivim.kernels.cpu.lanes import (
    LANES,
    compiled,
    load,
    load_part,
    pointer,
    prefetch,
    store,
    store_part,
    take_ticket,
)


class Task(NamedTuple):
    """Channels from `start` to `stop`, of which the last may lie beyond E; rows of the batch from `first` to `last`."""

    number: int
    slab: int
    group: int
    start: int
    stop: int
    width: int
    first: int
    last: int


class Tile(NamedTuple):
    """`steps` steps from `first` on of row b, LANES channels from `e` on, of which `count` or fewer exist."""

    b: int
    first: int
    steps: int
    e: int
    count: int


@compiled
def next_task(arguments, header):
    """The task that nobody has taken yet; none is left where its number is not below header.tasks."""
    number = take_ticket(arguments)
    slab, group = number // header.groups, number % header.groups
    blocks = (header.E + LANES - 1) // LANES
    start, stop = group * blocks // header.groups * LANES, (group + 1) * blocks // header.groups * LANES
    return Task(
        number=number,
        slab=slab,
        group=group,
        start=start,
        stop=stop,
        width=stop - start,
        first=slab * header.batch // header.slabs,
        last=(slab + 1) * header.batch // header.slabs,
    )


@compiled
def widest(header):
    """The width of the widest task."""
    blocks = (header.E + LANES - 1) // LANES
    return LANES * ((blocks + header.groups - 1) // header.groups)


@compiled
def place_of(walk, tile):
    """Where the tile begins, in elements from walk.start."""
    return tile.b * walk.row + tile.first * walk.step + tile.e


@compiled
def load_tile(walk, tile, ahead, target, dtype):
    """Copy a tile to `target`, and ask for the rows `ahead` steps further on, the next tile's."""
    memory, start = pointer(walk.start, dtype), place_of(walk, tile)
    for i in range(tile.steps):
        place = start + i * walk.step
        store(target, i * LANES, load_part(memory, place, tile.count))
        prefetch(memory, place + ahead * walk.step)


@compiled
def store_tile(walk, tile, source, accumulate, dtype):
    """Copy `source` to a tile, or add it."""
    memory, start = pointer(walk.start, dtype), place_of(walk, tile)
    for i in range(tile.steps):
        place, value = start + i * walk.step, load(source, i * LANES)
        if accumulate:
            value = value + load_part(memory, place, tile.count)
        store_part(memory, place, value, tile.count)
