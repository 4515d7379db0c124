"""The sizes and choices that all image models share."""

import math
from dataclasses import dataclass

from minivim.checks import check_choice, check_whole, is_number, shown

CLS_TOKENS = ("middle", "head", "double", "none", "max")
POOLS = ("token", "avg", "max", "")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The fields that Vim and DeiT share. Sizes in pixels; `img_size` is one number or (height, width).

    global_pool        what the head sees: "token" the class token, the mean of two; "avg", "max" the mean, the maximum
                       of the patches; "" each token by itself. None: as cls_token says
    drop_rate          dropout before the head
    """

    img_size: int | tuple[int, int] = 224
    patch_size: int = 16
    stride: int | None = None  # None: patch_size
    in_chans: int = 3
    num_classes: int = 1000  # 0: no head, the model returns features
    embed_dim: int = 192
    depth: int = 24
    cls_token: str = "middle"
    pos_embed: bool = True
    drop_path_rate: float = 0.0
    drop_rate: float = 0.0
    global_pool: str | None = None

    def __post_init__(self) -> None:
        for name in ("patch_size", "in_chans", "embed_dim", "depth"):
            check_whole(name, getattr(self, name))
        check_whole("num_classes", self.num_classes, minimum=0)
        if self.stride is not None:
            check_whole("stride", self.stride)
        check_choice("cls_token", self.cls_token, CLS_TOKENS)
        if not isinstance(self.pos_embed, bool):
            raise ValueError(f"pos_embed is {shown(self.pos_embed)}; it must be True or False")
        for name in ("drop_path_rate", "drop_rate"):
            rate = getattr(self, name)
            if not is_number(rate) or not 0 <= rate < 1:
                raise ValueError(f"{name} is {shown(rate)}; it must be a number from 0 up to, not including, 1")
        if self.global_pool is not None:
            check_choice("global_pool", self.global_pool, POOLS)
        if self.global_pool == "token" and self.cls_token in ("none", "max"):
            raise ValueError(f"global_pool is 'token', but cls_token is {self.cls_token!r}; it must be a token")
        if not isinstance(self.img_size, int | tuple) or len(self.image_shape) != 2:
            raise ValueError(f"img_size is {shown(self.img_size)}; it must be one whole number or (height, width)")
        for side in self.image_shape:
            self._check_side(side)

    def _check_side(self, side: int) -> None:
        check_whole("img_size", side)
        patch, stride = self.patch_size, self.patch_stride
        if side < patch or (side - patch) % stride:
            rule = f"patch_size {patch} plus a multiple of stride {stride}"
            rule = f"a multiple of patch_size {patch}" if stride == patch else rule
            raise ValueError(f"img_size is {shown(self.img_size)}; each side must be {rule}")

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the image in pixels."""
        return self.img_size if isinstance(self.img_size, tuple) else (self.img_size, self.img_size)

    @property
    def patch_stride(self) -> int:
        """Pixels from one patch to the next."""
        return self.patch_size if self.stride is None else self.stride

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid."""
        rows, columns = ((side - self.patch_size) // self.patch_stride + 1 for side in self.image_shape)
        return rows, columns

    @property
    def num_patches(self) -> int:
        """Patches of one image: rows times columns."""
        return math.prod(self.grid_shape)

    @property
    def cls_positions(self) -> tuple[int, ...]:
        """Where the class tokens stand in the sequence of patches and class tokens."""
        M = self.num_patches
        return {"middle": (M // 2,), "head": (0,), "double": (0, M + 1), "none": (), "max": ()}[self.cls_token]

    @property
    def pooling(self) -> str:
        """What the head sees: one of "token", "avg", "max" and "", each token by itself."""
        by_token = {"none": "avg", "max": "max"}.get(self.cls_token, "token")
        return by_token if self.global_pool is None else self.global_pool

    @property
    def num_tokens(self) -> int:
        """The length L of the sequence: patches and class tokens."""
        return self.num_patches + len(self.cls_positions)
