"""Augmentations on whole batches, on the device where the images are.

Every function takes a torch.Generator of the images' device and draws all its random numbers from it, so that a batch
is a function of the generator's seed alone. Images are float (B, 3, H, W); where not said otherwise black is 0.
"""

import hashlib
import math
import random
from functools import cache
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor


def uniform(count: int, low: float | int, high: float | int, generator: Generator) -> Float[Tensor, " B"]:
    """`count` numbers between low and high, on the generator's device."""
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


@cache
def channels(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Float[Tensor, "3 1 1"]:
    """One number a channel, made once a device: a GPU is waited for each time that a list is copied to it."""
    with torch.inference_mode(False):  # whoever asks first, others may differentiate
        return torch.tensor(values, dtype=dtype, device=device)[:, None, None]


def normalise(
    images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "B 3 H W"]:
    """(images - mean) / std channel by channel; bytes are first divided by 255."""
    if images.dtype == torch.uint8:
        images = images.float() / 255
    centre, spread = (channels(x, images.dtype, images.device) for x in (mean, std))
    return (images - centre) / spread


def random_crop(images: Float[Tensor, "B 3 H W"], padding: int, generator: Generator) -> Float[Tensor, "B 3 H W"]:
    """Each image moved by up to `padding` whole pixels each way; black comes in at the border."""
    B, _, H, W = images.shape
    offset = torch.randint(0, 2 * padding + 1, (2, B, 1), generator=generator, device=images.device)
    rows = offset[0] + torch.arange(H, device=images.device)  # (B, H)
    columns = offset[1] + torch.arange(W, device=images.device)
    image = torch.arange(B, device=images.device)[:, None, None]
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)  # channels last, so that one index picks a pixel
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(images: Float[Tensor, "B 3 H W"], probability: float, generator: Generator) -> Float[Tensor, "B 3 H W"]:
    """Each image mirrored left to right with the given probability."""
    chosen = uniform(len(images), 0, 1, generator) < probability
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def random_affine(
    images: Float[Tensor, "B 3 H W"], degrees: float, scale: float, shift: float, generator: Generator
) -> Float[Tensor, "B 3 H W"]:
    """Each image turned by up to +-degrees, sized by 1 +- scale and moved by up to `shift` pixels each way.

    Bilinear; what comes from outside the image is black. Square images.
    """
    B, size = len(images), images.shape[-1]
    angle = uniform(B, -math.radians(degrees), math.radians(degrees), generator)
    factor = 1 / uniform(B, 1 - scale, 1 + scale, generator)
    move = torch.stack([uniform(B, -shift, shift, generator) for _ in range(2)], -1) * (2 / size)
    cos, sin = angle.cos() * factor, angle.sin() * factor
    matrix = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)  # (B, 2, 2)
    grid = F.affine_grid(torch.cat([matrix, move[:, :, None]], -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def colour_jitter(images: Float[Tensor, "B 3 H W"], strength: float, generator: Generator) -> Float[Tensor, "B 3 H W"]:
    """Brightness, contrast and saturation each times a factor of 1 +- strength, one an image; 0..1 stays 0..1."""
    brightness, contrast, saturation = (
        uniform(len(images), 1 - strength, 1 + strength, generator)[:, None, None, None] for _ in range(3)
    )
    images = (images * brightness).clamp(0, 1)
    grey = luminance(images)
    images = torch.lerp(grey.mean((2, 3), keepdim=True), images, contrast).clamp(0, 1)
    return torch.lerp(luminance(images), images, saturation).clamp(0, 1)


def luminance(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 H W"]:
    """The grey value of each pixel (ITU-R BT.601 weights)."""
    weights = channels((0.299, 0.587, 0.114), images.dtype, images.device)
    return (images * weights).sum(1, keepdim=True)


def box_masks(
    share: Float[Tensor, " B"], aspect: Float[Tensor, " B"], H: int, W: int, generator: Generator
) -> Float[Tensor, "B H W"]:
    """One box an image: 1 inside, 0 outside; `share` of the area, clipped at the border, centre anywhere."""
    height, width = H * (share * aspect).sqrt(), W * (share / aspect).sqrt()
    y, x = uniform(len(share), 0, H, generator), uniform(len(share), 0, W, generator)
    rows, columns = torch.arange(H, device=share.device) + 0.5, torch.arange(W, device=share.device) + 0.5
    inside_rows = (rows - y[:, None]).abs() < height[:, None] / 2
    inside_columns = (columns - x[:, None]).abs() < width[:, None] / 2
    return (inside_rows[:, :, None] & inside_columns[:, None, :]).float()


def random_erase(
    images: Float[Tensor, "B 3 H W"], probability: float, generator: Generator
) -> Float[Tensor, "B 3 H W"]:
    """With the given probability a box of 2 % to 33 % of the image becomes 0: the mean of normalised images.

    Random Erasing (1708.04896), aspect 0.3 to 3.3.
    """
    B, _, H, W = images.shape
    chosen = uniform(B, 0, 1, generator) < probability
    aspect = uniform(B, math.log(0.3), math.log(1 / 0.3), generator).exp()
    box = box_masks(uniform(B, 0.02, 1 / 3, generator), aspect, H, W, generator)
    return images * (1 - box * chosen[:, None, None])[:, None]


def one_hot(labels: Int64[Tensor, " B"], num_classes: int, smoothing: float = 0.0) -> Float[Tensor, "B K"]:
    """Targets that sum to 1: 1 - smoothing for the label, the rest spread over all classes (1512.00567, section 7)."""
    classes = torch.arange(num_classes, device=labels.device)  # F.one_hot would wait for the device, to look for errors
    return (labels[:, None] == classes).float() * (1 - smoothing) + smoothing / num_classes


def numbers(generator: Generator) -> random.Random:
    """The standard library's random numbers, seeded by the generator's state: a GPU need not be waited for."""
    state = generator.get_state().numpy().tobytes()
    torch.rand(1, generator=generator, device=generator.device)  # the next call finds another state
    return random.Random(hashlib.blake2b(state).digest())


def beta(alpha: float, generator: Generator) -> float:
    """One number from Beta(alpha, alpha)."""
    return numbers(generator).betavariate(alpha, alpha)


def mixup(
    images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B K"], alpha: float, generator: Generator
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
    """share * image + (1 - share) * another of the batch, targets alike; share from Beta(alpha, alpha) (1710.09412)."""
    share = beta(alpha, generator)
    other = torch.randperm(len(images), generator=generator, device=images.device)
    return torch.lerp(images[other], images, share), torch.lerp(targets[other], targets, share)


def cutmix(
    images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B K"], alpha: float, generator: Generator
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
    """A box of each image comes from another one; targets by the area that was really exchanged (1905.04899)."""
    B, _, H, W = images.shape
    cut = torch.full((B,), 1 - beta(alpha, generator), device=images.device)
    box = box_masks(cut, torch.ones_like(cut), H, W, generator)
    other = torch.randperm(B, generator=generator, device=images.device)
    kept = 1 - box.mean((1, 2))[:, None]
    mixed = torch.where(box[:, None].bool(), images[other], images)
    return mixed, targets * kept + targets[other] * (1 - kept)


@runtime_checkable
class Augmentation(Protocol):
    """How much of each change; 0 leaves one out. A TrainConfig is one."""

    crop: int
    flip: float
    rotate: float
    zoom: float
    shift: float
    jitter: float
    erase: float
    smoothing: float
    mixup: float
    cutmix: float


def augment(
    images: UInt8[Tensor, "B 3 H W"],
    labels: Int64[Tensor, " B"],
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    config: Augmentation,
    generator: Generator,
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
    """A training batch: images moved, coloured, normalised, erased and mixed; targets smoothed and mixed."""
    images = images.float() / 255
    if config.crop:
        images = random_crop(images, config.crop, generator)
    if config.flip:
        images = random_flip(images, config.flip, generator)
    if config.rotate or config.zoom or config.shift:
        images = random_affine(images, config.rotate, config.zoom, config.shift, generator)
    if config.jitter:
        images = colour_jitter(images, config.jitter, generator)
    images = normalise(images, mean, std)
    if config.erase:
        images = random_erase(images, config.erase, generator)
    targets = one_hot(labels, num_classes, config.smoothing)
    # Of the two mixtures a batch gets one; a coin decides when both are on.
    if config.mixup and not (config.cutmix and numbers(generator).random() < 0.5):
        return mixup(images, targets, config.mixup, generator)
    if config.cutmix:
        return cutmix(images, targets, config.cutmix, generator)
    return images, targets
