"""Chapter 06, scans: the checkers."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minivim.course.exercises.checking import Wrong, compare, demand, exercise


def _random(*shape: int, seed: int) -> tuple[Tensor, Tensor]:
    """Decays between 0.2 and 0.9 and standard normal numbers, the same for everybody."""
    generator = torch.Generator().manual_seed(seed)
    decays = 0.2 + 0.7 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return decays, torch.randn(shape, generator=generator, dtype=torch.float64)


def _walk(a: Tensor, b: Tensor, h: Tensor | None = None) -> Tensor:
    """All states of h[t] = a[t] h[t-1] + b[t], one after the other."""
    states = [torch.zeros_like(b[0]) if h is None else h]
    for a_t, b_t in zip(a, b, strict=True):
        states.append(a_t * states[-1] + b_t)
    return torch.stack(states[1:])


def _adjoint(factors: Tensor, dh: Tensor) -> Tensor:
    """g[t] = dh[t] + factors[t] g[t+1], from the last step to the first."""
    return _walk(factors.flip(0), dh.flip(0)).flip(0)


def _shifted(x: Tensor, first: Tensor | None = None) -> Tensor:
    """x one step later; `first`, or zeros, stands in front."""
    return torch.cat((torch.zeros_like(x[:1]) if first is None else first[None], x[:-1]))


def _earlier(x: Tensor) -> Tensor:
    """x one step earlier; zeros stand at the end."""
    return torch.cat((x[1:], torch.zeros_like(x[:1])))


@exercise("06.1", "Two steps in one")
def two_in_one(answer: Callable) -> None:
    """(a_2 a_1, a_2 b_1 + b_2)."""
    for shape, seed in [((), 0), ((5,), 1), ((3, 2), 2)]:
        a_1, b_1 = _random(*shape, seed=seed)
        a_2, b_2 = _random(*shape, seed=seed + 10)
        expected = a_2 * a_1, a_2 * b_1 + b_2
        causes = {
            "the order is exchanged: `first` happens first": (a_1 * a_2, a_1 * b_2 + b_1),
            "what was added first passes the second step, too: a_2 b_1 + b_2": (a_2 * a_1, b_1 + b_2),
            "the decays are multiplied, not added": (a_1 + a_2, expected[1]),
            "b_2 is added after the second multiplication: it is not multiplied": (a_2 * a_1, a_2 * (b_1 + b_2)),
            "b_1 is multiplied by a_2; its own step has added it after a_1": (a_2 * a_1, a_1 * b_1 + b_2),
            "b_1 is multiplied by a_2, not b_2": (a_2 * a_1, a_2 * b_2 + b_1),
            "a_1 is not all: the decay of the two steps is a_2 a_1": (a_1, expected[1]),
            "b_1 + b_2 is not multiplied by a_2 a_1: b_1 passes a_2 alone, b_2 nothing": (
                a_2 * a_1,
                a_2 * a_1 * (b_1 + b_2),
            ),
            "b_2 is missing": (a_2 * a_1, a_2 * b_1),
            "b_1 passes the second step only; a_1 was before it": (a_2 * a_1, a_2 * a_1 * b_1 + b_2),
            "the decay of the two steps is a_2 a_1, not a_2 alone": (a_2, expected[1]),
            "a step is multiplied number by number; (6.2) adds b_2": (a_2 * a_1, b_2 * b_1),
            "the two numbers of the pair are exchanged": (expected[1], expected[0]),
        }
        given = f"tensors of shape {shape}"
        compare(answer((a_1, b_1), (a_2, b_2)), expected, "the pair", tolerance=1e-9, given=given, causes=causes)


@exercise("06.2", "Mend the rule")
def fading_sum(answer: Callable) -> None:
    """(g^n_2 value_1 + value_2, n_1 + n_2)."""
    for left, right, g in [((8.0, 5), (2.0, 3), 0.7), ((4.0, 3), (-1.5, 2), 0.9), ((-0.7, 2), (3.0, 5), 0.8)]:
        (value_1, count_1), (value_2, count_2) = left, right
        both = count_1 + count_2
        expected = g**count_2 * value_1 + value_2, both
        causes = {
            "the left value fades once only; it passes all steps of the right part": (g * value_1 + value_2, both),
            "the left value passes the steps of the right part, not its own": (g**count_1 * value_1 + value_2, both),
            "the right value fades; it is the left one that must": (value_1 + g**count_2 * value_2, both),
            "the right value fades by the left part's steps; it is the left one that must fade": (
                value_1 + g**count_1 * value_2,
                both,
            ),
            "the left value does not pass its own steps again": (g**both * value_1 + value_2, both),
            "g is raised to the power of the count, not multiplied by it": (g * count_2 * value_1 + value_2, both),
            "the left value passes one step more of the right part": (
                g ** (count_2 - 1) * value_1 + value_2,
                both,
            ),
            "the left value passes the steps of the right part, not one more": (
                g ** (count_2 + 1) * value_1 + value_2,
                both,
            ),
            "values fade by g, they do not grow": (value_1 / g**count_2 + value_2, both),
            "a value is multiplied by g in each step, not by 1 - g": ((1 - g) ** count_2 * value_1 + value_2, both),
            "nothing fades": (value_1 + value_2, both),
            "both values fade; the right one is up to date": (g**count_2 * (value_1 + value_2), both),
            "the counts add up": (expected[0], max(count_1, count_2)),
            "the counts add up; no step is added": (expected[0], both + 1),
            "the count is that of both parts": (expected[0], count_2),
            "the counts add up; they are not multiplied": (expected[0], count_1 * count_2),
        }
        given = f"left = {left}, right = {right}, g = {g}"
        compare(answer(left, right, g), expected, "the part", given=given, causes=causes)


@exercise("06.3", "Count for any length")
def hillis_steele_cost(answer: Callable) -> None:
    """(work, depth) of Hillis and Steele's scan."""
    for L in (14, 8, 100, 2, 1, 1000, 1025):  # at 8 and 13, Blelloch's work is also that of other mistakes
        distances = [2**k for k in range((L - 1).bit_length())]
        depth, floor = len(distances), max(L.bit_length() - 1, 0)
        work = sum(L - distance for distance in distances)
        causes = {
            "each round leaves out the first d positions, which have nothing to join": (L * depth, depth),
            "this is Blelloch's work": (2 * (L - 1), depth),
            "these are the counts of Blelloch's scan": (2 * (L - 1), 2 * depth),
            "this is the loop: L - 1 combines, L - 1 rounds": (L - 1, L - 1),
            "a round is missing: the distances are all powers of 2 below L": (
                sum(L - 2**k for k in range(floor)),
                floor,
            ),
            "a round too many: its distance is not below L": (
                sum(L - 2**k for k in range(floor + 1)),
                floor + 1,
            ),
            "L log2 L - L + 1 holds for powers of 2 only; count the rounds": (L * depth - L + 1, depth),
            "L log2 L - L + 1 holds for powers of 2 only; no logarithm is rounded down": (
                int(L * math.log2(L) - L + 1),
                floor,
            ),
            "the round with distance d joins L - d positions: one less here": (work - depth, depth),
            "the round with distance d joins L - d positions: one more here": (work + depth, depth),
            "the work is right, the depth is ceil(log2 L)": (work, floor),
            "the work is right, the depth is the number of rounds, not that of the loop": (work, L - 1),
            "the work is right, the depth is the number of rounds, once": (work, 2 * depth),
            "the two numbers are exchanged: (work, depth)": (depth, work),
            "each distance d joins L - d positions, not d": (sum(distances), depth),
            "the last round is counted only; the work adds all rounds up": (
                L - distances[-1] if distances else 0,
                depth,
            ),
        }
        compare(answer(L), (work, depth), "(work, depth)", given=f"L = {L}", causes=causes)


