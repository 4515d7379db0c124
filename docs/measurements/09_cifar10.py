"""CIFAR-10's long CPU runs as one file: what the README's table, chapter 09 and the cards of the weights quote.

python docs/measurements/09_cifar10.py RUN ...     takes the folders that `minivim train` wrote, writes
                                                   09_cifar10.json here; runs that are there already are kept
"""

import datetime
import json
import platform
import shlex
import sys
from pathlib import Path

import torch

from minivim.bench.measure import device_name
from minivim.models import checkpoints
from minivim.train.recipes import PRESETS, TrainConfig, given, saved_config

OUT = Path(__file__).with_suffix(".json")
MACHINE_ONLY = ("data", "preset", "seed", "out", "threads", "progress", "resume", "save_seconds")


def flags_of(config: TrainConfig) -> str:
    """What a command line has to say beside the preset and the seed."""
    preset = given(PRESETS[config.preset])
    model = config.model if config.model != preset["model"] else None
    changed = {"model": model} if model else {}
    changed |= {name: getattr(config, name) for name in ("depth", "epochs") if getattr(config, name) != preset[name]}
    return shlex.join(part for name, value in changed.items() for part in (f"--{name.replace('_', '-')}", str(value)))


def record(folder: Path) -> dict:
    """What is kept of a run: its command, its curves epoch by epoch, and what the test images said at the end."""
    config, history = saved_config(folder), [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    weights = checkpoints.load(folder / "last.safetensors")
    return {
        "name": "DeiT" if config.model.startswith("deit") else "Vim",
        "seed": config.seed,
        "preset": config.preset,
        "flags": flags_of(config),
        "threads": config.threads,
        "parameters": sum(p.numel() for p in weights.parameters()),
        **{name: [round(epoch[name], 4) for epoch in history] for name in ("train_loss", "val_loss", "val_accuracy")},
        "test_accuracy": history[-1]["test_accuracy"],
        "best_test_accuracy": history[-1]["best_test_accuracy"],
        "best_epoch": history[-1]["best_epoch"],
        "seconds": round(history[-1]["seconds"]),
    }


if __name__ == "__main__":
    known = {(run["name"], run["seed"]): run for run in json.loads(OUT.read_text())["runs"]} if OUT.exists() else {}
    known |= {(run["name"], run["seed"]): run for run in map(record, map(Path, sys.argv[1:]))}
    page = {
        "machine": device_name("cpu"),
        "command": "python docs/measurements/09_cifar10.py RUN ...",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "runs": [known[key] for key in sorted(known, reverse=True)],
    }
    OUT.write_text(json.dumps(page, indent=1) + "\n")
