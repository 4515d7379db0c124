"""Answers to the exercises of chapter 06 as learners give them, and the hint that each must get."""

import math

import torch


def walk(a, b, h=None):
    h, states = torch.zeros_like(b[0]) if h is None else h, []
    for a_t, b_t in zip(a, b, strict=True):
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states)


def rounds(L):
    return math.ceil(math.log2(L))


def ticks(L, S, lanes, up=math.ceil, first=1, each=lambda L, d: L - d):
    """The loop and the tree, with the slips that they invite."""
    distances = [2**k for k in range(rounds(L))]
    return (L - first) * up(S / lanes), sum(up(S * each(L, d) / lanes) for d in distances)


def in_chunks(a, b, K, state, fade="inside", hand_on="last", axis=0, divide=True):
    """Products in chunks; `state` is False where the carry is forgotten."""
    h, parts = torch.zeros_like(b[:1]), []
    for a_part, b_part in zip(a.split(K), b.split(K), strict=True):
        P = torch.cumprod(a_part, axis)
        total = torch.cumsum(b_part / P if divide else b_part, 0)
        parts.append(P * (h + total) if fade == "inside" else P * total + h)
        last = parts[-1][-1:]
        h = state * {"last": last, "own": (P * total)[-1:], "first": parts[-1][:1], "twice": P[-1:] * last}[hand_on]
    return torch.cat(parts)


def by_products(a, b, K):
    P = torch.cumprod(a, 0)
    return P * torch.cumsum(b / P, 0)


def back(a, h, dh, factor="next", state="before", carried=1, by_a="g"):
    """The adjoint with the slips that it invites."""
    da, db, carry = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(a[0])
    for t in reversed(range(len(a))):
        db[t] = dh[t] + carried * (carry if factor == "next" else a[t] * carry)
        before = h[t] if state == "own" else h[t - 1] if t or state == "last" else torch.zeros_like(h[0])
        da[t] = (db[t] if by_a == "g" else dh[t]) * before
        carry = a[t] * db[t] if factor == "next" else db[t]
    return da, db


def one_step_back(a, h, dh):
    g = dh + torch.cat(((a * dh)[1:], torch.zeros_like(dh[:1])))
    return g * torch.cat((torch.zeros_like(h[:1]), h[:-1])), g


def forward_walk(a, h, dh):
    g = walk(a, dh)
    return g * torch.cat((torch.zeros_like(h[:1]), h[:-1])), g


def recomputed(a, b, starts, dh, carry_on=True, first="start", own=False, first_zero=False, begin=None):
    """The backward pass from the states before each chunk, with its slips."""
    K = len(a) // len(starts)
    da, db, carry = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(a[0])
    for c in reversed(range(len(starts))):
        start = torch.zeros_like(starts[c]) if begin == "zero" else starts[c]
        if first_zero and c == 0:
            start = torch.zeros_like(start)
        part = slice(c * K, c * K + K)
        after = walk(a[part], b[part], start)
        before = torch.cat((torch.zeros_like(after[:1]) if first == "zero" else start[None], after[:-1]))
        carry = carry if carry_on else torch.zeros_like(carry)
        for t in reversed(range(c * K, c * K + K)):
            db[t] = dh[t] + carry
            da[t] = db[t] * (after if own else before)[t - c * K]
            carry = a[t] * db[t]
    return da, db


RIGHT = {"A": "test", "B": "test", "C": "code", "steps": [8, 16]}

