"""The selective scan, its convolution and its norm: one contract, and several backends that keep it."""

from minivim.ops.backends import choose_backend
from minivim.ops.conv import bidirectional_conv_silu, causal_conv_silu
from minivim.ops.implementations import Backend, available_backends
from minivim.ops.norm import add_rms_norm
from minivim.ops.reference import scan_reference
from minivim.ops.scan import bidirectional_scan, selective_scan

__all__ = [
    "Backend",
    "add_rms_norm",
    "available_backends",
    "bidirectional_conv_silu",
    "bidirectional_scan",
    "causal_conv_silu",
    "choose_backend",
    "scan_reference",
    "selective_scan",
]
