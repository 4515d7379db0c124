"""The parts of a set: cut by rule, each class alike, never overlapping; some of the classes only."""

import pytest
import torch

from minivim.data import channel_statistics, load_data
from minivim.data.parts import Part, split_name, stratified_split, with_validation

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def whole():
    return load_data("digits")


def rows(images) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_the_validation_part_is_cut_from_the_training_images_by_rule(whole):
    data = load_data("digits", val_share=0.1)
    assert len(data.train_labels) + len(data.val_labels) == len(whole.train_labels)
    assert rows(data.train_images) | rows(data.val_images) == rows(whole.train_images)
    assert not rows(data.train_images) & rows(data.val_images)
    assert torch.equal(data.test_images, whole.test_images)
    shares = data.val_labels.bincount() / whole.train_labels.bincount()
    assert shares.min() > 0.09 and shares.max() < 0.11
    again = load_data("digits", val_share=0.1)
    assert torch.equal(data.val_images, again.val_images) and torch.equal(data.val_labels, again.val_labels)
    assert whole.val_images is None and whole.val_labels is None


def test_statistics_are_those_of_the_images_that_are_left_for_training(whole):
    data = load_data("digits", val_share=0.5)
    assert (data.mean, data.std) == channel_statistics(data.train_images) != (whole.mean, whole.std)


def test_every_class_keeps_an_image_and_the_validation_part_is_never_empty():
    labels = torch.tensor([0] * 9 + [1, 2, 2])
    kept, cut = stratified_split(labels, 0.9)
    assert labels[kept].unique().tolist() == [0, 1, 2] and len(cut) == 9
    parts = {"train": Part(torch.arange(36).reshape(12, 3, 1, 1), labels), "test": Part([], torch.tensor([]))}
    cut = with_validation(parts, 0.001)
    assert cut["val"].labels.tolist() == [0] and len(cut["train"].labels) == 11
    assert torch.cat([cut["val"].items, cut["train"].items]).unique().tolist() == list(range(36))
    assert with_validation(parts, 0.0) == parts


def test_some_classes_are_those_of_the_whole_set_in_the_order_of_the_file(tmp_path, whole):
    (tmp_path / "odd.txt").write_text("7\n1\n3\n")
    some = load_data("digits", classes=tmp_path / "odd.txt", val_share=0.2)
    assert some.classes == ("7", "1", "3")
    for number, name in enumerate(some.classes):
        chosen = whole.test_images[whole.test_labels == int(name)]
        assert torch.equal(some.test_images[some.test_labels == number], chosen)
        kept = rows(some.train_images[some.train_labels == number]) | rows(some.val_images[some.val_labels == number])
        assert kept == rows(whole.train_images[whole.train_labels == int(name)])
    first = load_data("digits", classes=2)
    assert first.classes == ("0", "1") and len(first.test_labels) == (whole.test_labels < 2).sum()


@pytest.mark.parametrize(
    ("name", "split"),
    [("train-00000-of-00002", "train"), ("Test_3", "Test"), ("my.VALID", "VALID"), ("constraint", None),
     ("train_test", None), ("trainer", None), ("dev2", "dev"), ("latest", None)],
)  # fmt: skip
def test_a_split_is_named_by_a_whole_word(name, split):
    assert split_name(name) == split
