"""`minivim flops`: how many multiply-adds a model takes for one image, part by part, and how many parameters it has.

The convention is that of the papers, whose "FLOPs" are multiply-adds: a multiplication counts one, with the addition
that follows it if one does. Counted are the products of matrices, the convolutions, attention, the recurrence, norms
and gates; not what is no multiplication (additions alone, exponentials, roots, divisions) and so not softmax and
activations. torch.utils.flop_counter counts two for a multiply-add, and sees matrix products and convolutions only.

The scan costs, for each token, direction and channel with N states,

    delta A,  (delta u) B,  A_bar h + ..,  C . h      4 N multiply-adds (Vim, Eq. 6), and N exponentials
    delta u,  D u + ..,  y silu(z)                    3

By other conventions it is 7 N operations, where each multiplication, addition and exponential counts one, and 9 N, from
mamba's issue tracker, which the code of VMamba and others adds to multiply-adds.

An FFT of n real numbers counts n log2 n. S4's kernels are the same for all images: making them is not counted.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minivim.checks import LARGEST_SIDE, check_choice, check_whole
from minivim.models.deit import Attention
from minivim.models.registry import MODELS, create_model
from minivim.models.resnet import ResNet50
from minivim.models.s4vit import S4Mixer, s4nd_vit_base
from minivim.ops.implementations import Backend, one_after_the_other, one_and_the_other
from minivim.ops.reference import add_norm_reference

TABLE_1 = {  # Vim (arXiv 2401.09417), Table 1: the rows of plain models and of ResNet-50
    "resnet50": "ResNet-50",
    "deit_tiny_patch16_224": "DeiT-Ti",
    "deit_small_patch16_224": "DeiT-S",
    "deit_base_patch16_224": "DeiT-B, ViT-B/16",
    "s4nd_vit_base_patch16_224": "S4ND-ViT-B",
    "vim_tiny_patch16_224": "Vim-Ti",
    "vim_small_patch16_224": "Vim-S",
    "vim_base_patch16_224": "Vim-B",
}
NAMES = tuple(dict.fromkeys([*TABLE_1, *MODELS]))
GIGA = 1e9
CONVENTION = (
    "GMACs: 10^9 multiply-adds for one image, which papers call FLOPs. torch GFLOPs: what torch.utils.flop_counter",
    "counts, two for each multiply-add of matrix products and convolutions; it does not see scans, FFTs and norms.",
)
UNSEEN = ("scan", "FFT", "norms")  # the parts that torch.utils.flop_counter does not see


def attention_products(layer: Attention, output: Float[Tensor, "B L D"]) -> int:
    """q k^T, and the weights times v: 2 L^2 D (Vim, Eq. 5)."""
    return 2 * output.shape[1] * output.numel()


def fft_products(layer: S4Mixer, output: Float[Tensor, "B L D"]) -> int:
    """One transform there and one back for each channel, the product of spectra, the skip, the gate."""
    _, L, D = output.shape
    channels, n = len(layer.skip), 2 * L
    transforms = (1 + channels) * round(n * math.log2(n))
    return D * (transforms + channels * (4 * (L + 1) + L) + L)


# layer -> the part it belongs to, unless its place says more, and the multiply-adds behind its output
COUNTS: dict[type[nn.Module], tuple[str, Callable]] = {
    nn.Linear: ("projections", lambda layer, output: output.numel() * layer.in_features),
    nn.Conv2d: ("convolutions", lambda layer, output: output.numel() * layer.weight[0].numel()),
    Attention: ("attention", attention_products),
    S4Mixer: ("FFT", fft_products),
    nn.LayerNorm: ("norms", lambda layer, output: 3 * output.numel()),  # the square, two scales
    nn.RMSNorm: ("norms", lambda layer, output: 3 * output.numel()),
    nn.BatchNorm2d: ("norms", lambda layer, output: output.numel()),  # one scale, as mean and variance are known
}
PLACES = {"patch_embed": "patch embedding", "mlp": "MLP", "head": "head"}


def counting_backend(found: Counter) -> Backend:
    """A backend of Vim's block that computes nothing and counts what the others multiply."""

    def scan(u: Float[Tensor, "B L E"], delta: Float[Tensor, "B L E"], A: Float[Tensor, "E N"], *rest):
        found["scan"] += u.numel() * (4 * A.shape[1] + 3)
        return torch.empty_like(u), None

    def conv(x: Float[Tensor, "B L E"], weight: Float[Tensor, "E K"], *rest):
        found["convolutions"] += x.numel() * weight.shape[1]
        return torch.empty_like(x)

    both = partial(one_after_the_other, scan), conv, partial(one_and_the_other, conv)
    return Backend("counting", scan, *both, add_norm_reference)


