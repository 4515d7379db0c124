"""Add and normalise: what stands between two blocks of Vim."""

from jaxtyping import Float
from torch import Tensor

from minivim.ops.backends import choose_backend
from minivim.ops.implementations import Backend

EPS = 1e-5


def add_rms_norm(
    update: Float[Tensor, "B L D"],
    residual: Float[Tensor, "B L D"] | None,
    weight: Float[Tensor, " D"],
    eps: float = EPS,
    *,
    backend: str | Backend = "auto",
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """(r / sqrt(mean(r^2) + eps) * weight, r) with r = update + residual; the mean over D. RMSNorm, arXiv 1910.07467.

    update, residual (B, L, D), residual None where the stream begins; weight (D,). The norm has the weight's dtype, r
    is float32 whatever the precision of the update (float64 for float64).
    Raises ValueError for a wrong shape or a backend that cannot run.
    """
    if weight.shape != update.shape[-1:] or residual is not None and residual.shape != update.shape:
        shapes = f"update has shape {tuple(update.shape)}, weight {tuple(weight.shape)}"
        shapes += "" if residual is None else f", residual {tuple(residual.shape)}"
        raise ValueError(f"{shapes}; they must be (B, L, D), (D,) and, with a residual, (B, L, D)")
    return choose_backend(backend, update.device).add_norm(update, residual, weight, eps)
