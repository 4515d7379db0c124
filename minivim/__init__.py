"""minivim: Vision Mamba from the state equation up."""

from importlib.metadata import version

from minivim import compat
from minivim.models import (
    DeiT,
    DeiTConfig,
    MambaBlock,
    VimBlock,
    VimConfig,
    VisionMamba,
    create_model,
    export_onnx,
    list_models,
    load_official,
    register_with_timm,
    to_official,
)
from minivim.ops import available_backends, selective_scan

__version__ = version("minivim")  # of the installed distribution; an editable install is one too

__all__ = [
    "DeiT",
    "DeiTConfig",
    "MambaBlock",
    "VimBlock",
    "VimConfig",
    "VisionMamba",
    "__version__",
    "available_backends",
    "compat",
    "create_model",
    "export_onnx",
    "list_models",
    "load_official",
    "register_with_timm",
    "selective_scan",
    "to_official",
]
