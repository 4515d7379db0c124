"""Training, and a trained model at work."""

from minivim.train.loop import (
    TrainResult,
    build_model,
    compute_gradients,
    decay_groups,
    epoch_batches,
    learning_rate,
    train,
)
from minivim.train.prediction import evaluate, predict
from minivim.train.recipes import PRESETS, TrainConfig, resolve

__all__ = [
    "PRESETS",
    "TrainConfig",
    "TrainResult",
    "build_model",
    "compute_gradients",
    "decay_groups",
    "epoch_batches",
    "evaluate",
    "learning_rate",
    "predict",
    "resolve",
    "train",
]
