"""What the fields of every configuration are held to: a ValueError names the field, what it was and what it must be.

And how a sentence shows what came from a stranger's file: in a few words, none of which a terminal would obey.
"""

import math
import os
import reprlib
import sys
import warnings
from collections.abc import Iterable, Sequence

LARGEST = 10**9  # of a count that has no smaller bound
MOST_THREADS = MOST_WORKERS = 1024  # far more than help, and few enough for any system to start
LARGEST_SIDE = 8192  # of an image, in pixels
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60


def printable(text: str, kept: str = "") -> str:
    """`text` with every character escaped that a terminal obeys or cannot show: controls, newlines, lone surrogates.

    kept: those that stay as they are.
    """
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """`value` as Python writes it, cut to a few dozen characters, all printable."""
    return printable(SHORT.repr(value))


def listed(names: Iterable[object], most: int = 3) -> str:
    """The first few names, each printable and cut, and how many more there are."""
    texts = [str(name) for name in names]
    cut = [printable(text if len(text) <= 80 else f"{text[:50]}...{text[-27:]}") for text in texts[:most]]
    return ", ".join(cut) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def is_first_process() -> bool:
    """Whether this is the first of torchrun's processes, or a lone one: the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def notify(sentence: str) -> None:
    """Warn of a choice made for the user, at the line outside the package that led to it; of several processes once."""
    if not is_first_process():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "minivim":
        level, frame = level + 1, frame.f_back
    warnings.warn(sentence, stacklevel=level)


def shortened(text: str, most: int) -> str:
    """`text` with its middle left out where it is longer than `most` characters."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def check_whole(name: str, value: object, minimum: int = 1, maximum: int = LARGEST) -> None:
    """Raise a ValueError that names the field unless `value` is a whole number from `minimum` to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number of at least {minimum}")
    if value > maximum:
        raise ValueError(f"{name} is {shown(value)}; it must be a whole number of at most {maximum:,}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise a ValueError that names the field unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(map(repr, choices))}")


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
