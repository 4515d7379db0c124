"""Small training runs, and ways to compare what they leave behind; used by several test modules."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from minivim.data import ImageData, channel_statistics
from minivim.data.images import LazyImages
from minivim.models import checkpoints
from minivim.train.loop import Trainer
from minivim.train.recipes import TrainConfig

TINY = {
    "model": "vim_tiny_patch4_32",
    "embed_dim": 8,
    "depth": 1,
    "patch_size": 16,
    "threads": 1,
}  # 4 patches, one block


def stripes(count: int, seed: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright rows or bright columns in noise: learnt in a few steps."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 3, size, size), generator=g)
    images[labels == 0, :, ::2] += 120
    images[labels == 1, :, :, ::2] += 120
    return images.to(torch.uint8), labels


def small_bundle() -> ImageData:
    """160 training, 40 test and 30 validation images."""
    (images, labels), test, validation = stripes(160, 0), stripes(40, 1), stripes(30, 2)
    return ImageData("stripes", images, labels, *test, ("rows", "columns"), *channel_statistics(images), *validation)


def striped_folder(folder: Path, count: int = 60, size: int = 8) -> Path:
    """Stripes as PNG files, one folder a class: columns, rows."""
    from PIL import Image

    for index, (image, label) in enumerate(zip(*stripes(count, 0, size), strict=True)):
        path = folder / ("rows", "columns")[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def lazily(folder: Path, count: int = 60, item: Callable[[Path], Any] = Path) -> ImageData:
    """The stripes of `small_bundle`, the first `count` as files to be decoded when they are asked for."""
    data = small_bundle()
    striped_folder(folder, count)
    items = [item(path) for path in sorted(folder.rglob("*.png"), key=lambda path: path.name)]
    labels = data.train_labels[:count]
    return replace(
        data, train_images=LazyImages(items, 8), train_labels=labels, test_images=LazyImages(items, 8),
        test_labels=labels, val_images=None, val_labels=None,
    )  # fmt: skip


def small(tmp_path, **changes) -> TrainConfig:
    settings = {
        "data": "digits",
        "model": "vim_nano_patch2_8",
        "embed_dim": 16,
        "depth": 1,
        "patch_size": 4,
        "epochs": 3,
        "batch_size": 20,
        "out": str(tmp_path / "run"),
        "threads": 1,
        "progress": False,
        "rotate": 0.0,
        "zoom": 0.0,
        "shift": 0.0,
    }
    return TrainConfig(**{**settings, **changes})


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    return checkpoints.read_file(out / "last.safetensors")[0]


def records_of(out: Path) -> list[dict]:
    """metrics.jsonl without the times, which differ from run to run."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def same(a, b) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def cut_after(monkeypatch, steps: int) -> None:
    """Let `train_step` raise InterruptedError instead of doing step number `steps`."""
    original = Trainer.train_step

    def step(self, images, labels):
        if self.step == steps:
            raise InterruptedError
        original(self, images, labels)

    monkeypatch.setattr(Trainer, "train_step", step)
