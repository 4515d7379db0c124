"""Answers to the exercises of chapter 09 as learners give them, and the hint that each must get."""

import math

import torch

RULES = ("broken", "not learning", "overfitting", "underfitting")


def word(train, val, K, *, order=RULES, losses=None, shown=None, limit=None, fall=None):
    """The rules of the exercise, with the slips that reading curves invites."""
    before, last = (fall or val)[-2:]
    holds = {
        "broken": not all(map(math.isfinite, losses or (*train, *val))),
        "not learning": (shown or train[-1]) > 0.9 * math.log(K),
        "overfitting": val[-1] > (limit or 1.2 * min(val)),
        "underfitting": last < 0.9 * before,
    }
    return next((each for each in order if holds[each]), "fine")


def bounds(K, smoothing, right=None, rest=None, count=None, log=math.log):
    """(guess, floor), with another share of the label, of each wrong class, or another number of these."""
    right = 1 - smoothing + smoothing / K if right is None else right
    rest = smoothing / K if rest is None else rest
    count = K - 1 if count is None else count
    floor = -right * log(right) - (count * rest * log(rest) if rest else 0)
    return log(K), floor


def bits(e, m, mantissa=None, top=0, low=0, gap=0):
    """(largest, smallest, gap), with another mantissa or with exponents that are off."""
    bias = 2 ** (e - 1) - 1
    mantissa = 2 - 2.0**-m if mantissa is None else mantissa
    return mantissa * 2.0 ** (bias + top), 2.0 ** (1 - bias + low), 2.0 ** (gap - m)


def kept(rates, decay):
    return math.prod(1 - rate * decay for rate in rates)


def logs(N, first=1):
    return torch.log(torch.arange(first, N + first, dtype=torch.float64))


def end(name):
    return name.rpartition(".")[2]


def matrices(shapes, spared=("A_log", "cls_token", "pos_embed")):
    return [name for name, shape in shapes.items() if len(shape) > 1 and end(name) not in spared]


def difference(one, other, *, n=1, shared=False, root=True, add=False, size=3, way=1, absolute=False, loss=True):
    """(difference, error, clear), with the slips of statistics."""

    def variance(runs):
        mean = sum(runs) / len(runs)
        return sum((run - mean) ** 2 for run in runs) / (len(runs) - n)

    gap = way * (sum(other) / len(other) - sum(one) / len(one))
    each = [variance(runs) / (1 if shared else len(runs)) for runs in (one, other)]
    error = sum(map(math.sqrt, each)) if add else math.sqrt(sum(each))
    error = error if root else error**2
    clear = (abs(gap) if loss else gap) > size * error
    return (abs(gap) if absolute else gap), error, clear


def seen(side, steps, *, power=2, resize=True, pad="room", crops="all"):
    """The share that a pipeline shows, with the slips that pipelines invite."""
    total, content, share = float(side), float(side), 1.0
    for index, (name, size) in enumerate(steps):
        if name == "resize" and resize:
            total, content = float(size), content * size / total
        elif name == "pad" and pad != "none":
            total += 2 * size
            content = total if pad == "picture" else content
        elif name == "crop":
            left = min(content, float(size))
            counts = crops == "all" or index == len(steps) - 1
            share *= left / content if counts else 1
            total, content = float(size), left
    return share**power


def bad(records, largest, leaves=None, order=list, last=False, first=0):
    """The first bad number, with another idea of bad, of order, or of first."""
    leaves = leaves or (lambda value: not value <= largest)
    found = [
        (step + first, name) for step, record in enumerate(records) for name in order(record) if leaves(record[name])
    ]
    return (found[-1] if last else found[0]) if found else None


def by_layer(records, largest):
    """The layers are walked through first, the steps of each then."""
    names = dict.fromkeys(name for record in records for name in record)
    found = [
        (step, n) for n in names for step, record in enumerate(records) if n in record and not record[n] <= largest
    ]
    return found[0] if found else None


def largest_of_step(records, largest):
    """The right step, and in it the layer with the largest number."""
    first = bad(records, largest)
    return first and (first[0], max(records[first[0]], key=records[first[0]].get))


