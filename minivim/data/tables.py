"""Tables with a column of images and one of labels: parquet files, and what the datasets library has loaded."""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from minivim.checks import notify
from minivim.data.labels import read_labels, with_labels_only
from minivim.data.notices import quoted, quoted_list, reason_of
from minivim.data.parts import Part, by_part, check_has_training, split_name
from minivim.extras import require


class Columns(NamedTuple):
    """The names of the columns to read; None: found by their types."""

    image: str | None = None
    label: str | None = None


class ImageColumn(Sequence):
    """The undecoded images of a column of a datasets.Dataset, read from its memory-mapped Arrow table."""

    def __init__(self, dataset: Any, column: str, part: str):
        self.values, self.part = dataset.data.column(column), part

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index):
        record = self.values[index].as_py() or b""
        record = record if isinstance(record, dict) else {"bytes": record, "path": None}
        return {"bytes": record["bytes"], "path": record["path"] or f"row {index} of {self.part}"}

    def encoded(self, index: int) -> memoryview | None:
        """The bytes of an image as they lie in the table, not copied; None where the table has only a path."""
        found = self.values[index]
        found = found["bytes"] if hasattr(found, "keys") else found  # of a record; null if that is null
        return memoryview(found.as_buffer()) if found.is_valid else None


# ---- parquet files ---------------------------------------------------------------------------------------------------


def split_of_file(folder: Path, path: Path) -> tuple[str, Path] | None:
    """The split that a file's own name or the nearest folder's names, and the folder around it; None if there is none.

    train_0.parquet, data/test-00000-of-00001.parquet, default/train/0000.parquet.
    """
    below = path.relative_to(folder).with_suffix("").parts
    for depth in range(len(below), 0, -1):
        if name := split_name(below[depth - 1]):
            return name, folder.joinpath(*below[: depth - 1])
    return None


def read_tables(folder: Path, files: list[Path], columns: Columns) -> tuple[dict[str, Part], list[str]]:
    """The parts and the classes of parquet files below a folder."""
    places = {path: split_of_file(folder, path) for path in files}
    found = {path: place for path, place in places.items() if place}
    odd = [path.name for path in files if path not in found]
    if len(odd) == len(files):
        raise ValueError(
            f"data is {quoted(folder)} with no training files ({quoted_list(odd)}); a parquet file must be named after "
            "its split"
        )
    if odd:
        notify(f"data is {quoted(folder)}: left out are {quoted_list(odd)}, which name no split")
    parts = by_part(str(folder), sorted({name for name, _ in found.values()}))
    check_has_training(str(folder), parts)
    splits = {}
    for part, name in parts.items():
        of_part = [path for path, (split, _) in found.items() if split == name]
        around = sorted({found[path][1] for path in of_part})
        if len(around) > 1:
            shown = quoted_list([os.path.relpath(place, folder) for place in around])
            raise ValueError(f"data is {quoted(folder)} with {name} files in {shown}; it must be one of these folders")
        splits[part] = _load(of_part)
    return read_splits(str(folder), splits, columns)


def _rows(path: Path) -> int:
    """The number of rows of a parquet file."""
    pq = require("pyarrow.parquet", "train")
    try:
        with path.open("rb") as file:  # pyarrow itself takes some names for addresses
            return pq.read_metadata(file).num_rows
    except Exception as error:  # whatever a damaged file makes pyarrow raise
        raise ValueError(f"data file {quoted(path)} could not be read as parquet: {reason_of(error)}") from error


def _load(files: list[Path]) -> Any:
    """Parquet files as one datasets.Dataset, from the library's cache if these very files are there already."""
    full = [path for path in files if _rows(path)]
    if not full:
        raise ValueError(f"data file {quoted(files[0])} holds no rows; it must hold an image and a label in each")
    listing = require("datasets.data_files", "train")
    builder = require("datasets.packaged_modules.parquet.parquet", "train").Parquet
    # Not load_dataset: it takes names for patterns, and knows a file by its name and time, which copies keep.
    stamps = [_stamp(path) for path in full]
    listed = listing.DataFilesList([_address(path) for path in full], stamps)
    try:
        built = builder(data_files=listing.DataFilesDict({"train": listed}))
        built.download_and_prepare()
        return built.as_dataset(split="train")
    except Exception as error:
        cause = reason_of(error.__cause__ or error)
        raise ValueError(f"data file {quoted(full[0])} could not be read: {cause}") from error


