"""S4ND in two dimensions (arXiv 2210.06583): a state-space model along each side of an image.

The kernel is the outer product of two kernels in one dimension. So one filter of the size of the image is as cheap to
make as its two sides, and the layer has two forms, as in one dimension: one convolution, or one recurrence along each
row and, over what that gives, one down each column.
"""

import torch
from jaxtyping import Float, Inexact
from torch import Tensor, nn

from minivim.s4.generating import initial_system
from minivim.s4.systems import DiagonalSystem


def fft_convolution_2d(u: Float[Tensor, "*batch H W"], K: Float[Tensor, "*batch_of_K H W"]) -> Float[Tensor, "... H W"]:
    """y[i, j] = sum of K[k, l] u[i - k, j - l] over 0 <= k <= i, 0 <= l <= j: causal along both sides, padded.

    Leading axes broadcast. Raises ValueError where the sides of K are not those of u.
    """
    if u.shape[-2:] != K.shape[-2:]:
        raise ValueError(f"K has the sides {tuple(K.shape[-2:])}; they must be {tuple(u.shape[-2:])}, those of u")
    H, W = u.shape[-2:]
    padded = (2 * H, 2 * W)
    return torch.fft.irfft2(torch.fft.rfft2(u, padded) * torch.fft.rfft2(K, padded), padded)[..., :H, :W]


class S4ND(nn.Module):
    """y = K * u + D u on images (B, H, W, C) with K[k, l] = K_vertical[k] K_horizontal[l] for each channel.

    Both kernels are those of S4D with N real states and the given init, ZOH. A pixel sees what is above and to the
    left of it, and itself; for the other three directions, flip the image. delta in steps of one pixel.
    Errors as for `S4D`.
    """

    def __init__(self, C: int, N: int, init: str = "lin", delta_min: float = 0.001, delta_max: float = 0.1):
        super().__init__()
        A, B = initial_system(init, N)
        self.vertical = DiagonalSystem(C, A, B, "zoh", False, delta_min, delta_max)
        self.horizontal = DiagonalSystem(C, A, B, "zoh", False, delta_min, delta_max)
        self.D = nn.Parameter(torch.randn(C))

    def kernel(self, H: int, W: int) -> Float[Tensor, "C H W"]:
        """The outer product of the two kernels. Raises ValueError for a side below 1."""
        if H < 1 or W < 1:
            raise ValueError(f"H is {H} and W is {W}; both must be at least 1")
        columns, rows = self.vertical.kernel(H), self.horizontal.kernel(W)
        return (columns[:, :, None] * rows[:, None, :]).to(self.D)

    def forward(self, u: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        C = len(self.D)
        if u.ndim != 4 or u.shape[3] != C or u.numel() == 0:
            raise ValueError(f"u has shape {tuple(u.shape)}; it must be (B, H, W, {C}) with no side of 0")
        y = fft_convolution_2d(u.movedim(3, 1), self.kernel(*u.shape[1:3]))
        return y.movedim(1, 3) + self.D * u

    def initial_state(self, batch: int, W: int) -> Inexact[Tensor, "batch W C N_kept"]:
        """The state above the first row: one state per column and channel, zeros."""
        return self.vertical.initial_state(batch * W).unflatten(0, (batch, W))

    def step(
        self, u: Float[Tensor, "batch W C"], state: Inexact[Tensor, "batch W C N_kept"]
    ) -> tuple[Float[Tensor, "batch W C"], Inexact[Tensor, "batch W C N_kept"]]:
        """One row in, one row out: a recurrence along the row, then one step of the recurrence down each column."""
        C = len(self.D)
        if u.ndim != 3 or u.shape[2] != C or state.shape[:3] != u.shape:
            shapes = f"u has shape {tuple(u.shape)}, state {tuple(state.shape)}"
            raise ValueError(f"{shapes}; they must be (B, W, {C}) and (B, W, {C}, N or N/2)")
        along, row = self.horizontal.initial_state(len(u)), []
        for pixel in u.unbind(1):
            y, along = self.horizontal.advance(pixel, along)
            row.append(y)
        y, state = self.vertical.advance(torch.stack(row, dim=1).flatten(0, 1), state.flatten(0, 1))
        y, state = (each.unflatten(0, u.shape[:2]) for each in (y, state))
        return y.to(u) + self.D * u, state
