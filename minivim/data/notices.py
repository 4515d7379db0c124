"""How the sentences of the loader show names and reasons: harmless, short, without the addresses of objects."""

import re
from collections.abc import Sequence

from minivim.checks import shortened

LONGEST = 100  # characters of a name or of a reason in a sentence


def quoted(name: object) -> str:
    """A name in quotes: control characters and bytes that are no text as escapes, the middle left out if long."""
    return shortened(repr(str(name)), LONGEST)


def quoted_list(names: Sequence[object], longest: int = 3) -> str:
    """The first names in quotes, and how many there are beside them."""
    shown = ", ".join(shortened(repr(str(name)), 40) for name in names[:longest])
    return shown if len(names) <= longest else f"{shown} and {len(names) - longest} more"


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, shortened, without the addresses of objects."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "it", text.splitlines()[0])
    return shortened(line.encode("unicode_escape").decode(), 120)
