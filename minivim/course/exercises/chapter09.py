"""Chapter 09, training: the checkers."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from minivim.course.exercises.checking import compare, exercise

NAN, INFINITY = math.nan, math.inf


RULES = ("broken", "not learning", "overfitting", "underfitting")  # in the order in which they are asked


def _diagnosis(
    train: Sequence[float],
    val: Sequence[float],
    K: int,
    order: Sequence[str] = RULES,
    *,
    shown: float | None = None,
    limit: float | None = None,
    falling: Sequence[float] | None = None,
) -> str:
    """The rules of section 3, in `order`; the other arguments replace what a rule looks at."""
    before, last = (val if falling is None else falling)[-2:]
    holds = {
        "broken": not all(map(math.isfinite, (*train, *val))),
        "not learning": (train[-1] if shown is None else shown) > 0.9 * math.log(K),
        "overfitting": val[-1] > (1.2 * min(val) if limit is None else limit),
        "underfitting": last < 0.9 * before,
    }
    return next((word for word in order if holds[word]), "fine")


@exercise("09.1", "Read a run")
def diagnose(answer: Callable) -> None:
    """A word for what two curves show."""
    runs = [
        ([1.9, 1.1, 0.6, 0.45, 0.4], [1.9, 1.1, 0.62, 0.51, 0.47], 10),  # fine
        ([1.8, 1.0, 0.5, 0.3], [1.7, 0.9, 0.72, 0.7], 10),  # above the training loss, and not rising: fine
        ([2.31, 2.3, 2.29, 2.3], [2.3, 2.3, 2.31, 2.3], 10),  # not learning
        ([2.2, 1.2, 0.6, 0.5], [1.9, 1.1, 0.58, 0.56], 10),  # fine, from a bad start
        ([1.9, 0.8, 0.6, 0.5], [1.6, 0.55, 0.59, 0.6], 10),  # risen by 9 %: fine
        ([2.0, 0.6, 0.1, 0.01], [1.9, 0.9, 0.95, 1.4], 10),  # overfitting
        ([2.0, 1.2, 0.6, 0.5], [1.9, 0.5, 0.9, 0.7], 10),  # falls, and yet far above its smallest: overfitting
        ([2.0, 1.7, 1.4, 1.3], [1.9, 1.8, 1.5, 1.2], 10),  # underfitting, which the training loss hides
        ([1.9, 1.1, NAN, NAN], [1.8, 1.0, NAN, NAN], 10),
        ([2.1, 1.5, 1.2, 1.1], [2.0, INFINITY, 1.3, 1.2], 10),  # one epoch is enough
        ([0.69, 0.68, 0.66, 0.65], [0.7, 0.69, 0.66, 0.65], 2),  # 0.65 is the guess between two
        ([2.3, 2.3], [2.3, 3.0], 10),  # not learning, which is asked before overfitting
        ([1.0, 0.5], [2.0, 2.2], 10),  # fine: the training loss is not that of a guess
        ([4.5, 4.3, 4.0, 3.0], [4.4, 4.2, 4.0, 3.1], 100),  # 3.0 is below the guess among 100: underfitting
    ]
    for train, val, K in runs:
        nan_first = "a loss that is NaN or infinite comes first: NaN makes every comparison False"
        ends_well = math.isfinite(train[-1] + val[-1])
        earlier = "every epoch counts for broken, not the last alone; and infinity is broken as NaN is"
        causes = {
            earlier if ends_well else nan_first: _diagnosis(train, val, K, RULES[1:]),
            "not learning is asked before overfitting": _diagnosis(train, val, K, (RULES[0], *RULES[2:0:-1], RULES[3])),
            "not learning looks at the training loss": _diagnosis(train, val, K, shown=val[-1]),
            "the logarithm is the natural one": _diagnosis(train, val, K, shown=train[-1] * math.log(10)),
            "guessing costs log K, with the K that is given": _diagnosis(train, val, 10),
            "it is the last training loss that shows whether it learns, not the first": _diagnosis(
                train, val, K, shown=train[0]
            ),
            "compare the last validation loss with the smallest one, not with the training loss": _diagnosis(
                train, val, K, limit=1.2 * train[-1]
            ),
            "a rise of up to 20 % is no overfitting yet": _diagnosis(train, val, K, limit=min(val)),
            "overfitting is asked before underfitting": _diagnosis(train, val, K, (*RULES[:2], *RULES[:1:-1])),
            "underfitting looks at the validation loss": _diagnosis(train, val, K, falling=train),
        }
        given = f"train = {train}, val = {val}, K = {K}"
        compare(answer(train, val, K), _diagnosis(train, val, K), "the word", given=given, causes=causes)


def _entropy(shares: Sequence[float]) -> float:
    """Minus the sum of p log p."""
    return -sum(share * math.log(share) for share in shares if share)


@exercise("09.2", "The price of guessing")
def loss_bounds(answer: Callable) -> None:
    """The cross-entropy of a guess, and the smallest that smoothed targets allow."""
    for K, smoothing in ((10, 0.1), (10, 0.0), (1000, 0.1), (5, 0.3), (2, 0.2)):
        rest = smoothing / K
        right = 1 - smoothing + rest
        guess = math.log(K)
        floor = _entropy([right, *[rest] * (K - 1)])
        others = smoothing / (K - 1)
        causes = {
            "the logarithm is the natural one": (math.log2(K), floor / math.log(2)),
            "with smoothed targets even a perfect model pays their entropy": (guess, 0.0),
            "the K - 1 wrong classes count too": (guess, -right * math.log(right)),
            "the label's share is 1 - smoothing + smoothing / K": (
                guess,
                _entropy([1 - smoothing, *[rest] * (K - 1)]),
            ),
            "the smoothing is spread over all K classes, the right one too": (
                guess,
                _entropy([1 - smoothing, *[others] * (K - 1)]),
            ),
            "the two numbers are exchanged: first the guess, then the floor": (floor, guess),
            "there are K - 1 wrong classes, not one": (guess, _entropy([right, rest])),
            "there are K - 1 wrong classes, not K": (guess, _entropy([right, *[rest] * K])),
            "a guess costs log K whatever the targets are, for they sum to 1": ((1 - smoothing) * guess, floor),
        }
        found = answer(K, smoothing)
        given = f"K = {K}, smoothing = {smoothing}"
        compare(found, (guess, floor), "(guess, floor)", given=given, causes=causes)


def _format(e: int, m: int, largest_exponent: int | None = None, smallest_exponent: int | None = None) -> tuple:
    """(largest, smallest normal, gap above 1) of an IEEE format with e and m bits."""
    bias = 2 ** (e - 1) - 1
    top = bias if largest_exponent is None else largest_exponent
    low = 1 - bias if smallest_exponent is None else smallest_exponent
    return (2 - 2.0**-m) * 2.0**top, 2.0**low, 2.0**-m


@exercise("09.3", "What fits into 16 bits")
def number_format(answer: Callable) -> None:
    """Largest number, smallest normal number and gap above 1, from two numbers of bits."""
    for e, m in ((4, 3), (5, 10), (8, 7), (8, 23), (6, 9)):  # coarse first: there each mistake shows
        largest, smallest, gap = expected = _format(e, m)
        bias = 2 ** (e - 1) - 1
        causes = {
            "the mantissa is at most 2 - 2^-m, not 2": (2.0 ** (bias + 1), smallest, gap),
            "the largest exponent is 2^(e-1) - 1; one more stands for infinity": (2 * largest, smallest, gap),
            "the mantissa of the largest number is 2 - 2^-m, not 1": (2.0**bias, smallest, gap),
            "the smallest exponent of a normal number is 1 - bias; zero has the one below": (
                largest,
                smallest / 2,
                gap,
            ),
            "1 - bias, not -bias - 1 or -bias: the smallest exponent is 2 - 2^(e-1)": (largest, smallest / 4, gap),
            "this is the smallest number that is not normal": (largest, smallest * gap, gap),
            "the gap above 1 is 2^-m: m bits stand behind the point": (largest, smallest, gap / 2),
            "the gap is 2^-m, not 2^-(m-1): the leading 1 is not stored": (largest, smallest, 2 * gap),
            "e and m are exchanged: e bits are the exponent's": _format(m, e) if m <= 10 else None,
            "the order is largest, smallest, gap": (smallest, largest, gap),
            "a power is **; ^ is another operation": _format(e, m, (2 ^ (e - 1)) - 1, 2 - (2 ^ (e - 1))),
            "the bias is 2^(e-1) - 1": _format(e, m, 2 ** (e - 1), 1 - 2 ** (e - 1)),
        }
        given = f"e = {e}, m = {m}"
        found = answer(e, m)
        if isinstance(found, tuple | list):  # whole numbers may be as exact as they like
            found = tuple(float(number) if isinstance(number, int) else number for number in found)
        compare(found, expected, "(largest, smallest, gap)", tolerance=1e-12, given=given, causes=causes)


@exercise("09.4", "What decay leaves of A")
def decayed_rates(answer: Callable) -> None:
    """A after steps in which nothing but weight decay acts on A_log."""
    for N, rates, decay in ((4, [0.5, 0.25], 0.4), (16, [1e-2] * 40, 0.5), (7, [0.3, 0.1, 0.2], 1.5)):
        numbers = torch.arange(1, N + 1, dtype=torch.float64)
        kept = math.prod(1 - rate * decay for rate in rates)
        expected = -(numbers**kept)
        causes = {
            "it is A_log that decays; A follows as -exp(A_log)": -kept * numbers,
            "each step has a learning rate of its own": -(numbers ** ((1 - rates[0] * decay) ** len(rates))),
            "AdamW's step is 1 - rate * decay: the learning rate belongs to it": -(
                numbers ** ((1 - decay) ** len(rates))
            ),
            "this is the exponential; each step multiplies by 1 - rate * decay": -(
                numbers ** math.exp(-decay * sum(rates))
            ),
            "the factors of the steps are multiplied, not their rates added": -(numbers ** (1 - decay * sum(rates))),
            "A is -exp(A_log), negative": -expected,
            "this is A_log; A is -exp(A_log)": kept * numbers.log(),
            "the states count from 1: A_log starts at log 1, log 2, ...": -((numbers + 1) ** kept),
            "the last step counts too": -(numbers ** math.prod(1 - rate * decay for rate in rates[:-1])),
            "decay pulls towards 0, 1 - rate * decay, not 1 + rate * decay": -(
                numbers ** math.prod(1 + rate * decay for rate in rates)
            ),
        }
        given = f"N = {N}, rates = {rates if len(rates) < 5 else f'{len(rates)} times {rates[0]}'}, decay = {decay}"
        found = answer(N, rates, decay)
        if isinstance(found, tuple | list):
            found = torch.tensor(found, dtype=torch.float64)
        compare(found, expected, "A", tolerance=1e-6, given=given, causes=causes)


def _vim_shapes(D: int, N: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of some of a Vim's parameters."""
    E, R, shapes = 2 * D, -(-D // 16), {"cls_token": (1, 1, D), "pos_embed": (1, 17, D)}
    shapes |= {"patch_embed.proj.weight": (D, 3, 2, 2), "patch_embed.proj.bias": (D,)}
    for block in range(blocks):
        shapes |= {f"blocks.{block}.norm.weight": (D,), f"blocks.{block}.mixer.in_proj.weight": (2 * E, D)}
        for way in ("forward_ssm", "backward_ssm"):
            parts = {"conv_weight": (E, 4), "conv_bias": (E,), "A_log": (E, N), "D": (E,)}
            parts |= {"x_proj.weight": (R + 2 * N, E), "dt_proj.weight": (E, R), "dt_proj.bias": (E,)}
            shapes |= {f"blocks.{block}.mixer.{way}.{part}": shape for part, shape in parts.items()}
    return shapes | {"norm.weight": (D,), "head.weight": (10, D), "head.bias": (10,)}


DEIT_SHAPES = {
    "cls_token": (1, 1, 36),
    "pos_embed": (1, 17, 36),
    "blocks.0.norm1.weight": (36,),
    "blocks.0.norm1.bias": (36,),
    "blocks.0.ln.weight": (36,),  # a norm that is not called one
    "blocks.0.attention.qkv.weight": (108, 36),
    "blocks.0.attention.qkv.bias": (108,),
    "head.weight": (10, 36),
}


@exercise("09.5", "Who may decay?")
def may_decay(answer: Callable) -> None:
    """The names of the parameters that weight decay may touch."""
    for shapes in (_vim_shapes(32, 16, 1), DEIT_SHAPES, _vim_shapes(8, 4, 2)):
        ends = {name: name.rpartition(".")[2] for name in shapes}
        matrices = [name for name, shape in shapes.items() if len(shape) > 1]
        spared = ("A_log", "cls_token", "pos_embed")
        expected = [name for name in matrices if ends[name] not in spared]
        weights = [name for name in shapes if ends[name].endswith("weight")]
        causes = {
            "these are all; vectors do not decay": list(shapes),
            "A_log has two axes and yet must not decay": [n for n in matrices if ends[n] not in spared[1:]],
            "class token and position embedding have three axes and yet must not decay": [
                name for name in matrices if ends[name] != "A_log"
            ],
            "A_log, class token and position embedding have more than one axis and yet must not decay": matrices,
            "a norm's weight is a vector: it must not decay": weights,
            "ask for the axes: not every norm is called norm": [name for name in weights if "norm" not in name],
            "conv_weight is a matrix, (E, K): it decays, though its name does not end with .weight": [
                name for name in expected if ends[name] == "weight"
            ],
            "a kernel of a convolution has four axes and decays too": [n for n in expected if len(shapes[n]) == 2],
            "these are the ones that must not decay": [name for name in shapes if name not in expected],
            "D and the norms are vectors: not only biases are spared": [
                name for name in shapes if not name.endswith("bias") and ends[name] not in spared
            ],
        }
        found = answer(shapes)
        found = list(found) if isinstance(found, (list, tuple, set, Mapping)) else found
        given = f"the {len(shapes)} shapes of a {'DeiT' if shapes is DEIT_SHAPES else 'Vim'}"
        _compare_names(found, expected, given, causes)


def _compare_names(found: object, expected: list[str], given: str, causes: Mapping[str, list[str]]) -> None:
    """`compare` for lists of names in any order; the first name too many or missing is what the message shows."""
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        compare(found, expected, "the names", given=given)
        return
    extra = [name for name in found if name not in expected]
    missing = [name for name in expected if name not in found]
    wrong = {"too many": extra[0] if extra else "none", "missing": missing[0] if missing else "none"}
    likely = [cause for cause, names in causes.items() if sorted(names) == sorted(found) and names != expected]
    hints = {likely[0]: wrong} if len(likely) == 1 else {}
    right = {"too many": "none", "missing": "none"}
    compare(wrong, right, "the first name", given=given, causes=hints)
    compare(len(found), len(expected), "the number of names", given=given)


def _noise(one: torch.Tensor, other: torch.Tensor, correction: int = 1) -> tuple[float, float]:
    """Difference of the means, other - one, and its standard error."""
    squares = one.var(correction=correction) / len(one) + other.var(correction=correction) / len(other)
    return (other.mean() - one.mean()).item(), math.sqrt(squares)


@exercise("09.6", "Is it noise?")
def difference_of_runs(answer: Callable) -> None:
    """Difference of two means, its standard error, and whether it is clear."""
    cases = [
        ([0.941, 0.957, 0.949], [0.95, 0.955, 0.962]),  # 1.2 standard errors
        ([0.95, 0.955, 0.962], [0.82, 0.835, 0.829]),
        ([0.91, 0.93], [0.951, 0.958, 0.949, 0.962]),
        ([0.9, 0.905, 0.91], [0.909, 0.914, 0.919]),  # 2.2 standard errors
        ([0.9, 0.905, 0.91], [0.915, 0.92, 0.925]),  # 3.7 standard errors
        ([0.9, 0.94], [0.8, 0.84, 0.88, 0.92]),
    ]
    for one, other in cases:
        pair = [torch.tensor(runs, dtype=torch.float64) for runs in (one, other)]
        gap, error = _noise(*pair)
        clear = abs(gap) > 3 * error
        spread = [values.std().item() for values in pair]
        sign = "the difference is other - one" if gap > 0 else "the sign of the difference is kept"
        limit = f"the limit is three standard errors, not {'one' if abs(gap) < 2 * error else 'two'}"
        causes = {
            sign: (-gap, error, clear),
            "a loss is clear too: compare the size of the difference": (gap, error, gap > 3 * error),
            limit: (gap, error, abs(gap) > error),
        }
        errors = {
            "the variance of n runs is divided by n - 1: the mean was made of the same runs": _noise(*pair, 0)[1],
            "the variance of a mean is that of a run divided by n": math.hypot(*spread),
            "squares are added, not spreads": sum(s / math.sqrt(len(v)) for s, v in zip(spread, pair, strict=True)),
            "this is the variance; the standard error is its root": error**2,
            "each set is divided by its own number of runs": math.hypot(*spread) / math.sqrt(len(one) + len(other)),
        }
        causes |= {cause: (gap, wrong, abs(gap) > 3 * wrong) for cause, wrong in errors.items()}
        given = f"one = {one}, other = {other}"
        found = answer(one, other)
        compare(found, (gap, error, clear), "(difference, error, clear)", tolerance=1e-7, given=given, causes=causes)


def _shown(side: int, steps: Sequence[tuple[str, int]]) -> float:
    """The share of the original along one side after the steps, at the luckiest places."""
    total, content, share = float(side), float(side), 1.0
    for name, size in steps:
        if name == "resize":
            total, content = float(size), content * size / total
        elif name == "pad":
            total += 2 * size
        else:
            kept = min(content, float(size))
            total, content, share = float(size), kept, share * kept / content
    return share


@exercise("09.7", "What does training see?")
def share_seen(answer: Callable) -> None:
    """The largest share of a picture's area that a pipeline lets through."""
    pipelines = [  # one trap at a time
        (96, [("resize", 48)]),
        (60, [("crop", 48), ("crop", 36)]),
        (40, [("crop", 30), ("resize", 40)]),
        (32, [("pad", 4), ("crop", 32)]),
        (500, [("resize", 256), ("crop", 224)]),
        (32, [("pad", 4), ("resize", 32), ("crop", 24)]),
        (32, [("resize", 224), ("crop", 32), ("resize", 224)]),
        (32, [("resize", 224), ("pad", 4), ("crop", 32)]),
        (64, [("crop", 48), ("resize", 64), ("crop", 48)]),
        (20, [("pad", 10), ("crop", 30), ("crop", 10)]),
        (20, [("pad", 10), ("crop", 30)]),
        (20, [("crop", 10), ("pad", 10), ("crop", 25)]),
    ]
    for side, steps in pipelines:
        share = _shown(side, steps)
        given = f"side = {side}, steps = {steps}"
        compare(answer(side, steps), share**2, "the share", given=given, causes=_slips(side, steps, share))


def _slips(side: int, steps: Sequence[tuple[str, int]], share: float) -> dict[str, float]:
    """The mistakes that these steps show, and what they give."""
    names = [name for name, _ in steps]

    def without(unwanted: str) -> float:
        return _shown(side, [step for step in steps if step[0] != unwanted]) ** 2

    found = {
        "this is the share of a side; the area is its square": share,
        "a share is from 0 to 1, not in percent": 100 * share**2,
    }
    if "crop" not in names:
        smallest = min(size for _, size in steps)
        found["a picture that is resized is seen whole; only crops lose something"] = (smallest / side) ** 2
    elif names == ["crop", "crop"]:
        found["every crop counts, not the last one alone"] = (steps[1][1] / steps[0][1]) ** 2
    if names[-1] == "resize":
        found["the last resize brings nothing back"] = 1.0
    if names == ["pad", "crop"]:
        kept = steps[1][1] / (side + 2 * steps[0][1])
        found["black pixels of the padding are not picture: the luckiest crop leaves them out"] = kept**2
        found["a crop larger than the picture shows all of it, not more"] = (steps[1][1] / side) ** 2
    elif names == ["crop", "pad", "crop"]:
        found["what a crop has cut off does not come back"] = 1.0
    elif "pad" in names:
        found["padding makes room: when it is resized with the picture, the picture gets smaller"] = without("pad")
    elif names == ["resize", "crop"]:
        found["a crop is cut from what the steps before made of the picture, not from the original"] = without("resize")
    return found


def _first_bad(records: Sequence[Mapping[str, float]], bad: Callable[[float], bool]) -> tuple[int, str] | None:
    """The first step and layer whose number is bad."""
    return next(((step, name) for step, record in enumerate(records) for name in record if bad(record[name])), None)


def _first_by_layer(records: Sequence[Mapping[str, float]], bad: Callable[[float], bool]) -> tuple[int, str] | None:
    """What is found where the layers are walked through first, the steps of each then."""
    names = dict.fromkeys(name for record in records for name in record)
    return next(
        ((step, n) for n in names for step, record in enumerate(records) if n in record and bad(record[n])), None
    )


def _largest_of_step(records: Sequence[Mapping[str, float]], first: tuple[int, str] | None) -> tuple[int, str] | None:
    """The largest number of the step in which the first bad one is."""
    if first is None:
        return None
    record = records[first[0]]
    return first[0], max(record, key=lambda name: record[name])


@exercise("09.8", "The first bad number")
def first_overflow(answer: Callable) -> None:
    """The step and the layer in which a number first left the format."""
    half = 65504.0
    runs = [
        ([{"block 0": 3.0, "block 1": 900.0, "head": 8.0}, {"block 0": 3.1, "block 1": INFINITY, "head": 7e4}], half),
        ([{"embed": 2.0}, {"embed": NAN, "z": NAN}, {"embed": NAN, "z": NAN}, {"embed": INFINITY, "z": NAN}], half),
        ([{"embed": 2.0, "scan": 1.0}, {"embed": 2.0, "scan": 5.0}], half),
        ([{"scan": 7e4, "z": 2.0}, {"scan": 1.0, "z": INFINITY, "head": NAN}], half),  # float32 would hold 7e4
        ([{"scan": 7e4, "z": 2.0}, {"scan": 9e4, "z": INFINITY}], 3.38e38),
        ([{"scan": 65504.0, "z": 2.0}, {"scan": 65505.0, "z": 3.0}], half),  # the largest itself fits
        ([{"b": 1.0, "a": 2.0, "d": 1.0}, {"b": 7e4, "a": 8e4, "d": 9e4, "c": 7e4}], half),  # layers in their own order
        ([{"a": 1.0, "b": 1e9}, {"a": 1e9, "b": 1.0}, {"a": 1.0, "b": 1e9}], half),  # a step before the next one
    ]
    for records, largest in runs:

        def leaves(value: float, largest: float = largest) -> bool:
            return not value <= largest

        expected = _first_bad(records, leaves)
        sorted_records = [dict(sorted(record.items())) for record in records]
        last = [(step, name) for step, record in enumerate(records) for name in record if leaves(record[name])]
        causes = {
            "NaN is larger than nothing: NaN > largest is False, so ask `not value <= largest`": _first_bad(
                records, lambda value, largest=largest: value > largest
            ),
            "a finite number above `largest` is an infinity in this format": _first_bad(
                records, lambda value: not math.isfinite(value)
            ),
            "infinity leaves the format too": _first_bad(records, math.isnan),
            "`largest` itself still fits": _first_bad(records, lambda value, largest=largest: not value < largest),
            "layers run in the order of the dict, not of the alphabet": _first_bad(sorted_records, leaves),
            "this is the last bad number; the first one is the cause, the others follow": last[-1] if last else None,
            "steps count from 0": expected and (expected[0] + 1, expected[1]),
            "all layers of a step come before the next step": _first_by_layer(records, leaves),
            "the first number counts, not the largest of its step": _largest_of_step(records, expected),
        }
        given = f"records = {records}, largest = {largest:g}"
        compare(answer(records, largest), expected, "(step, layer)", given=given, causes=causes)
