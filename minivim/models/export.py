"""A model as an ONNX file, for whatever runs ONNX without PyTorch."""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from minivim.extras import require, version
from minivim.files import write_atomically
from minivim.models.backbone import Backbone
from minivim.models.mamba import MambaBlock

LARGEST = 2**31 - 2**24  # bytes of weights: one file holds 2 GiB, and the graph takes a few MB of it
OPSET = 18  # what torch.onnx translates to; another one would be converted from it
LENGTH = 3  # tokens of the example for a MambaBlock; any number but 0 and 1, which torch.export takes as fixed
KNOWN = ("mean", "std", "crop_pct", "classes")  # what a user of the file needs of all that is known


def export_onnx(model: nn.Module, path: str | os.PathLike, extra: Mapping | None = None) -> None:
    """Write a VisionMamba, a DeiT or a MambaBlock as one ONNX file, atomically; `model` stays as it is.

    The file computes what `model` computes in evaluation mode and float32, whatever its mode, dtype and device:
    "image" (batch, C, H, W) -> "logits", or "features" for num_classes 0; of a MambaBlock "tokens" (batch, length, D)
    -> "output". batch and length may be any number. Each direction of each block is one Scan node.
    Its metadata_props are JSON: "config"; "mean", "std" and "crop_pct", with which images are prepared, and "classes":
    those of `extra`, which `checkpoints.load_any` gives beside the model, else the model's own.
    Raises TypeError for any other model, wrapped ones too; ValueError for one of 2 GiB or more and for a folder that is
    not there; and ImportError, which names the extra to install.
    """
    if not isinstance(model, Backbone | MambaBlock):
        name = type(model).__name__
        raise TypeError(f"model is a {name}; it must be a VisionMamba, a DeiT or a MambaBlock, not what wraps one")
    size = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    if size > LARGEST:
        raise ValueError(f"model has {size / 2**30:.1f} GiB of weights; it must have less than 2 GiB, as one file does")
    if not Path(path).parent.is_dir():
        raise ValueError(f"path is {os.fspath(path)!r}; it must be in a folder that exists")
    proto = translate(model).model_proto
    for key, value in metadata(model, extra or {}).items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    write_atomically(Path(path), proto.SerializeToString())


def metadata(model: Backbone | MambaBlock, extra: Mapping) -> dict:
    """What a user of the file needs to know and cannot see in its graph."""
    if isinstance(model, MambaBlock):
        return {}
    known = model.default_cfg | dict(extra) | {"config": vars(model.config)}
    return {key: known[key] for key in ("config", *KNOWN) if key in known}


def interface(model: Backbone | MambaBlock) -> tuple[str, tuple[int, ...], str]:
    """The input's name, the shape of one sample of it, and the output's name."""
    if isinstance(model, MambaBlock):
        return "tokens", (LENGTH, model.in_proj.in_features), "output"
    config = model.config
    return "image", (config.in_chans, *config.image_shape), "logits" if config.num_classes else "features"


def still(model: Backbone | MambaBlock) -> Backbone | MambaBlock:
    """A copy of the model as it is exported: evaluation mode, float32, on the CPU."""
    return copy.deepcopy(model).eval().to("cpu", torch.float32)


def translate(model: Backbone | MambaBlock) -> "torch.onnx.ONNXProgram":
    """The model in ONNX's operators: torch.onnx translates all but the scan, which `ops/onnx.py` does."""
    from minivim.ops.onnx import BACKEND, TRANSLATIONS, clear

    name, shape, output = interface(model)
    free = {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("length")} if name == "tokens" else {})
    model = still(model)
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = BACKEND  # type: ignore[assignment]  # no nn.Module says what its attributes are
    if isinstance(model, Backbone):  # a hooked layer is called: one Conv instead of gathered pixels
        model.patch_embed.proj.register_forward_hook(lambda *_: None)
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            model,
            (torch.zeros(2, *shape),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[name],
            output_names=[output],
            dynamic_shapes=(free,),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    clear(program.model)  # the exporter notes for each node the lines it came from, with the paths of this machine
    return program


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporter says about itself: deprecated calls, and that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def difference(model: Backbone | MambaBlock, path: str | os.PathLike) -> float:
    """How far onnxruntime is from PyTorch on three random inputs: the largest difference over the largest output."""
    onnxruntime = require("onnxruntime", "onnx")
    name, shape, _ = interface(model)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
    with torch.no_grad():
        expected = still(model)(x)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def describe(model: Backbone | MambaBlock, path: str | os.PathLike) -> str:
    """One sentence about the file that `export_onnx` wrote for `model`; onnxruntime checks it where it is installed."""
    onnx = require("onnx", "onnx")
    graph = onnx.load(os.fspath(path)).graph
    names = [
        f"{value.name} ({', '.join(d.dim_param or str(d.dim_value) for d in value.type.tensor_type.shape.dim)})"
        for value in (graph.input[0], graph.output[0])
    ]
    scans = sum(node.op_type == "Scan" for node in graph.node)
    if version("onnxruntime") is None:
        checked = "not checked, as onnxruntime is not installed"
    else:
        checked = f"onnxruntime differs from PyTorch by {difference(model, path):.1e} of the largest output"
    size = Path(path).stat().st_size / 1e6
    return f"{os.fspath(path)}: {size:.1f} MB, {' -> '.join(names)}, {scans} Scan nodes; {checked}"
