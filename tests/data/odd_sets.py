"""Odd image sets: pictures that know their class, class folders, parquet files, and what must come of them."""

import io
import itertools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from minivim.data import load_data

REDS = {"cat": 40, "dog": 200}
COUNTER = itertools.count()


@dataclass
class Case:
    """An odd set: how it is made in an empty folder, and what must come of it.

    expect: the numbers of training, test and perhaps validation images of cats and dogs, or words of the refusal.
    says: words of the warning; without them there must be none.
    """

    name: str
    make: Callable[[Path], Path | None]  # the set's folder, if it is not the one given
    expect: tuple[int, ...] | str
    says: str = ""
    classes: tuple[str, ...] = ("cat", "dog")
    options: dict = field(default_factory=dict)
    coloured: bool = True  # whether an image's red tells its class

    def fault(self, folder: Path) -> str | None:
        """What is wrong with what `load_data` makes of the set; None if nothing is."""
        folder.mkdir()
        source = self.make(folder) or folder
        options = {key: value(folder) if callable(value) else value for key, value in self.options.items()}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                data = load_data(source, **options)
            except (ValueError, FileNotFoundError) as error:
                return self._fault_of_refusal(str(error))
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return self._fault_of_data(data) or self._fault_of_notices([str(each.message) for each in said])

    def _fault_of_refusal(self, sentence: str) -> str | None:
        if not isinstance(self.expect, str):
            return f"refused: {sentence}"
        if not re.search(self.expect, sentence):
            return f"does not say {self.expect!r}: {sentence}"
        return unreadable(sentence)

    def _fault_of_data(self, data) -> str | None:
        if isinstance(self.expect, str):
            return f"not refused: {data.classes}, {len(data.train_labels)} training images"
        if data.classes != self.classes:
            return f"classes {data.classes}"
        parts = [(data.train_images, data.train_labels), (data.test_images, data.test_labels)]
        parts += [(data.val_images, data.val_labels)] if data.val_labels is not None else []
        counts = tuple(len(labels) for _, labels in parts)
        if counts != self.expect or counts != tuple(len(images) for images, _ in parts):
            return f"counts {counts}"
        if self.coloured and self.classes == ("cat", "dog"):
            reds = torch.tensor(list(REDS.values()))
            if any(((images[:, 0, 0, 0] - reds[labels]).abs() > 15).any() for images, labels in parts):
                return "images and labels do not belong together"
        return None

    def _fault_of_notices(self, said: list[str]) -> str | None:
        sentence = " / ".join(said)
        if bool(said) != bool(self.says) or not re.search(self.says, sentence):
            return f"says {sentence!r}, not {self.says!r}"
        return next((fault for each in said if (fault := unreadable(each))), None)


def unreadable(sentence: str) -> str | None:
    """Why a sentence is none for a terminal: too long, with control characters, with an object's address."""
    if len(sentence) > 300:
        return f"{len(sentence)} characters: {sentence}"
    if not sentence.isprintable() or " object at 0x" in sentence:
        return f"unprintable: {sentence!r}"
    return None


# ---- pictures --------------------------------------------------------------------------------------------------------


def picture(label: str = "cat", size: tuple[int, int] = (8, 8)) -> Image.Image:
    """A picture unlike all others, whose red tells its class."""
    number = next(COUNTER)
    return Image.new("RGB", size, (REDS.get(label, 90), number % 16 * 16, number // 16 % 16 * 16))


def encoded(label: str = "cat", kind: str = "png", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    picture(label, size).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, content: bytes | None = None) -> None:
    """Write a file, a picture if nothing else is given, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(path.parent.name) if content is None else content)


def tree(folder: Path, classes=("cat", "dog"), count: int = 5) -> None:
    for label, number in itertools.product(classes, range(count)):
        put(folder / label / f"{number}.png")


def trees(folder: Path, *names: str) -> None:
    for name in names:
        tree(folder / name)


def flat(folder: Path, count: int = 3) -> None:
    for number in range(count):
        put(folder / f"{number}.png")


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(path: Path, labels=("cat", "dog") * 5, features=None, pictures=("image",), **columns) -> None:
    """A parquet file: columns of pictures, a column `label`, and others."""
    names = [label if str(label) in REDS else ("cat", "dog")[index % 2] for index, label in enumerate(labels)]
    content = {column: [{"bytes": encoded(name), "path": None} for name in names] for column in pictures}
    content |= {"label": labels if isinstance(labels, pa.Array) else list(labels)} | columns
    made = pa.table(content)
    if features:
        schema = datasets.Features(features).arrow_schema
        made = pa.table({name: pa.array(content[name], schema.field(name).type) for name in content}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # pyarrow itself takes names for addresses
        pq.write_table(made, file)


def tables(folder: Path, *names: str) -> None:
    for name in names:
        table(folder / name)


def labels_only(folder: Path, labels, test=None, names=None) -> None:
    """train.parquet, and test.parquet if there are labels for it; with the names of classes if they are given."""
    features = names and {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    for split, values in (("train", labels), ("test", test)):
        if values is not None:
            table(folder / f"{split}.parquet", values, features)


def columns_only(folder: Path, features: dict, **columns) -> None:
    """train.parquet with a column of pictures, and these."""
    content = {"image": [{"bytes": encoded(("cat", "dog")[row % 2]), "path": None} for row in range(10)]} | columns
    datasets.Dataset.from_dict(content, features=datasets.Features(features)).to_parquet(folder / "train.parquet")


def grey(folder: Path, value: float, kind: type, suffix: str = "tiff") -> None:
    """Cats all `value`, dogs all zero, as images of one channel of some type."""
    for label, level in (("cat", value), ("dog", 0)):
        for number in range(5):
            samples = np.full((8, 8), level, dtype=kind)
            samples[number, 0] = 0
            (folder / label).mkdir(exist_ok=True)
            Image.fromarray(samples).save(folder / label / f"{number}.{suffix}")


def made_by(function: Callable, *arguments, **options) -> Callable[[Path], None]:
    """A `make` that calls function(folder, ...)."""
    return lambda folder: partial(function, folder)(*arguments, **options)
