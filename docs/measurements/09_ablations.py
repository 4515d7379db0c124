"""A small Vim trained on digits, with one thing changed at a time: what chapter 09 compares.

    python docs/measurements/09_ablations.py [SEEDS]     writes 09_ablations.json here; what is there is kept

Each run is also one command, `minivim train` with the settings and the flags that the file names, except for the last
variant, in which weight decay reaches A_log too: no flag does that.
"""

import sys
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest import mock

from torch import nn
from trainings import measure

from minivim import VisionMamba
from minivim.train import TrainConfig, train

OUT = Path(__file__).with_suffix(".json")
COMMON = {"data": "digits", "patch_size": 1, "embed_dim": 32, "depth": 2, "epochs": 15, "lr": 8e-3, "threads": 1}
EXPERIMENTS: dict[str, dict] = {
    "baseline": {},
    "class token: front": {"cls_token": "head"},
    "class token: both ends": {"cls_token": "double"},
    "none: mean of all tokens": {"cls_token": "none"},
    "none: maximum": {"cls_token": "max"},
    "forward only": {"directions": 1},
    "forward only, mean of all tokens": {"directions": 1, "cls_token": "none"},
    "no position embedding": {"pos_embed": False},
    "order: columns": {"scan_order": "columns"},
    "order: snake": {"scan_order": "snake"},
    "official init": {"init": "official"},
    "N = 1": {"state_dim": 1},
    "N = 4": {"state_dim": 4},
    "weight decay 1": {"weight_decay": 1.0},
    "weight decay 1, A_log too": {"weight_decay": 1.0},
}


def decay_of_a_log() -> AbstractContextManager:
    """Inside, weight decay spares what it always does, but for A_log."""
    usual = VisionMamba.no_weight_decay

    def without(model: VisionMamba) -> set[str]:
        return {name for name in usual(model) if not name.endswith("A_log")}

    return mock.patch.object(VisionMamba, "no_weight_decay", without)


def decay_rates(model: nn.Module) -> list[float]:
    """-A for each of the N states, the mean over all channels, blocks and directions."""
    found = [p.detach().exp() for name, p in model.named_parameters() if name.endswith("A_log")]
    return [float(f"{rate:.3g}") for rate in sum(rates.mean(0) for rates in found) / len(found)]


def record(name: str, seed: int) -> dict:
    """What is kept of one run: losses and accuracies, epoch by epoch, the test's at the end, and the decay rates."""
    changes = EXPERIMENTS[name]
    with tempfile.TemporaryDirectory() as folder, decay_of_a_log() if "A_log" in name else nullcontext():
        config = TrainConfig(**COMMON, **changes, seed=seed, out=f"{folder}/run", progress=False)
        result = train(config)
    history = result.history
    return {
        "name": name,
        "seed": seed,
        "flags": " ".join(f"--{key.replace('_', '-')} {value}" for key, value in changes.items()),
        "train_loss": [round(epoch["train_loss"], 3) for epoch in history],
        "val_loss": [round(epoch["val_loss"], 3) for epoch in history],
        "test_accuracy": round(result.accuracy, 4),
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "decay_rates": decay_rates(result.model),
        "seconds": round(history[-1]["seconds"], 1),
    }


if __name__ == "__main__":
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    measure(OUT, f"python docs/measurements/09_ablations.py {seeds}", COMMON, EXPERIMENTS, seeds, record)
