"""The training loop: AdamW, warm-up and cosine, a moving average of the weights, on one process or many.

All randomness of a step comes from (seed, step, process), and the order of the images from (seed, epoch): so the state
of a run is its tensors and its step, and a run that is killed and resumed does the same arithmetic as one that is not.
What a step is made of is in `step.py`, what is classification about it in `tasks.py`, the files in `run.py`, and what
the user sees in `screen.py`.
"""

import copy
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Int64, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from minivim.data import ImageData, load_data
from minivim.data.images import LazyImages, fetch
from minivim.models import Backbone, checkpoints
from minivim.processes import Team, join_team, met_by_all, use_threads
from minivim.train.backend import apply_backend
from minivim.train.compile import check_compiler, compiled
from minivim.train.fingerprint import difference, fingerprint
from minivim.train.recipes import TrainConfig, resolve
from minivim.train.run import BEST_FILE, CURVES_FILE, LAST_FILE, Run
from minivim.train.screen import Screen, draw_curves
from minivim.train.signals import Signals
from minivim.train.step import (
    accumulate_gradients,
    decay_groups,
    epoch_batches,
    learning_rate,
    seed_from,
    to_device,
)
from minivim.train.tasks import Classification

LOOK_SECONDS = 1.0  # about that long between two looks at the loss, each of which waits for the device
COMPILES = "the first step takes long: it compiles the kernels that are new to this machine"
COUNTERS = ("step", "loss_sum", "seconds", "best", "best_epoch", "history")


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns: the trained model (averaged weights), the data, one record an epoch, the run's folder.

    A record holds epoch, step, lr, train_loss, seconds and, if there are validation images, val_loss and val_accuracy.
    The last one adds test_loss and test_accuracy of the final weights, and best_test_loss and best_test_accuracy of
    those after epoch best_epoch, which did best on the validation images; without any these are the final ones.
    """

    model: Backbone
    data: ImageData
    history: list[dict]
    out: Path

    @property
    def accuracy(self) -> float:
        """Share of the test images that the final model gets right."""
        return self.history[-1]["test_accuracy"]


class Trainer:
    """A run in progress: model, average, optimizer, step; what `train` drives."""

    def __init__(self, config: TrainConfig, data: ImageData, team: Team):
        self.config, self.data, self.team = config, data, team
        self._check_sizes()
        self.task, self.run = Classification(config, data, team), Run(config)
        self.signals, self.stopping = Signals(patience=1.0 if team.size > 1 else 0.0, speaks=self.leads), False
        self.screen = Screen(config, self.leads)
        self.state = self.run.load_state(team.device)
        torch.manual_seed(config.seed)
        self.model = self._build_model().train()
        self.backend = apply_backend(self.model, config.backend, team.device)
        # What trains is called, not the model: state, average and evaluation know nothing of its wrappers.
        self.trainee = compiled(self.model) if config.compile else self.model
        if team.size > 1:
            self.trainee = DistributedDataParallel(self.trainee)
        self.average = AveragedModel(self.model) if config.ema else None
        self.optimizer = torch.optim.AdamW(
            decay_groups(self.model, config.weight_decay, config.layer_decay),
            lr=config.lr, betas=(0.9, config.beta2), fused=True,
        )  # fmt: skip
        self.generator = torch.Generator(team.device)
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.best, self.best_epoch = -1.0, 0  # of the epochs that were validated
        self.history: list[dict] = []
        self.unseen: list[Tensor] = []  # loss and gradient norm of the steps that nobody has looked at
        self.next_look, self.looked_at = 0, time.monotonic()
        self.images = data.train_images
        if isinstance(self.images, LazyImages):
            self.images = LazyImages(
                self.images.items, data.img_size, crop=config.eval_crop, crop_scale=config.crop_scale, seed=config.seed
            )

    def _build_model(self) -> Backbone:
        """The model as the state of the resumed run describes it, which needs no file of weights, else a new one."""
        header = self.state and self.state.get("header")
        if header is None:
            return self.task.build_model()
        try:
            return self.task.rebuild_model(header)
        except Exception as error:  # whatever a stranger's header makes Python raise
            raise self.run.unusable(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error

    def _check_sizes(self) -> None:
        batch, images, size = self.config.batch_size, len(self.data.train_images), self.team.size
        if batch > images:
            raise ValueError(f"batch_size is {batch}; it must be at most the number of training images, {images}")
        if batch % size:
            raise ValueError(f"batch_size is {batch}; it must be a multiple of the number of processes, {size}")
        if self.config.accumulate > batch // size:
            parts = self.config.accumulate
            raise ValueError(f"accumulate is {parts}; it must be at most the images of a process, {batch // size}")

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
        return self.average.module if self.average else self.model  # type: ignore[return-value]  # a copy of the model

    def open(self) -> None:
        """Begin in the run's folder, or go on from the state that is in it."""
        self.fingerprint = fingerprint(self.data)
        if self.state is not None:
            self.restore(self.state)
            self.state = None  # its memory
        if self.team.size > 1:
            dist.barrier()  # nobody writes before everybody has looked
        if self.leads:
            self.run.open(self.history)

    def restore(self, state: dict) -> None:
        """Undo `save_state`. Raises ValueError for what is not its work, and for other data."""
        changed = difference(self.fingerprint, state.get("data", {}))
        if changed:
            raise ValueError(f"data is {self.config.data!r}, whose {changed}; it must be that of the resumed run")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average:
                self.average.load_state_dict(state["average"])
            for name in COUNTERS:
                setattr(self, name, state[name])
            past = [record["step"] for record in self.history]
            fits = past == list(range(self.steps_per_epoch, self.step + 1, self.steps_per_epoch))
            fits = fits and 0 <= self.step <= self.steps and math.isfinite(self.loss_sum + self.seconds + self.best)
        except Exception as error:  # whatever a stranger's file makes torch raise
            raise self.run.unusable(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        if not fits:
            raise self.run.unusable(f"step {self.step} of {self.steps} does not fit the steps of its history, {past}")

    def introduce(self) -> None:
        """Say what is about to run, and on what."""
        parameters = f"{sum(p.numel() for p in self.model.parameters()):,} parameters"
        if self.config.freeze:
            parameters += f", {sum(p.numel() for p in self.model.parameters() if p.requires_grad):,} of them trained"
        cores = f", {torch.get_num_threads()} threads" if self.team.device.type == "cpu" else ""
        parts = {"training": self.data.train_labels, "validation": self.data.val_labels, "test": self.data.test_labels}
        counts = ", ".join(f"{len(labels):,} {part}" for part, labels in parts.items() if labels is not None)
        compilation = ", compiled in the first step" if self.config.compile else ""
        self.screen.say(
            f"{self.config.model}: {parameters}, {self.model.config.num_tokens} tokens; "
            f"device {self.team.device}{cores}, {self.team.size} process(es), scan backend {self.backend}{compilation}"
        )
        self.screen.say(
            f"{self.data.name}: {counts} images of "
            f"{self.data.img_size}x{self.data.img_size}, {len(self.data.classes)} classes; "
            f"{self.config.epochs} epochs of {self.steps_per_epoch} steps of {self.config.batch_size}; "
            f"out {self.run.folder}"
        )
        if self.task.origin:
            self.screen.say(self.task.origin)
        if self.step:
            self.screen.say(f"resumed at step {self.step} of {self.steps}")

    def fit(self) -> None:
        """Train from the present step to the last, or to a signal; the state is saved between steps only."""
        saved_at = self.looked_at = started = time.monotonic()
        seconds_before = self.seconds
        self.first = None
        with self.screen.progress_bar(self.step, self.steps) as bar:
            while self.step < self.steps and not self.stopping:
                for images, labels in self._batches():
                    with nullcontext() if self.first else self.screen.patient(COMPILES):
                        self.train_step(images, labels)
                    self.seconds = seconds_before + time.monotonic() - started
                    self.first = self.first or (self.step, self.seconds)
                    bar.update()
                    if self.step % self.steps_per_epoch == 0:
                        self.end_epoch(bar)
                    if self.step >= self.next_look or (self.signals.received and self.team.size == 1):
                        self.look()
                    if self.stopping:  # all processes, after the same step
                        break  # type: ignore[unreachable]  # `look` has set it
                    looked = not self.unseen  # the others look at the same steps, and do not save
                    if looked and self.leads and time.monotonic() - saved_at >= self.config.save_seconds:
                        self.save_state()
                        saved_at = time.monotonic()

    def stop(self) -> None:
        """End as the signal asked, after the state is saved: KeyboardInterrupt for Ctrl-C, else SystemExit(128 + n)."""
        number = self.signals.received or signal.SIGTERM  # which another process has heard
        if self.leads:
            name = signal.Signals(number).name
            how = f"stopped by {name} after step {self.step} of {self.steps}; the state is saved"
            print(f"minivim: {how}, and this goes on from it: {self.run.command}", file=sys.stderr)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
        raise SystemExit(128 + number)

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
        """One batch: augment, gradients, clip, AdamW, average. Nothing in it waits for the device."""
        config, device = self.config, self.team.device
        seed = seed_from("step", config.seed, self.step, self.team.rank)
        torch.manual_seed(seed)  # drop path draws from the global generator
        images, targets = self.task.prepare(
            to_device(images, device), to_device(labels, device), self.generator.manual_seed(seed)
        )
        loss = accumulate_gradients(self.trainee, images, targets, config.bf16, config.accumulate, self.task.loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        self.unseen.append(torch.stack((loss, norm)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate() * group.get("lr_scale", 1.0)  # a state of an older version has none
        self.optimizer.step()
        if self.average:
            self.update_average()
        self.step += 1

    def rate(self) -> float:
        """The learning rate of the present step."""
        return learning_rate(self.step, self.steps, self.config.lr, self.config.warmup, self.config.lr_end)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights towards the present ones; AveragedModel itself would wait for the device."""
        # A short memory at first, so that the random initial weights are soon forgotten.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        averages: list[Tensor] = list(self.average.module.parameters())
        weights: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averages, weights, 1 - decay)
        self.average.n_averaged += 1

    def look(self) -> None:
        """Fetch the losses since the last look, the mean over all processes, and agree on the step of the next look.

        Waits for the device and for the other processes. ValueError, in all of them, for what is not finite in one.
        """
        if not self.unseen:
            return
        own = torch.tensor([[time.monotonic() - self.looked_at, float(self.signals.received > 0)]])
        *found, (seconds, stopping) = self.team.mean(torch.cat((torch.stack(self.unseen).cpu(), own))).tolist()
        self.stopping = stopping > 0
        first = self.step - len(found) + 1
        for step, (loss, norm) in enumerate(found, first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise ValueError(
                    f"loss is {loss} and the gradient's norm {norm:.3g} at step {step} of {self.steps}; both must "
                    f"be finite: try a smaller lr (it is {self.config.lr}), a longer warmup, a smaller grad_clip or "
                    "bf16 off"
                )
            self.loss_sum += loss
        self.unseen.clear()
        # At most twice as many steps as since the last one, lest a fast start be taken for the rule.
        wanted = min(LOOK_SECONDS, self.config.save_seconds) / max(seconds, LOOK_SECONDS / 2)
        self.next_look = self.step + max(1, round(wanted * len(found)))
        self.looked_at = time.monotonic()

    def end_epoch(self, bar: Any) -> None:
        """Validate, write the epoch's record and, after the best one so far, the weights; at the end, test."""
        self.look()
        epoch = self.step // self.steps_per_epoch
        record = {"epoch": epoch, "step": self.step, "lr": max(group["lr"] for group in self.optimizer.param_groups)}
        record["train_loss"] = self.loss_sum / self.steps_per_epoch
        self.loss_sum = 0.0
        last = epoch == self.config.epochs
        if self.data.val_labels is not None and (last or epoch % self.config.eval_every == 0):
            record |= self.task.evaluate(self.final_model, "val")
            bar.set_postfix(loss=f"{record['train_loss']:.3f}", accuracy=f"{record[self.task.goal]:.2%}")
        if record.get(self.task.goal, -1.0) > self.best or (last and not self.best_epoch):  # unvalidated: the last
            self.best, self.best_epoch = record.get(self.task.goal, -1.0), epoch
            self.save_weights(BEST_FILE)
        if last:
            record |= self.final_scores()
        record["seconds"] = round(self.seconds, 3)
        self.history.append(record)
        if self.leads:
            self.run.append(record)
        self.screen.show(record)
        self.tell_budget()

    def tell_budget(self) -> None:
        """Say once how long an epoch takes, by the steps after the first one, in which kernels may be compiled."""
        step, seconds = self.first
        if step < self.step <= step + self.steps_per_epoch:
            pace = (self.seconds - seconds) / (self.step - step)
            epoch, rest = pace * self.steps_per_epoch, pace * (self.steps - self.step)
            self.screen.say(f"budget: {epoch:.1f} s for an epoch, about {rest:.0f} s for the rest")

    def final_scores(self) -> dict[str, float]:
        """What the test images, which nothing has seen, say of the final weights and of the best ones."""
        scores = best = self.task.evaluate(self.final_model, "test")
        if self.best_epoch != self.config.epochs:
            model = copy.deepcopy(self.final_model)
            if self.leads:
                self.run.read_weights(BEST_FILE, model)
            self.team.give(model.state_dict().values())
            best = self.task.evaluate(model, "test")
        return scores | {f"best_{name}": value for name, value in best.items()} | {"best_epoch": self.best_epoch}

    def save_state(self) -> None:
        """Write all that the next step depends on, and the weights as they are now; nothing that is not finite."""
        self.look()
        state = {name: getattr(self, name) for name in COUNTERS}
        state |= {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "data": self.fingerprint}
        state |= {"header": checkpoints.header_of(self.model)}
        self.run.save_state(state | {"average": self.average.state_dict() if self.average else None})
        self.save_weights(LAST_FILE)

    def save_weights(self, name: str) -> None:
        """Write the weights that count."""
        if self.leads:
            self.run.save_weights(name, self.final_model, self.data, self.step)


def train(config: TrainConfig) -> TrainResult:
    """Train a model and write the run to `config.out`: config.json, metrics.jsonl, best.safetensors, last.safetensors,
    state.pt (all that resuming needs) and curves.png.

    Raises ValueError for impossible settings, for a folder in use or with other files, and for a loss that is no longer
    finite. SIGINT, SIGTERM and SIGHUP end the run between two steps, after its state is saved.
    """
    with met_by_all():
        config = resolve(config)
    with join_team(config.device) as team, use_threads(config.threads), torch.random.fork_rng(team.cuda_devices):
        with Run(config).held() if team.rank == 0 else nullcontext():
            return _train(config, team)


def _train(config: TrainConfig, team: Team) -> TrainResult:
    """`train`, of one process in a folder that is its team's alone."""
    if config.compile:
        check_compiler(team.device)
    data = load_data(
        config.data, img_size=config.img_size, crop=config.eval_crop, val_share=config.val_share,
        train_share=config.train_share, classes=config.classes, in_memory=config.in_memory,
        image_column=config.image_column, label_column=config.label_column,
    )  # fmt: skip
    trainer = Trainer(config, data, team)
    trainer.open()
    trainer.introduce()
    with trainer.signals:
        trainer.fit()
        if trainer.leads:
            trainer.save_state()
    if trainer.step < trainer.steps:
        trainer.stop()
    result = TrainResult(trainer.final_model.eval(), trainer.data, trainer.history, trainer.run.folder)
    if trainer.leads:
        draw_curves(trainer.history, result.out / CURVES_FILE)
    best = f"best, epoch {trainer.best_epoch}: {result.history[-1]['best_test_accuracy']:.2%}"
    trainer.screen.say(f"test accuracy {result.accuracy:.2%} ({best}) after {trainer.seconds:.0f} s: {result.out}")
    return result
