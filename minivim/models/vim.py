"""Vision Mamba (Vim, arXiv 2401.09417): Mamba on image patches, in both directions.

Algorithm 1 of the paper. What differs from `deit.py` is the block: where DeiT has attention and an MLP,
Vim has one mixer with two selective state-space models, one for each direction.

The paper draws Norm -> Mixer -> Add. The official code (hustvl/Vim, dd0358a, vim/models_mamba.py, class Block) runs
Add -> Norm -> Mixer: each block first adds what the one before it left, so that add and norm are one kernel.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minivim.checks import check_choice, check_whole, is_number, shown
from minivim.models.backbone import (
    Backbone,
    DropPath,
    PatchEmbed,
    State,
    insert_tokens,
    remove_tokens,
    take_tokens,
)
from minivim.models.config import BackboneConfig
from minivim.models.mamba import SelectiveSSM, run_ssm
from minivim.models.plain import is_plain
from minivim.ops import Backend, add_rms_norm, bidirectional_conv_silu, bidirectional_scan, choose_backend
from minivim.ops.norm import EPS

__all__ = ["PatchEmbed", "VimBlock", "VimConfig", "VimMixer", "VisionMamba"]

SCAN_ORDERS = ("rows", "columns", "snake")


@dataclass(frozen=True, kw_only=True)
class VimConfig(BackboneConfig):
    """A Vim's configuration; the defaults are Vim-Tiny on 224 x 224 images. Raises ValueError for what cannot be.

    img_size, patch_size, stride    pixels; img_size one number or (height, width); stride None: patch_size
    in_chans, num_classes           channels of the image; outputs of the head, 0 for none
    embed_dim, depth                width D, number of blocks
    expand, state_dim               inner width E = expand * D; state size N
    dt_rank, conv_kernel            rank R of delta, None: ceil(D / 16); width K of the convolution
    cls_token                       "middle" | "head" | "double"; "none", "max": the mean, the maximum of all tokens
    pos_embed                       whether each token gets a learned position embedding
    directions                      2, or 1: forward only, as Mamba
    scan_order                      "rows" | "columns" | "snake": how the patches come as tokens; "snake" walks every
                                    second row from right to left
    norm_eps                        what RMSNorm adds to the mean square, in the blocks and at the end
    drop_path_rate                  stochastic depth: 0 at the first block, rising linearly to this at the last
    init                            "paper": delta in [0.001, 0.1] both ways; "official": as the official code,
                                    which gives that to the forward direction and leaves the backward bias at 0
    """

    expand: int = 2
    state_dim: int = 16
    dt_rank: int | None = None
    conv_kernel: int = 4
    init: str = "paper"
    directions: int = 2
    scan_order: str = "rows"
    norm_eps: float = EPS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("expand", "state_dim", "conv_kernel"):
            check_whole(name, getattr(self, name))
        if self.dt_rank is not None:
            check_whole("dt_rank", self.dt_rank)
        check_choice("init", self.init, ("paper", "official"))
        check_whole("directions", self.directions)
        check_choice("directions", self.directions, (1, 2))
        check_choice("scan_order", self.scan_order, SCAN_ORDERS)
        if not is_number(self.norm_eps) or self.norm_eps <= 0:
            raise ValueError(f"norm_eps is {shown(self.norm_eps)}; it must be a number above 0")

    @property
    def inner_dim(self) -> int:
        """The inner width E."""
        return self.expand * self.embed_dim

    @property
    def delta_rank(self) -> int:
        """The rank R of delta."""
        return math.ceil(self.embed_dim / 16) if self.dt_rank is None else self.dt_rank


def reorder(tokens: Float[Tensor, "B L D"], config: VimConfig, undo: bool = False) -> Float[Tensor, "B L D"]:
    """From the order of the picture, row by row, to that of the scan, or back (`undo`); class tokens stay in place."""
    if config.scan_order == "rows":
        return tokens
    (rows, columns), positions = config.grid_shape, config.cls_positions
    by_columns = config.scan_order == "columns"
    patches = remove_tokens(tokens, positions)
    grid = rearrange(patches, "B (i j) D -> B i j D", i=columns if by_columns and undo else rows)
    if by_columns:
        grid = grid.transpose(1, 2)
    else:  # twice a snake is the picture again
        is_odd = torch.arange(rows, device=grid.device)[:, None, None] % 2 == 1
        grid = torch.where(is_odd, grid.flip(2), grid)
    classes = take_tokens(tokens, positions)
    return insert_tokens(rearrange(grid, "B i j D -> B (i j) D"), classes, positions)


def add_and_norm(
    norm: nn.Module, update: Float[Tensor, "B L D"], residual: Float[Tensor, "B L D"] | None, backend: str | Backend
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """(norm(update + residual), the sum, at least float32): in one kernel where `norm` is a plain nn.RMSNorm."""
    if is_plain(norm, nn.RMSNorm) and norm.weight is not None and norm.eps is not None:
        return add_rms_norm(update, residual, norm.weight, norm.eps, backend=backend)
    total = update.to(torch.promote_types(update.dtype, torch.float32))
    total = total if residual is None else residual + total
    parameter = next(norm.parameters(), update)
    return norm(total.to(parameter.dtype)), total


def is_pair(one: nn.Module, two: nn.Module) -> bool:
    """Whether the two are plain, convolve alike and walk both ways, so that one kernel can run both."""
    if not (is_plain(one, SelectiveSSM) and is_plain(two, SelectiveSSM)):
        return False
    return (
        is_plain(one.dt_proj, nn.Linear)
        and is_plain(two.dt_proj, nn.Linear)
        and (one.reverse, two.reverse) == (False, True)
        and one.conv_weight.shape == two.conv_weight.shape
    )


class VimMixer(nn.Module):
    """Two selective state-space models on the same tokens, one in each direction, averaged. Vim, Algorithm 1.

    With one direction it is Mamba's mixer.
    """

    def __init__(self, config: VimConfig):
        super().__init__()
        sizes = (config.inner_dim, config.state_dim, config.delta_rank, config.conv_kernel)
        self.backend = "auto"
        self.in_proj = nn.Linear(config.embed_dim, 2 * config.inner_dim, bias=False)
        self.forward_ssm = SelectiveSSM(*sizes)
        self.backward_ssm = SelectiveSSM(*sizes, reverse=True) if config.directions == 2 else None
        self.out_proj = nn.Linear(config.inner_dim, config.embed_dim, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(config.depth))  # the residual's variance must not grow with depth
        if config.init == "official" and self.backward_ssm is not None:
            nn.init.zeros_(self.backward_ssm.dt_proj.bias)

    def forward(self, x: Float[Tensor, "B L D"], backend: Backend | None = None) -> Float[Tensor, "B L D"]:
        """Each token sees all others: those before it through one scan, those after it through the other.

        `backend` is the block's choice; None: this mixer's own.
        """
        backend = backend or choose_backend(self.backend, x.device)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        one, two = self.forward_ssm, self.backward_ssm
        if two is None:
            return self.out_proj(run_ssm(one, x, z, backend))
        if not is_pair(one, two):
            return self.out_proj((run_ssm(one, x, z, backend) + run_ssm(two, x, z, backend)) / 2)
        convs = (one.conv_weight, one.conv_bias), (two.conv_weight, two.conv_bias)
        u, u_back = bidirectional_conv_silu(x, *convs, backend=backend)
        y = bidirectional_scan(one.select(u), two.select(u_back), z, backend=backend)
        return self.out_proj(y)


class VimBlock(nn.Module):
    """Add the last update to the residual stream, normalise, mix. Vim, Algorithm 1."""

    def __init__(self, config: VimConfig, drop_path_rate: float = 0.0):
        super().__init__()
        self.backend = "auto"
        self.drop_path = DropPath(drop_path_rate)
        self.norm = nn.RMSNorm(config.embed_dim, eps=config.norm_eps)
        self.mixer = VimMixer(config)

    def forward(
        self, update: Float[Tensor, "B L D"], residual: Float[Tensor, "B L D"] | None = None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        """(update, residual) -> (this block's update, the residual with the incoming one added, at least float32)."""
        update = self.drop_path(update)
        # The mixer's choice; this block's own where a stranger stands in the mixer's place.
        backend = choose_backend(getattr(self.mixer, "backend", self.backend), update.device)
        x, residual = add_and_norm(self.norm, update, residual, backend)
        update = self.mixer(x, backend) if isinstance(self.mixer, VimMixer) else self.mixer(x)
        return update, residual


class VisionMamba(Backbone):
    """Vision Mamba, (B, C, H, W) -> (B, num_classes). Vim, Algorithm 1, as the official code runs it."""

    config: VimConfig

    def __init__(self, config: VimConfig):
        super().__init__(config)
        last = max(config.depth - 1, 1)
        # A block's drop path acts on the update that comes in, hence on the block before.
        rates = [0.0, *(config.drop_path_rate * i / last for i in range(config.depth - 1))]
        self.blocks = nn.ModuleList(VimBlock(config, rate) for rate in rates)
        self.backend = "auto"
        self.drop_path = DropPath(config.drop_path_rate)
        self.norm = nn.RMSNorm(config.embed_dim, eps=config.norm_eps)

    def embed(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """The embedded tokens, each patch with the embedding of its place in the picture, in the order of the scan."""
        return reorder(super().embed(image), self.config)

    def reading_order(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Undo the order of the scan."""
        return reorder(tokens, self.config, undo=True)

    def run_blocks(
        self, x: Float[Tensor, "B L D"], take: Collection[int] = (), depth: int | None = None
    ) -> tuple[State, dict[int, State]]:
        """Each block adds the update of the one before to the residual, and leaves its own update and that residual."""
        state: tuple = (x, None)  # before the first block there is no residual
        left: dict[int, State] = {}
        for index, block in enumerate(islice(self.blocks, depth)):
            state = self.run_block(block, *state)
            if index in take:
                left[index] = state
        return state, left

    def stream(self, state: State) -> Float[Tensor, "B L D"]:
        """The residual with the last update added: what the next block normalises."""
        update, residual = state
        return residual + update

    def update(self, state: State) -> Float[Tensor, "B L D"]:
        """The mixer's output."""
        return state[0]

    def last_norm(self, state: State) -> Float[Tensor, "B L D"]:
        """A last add, the last norm."""
        update, residual = state
        return add_and_norm(self.norm, self.drop_path(update), residual, self.backend)[0]

    def set_backend(self, name: str) -> "VisionMamba":
        """Choose the scan's backend in all blocks: "auto" or one of `available_backends(device)`. Returns the model.

        Raises ValueError for an unknown name, and for a backend that cannot run on the model's device, with the reason.
        """
        choose_backend(name, self.patch_embed.proj.weight.device)  # raises if it is unknown or cannot run here
        for module in self.modules():  # also those inside a wrapper
            if hasattr(module, "backend"):
                module.backend = name  # type: ignore[assignment]  # a module may hold what torch does not know
        return self
