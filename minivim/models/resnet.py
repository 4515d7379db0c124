"""ResNet-50 (arXiv 1512.03385): the convolutional network that Vim's Table 1 begins with.

A stem, then four stages; each stage after the first halves the sides of the map, and each doubles its channels:

    stem     3 -> 64, 7 x 7 convolution and 3 x 3 maximum, stride 2 each       56 x 56 of an image of 224 x 224
    stages   3, 4, 6, 3 bottlenecks; 256, 512, 1024, 2048 channels             56, 28, 14, 7
    head     the mean of the map, a linear classifier

In its form 1.5, which everybody measures today: a stage's stride is in its first 3 x 3 convolution, not in the 1 x 1
before it.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from minivim.models.backbone import make_head

STEM = 64
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # inner width, bottlenecks: Table 1
EXPANSION = 4  # outer over inner width


def conv_norm(in_width: int, out_width: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the sides, or divides them by `stride`, and its batch norm."""
    padding = kernel_size // 2
    conv = nn.Conv2d(in_width, out_width, kernel_size, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_width))


class Bottleneck(nn.Module):
    """relu(shortcut(x) + f(x)), where f narrows, convolves 3 x 3 and widens again. Figure 5, right."""

    def __init__(self, in_width: int, width: int, stride: int = 1):
        super().__init__()
        out_width = EXPANSION * width
        self.narrow = conv_norm(in_width, width, 1)
        self.conv = conv_norm(width, width, 3, stride)
        self.widen = conv_norm(width, out_width, 1)
        # A block begins as its shortcut (arXiv 1706.02677, section 5.1).
        nn.init.zeros_(self.widen.get_parameter("1.weight"))
        same = (in_width, stride) == (out_width, 1)
        self.shortcut = nn.Identity() if same else conv_norm(in_width, out_width, 1, stride)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_out H_out W_out"]:
        """(B, C, H, W) -> (B, 4 width, H / stride, W / stride), rounded up."""
        y = F.relu(self.conv(F.relu(self.narrow(x))))
        return F.relu(self.shortcut(x) + self.widen(y))


class ResNet50(nn.Module):
    """ResNet-50, (B, in_chans, H, W) of any size -> (B, num_classes), in timm's conventions."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3):
        super().__init__()
        self.stem = nn.Sequential(conv_norm(in_chans, STEM, 7, 2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        stages, in_width = [], STEM
        for index, (width, depth) in enumerate(STAGES):
            stride = 1 if index == 0 else 2
            blocks = [Bottleneck(in_width, width, stride)]
            in_width = EXPANSION * width
            blocks += [Bottleneck(in_width, width) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.num_features = in_width
        self.head = make_head(in_width, num_classes)

    def forward_features(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 2048 rows columns"]:
        """The last map, its sides those of the image over 32, rounded up."""
        return self.stages(self.stem(image))

    def forward_head(
        self, features: Float[Tensor, "B 2048 rows columns"], pre_logits: bool = False
    ) -> Float[Tensor, "B K"]:
        """The mean of the map, then the head unless `pre_logits`."""
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Images to logits."""
        return self.forward_head(self.forward_features(image))
