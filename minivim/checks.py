"""What the fields of every configuration are held to: a ValueError names the field, what it was and what it must be."""

from collections.abc import Sequence


def check_whole(name: str, value: object, minimum: int = 1) -> None:
    """Raise a ValueError that names the field unless `value` is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {minimum}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise a ValueError that names the field unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
