"""Answers to the exercises of chapter 08 as learners give them, and the hint that each must get."""

import torch
import torch.nn.functional as F
from einops import rearrange


def place(row, column, rows, columns, order):
    """The place among the patches alone."""
    if order == "columns":
        return column * rows + row
    return row * columns + (columns - 1 - column if order == "snake" and row % 2 else column)


def seated(among, later=lambda number, half: number >= half):
    """An answer made of a place among the patches and the rule that says which patches stand one place later."""

    def answer(row, column, rows, columns, order):
        number = among(row, column, rows, columns, order)
        return number + later(number, rows * columns // 2)

    return answer


def straight(row, column, rows, columns, order):
    """The snake read like text."""
    return place(row, column, rows, columns, order.replace("snake", "rows"))


def turned_at_even_rows(row, column, rows, columns, order):
    return (
        place(row, column, rows, columns, order)
        if order != "snake" or row % 2
        else place(1, column, 2, columns, order) + (row - 1) * columns
    )


def middle_row(row, column, rows, columns, order):
    number = place(row, column, rows, columns, order)
    return number + (number >= rows // 2 * columns)


def exchanged(row, column, rows, columns, order):
    return place(row, column, rows, columns, {"rows": "columns", "columns": "rows"}.get(order, order))


def heard(M, before, way, layers, K, near=lambda layers, K: layers * (K - 1), scans=None):
    """How many patches are heard; `near`: the reach of the convolutions, `scans`: what replaces a scan's answer."""
    reached = {"forward": before, "backward": M - before, "both": M} | (scans or {})
    return reached[way] if way != "convolution" else min(before, near(layers, K))


def count(
    D,
    depth,
    N,
    K,
    P,
    side,
    classes,
    *,
    directions=2,
    expand=2,
    rank=None,
    inner=2,
    biases=1,
    colours=3,
    norms=1,
    skip=1,
    cls=1,
    maps=2,
    power=2,
):
    """The parameters of a Vim, with the slips that counting invites."""
    E, R, M = expand * D, -(-D // 16) if rank is None else rank(D), (side // P) ** power
    direction = K * E + biases * E + E * (R + maps * N) + R * E + biases * E + E * N + skip * E
    block = directions * direction + inner * D * E + E * D + norms * D
    once = colours * P * P * D + biases * D + cls * D + (M + cls) * D + D + D * classes + biases * classes
    return depth * block + once


def walk(u, a, dim=1):
    h, states = torch.zeros_like(u[:, 0]), []
    for token in u.unbind(dim=1):
        h = a * h + token
        states.append(h)
    return torch.stack(states, dim=1)


def convolved(x, weight, bias, before, after):
    padded = F.pad(x, (0, 0, before, after))
    return bias + sum(padded[:, k : k + x.shape[1]] * weight[:, k] for k in range(weight.shape[1]))


def resized(pos_embed, old, new, out, back, mode="bicubic", rows=None, grid="b (r c) d -> b d r c"):
    """Take place `out` out, interpolate, put what was taken out back at place `back` (None: not at all)."""
    rest = torch.cat([pos_embed[:, :out], pos_embed[:, out + 1 :]], dim=1)
    image = rearrange(rest, grid, r=rows or old[0])
    flat = rearrange(F.interpolate(image, size=tuple(new), mode=mode), "b d r c -> b (r c) d")
    return flat if back is None else torch.cat([flat[:, :back], pos_embed[:, out : out + 1], flat[:, back:]], dim=1)


def middles(old, new):
    return old[0] * old[1] // 2, new[0] * new[1] // 2


WRONG = {
    "08.1": [
        (place, "the class token takes a place, too"),
        (seated(place, lambda number, half: True), "patches before the class token do not move"),
        (seated(place, lambda number, half: number > half), ">=, not >"),
        (middle_row, "it is at M // 2"),
        (seated(straight), "every second row is read from the right"),
        (seated(turned_at_even_rows), "every second row is read from the right"),
        (seated(exchanged), "rows and columns are exchanged"),
        (
            seated(
                lambda row, column, rows, columns, order: (
                    column * columns + row if order == "columns" else place(row, column, rows, columns, order)
                )
            ),
            "a column has `rows` patches",
        ),
    ],
    "08.2": [
        (
            lambda M, before, way, layers, K: heard(
                M, before, way, layers, K, scans={"forward": M - before, "backward": before}
            ),
            "the other side of the class token",
        ),
        (
            lambda M, before, way, layers, K: heard(
                M, before, way, layers, K, scans={"forward": M // 2, "backward": M // 2}
            ),
            "need not stand in the middle",
        ),
        (
            lambda M, before, way, layers, K: heard(M, before, way, layers, K, lambda layers, K: layers * K),
            "the token itself is one of the K",
        ),
        (
            lambda M, before, way, layers, K: heard(M, before, way, layers, K, lambda layers, K: K - 1),
            "this is one layer",
        ),
        (
            lambda M, before, way, layers, K: (
                layers * (K - 1) if way == "convolution" else heard(M, before, way, layers, K)
            ),
            "the sequence begins somewhere",
        ),
        (
            lambda M, before, way, layers, K: heard(
                M, before, way, layers, K, scans={} if layers == 1 else {"forward": M, "backward": M}
            ),
            "never hears the other side",
        ),
        (
            lambda M, before, way, layers, K: heard(M, before, way, layers, K, scans={"backward": M - before - 1}),
            "M - place stand after it",
        ),
        (lambda M, before, way, layers, K: heard(M, before, way, layers, K) + 1, "not the class token itself"),
        (
            lambda M, before, way, layers, K: (
                2 * min(before, layers * (K - 1)) if way == "convolution" else heard(M, before, way, layers, K)
            ),
            "one side only",
        ),
    ],
    "08.3": [
        (lambda *sizes: count(*sizes, directions=1), "two directions"),
        (lambda *sizes: count(*sizes, expand=1), "E = 2D"),
        (lambda *sizes: count(*sizes, inner=1), "in_proj has 2E outputs"),
        (lambda *sizes: count(*sizes, biases=0), "the biases of convolution, dt_proj"),
        (lambda *sizes: count(*sizes, rank=lambda D: D // 16), "rounded up, not down"),
        (lambda *sizes: count(*sizes, skip=0), "the skip D"),
        (lambda *sizes: count(*sizes, norms=0), "the norms of the blocks"),
        (lambda *sizes: count(*sizes, maps=1), "E N numbers: A_log"),
        (lambda *sizes: count(*sizes, colours=1), "3 colours"),
        (lambda *sizes: count(*sizes, cls=0), "two vectors of D numbers"),
        (lambda *sizes: count(*sizes, power=1), "squared"),
        (lambda *sizes: count(*sizes) - sizes[-1], "the bias of the head"),
    ],
    "08.4": [
        (lambda u, a, b: (walk(u, a) + walk(u.flip(-1), b).flip(-1)) / 2, "the wrong axis is flipped: the tokens"),
        (lambda u, a, b: (walk(u, a) + walk(u.flip(0), b).flip(0)) / 2, "flip of axis 0"),
        (lambda u, a, b: (walk(u, a) + walk(u.flip(1), b)) / 2, "not flipped back"),
        (lambda u, a, b: walk(u, a) + walk(u.flip(1), b).flip(1), "this is the sum"),
        (lambda u, a, b: (walk(u, a) + walk(u.flip(1), a).flip(1)) / 2, "its own decays"),
        (lambda u, a, b: (walk(u, b) + walk(u.flip(1), a).flip(1)) / 2, "decays are exchanged"),
        (lambda u, a, b: (walk(u, a) + walk(u, b)) / 2, "both walks go forward"),
        (lambda u, a, b: walk(walk(u, a).flip(1), b).flip(1), "over the result of the first"),
        (lambda u, a, b: (walk(u, a) + walk(u.flip(1), b).flip(1) - u) / 2, "counted once"),
    ],
    "08.5": [
        (lambda x, weight, bias: convolved(x, weight, bias, weight.shape[1] - 1, 0), "this is causal"),
        (lambda x, weight, bias: convolved(x, weight, bias, 0, weight.shape[1] - 1), "looks ahead only"),
        (
            lambda x, weight, bias: convolved(x, weight.flip(1), bias, weight.shape[1] // 2, weight.shape[1] // 2),
            "weights are reversed",
        ),
        (
            lambda x, weight, bias: convolved(x, weight, 0, weight.shape[1] // 2, weight.shape[1] // 2),
            "bias is missing",
        ),
        (
            lambda x, weight, bias: F.silu(convolved(x, weight, bias, weight.shape[1] // 2, weight.shape[1] // 2)),
            "without SiLU",
        ),
        (lambda x, weight, bias: F.conv1d(x.mT, weight[:, None], bias, groups=len(bias)).mT, "pad both ends"),
        (
            lambda x, weight, bias: F.conv1d(x.mT, weight[:, None], bias, padding=1, groups=len(bias)).mT,
            "not always 1",
        ),
        (
            lambda x, weight, bias: (
                F.conv1d(
                    F.pad(x.mT, (weight.shape[1] // 2,) * 2, mode="circular"), weight[:, None], bias, groups=len(bias)
                ).mT
            ),
            "the ends wrap around",
        ),
    ],
    "08.6": [
        (lambda pos, old, new: resized(pos, old, new, 0, 0), "this is the official way"),
        (lambda pos, old, new: resized(pos, old, new, middles(old, new)[0], 0), "put back at the front"),
        (lambda pos, old, new: resized(pos, old, new, middles(old, new)[0], None), "vector is missing"),
        (lambda pos, old, new: resized(pos, old, new, 0, middles(old, new)[1]), "take out place M // 2"),
        (lambda pos, old, new: resized(pos, old, new, *middles(old, new), mode="bilinear"), "this is bilinear"),
        (lambda pos, old, new: resized(pos, old, new, middles(old, new)[0], middles(old, new)[0]), "the old middle"),
        (
            lambda pos, old, new: resized(pos, old, new, *middles(old, new), rows=old[1]),
            "rows and columns of the old grid",
        ),
        (
            lambda pos, old, new: resized(pos, old, new, *middles(old, new), grid="b (c r) d -> b d r c"),
            "row by row",
        ),
        (lambda pos, old, new: resized(pos, old, new[::-1], *middles(old, new)), "rows and columns of the new grid"),
    ],
}