WRONG = {
    "06.1": [
        (lambda first, second: (first[0] * second[0], first[0] * second[1] + first[1]), "the order is exchanged"),
        (lambda first, second: (first[0] * second[0], first[1] + second[1]), "passes the second step, too"),
        (lambda first, second: (first[0] + second[0], second[0] * first[1] + second[1]), "multiplied, not added"),
        (lambda first, second: (second[0] * first[0], second[0] * (first[1] + second[1])), "it is not multiplied"),
        (lambda first, second: (second[0] * first[0], second[0] * first[1]), "b_2 is missing"),
        (lambda first, second: (second[0] * first[0], first[0] * first[1] + second[1]), "b_1 is multiplied by a_2"),
        (lambda first, second: (second[0], second[0] * first[1] + second[1]), "not a_2 alone"),
        (lambda first, second: second[0] * first[1] + second[1], "must be a tuple of 2 values"),
    ],
    "06.2": [
        (lambda left, right, g: (g * left[0] + right[0], left[1] + right[1]), "fades once only"),
        (lambda left, right, g: (g ** left[1] * left[0] + right[0], left[1] + right[1]), "not its own"),
        (lambda left, right, g: (left[0] + g ** right[1] * right[0], left[1] + right[1]), "it is the left one"),
        (lambda left, right, g: (left[0] + g ** left[1] * right[0], left[1] + right[1]), "by the left part's steps"),
        (lambda left, right, g: (g ** (right[1] + 1) * left[0] + right[0], left[1] + right[1]), "not one more"),
        (lambda left, right, g: (g ** right[1] * left[0] + right[0], max(left[1], right[1])), "counts add up"),
        (lambda left, right, g: (g ** right[1] * left[0] + right[0], left[1] + right[1] + 1), "no step is added"),
        (lambda left, right, g: (g * right[1] * left[0] + right[0], left[1] + right[1]), "raised to the power"),
        (lambda left, right, g: (left[0] + right[0], left[1] + right[1]), "nothing fades"),
        (lambda left, right, g: (g ** (right[1] - 1) * left[0] + right[0], left[1] + right[1]), "one step more"),
        (lambda left, right, g: g ** right[1] * left[0] + right[0], "must be a tuple of 2 values"),
    ],
    "06.3": [
        (lambda L: (L * rounds(L), rounds(L)), "leaves out the first d positions"),
        (lambda L: (2 * (L - 1), rounds(L)), "Blelloch's work"),
        (lambda L: (2 * (L - 1), 2 * rounds(L)), "counts of Blelloch's scan"),
        (lambda L: (L - 1, L - 1), "this is the loop"),
        (lambda L: (L * rounds(L) - L + 1, rounds(L)), "powers of 2 only"),
        (
            lambda L: (sum(L - 2**k for k in range(int(math.log2(L)))), int(math.log2(L))),
            "a round is missing",
        ),
        (lambda L: (rounds(L), sum(L - 2**k for k in range(rounds(L)))), "exchanged"),
        (lambda L: (L * math.log2(L) - L + 1, math.log2(L)), "differ|yours"),
        (lambda L: (int(L * math.log2(L) - L + 1), int(math.log2(L))), "no logarithm is rounded down"),
        (lambda L: (sum(L - 2**k - 1 for k in range(rounds(L))), rounds(L)), "one less here"),
        (lambda L: (L // 2 * rounds(L), rounds(L)), r"(?s)^(?!.*likely cause: this is Blelloch)"),
        (lambda L: (sum(L - 2**k + 1 for k in range(rounds(L))), rounds(L)), "one more here"),
    ],
    "06.4": [
        (lambda L, S, lanes: ticks(L, S, lanes)[::-1], "exchanged"),
        (lambda L, S, lanes: ticks(L, S, lanes, first=0), "L - 1 combines, not L"),
        (lambda L, S, lanes: (L - 1, ticks(L, S, lanes)[1]), "takes S / lanes ticks"),
        (lambda L, S, lanes: tuple(math.ceil(x) for x in ticks(L, S, lanes, up=float)), "not at the end"),
        (lambda L, S, lanes: ticks(L, S, lanes, up=float), "round up"),
        (lambda L, S, lanes: ticks(L, S, lanes, up=math.floor), "rounds down"),
        (lambda L, S, lanes: ticks(L, S, lanes, each=lambda L, d: L), "have nothing to join"),
        (lambda L, S, lanes: (ticks(L, S, lanes)[0], rounds(L)), "more than one tick"),
        (lambda L, S, lanes: (ticks(L, S, lanes)[0], ticks(L, 1, lanes)[1]), "S sequences are missing"),
        (lambda L, S, lanes: (ticks(L, S, lanes)[0], S * ticks(L, 1, lanes)[1]), "not n / lanes"),
    ],
    "06.5": [
        (lambda a, b, K: in_chunks(a, b, K, 0), "begins at 0"),
        (lambda a, b, K: in_chunks(a, b, K, 1, fade="outside"), "inside the bracket"),
        (lambda a, b, K: in_chunks(a, b, K, 1, hand_on="own"), "handed itself"),
        (lambda a, b, K: in_chunks(a, b, K, 1, hand_on="first"), "not its first"),
        (lambda a, b, K: in_chunks(a, b, K, 1, hand_on="twice"), "P is in it already"),
        (lambda a, b, K: in_chunks(a, b, K, 1, axis=-1), "not over the sequences"),
        (lambda a, b, K: in_chunks(a, b, K, 1, divide=False), "must be divided by P before it is summed$"),
        (by_products, "must begin anew"),
        (lambda a, b, K: walk(a, b)[K - 1 :: K], "all states are asked for"),
        (lambda a, b, K: torch.cat((torch.zeros_like(b[:1]), walk(a, b)[:-1])), "one step late"),
        (lambda a, b, K: torch.cumprod(a, 0) * torch.cumsum(b, 0), "differ"),
    ],
    "06.6": [
        (lambda a, h, dh: back(a, h, dh, factor="own"), r"has a\[t\] in its place"),
        (lambda a, h, dh: back(a, h, dh, state="own"), r"this has h\[t\]"),
        (lambda a, h, dh: back(a, h, dh, carried=0), "the carry is missing"),
        (lambda a, h, dh: back(a, h, dh, by_a="dh"), "uses g, not dh"),
        (lambda a, h, dh: (dh * h, dh), "the carry is missing, and"),
        (one_step_back, r"has dh\[t.1\]"),
        (forward_walk, "from the last step to the first"),
        (lambda a, h, dh: back(a, h, dh)[::-1], "exchanged"),
        (lambda a, h, dh: back(a, h, dh, state="last"), "not the last state"),
        (lambda a, h, dh: back(torch.ones_like(a), h, dh), "the factor a is missing"),
    ],
    "06.7": [
        (lambda *given: recomputed(*given, carry_on=False), "from chunk to chunk"),
        (lambda *given: recomputed(*given, first="zero"), "not 0"),
        (lambda *given: recomputed(*given, begin="zero"), r"begin at starts\[c\]"),
        (lambda *given: recomputed(*given, own=True), r"this has h\[t\]"),
        (lambda *given: recomputed(*given, first_zero=True), "need not be 0"),
        (lambda *given: recomputed(*given)[::-1], "exchanged"),
    ],
    "06.8": [
        (lambda: RIGHT | {"A": "code"}, "write down the two losses"),
        (lambda: RIGHT | {"B": "code"}, "how many digits"),
        (lambda: RIGHT | {"C": "test"}, "what is left"),
        (lambda: RIGHT | {"steps": [1, 2]}, "numbers of the chunks"),
        (lambda: RIGHT | {"steps": [8]}, "there is another one"),
        (lambda: RIGHT | {"steps": [0, 8, 16]}, "t = 0 is right"),
        (lambda: RIGHT | {"steps": [7, 15]}, "one later"),
        (lambda: RIGHT | {"A": "false alarm"}, '"test" or "code"'),
        (lambda: {"A": "test", "B": "test", "C": "code"}, "the keys"),
    ],
}
