"""What the user sees of a run: lines, a progress bar, TensorBoard, a picture of the curves."""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minivim.checks import printable
from minivim.extras import require
from minivim.files import write_atomically
from minivim.train.recipes import TrainConfig

PATIENCE = 3.0  # seconds without a word


class Screen:
    """One process's screen; `leads`: whether it is the one that speaks."""

    def __init__(self, config: TrainConfig, leads: bool):
        self.config, self.leads = config, leads
        self.writer: Any = None  # TensorBoard's, once there is something to write

    def say(self, *lines: str) -> None:
        """Print lines above the progress bar."""
        if self.leads and self.config.progress:
            for line in lines:
                require("tqdm.auto", "train").tqdm.write(printable(line))

    def progress_bar(self, step: int, steps: int) -> Any:
        """A bar from the present step to the last; hidden where nobody is to see it."""
        hidden = not (self.leads and self.config.progress)
        return require("tqdm.auto", "train").tqdm(total=steps, initial=step, unit="step", disable=hidden)

    @contextmanager
    def patient(self, sentence: str) -> Iterator[None]:
        """Say why nothing seems to happen, if what is done inside takes long."""
        timer = threading.Timer(PATIENCE, self.say, (sentence,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def show(self, record: Mapping) -> None:
        """An epoch's record, for TensorBoard if that is asked for."""
        if self.leads and self.config.tensorboard:
            if self.writer is None:  # what a resumed run repeats is purged
                tensorboard = require("torch.utils.tensorboard", "train")
                self.writer = tensorboard.SummaryWriter(self.config.out, purge_step=record["step"])
            for name in record.keys() - {"step", "epoch"}:
                self.writer.add_scalar(name, record[name], record["step"])
            self.writer.flush()


def draw_curves(history: Sequence[dict], path: Path) -> None:
    """A picture of the losses and of the validation accuracy against the epoch; the test's is said above."""
    figure = require("matplotlib.figure", "train").Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    scored = [record for record in history if "val_accuracy" in record]
    left.plot([r["epoch"] for r in history], [r["train_loss"] for r in history], label="training (augmented)")
    left.plot([r["epoch"] for r in scored], [r["val_loss"] for r in scored], label="validation")
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend()
    right.plot([r["epoch"] for r in scored], [100 * r["val_accuracy"] for r in scored])
    test = f"test accuracy of the final weights {history[-1]['test_accuracy']:.2%}"
    right.set(xlabel="epoch", ylabel="validation accuracy, %", title=test)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    write_atomically(path, buffer.getvalue())
