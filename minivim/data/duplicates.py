"""Images that are in two parts of a set at once: a score on them says nothing about new ones, so they are counted."""

import hashlib
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from minivim.checks import is_first_process, notify
from minivim.data.notices import quoted
from minivim.data.parts import WORDS, Rows, spaced
from minivim.data.tables import ImageColumn

# Of sets too large for memory: how many files of a part are looked for, among how many training files of their sizes,
# and by how many bytes from the middle of each, before two are compared as a whole.
LOOKED_FOR, LOOKED_AT, PIECE = 1024, 16384, 4096


def say_equal_images(name: str, images: Mapping[str, UInt8[Tensor, "_ 3 H W"]]) -> None:
    """Notice of images in memory that are equal, pixel for pixel, in the training images and in another part."""
    if not is_first_process():  # nobody would hear the others
        return
    digests = {part: [_digest(image) for image in content] for part, content in images.items()}
    trained = set(digests.pop("train"))
    for part, others in digests.items():
        if count := sum(digest in trained for digest in others):
            notify(f"data is {quoted(name)}: {count} of {len(others)} {WORDS[part]} images are also training images")


def _digest(image: UInt8[Tensor, "3 H W"]) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()


def say_equal_files(name: str, items: Mapping[str, Sequence]) -> None:
    """Notice of undecoded images that are equal, byte for byte, in the training images and in another part.

    Some of each part, evenly spaced, are looked for, and what is read of a set is bounded: a few pages of
    LOOKED_FOR + LOOKED_AT files, and all of those that are equal.
    """
    if not is_first_process():  # nobody would hear the others
        return
    train, trained = items["train"], sizes(items["train"])
    for part, others in items.items():
        rows = spaced(len(others), LOOKED_FOR)
        if part != "train" and (count := _found_again(train, trained, others, rows)):
            notify(
                f"data is {quoted(name)}: of {len(rows)} {WORDS[part]} images that were looked for, at least {count} "
                "are also training images, byte for byte"
            )


def _found_again(train: Sequence, trained: Int64[np.ndarray, " M"], others: Sequence, rows: range) -> int:
    """How many of these rows of the others are among the training items, whose sizes are known."""
    wanted: dict[tuple[int, bytes], list[int]] = {}
    for row in rows:
        wanted.setdefault(_mark(encoded(others, row)), []).append(row)
    wanted.pop((0, b""), None)  # what cannot be read now is named when it is decoded
    candidates = np.flatnonzero(np.isin(trained, [size for size, _ in wanted]))
    found: set[int] = set()
    for candidate in candidates[:: spaced(len(candidates), LOOKED_AT).step].tolist():
        data = encoded(train, candidate)
        found |= {row for row in wanted.get(_mark(data), ()) if bytes(encoded(others, row)) == bytes(data)}
    return len(found)


def _mark(data: memoryview) -> tuple[int, bytes]:
    """What is compared first: the length, and some of what is in the middle."""
    return len(data), bytes(data[len(data) // 2 :][:PIECE])


def encoded(items: Sequence, row: int) -> memoryview:
    """The bytes of an undecoded image; a file's are read as far as they are looked at. Empty if there are none."""
    if isinstance(items, Rows):
        return encoded(items.items, items.rows[row])
    if isinstance(items, ImageColumn) and (data := items.encoded(row)):
        return data
    item: Any = items[row]
    try:
        with open(item["path"] if isinstance(item, dict) else item, "rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):  # gone; empty
        return memoryview(b"")


def sizes(items: Sequence) -> Int64[np.ndarray, " M"]:
    """The number of bytes of each undecoded image, 0 for what is not there; nothing is read."""
    if isinstance(items, Rows):
        return sizes(items.items)[items.rows]
    if isinstance(items, ImageColumn):
        return np.array([len(encoded(items, row)) for row in range(len(items))], dtype=np.int64)
    return np.array([_size(path) for path in items], dtype=np.int64)


def _size(path: str | os.PathLike) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
