"""Add and normalise: what stands between two blocks of Vim."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minivim.scan import choose_backend

EPS = 1e-5


def add_norm_reference(
    update: Float[Tensor, "B L D"], residual: Float[Tensor, "B L D"] | None, weight: Float[Tensor, " D"]
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """The two steps one after the other: (RMSNorm of the sum in the weight's dtype, the sum)."""
    total = update.to(torch.promote_types(update.dtype, torch.float32))
    if residual is not None:
        total = residual + total
    return F.rms_norm(total.to(weight.dtype), weight.shape, weight, EPS), total


def add_rms_norm(
    update: Float[Tensor, "B L D"],
    residual: Float[Tensor, "B L D"] | None,
    weight: Float[Tensor, " D"],
    *,
    backend: str = "auto",
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """(r / sqrt(mean(r^2) + 1e-5) * weight, r) with r = update + residual; the mean over D. RMSNorm, arXiv 1910.07467.

    update, residual (B, L, D), residual None where the stream begins; weight (D,). The norm has the weight's dtype, r
    is float32 whatever the precision of the update (float64 for float64).
    Raises ValueError for a wrong shape or a backend that cannot run.
    """
    if weight.shape != update.shape[-1:] or residual is not None and residual.shape != update.shape:
        shapes = f"update has shape {tuple(update.shape)}, weight {tuple(weight.shape)}"
        shapes += "" if residual is None else f", residual {tuple(residual.shape)}"
        raise ValueError(f"{shapes}; they must be (B, L, D), (D,) and, with a residual, (B, L, D)")
    if choose_backend(backend, update.device) == "numba":
        from minivim.kernels.norm_cpu import add_rms_norm as add_norm

        return add_norm(update, residual, weight, EPS)
    return add_norm_reference(update, residual, weight)
