"""The loader: every kind of source gives the same thing, and what cannot be used is refused in one sentence."""

import io

import numpy as np
import pytest
import torch

from minivim.data import sources as data_module
from minivim.data.images import LazyImages
from minivim.data.parts import stratified_split
from minivim.data.shapes import SHAPES, draw_shapes
from minivim.data.sources import channel_statistics, load_data

datasets = pytest.importorskip("datasets")
Image = pytest.importorskip("PIL.Image")

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def picture(colour: tuple, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.new("RGB", size, colour)


def class_tree(folder, count=5, classes=COLOURS, size=(12, 12)):
    """FOLDER/CLASS/0.png ... of one colour a class."""
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture(colour, size).save(folder / name / f"{index}.png")
    return folder


def cifar_like(path, images, labels, image="img", label="label", names=("cat", "dog")):
    """A parquet file with the schema of the hub's CIFAR-10: an Image column and a ClassLabel."""
    features = datasets.Features({image: datasets.Image(), label: datasets.ClassLabel(names=list(names))})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({image: images, label: labels}, features=features).to_parquet(str(path))


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """The datasets library writes to a folder of the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


# ---- what is embedded ------------------------------------------------------------------------------------------------


def test_digits_are_the_embedded_ones_in_rgb():
    digits = load_data("digits")
    assert digits.train_images.shape == (1438, 3, 8, 8) and digits.test_images.shape == (359, 3, 8, 8)
    assert digits.train_images.dtype == torch.uint8 and digits.img_size == 8
    assert digits.classes == tuple("0123456789")
    images = torch.cat([digits.train_images, digits.test_images])
    assert (images == images[:, :1]).all()
    assert images.min() == 0 and images.max() == 255
    # All 1,797 images are there, whatever the split's order: compare the sorted rows with scikit-learn's own.
    from sklearn.datasets import load_digits

    ours = np.sort(
        (images[:, 0].flatten(1).double() * 16 / 255).round().numpy().astype(int) @ 17 ** np.arange(8).repeat(8)
    )
    theirs = np.sort(load_digits().data.astype(int) @ 17 ** np.arange(8).repeat(8))
    assert (ours == theirs).all()


def test_split_is_fixed_stratified_and_disjoint():
    labels = torch.arange(1000) % 7
    train, test = stratified_split(labels)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(1000))
    assert all(abs((labels[test] == k).sum().item() - 0.2 * (labels == k).sum().item()) <= 0.5 for k in range(7))
    torch.manual_seed(123)
    np.random.seed(123)
    again = stratified_split(labels)
    assert torch.equal(train, again[0]) and torch.equal(test, again[1])
    assert test[:8].tolist() == [13, 16, 18, 23, 43, 46, 49, 56]  # the same on every machine and in every version


def test_shapes_are_deterministic_balanced_and_distinct():
    images, labels = draw_shapes(200, seed=5)
    assert images.shape == (200, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [20] * len(SHAPES)
    again, _ = draw_shapes(200, seed=5)
    assert torch.equal(images, again)
    assert not torch.equal(images, draw_shapes(200, seed=6)[0])


def test_each_shape_covers_other_pixels():
    from minivim.data.shapes import shape_masks

    y, x = np.mgrid[-1.2:1.2:48j, -1.2:1.2:48j]
    masks = np.stack(shape_masks(x[None], y[None]))[:, 0]
    assert masks.shape == (10, 48, 48)
    for first in range(10):
        for second in range(first):
            assert (masks[first] != masks[second]).mean() > 0.03, (SHAPES[first], SHAPES[second])
        assert (masks[first] == masks[first][:, ::-1]).mean() > 0.9  # a mirror image keeps its label


def test_channel_statistics_equal_those_of_the_floats():
    images = torch.randint(0, 256, (50, 3, 6, 6), dtype=torch.uint8)
    values = (images.double() / 255).transpose(0, 1).flatten(1)
    mean, std = channel_statistics(images)
    assert torch.allclose(torch.tensor(mean).double(), values.mean(1), atol=1e-7)
    assert torch.allclose(torch.tensor(std).double(), values.std(1, correction=0), atol=1e-7)


def test_channels_that_never_change_have_a_standard_deviation_all_the_same():
    """By which one can divide."""
    mean, std = channel_statistics(torch.full((4, 3, 2, 2), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2,) * 3) and 0 < min(std) <= max(std) < 1e-3


def test_img_size_resizes_a_tensor():
    digits = load_data("digits", img_size=16)
    assert digits.train_images.shape[-2:] == (16, 16) and digits.img_size == 16


# ---- parquet with the hub's schemas ----------------------------------------------------------------------------------


def test_parquet_with_the_schema_of_cifar10(tmp_path):
    images = [picture((10 * i, 20, 30), (32, 32)) for i in range(10)]
    cifar_like(tmp_path / "plain_text" / "train-00000-of-00001.parquet", images, [0, 1] * 5)
    cifar_like(tmp_path / "plain_text" / "test-00000-of-00001.parquet", images[:4], [1, 0, 1, 0])
    loaded = load_data(str(tmp_path))
    assert loaded.classes == ("cat", "dog")
    assert loaded.train_images.shape == (10, 3, 32, 32) and loaded.test_labels.tolist() == [1, 0, 1, 0]
    assert loaded.train_images[:, 0, 0, 0].tolist() == [10 * i for i in range(10)]  # PNG loses nothing


def test_parquet_with_other_column_names_sizes_modes_and_split_names(tmp_path):
    # tiny-imagenet calls the columns image and label and the split valid, and some of its images are grey.
    images = [picture((200, 0, 0), (20, 16)), Image.new("L", (16, 20), 90), Image.new("CMYK", (18, 18), (0, 0, 0, 0))]
    cifar_like(tmp_path / "train-0.parquet", images, [0, 1, 1], "picture", "fine", ("n01", "n02"))
    cifar_like(tmp_path / "valid-0.parquet", images, [0, 1, 1], "picture", "fine", ("n01", "n02"))
    loaded = load_data(str(tmp_path), img_size=8)
    assert loaded.train_images.shape == loaded.test_images.shape == (3, 3, 8, 8)
    assert loaded.train_images[1].unique().tolist() == [90]


def test_parquet_without_metadata_and_with_integer_labels(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records = []
    for value in range(10):
        buffer = io.BytesIO()
        picture((value, 0, 0)).save(buffer, "png")
        records.append({"bytes": buffer.getvalue(), "path": None})
    table = pa.table({"image": records, "label": [3, 7] * 5})
    pq.write_table(table, tmp_path / "train.parquet")
    loaded = load_data(str(tmp_path))  # no test file: the fixed split
    assert loaded.classes == ("3", "7")
    assert len(loaded.train_labels) == 8 and len(loaded.test_labels) == 2
    for images, labels in ((loaded.train_images, loaded.train_labels), (loaded.test_images, loaded.test_labels)):
        assert torch.equal(images[:, 0, 0, 0] % 2, labels.to(torch.uint8))  # images and labels stay together


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
    images = [picture((0, 0, 0))] * 4
    for split, labels in (("train", [0, 1, 0, 1]), ("test", [-1] * 4), ("validation", [1, 1, 0, 0])):
        cifar_like(tmp_path / f"{split}.parquet", images, labels)
    assert load_data(str(tmp_path)).test_labels.tolist() == [1, 1, 0, 0]


# ---- folders of classes ----------------------------------------------------------------------------------------------


def test_one_folder_a_class_with_a_fixed_split(tmp_path):
    loaded = load_data(str(class_tree(tmp_path / "set", count=10)))
    assert loaded.classes == ("blue", "green", "red")
    assert loaded.train_labels.bincount().tolist() == [8, 8, 8] and loaded.test_labels.bincount().tolist() == [2, 2, 2]
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)
    assert torch.equal(loaded.train_images[:, :, 5, 5], colours[loaded.train_labels])


@pytest.mark.parametrize("test_name", ["test", "val", "validation", "valid"])
def test_train_and_test_folders(tmp_path, test_name):
    class_tree(tmp_path / "train", count=3)
    class_tree(tmp_path / test_name, count=2)
    loaded = load_data(str(tmp_path))
    assert len(loaded.train_labels) == 9 and len(loaded.test_labels) == 6


@pytest.mark.parametrize("other", [(9, 30), (20, 30), (9, 10)])
def test_images_of_several_sizes_are_resized_when_asked(tmp_path, other):
    class_tree(tmp_path / "a", classes={"x": (1, 2, 3)}, size=(20, 10))
    class_tree(tmp_path / "a", classes={"y": (3, 2, 1)}, size=other)
    with pytest.raises(ValueError, match="img_size is None but the images differ in size"):
        load_data(str(tmp_path / "a"))
    assert load_data(str(tmp_path / "a"), img_size=6).train_images.shape == (8, 3, 6, 6)


def test_test_images_get_the_size_of_the_training_images(tmp_path):
    class_tree(tmp_path / "train", count=3)
    class_tree(tmp_path / "test", count=2, size=(20, 26))
    loaded = load_data(str(tmp_path))
    assert loaded.train_images.shape[2:] == loaded.test_images.shape[2:] == (12, 12)


def test_sets_too_large_for_memory_are_decoded_lazily_and_alike(tmp_path, monkeypatch):
    folder = str(class_tree(tmp_path / "set", count=5, size=(20, 14)))
    whole = load_data(folder, img_size=8)
    monkeypatch.setattr(data_module, "IN_MEMORY_BYTES", 0)
    lazy = load_data(folder, img_size=8)
    assert isinstance(lazy.train_images, LazyImages) and lazy.img_size == 8
    assert torch.equal(torch.stack([lazy.test_images[i] for i in range(3)]), whole.test_images)
    assert lazy.mean == data_module.IMAGENET_MEAN


def test_all_parts_in_three_channels_must_fit_into_memory(tmp_path, monkeypatch):
    folder = str(class_tree(tmp_path / "set", count=5))
    for room, lazy in ((15 * 3 * 8 * 8, False), (15 * 3 * 8 * 8 - 1, True)):
        monkeypatch.setattr(data_module, "IN_MEMORY_BYTES", room)
        assert isinstance(load_data(folder, img_size=8, val_share=0.2).train_images, LazyImages) == lazy


def test_mean_and_standard_deviation_are_those_of_the_training_images_alone(tmp_path):
    """Training images of grey 40 and 120; all others are white, whichever part they are in."""
    for part, levels in (("train", (40, 120)), ("test", (255, 255)), ("val", (255, 255))):
        class_tree(tmp_path / part, count=2, classes={"a": (levels[0],) * 3, "b": (levels[1],) * 3})
    data = load_data(str(tmp_path))
    assert data.val_images.min() == data.test_images.min() == 255
    assert data.mean == pytest.approx((80 / 255,) * 3) and data.std == pytest.approx((40 / 255,) * 3)


# ---- what cannot be used ---------------------------------------------------------------------------------------------


def bad(tmp_path, kind: str):
    """(source, img_size, error, pattern) of a source that cannot be used."""
    folder = tmp_path / kind
    folder.mkdir()
    if kind == "missing":
        return str(folder / "a" / "b"), None, FileNotFoundError, "data is .*missing/a/b.*; it must be one of digits"
    if kind == "unknown":
        return "cifar11", None, FileNotFoundError, "data is 'cifar11'; it must be one of"
    if kind == "empty":
        return str(folder), None, ValueError, "holds no images"
    if kind == "size":
        return "digits", 0, ValueError, "img_size is 0; it must be from 1 to 8192"
    if kind == "broken":
        class_tree(folder / "set")
        (folder / "set" / "red" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
        return str(folder / "set"), None, ValueError, r"image '.*red/3\.png' could not be read"
    if kind == "truncated":
        class_tree(folder / "set", size=(64, 64))
        path = folder / "set" / "red" / "1.png"
        path.write_bytes(path.read_bytes()[:-40])
        return str(folder / "set"), None, ValueError, r"image '.*red/1\.png' could not be read"
    if kind == "one-class":
        return str(class_tree(folder / "set", classes={"red": (1, 0, 0)})), None, ValueError, "one class only"
    if kind == "no-test":
        class_tree(folder / "train")
        return str(folder), None, ValueError, "train/ but no test/"
    if kind == "other-classes":
        class_tree(folder / "train")
        class_tree(folder / "test", classes={"red": (1, 0, 0), "pink": (2, 0, 0)})
        return str(folder), None, ValueError, r"other classes in its test images \('blue', 'green', 'pink'\)"
    if kind == "parquet-names":
        cifar_like(folder / "data.parquet", [picture((0, 0, 0))], [0])
        return str(folder), None, ValueError, r"no training files \('data\.parquet'\)"
    if kind == "parquet-broken":
        (folder / "train.parquet").write_bytes(b"PAR1 nonsense")
        return str(folder), None, ValueError, "train.parquet' could not be read as parquet"
    if kind == "parquet-classes":
        cifar_like(folder / "train.parquet", [picture((0, 0, 0))] * 2, [0, 1])
        cifar_like(folder / "test.parquet", [picture((0, 0, 0))] * 2, [0, 1], names=("cat", "cow"))
        return str(folder), None, ValueError, r"other classes in its test images \('cow', 'dog'\)"
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = {"bytes": b"no image at all", "path": "x.png"}
    columns = {
        "no-image-column": {"text": ["a", "b"], "label": [0, 1]},
        "no-label-column": {"image": [record] * 2, "text": ["a", "b"]},
        "two-integers": {"image": [record] * 2, "a": [0, 1], "b": [0, 1]},
        "broken-record": {"image": [record] * 20, "label": [0, 1] * 10},
    }[kind]
    pq.write_table(pa.table(columns), folder / "train.parquet")
    pattern = {
        "no-image-column": "must be an image column",
        "broken-record": r"image 'x\.png' could not be read",
        "two-integers": r"several columns that may be the label column, 'a', 'b'; label_column \(--label-column\) must",
    }
    return str(folder), None, ValueError, pattern.get(kind, "must be a label column")


@pytest.mark.parametrize(
    "kind",
    ["missing", "unknown", "empty", "size", "broken", "truncated", "one-class", "no-test", "other-classes",
     "parquet-names", "parquet-broken", "parquet-classes", "no-image-column", "no-label-column", "two-integers",
     "broken-record"],
)  # fmt: skip
def test_a_source_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, kind):
    source, img_size, error, pattern = bad(tmp_path, kind)
    with pytest.raises(error, match=pattern) as caught:
        load_data(source, img_size=img_size)
    assert "\n" not in str(caught.value)
