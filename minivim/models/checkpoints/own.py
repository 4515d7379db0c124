"""Our own files: weights as safetensors, with the model's class and configuration beside them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from torch import Tensor, nn

from minivim.checks import check_choice, listed, shown
from minivim.extras import require
from minivim.files import write_atomically
from minivim.models.backbone import Backbone
from minivim.models.checkpoints.pickled import read_pickled
from minivim.models.checkpoints.weights import (
    WRAPPERS,
    check_size,
    check_tensors,
    compare,
    empty_model,
    expected_state,
    fill,
    find_weights,
    shapes_of,
)
from minivim.models.config import BackboneConfig
from minivim.models.deit import DeiT, DeiTConfig
from minivim.models.vim import VimConfig, VisionMamba
from minivim.preparation import Preparation

CLASSES = {"VisionMamba": (VisionMamba, VimConfig), "DeiT": (DeiT, DeiTConfig)}
METADATA_KEY = "minivim"


# ---------------------------------------------------------------- writing


def unwrap(model: nn.Module) -> Backbone:
    """The model inside torch.compile, DataParallel, DistributedDataParallel or AveragedModel.

    Raises TypeError for what is no model of ours.
    """
    inner = model
    while not isinstance(inner, Backbone):
        wrapped = [module for name, module in inner.named_children() if name in ("_orig_mod", "module")]
        if not wrapped:
            raise TypeError(f"model is a {type(inner).__name__}; it must be a {' or '.join(CLASSES)}, wrapped or not")
        inner = wrapped[0]
    return inner


def own_state(model: Backbone) -> dict[str, Tensor]:
    """The weights of a model whose layers are those of its configuration, so that they can be loaded again.

    Raises TypeError for a subclass, ValueError for a model in which layers were replaced, wrapped or taken away.
    """
    name = type(model).__name__
    if CLASSES.get(name, (None,))[0] is not type(model):
        raise TypeError(
            f"model is a {name}; it must be exactly a {' or '.join(CLASSES)}, to be built again from a file"
        )
    state = {WRAPPERS.sub("", name): tensor for name, tensor in model.state_dict().items()}
    if any(tensor.is_meta for tensor in state.values()):
        raise ValueError("model is on the meta device; it must have weights, to be saved")
    expected = shapes_of(empty_model(type(model), model.config, "the configuration").state_dict())
    compare(expected, state, "model", ["a layer was replaced or taken away; merge adapters before saving"])
    return state


def header_of(model: Backbone, extra: Mapping | None = None) -> dict:
    """What stands beside the weights: class, configuration, preparation of the images, `extra`. `rebuild` undoes it."""
    known = {} if model.preparation is None else asdict(model.preparation)
    extra = known | dict(extra or {})
    _preparation(extra, model.config)  # raises now rather than when the file is loaded
    return {"model": type(model).__name__, "config": asdict(model.config), "extra": extra}


def save(model: nn.Module, path: str | Path, extra: Mapping | None = None) -> None:
    """Write the weights as safetensors, atomically, with the configuration (and `extra`, plain JSON) as metadata.

    What wraps the model is left out. Raises TypeError or ValueError for a model that could not be loaded again.
    """
    model = unwrap(model)
    tensors = {name: tensor.contiguous() for name, tensor in own_state(model).items()}
    header = header_of(model, extra)
    safetensors = require("safetensors.torch", "train")
    write_atomically(path, safetensors.save(tensors, metadata={METADATA_KEY: json.dumps(header)}))


# ---------------------------------------------------------------- reading


def load(path: str | Path) -> Backbone:
    """The model of a file written by `save`. Raises ValueError for any other file."""
    return load_with_extra(path)[0]


def load_extra(path: str | Path) -> dict:
    """The `extra` that `save` put beside the weights, {} for a file without."""
    header = read_file(path)[1]
    return {} if header is None else _extra(header, path)


def load_with_extra(path: str | Path) -> tuple[Backbone, dict]:
    """The model of a file written by `save`, and the `extra` beside it."""
    tensors, header = read_file(path)
    if header is None:
        raise ValueError(f"path is {str(path)!r}; it must be a file written by minivim (official ones: load_official)")
    return from_header(tensors, header, path)


def from_header(tensors: Mapping[str, Tensor], header: dict, path: str | Path) -> tuple[Backbone, dict]:
    """The model that a header describes, filled, and the header's `extra`. Nothing is allocated before all fits."""
    source = str(path)
    model_class, config, preparation = describe(header, path)
    compare(shapes_of(expected_state(model_class, config, tensors, source)), tensors, source)
    check_tensors(tensors, source)
    model = empty_model(model_class, config, source)
    model.preparation = preparation
    return fill(model, tensors), _extra(header, path)


