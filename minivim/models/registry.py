"""Models by name."""

import difflib
from dataclasses import fields
from pathlib import Path

from minivim.models import checkpoints
from minivim.models.backbone import Backbone
from minivim.models.deit import DeiT, DeiTConfig
from minivim.models.vim import VimConfig, VisionMamba

# name -> (model, configuration, what differs from the configuration's defaults)
MODELS: dict[str, tuple[type[Backbone], type, dict]] = {
    "vim_tiny_patch16_224": (VisionMamba, VimConfig, {}),
    "vim_small_patch16_224": (VisionMamba, VimConfig, {"embed_dim": 384}),
    "vim_base_patch16_224": (VisionMamba, VimConfig, {"embed_dim": 768}),
    "vim_tiny_patch16_224_stride8": (VisionMamba, VimConfig, {"stride": 8}),
    "vim_small_patch16_224_stride8": (VisionMamba, VimConfig, {"embed_dim": 384, "stride": 8}),
    "vim_base_patch16_224_stride8": (VisionMamba, VimConfig, {"embed_dim": 768, "stride": 8}),
    "vim_tiny_patch4_32": (VisionMamba, VimConfig, {"img_size": 32, "patch_size": 4, "num_classes": 10}),
    "vim_nano_patch2_8": (
        VisionMamba,
        VimConfig,
        {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_classes": 10},
    ),
    "deit_tiny_patch16_224": (DeiT, DeiTConfig, {}),
    "deit_small_patch16_224": (DeiT, DeiTConfig, {"embed_dim": 384, "num_heads": 6}),
    "deit_base_patch16_224": (DeiT, DeiTConfig, {"embed_dim": 768, "num_heads": 12}),
    "deit_tiny_patch4_32": (DeiT, DeiTConfig, {"img_size": 32, "patch_size": 4, "num_classes": 10}),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(MODELS)


def create_model(name: str, pretrained: bool = False, *, checkpoint: str | Path | None = None, **overrides) -> Backbone:
    """Build a model by name; `overrides` replace fields of its configuration, `checkpoint` gives its weights.

    name: one of `list_models()`; checkpoint: a file of `checkpoints.save`, or an official Vim checkpoint.
    pretrained: timm's; False, as no weights are downloaded. global_pool, timm's: "avg" is cls_token "none", unless a
    cls_token is given too, which wins; "token" is the model's own, "" gives each token by itself.
    Raises ValueError for an unknown name, an unknown or impossible field, and a checkpoint that does not fit.
    """
    if pretrained:
        raise ValueError(f"pretrained is {pretrained!r}; it must be False, and checkpoint= a file with the weights")
    if name not in MODELS:
        near = difflib.get_close_matches(str(name), MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(MODELS)}{hint}")
    model_class, config_class, defaults = MODELS[name]
    valid = [field.name for field in fields(config_class)]
    for key, value in overrides.items():
        if key not in valid:
            raise ValueError(
                f"{key} is {value!r}, but {config_class.__name__} has no such field; "
                f"it must be one of {', '.join(valid)}"
            )
    if overrides.get("global_pool") == "avg":
        del overrides["global_pool"]
        overrides.setdefault("cls_token", "none")
    elif overrides.get("global_pool") == "token" and "cls_token" in overrides:
        del overrides["global_pool"]
    model = model_class(config_class(**{**defaults, **overrides}))
    return model if checkpoint is None else checkpoints.load_weights(model, checkpoint)
