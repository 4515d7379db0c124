"""The models in timm's registry: then `timm.create_model("vim_tiny_patch16_224")` builds ours."""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import nn

from minivim.models.registry import create_model, list_models

default_cfgs: dict = {}  # timm looks here for a model's image size, mean and deviation


def timm_module(name: str) -> ModuleType:
    """A module of timm. No extra installs it: who registers models there has it."""
    try:
        return importlib.import_module(f"timm.{name}")
    except Exception as error:  # also a RuntimeError, where torchvision was built for another torch
        raise ImportError(f"timm could not be imported ({error}); install it with: pip install timm") from error


def register_with_timm() -> list[str]:
    """Enter all models into timm's registry; returns their names there. A second call changes nothing.

    Vims keep their names. timm has DeiTs of its own, so ours are called minivim_deit_...
    Raises ImportError if timm cannot be imported.
    """
    timm = timm_module("models")
    names = {name if name.startswith("vim") else f"minivim_{name}": name for name in list_models()}
    for entry, name in names.items():
        if timm.is_model(entry):
            continue
        with torch.device("meta"):
            default_cfgs[entry] = timm.generate_default_cfgs({entry: create_model(name).default_cfg})[entry]
        timm.register_model(_builder(entry, name))
    return list(names)


def _builder(entry: str, name: str) -> Callable[..., nn.Module]:
    """What timm calls to build a model; its `__name__` becomes the model's name there."""

    def build(
        pretrained: bool = False,
        pretrained_cfg=None,  # these three are about weights to download
        pretrained_cfg_overlay=None,
        cache_dir=None,
        features_only: bool = False,
        out_indices: int | Sequence[int] = 3,
        feature_cls: str = "getter",
        **overrides,
    ) -> nn.Module:
        if feature_cls != "getter":
            raise ValueError(f"feature_cls is {feature_cls!r}; it must be 'getter', which calls forward_intermediates")
        model = create_model(name, pretrained, **overrides)
        if not features_only:
            return model
        features = timm_module("models._features").FeatureGetterNet(model, out_indices)
        features.pretrained_cfg = features.default_cfg = model.default_cfg
        return features

    build.__name__ = entry
    return build
