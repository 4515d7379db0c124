"""What every image model has around its blocks: patches in, class tokens, position embedding, a head out.

Vim and DeiT share all of it, so that their own files show nothing but what differs.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minivim.checks import check_choice
from minivim.models.config import BackboneConfig
from minivim.models.plain import is_plain
from minivim.preparation import Preparation
from minivim.processes import keep_freed_memory

State = tuple[Tensor, Tensor]  # what a block leaves


def insert_tokens(
    patches: Float[Tensor, "B M D"], tokens: Float[Tensor, "B n D"], positions: tuple[int, ...]
) -> Float[Tensor, "B L D"]:
    """Put tokens[:, k] at positions[k] of the longer sequence; positions ascend."""
    for k, position in enumerate(positions):
        patches = torch.cat((patches[:, :position], tokens[:, k : k + 1], patches[:, position:]), dim=1)
    return patches


def remove_tokens(sequence: Float[Tensor, "B L D"], positions: tuple[int, ...]) -> Float[Tensor, "B M D"]:
    """Undo `insert_tokens`: the sequence without the tokens at `positions`."""
    for position in reversed(positions):
        sequence = torch.cat((sequence[:, :position], sequence[:, position + 1 :]), dim=1)
    return sequence


def take_tokens(sequence: Float[Tensor, "B L D"], positions: tuple[int, ...]) -> Float[Tensor, "B n D"]:
    """The tokens at `positions`, which `insert_tokens` puts in; by slices, as a list would make a GPU wait."""
    return torch.cat([sequence[:, :0], *(sequence[:, k : k + 1] for k in positions)], dim=1)


def block_indices(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """The blocks that `indices` name, ascending: a number n is the last n, None all; negative ones count backwards."""
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        if not 1 <= indices <= depth:
            raise ValueError(f"indices is {indices}; it must be a number of blocks from 1 to {depth}")
        return list(range(depth - indices, depth))
    if not indices or not all(isinstance(i, int) and -depth <= i < depth for i in indices):
        raise ValueError(f"indices is {indices!r}; each must be a block's index from {-depth} to {depth - 1}")
    return sorted({i % depth for i in indices})


class PatchEmbed(nn.Module):
    """Cut the image into patches, in reading order, and map each one linearly to D numbers (ViT, arXiv 2010.11929)."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.proj = nn.Conv2d(
            config.in_chans, config.embed_dim, kernel_size=config.patch_size, stride=config.patch_stride
        )
        fan_in = config.in_chans * config.patch_size**2
        std = fan_in**-0.5 / 0.8796  # 0.8796: the standard deviation of a unit normal cut off at +-2
        nn.init.trunc_normal_(self.proj.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # a Conv2d has one unless told otherwise

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of the patches."""
        return self.config.grid_shape

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.config.num_patches

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B M D"]:
        """Embed the patches. Raises ValueError or TypeError if the image does not fit the configuration."""
        self._check(image)
        if not self._cuts_patches():
            return rearrange(self.proj(image), "B D rows columns -> B (rows columns) D")
        P, stride = self.config.patch_size, self.config.patch_stride
        patches = image.unfold(2, P, stride).unfold(3, P, stride)  # a view
        patches = rearrange(patches, "B C rows columns P Q -> B (rows columns) (C P Q)")
        # The same as self.proj(image), but channel-last at once, and quicker on a CPU, above all backward.
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def _cuts_patches(self) -> bool:
        """Whether `proj` is the plain convolution of the configuration: not replaced, wrapped or hooked."""
        P, stride = self.config.patch_size, self.config.patch_stride
        plain = ((P, P), (stride, stride), (0, 0), (1, 1), 1)
        proj = self.proj
        return is_plain(proj, nn.Conv2d) and plain == (
            proj.kernel_size,
            proj.stride,
            proj.padding,
            proj.dilation,
            proj.groups,
        )

    def _check(self, image: Tensor) -> None:
        expected = (self.config.in_chans, *self.config.image_shape)
        if image.ndim != 4 or image.shape[1:] != expected:
            shape = ", ".join(map(str, expected))
            hint = "; resize_to(height, width) adapts the model to another size" if image.ndim == 4 else ""
            raise ValueError(f"image has shape {tuple(image.shape)}; it must be (batch, {shape}){hint}")
        if not image.is_floating_point():
            raise TypeError(f"image has dtype {image.dtype}; it must be floating point, normalised")


class DropPath(nn.Module):
    """In training, drop the whole update of a sample with probability `rate` (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Zero for a dropped sample, x / (1 - rate) for a kept one, so that the mean stays x."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


def make_head(embed_dim: int, num_classes: int) -> nn.Module:
    """The linear classifier, or the identity for num_classes 0."""
    if num_classes == 0:
        return nn.Identity()
    head = nn.Linear(embed_dim, num_classes)
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head


class Backbone(nn.Module):
    """An image model in timm's conventions. A subclass adds blocks, `run_blocks`, and what reads a state."""

    blocks: nn.ModuleList
    norm: nn.Module

    def __init__(self, config: BackboneConfig):
        super().__init__()
        keep_freed_memory()
        self.config = config
        self.preparation: Preparation | None = None  # of the images it was trained on, where that is known
        self.patch_embed = PatchEmbed(config)
        count = len(config.cls_positions)
        self.cls_token = nn.Parameter(torch.empty(1, count, config.embed_dim)) if count else None
        tokens = torch.empty(1, config.num_tokens, config.embed_dim) if config.pos_embed else None
        self.pos_embed = None if tokens is None else nn.Parameter(tokens)
        for parameter in (self.pos_embed, self.cls_token):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        self.grad_checkpointing = False
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = make_head(config.embed_dim, config.num_classes)

    @property
    def num_classes(self) -> int:
        """Outputs of the head; 0 without one."""
        return self.config.num_classes

    @property
    def num_features(self) -> int:
        """The width D of the features."""
        return self.config.embed_dim

    embed_dim = head_hidden_size = num_features

    @property
    def num_prefix_tokens(self) -> int:
        """Class tokens in the sequence, wherever they stand."""
        return len(self.config.cls_positions)

    @property
    def feature_info(self) -> list[dict]:
        """For each block the width, the pixels from one patch to the next, and the module's name; timm's format."""
        info = {"num_chs": self.config.embed_dim, "reduction": self.config.patch_stride}
        return [info | {"module": f"blocks.{index}"} for index in range(len(self.blocks))]

    def embed(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """Patches, with the class tokens put in and the position embedding added to all."""
        x = self.patch_embed(image)
        if self.cls_token is not None:
            x = insert_tokens(x, self.cls_token.expand(x.shape[0], -1, -1), self.config.cls_positions)
        return x if self.pos_embed is None else x + self.pos_embed

    def run_blocks(
        self, x: Float[Tensor, "B L D"], take: Collection[int] = (), depth: int | None = None
    ) -> tuple[State, dict[int, State]]:
        """The first `depth` blocks, or all, on embedded tokens: (what the last leaves, what those in `take` leave).

        A subclass gives it, with `stream`, `update` and `last_norm`, which read what a block leaves.
        """
        raise NotImplementedError

    def run_block(self, block: nn.Module, *tokens: Tensor | None):
        """Call a block; with `set_grad_checkpointing` its inside is computed again in the backward pass."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *tokens, use_reentrant=False)
        return block(*tokens)

    def stream(self, state: State) -> Float[Tensor, "B L D"]:
        """The residual stream after a block."""
        raise NotImplementedError

    def update(self, state: State) -> Float[Tensor, "B L D"]:
        """What the block adds to the stream."""
        raise NotImplementedError

    def last_norm(self, state: State) -> Float[Tensor, "B L D"]:
        """The last norm of the stream."""
        raise NotImplementedError

    def forward_tokens(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The blocks and the last norm, on embedded tokens."""
        return self.last_norm(self.run_blocks(x)[0])

    def forward_features(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L D"]:
        """All tokens after the last norm, class tokens included."""
        return self.forward_tokens(self.embed(image))

    def forward_head(self, tokens: Float[Tensor, "B L D"], pre_logits: bool = False) -> Float[Tensor, "B *L K"]:
        """Pool as `config.pooling` says, drop out, then the head unless `pre_logits`."""
        pooling = self.config.pooling
        if pooling == "token":
            features = self.class_tokens(tokens).mean(dim=1)
        elif pooling == "":
            features = tokens
        else:
            patches = remove_tokens(tokens, self.config.cls_positions)
            features = patches.mean(dim=1) if pooling == "avg" else patches.amax(dim=1)
        features = self.head_drop(features)
        return features if pre_logits else self.head(features)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B *L K"]:
        """Images to logits; without pooling those of each token."""
        return self.forward_head(self.forward_features(image))

    def forward_grid(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D rows columns"]:
        """The patch tokens after the last norm as a feature map, class tokens taken out: for dense tasks."""
        return self.to_grid(self.patch_tokens(self.forward_features(image)))

    def patch_tokens(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B M D"]:
        """The patches alone, in the order of the picture."""
        return remove_tokens(self.reading_order(tokens), self.config.cls_positions)

    def class_tokens(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B n D"]:
        """The class tokens alone."""
        return take_tokens(tokens, self.config.cls_positions)

    def to_grid(self, patches: Float[Tensor, "B M D"]) -> Float[Tensor, "B D rows columns"]:
        """Patches in the order of the picture as a feature map."""
        return rearrange(patches, "B (rows columns) D -> B D rows columns", rows=self.config.grid_shape[0])

    def forward_intermediates(
        self,
        image: Float[Tensor, "B C H W"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        *,
        source: str = "stream",
    ) -> list | tuple[Float[Tensor, "B L D"], list]:
        """timm's: (all tokens after the last norm, the patches after each of the chosen blocks, in ascending order).

        indices               blocks, counted from the end if negative; a number n: the last n; None: all
        return_prefix_tokens  each intermediate is (patches, class tokens (B, n, D))
        norm                  intermediates go through the last norm
        stop_early            leave out the blocks after the last chosen one; the first result is then that one's
        output_fmt            "NCHW": (B, D, rows, columns), "NLC": (B, M, D), in the order of the picture
        intermediates_only    return the list alone
        source                "stream": the residual stream, or "update": what the block adds to it
        Raises ValueError for an index out of range, an unknown format or source, and norm with "update".
        """
        check_choice("output_fmt", output_fmt, ("NCHW", "NLC"))
        check_choice("source", source, ("stream", "update"))
        if norm and source == "update":
            raise ValueError("norm is True, but source is 'update'; the last norm is that of the stream")
        take = block_indices(indices, len(self.blocks))
        depth = max(take) + 1 if stop_early or intermediates_only else None
        last, left = self.run_blocks(self.embed(image), take, depth)
        read = self.update if source == "update" else self.last_norm if norm else self.stream
        chosen = []
        for tokens in (read(left[index]) for index in take):
            patches = self.patch_tokens(tokens)
            patches = self.to_grid(patches) if output_fmt == "NCHW" else patches
            chosen.append((patches, self.class_tokens(tokens)) if return_prefix_tokens else patches)
        return chosen if intermediates_only else (self.last_norm(last), chosen)

    def get_intermediate_layers(
        self,
        image: Float[Tensor, "B C H W"],
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> tuple:
        """DINO's name for the intermediates alone: tokens (B, M, D), with `reshape` maps (B, D, rows, columns)."""
        form = "NCHW" if reshape else "NLC"
        return tuple(self.forward_intermediates(image, n, return_prefix_tokens, norm, True, form, True))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut off the blocks after the last of `indices`, if asked the last norm and the head; returns the indices."""
        take = block_indices(indices, len(self.blocks))
        self.blocks = self.blocks[: max(take) + 1]
        self.config = self.patch_embed.config = replace(self.config, depth=len(self.blocks))
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what enters each block, compute its inside again in the backward pass: less memory, more time."""
        self.grad_checkpointing = enable

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """timm's name for `resize_to`: another size of image, one number or (height, width), in place."""
        height, width = img_size if isinstance(img_size, tuple | list) else (img_size, img_size)
        self.resize_to(height, width)

    def reading_order(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The tokens in the order of the picture, row by row; a model that takes them in another one undoes it here."""
        return tokens

    @torch.no_grad()
    def resize_to(self, height: int, width: int, stride: int | None = None) -> "Backbone":
        """Adapt the model, in place, to images of height x width pixels, or to another stride too; returns it.

        The patches' position embeddings are interpolated bicubically on their grid; those of the class tokens are taken
        out first and put back at their new places. At the present size nothing changes. `pos_embed` becomes a new
        parameter, so build the optimizer afterwards. Raises ValueError for a size that the patches do not tile.
        """
        old = self.config
        stride = old.stride if stride in (None, old.patch_stride) else stride
        new = replace(old, img_size=height if height == width else (height, width), stride=stride)
        if self.pos_embed is not None and new.grid_shape != old.grid_shape:
            tokens = take_tokens(self.pos_embed, old.cls_positions)
            patches = remove_tokens(self.pos_embed, old.cls_positions)
            grid = rearrange(patches, "B (rows columns) D -> B D rows columns", rows=old.grid_shape[0])
            grid = F.interpolate(grid, size=new.grid_shape, mode="bicubic", align_corners=False)
            resized = insert_tokens(
                rearrange(grid, "B D rows columns -> B (rows columns) D"), tokens, new.cls_positions
            )
            self.pos_embed = nn.Parameter(resized.contiguous(), requires_grad=self.pos_embed.requires_grad)
        if new.patch_stride != old.patch_stride:
            self.patch_embed.proj.stride = (new.patch_stride, new.patch_stride)
        self.config = self.patch_embed.config = new
        return self

    def get_classifier(self) -> nn.Module:
        """The head: nn.Linear, or nn.Identity for num_classes 0."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a fresh one, on the same device and in the same dtype.

        global_pool: what the head sees from now on: "token", "avg", "max", or "", each token itself; None: as before.
        """
        pool = self.config.global_pool if global_pool is None else global_pool
        config = replace(self.config, num_classes=num_classes, global_pool=pool)
        weight = self.patch_embed.proj.weight
        with weight.device:  # also where another one is the default
            self.head = make_head(config.embed_dim, num_classes).to(weight.dtype)
        self.config = self.patch_embed.config = config

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: biases, norms, D, A_log, embeddings."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim <= 1 or name.rpartition(".")[2] in ("A_log", "cls_token", "pos_embed")
        }

    def group_matcher(self, coarse: bool = False) -> dict:
        """Regular expressions that sort parameters into stem, blocks and last norm, for layer-wise learning rates."""
        blocks = r"^blocks\.(\d+)" if not coarse else r"^blocks"
        return {"stem": r"^cls_token|^pos_embed|^patch_embed", "blocks": [(blocks, None), (r"^norm\.", (99999,))]}

    @property
    def default_cfg(self) -> dict:
        """timm's description of the model's input and of where its first layer and classifier are."""
        preparation = self.preparation or Preparation()
        return {
            "num_classes": self.config.num_classes,
            "input_size": (self.config.in_chans, *self.config.image_shape),
            "fixed_input_size": True,
            "pool_size": None,
            "crop_pct": preparation.crop_pct,
            "interpolation": "bicubic",
            "mean": preparation.mean,
            "std": preparation.std,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }

    pretrained_cfg = default_cfg
