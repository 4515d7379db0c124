"""The training loop: AdamW, warm-up and cosine, a moving average of the weights, on one process or many.

All randomness of a step comes from (seed, step, process), and the order of the images from (seed, epoch): so the state
of a run is its tensors and its step, and a run that is killed and resumed does the same arithmetic as one that is not.
"""

import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from minivim.data import ImageData, load_data
from minivim.data.augment import augment
from minivim.data.images import LazyImages
from minivim.extras import require
from minivim.files import write_atomically
from minivim.models import checkpoints, create_model
from minivim.models.backbone import Backbone
from minivim.processes import Team, join_team, use_threads
from minivim.train.prediction import apply_backend, fetch, logits_of
from minivim.train.recipes import CONFIG_FILE, TrainConfig, resolve

STATE_FILE, METRICS_FILE, CURVES_FILE = "state.pt", "metrics.jsonl", "curves.png"
BEST_FILE, LAST_FILE = "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns: the trained model (averaged weights), the data, one record an epoch, the run's folder."""

    model: Backbone
    data: ImageData
    history: list[dict]
    out: Path

    @property
    def accuracy(self) -> float:
        """Share of the test images that the final model gets right."""
        return self.history[-1]["test_accuracy"]


# ---- small parts -----------------------------------------------------------------------------------------------------


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part: neighbouring steps get unrelated random numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def learning_rate(step: int, steps: int, peak: float, warmup: float, end: float) -> float:
    """The rate of a step: a line up to `peak` in the first `warmup` share, then half a cosine down to `end` * peak."""
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, steps - 1 - rising)
    return peak * (end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's two groups: what decays, and what must not (A_log, D, biases, norms, embeddings), as the model says."""
    spared = model.no_weight_decay()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for name, p in named if name not in spared], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in spared], "weight_decay": 0.0},
    ]


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, rank: int = 0, size: int = 1
) -> Int64[Tensor, "steps share"]:
    """The epoch's batches of indices: all images shuffled, the remainder left out; of each the share of `rank`."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed_from("order", seed, epoch)))
    steps, share = count // batch_size, batch_size // size
    return order[: steps * batch_size].view(steps, batch_size)[:, rank * share : (rank + 1) * share]


def compute_gradients(
    model: nn.Module, images: Float[Tensor, "B 3 H W"], targets: Float[Tensor, "B K"], bf16: bool = False
) -> float:
    """Fresh gradients of the mean cross-entropy in the parameters' .grad; returns the loss.

    For a DistributedDataParallel model the gradients are those of the joint batch of all processes.
    """
    model.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = model(images)
    loss = F.cross_entropy(logits.float(), targets)
    loss.backward()
    return loss.item()


def build_model(config: TrainConfig, data: ImageData) -> Backbone:
    """The configuration's model for these images and classes."""
    names = ("patch_size", "embed_dim", "depth", "expand", "state_dim", "cls_token", "pos_embed")
    names += ("directions", "scan_order", "init")
    overrides = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    overrides |= {"img_size": data.img_size, "num_classes": len(data.classes), "drop_path_rate": config.drop_path}
    return create_model(config.model, **overrides)


# ---- one run ---------------------------------------------------------------------------------------------------------


