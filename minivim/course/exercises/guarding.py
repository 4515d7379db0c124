"""An answer kept apart from its checker: it gets copies, prints into a sink, and raises only what a checker may see."""

import inspect
import io
import linecache
import math
import warnings
from collections.abc import Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from minivim.course.exercises.checking import Todo, Wrong

YOUR_TURN = "your turn"  # what the open exercise says: raise NotImplementedError("your turn")
MOST_PRINTED = 2000  # characters kept of what an answer prints
MOST_SHOWN = 300  # characters of a foreign error message that are passed on


class Abandoned(BaseException):
    """The answer can no longer be reached: the one thing besides Ctrl-C that `judge` lets through."""


class Sink(io.TextIOBase):
    """A stream that keeps the beginning of what is written, however much that is."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def write(self, text: str) -> int:
        """Keep what fits."""
        self.text += text[: MOST_PRINTED - len(self.text)]
        return len(text)


@contextmanager
def own_numbers():
    """PyTorch's random numbers from a fixed seed, new tensors in float32 at least; afterwards all is as it was."""
    dtype = torch.get_default_dtype()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            torch.set_default_dtype(torch.promote_types(dtype, torch.float32))  # a checker in bfloat16 sees no mistake
            yield
    finally:
        torch.set_default_dtype(dtype)


class Guarded:
    """A function that gets copies of its arguments, prints into `sink`, and raises only Wrong, Todo and Abandoned."""

    def __init__(self, function: object) -> None:
        self.function, self.sink, self.calls = function, Sink(), 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        check_call(self.function, arguments, options)
        given = copied((arguments, options))
        with redirect_stdout(self.sink), redirect_stderr(self.sink), warnings.catch_warnings(), own_numbers():
            warnings.simplefilter("ignore")
            result = self.run(*given)
        check_unchanged(self.function, given, (arguments, options))
        return plain(result)

    def run(self, arguments: tuple, options: dict) -> object:
        """Call the function; what it raises becomes Todo or Wrong."""
        try:
            return self.function(*arguments, **options)
        except (KeyboardInterrupt, Abandoned, Todo, Wrong):
            raise
        except BaseException as error:
            if isinstance(error, NotImplementedError) and str(error) == YOUR_TURN:
                raise Todo from None
            raise Wrong(describe_exception(self.function, error)) from None


def check_call(function: object, arguments: tuple, options: dict) -> None:
    """Wrong if the function cannot be called, or does not take these arguments."""
    if not callable(function):
        raise Wrong(f"check was given a {type(function).__name__}; it must be given your function, without brackets")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some functions written in C have none
        return
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        count = len(arguments) + len(options)
        raise Wrong(f"your function takes {signature} but is called with {count} arguments ({error})") from None


def copied(value: object) -> object:
    """The same value with no tensor and no container in common."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(part) for key, part in value.items()}
    return type(value)(map(copied, value)) if type(value) in (tuple, list) else value


def describe_exception(function: object, error: BaseException) -> str:
    """What the function raised and the line of its own code where that happened."""
    text = f"your function raised {named(error)}"
    code = getattr(inspect.unwrap(function), "__code__", None)
    trace, line = error.__traceback__, None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if code is not None and file == code.co_filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None:
        return text
    source = linecache.getline(code.co_filename, line).strip()
    return f"{text}\nin line {line} of your code: {source}".removesuffix(": ")


def named(error: BaseException) -> str:
    """An exception's name and message in one line."""
    return f"{type(error).__name__}: {shorten(error)}".removesuffix(": ")


def shorten(error: BaseException) -> str:
    """An error message as one line without control characters."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # an exception class may fail at this, too
        return "(its message cannot be read)"
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: MOST_SHOWN + 1])
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def check_unchanged(function: object, given: tuple, original: tuple) -> None:
    """Wrong if the function has written into an argument."""
    (arguments, options), (before, options_before) = given, original
    try:
        names = list(inspect.signature(function).parameters)
    except (ValueError, TypeError):
        names = []
    pairs = [*zip(arguments, before, strict=True), *((options[key], options_before[key]) for key in options)]
    names = [*names[: len(arguments)], *(f"number {i + 1}" for i in range(len(names), len(arguments))), *options]
    for name, (now, then) in zip(names, pairs, strict=True):
        if not same(now, then):
            copy = f"{name}.clone()" if isinstance(then, Tensor) else f"{type(then).__name__}({name})"
            raise Wrong(f"your function changes its argument {name}; work on a copy, such as {copy}")


def same(first: object, second: object) -> bool:
    """Whether two arguments are equal, number by number where they are tensors; NaN equals NaN and nothing else."""
    if isinstance(first, Tensor):
        if first.shape != second.shape or not torch.equal(first.isnan(), second.isnan()):
            return False
        infinities = {"posinf": math.inf, "neginf": -math.inf} if first.is_floating_point() else {}
        return torch.equal(first.nan_to_num(**infinities), second.nan_to_num(**infinities))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second or first != first  # NaN


def plain(value: object) -> object:
    """The value as tensors without autograd; NumPy's arrays and numbers become PyTorch's and Python's."""
    if isinstance(value, Tensor):
        return value.detach().resolve_conj().resolve_neg()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, (np.float32, np.complex64)):
        return torch.from_numpy(np.array(value))  # so that its type is known
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Fraction):
        return float(value)
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return (list if isinstance(value, list) else tuple)(map(plain, value))
    return value
