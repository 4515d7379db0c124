"""How the loader speaks: strange names made harmless, long ones shortened, and what is left out said in one line."""

import sys
import warnings
from collections.abc import Sequence

LONGEST = 100  # characters of a name or of a reason in a sentence


def shortened(text: str, longest: int = LONGEST) -> str:
    """The text with its middle left out where it is too long."""
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def quoted(name: object) -> str:
    """A name in quotes: control characters and bytes that are no text as escapes, the middle left out if long."""
    return shortened(repr(str(name)))


def quoted_list(names: Sequence[object], longest: int = 3) -> str:
    """The first names in quotes, and how many there are beside them."""
    shown = ", ".join(shortened(repr(str(name)), 40) for name in names[:longest])
    return shown if len(names) <= longest else f"{shown} and {len(names) - longest} more"


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, shortened, without the addresses of objects."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return shortened(lines[0].strip(), 120)


def notice(sentence: str) -> None:
    """Say something that is no error: a warning that names the line outside this package that asked for the data."""
    depth, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "minivim":
        depth, frame = depth + 1, frame.f_back
    warnings.warn(sentence, UserWarning, stacklevel=depth)
