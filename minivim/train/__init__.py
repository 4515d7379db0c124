"""Training, and a trained model at work."""

from minivim.train.loop import TrainResult, train
from minivim.train.prediction import evaluate, predict
from minivim.train.recipes import PRESETS, TrainConfig, resolve
from minivim.train.step import compute_gradients, decay_groups, epoch_batches, learning_rate
from minivim.train.tasks import build_model

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