@exercise("06.4", "When does it pay?")
def ticks(answer: Callable) -> None:
    """Ticks of the loop and of Hillis and Steele's scan on a machine with so many lanes."""
    for L, S, lanes in [(8, 7, 4), (8, 1, 1), (16, 5, 7), (1024, 6144, 16_896), (64, 1000, 32), (1024, 6144, 10**6)]:
        distances = [2**k for k in range((L - 1).bit_length())]

        def rounded(count: int, lanes: int = lanes) -> int:
            return math.ceil(count / lanes)

        loop, tree = (L - 1) * rounded(S), sum(rounded(S * (L - d)) for d in distances)
        work = sum(L - d for d in distances)
        causes = {
            "the two numbers are exchanged: (sequential, Hillis and Steele)": (tree, loop),
            "the loop does L - 1 combines, not L": (L * rounded(S), tree),
            "a round of the loop takes S / lanes ticks, not one": (L - 1, tree),
            "round up in each round, not at the end": (rounded((L - 1) * S), rounded(S * work)),
            "the loop's rounds wait for each other: round up in each": (rounded((L - 1) * S), tree),
            "the tree's rounds wait for each other: round up in each": (loop, rounded(S * work)),
            "ticks are whole: round up": ((L - 1) * S / lanes, sum(S * (L - d) / lanes for d in distances)),
            "this rounds down; a round that is not full takes a tick as well": (
                (L - 1) * (S // lanes),
                sum(S * (L - d) // lanes for d in distances),
            ),
            "the first d positions of a round have nothing to join": (loop, len(distances) * rounded(S * L)),
            "the round with distance d has L - d combines, not L - 1": (loop, len(distances) * rounded(S * (L - 1))),
            "the S sequences are missing in the tree": (loop, sum(rounded(L - d) for d in distances)),
            "all combines of a round share the lanes: round up n S / lanes, not S / lanes": (loop, work * rounded(S)),
            "the sequences share the lanes: round up n S / lanes, not n / lanes": (
                loop,
                S * sum(rounded(L - d) for d in distances),
            ),
            "a round takes more than one tick where there are not enough lanes": (loop, len(distances)),
            "this is the work; the lanes share it": ((L - 1) * S, S * work),
        }
        given = f"L = {L}, S = {S}, lanes = {lanes}"
        compare(answer(L, S, lanes), (loop, tree), "(sequential, tree)", given=given, causes=causes)


def _products(a: Tensor, b: Tensor, K: int, carry: Callable, hand_on: Callable | None = None, axis: int = 0) -> Tensor:
    """Chunks by products; `carry(P, running sum, state before)` gives the states, `hand_on(P, states)` what is left."""
    h, parts = torch.zeros_like(b[:1]), []
    for a_part, b_part in zip(a.split(K), b.split(K), strict=True):
        P = torch.cumprod(a_part, axis)
        parts.append(carry(P, torch.cumsum(b_part / P, 0), h))
        h = hand_on(P, parts[-1]) if hand_on else parts[-1][-1:]
    return torch.cat(parts)


@exercise("06.5", "The trick in chunks")
def products_in_chunks(answer: Callable) -> None:
    """All states by products within chunks."""
    for L, S, K in [(6, 1, 3), (12, 2, 4), (20, 3, 5), (5, 2, 5)]:
        a, b = _random(L, S, seed=L)
        alone = _products(a, b, K, lambda P, total, h: P * total)
        products = torch.cumprod(a.unflatten(0, (-1, K)), 1).flatten(0, 1)

        def by(b: Tensor = b, a: Tensor = a, K: int = K, **options: object) -> Tensor:
            return _products(a, b, K, lambda P, total, h: P * (total + h), **options)

        causes = {
            "every chunk begins at 0; the state before it is missing": alone,
            "the state before the chunk fades, too: it stands inside the bracket": _products(
                a, b, K, lambda P, total, h: P * total + h
            ),
            "what a chunk hands on must contain what it was handed itself": torch.cat(
                [alone[:K], (alone + products * _late(alone, K))[K:]]
            ),
            "the state before the chunk fades with P[t], not with the chunk's whole product": _products(
                a, b, K, lambda P, total, h: P * total + P[-1:] * h
            ),
            "the multiplication by P is missing": _products(a, b, K, lambda P, total, h: h + total),
            "b must be divided by P before it is summed": by(b * products),
            "b must be divided by P before it is summed, and the state before the chunk is missing": _products(
                a, b * products, K, lambda P, total, h: P * total
            ),
            "a chunk hands on its last row as it is: P is in it already": by(
                hand_on=lambda P, states: P[-1:] * states[-1:]
            ),
            "a chunk hands on its last row, not its first": by(hand_on=lambda P, states: states[:1]),
            "P is a product over the steps, axis 0, not over the sequences": by(axis=-1),
            "b is divided by P, not multiplied": by(b * products**2),
            "this is the last state of each chunk; all states are asked for": _walk(a, b)[K - 1 :: K],
            "these are the states before each step: one step late": _shifted(_walk(a, b)),
        }
        compare(answer(a, b, K), _walk(a, b), "h", tolerance=1e-9, given=f"L = {L}, S = {S}, K = {K}", causes=causes)
    a, b = _random(512, 2, seed=3)
    a = a * math.exp(-6)  # a product of 512 of them is below the smallest float64
    found = answer(a, b, 16)
    broken = isinstance(found, Tensor) and found.shape == b.shape and not bool(found.isfinite().all())
    demand(not broken, "512 steps of strong decay overflow: products and sums must begin anew in every chunk")
    compare(found, _walk(a, b), "h", tolerance=1e-9, given="512 steps of strong decay, K = 16")


def _late(alone: Tensor, K: int) -> Tensor:
    """For every step the last row of the chunk before its own; zeros in the first chunk."""
    last = _shifted(alone[K - 1 :: K])
    return last.repeat_interleave(K, 0)


def _demand_gradcheck(answer: Callable, a: Tensor, b: Tensor, h: Tensor | None = None, K: int | None = None) -> None:
    """Wrong unless PyTorch's gradcheck accepts the answer as the backward pass of the scan from the state `h`."""

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            states = _walk(a, b, h)
            ctx.save_for_backward(a, b, states)
            return states

        @staticmethod
        def backward(ctx, dh):
            a, b, states = (saved.detach() for saved in ctx.saved_tensors)
            with torch.enable_grad():  # an answer may use autograd, here as elsewhere
                found = answer(a, states, dh) if K is None else answer(a, b, _shifted(states, h)[::K], dh)
            return tuple(gradient.detach().to(a.dtype) for gradient in found)

    given = [x.clone().requires_grad_() for x in (a, b)]
    passes = torch.autograd.gradcheck(Scan.apply, given, raise_exception=False, fast_mode=True)
    demand(passes, "gradcheck fails: the gradients are not those of the scan")


@exercise("06.6", "The backward pass")
def scan_backward(answer: Callable) -> None:
    """(by a, by b) from the adjoint recurrence; gradcheck at the end."""
    for L, S in [(3, 1), (1, 2), (7, 2), (20, 3)]:
        a, b = _random(L, S, seed=L)
        dh, h = _random(L, S, seed=L + 50)[1], _walk(a, b)
        g, unshifted = _adjoint(_earlier(a), dh), _adjoint(a, dh)
        near = dh + _earlier(a * dh)
        expected = g * _shifted(h), g
        causes = {
            "the carry is a[t+1] g[t+1]: this has a[t] in its place": (unshifted * _shifted(h), unshifted),
            "the gradient by a is g[t] h[t-1]: this has h[t]": (g * h, g),
            "the carry is missing: h[t] also acts through h[t+1]": (dh * _shifted(h), dh),
            "the carry is missing, and the gradient by a needs h[t-1]": (dh * h, dh),
            "the carry is a[t+1] g[t+1]: this has dh[t+1] in place of g[t+1]": (near * _shifted(h), near),
            "the gradient by a uses g, not dh": (dh * _shifted(h), g),
            "g[t] is dh[t] and the carry: dh[t] is missing in the gradient by a": ((g - dh) * _shifted(h), g),
            "the gradient by b is g, not dh": (g * _shifted(h), dh),
            "the walk goes from the last step to the first": (_walk(a, dh) * _shifted(h), _walk(a, dh)),
            "the two gradients are exchanged: (by a, by b)": (g, g * _shifted(h)),
            "the state before the first step is 0, not the last state": (g * h.roll(1, 0), g),
            "the gradient by a multiplies by the state before, not after": (g * _earlier(h), g),
            "the carry is a[t+1] g[t+1]: the factor a is missing": (
                _adjoint(torch.ones_like(a), dh) * _shifted(h),
                _adjoint(torch.ones_like(a), dh),
            ),
            "the gradient by b is g itself; nothing multiplies b": (g * _shifted(h), g * a),
        }
        found = answer(a, h, dh)
        compare(found, expected, "(by a, by b)", tolerance=1e-9, given=f"L = {L}, S = {S}", causes=causes)
    _demand_gradcheck(answer, *_random(5, 2, seed=4))


@exercise("06.7", "Back without the states")
def backward_from_starts(answer: Callable) -> None:
    """(by a, by b) from the states before each chunk; gradcheck at the end."""
    for L, S, K in [(6, 1, 3), (4, 2, 4), (12, 2, 4), (20, 3, 5)]:
        a, b = _random(L, S, seed=L)
        initial, dh = _random(2, S, seed=7)[1][0], _random(L, S, seed=L + 50)[1]
        h = _walk(a, b, initial)
        before, g = _shifted(h, initial), _adjoint(_earlier(a), dh)
        starts = before[::K]
        expected = g * before, g
        inside = torch.cat([_adjoint(_earlier(p), q) for p, q in zip(a.split(K), dh.split(K), strict=True)])
        forgotten = before.clone()
        forgotten[::K] = 0
        unshifted, unfaded = _adjoint(a, dh), _adjoint(torch.ones_like(a), dh)
        causes = {
            "the carry must go on from chunk to chunk": (inside * before, inside),
            "the state before a chunk's first step is starts[c], not 0": (g * forgotten, g),
            "the states of a chunk begin at starts[c], not at 0": (
                g * torch.cat([_shifted(_walk(p, q)) for p, q in zip(a.split(K), b.split(K), strict=True)]),
                g,
            ),
            "the gradient by a is g[t] h[t-1]: this has h[t]": (g * h, g),
            "the carry is a[t+1] g[t+1]: this has a[t] in its place": (unshifted * before, unshifted),
            "the initial state need not be 0: use starts[0]": (
                g * torch.cat((_shifted(_walk(a[:K], b[:K])), before[K:])),
                g,
            ),
            "starts[c] serves the first step only; walk on from it": (g * starts.repeat_interleave(K, 0), g),
            "the carry is missing: h[t] also acts through h[t+1]": (dh * before, dh),
            "the gradient by a uses g, not dh": (dh * before, g),
            "the carry is a[t+1] g[t+1]: the factor a is missing": (unfaded * before, unfaded),
            "the two gradients are exchanged: (by a, by b)": (g, g * before),
        }
        given = f"L = {L}, S = {S}, K = {K}"
        compare(answer(a, b, starts, dh), expected, "(by a, by b)", tolerance=1e-9, given=given, causes=causes)
    _demand_gradcheck(answer, *_random(6, 2, seed=4), h=torch.tensor([0.5, -2.0], dtype=torch.float64), K=2)


@exercise("06.8", "Three reports")
def findings(answer: Callable) -> None:
    """Which of three failing tests are about the test, and where the code is wrong."""
    found = answer()
    keys = ["A", "B", "C", "steps"]
    if not isinstance(found, dict) or sorted(map(str, found)) != keys:
        raise Wrong('return a dict with the keys "A", "B", "C" and "steps"')
    for report in keys[:3]:
        demand(found[report] in ("test", "code"), f'report {report}: it must be "test" or "code"')
    demand(found["A"] == "test", "report A: write down the two losses; are they the same function of the states?")
    demand(found["B"] == "test", "report B: how many digits has float32? Repeat the test with inputs(6)")
    demand(found["C"] == "code", "report C: both losses are the same, the numbers are float64; what is left?")
    steps = found["steps"]
    causes = {
        "these are the numbers of the chunks; the steps t are asked for": [1, 2],
        "in a chunk's first step the state before is wrong, so it is one later": [7, 15],
        "these are the steps after the wrong ones": [9, 17],
        "t = 0 is right: there the state before is 0": [0, 8, 16],
        "there is another one, further on": [8],
        "there is another one, before it": [16],
        "only the steps themselves are wrong, not all that follow": [*range(8, 20)],
    }
    steps = list(steps) if isinstance(steps, Tensor) and steps.dim() else steps
    if isinstance(steps, (list, tuple)):  # in any order
        steps = sorted(int(t) for t in steps)
    compare(steps, [8, 16], "the steps", given="L = 20", causes=causes)
