"""A run's folder: its configuration, metrics, weights, and the state from which it goes on."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from minivim.data import ImageData
from minivim.files import write_atomically
from minivim.models import Backbone, checkpoints
from minivim.train.recipes import CONFIG_FILE, TrainConfig

STATE_FILE, METRICS_FILE, CURVES_FILE = "state.pt", "metrics.jsonl", "curves.png"
BEST_FILE, LAST_FILE = "best.safetensors", "last.safetensors"


class Run:
    """What is written, and read again; only the leading process writes."""

    def __init__(self, config: TrainConfig, data: ImageData):
        self.config, self.data, self.folder = config, data, Path(config.out)

    def load_state(self, device: torch.device) -> dict | None:
        """The state to go on from, None if there is none. Raises ValueError for a file that cannot be read."""
        path = self.folder / STATE_FILE
        if not (self.config.resume and path.exists()):
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # torch.load raises a dozen types, none of which says which file
            raise self.unusable(error) from error

    def unusable(self, error: Exception) -> ValueError:
        """The error for a state that does not fit."""
        return ValueError(f"out is {str(self.folder)!r}, whose {STATE_FILE} cannot be resumed ({error})")

    def open(self, history: Sequence[Mapping]) -> None:
        """Make the folder, and bring what is in it to the point from which the run goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (STATE_FILE, BEST_FILE, LAST_FILE, CONFIG_FILE, METRICS_FILE, CURVES_FILE):
            for leftover in self.folder.glob(f".{name}.*"):  # half-written by a killed process
                leftover.unlink()
        write_atomically(self.folder / CONFIG_FILE, json.dumps(asdict(self.config), indent=1).encode())
        # The history in the state is the truth: records of steps that are about to be repeated go.
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_atomically(self.folder / METRICS_FILE, lines.encode())

    def append(self, record: Mapping) -> None:
        """One more line of metrics."""
        with (self.folder / METRICS_FILE).open("a") as file:
            file.write(json.dumps(record) + "\n")

    def save_state(self, state: Mapping) -> None:
        """Write all that the next step depends on."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.folder / STATE_FILE, buffer.getbuffer())

    def save_weights(self, name: str, model: Backbone, step: int) -> None:
        """Write weights, with what is needed to use them on other images."""
        extra = {"classes": self.data.classes, "step": step, "recipe": asdict(self.config)}
        checkpoints.save(model, self.folder / name, extra)
