"""A trained model at work: score a set of images, name what is in a picture."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64, UInt8
from torch import Tensor, nn
from torch.utils.data import Subset

from minivim.checks import MOST_WORKERS, check_whole, shown
from minivim.data import ImageData, load_data
from minivim.data.augment import normalise
from minivim.data.images import LazyImages, fetch, fit, read_image, to_tensor
from minivim.models import checkpoints
from minivim.models.backbone import Backbone
from minivim.processes import choose_device
from minivim.train.backend import apply_backend


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    images: UInt8[Tensor, "M 3 H W"] | LazyImages | Subset,
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


def score(logits: Float[Tensor, "M K"], labels: Int64[Tensor, " M"]) -> Float64[Tensor, "3"]:
    """The sums over all images of the cross-entropy and of the right answers, and the number of images."""
    loss, right = F.cross_entropy(logits, labels, reduction="sum"), (logits.argmax(1) == labels).sum()
    return torch.stack([loss.double(), right.double(), torch.tensor(len(labels), dtype=torch.float64)])


def open_checkpoint(
    checkpoint: str | os.PathLike, device: str | None = None, backend: str = "auto"
) -> tuple[Backbone, list[str] | None]:
    """The model of a file written by `train`, or of an official one, ready for use, and the names of its classes.

    An official file has no names: None. Raises ValueError for a file that says too little or contradicts itself.
    """
    model, extra = checkpoints.load_any(os.fspath(checkpoint))
    if extra is not None and ("classes" not in extra or model.preparation is None):
        raise ValueError(f"checkpoint is {str(checkpoint)!r}; it must be written by minivim train (it has no classes)")
    classes = None if extra is None else check_classes(extra["classes"], model.num_classes)
    if model.num_classes == 0 or model.config.pooling == "":
        raise ValueError(
            f"checkpoint is {str(checkpoint)!r}, which has no classes for an image; it must be a classifier"
        )
    if model.preparation is None:
        raise ValueError(f"checkpoint is {str(checkpoint)!r} for {model.config.in_chans} channels; they must be three")
    place = choose_device(device)
    apply_backend(model, backend, place)
    return model.to(place).eval(), classes


def check_classes(classes: object, count: int) -> list[str]:
    """`classes` if it is a list of `count` names, else a ValueError."""
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes is {shown(classes)}; it must be a list of names")
    if len(classes) != count:
        raise ValueError(f"classes has {len(classes)} names; it must have one for each of the model's {count} outputs")
    return classes


def check_same_classes(data: list[str], classes: list[str] | None, count: int) -> None:
    """Raise a ValueError unless data has the model's classes; where these have no names, as many."""
    if classes is None and len(data) != count:
        raise ValueError(f"data has {len(data)} classes; it must have as many as the model: {count}")
    if classes is not None and data != classes:
        raise ValueError(f"data has the classes {shown(data)}; they must be the model's: {shown(classes)}")


def evaluate(
    checkpoint: str | os.PathLike, data: str | os.PathLike | ImageData, *, device: str | None = None,
    backend: str = "auto", workers: int = 2, classes: int | str | None = None, image_column: str | None = None,
    label_column: str | None = None,
) -> dict:  # fmt: skip
    """Score a checkpoint on the test images of `data` (a name or folder as in `load_data`, or what it returned).

    The checkpoint is one of `train`, or an official one, whose classes are those of the data in their order.
    classes, image_column, label_column: as in `load_data`.

    Returns {"images", "accuracy", "loss", "per_class": {class: accuracy}}, accuracies from 0 to 1.
    """
    check_whole("workers", workers, minimum=0, maximum=MOST_WORKERS)
    model, names = open_checkpoint(checkpoint, device, backend)
    preparation = model.preparation
    if not isinstance(data, ImageData):
        data = load_data(
            data, img_size=model.config.image_shape, crop=preparation.crop_pct, classes=classes,
            image_column=image_column, label_column=label_column,
        )  # fmt: skip
    check_same_classes(list(data.classes), names, model.num_classes)
    logits = logits_of(model, data.test_images, preparation.mean, preparation.std, workers=workers)
    loss, right, count = score(logits, data.test_labels).tolist()
    per_class = {}
    for label, name in enumerate(data.classes):
        of_class = data.test_labels == label
        if of_class.any():
            _, hits, members = score(logits[of_class], data.test_labels[of_class]).tolist()
            per_class[name] = hits / members
    return {"images": int(count), "accuracy": right / count, "loss": loss / count, "per_class": per_class}


def predict(
    checkpoint: str | os.PathLike, images: Sequence[str | os.PathLike], *, top: int = 3, device: str | None = None,
    backend: str = "auto",
) -> list[list[tuple[str, float]]]:  # fmt: skip
    """For each image file the `top` likeliest classes, best first, with their probabilities.

    The classes of an official checkpoint, which has no names, are numbers: those of ImageNet's folders in their order.
    """
    if not images:
        raise ValueError("images is empty; it must name at least one image file")
    for path in images:
        if not Path(path).is_file():
            raise ValueError(f"image is {os.fspath(path)!r}; it must be an existing file")
    model, classes = open_checkpoint(checkpoint, device, backend)
    preparation = model.preparation
    pictures = [fit(read_image(path), model.config.image_shape, preparation.crop_pct) for path in images]
    batch = torch.stack([to_tensor(picture) for picture in pictures])
    probabilities = logits_of(model, batch, preparation.mean, preparation.std).softmax(1)
    names = classes or [str(index) for index in range(model.num_classes)]
    best = probabilities.topk(min(top, len(names)))
    return [
        [(names[label], p) for p, label in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
