"""`compare` itself: what is equal, what is said about a difference, which cause is named."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minivim.course.exercises.checking import Wrong, compare, demand, is_close

A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
NAN, INFINITY = float("nan"), float("inf")

ONES = torch.ones(3)
EQUAL = [
    (1.0, 1.0),
    (1, 1.0),
    (1.0, 1),
    (torch.tensor(1.0), 1.0),
    (1.0, torch.tensor(1.0)),
    (1 + 0j, torch.tensor(1 + 0j)),
    (True, True),
    ("a", "a"),
    (None, None),
    (NAN, NAN),
    (INFINITY, INFINITY),
    (ONES, ONES + 9e-7),
    (ONES * 1e9, ONES * 1e9 + 64),
    (ONES.long(), ONES),
    (ONES.half(), ONES),
    (torch.tensor([NAN, 1]), torch.tensor([NAN, 1])),
    (torch.empty(0, 2), torch.empty(0, 2)),
    ([1, ONES], (1, ONES)),
    ({"a": [1.0]}, {"a": [1]}),
]
DIFFERENT = [
    (1.0, 1.1, "it: yours 1, expected 1.1"),
    (1, True, "it: yours has whole numbers; it must have True and False"),
    (True, 1, "it: yours has True and False; it must have whole numbers"),
    (NAN, 1.0, "it: yours is NaN"),
    (1.0, NAN, "it: yours 1, expected nan"),
    (1.0, INFINITY, "it: yours 1, expected inf"),
    (-INFINITY, INFINITY, "it: yours -inf, expected inf"),
    (ONES, 1.0, r"it: yours is a tensor of shape \(3,\); it must be a number"),
    (1.0, ONES, r"it: yours is a number; it must be a tensor of shape \(3,\)"),
    (ONES.reshape(3, 1), ONES, r"shape \(3, 1\); it must be a tensor of shape \(3,\)"),
    (ONES, ONES.long(), "it: yours has real numbers; it must have whole numbers"),
    (ONES, ONES * (1 + 1j), r"yours 1\+0j, expected 1\+1j\n.*\nyours has real numbers, expected are complex numbers"),
    (ONES + 1e-7, ONES.double() + 1e-4, "error 0.0001\nyours is float32, expected is float64"),
    (
        ONES.double() + 2e-6,
        ONES,
        r"first difference at \[0\]: yours 1.000002, expected 1\n3 of 3 numbers differ; largest error 2e-06",
    ),
    (ONES * 2, ONES, "likely cause: it is twice what it must be"),
    (torch.arange(3.0), torch.arange(3.0).flip(0), "likely cause: the order is reversed along the first dimension"),
    (A, A.T.clone(), "likely cause: the last two dimensions are swapped"),
    ((1, 2), 3, "it: yours is a tuple of 2 values; it must be a number"),
    (3, (1, 2), "it: yours is a number; it must be a tuple of 2 values"),
    ((1, 2), (1, 2, 3), "it: yours has 2 values; it must have 3"),
    ((1, 2), [1, 3], r"it\[1\]: yours 2, expected 3"),
    ({"a": 1}, {"b": 1}, r"it: yours has the keys \[\"'a'\"\]; it must have \[\"'b'\"\]"),
    ({"a": 1}, {"a": 2}, r"it\['a'\]: yours 1, expected 2"),
    (1, {"a": 2}, "it: yours is a number; it must be a dict with the keys 'a'"),
    ("a", "b", "it: yours is 'a'; it must be 'b'"),
    (1, None, "it: yours is 1; it must be None"),
    (np.float64, 1.0, "it: yours is a type; it must be a number"),
]


@pytest.mark.parametrize(("found", "expected"), EQUAL)
def test_equal_values_pass(found, expected):
    compare(found, expected, "it")


@pytest.mark.parametrize(("found", "expected", "message"), DIFFERENT)
def test_a_difference_is_described(found, expected, message):
    with pytest.raises(Wrong, match=message):
        compare(found, expected, "it")


def test_the_tolerance_is_relative_above_one_and_absolute_below():
    compare(torch.tensor([1e-3, 100.0]), torch.tensor([1e-2, 101.0]), "it", tolerance=0.011)
    with pytest.raises(Wrong, match="first difference at"):
        compare(torch.tensor([1e-3, 100.0]), torch.tensor([1e-2, 101.0]), "it", tolerance=0.009)


def message_of(found, expected, causes=None):
    with pytest.raises(Wrong) as wrong:
        compare(found, expected, "it", causes=causes)
    return str(wrong.value)


def test_only_a_cause_whose_value_was_found_is_named():
    assert message_of(3.0, 1.0, {"two": 2.0, "three": 3.0}) == "it: yours 3, expected 1\nlikely cause: three"
    assert message_of(4.0, 1.0, {"two": 2.0, "three": 3.0}) == "it: yours 4, expected 1"


def test_a_cause_that_the_numbers_do_not_tell_from_another_is_not_named():
    assert message_of(3.0, 1.0, {"three": 3.0, "also three": 3.0}) == "it: yours 3, expected 1"
    assert message_of(1.00002, 1.0, {"rounding": 1.00002}) == "it: yours 1.00002, expected 1"  # nearly right
    numbers = torch.tensor([1.0, 0.0, -1.0])
    assert "cause" not in message_of(-numbers, numbers)  # backwards, or the other sign?
    assert "also twice" in message_of(2.0, 1.0, {"also twice": 2.0})  # what the exercise says comes first


PARTS = (torch.tensor([1.0, 3.0]), torch.tensor([[1.0, 2.0], [5.0, 7.0]]))
LONG = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0])
COMMON = [
    (-2.5, 2.5, "sign"),
    (5, 2.5, "twice"),
    (1.25, 2.5, "half"),
    ((PARTS[0], -PARTS[1]), PARTS, "sign"),
    ((PARTS[0] / 2, PARTS[1]), PARTS, "half"),
    ((PARTS[0], PARTS[1].mT), PARTS, "the last two dimensions are swapped"),
    ({"a": 1.0, "b": -2.0}, {"a": 1.0, "b": 2.0}, "sign"),
    ([3.0, 4.0, 1.0], [1.0, 4.0, 3.0], "reversed along the first"),
    (LONG.roll(1), LONG, "all comes one step late$"),
    (torch.cat((LONG[1:], torch.zeros(1))), LONG, "all comes one step early$"),
    (torch.stack((LONG, 2 * LONG)).roll(1, -1), torch.stack((LONG, 2 * LONG)), "late along the last dimension"),
    (torch.stack((LONG, 2 * LONG), 1).roll(-1, 0), torch.stack((LONG, 2 * LONG), 1), "early along the first dimension"),
]


@pytest.mark.parametrize(("found", "expected", "cause"), COMMON)
def test_common_mistakes_are_named_in_parts_and_plain_numbers_too(found, expected, cause):
    assert re.search("\nlikely cause: .*" + cause, message_of(found, expected))


@pytest.mark.parametrize(("found", "expected"), [(0.0, 1.0), (True, False), ("b", "a"), (LONG[:3], LONG[:3].roll(1))])
def test_no_common_mistake_is_made_up(found, expected):
    assert "cause" not in message_of(found, expected)


@given(st.lists(st.floats(-100, 100).map(lambda x: round(x, 2)), min_size=1, max_size=6), st.sampled_from(range(6)))
def test_whatever_is_named_gives_what_was_found(numbers, place):
    """For any numbers: the named mistake, made by hand, gives the found value; and not the expected one."""
    expected = torch.tensor(numbers, dtype=torch.float64)
    made = {
        "the sign is the other way round": -expected,
        "it is twice what it must be": 2 * expected,
        "it is half of what it must be": expected / 2,
        "the order is reversed along the first dimension": expected.flip(0),
        "all comes one step late": expected.roll(1),
        "all comes one step early": expected.roll(-1),
    }
    found = [*made.values()][place]
    if len(numbers) < 4:  # a step late or early is not looked for
        made = {cause: value for cause, value in made.items() if "step" not in cause}
    if is_close(found, expected, 1e-6):
        return compare(found, expected, "it")
    named = re.search("likely cause: (.*)", message_of(found, expected))
    if named:
        assert is_close(found, made[named[1]], 1e-6)
        assert sum(is_close(found, value, 1e-6) for value in made.values()) == 1


def test_a_cause_may_have_another_shape():
    with pytest.raises(Wrong, match="likely cause: you summed"):
        compare(torch.tensor(3.0), ONES, "it", causes={"you summed": ONES.sum()})


def test_demand():
    demand(torch.tensor(True), "never said")
    with pytest.raises(Wrong, match="^look at the sign$"):
        demand(torch.tensor(False), "look at the sign")


@given(st.integers(0, 2**32), st.floats(-6, 6), st.integers(1, 40))
def test_float32_may_round_and_nothing_more(seed, scale, size):
    """Right in float32, at any scale and for a strict exercise; wrong by a thousandth of the largest number."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    exact = 10**scale * left @ right
    rounded = (10**scale * left).float() @ right.float()
    assert is_close(rounded, exact, 1e-12)
    error = 1e-3 * exact.abs().max()
    assert not is_close((exact + error).float(), exact, 1e-12)
    assert not is_close(rounded.double() + 2e-5 * exact.abs().max(), exact, 1e-12)  # float64 has no such excuse
    assert not is_close(exact.bfloat16() + 0.01 * exact.abs().max(), exact, 1e-12)
