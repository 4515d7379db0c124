"""A run's folder: its configuration, metrics, weights, and the state from which it goes on."""

import hashlib
import io
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from minivim.data import ImageData
from minivim.files import named_when_full, occupied, unfinished, write_atomically
from minivim.models import Backbone, checkpoints
from minivim.train.recipes import BASE, CONFIG_FILE, FREE_ON_RESUME, STATE_FILE, TrainConfig, given, saved_config

METRICS_FILE, CURVES_FILE = "metrics.jsonl", "curves.png"
BEST_FILE, LAST_FILE = "best.safetensors", "last.safetensors"
RESULTS = (STATE_FILE, BEST_FILE, LAST_FILE, METRICS_FILE, CURVES_FILE)
DIGEST_BYTES = hashlib.sha256().digest_size


class Run:
    """What is written, and read again; only the leading process writes."""

    def __init__(self, config: TrainConfig):
        self.config, self.folder = config, Path(config.out)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the folder for this run alone. Raises ValueError for one that it must not write to."""
        self.inspect()
        with occupied(self.folder):
            self.inspect()  # again: until now another process may have written to it
            yield

    def inspect(self) -> None:
        """Raise ValueError for a folder with the user's own files, and for a run that nobody asked to resume."""
        out = str(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"out is {out!r}, which is a file; it must be a folder")
        saved_config(self.folder)  # refuses what is not ours
        results = [name for name in RESULTS if (self.folder / name).exists()]
        if results and not (self.folder / CONFIG_FILE).exists():
            raise ValueError(f"out is {out!r}, whose {results[0]} is not of a run; it must be a new folder")
        # A run that failed in its first epoch has lost nothing, and may be begun anew.
        if not self.config.resume and any((self.folder / name).stat().st_size for name in results):
            raise ValueError(f"out is {out!r}, which holds a run; it must be a new folder, or resume be set")

    def open(self, history: Sequence[Mapping]) -> None:
        """Bring what is in the folder to the point from which the run goes on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in unfinished(self.folder, (CONFIG_FILE, *RESULTS)):
            leftover.unlink()
        write_atomically(self.folder / CONFIG_FILE, json.dumps(asdict(self.config), indent=1).encode())
        # The history in the state is the truth: records of steps that are about to be repeated go.
        lines = "".join(json.dumps(record) + "\n" for record in history)
        write_atomically(self.folder / METRICS_FILE, lines.encode())

    def append(self, record: Mapping) -> None:
        """One more line of metrics."""
        line, path = json.dumps(record) + "\n", self.folder / METRICS_FILE
        with named_when_full(path, len(line)), path.open("a") as file:
            file.write(line)

    @property
    def command(self) -> str:
        """What resumes the run."""
        return f"minivim train --out {shlex.quote(str(self.folder))} --resume"

    @property
    def identity(self) -> dict:
        """The settings that make it this run and no other."""
        return {name: value for name, value in given(self.config).items() if name not in FREE_ON_RESUME}

    def save_state(self, state: Mapping) -> None:
        """Write all that the next step depends on, with a checksum at its end."""
        buffer = io.BytesIO()
        torch.save({**state, "config": self.identity}, buffer)
        buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
        write_atomically(self.folder / STATE_FILE, buffer.getbuffer())

    def load_state(self, device: torch.device) -> dict | None:
        """The state to go on from, None if there is none. ValueError for a damaged one, and for another run's."""
        path = self.folder / STATE_FILE
        if not (self.config.resume and path.exists()):
            return None
        data = memoryview(path.read_bytes())
        content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise self.unusable("it is damaged, or not written by this version: its checksum is wrong")
        try:
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            theirs = state["config"]
        except Exception as error:  # torch.load raises a dozen types, whose texts are advice for programmers
            raise self.unusable(f"it is not the state of a run: {type(error).__name__}") from error
        for name in sorted(theirs.keys() | self.identity.keys()):
            now, then = self.identity.get(name), theirs.get(name, getattr(BASE, name, None))  # which is younger than it
            if now != then:
                raise self.unusable(f"it is of another run, whose {name} is {then!r} instead of {now!r}")
        return state

    def unusable(self, reason: str) -> ValueError:
        """The error for a state that does not fit."""
        return ValueError(f"out is {str(self.folder)!r}, whose {STATE_FILE} cannot be resumed ({reason})")

    def read_weights(self, name: str, model: Backbone) -> None:
        """Fill the model with what `save_weights` wrote."""
        checkpoints.load_weights(model, self.folder / name)

    def save_weights(self, name: str, model: Backbone, data: ImageData, step: int) -> None:
        """Write weights, with what is needed to use them on other images."""
        extra = {"classes": data.classes, "step": step, "recipe": asdict(self.config)}
        checkpoints.save(model, self.folder / name, extra)
