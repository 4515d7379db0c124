"""`check` and `compare` themselves, on a toy exercise: what a learner reads after a mistake."""

import numpy as np
import pytest
import torch

from minivim.course.exercises import check
from minivim.course.exercises.checking import EXERCISES, Wrong, compare, demand, exercise, exercises_of
from minivim.course.exercises.judging import MOST_PRINTED, Abandoned, judge

A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
H = torch.tensor([1.0, -1.0])
NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def toy():
    """Exercise 97.1: the state after one step, A h; 97.2 draws random numbers."""

    @exercise("97.1", "One step")
    def one_step(answer):
        causes = {"you used A transposed": A.T @ H, "you forgot A": H}
        compare(answer(A, H), A @ H, "the state", given="h = [1, -1]", causes=causes)

    @exercise("97.2", "A draw")
    def draw(answer):
        compare(answer(), torch.rand(2).sum(), "the sum of two draws")

    yield
    del EXERCISES["97.1"], EXERCISES["97.2"]


def stub(A, h):
    raise NotImplementedError("your turn")


def unfinished(A, h):
    raise NotImplementedError("sparse A")


def misshapen(A, h):
    taller = torch.cat([A, A])
    return taller.T @ h


def recursive(A, h):
    return recursive(A, h)


def writing(A, h):
    h += 1
    return A @ h


def writing_into_the_second(A, h):
    A.mul_(2)
    return A @ h


def printing(A, h):
    print("h is", h.tolist())
    return A @ h


class Evil(BaseException):
    def __str__(self):
        raise self


class Strange:
    def __eq__(self, other):
        raise SystemExit

    __hash__ = None


def evil(A, h):
    raise Evil


# answer, the first line of the message, what else it must say
ANSWERS = [
    (lambda A, h: A.T @ h, "the state, first difference at [0]: yours -2, expected -1", "you used A transposed"),
    (lambda A, h: h, "the state, first difference at [0]: yours 1, expected -1", "likely cause: you forgot A"),
    (lambda A, h: -(A @ h), "the state, first difference at [0]: yours 1, expected -1", "the sign is the other way"),
    (
        lambda A, h: A @ h + torch.tensor([0, 1.0]),
        "the state, first difference at [1]: yours 0, expected -1",
        "error 1",
    ),
    (lambda A, h: A @ h, "", ""),
    (lambda A, h: (A @ h).double(), "", ""),
    (lambda A, h: (A @ h).numpy(), "", ""),
    (lambda A, h: (A @ h).requires_grad_(), "", ""),
    (lambda A, h, scale=1: A @ h * scale, "", ""),
    (printing, "", ""),
    (lambda A, h: A, "the state: yours is a tensor of shape (2, 2); it must be a tensor of shape (2,)", "given h = [1"),
    (lambda A, h: [-1.0, -1.0], "the state: yours is a list of 2 values; it must be a tensor of shape (2,)", ""),
    (lambda A, h: None, "the state: yours is None; does your function end without `return`?", ""),
    (lambda A, h: "x" * 99, "the state: yours is 'xxxxx", "..."),
    (lambda A, h: A @ h / 0 * 0, "the state: yours is NaN (not a number), first at [0]", ""),
    (lambda A, h: A @ h + 0j, "the state: yours has complex numbers; it must have real numbers; take .real", ""),
    (lambda A, h: (A @ h) < 0, "the state: yours has True and False; it must have real numbers", ""),
    (lambda A, h: Strange(), "the state: yours is a Strange; it must be a tensor of shape (2,)", ""),
    (lambda A: A, "your function takes (A) but is called with 2 arguments (too many positional arguments)", ""),
    (lambda A, h, B: A, "your function takes (A, h, B) but is called with 2 arguments (missing", ""),
    (writing, "your function changes its argument h; work on a copy, such as h.clone()", ""),
    (writing_into_the_second, "your function changes its argument A; work on a copy", ""),
    (unfinished, "your function raised NotImplementedError: sparse A", 'raise NotImplementedError("sparse A")'),
    (misshapen, "your function raised RuntimeError: ", "of your code: return taller.T @ h"),
    (recursive, "your function raised RecursionError: ", "return recursive(A, h)"),
    (lambda A, h: exit(), "your function raised SystemExit", ""),
    (evil, "your function raised Evil: (its message cannot be read)", "raise Evil"),
    (5, "check was given a int; it must be given your function, without brackets", ""),
    (None, "check was given a NoneType; it must be given your function, without brackets", ""),
    (Strange(), "check was given a Strange; it must be", ""),
    (torch.mv, "", ""),  # written in C, without a signature
]


