"""The benchmark of the images' way from files to the model."""

import time

import numpy as np
import pytest

from minivim.bench import DataBench, bench_data, data, measure
from minivim.data.images import LazyImages, fetch

Image = pytest.importorskip("PIL.Image")
SMALL = {"model": "vim_nano_patch2_8", "img_size": 8, "batch_size": 2, "rounds": 1, "threads": 1}
PAUSE = 0.5  # seconds


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(tmp_path / "images")


@pytest.fixture
def slow(monkeypatch):
    """Decoding takes PAUSE an image, a training step nothing of it."""
    decode = LazyImages.__getitem__

    def slowly(self, index):
        time.sleep(PAUSE)
        return decode(self, index)

    monkeypatch.setattr(LazyImages, "__getitem__", slowly)
    monkeypatch.setattr(measure, "ATTEMPTS", 1)


def test_slow_files_slow_the_pipeline_and_not_the_training_step(folder, slow):
    step, pipeline = bench_data(DataBench(data=folder, workers=(0,), **SMALL)).rows
    assert (step.name, pipeline.name) == ("training step of vim_nano_patch2_8", "pipeline alone, 0 workers")
    assert all(row.items == 2 and row.length == 17 for row in (step, pipeline))
    assert pipeline.per_second <= 1 / PAUSE < step.per_second


def test_so_many_workers_decode(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(measure, "ATTEMPTS", 1)
    monkeypatch.setattr(data, "fetch", lambda images, rows, workers: asked.append(workers) or fetch(images, rows))
    report = bench_data(DataBench(data=folder, workers=(1, 3), **SMALL))
    assert [row.name for row in report.rows[1:]] == ["pipeline alone, 1 workers", "pipeline alone, 3 workers"]
    assert asked == [0, 1, 3]  # the batch that the training step has is decoded before it


def test_images_that_are_no_files_are_refused():
    with pytest.raises(ValueError, match="^data is 'digits', whose images are drawn; they must be files"):
        bench_data(DataBench(data="digits", **SMALL))
    with pytest.raises(ValueError, match="^workers is -1; it must be"):
        bench_data(DataBench(data="digits", workers=(-1,), **SMALL))
