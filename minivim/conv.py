"""Depthwise causal convolution and SiLU, channel-last: what stands before the scan in every Mamba block."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def causal_conv_silu(
    x: Float[Tensor, "B L E"],
    weight: Float[Tensor, "E K"],
    bias: Float[Tensor, " E"],
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "B L E"]:
    """silu(bias + sum_k weight[:, k] * x[t - (K-1) + k]), zeros outside; reverse=True looks ahead instead of back."""
    K = weight.shape[1]
    y = x.transpose(1, 2)
    y = y.flip(-1) if reverse else y
    y = F.conv1d(F.pad(y, (K - 1, 0)), weight[:, None, :], bias, groups=x.shape[2])
    y = y.flip(-1) if reverse else y
    return F.silu(y.transpose(1, 2))