def rebuild(header: dict) -> Backbone:
    """A model with fresh weights as a header describes it. Raises ValueError for one that `header_of` has not made."""
    model_class, config = _description(header)
    preparation = _preparation(header["extra"], config)
    model = model_class(config)
    model.preparation = preparation
    return model


def describe(header: dict, path: str | Path) -> tuple[type[Backbone], BackboneConfig, Preparation | None]:
    """What a header says: class, configuration, preparation. Raises ValueError for what no `save` has written."""
    try:
        model_class, config = _description(header)
        return model_class, config, _preparation(_extra(header, path), config)
    except ValueError as error:
        raise ValueError(f"path is {str(path)!r}; it must be a file of this version of minivim ({error})") from error


def _description(header: dict) -> tuple[type[Backbone], BackboneConfig]:
    """The class and the configuration in a header; ValueError for what no `save` has written."""
    name, values = header.get("model"), header.get("config")
    check_choice("model", name, tuple(CLASSES))
    assert isinstance(name, str)  # as its choices are
    if not isinstance(values, dict):
        raise ValueError(f"config is {shown(values)}; it must be the fields of the configuration")
    model_class, config_class = CLASSES[name]
    unknown = values.keys() - {field.name for field in fields(config_class)}
    if unknown:
        raise ValueError(f"config has {listed(sorted(unknown))}; {config_class.__name__} has no such field")
    return model_class, config_class(**{key: tuple(x) if isinstance(x, list) else x for key, x in values.items()})


def _extra(header: dict, path: str | Path) -> dict:
    extra = header.get("extra", {})
    if not isinstance(extra, dict):
        raise ValueError(f"path is {str(path)!r}, whose extra is {shown(extra)}; it must be a dict")
    return extra


def _preparation(extra: dict, config: BackboneConfig) -> Preparation | None:
    """How images are prepared, where `extra` says it."""
    known = {field.name: extra[field.name] for field in fields(Preparation) if field.name in extra}
    if not known:
        return None
    preparation = Preparation(**known)
    if "mean" in known and len(preparation.mean) != config.in_chans:
        raise ValueError(f"mean has {len(preparation.mean)} numbers; it must have one for each of {config.in_chans}")
    return preparation


def read_file(path: str | Path, key: str | None = None) -> tuple[dict[str, Tensor], dict | None]:
    """(state dict, our header or None) of a .safetensors file or of a torch.save'd one; see `find_weights`.

    Raises ValueError for a file that is missing, unreadable or not a state dict. Pickled code is never run.
    """
    content, header, _ = read_all(path, key)
    return content, header


def read_all(path: str | Path, key: str | None = None) -> tuple[dict[str, Tensor], dict | None, object]:
    """As `read_file`, and the `args` that training scripts store beside the weights, else None."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"path is {str(path)!r}; it must be an existing file")
    if path.suffix == ".safetensors":
        state, header = _read_safetensors(path)
        state, args = state if header is not None else find_weights(state, str(path), key), None
    else:
        content, header = read_pickled(path), None
        state = find_weights(content, str(path), key)
        args = content.get("args") if isinstance(content, Mapping) else None
    check_size(state, str(path))
    return state, header, args


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict | None]:
    """The tensors and our header; ValueError for a file that is none, or whose header is no JSON object."""
    safe_open = require("safetensors", "train").safe_open
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            header = json.loads(text) if text else None
            if text and not isinstance(header, dict):
                raise ValueError(f"its header is {shown(header)}")
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except Exception as error:  # of several kinds, none of which says which file
        raise ValueError(f"path is {str(path)!r}; it must be a safetensors file ({listed([error])})") from error
