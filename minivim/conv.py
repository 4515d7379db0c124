"""Depthwise causal convolution and SiLU, channel-last: what stands before the scan in every Mamba block."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minivim.scan import choose_backend


def conv_reference(
    x: Float[Tensor, "B L E"], weight: Float[Tensor, "E K"], bias: Float[Tensor, " E"], reverse: bool = False
) -> Float[Tensor, "B L E"]:
    """The convolution through F.conv1d, which wants time last: two transposes and, in reverse, two flips."""
    y = x.transpose(1, 2)
    y = F.pad(y.flip(-1) if reverse else y, (weight.shape[1] - 1, 0))
    y = F.conv1d(y, weight[:, None, :], bias, groups=x.shape[2])
    return F.silu((y.flip(-1) if reverse else y).transpose(1, 2))


def causal_conv_silu(
    x: Float[Tensor, "B L E"],
    weight: Float[Tensor, "E K"],
    bias: Float[Tensor, " E"],
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "B L E"]:
    """silu(bias + sum_k weight[:, k] x[t - (K - 1) + k]), zero outside; reverse=True looks ahead instead of back.

    x (B, L, E), weight (E, K), bias (E,) -> (B, L, E) in x's dtype. Mamba (arXiv 2312.00752), section 3.4.
    Raises ValueError for a wrong shape or a backend that cannot run.
    """
    _check(x, weight, bias)
    chosen = choose_backend(backend, x.device)
    if chosen == "numba":
        from minivim.kernels.conv_cpu import causal_conv_silu as conv
    elif chosen == "triton":
        from minivim.kernels.conv_gpu import causal_conv_silu as conv
    else:
        conv = conv_reference
    return conv(x, weight, bias, reverse)


def bidirectional_conv_silu(
    x: Float[Tensor, "B L E"],
    ahead: tuple[Float[Tensor, "E K"], Float[Tensor, " E"]],
    back: tuple[Float[Tensor, "E K"], Float[Tensor, " E"]],
    *,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L E"]]:
    """`causal_conv_silu` of the same x with (weight, bias) in both directions; `back` looks from L - 1 down."""
    if choose_backend(backend, x.device) != "triton":
        one, two = (causal_conv_silu(x, *each, reverse=i > 0, backend=backend) for i, each in enumerate((ahead, back)))
        return one, two
    from minivim.kernels.conv_gpu import bidirectional_conv_silu as conv

    for each in (ahead, back):
        _check(x, *each)
    one, two = conv(x, ahead, back)
    return one, two


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[2] or bias.shape != weight.shape[:1]:
        shapes = f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
        raise ValueError(f"{shapes}; they must be (B, L, E), (E, K) and (E,)")
