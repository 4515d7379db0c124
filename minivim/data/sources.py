"""One loader for every set of images: embedded digits, synthetic shapes, the hub, folders.

`load_data(source)` returns an ImageData: bytes in memory, (M, 3, H, W) and labels (M,), so that a training loop draws a
batch by indexing. Sets too large for memory (ImageNet) come as LazyImages, decoded by the workers of a DataLoader.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from minivim.checks import LARGEST_SIDE
from minivim.data.duplicates import say_equal_files, say_equal_images
from minivim.data.folders import read_folder
from minivim.data.hub import HUB_NAMES, read_hub
from minivim.data.images import LazyImages, decode_all, fit_tensor, read_image, sides
from minivim.data.notices import quoted
from minivim.data.parts import (
    WORDS,
    Part,
    only_classes,
    wanted_classes,
    with_less_training,
    with_test,
    with_validation,
)
from minivim.data.shapes import SHAPES, draw_shapes
from minivim.data.tables import Columns
from minivim.extras import require
from minivim.preparation import IMAGENET_MEAN, IMAGENET_STD

IN_MEMORY_BYTES = 4 * 2**30  # a larger set is decoded lazily


@dataclass(frozen=True)
class ImageData:
    """A set of labelled images, split into training, test and, where there are any, validation images.

    Images are uint8 (M, 3, H, W), or LazyImages for sets that do not fit in memory. mean and std are those of the
    training images' channels, on the scale where white is 1. val_images and val_labels are both None or both given.
    """

    name: str
    train_images: UInt8[Tensor, "M 3 H W"] | LazyImages
    train_labels: Int64[Tensor, " M"]
    test_images: UInt8[Tensor, "K 3 H W"] | LazyImages
    test_labels: Int64[Tensor, " K"]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    val_images: UInt8[Tensor, "V 3 H W"] | LazyImages | None = None
    val_labels: Int64[Tensor, " V"] | None = None

    @property
    def img_size(self) -> int:
        """The side of the images, in pixels."""
        images = self.train_images
        return sides(images.img_size)[1] if isinstance(images, LazyImages) else images.shape[-1]


def load_data(
    source: str | os.PathLike,
    *,
    img_size: int | tuple[int, int] | None = None,
    crop: float = 1.0,
    val_share: float = 0.0,
    train_share: float = 1.0,
    classes: int | str | os.PathLike | None = None,
    in_memory: bool | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ImageData:
    """Load a set of images.

    source: "digits" (embedded), "shapes" (drawn), "cifar10", "cifar100", "imagenet", "OWNER/NAME" or
    "OWNER/NAME:CONFIG" on the Hugging Face hub, or a folder: parquet files with their split (train, test, validation)
    in their names or folders, or one sub-folder a class, below train/ and test/ or with a fixed split of 80 to 20.
    img_size: the side of the images in pixels, or (height, width); None keeps their own size. The picture is resized
    to cover img_size / crop, then its centre is cut out.
    val_share: the share of the training images of each class, from 0 to 0.9, that becomes the validation part; a set
    with a validation split beside its test split has its own. The cut is the same on every machine.
    train_share: the share of the training images of each class, from 0.0001 to 1, one image at least, that is kept,
    before a validation part is cut off it; a smaller share is a part of a larger one, on every machine.
    classes: only some classes: the first N, or a text file that names one a line and so gives their order.
    in_memory: whether files are decoded at once, into a tensor, or each when it is asked for; None: at once if all take
    4 GiB at most.
    image_column, label_column: which columns of a table to read; None: the only ones of their kind.
    Raises ValueError for a set that cannot be used, FileNotFoundError for a missing folder, ConnectionError when the
    hub cannot be reached and the set is not in its cache. Warns of what is left out.
    """
    if img_size is not None and not all(1 <= side <= LARGEST_SIDE for side in sides(img_size)):
        raise ValueError(f"img_size is {img_size}; it must be from 1 to {LARGEST_SIDE} pixels")
    if not 0 <= val_share <= 0.9:
        raise ValueError(f"val_share is {val_share}; it must be from 0 to 0.9")
    if not 0.0001 <= train_share <= 1:
        raise ValueError(f"train_share is {train_share}; it must be from 0.0001 to 1")
    name = os.fspath(source)
    parts, names = _read(name, Columns(image_column, label_column))
    parts = with_test(parts)
    for part, (_, labels) in parts.items():
        if len(labels) == 0:
            raise ValueError(f"data is {quoted(name)} with no {WORDS[part]} images; it must have at least one")
    if classes is not None:
        numbers = wanted_classes(classes, names)
        parts = {part: only_classes(content, numbers, len(names)) for part, content in parts.items()}
        names = [names[number] for number in numbers]
    parts = with_validation(with_less_training(parts, train_share), val_share)
    return _bundle(name, parts, tuple(names), img_size, crop, in_memory)


def _read(name: str, columns: Columns) -> tuple[dict[str, Part], Sequence[str]]:
    """The parts of a set as it has them, and its classes."""
    if name in ("digits", "shapes") and (columns.image or columns.label):
        raise ValueError(f"data is {name!r}, which has no columns; image_column and label_column must be None")
    if name == "digits":
        return _digits()
    if name == "shapes":
        parts = {"train": Part(*draw_shapes(4000, seed=0)), "test": Part(*draw_shapes(1000, seed=1))}
        return parts, SHAPES
    if Path(name).is_dir():
        return read_folder(Path(name), columns)
    if name in HUB_NAMES or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return read_hub(name, columns)
    known = ", ".join(["digits", "shapes", *HUB_NAMES])
    raise FileNotFoundError(f"data is {quoted(name)}; it must be one of {known}, OWNER/NAME on the hub, or a folder")


def _bundle(
    name: str,
    parts: dict[str, Part],
    classes: tuple[str, ...],
    img_size: int | tuple[int, int] | None,
    crop: float,
    in_memory: bool | None,
) -> ImageData:
    """Decode the images if memory allows it or it is wanted, and measure the mean and the standard deviation."""
    train = parts["train"]
    if len(train.labels.unique()) < 2:
        raise ValueError(
            f"data is {quoted(name)} with one class only ({quoted(classes[train.labels[0]])}); it must have two or more"
        )
    first = train.items[0]
    size = img_size or (first.shape[-1] if isinstance(first, Tensor) else min(read_image(first).size))
    bytes_of_all = 3 * math.prod(sides(size)) * sum(len(part.labels) for part in parts.values())
    images: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    at_once = bytes_of_all <= IN_MEMORY_BYTES if in_memory is None else in_memory
    if not isinstance(first, Tensor) and not at_once:
        undecoded: dict[str, Any] = {part: content.items for part, content in parts.items()}
        images = {part: LazyImages(items, size, crop=crop) for part, items in undecoded.items()}
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        say_equal_files(name, undecoded)
    else:
        # The others have the side of the training images, whose own size counts where none is given.
        images = {
            part: _as_bytes(content.items, img_size if part == "train" else size, crop)
            for part, content in parts.items()
        }
        mean, std = channel_statistics(images["train"])
        say_equal_images(name, images)
    labels = {part: content.labels for part, content in parts.items()}
    return ImageData(
        name, images["train"], labels["train"], images["test"], labels["test"], classes, mean, std,
        images.get("val"), labels.get("val"),
    )  # fmt: skip


def _as_bytes(items, img_size: int | tuple[int, int] | None, crop: float) -> UInt8[Tensor, "M 3 H W"]:
    """Decoded images; those that are a tensor already are resized when another size is asked for."""
    if not isinstance(items, Tensor):
        return decode_all(items, img_size, crop)
    return items if img_size is None else fit_tensor(items, img_size, crop)


def channel_statistics(images: UInt8[Tensor, "M 3 H W"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the scale 0..1, exactly, from the counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append(max((share * (values - mean) ** 2).sum().sqrt().item(), 1e-6))
    return tuple(means), tuple(stds)


def _digits() -> tuple[dict[str, Part], list[str]]:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI optical digits), greys 0..16 spread to 0..255."""
    digits = require("sklearn.datasets", "train").load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    images = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    return {"train": Part(images, torch.from_numpy(digits.target).long())}, [str(name) for name in digits.target_names]
