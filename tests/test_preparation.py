"""The evaluation transform: as torchvision rounds, for any aspect, the same for files and tensors."""

import numpy as np
import pytest
import torch

from minivim.data import sources as data_module
from minivim.data.images import fit, fit_tensor, placement
from minivim.data.sources import load_data
from minivim.preparation import Preparation

Image = pytest.importorskip("PIL.Image")


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (33, 1000), (224, 224), (9, 10)])
def test_placement_rounds_as_torchvision_does_for_squares(shape, crop):
    size, short = 32, min(shape)
    target = int(32 / crop)
    resized, (top, left) = placement(shape, size, crop)
    assert resized == tuple(target if side == short else int(target * side / short) for side in shape)
    assert (top, left) == tuple(int(round((side - size) / 2.0)) for side in resized)


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.33])
@pytest.mark.parametrize("size", [(8, 24), (24, 8), (7, 7), (1, 50)])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (5, 300), (3, 3)])
def test_a_fitted_picture_covers_its_size_and_keeps_its_aspect(shape, size, crop):
    resized, start = placement(shape, size, crop)
    assert all(0 <= a and a + b <= c for a, b, c in zip(start, size, resized, strict=True))
    covered = [int(side / crop) for side in size]
    assert any(a == b for a, b in zip(resized, covered, strict=True))
    scales = [a / b for a, b in zip(resized, shape, strict=True)]
    assert abs(scales[0] - scales[1]) <= 1 / min(shape)  # within a pixel
    assert fit(Image.new("RGB", (shape[1], shape[0])), size, crop).size == size[::-1]
    assert fit_tensor(torch.zeros(2, 3, *shape, dtype=torch.uint8), size, crop).shape == (2, 3, *size)


def test_tensors_and_pictures_are_fitted_alike():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    one = np.asarray(fit(Image.fromarray(pixels), (12, 10), 0.8)).astype(int)
    two = fit_tensor(torch.from_numpy(pixels).permute(2, 0, 1)[None], (12, 10), 0.8)[0].permute(1, 2, 0).numpy()
    assert abs(one - two).max() <= 2


def test_a_crop_reaches_every_kind_of_set(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    folder = str(tmp_path)
    for name, grey in (("a", 50), ("b", 200)):
        (tmp_path / name).mkdir()
        for index in range(5):
            pixels = np.random.default_rng(index).integers(grey - 50, grey, (14, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    whole = load_data(folder, img_size=(8, 12), crop=0.5)
    monkeypatch.setattr(data_module, "IN_MEMORY_BYTES", 0)
    lazy = load_data(folder, img_size=(8, 12), crop=0.5)
    assert torch.equal(torch.stack([lazy.test_images[i] for i in range(2)]), whole.test_images)
    assert whole.test_images.shape[1:] == (3, 8, 12)
    assert load_data("digits", img_size=(8, 12), crop=0.5).test_images.shape[1:] == (3, 8, 12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": "grey"}, "mean is 'grey'; it must be one finite number a channel"),
        ({"mean": []}, r"mean is \[\]"),
        ({"std": (0.5, float("inf"), 0.5)}, "std is .*inf"),
        ({"std": (0.5,)}, "mean has 3 numbers, std 1"),
        ({"std": (0.5, 0.5, 0.0)}, "its numbers must be above 0"),
        ({"crop_pct": 0.01}, "crop_pct is 0.01; it must be a number from 0.1 to 1"),
        ({"crop_pct": None}, "crop_pct is None"),
        ({"crop_pct": float("nan")}, "crop_pct is nan"),
    ],
)
def test_numbers_that_no_picture_has_are_refused(fields, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Preparation(**fields)
