"""Depthwise causal convolution and SiLU, channel-last: what stands before the scan in every Mamba block."""

from jaxtyping import Float
from torch import Tensor

from minivim.ops.backends import choose_backend
from minivim.ops.implementations import Backend


def causal_conv_silu(
    x: Float[Tensor, "B L E"],
    weight: Float[Tensor, "E K"],
    bias: Float[Tensor, " E"],
    *,
    reverse: bool = False,
    backend: str | Backend = "auto",
) -> Float[Tensor, "B L E"]:
    """silu(bias + sum_k weight[:, k] x[t - (K - 1) + k]), zero outside; reverse=True looks ahead instead of back.

    x (B, L, E), weight (E, K), bias (E,) -> (B, L, E) in x's dtype. Mamba (arXiv 2312.00752), section 3.4.
    Raises ValueError for a wrong shape or a backend that cannot run.
    """
    _check(x, weight, bias)
    return choose_backend(backend, x.device).conv(x, weight, bias, reverse)


def bidirectional_conv_silu(
    x: Float[Tensor, "B L E"],
    ahead: tuple[Float[Tensor, "E K"], Float[Tensor, " E"]],
    back: tuple[Float[Tensor, "E K"], Float[Tensor, " E"]],
    *,
    backend: str | Backend = "auto",
) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L E"]]:
    """`causal_conv_silu` of the same x with (weight, bias) in both directions; `back` looks from L - 1 down."""
    for each in (ahead, back):
        _check(x, *each)
    one, two = choose_backend(backend, x.device).bidirectional_conv(x, ahead, back)
    return one, two


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.ndim != 3 or weight.ndim != 2 or weight.shape[0] != x.shape[2] or bias.shape != weight.shape[:1]:
        shapes = f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}"
        raise ValueError(f"{shapes}; they must be (B, L, E), (E, K) and (E,)")
