"""Folders of images: which files count, which folders are splits, which are classes; what is left out is said."""

import os
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from minivim.checks import notify
from minivim.data.images import is_image_name
from minivim.data.notices import quoted, quoted_list
from minivim.data.parts import PART_OF, Part, by_part, check_has_training
from minivim.data.tables import Columns, read_tables, split_of_file

# What systems and tools leave behind; whatever begins with a dot is ignored too.
DROPPINGS = {
    "__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found",
    "thumbs.db", "desktop.ini", "__pycache__",
}  # fmt: skip


def contents(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name, without what is hidden or left behind by tools."""
    try:
        with os.scandir(os.fspath(folder)) as entries:
            kept = [entry for entry in entries if entry.name[0] != "." and entry.name.casefold() not in DROPPINGS]
    except OSError as error:
        raise ValueError(f"folder {quoted(folder)} could not be read: {error.strerror}") from error
    return sorted(kept, key=lambda entry: entry.name)


def sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; links that lead back to it or to one above are none."""
    inside = os.path.realpath(folder)
    return [Path(entry) for entry in contents(folder) if os.path.isdir(entry) and not _leads_back(entry, inside)]


def _leads_back(entry: os.DirEntry, inside: str) -> bool:
    target = os.path.realpath(entry)
    return entry.is_symlink() and os.path.commonpath([target, inside]) == target


def walk(folder: Path) -> list[tuple[bool, str, str]]:
    """(reached through a link, path, real path) of every file below a folder; linked folders are entered once, last."""
    root = os.path.realpath(folder)
    files, seen = [], set()
    pending = deque([(False, os.fspath(folder), root)])
    while pending:
        through_link, here, real = pending.popleft()
        if real in seen:
            continue
        seen.add(real)
        for entry in contents(here):
            link = entry.is_symlink()
            target = os.path.realpath(entry) if link else os.path.join(real, entry.name)
            found = (through_link or link, entry.path, target)
            if not os.path.isdir(target):
                files.append(found)
            elif not link:
                pending.appendleft(found)
            elif not _leads_back(entry, root):
                pending.append(found)
    return files


def read_folder(folder: Path, columns: Columns) -> tuple[dict[str, Part], Sequence[str]]:
    """The parts and the classes of a folder of parquet files, or of one sub-folder a class.

    Raises ValueError where a class would vanish or a file would count twice; warns of the files that are left out.
    """
    tables = sorted(Path(path) for _, path, _ in walk(folder) if path.lower().endswith(".parquet"))
    named = [path for path in tables if split_of_file(folder, path)]
    pictures = any(_images(path) for path in sub_folders(folder))
    if named and pictures:
        raise ValueError(
            f"data is {quoted(folder)} with images and with parquet files ({quoted_list([named[0].name])}); it must "
            "have one of the two"
        )
    if tables and not pictures:
        return read_tables(folder, tables, columns)
    if columns.image or columns.label:
        raise ValueError(
            f"data is {quoted(folder)}, which has no parquet files; image_column and label_column must be None"
        )
    return _class_folders(folder)


def _images(folder: Path) -> list[str]:
    """The images below a folder, not looked into."""
    return [path for _, path, _ in walk(folder) if is_image_name(path)]


def _class_folders(folder: Path) -> tuple[dict[str, Part], list[str]]:
    """FOLDER/CLASS/*, or FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or whatever else splits are called)."""
    children = sub_folders(folder)
    named = [child for child in children if child.name.casefold() in PART_OF]
    splits = [child for child in named if sub_folders(child)]  # a class of locomotives may be called train
    if not splits:
        if named and len(named) == len(children):
            raise ValueError(
                f"data is {quoted(folder)}, where {quoted_list([child.name for child in named])} have no sub-folders; "
                "each must have one a class"
            )
        part, classes = _tree(folder)
        return {"train": part}, classes
    parts = by_part(str(folder), [child.name for child in named])
    flat = {part for part, name in parts.items() if folder / name not in splits}
    for name in [parts.pop(part) for part in sorted(flat - {"train"})] + [
        child.name for child in children if child not in named
    ]:
        if count := len(_images(folder / name)):
            notify(f"data is {quoted(folder)}: the {count} images in {quoted(name)} are left out, it is no split of "
                   "classes")  # fmt: skip
    check_has_training(str(folder), parts)
    if len(parts) == 1 and not flat:
        raise ValueError(
            f"data is {quoted(folder)} with {parts['train']}/ but no test/ or val/ folder; it must have both or none"
        )
    trees = {part: _tree(folder / name) for part, name in parts.items()}
    classes = trees["train"][1]
    for name, (_, others) in trees.items():
        check_same_classes(str(folder), name, classes, others)
    return {name: part for name, (part, _) in trees.items()}, classes


def check_same_classes(source: str, part: str, train: Sequence[str], others: Sequence[str]) -> None:
    """Raise ValueError where a part's classes are not those of the training images."""
    if list(train) != list(others):
        odd = sorted(set(train) ^ set(others))
        raise ValueError(
            f"data is {quoted(source)} with other classes in its {part} images "
            f"({quoted_list(odd) if odd else 'in another order'}); both must have the same"
        )


def class_name(folder: str) -> str:
    """A folder's name as text: composed characters, and bytes that are no UTF-8 as escapes."""
    return unicodedata.normalize("NFC", os.fsencode(folder).decode("utf-8", "backslashreplace"))


def _tree(folder: Path) -> tuple[Part, list[str]]:
    """The images below a folder with one sub-folder a class, and the classes, sorted by name."""
    found = [(child, *file) for child in sub_folders(folder) for file in walk(child)]
    by_class: dict[str, list] = {class_name(child.name): [] for child in sub_folders(folder)}
    seen, again, others = set(), 0, []
    for child, _, path, real in sorted(found, key=lambda file: file[1]):  # files themselves before links to them
        if not is_image_name(path) or (os.path.exists(path) and not os.path.isfile(path)):
            others.append((child, path))
        elif real in seen:
            again += 1
        else:
            by_class[class_name(child.name)].append(Path(path))
        seen.add(real)
    _check_no_class_vanishes(folder, by_class, found, others)
    by_class = {name: sorted(files) for name, files in sorted(by_class.items()) if files}
    loose = sum(is_image_name(entry.name) for entry in contents(folder) if os.path.isfile(entry))
    _say_left_out(folder, [path for _, path in others], again, loose)
    labels = [label for label, files in enumerate(by_class.values()) for _ in files]
    return Part([path for files in by_class.values() for path in files], torch.tensor(labels)), list(by_class)


def _check_no_class_vanishes(folder: Path, by_class: dict, found: list, others: list) -> None:
    """Raise ValueError for a folder without images, for a class without, and for splits below the classes."""
    if not any(by_class.values()):
        endings = f" ({_endings(path for _, path in others)})" if others else ""
        raise ValueError(
            f"data is {quoted(folder)}, which holds no images{endings}; it must hold parquet files or one sub-folder a "
            "class"
        )
    full = {class_name(child.name) for child, _, path, _ in found if is_image_name(path)}  # perhaps linked ones only
    for name in by_class.keys() - full:
        endings = _endings(path for child, path in others if class_name(child.name) == name)
        raise ValueError(
            f"data is {quoted(folder)}, whose sub-folder {quoted(name)} holds no image that can be read "
            f"({endings or 'no files'}); each must hold at least one"
        )
    for child, _, path, _ in found:
        below = Path(path).relative_to(child).parts
        if len(below) > 1 and PART_OF.get(below[0].casefold()) == "train":
            raise ValueError(
                f"data is {quoted(folder)} with splits inside its classes ({quoted(Path(child.name, below[0]))}); the "
                "classes must be inside the splits"
            )


def _endings(paths: Iterable[str]) -> str:
    """How many files have which ending, the most frequent first."""
    counts = Counter(os.path.splitext(path)[1].lower() or "without ending" for path in paths)
    return ", ".join(f"{count} {quoted(ending)[1:-1][:20]}" for ending, count in counts.most_common(3))


def _say_left_out(folder: Path, others: list[str], again: int, loose: int) -> None:
    """One notice of all files that do not count."""
    reasons = []
    if others:
        first = quoted(os.path.relpath(min(others), folder))
        reasons.append(f"{len(others)} files that are no images ({_endings(others)}; {first})")
    if again:
        reasons.append(f"{again} links to images that count already")
    if loose:
        reasons.append(f"{loose} images outside the sub-folders")
    if reasons:
        notify(f"data is {quoted(folder)}: left out are {', '.join(reasons)}")