WRONG = {
    "09.1": [
        (lambda train, val, K: word(train, val, K, order=RULES[1:]), "NaN makes every comparison False"),
        (lambda train, val, K: word(train, val, K, losses=(train[-1], val[-1])), "every epoch counts"),
        (lambda train, val, K: word(train, val, 10), "with the K that is given"),
        (lambda train, val, K: word(train, val, K, shown=train[0]), "not the first"),
        (lambda train, val, K: word(train, val, K, limit=1.2 * train[-1]), "with the smallest one"),
        (lambda train, val, K: word(train, val, K, limit=min(val)), "up to 20 % is no overfitting"),
        (
            lambda train, val, K: word(train, val, K, order=(*RULES[:2], "underfitting", "overfitting")),
            "asked before underfitting",
        ),
        (lambda train, val, K: word(train, val, K, fall=train), "looks at the validation loss"),
        (
            lambda train, val, K: word(train, val, K, order=("broken", "overfitting", "not learning", "underfitting")),
            "asked before overfitting",
        ),
        (lambda train, val, K: word(train, val, K, shown=val[-1]), "looks at the training loss"),
        (lambda train, val, K: word(train, val, K, shown=train[-1] * math.log(10)), "natural"),
        (
            lambda train, val, K: word(train, val, K, losses=[x for x in (*train, *val) if not math.isinf(x)]),
            "infinity is broken",
        ),
    ],
    "09.2": [
        (lambda K, smoothing: bounds(K, smoothing, log=math.log2), "natural"),
        (lambda K, smoothing: (math.log(K), 0.0), "even a perfect model pays"),
        (lambda K, smoothing: bounds(K, smoothing, count=0), "wrong classes count too"),
        (lambda K, smoothing: bounds(K, smoothing, right=1 - smoothing), "1 - smoothing \\+ smoothing / K"),
        (
            lambda K, smoothing: bounds(K, smoothing, right=1 - smoothing, rest=smoothing / (K - 1)),
            "spread over all K classes",
        ),
        (lambda K, smoothing: bounds(K, smoothing)[::-1], "exchanged"),
        (lambda K, smoothing: bounds(K, smoothing, count=1), "not one"),
        (lambda K, smoothing: bounds(K, smoothing, count=K), "not K"),
        (
            lambda K, smoothing: ((1 - smoothing) * math.log(K), bounds(K, smoothing)[1]),
            "whatever the targets are",
        ),
    ],
    "09.3": [
        (lambda e, m: bits(e, m, mantissa=2.0), "at most 2 - 2\\^-m"),
        (lambda e, m: bits(e, m, top=1), "stands for infinity"),
        (lambda e, m: bits(e, m, mantissa=1.0), "not 1"),
        (lambda e, m: bits(e, m, low=-1), "zero has the one below"),
        (lambda e, m: bits(e, m, low=-m), "not normal"),
        (lambda e, m: bits(e, m, gap=-1), "m bits stand behind"),
        (lambda e, m: bits(e, m, gap=1), "the leading 1"),
        (lambda e, m: bits(m, e), "exchanged"),
        (lambda e, m: (bits(e, m)[1], bits(e, m)[0], bits(e, m)[2]), "the order is"),
        (lambda e, m: bits(e, m, top=1, low=-1), "the bias is"),
        (lambda e, m: bits(e, m, top=(2 ^ (e - 1)) - 2 ** (e - 1), low=2 ** (e - 1) - (2 ^ (e - 1))), "a power is"),
    ],
    "09.4": [
        (lambda N, rates, decay: -kept(rates, decay) * torch.exp(logs(N)), "it is A_log that decays"),
        (
            lambda N, rates, decay: -torch.exp(logs(N) * kept([rates[0]] * len(rates), decay)),
            "a learning rate of its own",
        ),
        (lambda N, rates, decay: -torch.exp(logs(N) * (1 - decay) ** len(rates)), "the learning rate belongs"),
        (lambda N, rates, decay: -torch.exp(logs(N) * math.exp(-decay * sum(rates))), "this is the exponential"),
        (lambda N, rates, decay: -torch.exp(logs(N) * (1 - decay * sum(rates))), "are multiplied"),
        (lambda N, rates, decay: torch.exp(logs(N) * kept(rates, decay)), "negative"),
        (lambda N, rates, decay: logs(N) * kept(rates, decay), "this is A_log"),
        (lambda N, rates, decay: -torch.exp(logs(N, first=2) * kept(rates, decay)), "count from 1"),
        (lambda N, rates, decay: -torch.exp(logs(N) * kept(rates[:-1], decay)), "the last step"),
    ],
    "09.5": [
        (list, "vectors do not decay"),
        (lambda shapes: matrices(shapes, ("cls_token", "pos_embed")), "A_log has two axes"),
        (lambda shapes: matrices(shapes, ("A_log",)), "class token and position embedding have three axes"),
        (lambda shapes: matrices(shapes, ()), "A_log, class token and position embedding"),
        (lambda shapes: [name for name in shapes if name.endswith("weight")], "a norm's weight is a vector"),
        (lambda shapes: [n for n in matrices(shapes) if n.endswith(".weight")], "conv_weight is a matrix"),
        (lambda shapes: [n for n in matrices(shapes) if len(shapes[n]) == 2], "four axes"),
        (lambda shapes: [n for n in shapes if n not in matrices(shapes)], "must not decay"),
        (
            lambda shapes: [
                name
                for name in shapes
                if not name.endswith("bias") and end(name) not in ("A_log", "cls_token", "pos_embed")
            ],
            "not only biases",
        ),
        (lambda shapes: [n for n in shapes if n.endswith("weight") and "norm" not in n], "not every norm is called"),
    ],
    "09.6": [
        (lambda one, other: difference(one, other, way=-1), "other - one"),
        (lambda one, other: difference(one, other, absolute=True), "the sign of the difference"),
        (lambda one, other: difference(one, other, loss=False), "a loss is clear too"),
        (lambda one, other: difference(one, other, size=1), "not one"),
        (lambda one, other: difference(one, other, size=2), "not two"),
        (lambda one, other: difference(one, other, n=0), "divided by n - 1"),
        (lambda one, other: difference(one, other, shared=True), "variance of a mean"),
        (lambda one, other: difference(one, other, add=True), "squares are added"),
        (lambda one, other: difference(one, other, root=False), "its root"),
    ],
    "09.7": [
        (lambda side, steps: seen(side, steps, power=1), "the area is its square"),
        (lambda side, steps: seen(side, steps, resize=False), "not from the original"),
        (lambda side, steps: seen(side, steps, pad="none"), "padding makes room"),
        (lambda side, steps: seen(side, steps, pad="picture"), "are not picture"),
        (lambda side, steps: seen(side, steps, crops="last"), "every crop counts"),
        (lambda side, steps: (min([side, *(n for name, n in steps if name != "pad")]) / side) ** 2, "is seen whole"),
        (lambda side, steps: 1.0 if steps[-1][0] == "resize" else seen(side, steps), "brings nothing back"),
        (lambda side, steps: 100 * seen(side, steps), "not in percent"),
        (lambda side, steps: (30 / 20) ** 2 if steps == [("pad", 10), ("crop", 30)] else seen(side, steps), "not more"),
        (lambda side, steps: 1.0 if steps[0] == ("crop", 10) else seen(side, steps), "does not come back"),
    ],
    "09.8": [
        (lambda records, largest: bad(records, largest, lambda value: value > largest), "NaN > largest is False"),
        (lambda records, largest: bad(records, largest, lambda value: not math.isfinite(value)), "an infinity in this"),
        (lambda records, largest: bad(records, largest, math.isnan), "infinity leaves the format"),
        (lambda records, largest: bad(records, largest, lambda value: not value < largest), "itself still fits"),
        (lambda records, largest: bad(records, largest, order=sorted), "not of the alphabet"),
        (lambda records, largest: bad(records, largest, last=True), "the first one is the cause"),
        (lambda records, largest: bad(records, largest, first=1), "count from 0"),
        (by_layer, "all layers of a step"),
        (largest_of_step, "not the largest of its step"),
    ],
}