@pytest.mark.parametrize(("answer", "first", "more"), ANSWERS)
def test_the_verdict_says_what_is_wrong(capsys, answer, first, more):
    verdict = judge("97.1", answer)
    assert verdict.status == ("fix" if first else "ok"), verdict
    assert verdict.message.startswith(first) and more in verdict.message, verdict
    assert capsys.readouterr() == ("", "")
    assert torch.equal(A, torch.tensor([[1.0, 2.0], [3.0, 4.0]])) and torch.equal(H, torch.tensor([1.0, -1.0]))


def test_check_prints_one_of_three(capsys):
    check("97.1", stub)
    check("97.1", torch.mv)
    check("97.1", lambda A, h: A.T @ h)
    assert capsys.readouterr().out.splitlines() == [
        "[todo] 97.1 One step",
        "[ok] 97.1 One step",
        "[fix] 97.1 One step: the state, first difference at [0]: yours -2, expected -1",
        "      2 of 2 numbers differ; largest error 1",
        "      given h = [1, -1]",
        "      likely cause: you used A transposed",
    ]


def test_what_an_answer_prints_is_shown_below_and_cut(capsys):
    check("97.1", printing)
    assert capsys.readouterr().out == "[ok] 97.1 One step\nyour function printed:\nh is [1.0, -1.0]\n"
    check("97.1", lambda A, h: print("x" * 10**6) or A @ h)
    assert len(capsys.readouterr().out) < MOST_PRINTED + 100


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        ("97.3", "there is no exercise '97.3'; this chapter has 97.1, 97.2"),
        ("96.1", "there is no exercise '96.1'; no such chapter has exercises"),
        ("one", "there is no exercise 'one'; no such chapter has exercises"),
        (97.1, "there is no exercise 97.1; this chapter has 97.1, 97.2"),
        (None, "there is no exercise None; no such chapter has exercises"),
        ("../x", "there is no exercise '../x'; no such chapter has exercises"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_unknown_number_is_named(capsys, number, sentence):
    check(number, torch.mv)
    assert capsys.readouterr().out == f"[fix] {number}: {sentence}\n"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Abandoned])
def test_only_these_two_get_through(stop):
    def answer(A, h):
        raise stop

    with pytest.raises(stop):
        judge("97.1", answer)


def test_random_numbers_are_the_checkers_own():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    verdicts = [judge("97.2", lambda: torch.rand(2).sum()), judge("97.2", lambda: torch.rand(1))]
    assert torch.equal(torch.rand(3), expected)
    assert [verdict.status for verdict in verdicts] == ["ok", "fix"]


def test_a_checker_that_stumbles_says_over_what():
    @exercise("97.3", "Stumbles")
    def stumbles(answer):
        compare(answer(1) + 1, 2, "the sum")

    verdict = judge("97.3", lambda x: "1")
    del EXERCISES["97.3"]
    assert verdict.status == "fix"
    assert verdict.message.startswith("the checker cannot work with what your function returned (TypeError: ")


def test_a_checker_that_never_asks_is_no_checker():
    exercise("97.3", "Silent")(lambda answer: None)
    verdict = judge("97.3", lambda x: x)
    del EXERCISES["97.3"]
    assert (verdict.status, verdict.message) == ("fix", "the checker never called your function")


@pytest.mark.parametrize("number", ["1.2", "01.02", "01.0", "01", "01.2a", "", "97.1"])
def test_a_number_must_be_well_formed_and_free(number):
    with pytest.raises(ValueError, match=f"number is '{number}'"):
        exercise(number, "x")(lambda answer: None)


def test_exercises_come_in_their_natural_order():
    for count in (10, 3):
        exercise(f"97.{count}", "x")(lambda answer: None)
    assert [each.number for each in exercises_of("97")] == ["97.1", "97.2", "97.3", "97.10"]
    del EXERCISES["97.3"], EXERCISES["97.10"]


# ---- compare ---------------------------------------------------------------------------------------------------------

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
        ONES + 2e-6,
        ONES,
        r"first difference at \[0\]: yours 1.00000203, expected 1\n3 of 3 numbers differ; largest error 2e-06",
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


def test_only_a_cause_whose_value_was_found_is_named():
    with pytest.raises(Wrong) as wrong:
        compare(3.0, 1.0, "it", causes={"two": 2.0, "three": 3.0, "also three": 3.0})
    assert str(wrong.value) == "it: yours 3, expected 1\nlikely cause: three"


def test_a_cause_may_have_another_shape():
    with pytest.raises(Wrong, match="likely cause: you summed"):
        compare(torch.tensor(3.0), ONES, "it", causes={"you summed": ONES.sum()})


def test_demand():
    demand(torch.tensor(True), "never said")
    with pytest.raises(Wrong, match="^look at the sign$"):
        demand(torch.tensor(False), "look at the sign")
