"""The parts of a set, training, validation, test: what a split's name says, how parts are cut, which classes stay."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from minivim.checks import shown
from minivim.data.notices import quoted, quoted_list

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev"),
    "test": ("test", "testing"),
}
WORDS = {"train": "training", "test": "test", "val": "validation"}
PART_OF = {name: part for part, names in SPLIT_NAMES.items() for name in names}


class Part(NamedTuple):
    """The images and labels of one part: a tensor (M, 3, H, W), or a sequence of undecoded items."""

    items: Sequence | Tensor
    labels: Int64[Tensor, " M"]


class Rows(Sequence):
    """Some rows of a sequence, by number; nothing is copied."""

    def __init__(self, items: Sequence, rows: list[int]):
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.items[self.rows[index]]


def take(part: Part, rows: Int64[Tensor, " K"]) -> Part:
    """The rows of a part."""
    items = part.items[rows] if isinstance(part.items, Tensor) else Rows(part.items, rows.tolist())
    return Part(items, part.labels[rows])


def spaced(count: int, most: int) -> range:
    """At most `most` of the numbers below count, evenly spaced, the first one 0."""
    return range(0, count, max(1, -(-count // most)))


def split_name(text: str) -> str | None:
    """The one split name among the words of a file's or folder's name, as it is written; None if there is none."""
    found = {word for word in re.findall(r"[^\W\d_]+", text) if word.casefold() in PART_OF}
    return found.pop() if len(found) == 1 else None


def by_part(source: str, names: Iterable[str]) -> dict[str, str]:
    """{"train", "val", "test": the name that stands for it}. ValueError where two names stand for one part."""
    parts: dict[str, str] = {}
    for name in names:
        part = PART_OF.get(name.casefold())
        if part in parts:
            raise ValueError(
                f"data is {quoted(source)} with {quoted(parts[part])} and {quoted(name)}, two names of one split; it "
                "must have one of them"
            )
        if part:
            parts[part] = name
    return parts


def check_has_training(source: str, parts: Mapping[str, str]) -> None:
    """Raise ValueError for a set whose splits lack the training images."""
    if "train" not in parts:
        raise ValueError(
            f"data is {quoted(source)} with the splits {quoted_list(sorted(parts.values()))} and none for training; it "
            "must have a split named train"
        )


def stratified_split(labels: Int[Tensor, " M"], share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Indices of the images that stay and of the `share` that is cut off: the same on every machine, each class alike.

    Every class keeps at least one image.
    """
    generator = np.random.RandomState(0)  # the legacy generator: its stream is frozen for ever
    kept, cut = [], []
    for label in labels.unique().tolist():
        members = generator.permutation(torch.nonzero(labels == label)[:, 0].numpy())
        count = min(round(len(members) * share), len(members) - 1)
        cut.append(torch.from_numpy(members[:count]))
        kept.append(torch.from_numpy(members[count:]))
    return torch.cat(kept).sort().values, torch.cat(cut).sort().values


def with_test(parts: dict[str, Part]) -> dict[str, Part]:
    """The parts with a test part: the validation part where there is no other, else a fifth of the training images."""
    if "test" in parts:
        return parts
    if "val" in parts:
        return {"train": parts["train"], "test": parts["val"]}
    kept, cut = stratified_split(parts["train"].labels)
    return {"train": take(parts["train"], kept), "test": take(parts["train"], cut)}


def with_less_training(parts: dict[str, Part], share: float) -> dict[str, Part]:
    """The parts with that share of the training images, of each class as many, rounded, at least one."""
    if share == 1:
        return parts
    kept, _ = stratified_split(parts["train"].labels, 1 - share)
    return parts | {"train": take(parts["train"], kept)}


def with_validation(parts: dict[str, Part], share: float) -> dict[str, Part]:
    """The parts with a validation part where share > 0: the set's own, else that share of the training images."""
    if share == 0 or "val" in parts:
        return parts
    labels = parts["train"].labels
    kept, cut = stratified_split(labels, share)
    if len(cut) == 0:  # too few for the share: one image of the largest class
        largest = torch.nonzero(labels == labels.bincount().argmax())[:, 0]
        if len(largest) < 2:
            raise ValueError(f"val_share is {share} but every class has one image only; it must be 0")
        cut = largest[:1]
        kept = torch.nonzero(torch.arange(len(labels)) != cut)[:, 0]
    return parts | {"train": take(parts["train"], kept), "val": take(parts["train"], cut)}


# ---- a part of the classes -------------------------------------------------------------------------------------------


def wanted_classes(wanted: int | str | os.PathLike, classes: Sequence[str]) -> list[int]:
    """The numbers of the wanted classes: the first N, or those that a text file names, one a line, in its order."""
    text = str(wanted) if isinstance(wanted, int) else os.fspath(wanted)
    if isinstance(wanted, int) or re.fullmatch(r"[+-]?\d{1,18}", text):  # Python reads no number of 5,000 digits
        count = int(text)
        if not 2 <= count <= len(classes):
            raise ValueError(
                f"classes is {shown(count)}; it must be from 2 to {len(classes)}, the set's number of classes"
            )
        return list(range(count))
    try:
        lines = Path(text).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(
            f"classes is {quoted(text)}, which could not be read ({reason}); it must be a number or a text file"
        ) from error
    return _numbers(text, [line.strip() for line in lines if line.strip()], classes)


def _numbers(file: str, names: list[str], classes: Sequence[str]) -> list[int]:
    """The number of each class that is named, or given by its number where no class has that name."""
    number_of = {str(number): number for number in range(len(classes))}
    number_of |= {name.strip(): number for number, name in enumerate(classes)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise ValueError(
            f"classes is {quoted(file)}, which names {quoted_list(unknown)}; each line must be one of the set's "
            f"{len(classes)} classes, {quoted_list(classes)}"
        )
    numbers = [number_of[name] for name in names]
    if len(set(numbers)) < max(2, len(numbers)):
        raise ValueError(f"classes is {quoted(file)}; it must name at least two classes, each of them once")
    return numbers


def only_classes(part: Part, numbers: Sequence[int], total: int) -> Part:
    """The images of some of `total` classes, which are numbered anew in the order given."""
    new = torch.full((total,), -1)
    new[torch.tensor(numbers)] = torch.arange(len(numbers))
    rows = torch.nonzero(new[part.labels] >= 0)[:, 0]
    kept = take(part, rows)
    return kept._replace(labels=new[kept.labels])
