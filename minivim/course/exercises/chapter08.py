"""Chapter 08, Vision Mamba: the checkers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from minivim import VimConfig, VisionMamba
from minivim.course.exercises.checking import compare, exercise
from minivim.models.backbone import insert_tokens, remove_tokens


def _normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, the same for everybody."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _among_patches(row: int, column: int, rows: int, columns: int, order: str) -> int:
    """The place of a patch among the patches alone."""
    if order == "columns":
        return column * rows + row
    return row * columns + (columns - 1 - column if order == "snake" and row % 2 else column)


@exercise("08.1", "Where does a patch stand?")
def place_of_patch(answer: Callable) -> None:
    """The place in the sequence with the class token in the middle, for three orders."""
    grids = [
        (2, 5, 14, 14, "rows"),
        (11, 3, 14, 14, "rows"),
        (2, 5, 6, 9, "columns"),
        (1, 7, 6, 9, "columns"),
        (4, 7, 6, 9, "snake"),
        (3, 2, 6, 9, "snake"),
        (1, 2, 6, 9, "snake"),
        (2, 1, 5, 5, "rows"),  # in the middle row, before the class token
        (2, 2, 5, 5, "rows"),  # the first patch behind the class token, of an odd number
        (7, 3, 10, 4, "rows"),
        (5, 0, 10, 4, "rows"),
    ]
    for row, column, rows, columns, order in grids:
        half = rows * columns // 2

        def seat(place: int, half: int = half) -> int:
            return place + (place >= half)

        place = _among_patches(row, column, rows, columns, order)
        other = _among_patches(row, column, rows, columns, "rows" if order == "columns" else "columns")
        causes = {"rows and columns are exchanged": seat(other)}
        if place < half:
            causes[
                "one too many: counts begin at 0, and patches before the class token do not move: it is at M // 2"
            ] = place + 1
        elif place == half:  # whoever forgets the class token has failed at an earlier patch
            causes["the patch with number M // 2 itself stands behind the class token: >=, not >"] = place
        else:
            causes["the class token takes a place, too: patches from the M // 2-th on stand one later"] = place
            causes["one too many: counts begin at 0"] = place + 2
        if order == "rows" and rows != columns:
            causes["a row has `columns` patches, not `rows`"] = seat(row * rows + column)
        if order == "columns":
            causes["a column has `rows` patches, not `columns`"] = seat(column * columns + row)
        if order == "snake":
            even, odd = row * columns + column, row * columns + columns - 1 - column
            causes["in a snake every second row is read from the right"] = seat(even if row % 2 else odd)
        given = f'row = {row}, column = {column}, rows = {rows}, columns = {columns}, order = "{order}"'
        compare(answer(row, column, rows, columns, order), seat(place), "the place", given=given, causes=causes)


@exercise("08.2", "Who can be heard?")
def patches_heard(answer: Callable) -> None:
    """How many patches reach the class token through some layers."""
    cases = [
        (30, 12, "forward", 1, 4),
        (30, 12, "forward", 5, 4),
        (30, 12, "backward", 1, 4),
        (30, 12, "backward", 3, 3),
        (30, 12, "both", 1, 4),
        (197, 40, "both", 3, 4),
        (200, 90, "convolution", 3, 4),
        (200, 90, "convolution", 7, 6),
        (200, 13, "convolution", 9, 4),
        (40, 33, "convolution", 5, 3),
    ]
    for M, place, way, layers, K in cases:
        before, after, near = place, M - place, layers * (K - 1)
        expected = {"forward": before, "backward": after, "both": M, "convolution": min(before, near)}[way]
        causes = {"only patches count, not the class token itself": expected + 1}
        if way in ("forward", "backward"):
            causes |= {
                "this is the other side of the class token": M - expected,
                "the class token need not stand in the middle: `place` patches stand before it": M // 2,
                "a scan in one direction never hears the other side, whatever the number of layers": M,
            }
            if way == "backward":
                causes["the class token is not one of the M patches: M - place stand after it"] = expected - 1
        elif way == "both":
            causes |= {
                "the two scans together hear both sides": max(before, after),
                "the class token is not one of the M patches": M - 1,
                "each scan hears one side: before and after are added, M in all": 2 * M,
            }
        else:
            causes |= {
                "a layer brings a token K - 1 places further, since the token itself is one of the K": min(
                    before, layers * K
                ),
                "every layer adds K - 1 places; this is one layer": min(before, K - 1),
                "the sequence begins somewhere: no more than `place` patches stand before the class token": near,
                "the convolution is causal: it looks at one side only": min(before, near) + min(after, near),
                "the layers add K - 1 places each, they do not multiply": min(before, (K - 1) ** layers),
                "a convolution hears what is near, not the whole side": before,
            }
        given = f'M = {M}, place = {place}, way = "{way}", layers = {layers}, K = {K}'
        compare(answer(M, place, way, layers, K), expected, "the number of patches", given=given, causes=causes)


def _parts(D: int, N: int, K: int, P: int, side: int, classes: int, expand: int = 2) -> tuple[dict, dict, dict]:
    """The parameters of a direction, of the rest of a block, and of what is there once; by part."""
    E, R, M = expand * D, -(-D // 16), (side // P) ** 2
    direction = {
        "K E": K * E,
        "conv_bias": E,
        "x_proj": E * (R + 2 * N),
        "dt_proj": R * E,
        "dt_bias": E,
        "A_log": E * N,
        "D": E,
    }
    rest = {"in_proj": 2 * D * E, "out_proj": E * D, "norm": D}
    once = {
        "patches": 3 * P * P * D,
        "patch_bias": D,
        "cls": D,
        "pos": (M + 1) * D,
        "last": D,
        "head": D * classes,
        "head_bias": classes,
    }
    return direction, rest, once


@exercise("08.3", "Count them all")
def count_parameters(answer: Callable) -> None:
    """The number of parameters of a whole Vim."""
    for D, depth, N, K, P, side, classes in [
        (48, 5, 7, 3, 4, 28, 29),  # sizes so small that a forgotten vector shows
        (40, 3, 7, 5, 2, 6, 23),
        (192, 24, 16, 4, 16, 224, 1000),
    ]:
        direction, rest, once = _parts(D, N, K, P, side, classes)
        E, R, M = 2 * D, -(-D // 16), (side // P) ** 2
        total = depth * (2 * sum(direction.values()) + sum(rest.values())) + sum(once.values())

        def without(
            *parts: str, both: dict = direction, rest: dict = rest, once: dict = once, depth: int = depth
        ) -> int:
            lost = sum(2 * depth * both.get(part, 0) + depth * rest.get(part, 0) + once.get(part, 0) for part in parts)
            return depth * (2 * sum(both.values()) + sum(rest.values())) + sum(once.values()) - lost

        narrow = [sum(part.values()) for part in _parts(D, N, K, P, side, classes, expand=1)]
        causes = {
            "a block has two directions, each with weights of its own": total - depth * sum(direction.values()),
            "all of the block is counted twice; in_proj, out_proj and norm are shared by the directions": total
            + depth * sum(rest.values()),
            "in_proj has 2E outputs, x and z": total - depth * D * E,
            "the inner width is E = 2D": depth * (2 * narrow[0] + narrow[1]) + narrow[2],
            "each direction lacks E N numbers: A_log, or x_proj's outputs for C, of R + 2N": total - 2 * depth * E * N,
            "each direction lacks E R numbers: x_proj has R + 2N outputs, dt_proj has R inputs": total
            - 2 * depth * E * R,
            "the biases of convolution, dt_proj, patch embedding and head are missing": without(
                "conv_bias", "dt_bias", "patch_bias", "head_bias"
            ),
            "each direction lacks E numbers: the skip D, the bias of the convolution or that of dt_proj": without("D"),
            "the convolution is missing": without("K E", "conv_bias"),
            "the convolution is depthwise: each channel has K numbers, not K for each other channel": total
            + 2 * depth * (K * E * E - K * E),
            "the norms of the blocks are missing, D numbers each": without("norm"),
            "one vector of D numbers is missing: last norm, class token, patch bias, or the class token's position": (
                without("last")
            ),
            "two vectors of D numbers are missing: the class token, and its place in the position embedding": without(
                "cls", "last"
            ),
            "the position embedding is missing": without("pos"),
            "the bias of the head is missing": without("head_bias"),
            "x_proj has no bias": total + 2 * depth * (R + 2 * N),
            "in_proj has no bias": total + depth * 2 * E,
            "D numbers a block too many: one norm only, and out_proj has no bias": total + depth * D,
            "a patch has P x P pixels: 3 P P numbers": total - 3 * P * P * D + 3 * P * D,
            "the head is missing": without("head", "head_bias"),
            "a patch has 3 colours: 3 P P numbers": total - 2 * P * P * D,
            "the number of patches is (side / P) squared": total - (M - side // P) * D,
            "this is one block of `depth`": total - (depth - 1) * (2 * sum(direction.values()) + sum(rest.values())),
            "the blocks alone: patches, class token, positions, last norm and head are missing": total
            - sum(once.values()),
            "linear layers other than dt_proj, patch embedding and head have no bias": total
            + depth * (2 * E + D + 2 * (R + 2 * N)),
        }
        if D % 16:  # whoever lacks 2E biases has failed at an earlier D
            causes["R is D / 16 rounded up, not down"] = total - 2 * depth * 2 * E
        else:
            causes["each direction lacks the biases of convolution and dt_proj, E numbers each"] = without(
                "conv_bias", "dt_bias"
            )
        given = f"D = {D}, depth = {depth}, N = {N}, K = {K}, P = {P}, side = {side}, classes = {classes}"
        found = answer(D, depth, N, K, P, side, classes)
        compare(found, total, "the number of parameters", tolerance=1e-12, given=given, causes=causes)


def _walk(u: Float[Tensor, "B L E"], a: Float[Tensor, " E"]) -> Float[Tensor, "B L E"]:
    """h[t] = a h[t-1] + u[t]."""
    h, states = torch.zeros_like(u[:, 0]), []
    for token in u.unbind(dim=1):
        h = a * h + token
        states.append(h)
    return torch.stack(states, dim=1)


@exercise("08.4", "Two walks")
def two_walks(answer: Callable) -> None:
    """Mean of a forward and a backward recurrence."""
    for B, L, E, seed in [(2, 5, 3, 0), (3, 4, 4, 1), (1, 9, 2, 2), (5, 6, 5, 3)]:
        u = _normal(B, L, E, seed=seed)
        a, b = torch.sigmoid(_normal(2, E, seed=seed + 10))
        there, back = _walk(u, a), _walk(u.flip(1), b).flip(1)
        expected = (there + back) / 2
        causes = {
            "the wrong axis is flipped: the tokens are axis 1, the channels axis -1": (
                there + _walk(u.flip(-1), b).flip(-1)
            )
            / 2,
            "the backward walk is not flipped back to the order of the tokens": (there + back.flip(1)) / 2,
            "u is not flipped for the backward walk, but its result is": (there + _walk(u, b).flip(1)) / 2,
            "both walks go forward; the tokens are axis 1, and a flip of axis 0 is one of the batch": (
                there + _walk(u, b)
            )
            / 2,
            "this is the sum; the mean is asked for": there + back,
            "only the forward walk is here": there,
            "only the backward walk is here": back,
            "the backward walk has its own decays, a_backward": (there + _walk(u.flip(1), a).flip(1)) / 2,
            "the decays are exchanged: a_forward walks from the first token to the last": (
                _walk(u, b) + _walk(u.flip(1), a).flip(1)
            )
            / 2,
            "the token itself is counted once, not in each walk; each walk adds u[t], and the mean stays": expected
            - u / 2,
            "the second walk runs over the result of the first; both run over u": _walk(there.flip(1), b).flip(1),
            "h[t] = a h[t-1] + u[t]: u is not weighted by 1 - a": (
                _walk((1 - a) * u, a) + _walk((1 - b) * u.flip(1), b).flip(1)
            )
            / 2,
            "h[t] contains u[t]; this is the mean of the walks before it": (there + back) / 2 - u,
            "u[t] is added after the decay, not before it": (a * there + b * back) / 2,
        }
        given = f"B = {B}, L = {L}, E = {E}"
        compare(answer(u, a, b), expected, "the mean of both walks", given=given, causes=causes)


def _around(x: Float[Tensor, "B L E"], weight: Float[Tensor, "E K"], before: int, after: int) -> Float[Tensor, "B L E"]:
    """The sum over K neighbours of each token, of which `before` lie before it and `after` after it."""
    padded = F.pad(x, (0, 0, before, after))
    return sum(padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(before + after + 1))


@exercise("08.5", "A centred convolution")
def centred_convolution(answer: Callable) -> None:
    """Depthwise convolution around each token."""
    for B, L, E, K, seed in [(2, 7, 3, 3, 0), (1, 4, 4, 5, 1), (3, 6, 2, 3, 2), (2, 5, 5, 1, 3)]:
        x, weight, bias = _normal(B, L, E, seed=seed), _normal(E, K, seed=seed + 10), _normal(E, seed=seed + 20)
        half = K // 2
        expected = bias + _around(x, weight, half, half)
        circular = sum(torch.roll(x, half - k, dims=1) * weight[:, k] for k in range(K))
        padded = F.pad(x.mT, (half, half), mode="replicate").mT
        edges = sum(padded[:, k : k + L] * weight[:, k] for k in range(K))
        channels = F.pad(x, (half, half))
        along = sum(channels[..., k : k + E] * weight[:, k] for k in range(K))
        causes = {
            "this is causal: it looks back only": bias + _around(x, weight, K - 1, 0),
            "this looks ahead only": bias + _around(x, weight, 0, K - 1),
            "the weights are reversed: weight 0 belongs to the token before": bias
            + _around(x, weight.flip(1), half, half),
            "the bias is missing": expected - bias,
            "the bias is added once for each weight": expected + (K - 1) * bias,
            "without SiLU": F.silu(expected),
            "the ends wrap around; what lies outside counts as 0": bias + circular,
            "the ends are repeated; what lies outside counts as 0": bias + edges,
            "the neighbours are tokens, axis 1; this convolves along the channels": bias + along,
            "the result has L tokens: pad both ends": expected[:, half : L - half],
            "each channel is convolved with its own weights; here the channels are added up": (
                bias + _around(x, weight, half, half).sum(-1, keepdim=True)
            ),
            "all channels have the weights of the first": bias + _around(x, weight[:1].expand(E, K), half, half),
        }
        if half > 1:
            causes["pad (K - 1) / 2 tokens at each end, not always 1"] = expected[:, half - 1 : L - half + 1]
        given = f"B = {B}, L = {L}, E = {E}, K = {K}"
        compare(answer(x, weight, bias), expected, "y", given=given, causes=causes)


def _interpolated(
    patches: Float[Tensor, "1 M D"], old: tuple[int, int], new: tuple[int, int], mode: str = "bicubic", **options: bool
) -> Float[Tensor, "1 K D"]:
    """Patches of the old grid on the new grid."""
    grid = rearrange(patches, "b (r c) d -> b d r c", r=old[0])
    return rearrange(F.interpolate(grid, size=new, mode=mode, **options), "b d r c -> b (r c) d")


@exercise("08.6", "Mend the resizing")
def resize_with_middle(answer: Callable) -> None:
    """The position embedding of a Vim with its class token in the middle, for another grid."""
    for old, new, D, seed in [
        ((4, 4), (6, 6), 3, 0),
        ((6, 4), (3, 8), 2, 1),
        ((5, 7), (5, 7), 4, 2),
        ((4, 6), (7, 5), 3, 3),
    ]:
        config = VimConfig(img_size=old, patch_size=1, embed_dim=D, depth=1, num_classes=0)
        half, M = old[0] * old[1] // 2, new[0] * new[1]
        pos_embed = _normal(1, config.num_tokens, D, seed=seed)
        model = VisionMamba(config).double()
        model.pos_embed.data = pos_embed.clone()
        expected = model.resize_to(*new).pos_embed.detach()
        token, patches = pos_embed[:, half : half + 1], remove_tokens(pos_embed, (half,))
        right = _interpolated(patches, old, new)
        causes = {
            "this is the official way: place 0 is patch 0, not the class token": torch.cat(
                (pos_embed[:, :1], _interpolated(pos_embed[:, 1:], old, new)), dim=1
            ),
            "the class token is put back at the front; it belongs at the new middle": torch.cat((token, right), dim=1),
            "the class token is put back at the end; it belongs at the new middle": torch.cat((right, token), dim=1),
            "the class token's vector is missing": right,
            "place 0 is patch 0, not the class token: take out place M // 2": insert_tokens(
                _interpolated(pos_embed[:, 1:], old, new), pos_embed[:, :1], (M // 2,)
            ),
            "this is bilinear; `official_resize` interpolates bicubically": insert_tokens(
                _interpolated(patches, old, new, "bilinear"), token, (M // 2,)
            ),
            "`align_corners` must be False": insert_tokens(
                _interpolated(patches, old, new, align_corners=True), token, (M // 2,)
            ),
            "this takes the nearest patch; `official_resize` interpolates bicubically": insert_tokens(
                _interpolated(patches, old, new, "nearest"), token, (M // 2,)
            ),
            "interpolate as `official_resize` does, without antialias": insert_tokens(
                _interpolated(patches, old, new, antialias=True), token, (M // 2,)
            ),
            "the class token's vector must not be changed; here it is 0": insert_tokens(right, 0 * token, (M // 2,)),
            "the class token stands one place too late": insert_tokens(right, token, (M // 2 + 1,)),
            "rows and columns of the new grid are exchanged": insert_tokens(
                _interpolated(patches, old, new[::-1]), token, (M // 2,)
            ),
            "rows and columns of the old grid are exchanged": insert_tokens(
                _interpolated(patches, old[::-1], new), token, (M // 2,)
            ),
        }
        turned = rearrange(patches, "b (c r) d -> b (r c) d", r=old[0])
        causes["patches are numbered row by row: (r c), not (c r)"] = insert_tokens(
            _interpolated(turned, old, new), token, (M // 2,)
        )
        if M // 2 < pos_embed.shape[1]:
            causes["the vector put back must be the class token's, from the old place M // 2"] = insert_tokens(
                right, pos_embed[:, M // 2 : M // 2 + 1], (M // 2,)
            )
        if half <= M:
            causes["it is put back at the old middle; the new one is at M' // 2"] = insert_tokens(right, token, (half,))
        given = f"old = {old}, new = {new}, D = {D}"
        compare(answer(pos_embed, old, new), expected, "the position embedding", given=given, causes=causes)
