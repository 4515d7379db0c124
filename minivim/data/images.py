"""Reading images: any file that Pillow opens becomes an RGB image of bytes, (3, H, W), of the size asked for."""

import io
import math
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minivim.data.notices import quoted, reason_of
from minivim.extras import require

WHOLE = 2**26  # pixels; a picture that is larger once resized is never made whole


def white_of(largest: float) -> int:
    """The value that is white in an image of floats or of more than 8 bits: the smallest usual one it does not exceed.

    1, 255, 4095 (12 bits) or 65535, else the largest value itself. Files do not say: 16 bits often hold 12 or 8.
    """
    return next((white for white in (1, 255, 4095, 65535) if largest <= white), math.ceil(largest))


def to_rgb(image: Any) -> Any:
    """A Pillow image of any mode (grey, palette, CMYK, with transparency, 16 bit, floats) as 8-bit RGB.

    Raises ValueError for floats that are negative or not finite: they are no brightness.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)  # Pillow's own conversion clips these modes at 255
        if not np.isfinite(values).all():
            raise ValueError("it holds values that are not finite")
        white = white_of(values.max().item())
        if values.min() < -0.01 * white:
            raise ValueError(f"its values are from {values.min()} to {values.max()}; no brightness is negative")
        image = require("PIL.Image", "train").fromarray((values * (255 / white)).clip(0, 255).round().astype(np.uint8))
    return image.convert("RGB")


def read_image(item: str | os.PathLike | dict):
    """An upright RGB Pillow image from a path or from {"bytes": ..., "path": ...}, the record of the datasets library.

    Raises ValueError naming the image when it cannot be read.
    """
    Image, ImageOps = require("PIL.Image", "train"), require("PIL.ImageOps", "train")
    record: dict = item if isinstance(item, dict) else {"bytes": None, "path": item}
    try:
        data = record["bytes"]
        with Image.open(io.BytesIO(data) if data is not None else record["path"]) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        reason = "it is no image" if isinstance(error, Image.UnidentifiedImageError) else reason_of(error)
        name = quoted(record.get("path") or "without a name")
        raise ValueError(f"image {name} could not be read: {reason}") from error


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size that is one number or both."""
    return size if isinstance(size, tuple) else (size, size)


