"""A state dict: found in whatever wraps it, checked, compared with a model, filled in."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from minivim.checks import listed, notify, printable, shown
from minivim.models.backbone import Backbone
from minivim.models.config import BackboneConfig

ANCHOR = "patch_embed.proj.weight"  # a name that every model has, ours and the official ones
WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # at any place of a name
AVERAGES = re.compile("ema|teacher|average|momentum|shadow", re.IGNORECASE)
BLOCK = re.compile(r"(?:blocks|layers)\.(\d{1,9})\.")
Model = TypeVar("Model", bound=Backbone)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# ---------------------------------------------------------------- finding


def find_weights(content: object, source: str, key: str | None = None) -> dict[str, Tensor]:
    """The state dict in what a script has saved, its names without what wrappers put before them.

    Of several, the first that is no average (model before model_ema) is taken, with a warning that says so; `key` names
    another one. Whatever else is saved beside it is ignored. Raises ValueError where there is none.
    """
    found = {}
    for label, mapping in _mappings(content):
        for prefix, state in _models(mapping).items():
            found[f"{label}.{prefix}".strip(".")] = state
    if not found:
        return check_state_dict(content, source)
    names = listed((name or "the top level" for name in found), 8)
    if key is not None and key not in found:
        raise ValueError(f"weights is {shown(key)}; it must be one of those in {source}: {names}")
    taken = min(found, key=lambda name: AVERAGES.search(name) is not None) if key is None else key
    if len(found) > 1 and key is None:
        taken_name = listed([taken or "the top level"])
        notify(f"{printable(source)} holds several models: {names}; {taken_name} is taken")
    return found[taken]


def _mappings(content: object) -> Iterator[tuple[str, Mapping]]:
    """(its name, the mapping) for `content` and each mapping inside it, each once."""
    waiting, seen = [("", content)], set()
    for label, value in waiting:  # which grows meanwhile
        if isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            yield label, value
            waiting.extend((f"{label}.{name}".strip("."), inside) for name, inside in value.items())


def _models(mapping: Mapping) -> dict[str, dict[str, Tensor]]:
    """The models among the tensors of one mapping, by the prefix of their names; the prefix is taken off."""
    tensors = {WRAPPERS.sub("", k): v for k, v in mapping.items() if isinstance(k, str) and isinstance(v, Tensor)}
    prefixes = [name.removesuffix(ANCHOR) for name in tensors if name == ANCHOR or name.endswith(f".{ANCHOR}")]
    models: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in sorted(prefixes, key=len, reverse=True)}
    left = []
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in models if name.startswith(prefix)), None)  # the longest
        if prefix is not None:
            models[prefix][name.removeprefix(prefix)] = tensor
        elif name != "n_averaged":  # AveragedModel's counter
            left.append(name)
    if models and left:
        notify(f"{len(left)} tensors beside the model are left out: {listed(left)}")
    return {prefix: models[prefix] for prefix in prefixes}


def check_state_dict(content: object, source: str) -> dict[str, Tensor]:
    """`content`, or content["model"], as a dict of named tensors. Raises ValueError if it is anything else."""
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        what = f"{type(content).__name__} without entries" if content == {} else type(content).__name__
        raise ValueError(f"{source} holds a {what}; it must be a state dict of named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} holds a {type(value).__name__} under {shown(name)}; each value must be a tensor"
            )
    return dict(content)


# ---------------------------------------------------------------- checking


def check_tensors(state: Mapping[str, Tensor], source: str) -> None:
    """Raise a ValueError that names the first tensor which is no weight: of integers, sparse, or not finite."""
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
            raise ValueError(f"{source} holds {listed([name])} as {kind}; weights must be dense floating-point numbers")
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{source} holds NaN or infinite values in {listed([name])}; weights must be finite")


def check_size(state: Mapping[str, Tensor], source: str) -> None:
    """Raise a ValueError if the tensors claim more memory than the file holds; a few bytes can pose as a huge one."""
    dense = [tensor for tensor in state.values() if tensor.layout is torch.strided and not tensor.is_meta]
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in dense}
    if sum(tensor.numel() * tensor.element_size() for tensor in dense) > sum(held.values()):
        raise ValueError(f"{source} holds tensors that share memory; each weight must have its own")


def count_blocks(state: Mapping[str, Tensor], source: str) -> int:
    """How many blocks the names count, from 0 without a gap."""
    found = {int(match[1]) for match in map(BLOCK.match, state) if match}
    if found != set(range(len(found))):
        raise ValueError(
            f"{source} has the blocks {listed(sorted(found), 8)}; they must be numbered from 0 without gap"
        )
    return len(found)


# ---------------------------------------------------------------- comparing and filling


def empty_model(model_class: type[Model], config: BackboneConfig, source: str) -> Model:
    """A model without memory, to compare names and shapes with, or to be filled."""
    try:
        with torch.device("meta"):
            return model_class(config)
    except (RuntimeError, TypeError, OverflowError, MemoryError):  # sizes beyond 64 bits
        values = {field.name: getattr(config, field.name) for field in fields(config)}
        sizes = {name: max(value) if isinstance(value, tuple) else value for name, value in values.items()}
        largest = max((name for name in sizes if isinstance(sizes[name], int)), key=lambda name: sizes[name])
        raise ValueError(f"{largest} is {shown(values[largest])} in {source}; no model can have it") from None


def expected_state(
    model_class: type[Backbone], config: BackboneConfig, state: Mapping[str, Tensor], source: str
) -> dict[str, Tensor]:
    """The state dict of such a model, on the meta device, in a time that the file's own size justifies.

    One block is built, and counted as often as there are blocks, at most once more than the file has: that is missed.
    """
    depth = getattr(config, "depth", None)
    if depth is None:
        return empty_model(model_class, config, source).state_dict()
    depth, expected = min(depth, count_blocks(state, source) + 1), dict[str, Tensor]()
    for name, tensor in empty_model(model_class, replace(config, depth=1), source).state_dict().items():
        inside = name.removeprefix("blocks.0.")
        names = [name] if inside == name else [f"blocks.{index}.{inside}" for index in range(depth)]
        expected |= dict.fromkeys(names, tensor)
    return expected


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Each name's shape."""
    return {name: tensor.shape for name, tensor in state.items()}


