"""The official Vim checkpoints: their names for our tensors, and what their options make of our configuration."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from minivim.checks import listed, shown
from minivim.models.checkpoints.options import (
    CHOICES,
    NUMBERS,
    SWITCHES,
    check_complete,
    check_option,
    fields_of,
    preparation_of,
    read_args,
    refuse_foreign,
    telling_names,
)
from minivim.models.checkpoints.own import own_state, read_all, unwrap
from minivim.models.checkpoints.weights import (
    check_tensors,
    compare,
    count_blocks,
    empty_model,
    expected_state,
    fill,
    find_weights,
    shapes_of,
)
from minivim.models.vim import VimConfig, VisionMamba

OFFICIAL_IMG_SIZE = 224
OVERRIDES = (*SWITCHES, *CHOICES, *NUMBERS)  # the options that have no field of the same meaning

# The tensors whose shapes tell the sizes, and how many dimensions each has.
TELLING = {
    "patch_embed.proj.weight": 4,
    "layers.0.mixer.A_log": 2,
    "layers.0.mixer.conv1d.weight": 3,
    "layers.0.mixer.dt_proj.weight": 2,
}
# One direction's parameters in our SelectiveSSM: the official names, forward and backward.
OFFICIAL_SSM = {
    "conv_weight": ("conv1d.weight", "conv1d_b.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias"),
    "x_proj.weight": ("x_proj.weight", "x_proj_b.weight"),
    "dt_proj.weight": ("dt_proj.weight", "dt_proj_b.weight"),
    "dt_proj.bias": ("dt_proj.bias", "dt_proj_b.bias"),
    "A_log": ("A_log", "A_b_log"),
    "D": ("D", "D_b"),
}


# ---------------------------------------------------------------- names


def official_name(name: str) -> str:
    """The official code's name for one of our parameters."""
    if name == "norm.weight":
        return "norm_f.weight"
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block is None:
        return name
    index, rest = block.groups()
    for direction, prefix in enumerate(("mixer.forward_ssm.", "mixer.backward_ssm.")):
        if rest.startswith(prefix):
            rest = "mixer." + OFFICIAL_SSM[rest.removeprefix(prefix)][direction]
    return f"layers.{index}.{rest}"


