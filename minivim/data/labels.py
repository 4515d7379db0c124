"""The labels of a table's column: which class each row has, which rows have none, what cannot be a label."""

from collections.abc import Sequence
from typing import Any

import torch

from minivim.checks import notify
from minivim.data.notices import quoted, quoted_list
from minivim.data.parts import Part, take

MISSING_SHARE = 0.01  # a larger share of rows without a label is a mistake, not a gap


def read_labels(
    source: str, column: str, values: dict[str, list], names: Sequence[str] | None
) -> tuple[dict[str, list[int | None]], list[str]]:
    """The class of each row of each part (None: it has none), and the classes.

    values: what the column holds, for each part. names: the names of the classes 0, 1, ... if the column has them;
    else the classes are the values of the training part, sorted. Whole floats count as integers.
    Raises ValueError for what is no label, and for a class that the training part does not have.
    """
    where = f"data is {quoted(source)} whose label column {quoted(column)}"
    plain = {part: _plain(where, rows, names) for part, rows in values.items()}
    known = list(range(len(names))) if names else sorted(set(plain["train"]) - {None})
    if -1 not in known:  # how sets without names mark a split without labels
        plain = {part: [None] * len(rows) if set(rows) == {-1} else rows for part, rows in plain.items()}
    number_of = {value: number for number, value in enumerate(known)} | {None: None}
    for part, rows in plain.items():
        if unknown := sorted(set(rows) - number_of.keys()):
            asked = f"from 0 to {len(names) - 1}" if names else "those of the training rows"
            raise ValueError(f"{where} holds {quoted_list(unknown)} in its {part} rows; its classes must be {asked}")
    return {part: [number_of[value] for value in rows] for part, rows in plain.items()}, [
        str(name) for name in names or known
    ]


def _plain(where: str, rows: list, names: Sequence[str] | None) -> list:
    """Integers, truth values or strings; None where there is no label."""
    try:
        meaning = {value: _label(where, value) for value in set(rows)}
    except TypeError as error:  # lists and dicts have no hash
        raise ValueError(f"{where} holds {type(rows[0]).__name__}s; it must hold one class a row") from error
    if names:
        meaning = {value: None if label == -1 else label for value, label in meaning.items()}
    return [meaning[value] for value in rows]


def _label(where: str, value: Any) -> Any:
    if value is None or value == "" or value != value:  # not a number is not equal to itself
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, bool | int | str):
        raise ValueError(f"{where} holds {quoted(value)}; it must hold whole numbers or names")
    return value


def with_labels_only(source: str, items: dict[str, Sequence], labels: dict[str, list[int | None]]) -> dict[str, Part]:
    """The parts without the rows that have no label, which are counted and said.

    A test or validation part without any label is no part. Raises ValueError where more than 1 row in 100 has none.
    """
    parts = {}
    for part, numbers in labels.items():
        missing = numbers.count(None)
        if missing == len(numbers) > 0 and part != "train":
            notify(f"data is {quoted(source)}: its {missing} {part} images are left out, they have no labels")
            continue
        if missing > MISSING_SHARE * len(numbers):
            raise ValueError(
                f"data is {quoted(source)}, where {missing} of {len(numbers)} {part} rows have no label; at most 1 in "
                "100 may have none"
            )
        if missing:
            notify(
                f"data is {quoted(source)}: {missing} of {len(numbers)} {part} rows are left out, they have no label"
            )
        filled = torch.tensor([-1 if number is None else number for number in numbers], dtype=torch.int64)
        parts[part] = take(Part(items[part], filled), torch.nonzero(filled >= 0)[:, 0])
    return parts
