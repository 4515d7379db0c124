"""Weights on disk: our own files, and the names that the official Vim code gives to the same tensors."""

import json
import math
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from minivim.extras import require
from minivim.files import write_atomically
from minivim.models.backbone import Backbone
from minivim.models.deit import DeiT, DeiTConfig
from minivim.models.vim import VimConfig, VisionMamba

CLASSES = {"VisionMamba": (VisionMamba, VimConfig), "DeiT": (DeiT, DeiTConfig)}
METADATA_KEY = "minivim"
OFFICIAL_IMG_SIZE = 224

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


# ---------------------------------------------------------------- our own files


def save(model: Backbone, path: str | Path, extra: Mapping | None = None) -> None:
    """Write the weights as safetensors, atomically, with the configuration (and `extra`, plain JSON) as metadata."""
    header = {"model": type(model).__name__, "config": asdict(model.config), "extra": dict(extra or {})}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors = require("safetensors.torch", "train")
    write_atomically(path, safetensors.save(tensors, metadata={METADATA_KEY: json.dumps(header)}))


def load(path: str | Path) -> Backbone:
    """The model of a file written by `save`. Raises ValueError for any other file."""
    tensors, header = read_file(path)
    if header is None:
        raise ValueError(f"path is {str(path)!r}; it must be a file written by minivim (official ones: load_official)")
    try:
        model_class, config_class = CLASSES[header["model"]]
        values = {key: tuple(x) if isinstance(x, list) else x for key, x in header["config"].items()}  # as before JSON
        config = config_class(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"path is {str(path)!r}; it must be a file of this version of minivim ({error})") from error
    return _fill(model_class(config), tensors, str(path))


def load_extra(path: str | Path) -> dict:
    """The `extra` that `save` put beside the weights, {} for a file without."""
    return (read_file(path)[1] or {}).get("extra", {})


def load_weights(model: Backbone, path: str | Path) -> Backbone:
    """Fill `model` with the weights of a file of ours or an official one; they must fit. Returns the model."""
    tensors, header = read_file(path)
    if header is None and isinstance(model, VisionMamba):
        return _fill_official(model, tensors, str(path))
    return _fill(model, tensors, str(path))


def read_file(path: str | Path) -> tuple[dict[str, Tensor], dict | None]:
    """(state dict, our header or None) of a .safetensors file or of a torch.save'd one, {"model": ...} unwrapped.

    Raises ValueError for a file that is missing, unreadable or not a state dict. Pickled code is never run.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path is {str(path)!r}; it must be an existing file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        # The official script stores its command line, an argparse.Namespace, beside the weights.
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen types, none of which says which file
        raise ValueError(
            f"path is {str(path)!r}; it must be a checkpoint that torch.load(weights_only=True) reads "
            f"({type(error).__name__})"
        ) from error
    return check_state_dict(content, str(path)), None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict | None]:
    safe_open = require("safetensors", "train").safe_open
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(METADATA_KEY)
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header) if header else None
    except Exception as error:
        raise ValueError(f"path is {str(path)!r}; it must be a safetensors file ({error})") from error


def check_state_dict(content: object, source: str) -> dict[str, Tensor]:
    """`content`, or content["model"], as a dict of named tensors. Raises ValueError if it is anything else."""
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        what = f"{type(content).__name__} without entries" if content == {} else type(content).__name__
        raise ValueError(f"{source} holds a {what}; it must be a state dict of named tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{source} holds a {type(value).__name__} under {name!r}; each value must be a tensor")
    return dict(content)


# ---------------------------------------------------------------- the official names


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


def to_official(model: VisionMamba) -> dict[str, Tensor]:
    """The model's weights under the official names and in the official shapes."""
    if not isinstance(model, VisionMamba):
        raise TypeError(f"model is a {type(model).__name__}; it must be a VisionMamba, as the official names are Vim's")
    for field, value in (("scan_order", model.config.scan_order), ("cls_token", model.config.cls_token)):
        if value in ("columns", "snake", "max"):
            raise ValueError(f"{field} is {value!r}; it must be one that the official code has, to be given its names")
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "cls_token" and tensor.shape[1] == 2:
            state["cls_token_head"], state["cls_token_tail"] = tensor[:, :1], tensor[:, 1:]
        elif name.endswith("conv_weight"):
            state[official_name(name)] = tensor[:, None]  # nn.Conv1d's (E, 1, K)
        else:
            state[official_name(name)] = tensor
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def load_official(path_or_state_dict: str | Path | Mapping, **overrides) -> VisionMamba:
    """A VisionMamba from an official checkpoint: a file (.pth, .safetensors) or a state dict, with official names.

    The configuration is read off the shapes. They do not tell "middle" from "head" (middle is assumed), nor stride and
    img_size from one another: 224 is assumed where a stride of at most patch_size gives the grid found, else stride =
    patch_size. `overrides` are fields of VimConfig and come first.
    Raises ValueError for what cannot be read, and lists the names that are missing, unexpected or of another shape.
    """
    if isinstance(path_or_state_dict, Mapping):
        state, source = check_state_dict(path_or_state_dict, "path_or_state_dict"), "path_or_state_dict"
    elif not isinstance(path_or_state_dict, str | Path):
        raise TypeError(f"path_or_state_dict is {path_or_state_dict!r}; it must be a path or a state dict")
    else:
        source = str(path_or_state_dict)
        state, header = read_file(path_or_state_dict)
        if header is not None:
            raise ValueError(f"path is {source!r}; it must be an official checkpoint (minivim's own: load)")
    valid = VimConfig.__dataclass_fields__
    for key in overrides.keys() - valid.keys():
        raise ValueError(f"{key} is {overrides[key]!r}; an override must be one of {', '.join(valid)}")
    return _fill_official(VisionMamba(official_config(state, source, **overrides)), state, source)


