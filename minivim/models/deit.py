"""DeiT (arXiv 2012.12877): the Transformer that Vim is measured against, in the same style as `vim.py`.

What differs from Vim is the block: attention, where every token looks at every other, and an MLP.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minivim.checks import check_whole, shown
from minivim.models.backbone import Backbone, DropPath, State
from minivim.models.config import BackboneConfig

__all__ = ["Attention", "DeiT", "DeiTBlock", "DeiTConfig"]

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class DeiTConfig(BackboneConfig):
    """A DeiT's configuration; the defaults are DeiT-Tiny on 224 x 224 images. Raises ValueError for what cannot be.

    num_heads          attention heads; must divide embed_dim
    mlp_ratio          width of the MLP as a multiple of embed_dim
    fused_attention    PyTorch's fused kernel, or the same thing step by step; equal up to rounding
    The other fields are those of VimConfig.
    """

    depth: int = 12
    cls_token: str = "head"
    num_heads: int = 3
    mlp_ratio: int = 4
    fused_attention: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("num_heads", self.num_heads)
        check_whole("mlp_ratio", self.mlp_ratio)
        if not isinstance(self.fused_attention, bool):
            raise ValueError(f"fused_attention is {shown(self.fused_attention)}; it must be True or False")
        if self.embed_dim % self.num_heads:
            raise ValueError(f"num_heads is {self.num_heads}; it must divide embed_dim {self.embed_dim}")


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(d)) v in each head (arXiv 1706.03762, Eq. 1)."""

    def __init__(self, config: DeiTConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.fused = config.fused_attention
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Each token gets a weighted mean of all; the L x L weights are never stored if `fused`."""
        q, k, v = rearrange(self.qkv(x), "B L (three heads d) -> three B heads L d", three=3, heads=self.num_heads)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, heads, L, L)
            y = weights @ v
        return self.proj(rearrange(y, "B heads L d -> B L (heads d)"))


class DeiTBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) (ViT, arXiv 2010.11929, Eq. 2 and 3)."""

    def __init__(self, config: DeiTConfig, drop_path_rate: float = 0.0):
        super().__init__()
        D = config.embed_dim
        self.drop_path = DropPath(drop_path_rate)
        self.norm1 = nn.LayerNorm(D, eps=NORM_EPS)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(D, eps=NORM_EPS)
        self.mlp = nn.Sequential(nn.Linear(D, config.mlp_ratio * D), nn.GELU(), nn.Linear(config.mlp_ratio * D, D))

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """(B, L, D) -> (B, L, D)."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DeiT(Backbone):
    """DeiT without distillation, which is a ViT, (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, config: DeiTConfig):
        super().__init__(config)
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(DeiTBlock(config, config.drop_path_rate * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def run_blocks(
        self, x: Float[Tensor, "B L D"], take: Collection[int] = (), depth: int | None = None
    ) -> tuple[State, dict[int, State]]:
        """Each block leaves the stream after it and the stream before it."""
        before, left = x, {}
        for index, block in enumerate(islice(self.blocks, depth)):
            before, x = x, self.run_block(block, x)
            if index in take:
                left[index] = x, before
        return (x, before), left

    def stream(self, state: State) -> Float[Tensor, "B L D"]:
        """The stream after the block."""
        return state[0]

    def update(self, state: State) -> Float[Tensor, "B L D"]:
        """What attention and MLP have added."""
        after, before = state
        return after - before

    def last_norm(self, state: State) -> Float[Tensor, "B L D"]:
        """The last norm."""
        return self.norm(state[0])