def count(model: nn.Module, height: int, width: int) -> Counter:
    """The multiply-adds of a model on the meta device for one image of 3 channels, by part.

    The model runs once; its layers are hooked, and so each of them is called.
    """
    found: Counter = Counter()

    def counted(part: str, products: Callable, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        found[part] += products(layer, output)

    for name, layer in model.named_modules():
        if hasattr(layer, "backend"):
            layer.backend = counting_backend(found)
        if type(layer) in COUNTS:
            part, products = COUNTS[type(layer)]
            part = next((place for key, place in PLACES.items() if key in name.split(".")), part)
            layer.register_forward_hook(partial(counted, part, products))
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, height, width, device="meta"))
    return found


@dataclass(frozen=True)
class Flops:
    """A model by name, its parameters, and the multiply-adds of one image, by part."""

    name: str
    image: tuple[int, int]
    states: int  # N of its scan, 0 without one
    parameters: int
    parts: Counter

    @property
    def matrix_flops(self) -> int:
        """What torch.utils.flop_counter counts: two for each multiply-add of the parts that it sees."""
        return 2 * (self.parts.total() - sum(self.parts[part] for part in UNSEEN))


def build(name: str, img_size: int | None = None) -> tuple[nn.Module, tuple[int, int]]:
    """(a model on the meta device, without weights, the sides of its image).

    Raises ValueError for an unknown name, and a size that the patches do not tile.
    """
    check_choice("model", name, NAMES)
    if img_size is not None:
        check_whole("img_size", img_size, maximum=LARGEST_SIDE)
    size: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    with torch.device("meta"):
        if name == "resnet50":
            return ResNet50(), (img_size or 224, img_size or 224)
        model = create_model(name, **size) if name in MODELS else s4nd_vit_base(**size)
    return model, model.config.image_shape


def measure(name: str, img_size: int | None = None) -> Flops:
    """Count one model by name, at its own size of image or at another; errors as of `build`."""
    model, image = build(name, img_size)
    states = getattr(getattr(model, "config", None), "state_dim", 0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Flops(name, image, states, parameters, count(model, *image))


def report(found: Sequence[Flops]) -> str:
    """One line a model, for a single one also its parts, and what the numbers mean."""
    lines = [f"{'model':<29} {'Table 1':<16} {'image':>9} {'parameters':>12} {'GMACs':>8} {'torch GFLOPs':>13}"]
    for each in found:
        image = "x".join(map(str, each.image))
        numbers = f"{each.parameters:>12,} {each.parts.total() / GIGA:>8.3f} {each.matrix_flops / GIGA:>13.3f}"
        lines.append(f"{each.name:<29} {TABLE_1.get(each.name, ''):<16} {image:>9} {numbers}")
    return "\n".join([*lines, *(parts(found[0]) if len(found) == 1 else []), "", *CONVENTION])


def parts(found: Flops) -> list[str]:
    """One line a part, the largest first; below them what the scan would be by other conventions."""
    total = found.parts.total()
    lines = ["", f"{'part':<16} {'GMACs':>10} {'share':>7}"]
    lines += [f"{part:<16} {n / GIGA:>10.3f} {n / total:>7.1%}" for part, n in found.parts.most_common()]
    if found.states:
        N, scan = found.states, found.parts["scan"]
        steps = scan / (4 * N + 3) / GIGA  # tokens, times channels, times directions
        lines += [
            "",
            f"The scan: 4 N + 3 for each token, channel and direction, with N = {N} states; not counted are its",
        ]
        lines += [f"{N * steps:.3f} G exponentials. By the 9 N of mamba's issue tracker it is {9 * N * steps:.3f}."]
    return lines
