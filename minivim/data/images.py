"""Reading images: any file that Pillow opens becomes a square RGB image of bytes, (3, S, S)."""

import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from minivim.extras import require


def to_rgb(image: Any) -> Any:
    """A Pillow image of any mode (grey, palette, CMYK, with transparency, 16 bit) as 8-bit RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow's own conversion clips these modes at 255; integers are 16-bit samples, floats are taken as 0..255.
        values = np.asarray(image, dtype=np.float64) / (257 if image.mode.startswith("I") else 1)
        image = require("PIL.Image", "train").fromarray(values.clip(0, 255).round().astype(np.uint8))
    return image.convert("RGB")


def read_image(item: str | os.PathLike | dict):
    """An upright RGB Pillow image from a path or from {"bytes": ..., "path": ...}, the record of the datasets library.

    Raises ValueError naming the image when it cannot be read.
    """
    Image, ImageOps = require("PIL.Image", "train"), require("PIL.ImageOps", "train")
    record = item if isinstance(item, dict) else {"bytes": None, "path": item}
    try:
        data = record["bytes"]
        with Image.open(io.BytesIO(data) if data is not None else record["path"]) as image:
            return to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        reason = str(error).replace("cannot identify image file", "not an image file:")
        raise ValueError(
            f"image {str(record.get('path') or 'without a name')!r} could not be read: {reason}"
        ) from error


def fit(image: Any, size: int) -> Any:
    """Resize the shorter side to `size` (bicubic, antialiased), then cut the centre: the evaluation transform."""
    Image = require("PIL.Image", "train")
    width, height = image.size
    if (width, height) == (size, size):
        return image
    scale = size / min(width, height)
    if scale != 1:
        image = image.resize(
            (max(size, round(width * scale)), max(size, round(height * scale))), Image.Resampling.BICUBIC
        )
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_resized_crop(image: Any, size: int, smallest_area: float, generator: torch.Generator):
    """A random box of `smallest_area` to 1 of the image, aspect 3/4 to 4/3, resized to `size` (1409.4842)."""
    Image = require("PIL.Image", "train")
    for _ in range(10):
        area, aspect, x, y = torch.rand(4, generator=generator).tolist()
        area = image.width * image.height * (smallest_area + (1 - smallest_area) * area)
        aspect = math.exp((2 * aspect - 1) * math.log(4 / 3))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            left, top = round(x * (image.width - width)), round(y * (image.height - height))
            box = (left, top, left + width, top + height)
            return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return fit(image, size)


def to_tensor(image: Any) -> UInt8[Tensor, "3 H W"]:
    """An RGB Pillow image as a tensor of bytes."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class LazyImages(Dataset):
    """Images that are decoded when they are asked for: item i is a uint8 tensor (3, img_size, img_size).

    items: paths, or records {"bytes", "path"}. With `crop_scale` < 1 an item is a random resized crop that depends on
    (seed, epoch, i) alone, so that a resumed epoch sees the same crops whatever process decodes them.
    """

    def __init__(self, items: Sequence, img_size: int, *, crop_scale: float = 1.0, seed: int = 0):
        self.items, self.img_size, self.crop_scale, self.seed = items, img_size, crop_scale, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 H W"]:
        image = read_image(self.items[index])
        if self.crop_scale >= 1:
            return to_tensor(fit(image, self.img_size))
        key = f"{self.seed}/{self.epoch}/{index}".encode()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big") % (2**63 - 25))
        return to_tensor(random_resized_crop(image, self.img_size, self.crop_scale, generator))


def decode_all(items: Sequence, img_size: int | None) -> UInt8[Tensor, "M 3 S S"]:
    """Decode every item into one tensor; img_size None keeps the images' own size, which must then be one for all."""
    first = read_image(items[0]).size
    size = img_size or min(first)
    out = torch.empty(len(items), 3, size, size, dtype=torch.uint8)

    def decode(index: int) -> None:
        image = read_image(items[index])
        if img_size is None and image.size != first:
            raise ValueError(
                f"img_size is None but the images differ in size ({first[0]}x{first[1]}, {image.width}x{image.height})"
                "; it must be the side to which all are resized"
            )
        out[index] = to_tensor(fit(image, size))

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
