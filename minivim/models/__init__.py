"""The models, Vim and DeiT, by name; their checkpoints, ours and the official ones."""

from minivim.models.backbone import Backbone
from minivim.models.checkpoints import load_official, to_official
from minivim.models.deit import DeiT, DeiTConfig
from minivim.models.export import export_onnx
from minivim.models.mamba import MambaBlock
from minivim.models.registry import create_model, list_models
from minivim.models.timm import register_with_timm
from minivim.models.vim import VimBlock, VimConfig, VisionMamba

__all__ = [
    "Backbone",
    "DeiT",
    "DeiTConfig",
    "MambaBlock",
    "VimBlock",
    "VimConfig",
    "VisionMamba",
    "create_model",
    "export_onnx",
    "list_models",
    "load_official",
    "register_with_timm",
    "to_official",
]
