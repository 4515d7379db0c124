"""`check` and `compare` themselves, on a toy exercise: what a learner reads after a mistake."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from minivim.course.exercises import check
from minivim.course.exercises.checking import EXERCISES, compare, exercise
from minivim.course.exercises.finding import exercises_of
from minivim.course.exercises.guarding import MOST_PRINTED, Abandoned
from minivim.course.exercises.judging import judge

A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
H = torch.tensor([1.0, -1.0])
LONG = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0])
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


# ---- right answers of other types ------------------------------------------------------------------------------------


def verdict_on(expected, answer, tolerance=1e-6):
    """What a checker of one comparison says."""
    exercise("97.3", "A value")(lambda ask: compare(ask(), expected, "it", tolerance))
    try:
        return judge("97.3", answer)
    finally:
        del EXERCISES["97.3"]


OTHER_TYPES = [
    (2.5, np.array(2.5)),
    (2.5, np.float64(2.5)),
    (0.1, np.float32(0.1)),
    (2.5, torch.tensor(2.5)),
    (2.5, Fraction(5, 2)),
    (3, np.int64(3)),
    (3, np.array(3)),
    (3, 3.0),
    (True, np.bool_(True)),
    (2 + 1j, np.complex64(2 + 1j)),
    ((1.0, 2.0), np.array([1.0, 2.0])),
    ([1.0, 2.0], torch.tensor([1.0, 2.0])),
    ((1.0, 2.0), [np.array(1.0), np.float32(2.0)]),
    ({"a": 2}, {"a": np.int32(2)}),
    (LONG, LONG.numpy()),
    (LONG, LONG.flip(0).numpy()[::-1]),
    (torch.tensor(2.5), np.array(2.5)),
]


@pytest.mark.parametrize(("expected", "found"), OTHER_TYPES)
def test_right_answers_of_other_types_pass(expected, found):
    assert verdict_on(expected, lambda: found, 1e-12).status == "ok"


@pytest.mark.parametrize(("expected", "found"), [(2.5, np.array([2.5])), (2.5, np.array(2.6)), (LONG, LONG.tolist())])
def test_other_shapes_and_numbers_do_not(expected, found):
    assert verdict_on(expected, lambda: found).status == "fix"


# ---- nothing makes the comparison loose ------------------------------------------------------------------------------


@pytest.mark.parametrize("coarse", [torch.bfloat16, torch.float16])
def test_a_coarse_default_type_loosens_nothing(coarse):
    def checker(ask):
        compare(ask(torch.tensor(0.3)), torch.tensor(0.3) + 0.25, "the sum")
        compare(ask(0.3), 0.55, "the sum of floats")

    def nearly(x):
        torch.set_default_dtype(coarse)
        return x + (0.25 if isinstance(x, float) else 0.2503)

    def right(x):
        torch.set_default_dtype(coarse)
        return x + 0.25

    exercise("97.3", "A sum")(checker)
    before = torch.get_default_dtype()
    try:
        assert (judge("97.3", nearly).status, judge("97.3", right).status) == ("fix", "ok")
        torch.set_default_dtype(coarse)
        assert (judge("97.3", nearly).status, judge("97.3", right).status) == ("fix", "ok")
        assert torch.get_default_dtype() == coarse  # the notebook's own choice stays
    finally:
        torch.set_default_dtype(before)
        del EXERCISES["97.3"]


@pytest.mark.parametrize("found", [torch.tensor(INFINITY).half(), torch.tensor(257.0).bfloat16(), float("1e400")])
def test_a_number_that_a_type_cannot_hold_is_not_the_right_one(found):
    assert verdict_on(70_000, lambda: found).status == "fix"
    assert verdict_on(257, lambda: found).status == "fix"
    assert verdict_on(70_000.0, lambda: found).status == "fix"


def test_what_no_console_can_print_is_spelled_out(capsys):
    check("97.1", lambda A, h: print("odd \ud800") or A @ h)
    check("97.1", lambda A, h: "odd \udfff")
    check("odd \ud800", torch.mv)
    capsys.readouterr().out.encode("utf-8")
    assert "odd \\ud800" in judge("97.1", lambda A, h: print("odd \ud800") or A @ h).printed


@pytest.mark.parametrize(
    ("given", "remedy"), [([1.0], "list(x)"), ({"a": 1}, "dict(x)"), (torch.ones(1), "x.clone()")], ids=repr
)
def test_a_copy_is_advised_that_the_argument_has(given, remedy):
    def writing(x):
        x["a" if isinstance(x, dict) else 0] = 5

    exercise("97.3", "Writes")(lambda ask: ask(given))
    try:
        assert judge("97.3", writing).message.endswith(f"work on a copy, such as {remedy}")
    finally:
        del EXERCISES["97.3"]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_an_argument_whose_nan_or_infinity_was_replaced_is_a_changed_argument(index):
    numbers = torch.tensor([NAN, INFINITY, -INFINITY])

    @exercise("99.8", "changes nothing")
    def _(answer):
        answer(numbers.clone())

    def tidy(x):
        x[index] = x.nan_to_num()[index]
        return x

    try:
        verdict = judge("99.8", tidy)
        assert verdict.status == "fix" and "clone" in verdict.message
        assert judge("99.8", lambda x: x).status == "ok"
    finally:
        del EXERCISES["99.8"]


def test_an_exercise_that_cannot_be_loaded_is_not_the_answers_fault(monkeypatch):
    def broken(number):
        raise ImportError("no module named x")

    monkeypatch.setattr("minivim.course.exercises.judging.find_exercise", broken)
    verdict = judge("05.2", lambda x: x)
    assert verdict.message == "the exercise cannot be loaded (ImportError: no module named x)"
