"""What a checker is made of: `exercise` registers it, `compare` and `demand` say what is wrong.

A checker is a function of one argument, the learner's function. It calls that function with tensors, numbers, strings,
None, and tuples, lists and dicts of these; it gets the same back. The first thing that is wrong ends it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Num, Shaped
from torch import Tensor

ROUNDING = 256 * torch.finfo(torch.float32).eps  # 3e-5 of the largest number: what some hundred steps in float32 lose
CLEARLY = 1e-4  # a mistake is named only where its value differs from the right one by more
WIDEST = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}


class Wrong(Exception):
    """The answer is wrong; the text says how."""


class Todo(Exception):
    """The answer is still `raise NotImplementedError("your turn")`."""


@dataclass(frozen=True)
class Exercise:
    """A number such as "01.2", a title, and the checker: a function that raises Wrong."""

    number: str
    title: str
    checker: Callable


EXERCISES: dict[str, Exercise] = {}  # all that have been loaded; a chapter loads when one of its numbers is asked for


def exercise(number: str, title: str) -> Callable:
    """Register the decorated checker. ValueError if `number` is not of the form "01.2" or is taken."""
    if not re.fullmatch(r"\d\d\.[1-9]\d*", number):
        raise ValueError(f'number is {number!r}; it must be a chapter and a count, such as "01.2"')

    def register(checker: Callable) -> Callable:
        known = EXERCISES.get(number)
        if known and origin(known.checker) != origin(checker):  # equal when a module is loaded again
            raise ValueError(f"number is {number!r}; it must differ from that of {known.title!r}")
        EXERCISES[number] = Exercise(number, title, checker)
        return checker

    return register


def origin(function: Callable) -> tuple[str, str]:
    """Where a function was written: module and name."""
    return function.__module__, function.__qualname__


def demand(condition: object, sentence: str) -> None:
    """Raise Wrong with `sentence` unless `condition` holds."""
    if not bool(condition):
        raise Wrong(sentence)


def compare(
    found: object,
    expected: object,
    what: str,
    tolerance: float = 1e-6,
    given: str | None = None,
    causes: Mapping | None = None,
) -> None:
    """Raise Wrong unless `found` equals `expected`.

    Numbers may differ by `tolerance`: absolute where the expected number is below 1, relative above; float32 also by
    its own rounding (ROUNDING). A number counts as a tensor of no dimensions, and a tensor as a list of its parts where
    a list is expected; the type of floating-point number does not matter. `what` names the value in words ("the state
    after one step"), `given` says what the function was called with, and `causes` maps a likely mistake ("you used A
    transposed") to the wrong value that it gives: the message names the mistake whose value was found, if that value
    clearly is not the right one and no other mistake gives it.
    """
    difference = find_difference(found, expected, what, tolerance)
    if difference is None:
        return
    lines = [difference, *([f"given {given}"] if given else [])]
    likely = only_cause(found, expected, causes or {}, tolerance)
    likely = likely or only_cause(*first_difference(found, expected, tolerance), None, tolerance)
    raise Wrong("\n".join([*lines, *([f"likely cause: {likely}"] if likely else [])]))


def only_cause(found: object, expected: object, causes: Mapping | None, tolerance: float) -> str | None:
    """The one cause whose value was found; None if there is none, or the numbers do not tell it from another.

    `causes` None stands for the mistakes that every exercise invites.
    """
    causes = common_causes(found, expected) if causes is None else causes
    likely = {cause: value for cause, value in causes.items() if is_close(found, value, tolerance)}
    likely = {cause: value for cause, value in likely.items() if not is_close(value, expected, CLEARLY)}
    return next(iter(likely)) if len(likely) == 1 else None


def is_close(found: object, expected: object, tolerance: float) -> bool:
    """Whether nothing differs by more than `tolerance`."""
    return find_difference(found, expected, "", tolerance) is None


def first_difference(found: object, expected: object, tolerance: float) -> tuple[object, object]:
    """The first part of tuples, lists and dicts that differs, as found and as expected; all of it if none has parts."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping) and set(found) == set(expected):
        pairs = [(found[key], expected[key]) for key in expected]
    elif isinstance(found, (tuple, list)) and isinstance(expected, (tuple, list)) and len(found) == len(expected):
        if all(isinstance(part, (int, float)) for part in (*found, *expected)):  # its order may be what is wrong
            return torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
        pairs = list(zip(found, expected, strict=True))
    else:
        return found, expected
    return first_difference(*next(pair for pair in pairs if not is_close(*pair, tolerance)), tolerance)


def common_causes(found: object, expected: object) -> dict[str, object]:
    """Mistakes that every exercise invites, and the values that they give."""
    if isinstance(expected, bool) or not isinstance(expected, (Tensor, int, float, complex)):
        return {}
    expected = as_tensor(expected)
    if expected.dtype == torch.bool or not expected.numel():
        return {}
    causes = {"the sign is the other way round": -expected, "it is twice what it must be": 2 * expected}
    causes["it is half of what it must be"] = expected / 2
    if expected.dim() >= 1:
        causes["the order is reversed along the first dimension"] = expected.flip(0)
    if expected.dim() >= 2:
        causes["the last two dimensions are swapped"] = expected.transpose(-1, -2)
        causes["the order is reversed along the second dimension"] = expected.flip(1)
    return causes | shifted(found, expected)


def shifted(found: object, expected: Num[Tensor, "..."]) -> dict[str, Tensor]:
    """`expected` one step late and early along its first and last dimension; what comes from outside is as found."""
    if not isinstance(found, Tensor) or found.shape != expected.shape or kind(found) > kind(expected):
        return {}
    causes = {}
    for dimension, name in {0: "first", expected.dim() - 1: "last"}.items():
        if expected.dim() and expected.shape[dimension] >= 4:  # three numbers that fit are no accident
            inner, last = expected.shape[dimension] - 1, expected.shape[dimension] - 1
            late = found.narrow(dimension, 0, 1), expected.narrow(dimension, 0, inner)
            early = expected.narrow(dimension, 1, inner), found.narrow(dimension, last, 1)
            where = f" along the {name} dimension" if expected.dim() > 1 else ""
            causes[f"all comes one step late{where}"] = torch.cat(late, dimension)
            causes[f"all comes one step early{where}"] = torch.cat(early, dimension)
    return causes


def find_difference(found: object, expected: object, what: str, tolerance: float) -> str | None:
    """What differs, in one or two lines; None if nothing does."""
    if found is None and expected is not None:
        return f"{what}: yours is None; does your function end without `return`?"
    if isinstance(expected, Mapping):
        return difference_of_mappings(found, expected, what, tolerance)
    if isinstance(expected, (tuple, list)):
        return difference_of_sequences(found, expected, what, tolerance)
    if isinstance(expected, (Tensor, bool, int, float, complex)):
        return difference_of_numbers(found, expected, what, tolerance)
    return None if found == expected else f"{what}: yours is {brief(found)}; it must be {brief(expected)}"


def difference_of_mappings(found: object, expected: Mapping, what: str, tolerance: float) -> str | None:
    """As find_difference, where a dict is expected."""
    if not isinstance(found, Mapping):
        return f"{what}: yours is {describe(found)}; it must be a dict with the keys {', '.join(map(repr, expected))}"
    if set(found) != set(expected):
        return f"{what}: yours has the keys {sorted(map(repr, found))}; it must have {sorted(map(repr, expected))}"
    parts = (find_difference(found[key], expected[key], f"{what}[{key!r}]", tolerance) for key in expected)
    return next((part for part in parts if part), None)


def difference_of_sequences(found: object, expected: tuple | list, what: str, tolerance: float) -> str | None:
    """As find_difference, where a tuple or a list is expected; either will do."""
    if isinstance(found, Tensor) and found.shape[:1] == (len(expected),):
        found = list(found)
    if not isinstance(found, (tuple, list)):
        return f"{what}: yours is {describe(found)}; it must be a {type(expected).__name__} of {len(expected)} values"
    if len(found) != len(expected):
        return f"{what}: yours has {len(found)} values; it must have {len(expected)}"
    parts = (
        find_difference(*pair, f"{what}[{i}]", tolerance) for i, pair in enumerate(zip(found, expected, strict=True))
    )
    return next((part for part in parts if part), None)


def difference_of_numbers(found: object, expected: object, what: str, tolerance: float) -> str | None:
    """As find_difference, where a tensor or a number is expected."""
    if not isinstance(found, (Tensor, bool, int, float, complex)):
        return f"{what}: yours is {describe(found)}; it must be {describe(expected)}"
    exact, number = as_tensor(expected), as_tensor(found)
    if number.shape != exact.shape:
        return f"{what}: yours is {describe(found)}; it must be {describe(expected)}"
    whole = number.dim() == 0 and kind(number) == 1 and kind(exact) == 0 and exact.dtype != torch.bool
    if kind(number) > kind(exact) and not whole or (exact.dtype == torch.bool) != (number.dtype == torch.bool):
        remedy = "; take .real" if number.is_complex() else ""
        return f"{what}: yours has {name_of(number)}; it must have {name_of(exact)}{remedy}"
    wide = torch.complex128 if exact.is_complex() else torch.float64
    remark = coarseness(number, exact)
    rounding = ROUNDING if number.dtype in (torch.float32, torch.complex64) else 0.0
    return difference_of_values(number.to("cpu", wide), exact.to("cpu", wide), what, tolerance, rounding, remark)


def as_tensor(value: object) -> Shaped[Tensor, "..."]:
    """A tensor as it is; a number with all its digits, whatever the default type of tensors is."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=next(dtype for number, dtype in WIDEST.items() if isinstance(value, number)))


def difference_of_values(
    found: Num[Tensor, "*shape"],
    exact: Num[Tensor, "*shape"],
    what: str,
    tolerance: float,
    rounding: float,
    remark: str,
) -> str | None:
    """The first bad number, how many there are, and the largest error; `remark` is added; None if none is bad.

    An error up to `rounding` times the largest expected number is none.
    """
    place = f", first at {index_of(found.isnan())}" if found.isnan().any() and found.dim() else ""
    if bool((found.isnan() & ~exact.isnan()).any()):
        return f"{what}: yours is NaN (not a number){place}"
    error = torch.where((found == exact) | (found.isnan() & exact.isnan()), 0.0, (found - exact).abs())
    size = exact.abs().nan_to_num(posinf=0.0)  # infinity allows infinity only
    allowed = (tolerance * size.clamp(min=1)).clamp(min=rounding * size.max() if size.numel() else 0.0)
    bad = ~(error <= allowed)  # not `>`, so that NaN counts as bad
    if not bool(bad.any()):
        return None
    if found.dim() == 0:
        return f"{what}: {both_texts(found, exact)}{remark}"
    place = tuple(bad.nonzero()[0].tolist())
    count = f"{int(bad.sum())} of {bad.numel()} numbers differ; largest error {error.max().item():.2g}{remark}"
    return f"{what}, first difference at {list(place)}: {both_texts(found[place], exact[place])}\n{count}"


def coarseness(found: Shaped[Tensor, "..."], exact: Shaped[Tensor, "..."]) -> str:
    """What the type of the found numbers cannot hold, for the end of a line; empty if nothing."""
    if kind(found) < kind(exact):
        return f"\nyours has {name_of(found)}, expected are {name_of(exact)}"
    if kind(found) > 0 and found.dtype.itemsize < exact.dtype.itemsize:
        return f"\nyours is {name_of_dtype(found)}, expected is {name_of_dtype(exact)}"
    return ""


def name_of_dtype(tensor: Shaped[Tensor, "..."]) -> str:
    """Such as float32."""
    return str(tensor.dtype).removeprefix("torch.")


def kind(tensor: Shaped[Tensor, "..."]) -> int:
    """0 for whole numbers and booleans, 1 for real numbers, 2 for complex ones."""
    return 2 if tensor.is_complex() else int(tensor.is_floating_point())


def name_of(tensor: Shaped[Tensor, "..."]) -> str:
    """The type of a tensor's numbers in words."""
    return (
        "True and False"
        if tensor.dtype == torch.bool
        else ("whole numbers", "real numbers", "complex numbers")[kind(tensor)]
    )


def index_of(mask: Bool[Tensor, "..."]) -> str:
    """The first place where `mask` holds, as "[1, 2]"."""
    return str(mask.nonzero()[0].tolist())


def both_texts(found: Num[Tensor, ""], exact: Num[Tensor, ""]) -> str:
    """Two numbers with six significant digits, or with as many more as show that they differ."""
    for digits in (6, 9, 17):
        texts = number_text(found, digits), number_text(exact, digits)
        if texts[0] != texts[1]:
            break
    return f"yours {texts[0]}, expected {texts[1]}"


def number_text(number: Num[Tensor, ""], digits: int) -> str:
    """A number with that many significant digits."""
    value = number.item()
    if isinstance(value, complex):
        return f"{value.real:.{digits}g}{value.imag:+.{digits}g}j"
    return f"{value:.{digits}g}"


def describe(value: object) -> str:
    """What a value is, without its numbers."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}" if value.dim() else "a number"
    if isinstance(value, bool):
        return "True or False"
    if isinstance(value, (int, float, complex)):
        return "a number"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)} values"
    return brief(value) if isinstance(value, (str, type(None))) else f"a {type(value).__name__}"


def brief(value: object) -> str:
    """A value in at most 80 characters."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else describe(value)
    return text if len(text) <= 80 else text[:77] + "..."
