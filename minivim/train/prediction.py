"""A trained model at work: score a set of images, name what is in a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.data import Dataset

from minivim.data import ImageData, load_data
from minivim.data.augment import normalise
from minivim.data.images import fetch, fit, read_image, to_tensor
from minivim.models import checkpoints
from minivim.models.backbone import Backbone
from minivim.processes import choose_device
from minivim.train.backend import apply_backend


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    images: UInt8[Tensor, "M 3 H W"] | Dataset,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int = 256,
    bf16: bool = False,
    workers: int = 0,
) -> Float[Tensor, "M K"]:
    """The model's logits for all images, on the CPU; the model is in evaluation mode meanwhile."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits = []
    for batch in fetch(images, torch.arange(len(images)).split(batch_size), workers):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits.append(model(normalise(batch.to(device), tuple(mean), tuple(std))).float().cpu())
    model.train(was_training)
    return torch.cat(logits)


def open_checkpoint(
    checkpoint: str | os.PathLike, device: str | None = None, backend: str = "auto"
) -> tuple[Backbone, dict]:
    """The model of a file written by `train`, ready for use, and what `train` stored beside it: classes, mean, std."""
    model, extra = checkpoints.load(checkpoint), checkpoints.load_extra(checkpoint)
    if not {"classes", "mean", "std"} <= extra.keys():
        raise ValueError(f"checkpoint is {str(checkpoint)!r}; it must be written by minivim train (it has no classes)")
    place = choose_device(device)
    apply_backend(model, backend, place)
    return model.to(place).eval(), extra


def evaluate(
    checkpoint: str | os.PathLike, data: str | os.PathLike | ImageData, *, device: str | None = None,
    backend: str = "auto", workers: int = 2, classes: int | str | None = None, image_column: str | None = None,
    label_column: str | None = None,
) -> dict:  # fmt: skip
    """Score a checkpoint on the test images of `data` (a name or folder as in `load_data`, or what it returned).

    classes, image_column, label_column: as in `load_data`.

    Returns {"images", "accuracy", "loss", "per_class": {class: accuracy}}, accuracies from 0 to 1.
    """
    model, extra = open_checkpoint(checkpoint, device, backend)
    if not isinstance(data, ImageData):
        data = load_data(
            data, img_size=model.config.image_shape[0], classes=classes, image_column=image_column,
            label_column=label_column,
        )  # fmt: skip
    if list(data.classes) != extra["classes"]:
        raise ValueError(f"data has the classes {list(data.classes)}; they must be the model's: {extra['classes']}")
    logits = logits_of(model, data.test_images, extra["mean"], extra["std"], workers=workers)
    right = (logits.argmax(1) == data.test_labels).float()
    per_class = {
        name: right[data.test_labels == label].mean().item()
        for label, name in enumerate(data.classes)
        if (data.test_labels == label).any()
    }
    loss = F.cross_entropy(logits, data.test_labels).item()
    return {"images": len(right), "accuracy": right.mean().item(), "loss": loss, "per_class": per_class}


def predict(
    checkpoint: str | os.PathLike, images: Sequence[str | os.PathLike], *, top: int = 3, device: str | None = None,
    backend: str = "auto",
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """For each image file the `top` likeliest classes, best first, with their probabilities."""
    if not images:
        raise ValueError("images is empty; it must name at least one image file")
    for path in images:
        if not Path(path).is_file():
            raise ValueError(f"image is {os.fspath(path)!r}; it must be an existing file")
    model, extra = open_checkpoint(checkpoint, device, backend)
    size = model.config.image_shape[0]
    batch = torch.stack([to_tensor(fit(read_image(path), size)) for path in images])
    probabilities = logits_of(model, batch, extra["mean"], extra["std"]).softmax(1)
    best = probabilities.topk(min(top, len(extra["classes"])))
    return [
        [(extra["classes"][label], p) for p, label in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
