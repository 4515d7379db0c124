"""Answers to the exercises of chapter 07 as learners give them, and the hint that each must get."""

import math

import torch


def block(program, BLOCK, E, keep):
    """The pair, with the numbers that `keep` holds for."""
    inside = [d for d in range(program * BLOCK, (program + 1) * BLOCK) if keep(d, E)]
    return inside, BLOCK - len(inside)


def from_table(**changes):
    table = {"sum": 0.0, "product": 1.0, "max": -math.inf, "min": math.inf, "scan": (1.0, 0.0)} | changes
    return table.get


def softplus(x):
    return math.log1p(math.exp(x))


def step(
    instructions=lambda N, V: (5 * N + 1) * V, exponentials=lambda N, V: N * V, numbers=lambda N, V: 96 * V + 2 * N
):
    return lambda N, V, width: (instructions(N, V), exponentials(N, V), numbers(N, V) * width)


def chain(fade=torch.exp, late=False, order=lambda h, factor, more: factor * h + more):
    """States from chunk to chunk, with the slips that the loop invites."""

    def states(added, total, A):
        h, found = torch.zeros_like(added[0]), []
        for more, step in zip(added, total, strict=True):
            before, h = h, order(h, fade(A.T * step), more)
            found.append(h if late else before)
        return torch.stack(found)

    return states


def halving(x, order=lambda h, x: h / 2 + x):
    h, found = torch.zeros_like(x[0]), []
    for x_t in x:
        h = order(h, x_t)
        found.append(h)
    return torch.stack(found)


def both(x, order=lambda h, x: h / 2 + x):
    return torch.stack((halving(x, order), halving(x.flip(0), order).flip(0)))


def without_mask(x):
    """Block by block, as programs store it, with the store's mask forgotten."""
    (L, E), y = x.shape, torch.zeros(2 * x.numel() + 64)
    wide = torch.cat((both(x), torch.zeros(2, L, -E % 8)), dim=2)
    for start in range(0, E, 8):
        for direction in range(2):
            for t in range(L):
                place = (direction * L + t) * E + start
                y[place : place + 8] = wide[direction, t, start : start + 8]
    return y[: 2 * L * E].view(2, L, E)


def pairs(rule, first=0):
    def found(reads, writes):
        programs = [({*r}, {*w}) for r, w in zip(reads, writes, strict=True)]
        every = range(len(programs))
        return [(p, q) for p in every for q in range(p + 1 - first, len(every)) if rule(*programs[p], *programs[q])]

    return found


def right_pairs(reads, writes):
    return pairs(lambda rp, wp, rq, wq: wp & (rq | wq) or wq & rp)(reads, writes)


def once_a_place(reads, writes):
    programs = [({*r}, {*w}) for r, w in zip(reads, writes, strict=True)]
    return [
        (p, q)
        for p, q in right_pairs(reads, writes)
        for _ in programs[p][1] & (programs[q][0] | programs[q][1]) | programs[q][1] & programs[p][0]
    ]


