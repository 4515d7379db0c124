"""What is classification about a training run; another task has the same four parts."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor
from torch.utils.data import Subset

from minivim.data import ImageData
from minivim.data.augment import augment
from minivim.data.images import LazyImages
from minivim.models import Backbone, checkpoints, create_model
from minivim.preparation import Preparation
from minivim.processes import Team
from minivim.train.prediction import logits_of, score
from minivim.train.pretrained import SHAPE, freeze_backbone, tuned_model, weights_file
from minivim.train.recipes import TrainConfig


def build_model(config: TrainConfig, data: ImageData) -> Backbone:
    """The configuration's model for these images and classes, as training begins with it."""
    return begin(config, data)[0]


def begin(config: TrainConfig, data: ImageData) -> tuple[Backbone, str]:
    """(the configuration's model, in words where its weights come from: "" for fresh ones)."""
    file = weights_file(config.init)
    if file is None:
        return fresh_model(config, data), ""
    return tuned_model(file, data, drop_path=config.drop_path, stride=config.stride, crop=config.eval_crop)


def fresh_model(config: TrainConfig, data: ImageData) -> Backbone:
    """A model with the seed's random weights."""
    fields = (*SHAPE[1:], "stride", "init")  # all but the model's name
    overrides = {name: getattr(config, name) for name in fields if getattr(config, name) is not None}
    overrides |= {"img_size": data.img_size, "num_classes": len(data.classes), "drop_path_rate": config.drop_path}
    model = create_model(config.model, **overrides)
    model.preparation = Preparation(mean=data.mean, std=data.std, crop_pct=config.eval_crop)  # stored with the weights
    return model


class Classification:
    """One label an image: a model, a batch made ready, a loss, a score."""

    loss = staticmethod(F.cross_entropy)
    goal = "val_accuracy"  # what `evaluate` finds, and the best weights have most of

    def __init__(self, config: TrainConfig, data: ImageData, team: Team):
        self.config, self.data, self.team = config, data, team
        self.origin = ""  # of the weights, in words

    def build_model(self) -> Backbone:
        """The model that training begins with, on the team's device."""
        model, self.origin = begin(self.config, self.data)
        return self._ready(model)

    def rebuild_model(self, header: dict) -> Backbone:
        """The model that a run's state describes, on the team's device; its weights are still to come."""
        return self._ready(checkpoints.rebuild(header))

    def _ready(self, model: Backbone) -> Backbone:
        """Take over how images are prepared; what does not learn asks for no gradient."""
        self.mean, self.std = tuple(model.preparation.mean), tuple(model.preparation.std)
        if self.config.freeze:
            freeze_backbone(model)
        return model.to(self.team.device)

    def prepare(
        self, images: UInt8[Tensor, "B 3 H W"], labels: Int64[Tensor, " B"], generator: Generator
    ) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B K"]]:
        """The augmented images and their targets, on the images' device."""
        classes = len(self.data.classes)
        config: Any = self.config  # an Augmentation, but frozen, and a Protocol's attributes can be set
        return augment(images, labels, classes, self.mean, self.std, config, generator)

    def evaluate(self, model: Backbone, part: str) -> dict[str, float]:
        """Mean cross-entropy and accuracy on the images of a part, val or test; each process scores its share."""
        data, team = self.data, self.team
        images, labels = getattr(data, f"{part}_images"), getattr(data, f"{part}_labels")
        rows = torch.arange(team.rank, len(labels), team.size)
        labels = labels[rows]
        share = Subset(images, rows.tolist()) if isinstance(images, LazyImages) else images[rows]
        sums = torch.zeros(3, dtype=torch.float64)
        if len(rows):
            workers, bf16 = self.config.workers, self.config.bf16
            logits = logits_of(model, share, self.mean, self.std, bf16=bf16, workers=workers)
            sums = score(logits, labels)
        loss, right, count = team.mean(sums).tolist()
        return {f"{part}_loss": loss / count, f"{part}_accuracy": right / count}
