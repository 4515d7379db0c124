"""One loader for every set of images: embedded digits, synthetic shapes, the hub, folders.

`load_data(source)` returns an ImageData: bytes in memory, (M, 3, H, W) and labels (M,), so that a training loop draws a
batch by indexing. Sets too large for memory (ImageNet) come as LazyImages, decoded by the workers of a DataLoader.
"""

import math
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt8
from torch import Tensor

from minivim.data.images import LazyImages, decode_all, fit_tensor, image_files, read_image, sides
from minivim.data.preparation import IMAGENET_MEAN, IMAGENET_STD
from minivim.data.shapes import SHAPES, draw_shapes
from minivim.extras import require

HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "imagenet": "ILSVRC/imagenet-1k"}
TEST_SPLITS = ("test", "validation", "valid", "val")  # the first of these whose labels are known is the test set
IN_MEMORY_BYTES = 4 * 2**30  # a larger set is decoded lazily
PROBE_SECONDS = 2.0  # with the imports the answer comes within 5 s, however the network drops packets


@dataclass(frozen=True)
class ImageData:
    """A set of labelled images, split into training and test images.

    Images are uint8 (M, 3, H, W), or LazyImages for sets that do not fit in memory. mean and std are those of the
    training images' channels, on the scale where white is 1.
    """

    name: str
    train_images: UInt8[Tensor, "M 3 H W"] | LazyImages
    train_labels: Int64[Tensor, " M"]
    test_images: UInt8[Tensor, "K 3 H W"] | LazyImages
    test_labels: Int64[Tensor, " K"]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def img_size(self) -> int:
        """The side of the images, in pixels."""
        images = self.train_images
        return sides(images.img_size)[1] if isinstance(images, LazyImages) else images.shape[-1]


def load_data(
    source: str | os.PathLike, *, img_size: int | tuple[int, int] | None = None, crop: float = 1.0
) -> ImageData:
    """Load a set of images.

    source: "digits" (embedded), "shapes" (drawn), "cifar10", "imagenet", "OWNER/NAME" or "OWNER/NAME:CONFIG" on the
    Hugging Face hub, or a folder: parquet files whose names begin with their split (train, test, validation), or one
    sub-folder a class, below train/ and test/ or with a fixed split of 80 to 20.
    img_size: the side of the images in pixels, or (height, width); None keeps their own size. The picture is resized
    to cover img_size / crop, then its centre is cut out.
    Raises ValueError for a set that cannot be used, FileNotFoundError for a missing folder, ConnectionError when the
    hub cannot be reached and the set is not in its cache.
    """
    if img_size is not None and min(sides(img_size)) < 1:
        raise ValueError(f"img_size is {img_size}; it must be at least 1 pixel")
    name = os.fspath(source)
    if name == "digits":
        train, test, classes = _digits()
    elif name == "shapes":
        train, test, classes = draw_shapes(4000, seed=0), draw_shapes(1000, seed=1), SHAPES
    elif Path(name).is_dir():
        train, test, classes = _folder(Path(name))
    elif name in HUB_NAMES or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        train, test, classes = _hub_splits(name)
    else:
        known = ", ".join(["digits", "shapes", *HUB_NAMES])
        raise FileNotFoundError(f"data is {name!r}; it must be one of {known}, OWNER/NAME on the hub, or a folder")
    return _bundle(name, train, test, tuple(classes), img_size, crop)


def _bundle(
    name: str, train: tuple, test: tuple, classes: tuple[str, ...], img_size: int | tuple[int, int] | None, crop: float
) -> ImageData:
    """Check the labels, decode the images if memory allows it, and measure the mean and the standard deviation."""
    (train_items, train_labels), (test_items, test_labels) = train, test
    for split, labels in (("training", train_labels), ("test", test_labels)):
        if len(labels) == 0:
            raise ValueError(f"data is {name!r} with no {split} images; it must have at least one")
    if len(set(train_labels.tolist())) < 2:
        raise ValueError(f"data is {name!r} with one class only ({classes[0]!r}); it must have at least two")
    in_memory = isinstance(train_items, Tensor)
    size = img_size or (train_items.shape[-1] if in_memory else min(read_image(train_items[0]).size))
    train_images: Tensor | LazyImages
    test_images: Tensor | LazyImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if not in_memory and 3 * math.prod(sides(size)) * (len(train_items) + len(test_items)) > IN_MEMORY_BYTES:
        train_images, test_images = (LazyImages(items, size, crop=crop) for items in (train_items, test_items))
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        train_images = _as_bytes(train_items, img_size, crop)
        test_images = _as_bytes(test_items, size, crop)
        mean, std = channel_statistics(train_images)
    return ImageData(name, train_images, train_labels, test_images, test_labels, classes, mean, std)