def fill(model: Model, state: Mapping[str, Tensor]) -> Model:
    """Give a model, on the meta device or not, the weights of a state dict that fits it."""
    if any(parameter.is_meta for parameter in model.parameters()):
        model.to_empty(device=torch.get_default_device())
    model.load_state_dict(state)
    return model


def compare(
    expected: Mapping[str, torch.Size], state: Mapping[str, Tensor], source: str, remarks: Sequence[str] = ()
) -> None:
    """Raise a ValueError with what does not fit, unless names and shapes are exactly the expected ones."""
    other = [name for name, shape in expected.items() if name in state and state[name].shape != shape]
    problems = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name])}" for name in other],
    }
    found = [f"{len(names)} {kind}: {listed(names, 2)}" for kind, names in problems.items() if names]
    if found:
        sentence = f"{source} does not fit the model; its names and shapes must be the same: {'; '.join(found)}"
        raise ValueError(" ".join([sentence, *(f"({remark})" for remark in (*remarks, *advice(other)))]))


def advice(names: Sequence[str]) -> list[str]:
    """What to do where only these have another shape."""
    if not set(names) <= {"pos_embed", "head.weight", "head.bias"}:
        return []
    remarks = []
    if "pos_embed" in names:
        remarks.append("to change the image size, load at the file's own, then call resize_to(height, width)")
    if "head.weight" in names:
        remarks.append("to change the classes, load with the file's own, then call reset_classifier(num_classes)")
    return remarks
