"""Chapter 07, kernels: the checkers."""

import math
import sys
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from minivim.course.exercises.checking import compare, demand, exercise


def _parts(found: object, count: int, what: str) -> list:
    """The parts of an answer that must have `count` of them; a tensor or an array will do for a tuple."""
    found = found.tolist() if isinstance(found, Tensor) and found.dim() == 1 else found
    demand(isinstance(found, (tuple, list)), f"your function must return {what}; yours returns {type(found).__name__}")
    demand(len(found) == count, f"your function must return {what}; yours returns {len(found)} values")
    return list(found)


def _listed(value: object) -> object:
    """Tensors and ranges as lists."""
    return value.tolist() if isinstance(value, Tensor) else list(value) if isinstance(value, range) else value


@exercise("07.1", "Who owns what")
def owned(answer: Callable) -> None:
    """([numbers below E in the program's block], masked lanes)."""
    for program, BLOCK, E in [(2, 8, 19), (1, 8, 13), (0, 8, 20), (3, 4, 10), (1, 16, 40)]:
        d = list(range(program * BLOCK, (program + 1) * BLOCK))
        inside = [number for number in d if number < E]
        given = f"program = {program}, BLOCK = {BLOCK}, E = {E}"
        numbers, masked = _parts(answer(program, BLOCK, E), 2, "a pair: the list of numbers, and the masked lanes")
        programs = -(-E // BLOCK)
        causes = {
            "numbers from E on are outside: the mask is d < E": d,
            "the mask is d < E: E itself is outside": [number for number in d if number <= E],
            "these are lanes; the numbers begin at program * BLOCK": list(range(len(inside))),
            "a program's block begins at program * BLOCK, not at program": list(range(program, program + len(inside))),
            "programs count from 0": [number for number in range((program - 1) * BLOCK, program * BLOCK) if number < E],
            "a program owns neighbours, not every so-manieth number": list(range(program, E, programs)),
            "channels count from 0: this is one too many everywhere": [number + 1 for number in inside],
            "these are the places that are masked": [number for number in d if number >= E],
        }
        compare(_listed(numbers), inside, "the numbers", given=given, causes=causes)
        causes = {
            "this counts the lanes that own a number; the others are asked for": len(inside),
            "these are all lanes": BLOCK,
            "masked are the lanes of this one program": programs * BLOCK - E,
            "a program cannot have more masked lanes than lanes, nor fewer than none": (program + 1) * BLOCK - E,
        }
        compare(masked, BLOCK - len(inside), "the masked lanes", given=given, causes=causes)


@exercise("07.2", "The number that changes nothing")
def identity(answer: Callable) -> None:
    """The identity of each operation."""
    finite = {"it must be infinity: a finite number may be passed": -sys.float_info.max}
    finite |= {"it must be infinity: this is only the smallest finite float32": torch.finfo(torch.float32).min}
    identities = {
        "max": (
            -math.inf,
            finite
            | {
                "0 is larger than every negative number": 0.0,
                "this is the largest number; max never lets go of it": math.inf,
                "1 is larger than every negative number": 1.0,
                "-1 is larger than -2": -1.0,
            },
        ),
        "scan": (
            (1.0, 0.0),
            {
                "a = 0 forgets h: the step h -> 0 h + 0 makes everything 0": (0.0, 0.0),
                "a and b are swapped: this step is h -> 0 h + 1": (0.0, 1.0),
                "b is added to h: it must be 0": (1.0, 1.0),
                "a scan's element is a pair (a, b)": 0.0,
                "a scan's element is a pair (a, b), and this is a alone": 1.0,
            },
        ),
        "product": (
            1.0,
            {
                "a product with 0 is 0": 0.0,
                "a product with infinity is infinite": math.inf,
            },
        ),
        "sum": (0.0, {"adding 1 changes a sum": 1.0}),
        "min": (
            math.inf,
            {
                "0 is smaller than every positive number": 0.0,
                "this is the smallest number; min never lets go of it": -math.inf,
                "it must be infinity: a finite number may be passed": sys.float_info.max,
            },
        ),
    }
    for operation, (expected, causes) in identities.items():
        compare(answer(operation), expected, f"the identity of {operation}", causes=causes)


@exercise("07.3", "How much is lost")
def fade_of_padding(answer: Callable) -> None:
    """exp(A softplus(bias) padding)."""
    for numbers, bias, padding in [([-1.0, -0.3, -2.0], 0.4, 3), ([-0.7], -1.2, 1), ([-1.5, -0.2], 0.9, 5)]:
        A = torch.tensor(numbers, dtype=torch.float64)
        delta = math.log1p(math.exp(bias))
        expected = torch.exp(A * delta * padding)
        causes = {
            "bias goes through softplus, too: the step is softplus(bias)": torch.exp(A * bias * padding),
            "the bias is missing: the lane loads r = 0, and then the bias is added": torch.exp(
                A * math.log(2) * padding
            ),
            "this is one padded step; there are `padding` of them": torch.exp(A * delta),
            "each padded step multiplies by the same factor; do not multiply the factor by their number": (
                torch.exp(A * delta) * padding
            ),
            "this is the share that is lost; the factor that is left is asked for": 1 - expected,
            "A is that of the model, without log2(e): the factor is exp, not exp2": torch.exp2(A * delta * padding),
            "this is sigmoid(bias); softplus is log(1 + exp(bias))": torch.exp(A * padding / (1 + math.exp(-bias))),
            "the bias is added before softplus, not after": torch.exp(A * (math.log(2) + bias) * padding),
            "`padding` steps are padded, not one less": torch.exp(A * delta * (padding - 1)),
            "`padding` steps are padded, not one more": torch.exp(A * delta * (padding + 1)),
            "the bias is added, not subtracted": torch.exp(A * math.log1p(math.exp(-bias)) * padding),
            "the states would grow: A is negative already": torch.exp(-A * delta * padding),
            "the mask before softplus does not make the step 0": torch.ones_like(A),
            "this is the exponent; the factor is exp of it": A * delta * padding,
            "softplus comes after the steps are added up here; each step has its own": torch.exp(
                A * math.log1p(math.exp(bias * padding))
            ),
        }
        given = f"A = {numbers}, bias = {bias}, padding = {padding}"
        compare(answer(A, bias, padding), expected, "the factors", given=given, causes=causes)


@exercise("07.4", "Count a step")
def count_step(answer: Callable) -> None:
    """((5 N + 1) V, N V, (96 V + 2 N) width)."""
    for N, V, width in [(8, 3, 4), (4, 2, 2), (16, 1, 4)]:
        given = f"N = {N}, V = {V}, width = {width}"
        found = _parts(answer(N, V, width), 3, "a tuple of three numbers: instructions, exponentials, bytes")
        causes = {
            "an instruction works on all 32 lanes: count it once, not once a lane": 32 * (5 * N + 1) * V,
            "delta * u is missing: one multiplication a channel": 5 * N * V,
            "delta * u is computed once a channel, not once a state": 6 * N * V,
            "five a state: the exponential counts, too, and so does the multiply-add with C": (4 * N + 1) * V,
            "a multiply-add is one instruction, not two": (7 * N + 1) * V,
            "V is missing: each lane has V channels": 5 * N + 1,
            "delta * u is computed once for each of the V channels": 5 * N * V + 1,
            "N is missing: this is a single state": 6 * V,
        }
        compare(found[0], (5 * N + 1) * V, "the instructions", given=given, causes=causes)
        causes = {
            "an instruction works on all 32 lanes: count it once, not once a lane": 32 * N * V,
            "V is missing: each lane has V channels": N,
            "there is one exponential for each state of a channel": V,
            "softplus is not part of this kernel": (N + 1) * V,
        }
        compare(found[1], N * V, "the exponentials", given=given, causes=causes)
        causes = {
            "y is stored, and that moves bytes, too": (2 * 32 * V + 2 * N) * width,
            "B and C are the same for all lanes and channels: count them once": (3 * 32 * V + 2 * N * 32 * V) * width,
            "B and C are the same for all lanes: count them once": (3 * 32 * V + 2 * N * 32) * width,
            "B and C are the same for all channels: count them once": (3 * 32 * V + 2 * N * V) * width,
            "B and C are missing": 3 * 32 * V * width,
            "these are numbers; each has `width` bytes": 3 * 32 * V + 2 * N,
            "this is one lane; a warp has 32": (3 * V + 2 * N) * width,
            "V is missing: each lane has V channels": (3 * 32 + 2 * N) * width,
            "B and C are two, each with N numbers": (3 * 32 * V + N) * width,
            "h and A stay in registers: a step neither loads nor stores them": (3 * 32 * V + 2 * N + 32 * N * V)
            * width,
            "h stays in registers: it is neither loaded nor stored": (3 * 32 * V + 2 * N + 2 * 32 * N * V) * width,
        }
        compare(found[2], (3 * 32 * V + 2 * N) * width, "the bytes", given=given, causes=causes)


def _enter(
    added: Float[Tensor, "chunks N E"], factors: Float[Tensor, "chunks N E"]
) -> tuple[Float[Tensor, "chunks N E"], Float[Tensor, "chunks N E"]]:
    """The states before and after each chunk."""
    h, before, after = torch.zeros_like(added[0]), [], []
    for more, factor in zip(added, factors, strict=True):
        before.append(h)
        h = factor * h + more
        after.append(h)
    return torch.stack(before), torch.stack(after)


@exercise("07.5", "The chain in the middle")
def entering_states(answer: Callable) -> None:
    """The states before each chunk."""
    for chunks, N, E, seed in [(4, 3, 5, 1), (5, 2, 4, 2), (2, 4, 3, 3)]:
        generator = torch.Generator().manual_seed(seed)
        added = torch.randn(chunks, N, E, generator=generator).double()
        total = torch.rand(chunks, E, generator=generator).double() + 0.2
        A = -0.2 - torch.rand(E, N, generator=generator).double()
        exponents = A.T * total[:, None]
        before, after = _enter(added, exponents.exp())
        unfaded, _ = _enter(added, torch.ones_like(exponents))
        causes = {
            "these are the states after each chunk; those before it are asked for": after,
            "the states must fade: multiply by exp(A total) before you add": unfaded,
            "only the state that enters fades, not what the chunk adds": _enter(
                added * exponents.exp(), exponents.exp()
            )[0],
            "A is that of the model, without log2(e): exp, not exp2": _enter(added, exponents.exp2())[0],
            "each chunk fades by its own total, not by the one before it": _enter(
                added, torch.cat((exponents[:1] * 0, exponents[:-1])).exp()
            )[0],
            "each chunk fades by its own total, not by the one after it": _enter(
                added, torch.cat((exponents[1:], exponents[-1:])).exp()
            )[0],
            "each chunk fades by its own total, not by the sum of all so far": _enter(added, exponents.cumsum(0).exp())[
                0
            ],
            "A is negative already: the states grow here": _enter(added, (-exponents).exp())[0],
            "what a chunk adds is missing from the second one on": torch.cat(
                (before[:1], *[(added[0] * exponents[1 : c + 1].sum(0).exp())[None] for c in range(chunks - 1)])
            ),
            "this is what the chunk before adds; the state from further back is missing": torch.cat(
                (added[:1] * 0, added[:-1])
            ),
            "h fades, and what the chunk adds does not; here it is the other way round": _enter(
                added * exponents.exp(), torch.ones_like(exponents)
            )[0],
            "the state fades by exp(A total), not by Euler's 1 + A total": _enter(added, 1 + exponents)[0],
            "exp is missing: the state fades by exp(A total)": _enter(added, exponents)[0],
            "the shape is (chunks, N, E), with N before E": before.mT,
            "the chunks are in the wrong order": before.flip(0),
        }
        given = f"{chunks} chunks, N = {N}, E = {E}"
        compare(answer(added, total, A), before, "the states", given=given, causes=causes)


def _halving(x: Float[Tensor, "L E"], inner: float = 1.0, decay: float = 0.5) -> Float[Tensor, "L E"]:
    """h = decay h + inner x, all steps."""
    h, states = torch.zeros_like(x[0]), []
    for x_t in x:
        h = decay * h + inner * x_t
        states.append(h)
    return torch.stack(states)


def _spilled(right: Float[Tensor, "2 L E"], spill: int) -> Float[Tensor, "2 L E"]:
    """What is left where masked lanes store their 0 into the row that follows."""
    flat = right.flatten().clone()
    _, _, E = right.shape
    for row in range(E, len(flat), E):
        flat[row : row + spill] = 0
    return flat.view_as(right)


@exercise("07.6", "A kernel of your own")
def both_ways(answer: Callable) -> None:
    """h = h / 2 + x in both directions."""
    for L, E, seed in [(5, 11, 1), (4, 8, 2), (6, 20, 3)]:
        x = torch.randn(L, E, generator=torch.Generator().manual_seed(seed))

        def pair(x: Tensor = x, **options: float) -> Tensor:
            return torch.stack((_halving(x, **options), _halving(x.flip(0), **options).flip(0)))

        right = pair()
        first_block = right * (torch.arange(E) < 8)
        forward_only = right * torch.tensor([1.0, 0.0])[:, None, None]
        causes = {
            "[1] is stored at the place of the loop's counter; it belongs to the place of t": torch.stack(
                (right[0], right[1].flip(0))
            ),
            "[1] walks forward, too: its first step is L - 1, its sign -1": torch.stack((right[0], right[0])),
            "[0] walks backward, too": torch.stack((right[1], right[1])),
            "the two directions are swapped": right.flip(0),
            "x is added after h was halved: h / 2 + x, not (h + x) / 2": pair(inner=0.5),
            "h must be halved at every step": pair(decay=1.0),
            "h is halved, x is not; here it is the other way round": pair(inner=0.5, decay=1.0),
            "h is halved at every step, not doubled": pair(decay=2.0),
            "the place of step t, channel d is (r L + t) E + d: here it is that of (E, L)": right.mT.reshape(
                right.shape
            ),
            "[1] reads step i and stores step t; both are t": torch.stack((right[0], right[0].flip(0))),
            "h is not kept from step to step": torch.stack((x, x)),
            "only the first block of channels is there: launch cdiv(E, 8) programs": first_block,
            "[1] is missing: launch a second direction, and store it L E places further on": forward_only,
            "both directions write to [0]: step t of direction r goes to (r * L + t) * E + d": torch.stack(
                (right[1], 0 * right[1])
            ),
            "nothing was stored": 0 * right,
            "the store has no mask: lanes beyond E write into the row that follows": _spilled(right, -E % 8),
            "the direction begins one step too early: L - 1 is the last step": torch.stack(
                (right[0], torch.cat((_halving(x.flip(0)[1:]).flip(0), 0 * x[:1])))
            ),
        }
        found = answer(x)
        if isinstance(found, Tensor) and found.shape == right.shape:
            stored = found[1].any(dim=-1)
            demand(stored[0] or not stored[1:].all(), "step 0 of [1] is never stored: the walk goes from L - 1 to 0")
        compare(found, right, "h", tolerance=1e-5, given=f"L = {L}, E = {E}", causes=causes)


def _pairs(reads: list, writes: list, rule: Callable) -> list:
    """All (p, q), p < q, for which the rule holds; it gets what p reads and writes, and what q reads and writes."""
    programs = [({*r}, {*w}) for r, w in zip(reads, writes, strict=True)]
    return [
        (p, q) for p in range(len(programs)) for q in range(p + 1, len(programs)) if rule(*programs[p], *programs[q])
    ]


@exercise("07.7", "Who disturbs whom")
def conflicts(answer: Callable) -> None:
    """Pairs that share a place which at least one of them writes."""
    for reads, writes in [
        ([[7], [], [8], [9, 8], [1]], [[5], [9], [7], [1], [5]]),  # every kind of pair once, one of them neighbours
        ([[0, 1], [1, 2], [2, 3]], [[10], [11], [12]]),
        ([[], [3], [4], [], [3]], [[3], [4], [6], [6], [2]]),
        ([[], [0], [1]], [[0, 1], [1], [5]]),  # two that share more than one place
    ]:

        def found(rule: Callable, reads: list = reads, writes: list = writes) -> list:
            return _pairs(reads, writes, rule)

        right = found(lambda rp, wp, rq, wq: wp & (rq | wq) or wq & rp)
        once_a_place = [
            pair
            for pair in right
            for _ in {*writes[pair[0]]} & {*reads[pair[1]], *writes[pair[1]]} | {*writes[pair[1]]} & {*reads[pair[0]]}
        ]
        causes = {
            "two that only read a place do not disturb each other": found(lambda rp, wp, rq, wq: (rp | wp) & (rq | wq)),
            "one that reads what the other writes is disturbed, too": found(lambda rp, wp, rq, wq: wp & wq),
            "two that write the same place disturb each other, too": found(lambda rp, wp, rq, wq: wp & rq or wq & rp),
            "p may be the one that reads: look both ways": found(lambda rp, wp, rq, wq: wp & (rq | wq)),
            "q may be the one that reads: look both ways": found(lambda rp, wp, rq, wq: wq & (rp | wp)),
            "these are the pairs that read the same place": found(lambda rp, wp, rq, wq: rp & rq),
            "p may be the one that reads, and both may write": found(lambda rp, wp, rq, wq: wp & rq),
            "each pair once, with p < q": sorted([*right, *((q, p) for p, q in right)]),
            "p < q: the smaller number first": [(q, p) for p, q in right],
            "any two programs can disturb each other, not only neighbours": [(p, q) for p, q in right if q == p + 1],
            "a program does not disturb itself": sorted([*right, *((p, p) for p in range(len(reads)))]),
            "the list must be sorted": right[::-1],
            "each pair once, however many places the two share": once_a_place,
            "not every pair: only if one writes what the other reads or writes": found(lambda *sets: True),
            "the programs count from 0": [(p + 1, q + 1) for p, q in right],
            "these are the pairs that do not disturb each other": [
                pair for pair in found(lambda *sets: True) if pair not in right
            ],
        }
        given = f"reads = {reads}, writes = {writes}"
        result = answer(reads, writes)
        result = result.tolist() if isinstance(result, Tensor) else result
        demand(isinstance(result, (list, tuple)), "your function must return a list of pairs")
        compare(
            [tuple(each) if isinstance(each, list) else each for each in result],
            right,
            "the pairs",
            given=given,
            causes=causes,
        )