def official_items(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """A state dict of ours under the official names and in the official shapes; the tensors are views."""
    for name, tensor in state.items():
        if name == "cls_token" and tensor.shape[1] == 2:
            yield from (("cls_token_head", tensor[:, :1]), ("cls_token_tail", tensor[:, 1:]))
        elif name.endswith("conv_weight"):
            yield official_name(name), tensor[:, None]  # nn.Conv1d's (E, 1, K)
        else:
            yield official_name(name), tensor


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights under the official names and in the official shapes; what wraps the model is left out.

    A state dict does not tell everything. The official VisionMamba that takes these weights needs if_divide_out=True,
    norm_epsilon=config.norm_eps, use_middle_cls_token=True for cls_token "middle" and False for "head",
    final_pool_type="mean", or "all" where global_pool is "", and the image's size and stride.
    Raises TypeError for another model, ValueError for one whose layers were replaced or that the official code lacks.
    """
    model = unwrap(model)
    if not isinstance(model, VisionMamba):
        raise TypeError(f"model is a {type(model).__name__}; it must be a VisionMamba, as the official names are Vim's")
    config = model.config
    for field, foreign in (("scan_order", ("columns", "snake")), ("cls_token", ("max",))):
        value = getattr(config, field)
        if value in foreign:
            raise ValueError(f"{field} is {value!r}; it must be one that the official code has, to be given its names")
    usual = "avg" if config.cls_token == "none" else "token"
    if config.pooling != usual and (config.pooling, config.cls_token) != ("", "none"):
        raise ValueError(
            f"global_pool is {config.global_pool!r} and cls_token {config.cls_token!r}; they must be a pair that the "
            "official code has, to be given its names"
        )
    return {name: tensor.detach().clone() for name, tensor in official_items(own_state(model))}


# ---------------------------------------------------------------- loading


def load_official(path_or_state_dict: str | Path | Mapping, *, weights: str | None = None, **overrides) -> VisionMamba:
    """A VisionMamba from an official checkpoint: a file (.pth, .safetensors) or a state dict, with official names.

    What wraps the weights is taken off: containers (model, state_dict, ...), prefixes (module., backbone., ...). Of
    several models in a file, `weights` names the one to take ("model_ema"); else it is the first that is no average.
    The configuration is read off the shapes; what they do not tell, off the `args` in the file, the training script's
    command line, and off the model's name in it. Where nothing tells, it is as in the registered official models:
    class token in the middle, mean of all tokens without one, directions averaged, norm_eps 1e-5; 224 pixels where a
    stride of at most patch_size gives the grid found, else stride = patch_size.
    `overrides` come first: fields of VimConfig, and official options that have none (if_divide_out=False). How a model
    is trained (drop, drop_path) is not read.
    Raises ValueError for what cannot be read, for an option that ours does not have, by its name, for args that
    contradict the shapes, and lists the names that are missing, unexpected or of another shape.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, args = "path_or_state_dict", path_or_state_dict.get("args")
        state = find_weights(path_or_state_dict, source, weights)
    elif not isinstance(path_or_state_dict, str | Path):
        raise TypeError(f"path_or_state_dict is {shown(path_or_state_dict)}; it must be a path or a state dict")
    else:
        source = str(path_or_state_dict)
        state, header, args = read_all(path_or_state_dict, weights)
        if header is not None:
            raise ValueError(f"path is {source!r}; it must be an official checkpoint (minivim's own: load)")
    return official_model(state, args, source, **overrides)


def official_model(state: Mapping[str, Tensor], args: object, source: str, **overrides) -> VisionMamba:
    """As `load_official`, from a state dict and `args`. Nothing is allocated before all fits."""
    valid = (*VimConfig.__dataclass_fields__, *OVERRIDES)
    for key, value in overrides.items():
        if key not in valid:
            raise ValueError(f"{key} is {shown(value)}; an override must be one of {', '.join(valid)}")
    fields = {key: value for key, value in overrides.items() if key not in OVERRIDES}
    for key in overrides.keys() - fields.keys():
        check_option(key, key, overrides[key])
    found = shape_fields(state, source)
    stated, name = read_args(args)
    options = stated | {key: overrides[key] for key in overrides.keys() - fields.keys()}
    config = complete_config(found, options, name, fields, state, source)
    check_official(expected_state(VisionMamba, config, state, source), state, source)
    return fill_official(empty_model(VisionMamba, config, source), state, args, options)


def shape_fields(state: Mapping[str, Tensor], source: str) -> dict:
    """What names and shapes tell of the configuration; of a single class token not where it stands."""
    shape = telling_shapes(state, source)
    embed_dim, in_chans, patch_size, _ = shape["patch_embed.proj.weight"]
    inner_dim, state_dim = shape["layers.0.mixer.A_log"]
    return {
        "in_chans": in_chans,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": count_blocks(state, source),
        "num_classes": math.prod(state["head.weight"].shape[:1]) if "head.weight" in state else 0,
        "expand": inner_dim // embed_dim,
        "state_dim": state_dim,
        "dt_rank": shape["layers.0.mixer.dt_proj.weight"][1],
        "conv_kernel": shape["layers.0.mixer.conv1d.weight"][2],
        "cls_token": "double" if "cls_token_head" in state else "middle" if "cls_token" in state else "none",
        "pos_embed": "pos_embed" in state,
        "directions": 2 if "layers.0.mixer.A_b_log" in state else 1,
    }


def telling_shapes(state: Mapping[str, Tensor], source: str) -> dict[str, tuple[int, ...]]:
    """The shapes of TELLING. Raises ValueError for a state dict without them, which is no official one."""
    missing = [name for name in TELLING if name not in state]
    if missing:
        raise ValueError(
            f"{source} lacks {', '.join(missing)}; it must be an official Vim state dict (it has {listed(state)})"
        )
    shapes = {name: tuple(state[name].shape) for name in TELLING}
    for name, shape in shapes.items():
        if len(shape) != TELLING[name] or 0 in shape:
            raise ValueError(f"{source} has {name} of shape {shape}; it must have {TELLING[name]} dimensions")
    return shapes


def complete_config(
    found: dict, options: dict, name: str | None, fields: dict, state: Mapping[str, Tensor], source: str
) -> VimConfig:
    """The configuration: `found` in the shapes, then what `options` say, then the user's `fields`."""
    options.setdefault("if_cls_token", found["cls_token"] != "none")
    refuse_foreign(options)
    said = fields_of(options)
    headless = {"num_classes"} if "head.weight" not in state else set()
    check_agreement(found, {key: said[key] for key in said.keys() - fields.keys() - headless}, options, source)
    wanted = {"middle": ["use_middle_cls_token"], "none": ["final_pool_type"], "double": []}[found["cls_token"]]
    wanted = ["if_divide_out"] * (found["directions"] == 2) + ([] if "cls_token" in fields else wanted)
    check_complete(name, options, wanted)
    values = found | said | {"num_classes": found["num_classes"]} | fields
    given = {key: values[key] for key in ("img_size", "stride") if key in values}
    if "stride" not in fields and given.get("stride") == found["patch_size"]:
        given["stride"] = None
    geometry = _geometry(values["cls_token"], found["patch_size"], given, state, source)
    config = VimConfig(**{**values, **geometry, **given})
    if fields.keys().isdisjoint({"img_size", "stride"}):
        check_tokens(config, _tokens(state), source)
    return config


def check_agreement(found: Mapping, said: Mapping, options: Mapping, source: str) -> None:
    """Raise a ValueError where args or options say of the shapes what they are not."""
    kind = said.get("cls_token")
    kind = "middle" if kind == "head" else kind
    said = {**said, "cls_token": kind} if kind else said
    other = [
        f"{key} {shown(said[key])}, its shapes {found[key]}" for key in found if key in said and said[key] != found[key]
    ]
    if options.get("if_cls_token") and found["cls_token"] == "none":
        other.append("if_cls_token True, but there is none")
    if other:
        raise ValueError(f"{source} contradicts itself: its args, or the options given, say {'; '.join(other)}")


def check_tokens(config: VimConfig, tokens: int, source: str) -> None:
    """Raise a ValueError where img_size and stride as args state them make another number of tokens."""
    if config.pos_embed and config.num_tokens != tokens:
        raise ValueError(
            f"{source} contradicts itself: its args say img_size {shown(config.img_size)} and stride "
            f"{config.patch_stride}, which make {shown(config.num_tokens)} tokens; pos_embed has {tokens}"
        )


def _tokens(state: Mapping[str, Tensor]) -> int:
    """How many tokens have a position embedding; 0 for none."""
    return math.prod(state["pos_embed"].shape[1:2]) if "pos_embed" in state else 0


def _geometry(cls_token: str, patch_size: int, given: dict, state: Mapping[str, Tensor], source: str) -> dict:
    """img_size and stride, where they are not both given: for a square grid of as many patches as pos_embed has."""
    if "img_size" in given and "stride" in given:
        return {}
    if "pos_embed" not in state:
        raise ValueError(f"{source} lacks pos_embed, so that nothing tells img_size and stride; they must be given")
    patches = _tokens(state) - (2 if cls_token == "double" else 0 if cls_token in ("none", "max") else 1)
    side = math.isqrt(max(patches, 0))
    if side * side != patches or side == 0:
        raise ValueError(f"pos_embed has {patches} patches, which is no square; img_size and stride must be given")
    if "stride" in given:
        return {"img_size": (side - 1) * (given["stride"] or patch_size) + patch_size}
    img_size = given.get("img_size", OFFICIAL_IMG_SIZE)
    if isinstance(img_size, int) and side > 1:
        stride, rest = divmod(img_size - patch_size, side - 1)
        if rest == 0 and 0 < stride <= patch_size:
            return {"img_size": img_size, "stride": None if stride == patch_size else stride}
    return {"img_size": side * patch_size, "stride": None}


def check_official(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raise a ValueError unless an official state dict fits the `expected` one of ours, and is finite."""
    compare(shapes_of(dict(official_items(expected))), state, source, telling_names(state))
    check_tensors(state, source)


def fill_official(model: VisionMamba, state: Mapping[str, Tensor], args: object, options: Mapping) -> VisionMamba:
    """Give a model, on the meta device or not, the weights of an official state dict that fits it."""
    # Where the official model adds the directions instead of averaging them, out_proj takes the factor 2.
    factor = 2 if model.config.directions == 2 and options.get("if_divide_out") is False else 1
    ours = {}
    for name, tensor in model.state_dict().items():
        if name == "cls_token" and tensor.shape[1] == 2:
            ours[name] = torch.cat((state["cls_token_head"], state["cls_token_tail"]), dim=1)
        else:
            ours[name] = state[official_name(name)].reshape(tensor.shape)
        if name.endswith("out_proj.weight"):
            ours[name] = ours[name] * factor
    preparation = preparation_of(args, min(model.config.image_shape))
    model.preparation = preparation if len(preparation.mean) == model.config.in_chans else None
    return fill(model, ours)
