"""minivim: Vision Mamba from the state equation up."""

from minivim import compat
from minivim.checkpoints import load_official, to_official
from minivim.deit import DeiT, DeiTConfig
from minivim.mamba import MambaBlock
from minivim.models import create_model, list_models
from minivim.ops import available_backends, selective_scan
from minivim.vim import VimBlock, VimConfig, VisionMamba

__all__ = [
    "DeiT",
    "DeiTConfig",
    "MambaBlock",
    "VimBlock",
    "VimConfig",
    "VisionMamba",
    "available_backends",
    "compat",
    "create_model",
    "list_models",
    "load_official",
    "selective_scan",
    "to_official",
]
