"""Right answers that go another way than the solution: the checkers must take them."""

import math
import statistics

import numpy as np
import pytest
import torch

from minivim.course.exercises.judging import judge


def verdict_by_cases(train, val, K):
    """09.1: one return for each word, the rules asked through NumPy."""
    losses = np.array([*train, *val])
    return (
        "broken"
        if not np.isfinite(losses).all()
        else "not learning"
        if math.exp(train[-1] / 0.9) > K
        else "overfitting"
        if val[-1] / min(val) > 1.2
        else ("fine", "underfitting")[val[-1] < 0.9 * val[-2]]
    )


def bounds_by_distribution(K, smoothing):
    """09.2: the entropy that PyTorch computes."""
    shares = torch.full((K,), smoothing / K, dtype=torch.float64)
    shares[0] += 1 - smoothing
    uniform = torch.distributions.Categorical(logits=torch.zeros(K, dtype=torch.float64))
    return uniform.entropy(), torch.special.entr(shares).sum()


def format_by_bits(e, m):
    """09.3: sums of powers of two in place of products."""
    top = 2 ** (e - 1) - 1
    return sum(2.0 ** (top - k) for k in range(m + 1)), math.ldexp(1, 1 - top), math.ldexp(1, -m)


def rates_step_by_step(N, rates, decay):
    """09.4: a loop over the steps, a list for the result."""
    logs = [math.log(n) for n in range(1, N + 1)]
    for rate in rates:
        logs = [value - rate * decay * value for value in logs]
    return torch.tensor([-math.exp(value) for value in logs], dtype=torch.float64)


def names_as_a_set(shapes):
    """09.5: whoever has no axis or one, or a name of the three, is thrown out; the order is lost."""
    out = {name for name, shape in shapes.items() if len(shape) < 2}
    out |= {name for name in shapes if name.endswith(("A_log", "cls_token", "pos_embed"))}
    return set(shapes) - out


def difference_by_statistics(one, other):
    """09.6: the standard library."""
    gap = statistics.mean(other) - statistics.mean(one)
    error = (statistics.variance(one) / len(one) + statistics.variance(other) / len(other)) ** 0.5
    return [gap, error, not -3 * error <= gap <= 3 * error]


def share_by_an_interval(side, steps):
    """09.7: the picture is an interval; what a crop keeps is where two intervals meet."""
    whole, left, right, share = float(side), 0.0, float(side), 1.0
    for name, size in steps:
        if name == "resize":
            left, right, whole = (x * size / whole for x in (left, right, whole))
        elif name == "pad":
            left, right, whole = left + size, right + size, whole + 2 * size
        else:
            start = min(max(0.0, left), whole - size)
            kept = min(right, start + size) - max(left, start)
            share *= kept / (right - left)
            left, right, whole = max(left, start) - start, max(left, start) - start + kept, float(size)
    return np.float64(share) ** 2


def first_by_enumeration(records, largest):
    """09.8: a list of all, its first."""
    fits = [(step, name, abs(value) <= largest) for step, each in enumerate(records) for name, value in each.items()]
    return next(([step, name] for step, name, inside in fits if not inside), None)


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        ("09.1", verdict_by_cases),
        ("09.2", bounds_by_distribution),
        ("09.3", format_by_bits),
        ("09.4", rates_step_by_step),
        ("09.5", names_as_a_set),
        ("09.6", difference_by_statistics),
        ("09.7", share_by_an_interval),
        ("09.8", first_by_enumeration),
    ],
)
def test_another_right_way_is_right(number, answer):
    verdict = judge(number, answer)
    assert (verdict.status, verdict.message) == ("ok", "")
