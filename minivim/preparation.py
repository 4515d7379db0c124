"""How a picture is prepared for a model: the one place where evaluation, checkpoints and timm read it."""

from collections.abc import Sequence
from dataclasses import dataclass

from minivim.checks import is_number, shown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Resize bicubically, cut the centre, normalise. Raises ValueError for numbers that no picture has.

    mean, std    of each channel, on the scale where white is 1
    crop_pct     the model's image size as a share of the size that the picture is resized to, 0.1 to 1; timm's name
    """

    mean: Sequence = IMAGENET_MEAN
    std: Sequence = IMAGENET_STD
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not values or not all(map(is_number, values)):
                raise ValueError(f"{name} is {shown(values)}; it must be one finite number a channel")
            object.__setattr__(self, name, tuple(map(float, values)))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} numbers, std {len(self.std)}; both must have one a channel")
        if min(self.std) <= 0:
            raise ValueError(f"std is {shown(self.std)}; its numbers must be above 0")
        if not is_number(self.crop_pct) or not 0.1 <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {shown(self.crop_pct)}; it must be a number from 0.1 to 1")