def official_config(state: Mapping[str, Tensor], source: str = "state_dict", **overrides) -> VimConfig:
    """The configuration that an official state dict's shapes tell, completed as `load_official` says."""
    names = {
        "patch": "patch_embed.proj.weight",
        "A": "layers.0.mixer.A_log",
        "conv": "layers.0.mixer.conv1d.weight",
        "dt": "layers.0.mixer.dt_proj.weight",
        "pos": "pos_embed",
    }
    missing = [name for name in names.values() if name not in state]
    if missing:
        found = ", ".join(list(state)[:3])
        raise ValueError(
            f"{source} lacks {', '.join(missing)}; it must be an official Vim state dict (it has {found}, ...)"
        )
    shape = {key: tuple(state[name].shape) for key, name in names.items()}
    embed_dim, in_chans, patch_size, _ = shape["patch"]
    inner_dim, state_dim = shape["A"]
    blocks = {int(match[1]) for match in (re.match(r"layers\.(\d+)\.", name) for name in state) if match}
    cls_token = "double" if "cls_token_head" in state else "middle" if "cls_token" in state else "none"
    found = {
        "in_chans": in_chans,
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "depth": max(blocks) + 1,
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "expand": inner_dim // embed_dim,
        "state_dim": state_dim,
        "dt_rank": shape["dt"][1],
        "conv_kernel": shape["conv"][-1],
        "cls_token": cls_token,
        "directions": 2 if "layers.0.mixer.A_b_log" in state else 1,
        **overrides,
    }
    patches = shape["pos"][1] - {"double": 2, "none": 0, "max": 0}.get(found["cls_token"], 1)
    return VimConfig(**{**_official_geometry(patches, patch_size, found), **found})


def _official_geometry(patches: int, patch_size: int, found: Mapping) -> dict:
    """img_size and stride for a square grid of `patches`, where they are not given."""
    if "img_size" in found and "stride" in found:
        return {}
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"pos_embed has {patches} patches, which is no square; img_size and stride must be given")
    if "stride" in found:
        return {"img_size": (side - 1) * (found["stride"] or patch_size) + patch_size}
    img_size = found.get("img_size", OFFICIAL_IMG_SIZE)
    if isinstance(img_size, int) and side > 1:
        stride, rest = divmod(img_size - patch_size, side - 1)
        if rest == 0 and 0 < stride <= patch_size:
            return {"img_size": img_size, "stride": None if stride == patch_size else stride}
    return {"img_size": side * patch_size, "stride": None}


# ---------------------------------------------------------------- filling a model


def _fill_official(model: VisionMamba, state: Mapping[str, Tensor], source: str) -> VisionMamba:
    """Copy an official state dict into a model of ours."""
    _compare({name: tensor.shape for name, tensor in to_official(model).items()}, state, source)
    ours = {}
    for name, tensor in model.state_dict().items():
        if name == "cls_token" and tensor.shape[1] == 2:
            ours[name] = torch.cat((state["cls_token_head"], state["cls_token_tail"]), dim=1)
        else:
            ours[name] = state[official_name(name)].reshape(tensor.shape)
    model.load_state_dict(ours)
    return model


def _fill(model: Backbone, state: Mapping[str, Tensor], source: str) -> Backbone:
    """Copy a state dict with our own names into a model."""
    _compare({name: tensor.shape for name, tensor in model.state_dict().items()}, state, source)
    model.load_state_dict(state)
    return model


def _compare(expected: Mapping[str, torch.Size], state: Mapping[str, Tensor], source: str) -> None:
    """Raise a ValueError with all that does not fit, unless names and shapes are exactly the expected ones."""
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in state and state[name].shape != shape
        ],
    }
    found = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if found:
        resized = any(text.startswith("pos_embed") for text in problems["of another shape"])
        hint = " (another image size: load at the old one, then resize_to(height, width))" if resized else ""
        raise ValueError(
            f"{source} does not fit the model; its names and shapes must be the same: {'; '.join(found)}{hint}"
        )