WRONG = {
    "07.1": [
        (lambda program, BLOCK, E: (list(range(program * BLOCK, program * BLOCK + BLOCK)), 0), "d < E"),
        (lambda *given: block(*given, lambda d, E: d <= E), "E itself is outside"),
        (lambda program, BLOCK, E: block(program - 1, BLOCK, E, lambda d, E: d < E), "programs count from 0"),
        (lambda program, BLOCK, E: (list(range(program, E, -(-E // BLOCK))), 0), "owns neighbours"),
        (
            lambda *given: (block(*given, lambda d, E: d < E)[0], len(block(*given, lambda d, E: d < E)[0])),
            "own a number",
        ),
        (
            lambda program, BLOCK, E: (block(program, BLOCK, E, lambda d, E: d < E)[0], -(-E // BLOCK) * BLOCK - E),
            "this one program",
        ),
        (
            lambda program, BLOCK, E: (
                block(program, BLOCK, E, lambda d, E: d < E)[0],
                program * BLOCK + BLOCK - E,
            ),
            "nor fewer than none",
        ),
        (lambda *given: block(*given, lambda d, E: d < E)[0], "a pair"),
        (lambda program, BLOCK, E: (block(program, BLOCK, E, lambda d, E: d >= E)[0], 0), "places that are masked"),
    ],
    "07.2": [
        (from_table(max=0.0), "0 is larger than"),
        (from_table(max=math.inf), "the largest number"),
        (from_table(max=-3.4028234663852886e38), "must be infinity"),
        (from_table(scan=(0.0, 0.0)), "a = 0 forgets h"),
        (from_table(scan=(0.0, 1.0)), "swapped"),
        (from_table(scan=0.0), "a pair"),
        (from_table(product=0.0), "a product with 0"),
        (from_table(min=0.0), "0 is smaller than"),
        (from_table(min=-math.inf), "the smallest number"),
        (from_table(scan=(1.0, 1.0)), "b is added to h"),
    ],
    "07.3": [
        (lambda A, bias, padding: torch.exp(A * bias * padding), "bias goes through softplus"),
        (lambda A, bias, padding: torch.exp(A * math.log(2) * padding), "the bias is missing"),
        (lambda A, bias, padding: torch.exp(A * softplus(bias)), "one padded step"),
        (lambda A, bias, padding: padding * torch.exp(A * softplus(bias)), "multiplies by the same factor"),
        (lambda A, bias, padding: 1 - torch.exp(A * softplus(bias) * padding), "share that is lost"),
        (lambda A, bias, padding: 2 ** (A * softplus(bias) * padding), "not exp2"),
        (lambda A, bias, padding: torch.ones_like(A), "does not make the step 0"),
        (lambda A, bias, padding: torch.exp(A * torch.sigmoid(torch.tensor(bias)).double() * padding), "sigmoid"),
        (lambda A, bias, padding: torch.exp(A * softplus(bias * padding)), "added up"),
        (lambda A, bias, padding: A * softplus(bias) * padding, "the exponent"),
    ],
    "07.4": [
        (step(instructions=lambda N, V: 32 * (5 * N + 1) * V, exponentials=lambda N, V: 32 * N * V), "not once a lane"),
        (step(instructions=lambda N, V: 5 * N * V), "delta \\* u is missing"),
        (step(instructions=lambda N, V: 6 * N * V), "not once a state"),
        (step(instructions=lambda N, V: (4 * N + 1) * V), "exponential counts, too"),
        (step(instructions=lambda N, V: (7 * N + 1) * V), "a multiply-add is one"),
        (step(instructions=lambda N, V: 5 * N + 1), "V is missing"),
        (step(exponentials=lambda N, V: 32 * N * V), "not once a lane"),
        (step(exponentials=lambda N, V: V), "each state of a channel"),
        (step(numbers=lambda N, V: 64 * V + 2 * N), "y is stored"),
        (step(numbers=lambda N, V: 96 * V), "B and C are missing"),
        (step(numbers=lambda N, V: 96 * V + 64 * N * V), "the same for all lanes"),
        (step(numbers=lambda N, V: 96 * V + 2 * N + 64 * N * V), "h stays in registers"),
        (lambda N, V, width: ((5 * N + 1) * V, N * V, 96 * V + 2 * N), "`width` bytes"),
        (lambda N, V, width: (5 * N + 1) * V, "a tuple of three"),
    ],
    "07.5": [
        (chain(late=True), "after each chunk"),
        (chain(fade=torch.ones_like), "must fade"),
        (chain(order=lambda h, factor, more: factor * (h + more)), "not what the chunk adds"),
        (chain(fade=torch.exp2), "not exp2"),
        (chain(fade=lambda x: torch.exp(-x)), "the states grow"),
        (chain(fade=lambda x: x), "exp is missing"),
        (lambda added, total, A: chain()(added, total.cumsum(0), A), "sum of all so far"),
        (lambda added, total, A: chain()(added, torch.cat((total[:1] * 0, total[:-1])), A), "its own total"),
        (lambda added, total, A: chain()(added, torch.cat((total[1:], total[-1:])), A), "not by the one after it"),
        (lambda added, total, A: chain()(added, total, A).mT, "N before E"),
        (lambda added, total, A: torch.cat((added[:1] * 0, added[:-1])), "further back"),
    ],
    "07.6": [
        (lambda x: torch.stack((halving(x), halving(x.flip(0)))), "belongs to the place of t"),
        (lambda x: torch.stack((halving(x), halving(x))), "walks forward, too"),
        (lambda x: both(x).flip(0), "swapped"),
        (lambda x: both(x, lambda h, x: (h + x) / 2), "after h was halved"),
        (lambda x: both(x, lambda h, x: h + x), "halved at every step"),
        (lambda x: torch.stack((x, x)), "not kept from step to step"),
        (lambda x: both(x) * (torch.arange(x.shape[1]) < 8), "only the first block"),
        (without_mask, "the store has no mask"),
        (lambda x: torch.zeros(2, *x.shape), "nothing was stored"),
        (lambda x: torch.stack((both(x)[1], 0 * x)), "both directions write to"),
        (lambda x: torch.stack((both(x)[0], 0 * x)), "is missing: launch a second"),
        (lambda x: both(x) * (torch.arange(2 * len(x)).view(2, -1, 1) != len(x)), "step 0 of .1. is never stored"),
        (lambda x: halving(x), "a tensor of shape"),
    ],
    "07.7": [
        (pairs(lambda rp, wp, rq, wq: (rp | wp) & (rq | wq)), "only read a place"),
        (pairs(lambda rp, wp, rq, wq: wp & wq), "reads what the other writes"),
        (pairs(lambda rp, wp, rq, wq: wp & rq or wq & rp), "two that write the same"),
        (pairs(lambda rp, wp, rq, wq: wp & (rq | wq)), "p may be the one"),
        (pairs(lambda rp, wp, rq, wq: wq & (rp | wp)), "q may be the one"),
        (pairs(lambda rp, wp, rq, wq: rp & rq), "read the same place"),
        (lambda *given: [(p, q) for p, q in right_pairs(*given) if q == p + 1], "not only neighbours"),
        (once_a_place, "each pair once, however many"),
        (lambda *given: right_pairs(*given)[::-1], "must be sorted"),
        (lambda *given: [(q, p) for p, q in right_pairs(*given)], "smaller number first"),
        (lambda *given: sorted([*right_pairs(*given), *((q, p) for p, q in right_pairs(*given))]), "each pair once"),
        (lambda *given: [(p + 1, q + 1) for p, q in right_pairs(*given)], "count from 0"),
    ],
}