def _address(path: Path) -> str:
    """The absolute path; where it contains "::", with which the library joins addresses, a link to it in its cache."""
    place = os.path.abspath(path)
    if "::" not in place:
        return place
    cache = Path(require("datasets", "train").config.HF_DATASETS_CACHE, "links")
    link = cache / f"{hashlib.blake2b(os.fsencode(place), digest_size=16).hexdigest()}.parquet"
    cache.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # made before, or just now by another process
        link.symlink_to(place)
    return str(link)


def _stamp(path: Path) -> tuple[str, ...]:
    """What changes whenever a file is replaced or written to: no tool can set the time of the change of an inode."""
    found = path.stat()
    return tuple(str(each) for each in (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))


# ---- columns ---------------------------------------------------------------------------------------------------------


def read_splits(source: str, splits: Mapping[str, Any], columns: Columns) -> tuple[dict[str, Part], list[str]]:
    """The parts and the classes of {part: datasets.Dataset}; the columns are found by their type."""
    features = splits["train"].features
    image = _column(source, "image", columns.image, features, _image_columns(features))
    label = _column(source, "label", columns.label, features, _label_columns(features))
    for part, dataset in splits.items():
        if image not in dataset.features:
            raise ValueError(f"data is {quoted(source)}, whose {part} rows have no column {quoted(image)}; they must")
    names = getattr(features[label], "names", None)
    for part, dataset in splits.items():
        others: list = getattr(dataset.features.get(label), "names", None) or names or []
        if names and others != names:
            odd = sorted(set(names) ^ set(others)) or ["in another order"]
            raise ValueError(
                f"data is {quoted(source)} with other classes in its {part} images ({quoted_list(odd)}); both must "
                "have the same"
            )
    values = {part: _values(dataset, label) for part, dataset in splits.items()}
    numbers, classes = read_labels(source, label, values, names)
    items: dict[str, Sequence] = {part: ImageColumn(dataset, image, part) for part, dataset in splits.items()}
    return with_labels_only(source, items, numbers), classes


def _values(dataset: Any, column: str) -> list:
    """What a column holds; nothing where the split does not have it."""
    return dataset.data.column(column).to_pylist() if column in dataset.features else [None] * len(dataset)


def _image_columns(features: Mapping) -> list[str]:
    """The columns that hold images: by type, whatever they are called; raw bytes where there is nothing better."""
    image = require("datasets", "train").Image
    found = [key for key, feature in features.items() if isinstance(feature, image) or _is_record(feature)]
    return found or [key for key, feature in features.items() if getattr(feature, "dtype", "") == "binary"]


def _is_record(feature: Any) -> bool:
    """Whether a feature is {"bytes", "path"}: an image column written without the datasets library's metadata."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _label_columns(features: Mapping) -> list[str]:
    """The columns that may hold labels: those with names of classes, else one called label, else whole numbers."""
    named = require("datasets", "train").ClassLabel
    kinds = {key: str(getattr(feature, "dtype", "")) for key, feature in features.items()}
    return (
        [key for key, feature in features.items() if isinstance(feature, named)]
        or [key for key in kinds if key.casefold() in ("label", "labels")]
        or [key for key, kind in kinds.items() if "int" in kind or kind == "bool"]
    )


def _column(source: str, kind: str, wanted: str | None, features: Mapping, candidates: list[str]) -> str:
    """The wanted column, or the only candidate."""
    if wanted is not None:
        if wanted not in features:
            raise ValueError(
                f"{kind}_column is {quoted(wanted)}; it must be one of the columns {quoted_list(list(features), 8)}"
            )
        return wanted
    if not candidates:
        article = "an" if kind == "image" else "a"
        raise ValueError(
            f"data is {quoted(source)} with the columns {quoted_list(list(features), 4)}; one of them must be "
            f"{article} {kind} column"
        )
    if len(candidates) > 1:
        raise ValueError(
            f"data is {quoted(source)} with several columns that may be the {kind} column, {quoted_list(candidates)}; "
            f"{kind}_column (--{kind}-column) must name one"
        )
    return candidates[0]
