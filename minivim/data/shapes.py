"""A set of images that is drawn, not downloaded: ten coloured shapes in noise, 32x32 pixels."""

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

SHAPES = ("disc", "ring", "square", "frame", "triangle", "diamond", "plus", "cross", "rows", "columns")
SIDE = 32


def shape_masks(x: Float[np.ndarray, "M H W"], y: Float[np.ndarray, "M H W"]) -> list[np.ndarray]:
    """Which pixels each shape covers; x and y are the distances from its centre in units of its half-width."""
    right, down, radius = np.abs(x), np.abs(y), np.hypot(x, y)
    box = np.maximum(right, down)
    return [
        radius < 1,
        (radius < 1) & (radius > 0.6),
        box < 0.9,
        (box < 0.9) & (box > 0.5),
        (down < 0.9) & (right < 0.55 * (y + 0.9)),
        right + down < 1.1,
        (np.minimum(right, down) < 0.3) & (box < 1),
        (np.abs(right - down) < 0.35) & (box < 1),
        (box < 0.9) & (np.floor((y + 0.9) / 0.36) % 2 == 0),
        (box < 0.9) & (np.floor((x + 0.9) / 0.36) % 2 == 0),
    ]


def draw_shapes(count: int, seed: int) -> tuple[UInt8[Tensor, "M 3 H W"], Int64[Tensor, " M"]]:
    """`count` images and their labels, always the same ones for one seed; the classes are equally frequent.

    Each shape has a random place, half-width (6 to 11 pixels) and colour, on a background of another brightness,
    under uniform noise of +-40 grey levels.
    """
    random = np.random.RandomState(seed)  # the legacy generator: its stream is frozen for ever
    labels = np.arange(count) % len(SHAPES)
    half = random.uniform(6, 11, (count, 1, 1))
    centre = random.uniform(half, SIDE - half, (2, count, 1, 1))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    masks = np.stack(shape_masks((columns + 0.5 - centre[0]) / half, (rows + 0.5 - centre[1]) / half))
    mask = masks[labels, np.arange(count)][:, None]
    background = random.uniform(0, 110, (count, 3, 1, 1))
    colour = random.uniform(140, 255, (count, 3, 1, 1))
    noise = random.uniform(-40, 40, (count, 3, SIDE, SIDE))
    images = (np.where(mask, colour, background) + noise).clip(0, 255).round().astype(np.uint8)
    return torch.from_numpy(images), torch.from_numpy(labels).long()
