"""Fine-tuning: a model that starts from the weights of a file, ours or an official Vim's."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from minivim.checks import listed, shortened, shown
from minivim.data import ImageData
from minivim.models import Backbone, checkpoints
from minivim.models.config import BackboneConfig
from minivim.models.registry import MODELS
from minivim.preparation import Preparation

FRESH = ("paper", "official")  # what `init` may be beside a file
# The fields of a run that are the file's own; img_size and stride are so unless they are given.
SHAPE = (
    "model", "patch_size", "embed_dim", "depth", "expand", "state_dim", "cls_token", "pos_embed", "directions",
    "scan_order",
)  # fmt: skip


@dataclass(frozen=True)
class Pretrained:
    """What a file holds: a model, the registered name that it goes by, what it says of its classes, None if nothing."""

    file: str
    model: Backbone
    name: str
    classes: object

    @property
    def shape(self) -> dict:
        """The fields of a run that the file decides; one that this kind of model does not have is left out."""
        config = self.model.config
        return {"model": self.name} | {name: getattr(config, name) for name in SHAPE if hasattr(config, name)}

    @property
    def grid(self) -> dict:
        """img_size, the side of the images that it was trained on, None if they are no squares, and stride."""
        height, width = self.model.config.image_shape
        return {"img_size": height if height == width else None, "stride": self.model.config.patch_stride}

    def has(self, classes: Sequence[str]) -> bool:
        """Whether its head tells these classes apart; one without names, as many."""
        named = self.classes is None or self.classes == list(classes)
        return named and self.model.num_classes == len(classes)


def weights_file(init: str | None) -> str | None:
    """The file that `init` names, None where it names a way to draw fresh weights."""
    return None if init in (None, *FRESH) else init


def read_pretrained(file: str) -> Pretrained:
    """The model in a file. Raises ValueError, naming init, for one that is missing, damaged or no classifier."""
    if not isinstance(file, str) or not os.path.isfile(file):
        raise ValueError(f"init is {shown(file)}; it must be {', '.join(FRESH)} or an existing file of weights")
    try:
        model, extra = checkpoints.load_any(file)
    except ValueError as error:
        reason = shortened(str(error), 130)
        raise ValueError(f"init is {shown(file)}; it must be weights of minivim or official ones ({reason})") from error
    if model.config.in_chans != 3:
        raise ValueError(f"init is {shown(file)}, for {model.config.in_chans} channels; they must be three")
    if model.config.pooling == "" or type(model) not in {model_class for model_class, *_ in MODELS.values()}:
        raise ValueError(f"init is {shown(file)}, which names no image; it must be a classifier")
    said = extra or {}
    return Pretrained(file, model, registered_name(model, said.get("recipe")), said.get("classes"))


def registered_name(model: Backbone, recipe: object) -> str:
    """The name in the recipe that a file of ours holds; else that of the registered model with most in common."""
    names = [name for name, (model_class, *_) in MODELS.items() if model_class is type(model)]
    told = recipe.get("model") if isinstance(recipe, dict) else None
    if told in names:
        return told

    def common(name: str) -> int:
        _, config_class, changes = MODELS[name]
        registered = config_class(**changes)
        return sum(getattr(registered, each.name) == getattr(model.config, each.name) for each in fields(registered))

    return max(names, key=common)


def is_shaped(wanted: Mapping, pretrained: Pretrained) -> bool:
    """Whether the model that is wanted is the file's: by its name, or since it is built alike with the sizes wanted."""
    name, shape = wanted.get("model"), pretrained.shape
    if name == pretrained.name or name not in MODELS:
        return name == pretrained.name
    model_class, config_class, changes = MODELS[name]
    registered, stride = config_class(**changes), pretrained.grid["stride"]
    alike = all(wanted.get(field, getattr(registered, field, None)) == shape.get(field) for field in SHAPE[1:])
    alike = alike and ("stride" in wanted or (registered.stride or shape["patch_size"]) == stride)
    return alike and model_class is type(pretrained.model)


def check_shape(wanted: Mapping, pretrained: Pretrained) -> None:
    """Raise a ValueError that names the first field which is wanted to be another one than the file's."""
    shape = pretrained.shape
    for name in SHAPE:
        agrees = is_shaped(wanted, pretrained) if name == "model" else wanted.get(name) == shape.get(name)
        if name in wanted and not agrees:
            theirs = f"be {shown(shape[name])}" if name in shape else "not be given"
            raise ValueError(f"{name} is {shown(wanted[name])}; it must {theirs}, as in init, {shown(pretrained.file)}")


def tuned_model(
    file: str, data: ImageData, *, drop_path: float, stride: int | None = None, crop: float = 1.0
) -> tuple[Backbone, str]:
    """(a model that starts from a file's weights, for these images and classes; in words, what of it is the file's).

    Its head is fresh unless the file's classes are those of the data. Its position embedding is resized where the size
    or the stride differs, and images are normalised with the file's mean and std, which its first layer knows, and
    evaluated on their centre as `crop` says, whatever the file says.
    """
    pretrained = read_pretrained(file)
    before, keeps_head = pretrained.model.config, pretrained.has(data.classes)
    old = pretrained.model.resize_to(data.img_size, data.img_size, stride)
    model = type(old)(replace(old.config, num_classes=len(data.classes), drop_path_rate=drop_path))
    taken = {name: tensor for name, tensor in old.state_dict().items() if keeps_head or not name.startswith("head.")}
    model.load_state_dict(model.state_dict() | taken)
    known = old.preparation or Preparation(mean=data.mean, std=data.std)
    model.preparation = Preparation(mean=known.mean, std=known.std, crop_pct=crop)
    head = "its head" if keeps_head else f"a new head for {model.num_classes} classes (it has {old.num_classes})"
    statistics = "its mean and std" if old.preparation else "mean and std of these images"
    return model, f"starts from {listed([file])}: {head}, {resizing(before, model.config)}{statistics}"


def resizing(before: BackboneConfig, after: BackboneConfig) -> str:
    """What another size of image and another stride change, in words; "" for the same."""
    changes = []
    if before.image_shape != after.image_shape:
        old, new = (f"{height}x{width}" for height, width in (before.image_shape, after.image_shape))
        changes.append(f"from {old} to {new} pixels")
    if before.patch_stride != after.patch_stride:
        changes.append(f"from stride {before.patch_stride} to {after.patch_stride}")
    what = "position embedding resized" if after.pos_embed else "input"
    return f"{what} {' and '.join(changes)}, " if changes else ""


def freeze_backbone(model: Backbone) -> None:
    """Let the head alone learn: a linear classifier of what the last norm gives."""
    model.requires_grad_(False)
    model.get_classifier().requires_grad_(True)
