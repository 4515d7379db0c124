"""A file of ours or an official one, whichever it is."""

from collections.abc import Mapping
from pathlib import Path

from minivim.checks import shown
from minivim.models.backbone import Backbone
from minivim.models.checkpoints.official import check_official, fill_official, official_model
from minivim.models.checkpoints.options import check_complete, fields_of, read_args, refuse_foreign
from minivim.models.checkpoints.own import describe, from_header, read_all
from minivim.models.checkpoints.weights import check_tensors, compare, fill, shapes_of
from minivim.models.config import BackboneConfig
from minivim.models.vim import VisionMamba


def load_any(path: str | Path) -> tuple[Backbone, dict | None]:
    """The model of a file of ours or an official one, and the `extra` of ours, None for an official one."""
    state, header, args = read_all(path)
    if header is None:
        return official_model(state, args, str(path)), None
    return from_header(state, header, path)


def load_weights(model: Backbone, path: str | Path) -> Backbone:
    """Fill `model` with the weights of a file of ours or an official one; they must fit. Returns the model.

    Raises ValueError where names or shapes differ, and where the file says that its weights mean something else than
    the model takes them for: another place of the class token, another order of the scan, another epsilon.
    """
    state, header, args = read_all(path)
    source = str(path)
    if header is None and isinstance(model, VisionMamba) and not any(name.startswith("blocks.") for name in state):
        options, name = read_args(args)
        options["if_cls_token"] = not {"cls_token", "cls_token_head"}.isdisjoint(state)
        refuse_foreign(options)
        check_official(model.state_dict(), state, source)
        check_complete(name, options, ["if_divide_out"] * (model.config.directions == 2))
        said = fields_of(options)
        said |= {"img_size": (said["img_size"],) * 2} if "img_size" in said else {}
        check_meaning(model.config, said, source)
        return fill_official(model, state, args, options)
    compare(shapes_of(model.state_dict()), state, source)
    check_tensors(state, source)
    if header is not None:
        _, config, model.preparation = describe(header, path)
        check_meaning(model.config, meaning(config), source)
    return fill(model, state)


def meaning(config: BackboneConfig) -> dict:
    """What the weights mean beyond their shapes: the fields that change what is computed and not its shapes."""
    names = ("scan_order", "norm_eps", "num_heads", "stride", "img_size", "cls_token")
    fields = {name: getattr(config, name) for name in names if hasattr(config, name)}
    if not config.cls_positions:
        del fields["cls_token"]  # only pools
    if not config.pos_embed:
        del fields["img_size"]  # any size does
    else:
        fields["img_size"] = config.image_shape
    return fields | {"stride": config.patch_stride}


def check_meaning(config: BackboneConfig, said: Mapping, source: str) -> None:
    """Raise a ValueError where a file says something else of its weights than a model's configuration."""
    ours = meaning(config)
    for name in ours.keys() & said.keys():
        if ours[name] != said[name]:
            raise ValueError(
                f"{source} has weights for {name} {shown(said[name])}, but the model's is {shown(ours[name])}; they "
                f"must be the same: create_model(name, {name}={shown(said[name])}, checkpoint=...)"
            )