class Trainer:
    """A run in progress: model, average, optimizer, step; what `train` drives."""

    def __init__(self, config: TrainConfig, data: ImageData, team: Team):
        self.config, self.data, self.team = config, data, team
        self.out = Path(config.out)
        self._check_sizes()
        torch.manual_seed(config.seed)
        self.model = build_model(config, data).to(team.device).train()
        self.backend = apply_backend(self.model, config.backend, team.device)
        self.parallel = DistributedDataParallel(self.model) if team.size > 1 else self.model
        self.average = AveragedModel(self.model, multi_avg_fn=self._average) if config.ema else None
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model, config.weight_decay), lr=config.lr, betas=(0.9, config.beta2), fused=True
        )
        self.generator = torch.Generator(team.device)
        self.step, self.loss_sum, self.seconds, self.best, self.history = 0, 0.0, 0.0, -1.0, []
        self.images = data.train_images
        if isinstance(self.images, LazyImages):
            self.images = LazyImages(self.images.items, data.img_size, crop_scale=config.crop_scale, seed=config.seed)

    def _check_sizes(self) -> None:
        batch, images, size = self.config.batch_size, len(self.data.train_images), self.team.size
        if batch > images:
            raise ValueError(f"batch_size is {batch}; it must be at most the number of training images, {images}")
        if batch % size:
            raise ValueError(f"batch_size is {batch}; it must be a multiple of the number of processes, {size}")

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.team.rank == 0

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of the training set; the images left over wait for the next epoch."""
        return len(self.data.train_images) // self.config.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def final_model(self) -> Backbone:
        """The weights that count: the average if there is one."""
        return self.average.module if self.average else self.model

    def _average(self, averages: list[Tensor], weights: list[Tensor], _) -> None:
        # A short memory at first, so that the random initial weights are soon forgotten.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def fit(self) -> None:
        """Train from the present step to the last; the state is saved between steps only."""
        saved_at = started = time.monotonic()
        seconds_before = self.seconds
        with self._progress_bar() as bar:
            while self.step < self.steps:
                for images, labels in self._batches():
                    self.train_step(images, labels)
                    self.seconds = seconds_before + time.monotonic() - started
                    bar.update()
                    if self.step % self.steps_per_epoch == 0:
                        self.end_epoch(bar)
                    if self.leads and time.monotonic() - saved_at >= self.config.save_seconds:
                        self.save_state()
                        saved_at = time.monotonic()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the present epoch that are still to come."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        config, team = self.config, self.team
        all_rows = epoch_batches(len(self.images), config.batch_size, config.seed, epoch, team.rank, team.size)
        rows = all_rows.unbind()[done:]
        if isinstance(self.images, LazyImages):
            self.images.epoch = epoch
        images = fetch(self.images, rows, config.workers)
        return zip(images, (self.data.train_labels[batch] for batch in rows), strict=True)

    def train_step(self, images: UInt8[Tensor, "B 3 H W"], labels: Int64[Tensor, " B"]) -> None:
        """One batch: augment, gradients, clip, AdamW, average."""
        config, device = self.config, self.team.device
        seed = seed_from("step", config.seed, self.step, self.team.rank)
        torch.manual_seed(seed)  # drop path draws from the global generator
        images, targets = augment(
            images.to(device), labels.to(device), len(self.data.classes), self.data.mean, self.data.std, config,
            self.generator.manual_seed(seed),
        )  # fmt: skip
        loss = compute_gradients(self.parallel, images, targets, config.bf16)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"loss is {loss} and the gradient's norm {norm:.3g} at step {self.step + 1} of {self.steps}; both must "
                f"be finite: try a smaller lr (it is {config.lr}), a longer warmup, a smaller grad_clip or bf16 off"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.model)
        self.loss_sum += loss
        self.step += 1

    def rate(self) -> float:
        """The learning rate of the present step."""
        return learning_rate(self.step, self.steps, self.config.lr, self.config.warmup, self.config.lr_end)

    def end_epoch(self, bar: Any) -> None:
        """Evaluate, write the epoch's record and, after the best one so far, the weights."""
        epoch = self.step // self.steps_per_epoch
        record = {"epoch": epoch, "step": self.step, "lr": self.optimizer.param_groups[0]["lr"]}
        record["train_loss"] = self.loss_sum / self.steps_per_epoch
        self.loss_sum = 0.0
        if epoch % self.config.eval_every == 0 or epoch == self.config.epochs:
            record["test_loss"], record["test_accuracy"] = self.evaluate()
            bar.set_postfix(loss=f"{record['train_loss']:.3f}", accuracy=f"{record['test_accuracy']:.2%}")
            if record["test_accuracy"] > self.best:
                self.best = record["test_accuracy"]
                self.save_weights(BEST_FILE)
        record["seconds"] = round(self.seconds, 3)
        self.history.append(record)
        if self.leads:
            with (self.out / METRICS_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._tensorboard(record)
        if epoch == 1:
            rest = self.seconds * (self.config.epochs - 1)
            self.say(f"budget: {self.seconds:.1f} s for the first epoch, about {rest:.0f} s for the rest")

    def evaluate(self) -> tuple[float, float]:
        """(mean cross-entropy, accuracy) on the test images; each process scores its share of them."""
        rows = torch.arange(self.team.rank, len(self.data.test_labels), self.team.size)
        images, labels = self.data.test_images, self.data.test_labels[rows]
        images = torch.utils.data.Subset(images, rows.tolist()) if isinstance(images, LazyImages) else images[rows]
        sums = torch.zeros(3, dtype=torch.float64)
        if len(rows):
            logits = logits_of(
                self.final_model, images, self.data.mean, self.data.std, bf16=self.config.bf16,
                workers=self.config.workers,
            )  # fmt: skip
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums = torch.stack(
                [loss, (logits.argmax(1) == labels).sum().double(), torch.tensor(float(len(rows))).double()]
            )
        if self.team.size > 1:
            sums = sums.to(self.team.device)
            dist.all_reduce(sums)
        loss, right, count = sums.tolist()
        return loss / count, right / count

    # ---- files -------------------------------------------------------------------------------------------------------

    def open_folder(self) -> None:
        """Start the run's folder, or load the state that is in it."""
        state = self.out / STATE_FILE
        if self.config.resume and state.exists():
            self.load_state(state)
        if self.team.size > 1:
            dist.barrier()  # nobody writes before everybody has looked
        if self.leads:
            self.out.mkdir(parents=True, exist_ok=True)
            for name in (STATE_FILE, BEST_FILE, LAST_FILE, CONFIG_FILE, METRICS_FILE, CURVES_FILE):
                for leftover in self.out.glob(f".{name}.*"):  # half-written by a killed process
                    leftover.unlink()
            write_atomically(self.out / CONFIG_FILE, json.dumps(asdict(self.config), indent=1).encode())
            # The history in the state is the truth: records of steps that are about to be repeated go.
            lines = "".join(json.dumps(record) + "\n" for record in self.history)
            write_atomically(self.out / METRICS_FILE, lines.encode())

    def save_state(self) -> None:
        """Write all that the next step depends on, and the weights as they are now."""
        state = {
            "step": self.step, "loss_sum": self.loss_sum, "seconds": self.seconds, "best": self.best,
            "history": self.history, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
        }  # fmt: skip
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.out / STATE_FILE, buffer.getbuffer())
        self.save_weights(LAST_FILE)

    def load_state(self, path: Path) -> None:
        """Undo `save_state`. Raises ValueError for a file that is not its work."""
        try:
            state = torch.load(path, map_location=self.team.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.load_state_dict(state["average"])
            for name in ("step", "loss_sum", "seconds", "best", "history"):
                setattr(self, name, state[name])
        except Exception as error:  # torch.load raises a dozen types, none of which says which file
            raise ValueError(f"out is {str(self.out)!r}, whose {path.name} cannot be resumed ({error})") from error

    def save_weights(self, name: str) -> None:
        """Write the weights that count, with what is needed to use them on other images."""
        if self.leads:
            extra = {"classes": self.data.classes, "mean": self.data.mean, "std": self.data.std, "step": self.step,
                     "recipe": asdict(self.config)}  # fmt: skip
            checkpoints.save(self.final_model, self.out / name, extra)

    # ---- what the user sees ------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Print a line above the progress bar."""
        if self.leads and self.config.progress:
            require("tqdm.auto", "train").tqdm.write(line)

    def introduce(self) -> None:
        """Say what is about to run, and on what."""
        parameters = sum(p.numel() for p in self.model.parameters())
        cores = f", {torch.get_num_threads()} threads" if self.team.device.type == "cpu" else ""
        images = len(self.data.train_images)
        self.say(
            f"{self.config.model}: {parameters:,} parameters, {self.model.config.num_tokens} tokens; "
            f"device {self.team.device}{cores}, {self.team.size} process(es), scan backend {self.backend}"
        )
        self.say(
            f"{self.data.name}: {images:,} training and {len(self.data.test_labels):,} test images of "
            f"{self.data.img_size}x{self.data.img_size}, {len(self.data.classes)} classes; "
            f"{self.config.epochs} epochs of {self.steps_per_epoch} steps of {self.config.batch_size}; out {self.out}"
        )
        if self.step:
            self.say(f"resumed at step {self.step} of {self.steps}")

    def _progress_bar(self):
        hidden = not (self.leads and self.config.progress)
        return require("tqdm.auto", "train").tqdm(total=self.steps, initial=self.step, unit="step", disable=hidden)

    @cached_property
    def _writer(self):
        tensorboard = require("torch.utils.tensorboard", "train")
        return tensorboard.SummaryWriter(self.out, purge_step=self.step)

    def _tensorboard(self, record: dict) -> None:
        if self.config.tensorboard:
            for name in record.keys() - {"step", "epoch"}:
                self._writer.add_scalar(name, record[name], record["step"])
            self._writer.flush()


def draw_curves(history: Sequence[dict], path: Path) -> None:
    """A picture of the losses and of the test accuracy against the epoch."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    scored = [record for record in history if "test_accuracy" in record]
    left.plot([r["epoch"] for r in history], [r["train_loss"] for r in history], label="training (augmented)")
    left.plot([r["epoch"] for r in scored], [r["test_loss"] for r in scored], label="test")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend()
    right.plot([r["epoch"] for r in scored], [100 * r["test_accuracy"] for r in scored])
    right.set(xlabel="epoch", ylabel="test accuracy, %", title=f"last {scored[-1]['test_accuracy']:.2%}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    write_atomically(path, buffer.getvalue())


def train(config: TrainConfig) -> TrainResult:
    """Train a model and write the run to `config.out`: config.json, metrics.jsonl, best.safetensors, last.safetensors,
    state.pt (all that resuming needs) and curves.png.

    Raises ValueError for impossible settings and for a loss that is no longer finite.
    """
    config = resolve(config)
    if (Path(config.out) / CONFIG_FILE).exists() and not config.resume:  # before the data, which takes a while to load
        raise ValueError(f"out is {config.out!r}, which holds a run; it must be a new folder, or resume be set")
    with join_team(config.device) as team, use_threads(config.threads), torch.random.fork_rng(team.cuda_devices):
        data = load_data(config.data, img_size=config.img_size)
        trainer = Trainer(config, data, team)
        trainer.open_folder()
        trainer.introduce()
        trainer.fit()
        if trainer.leads:
            trainer.save_state()
            draw_curves(trainer.history, trainer.out / CURVES_FILE)
        result = TrainResult(trainer.final_model.eval(), data, trainer.history, trainer.out)
        trainer.say(
            f"test accuracy {result.accuracy:.2%} (best {trainer.best:.2%}) after {trainer.seconds:.0f} s: {result.out}"
        )
    return result
