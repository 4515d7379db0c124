"""minivim: Vision Mamba from the state equation up."""

from minivim.scan import available_backends, selective_scan

__all__ = ["available_backends", "selective_scan"]