def _as_bytes(items, img_size: int | tuple[int, int] | None, crop: float) -> UInt8[Tensor, "M 3 H W"]:
    """Decoded images; those that are a tensor already are resized when another size is asked for."""
    if not isinstance(items, Tensor):
        return decode_all(items, img_size, crop)
    return items if img_size is None else fit_tensor(items, img_size, crop)


def channel_statistics(images: UInt8[Tensor, "M 3 H W"]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel on the scale 0..1, exactly, from the counts of the 256 values."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        stds.append(max((share * (values - mean) ** 2).sum().sqrt().item(), 1e-6))
    return tuple(means), tuple(stds)


def stratified_split(labels: Int[Tensor, " M"], test_share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Indices of the training and of the test images: the same on every machine, each class split alike."""
    generator = np.random.RandomState(0)  # the legacy generator: its stream is frozen for ever
    train, test = [], []
    for label in labels.unique().tolist():
        members = generator.permutation(torch.nonzero(labels == label)[:, 0].numpy())
        cut = round(len(members) * test_share)
        test.append(torch.from_numpy(members[:cut]))
        train.append(torch.from_numpy(members[cut:]))
    return torch.cat(train).sort().values, torch.cat(test).sort().values


def _split(items, labels: Tensor) -> tuple[tuple, tuple]:
    """((training items, labels), (test items, labels)) by `stratified_split`."""
    take = (lambda rows: items[rows]) if isinstance(items, Tensor) else (lambda rows: _Rows(items, rows.tolist()))
    train, test = stratified_split(labels)
    return (take(train), labels[train]), (take(test), labels[test])


class _Rows(Sequence):
    """Some rows of a sequence, by number; nothing is copied."""

    def __init__(self, items: Sequence, rows: list[int]):
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.items[self.rows[index]]


def _digits() -> tuple:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI optical digits), greys 0..16 spread to 0..255."""
    digits = require("sklearn.datasets", "train").load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)
    train, test = _split(grey[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target).long())
    return train, test, [str(name) for name in digits.target_names]


# ---- folders ---------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> tuple:
    """A folder of parquet files, or of one sub-folder a class."""
    parquet = sorted(folder.rglob("*.parquet"))
    return _parquet_splits(folder, parquet) if parquet else _class_folders(folder)


def _class_folders(folder: Path) -> tuple:
    """FOLDER/CLASS/*, or FOLDER/train/CLASS/* and FOLDER/test/CLASS/* (or validation, valid, val)."""
    if not (folder / "train").is_dir():
        items, labels, classes = _one_tree(folder)
        return *_split(items, labels), classes
    tests = [folder / name for name in TEST_SPLITS if (folder / name).is_dir()]
    if not tests:
        raise ValueError(f"data is {str(folder)!r} with train/ but no test/ or val/ folder; it must have both or none")
    train_items, train_labels, classes = _one_tree(folder / "train")
    test_items, test_labels, test_classes = _one_tree(tests[0])
    _check_same_classes(str(folder), classes, test_classes)
    return (train_items, train_labels), (test_items, test_labels), classes


def _one_tree(folder: Path) -> tuple[list[Path], Tensor, list[str]]:
    """The images below `folder`, their labels, and the classes: the sub-folders that hold images, sorted by name."""
    by_class = {child.name: image_files(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    by_class = {name: files for name, files in by_class.items() if files}
    if not by_class:
        raise ValueError(
            f"data is {str(folder)!r}, which holds no images; it must hold parquet files or one sub-folder a class"
        )
    labels = [label for label, files in enumerate(by_class.values()) for _ in files]
    return [path for files in by_class.values() for path in files], torch.tensor(labels), list(by_class)


def _check_same_classes(name: str, train: Sequence[str], test: Sequence[str]) -> None:
    if list(train) != list(test):
        odd = sorted(set(train) ^ set(test)) or "in another order"
        raise ValueError(f"data is {name!r} with other classes in its test images ({odd}); both must have the same")


def _parquet_splits(folder: Path, files: list[Path]) -> tuple:
    """Parquet files, each belonging to the split with which its name begins."""
    pq = require("pyarrow.parquet", "train")
    found = {"train": [path for path in files if path.name.startswith("train")]}
    found |= {
        split: [path for path in files if path.name.split("-")[0].split(".")[0] == split] for split in TEST_SPLITS
    }
    names = {split: [str(path) for path in paths] for split, paths in found.items() if paths}
    if "train" not in names:
        some = ", ".join(path.name for path in files[:3])
        raise ValueError(f"data is {str(folder)!r} with no training files ({some}); a parquet must be named train*")
    for path in sum(names.values(), []):
        try:
            pq.read_schema(path)
        except Exception as error:
            raise ValueError(f"data file {path!r} could not be read as parquet: {error}") from error
    datasets = require("datasets", "train")
    # One call a split, because one call for all would give the training files' class names to every split.
    splits = {
        split: datasets.load_dataset("parquet", data_files=paths, split="train") for split, paths in names.items()
    }
    return _from_splits(str(folder), splits)


# ---- the hub ---------------------------------------------------------------------------------------------------------


def _hub_splits(name: str) -> tuple:
    """A set on the Hugging Face hub, or in its cache when the hub cannot be reached."""
    repository, _, config = HUB_NAMES.get(name, name).partition(":")
    reachable = hub_reachable()
    datasets = require("datasets", "train")
    try:
        with _offline(not reachable):
            splits = datasets.load_dataset(repository, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        if not reachable:
            raise ConnectionError(
                f"data is {name!r}, which is no folder here, and the hub cannot be reached nor has its cache "
                f"{repository}; it must be a folder, digits or shapes until there is a connection"
            ) from error
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"data is {name!r}, which could not be loaded from the hub: {reason}") from error
    return _from_splits(name, splits)


def hub_reachable(seconds: float = PROBE_SECONDS) -> bool:
    """Whether a connection to the hub (or to the proxy in the environment) opens within `seconds`."""
    constants = require("huggingface_hub.constants", "train")
    if constants.HF_HUB_OFFLINE:
        return False
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlparse(proxy or constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    opened = threading.Event()

    def probe() -> None:
        try:
            socket.create_connection((address.hostname, port), timeout=seconds).close()
            opened.set()
        except OSError:
            pass

    # In a thread, because the time limit of a connection does not cover the name lookup.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(seconds)
    return opened.is_set()


@contextmanager
def _offline(on: bool) -> Iterator[None]:
    """The libraries' offline mode, which reads the cache at once instead of retrying for 23 s."""
    modules = [require("datasets", "train").config, require("huggingface_hub.constants", "train")] if on else []
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


class _Column(Sequence):
    """The undecoded images of one column of a datasets.Dataset, read from its memory-mapped Arrow table."""

    def __init__(self, dataset, column: str):
        self.values = dataset.data.column(column)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index):
        record = self.values[index].as_py() or {"bytes": b"", "path": None}
        return {"bytes": record["bytes"], "path": record["path"] or f"number {index}"}


def _from_splits(name: str, splits) -> tuple:
    """A DatasetDict as ((items, labels), (items, labels), classes); the columns are found by their type."""
    if "train" not in splits:
        raise ValueError(f"data is {name!r} with the splits {sorted(splits)}; it must have a split named train")
    image, label = _columns(name, splits["train"].features)
    labels = {split: torch.as_tensor(splits[split].with_format("numpy")[label][:]).long() for split in splits}
    test = next((split for split in TEST_SPLITS if split in labels and (labels[split] >= 0).all()), None)
    classes, present = _classes(name, splits, label, labels, test)
    lookup = {value: position for position, value in enumerate(present)}
    result = {}
    for split in ("train", test) if test else ("train",):
        positions = torch.tensor([lookup[value] for value in labels[split].tolist()], dtype=torch.int64)
        result[split] = (_Column(splits[split], image), positions)
    if test is None:
        return *_split(*result["train"]), classes
    return result["train"], result[test], classes


def _columns(name: str, features) -> tuple[str, str]:
    """The image column and the label column: by type, whatever they are called."""
    datasets = require("datasets", "train")
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image) or _is_record(feature)]
    labels = [key for key, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    integers = [key for key, feature in features.items() if "int" in str(getattr(feature, "dtype", ""))]
    labels = labels or (integers if len(integers) == 1 else [])
    for kind, found in (("an image", images), ("a label", labels)):
        if not found:
            raise ValueError(f"data is {name!r} with the columns {list(features)}; one of them must be {kind} column")
    return images[0], labels[0]


def _is_record(feature) -> bool:
    """Whether a feature is {"bytes", "path"}: an image column written without the datasets library's metadata."""
    return isinstance(feature, dict) and set(feature) == {"bytes", "path"}


def _classes(name: str, splits, label: str, labels: dict, test: str | None) -> tuple[list[str], list[int]]:
    """The classes' names, and the label value of each: from the ClassLabel, or the integers that occur."""
    names = getattr(splits["train"].features[label], "names", None)
    if names:
        if test:
            _check_same_classes(name, names, getattr(splits[test].features[label], "names", names))
        return list(names), list(range(len(names)))
    present = labels["train"].unique().tolist()
    if test:
        extra = sorted(set(labels[test].tolist()) - set(present))
        if extra:
            _check_same_classes(name, [str(value) for value in present], [str(value) for value in present + extra])
    return [str(value) for value in present], present
