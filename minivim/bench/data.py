"""`minivim bench data`: how fast images are decoded, cropped and augmented, beside how fast a model trains on them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivim.bench import measure
from minivim.bench.report import Report, summarise
from minivim.bench.scan import check_run, collect
from minivim.checks import MOST_WORKERS, check_whole, shown
from minivim.data import load_data
from minivim.data.images import LazyImages, fetch
from minivim.processes import Team, use_threads
from minivim.train.loop import Trainer
from minivim.train.recipes import TrainConfig, resolve


@dataclass(frozen=True)
class DataBench:
    """Time images on their way from files to the model, for each number of workers, beside a training step."""

    data: str
    """A folder of image files, as of minivim train, or a set on the hub."""
    workers: tuple[int, ...] = ()
    """Processes that decode; may be given several times (default: 0, the process that trains decodes, then 1 and 2)."""
    model: str = "vim_tiny_patch16_224"
    """The model that trains, by the preset imagenet, which also says how images are cropped and augmented."""
    img_size: int = 224
    """The image's side in pixels."""
    batch_size: int = 32
    """Images in a batch."""
    rounds: int = 5
    """Interleaved rounds on a quiet machine."""
    threads: int | None = None
    """CPU threads of the process that trains (default: torch's own choice)."""
    device: str = "cpu"
    """cpu or cuda: where images are augmented and the model trains; decoding is the CPU's work."""
    out: Path = Path("bench_data")
    """OUT.json and OUT.png are written."""

    def check(self) -> None:
        """Raise ValueError, naming the field, for a value that cannot be."""
        check_run(self.device, self.threads, self.rounds, self.out)
        for count in self.workers:
            check_whole("workers", count, minimum=0, maximum=MOST_WORKERS)

    def trainer(self) -> Trainer:
        """A run that has not begun, on images that are decoded when they are asked for."""
        settings = {name: getattr(self, name) for name in ("data", "model", "img_size", "batch_size", "device")}
        config = resolve(TrainConfig(preset="imagenet", progress=False, **settings))
        data = load_data(self.data, img_size=self.img_size, in_memory=False)
        if not isinstance(data.train_images, LazyImages):
            raise ValueError(f"data is {shown(self.data)}, whose images are drawn; they must be files, to be decoded")
        return Trainer(config, data, Team(0, 1, torch.device(self.device)))


def batches(trainer: Trainer, workers: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """That many batches of training images out of a hat, decoded and cropped by so many processes, and their labels."""
    size: Any = trainer.config.batch_size  # resolved: not None
    rows = torch.randint(len(trainer.images), (count, size)).unbind()
    return zip(fetch(trainer.images, rows, workers), (trainer.data.train_labels[batch] for batch in rows), strict=True)


def pipeline_sampler(trainer: Trainer, workers: int) -> Callable[[], float]:
    """A timer of a batch from files to augmented images, once as many batches are waiting as the workers keep ready."""
    ahead, device = max(1, 2 * workers), trainer.team.device
    generator = torch.Generator(device)

    def sample() -> float:
        stream = batches(trainer, workers, 4 * ahead)
        for _ in range(ahead):
            next(stream)
        start = time.perf_counter()
        for images, labels in stream:
            augmented, _ = trainer.task.prepare(images.to(device), labels.to(device), generator)
        augmented.cpu()  # waits for a GPU
        return (time.perf_counter() - start) / (3 * ahead)

    return sample


def training_sampler(trainer: Trainer) -> Callable[[], float]:
    """A timer of a training step on a batch that is decoded already; augmentation is a part of it."""
    [batch] = batches(trainer, 0, 1)

    def sample() -> float:
        start = time.perf_counter()
        trainer.train_step(*batch)
        trainer.look()  # waits for a GPU
        return time.perf_counter() - start

    sample()  # compiles
    return sample


def bench_data(config: DataBench) -> Report:
    """Time a training step, and the pipeline for each number of workers. ValueError for what cannot be."""
    config.check()
    with use_threads(config.threads), torch.random.fork_rng():
        trainer = config.trainer()
        samplers = {f"training step of {config.model}": training_sampler(trainer)}
        samplers |= {
            f"pipeline alone, {count} workers": pipeline_sampler(trainer, count)
            for count in config.workers or (0, 1, 2)
        }
        rounds = measure.interleave(list(samplers.values()), config.rounds)
        case, length = f"{config.img_size} x {config.img_size} pixels", trainer.model.config.num_tokens
        common = {"case": case, "length": length, "mode": f"batch {config.batch_size}", "items": config.batch_size}
        rows = summarise(list(samplers), rounds, extra_bytes=None, error=None, **common)
        return collect("images", config, [(rows, rounds)])
