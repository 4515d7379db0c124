"""What tells one set of images from another: stored with a run, and compared before it goes on."""

import hashlib
from itertools import zip_longest

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from minivim.data import ImageData
from minivim.data.parts import spaced

IN_MEMORY, DECODED = 4096, 64  # images looked at in a part of a set, evenly spaced


def fingerprint(data: ImageData) -> dict:
    """Classes, and of each part the number of images, a hash of all labels in their order, and one of some images.

    The place of the files is not in it: a set that was moved is the same set.
    """
    found: dict = {"classes": list(data.classes)}
    for part in ("train", "val", "test"):
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        if labels is None:
            continue
        found[f"number of {part} images"] = len(labels)
        found[f"{part} labels"] = hash_of([labels])
        found[f"{part} images"] = hash_of(sample(images))
    return found


def sample(images: UInt8[Tensor, "M 3 H W"] | Dataset) -> list[UInt8[Tensor, "3 H W"]]:
    """Some of the images, from the first to the last."""
    most = IN_MEMORY if isinstance(images, Tensor) else DECODED
    count = len(images)  # type: ignore[arg-type]  # a Dataset may have no length; ours have
    return [images[row] for row in spaced(count, most)]


def hash_of(tensors: list[UInt8[Tensor, "..."] | Int64[Tensor, " _"]]) -> str:
    """A hash of the values and shapes."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def difference(now: dict, then: dict) -> str | None:
    """The first thing that is not as it was, in words; None if all is."""
    changed = next((name for name in now | then if now.get(name) != then.get(name)), None)
    if changed == "classes":
        pairs = zip_longest(now[changed], then.get(changed, ()))
        return next(f"class {i} is {a!r} instead of {b!r}" for i, (a, b) in enumerate(pairs) if a != b)
    if changed and changed.startswith("number of"):
        return f"{changed} is {now.get(changed, 0)} instead of {then.get(changed, 0)}"
    return changed and f"{changed} are other ones or in another order"