def placement(
    shape: tuple[int, int], size: int | tuple[int, int], crop: float = 1.0
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The evaluation transform in numbers: what a picture of `shape` is resized to, where the crop of `size` begins.

    All are (height, width) in pixels. The picture, its aspect kept, just covers size / crop; the centre is cut out.
    Rounded as torchvision's Resize and CenterCrop do.
    """
    covered = [max(side, math.floor(side / crop)) for side in sides(size)]
    # The side that needs the larger scale gets it exactly; whole numbers, so that the other one covers too.
    tall = covered[0] * shape[1] >= covered[1] * shape[0]
    (height, width), (rows, columns) = shape, covered
    resized = (rows, rows * width // height) if tall else (columns * height // width, columns)
    start = [round((whole - side) / 2) for whole, side in zip(resized, sides(size), strict=True)]
    return resized, (start[0], start[1])


def fit(image: Any, size: int | tuple[int, int], crop: float = 1.0) -> Any:
    """Resize to cover size / crop (bicubic, antialiased), then cut out the centre: the evaluation transform.

    size: one side, or (height, width), in pixels. An image that is right already is returned as it is.
    """
    Image = require("PIL.Image", "train")
    (height, width), (top, left) = placement((image.height, image.width), size, crop)
    rows, columns = sides(size)
    if (image.height, image.width) == (height, width) == (rows, columns):
        return image
    if height * width <= WHOLE:
        return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + columns, top + rows))
    # Only the centre is computed: all of an image of 60000x1 pixels, resized, would take gigabytes.
    down, across = image.height / height, image.width / width
    box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
    return image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)


def fit_tensor(
    images: UInt8[Tensor, "M 3 H W"], size: int | tuple[int, int], crop: float = 1.0
) -> UInt8[Tensor, "M 3 h w"]:
    """`fit` for images that are a tensor already."""
    (height, width), (top, left) = placement((images.shape[2], images.shape[3]), size, crop)
    if images.shape[2:] != (height, width):
        resized = torch.nn.functional.interpolate(images.float(), size=(height, width), mode="bicubic", antialias=True)
        images = resized.round().clamp(0, 255).to(torch.uint8)
    rows, columns = sides(size)
    return images[:, :, top : top + rows, left : left + columns]


def random_resized_crop(image: Any, size: int | tuple[int, int], smallest_area: float, generator: random.Random):
    """A random box of `smallest_area` to 1 of the image, aspect 3/4 to 4/3, resized to `size` (1409.4842)."""
    Image = require("PIL.Image", "train")
    rows, columns = sides(size)
    for _ in range(10):
        area, aspect, x, y = (generator.random() for _ in range(4))
        area = image.width * image.height * (smallest_area + (1 - smallest_area) * area)
        aspect = math.exp((2 * aspect - 1) * math.log(4 / 3))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = round(x * (image.width - width)), round(y * (image.height - height))
            box = (left, top, left + width, top + height)
            return image.resize((columns, rows), Image.Resampling.BICUBIC, box=box)
    return fit(image, size)


def to_tensor(image: Any) -> UInt8[Tensor, "3 H W"]:
    """An RGB Pillow image as a tensor of bytes."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class LazyImages(Dataset):
    """Images that are decoded when they are asked for: item i is a uint8 tensor (3, img_size, img_size).

    items: paths, or records {"bytes", "path"}; img_size may be (height, width), crop is that of `fit`.
    With `crop_scale` < 1 an item is a random resized crop that depends on (seed, epoch, i) alone, so that a resumed
    epoch sees the same crops whatever process decodes them.
    """

    def __init__(
        self,
        items: Sequence,
        img_size: int | tuple[int, int],
        *,
        crop: float = 1.0,
        crop_scale: float = 1.0,
        seed: int = 0,
    ):
        self.items, self.img_size, self.crop, self.crop_scale, self.seed = items, img_size, crop, crop_scale, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        image = read_image(self.items[index])
        if self.crop_scale >= 1:
            return to_tensor(fit(image, self.img_size, self.crop))
        # Python's generator, which makes its whole state from the text; torch's takes 32 bits of a seed.
        generator = random.Random(f"{self.seed}/{self.epoch}/{index}")
        return to_tensor(random_resized_crop(image, self.img_size, self.crop_scale, generator))


def decode_all(items: Sequence, img_size: int | tuple[int, int] | None, crop: float = 1.0) -> UInt8[Tensor, "M 3 H W"]:
    """Decode every item into one tensor; img_size None keeps the images' own size, which must then be one for all."""
    first = read_image(items[0]).size
    size = img_size or min(first)
    out = torch.empty(len(items), 3, *sides(size), dtype=torch.uint8)

    def decode(index: int) -> None:
        image = read_image(items[index])
        if img_size is None and image.size != first:
            raise ValueError(
                f"img_size is None but the images differ in size ({first[0]}x{first[1]}, {image.width}x{image.height})"
                "; it must be the side to which all are resized"
            )
        out[index] = to_tensor(fit(image, size, crop))

    # Small images spend their time in Python, where threads only wait for each other: twice as slow as one alone.
    threads = min(8, os.cpu_count() or 1) if min(first) >= 128 else 1
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for start in range(0, len(items), 1024):  # in pieces, so that an error ends the work soon
            list(pool.map(decode, range(start, min(start + 1024, len(items)))))
    return out


def fetch(
    images: UInt8[Tensor, "M 3 H W"] | Dataset, batches: Sequence[Int64[Tensor, " _"]], workers: int = 0
) -> Iterator[Tensor]:
    """The images, uint8 (B, 3, H, W), of each batch of indices; `workers` processes decode those not in memory."""
    if isinstance(images, Tensor):
        return (images[rows] for rows in batches)
    return iter(DataLoader(images, batch_sampler=[rows.tolist() for rows in batches], num_workers=workers))


@cache
def _suffixes() -> frozenset[str]:
    image = require("PIL.Image", "train")
    return frozenset(suffix for suffix, name in image.registered_extensions().items() if name in image.OPEN)


def is_image_name(path: str | os.PathLike) -> bool:
    """Whether a file's suffix is one that Pillow can read."""
    return os.path.splitext(path)[1].lower() in _suffixes()


def is_image(path: str | os.PathLike) -> bool:
    """Whether a file is an image, by its name or, where that says nothing, by its first bytes."""
    image = require("PIL.Image", "train")
    if is_image_name(path):
        return True
    try:
        with image.open(path):
            return True
    except Exception:  # it is not there, or no image; a damaged one makes Pillow raise almost anything
        return False
