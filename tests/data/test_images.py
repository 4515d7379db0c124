"""Single images: any mode and depth becomes upright RGB bytes; the centre, and crops that nobody else has."""

import io
import random
import resource

import numpy as np
import pytest
import torch

from minivim.data import images as images_module
from minivim.data.images import (
    LazyImages,
    decode_all,
    fit,
    placement,
    random_resized_crop,
    read_image,
    to_rgb,
    to_tensor,
)

Image = pytest.importorskip("PIL.Image")


def picture(colour: tuple, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_without_losing_white(mode):
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(np.full((4, 4), 255, dtype=np.float32))
    else:
        image = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    assert image.mode == mode
    rgb = to_rgb(image)
    assert rgb.mode == "RGB" and (np.asarray(rgb) >= 254).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)).save(tmp_path / "grey.png")
    assert np.asarray(read_image(tmp_path / "grey.png")).tolist() == [[[100] * 3] * 4] * 4


def test_orientation_tag_is_obeyed(tmp_path):
    image = picture((0, 0, 0), (6, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert read_image(tmp_path / "photo.jpg").size == (3, 6)


def test_fit_keeps_the_centre_and_copies_nothing_at_the_right_size():
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255
    assert (np.asarray(fit(Image.fromarray(wide), 8)) == 255).all()
    image = picture((1, 2, 3), (8, 8))
    assert fit(image, 8) is image
    assert fit(picture((9, 9, 9), (33, 17)), 8).size == (8, 8)


def test_random_resized_crop_depends_on_seed_epoch_and_index_alone(tmp_path):
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 40, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    images = LazyImages([tmp_path / "noise.png"] * 2, 8, crop_scale=0.1, seed=3)
    first = images[0]
    torch.manual_seed(99)
    assert torch.equal(first, images[0])
    assert not torch.equal(first, images[1])
    images.epoch = 1
    assert not torch.equal(first, images[0])
    whole = random_resized_crop(noise, 8, 1.0, random.Random(0))
    assert whole.size == (8, 8) and to_tensor(whole).shape == (3, 8, 8)


def test_decode_all_keeps_the_order_over_many_pieces(tmp_path):
    items = []
    for value in range(60):
        buffer = io.BytesIO()
        picture((value, 0, 0), (4, 4)).save(buffer, "png")
        items.append({"bytes": buffer.getvalue(), "path": None})
    decoded = decode_all(items * 40, None)
    assert decoded.shape == (2400, 3, 4, 4)
    assert decoded[:, 0, 0, 0].tolist() == list(range(60)) * 40


@pytest.mark.parametrize("size", [(640, 480), (31, 200), (97, 41), (9, 9), (224, 225)])
def test_fit_equals_the_centre_of_the_resized_image(size):
    noise = Image.fromarray(np.random.randint(60, 190, (6, 6, 3), dtype=np.uint8))
    smooth = noise.resize(size, Image.Resampling.BICUBIC)  # nothing is clipped between the passes, whatever their order
    (height, width), (top, left) = placement(size[::-1], 32)
    whole = smooth.resize((width, height), Image.Resampling.BICUBIC)
    centre = np.asarray(whole.crop((left, top, left + 32, top + 32))).astype(int)
    assert abs(np.asarray(fit(smooth, 32)) - centre).max() <= 1


def test_a_very_long_image_takes_little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fit(picture((9, 8, 7), (65000, 1)), 224).getpixel((5, 5)) == (9, 8, 7)
    assert fit(picture((9, 8, 7), (1, 60000)), 224).getpixel((5, 5)) == (9, 8, 7)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # KiB


@pytest.mark.parametrize("wide", [True, False])
def test_of_a_very_long_image_the_centre_is_kept(wide):
    pixels = np.zeros((1, 65000, 3), dtype=np.uint8)
    pixels[:, 32500:] = 255
    pixels = pixels if wide else pixels.transpose(1, 0, 2)
    found = np.asarray(fit(Image.fromarray(np.ascontiguousarray(pixels)), 224))[..., 0].astype(float)
    found = found if wide else found.T
    assert (np.diff(found, axis=1) >= 0).all() and (found == found[0]).all()
    assert found[0, 0] < 50 and found[0, -1] > 205 and found.mean() == pytest.approx(127.5, abs=2)


class Blank:
    """An image that only notes what is cut out of it."""

    def __init__(self, width: int, height: int):
        self.width, self.height, self.boxes = width, height, []

    def resize(self, size, resample, box):
        self.boxes.append(box)
        return size


def test_random_crops_reach_every_size_aspect_and_place():
    """From a quarter of the area to all of it, aspects from 3/4 to 4/3 (1409.4842, section 6), up to every border."""
    image = Blank(4000, 3000)
    for seed in range(4000):
        assert random_resized_crop(image, (5, 7), 0.25, random.Random(seed)) == (7, 5)
    left, top, right, bottom = np.array(image.boxes).T
    width, height = right - left, bottom - top
    area, aspect = width * height / 12e6, width / height
    assert 0.2499 < area.min() < 0.26 and 0.97 < area.max() <= 1
    assert 0.7495 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.3345
    for start, end, side in ((left, right, 4000), (top, bottom, 3000)):
        assert 0 <= start.min() < 0.01 * side and 0.99 * side < end.max() <= side
        assert start.max() > 0.4 * side and end.min() < 0.6 * side


def test_what_is_a_little_below_black_is_black_and_more_is_no_brightness():
    """As interpolation leaves it; the whole scale is that of the largest value."""
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    values[0, 0] = -0.005
    assert np.asarray(to_rgb(Image.fromarray(values))).min() == 0
    values[0, 0] = -0.5
    with pytest.raises(ValueError, match="no brightness is negative"):
        to_rgb(Image.fromarray(values))


def test_every_crop_has_random_numbers_of_its_own(tmp_path, monkeypatch):
    picture((0, 0, 0)).save(tmp_path / "black.png")
    drawn = []

    def draw(image, size, _, generator):
        drawn.append(generator.random())
        return fit(image, size)

    monkeypatch.setattr(images_module, "random_resized_crop", draw)
    for seed in (0, 1, 2**32):
        images = LazyImages([tmp_path / "black.png"] * 12000, 4, crop_scale=0.1, seed=seed)
        for images.epoch in range(100):
            for index in (0, 1, 499, 500, 5000, 11999):
                images[index]
    assert len(set(drawn)) == len(drawn) == 3 * 100 * 6


@pytest.mark.parametrize(
    ("kind", "top"), [(np.float32, 1), (np.float32, 255), (np.int32, 65535), (np.uint16, 4095), (np.uint16, 65535)]
)
def test_white_is_the_largest_value_of_the_images_own_range(tmp_path, kind, top):
    levels = np.linspace(0, top, 16).astype(kind).reshape(4, 4)
    Image.fromarray(levels).save(tmp_path / "grey.tiff")
    found = np.asarray(read_image(tmp_path / "grey.tiff"))[..., 0].reshape(-1)
    assert abs(found - np.linspace(0, 255, 16)).max() <= 1.01


def test_a_damaged_image_is_named_without_the_address_of_an_object():
    with pytest.raises(ValueError, match=r"^image 'row 3\\x1b' could not be read: it is no image$"):
        read_image({"bytes": b"no image", "path": "row 3\x1b"})
    with pytest.raises(ValueError, match=r"^image 'nowhere\.png' could not be read: No such file or directory$"):
        read_image("nowhere.png")
