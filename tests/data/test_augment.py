"""Augmentations: the laws that each one obeys on every batch, and that the generator alone decides."""

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from minivim.data.augment import (
    augment,
    beta,
    box_masks,
    colour_jitter,
    cutmix,
    luminance,
    mixup,
    normalise,
    one_hot,
    random_affine,
    random_crop,
    random_erase,
    random_flip,
    uniform,
)  # fmt: skip
from minivim.train.recipes import TrainConfig, resolve


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photos(count: int = 8, size: int = 9) -> torch.Tensor:
    return torch.rand(count, 3, size, size + 1)


EVERY = {
    "crop": lambda x, g: random_crop(x, 2, g),
    "flip": lambda x, g: random_flip(x, 0.5, g),
    "affine": lambda x, g: random_affine(x, 20.0, 0.2, 1.5, g),
    "jitter": lambda x, g: colour_jitter(x, 0.4, g),
    "erase": lambda x, g: random_erase(x, 0.5, g),
    "mixup": lambda x, g: mixup(x, one_hot(torch.arange(len(x)), 8), 0.8, g)[0],
    "cutmix": lambda x, g: cutmix(x, one_hot(torch.arange(len(x)), 8), 1.0, g)[0],
}


@pytest.mark.parametrize("name", EVERY)
def test_the_generator_alone_decides(name):
    images = torch.rand(8, 3, 9, 9)
    torch.manual_seed(1)
    first = EVERY[name](images, generator(7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = EVERY[name](images, generator(7))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())  # the global generator is left alone
    assert first.shape == images.shape and first.dtype == images.dtype
    assert not torch.equal(first, EVERY[name](images, generator(8)))


@given(st.integers(0, 4), st.integers(0, 1000))
def test_crop_is_a_shift_by_whole_pixels(padding, seed):
    images = photos(4) + 1  # no pixel is black by itself
    cropped = random_crop(images, padding, generator(seed))
    padded = F.pad(images, (padding,) * 4)
    H, W = images.shape[-2:]
    for image, source in zip(cropped, padded, strict=True):
        windows = source.unfold(1, H, 1).unfold(2, W, 1)  # (3, shifts, shifts, H, W)
        assert (windows == image[:, None, None]).all(-1).all(-1).all(0).any()


def test_crop_reaches_every_shift_and_without_padding_does_nothing():
    marked = torch.zeros(400, 3, 5, 5)
    marked[:, :, 2, 2] = 1
    places = random_crop(marked, 1, generator())[:, 0].flatten(1).argmax(1)
    assert sorted(places.unique().tolist()) == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert torch.equal(random_crop(marked, 0, generator()), marked)


def test_flip_mirrors_some_all_or_none():
    images = photos(64)
    assert torch.equal(random_flip(images, 0.0, generator()), images)
    assert torch.equal(random_flip(images, 1.0, generator()), images.flip(-1))
    half = random_flip(images, 0.5, generator())
    mirrored = (half == images.flip(-1)).flatten(1).all(1)
    kept = (half == images).flatten(1).all(1)
    assert (mirrored | kept).all() and 16 < mirrored.sum() < 48


def test_affine_without_movement_is_the_identity():
    images = torch.rand(4, 3, 8, 8)
    assert torch.allclose(random_affine(images, 0.0, 0.0, 0.0, generator()), images, atol=1e-6)


def test_affine_moves_by_pixels_and_keeps_the_centre_when_turning():
    ramp = torch.arange(16.0).expand(32, 3, 16, 16)  # a linear image, so that bilinear samples are exact
    moved = random_affine(ramp.contiguous(), 0.0, 0.0, 3.0, generator())[:, 0, 8, 8] - 8
    assert moved.abs().max() <= 3 and moved.abs().max() > 2 and moved.std() > 1
    disc = ((torch.arange(17.0) - 8)[:, None] ** 2 + (torch.arange(17.0) - 8) ** 2 < 30).float().expand(8, 3, 17, 17)
    turned = random_affine(disc.contiguous(), 180.0, 0.0, 0.0, generator())
    assert (turned - disc).abs().mean() < 0.03  # a disc does not notice


@pytest.mark.parametrize("direction", [-1, 1])
def test_affine_zoom_changes_the_area_as_it_says(direction, monkeypatch):
    monkeypatch.setattr(
        "minivim.data.augment.uniform", lambda n, low, high, g: torch.full((n,), high if direction > 0 else low)
    )
    square = F.pad(torch.ones(1, 3, 20, 20), (10,) * 4)
    area = random_affine(square, 0.0, 0.2, 0.0, generator())[0, 0].sum().item()
    assert area == pytest.approx(400 * (1 + 0.2 * direction) ** 2, rel=0.01)


def test_jitter_keeps_the_range_and_greys():
    images = photos()
    changed = colour_jitter(images, 0.5, generator())
    assert changed.min() >= 0 and changed.max() <= 1
    assert torch.allclose(colour_jitter(images, 0.0, generator()), images, atol=1e-6)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    changed = colour_jitter(grey, 0.5, generator())
    assert torch.allclose(changed, changed[:, :1].expand_as(changed), atol=1e-6)
    assert torch.allclose(luminance(grey), grey[:, :1], atol=1e-6)


def test_jitter_changes_brightness_contrast_and_saturation_each_by_up_to_the_share():
    """From two colours that are far from black and white all three factors can be read off; they are independent."""
    share, found = 0.4, []
    two = torch.tensor([[0.45, 0.4, 0.35], [0.35, 0.3, 0.25]]).T[:, None, :]  # (3, 1, 2)
    for seed in range(20):
        changed = colour_jitter(two.expand(100, 3, 1, 2).contiguous(), share, generator(seed))
        before, after = luminance(two[None])[:, 0, 0], luminance(changed)[:, 0, 0]
        brightness = after.mean(1) / before.mean(1)
        contrast = (after[:, 0] - after[:, 1]) / (before[:, 0] - before[:, 1]) / brightness
        saturation = (changed[:, 0, 0, 0] - changed[:, 2, 0, 0]) / (two[0, 0, 0] - two[2, 0, 0]) / brightness / contrast
        found.append(torch.stack([brightness, contrast, saturation]))
    factors = torch.cat(found, 1)
    assert factors.min() > 1 - share - 1e-4 and factors.max() < 1 + share + 1e-4
    assert (factors.amin(1) < 1 - 0.99 * share).all() and (factors.amax(1) > 1 + 0.99 * share).all()
    assert torch.allclose(factors.mean(1), torch.ones(3), atol=0.02)
    assert (torch.corrcoef(factors) - torch.eye(3)).abs().max() < 0.1


def test_normalise_gives_mean_0_and_standard_deviation_1():
    from minivim.data import channel_statistics

    images = torch.randint(0, 200, (100, 3, 6, 6), dtype=torch.uint8)
    normal = normalise(images, *channel_statistics(images))
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normal.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    assert torch.allclose(normalise(images.float() / 255, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
                          normalise(images, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)))  # fmt: skip


def test_constants_are_made_once_and_may_be_differentiated_whoever_asked_first():
    """A list that is copied to a GPU makes the process wait for it."""
    mean, std = (0.11, 0.22, 0.33), (0.4, 0.5, 0.6)
    with torch.inference_mode():
        first = normalise(torch.ones(1, 3, 2, 2), mean, std)
    images = torch.ones(1, 3, 2, 2, requires_grad=True)
    with mock.patch.object(torch, "tensor", side_effect=AssertionError("made again")):
        again = normalise(images, mean, std)
    assert torch.equal(first, again)
    again.sum().backward()
    assert torch.allclose(images.grad[0, :, 0, 0], 1 / torch.tensor(std))
    double = normalise(torch.ones(1, 3, 2, 2, dtype=torch.float64), mean, std)[0, :, 0, 0]
    assert double.tolist() == pytest.approx([(1 - m) / s for m, s in zip(mean, std, strict=True)], rel=1e-14)


def test_boxes_have_the_share_they_should_when_inside():
    share = torch.full((1000,), 0.09)
    masks = box_masks(share, torch.ones(1000), 40, 40, generator())
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    whole = masks.mean((1, 2))
    assert whole.max() <= 0.0901
    assert (whole > 0.0899).float().mean() == pytest.approx(0.49, abs=0.05)  # 0.7 * 0.7 keep clear of the border
    rows, columns = masks.amax(2).sum(1), masks.amax(1).sum(1)
    assert torch.equal(rows * columns, masks.sum((1, 2)))  # each is one rectangle


def test_boxes_are_as_likely_at_one_border_as_at_the_other():
    masks = box_masks(torch.full((20000,), 1 / 16), torch.ones(20000), 8, 8, generator())  # of two pixels by two
    rows, columns = masks.mean((0, 2)), masks.mean((0, 1))
    for profile in (rows, columns):
        assert torch.allclose(profile, profile.flip(0), atol=0.005)
        assert profile[0].item() == pytest.approx(0.75 * profile[3].item(), rel=0.05)  # where a part is clipped


def test_erase_zeroes_one_box_in_the_given_share_of_images():
    images = torch.ones(400, 3, 20, 20)
    erased = random_erase(images, 0.25, generator())
    holes = erased[:, 0] == 0
    assert torch.equal(erased, images * ~holes[:, None])
    assert 0.15 < (holes.any(2).any(1)).float().mean() < 0.35
    assert torch.equal(random_erase(images, 0.0, generator()), images)


def test_erased_boxes_reach_from_2_to_33_percent_and_from_wide_to_tall():
    """Of 2,000 boxes those clear of the border, within the half pixel by which their sides are rounded."""
    side, sizes, shares = 96, [], []
    for seed in range(20):
        holes = random_erase(torch.ones(100, 3, side, side), 1.0, generator(seed))[:, 0] == 0
        shares.append(holes.float().mean((1, 2)))
        clear = ~(holes[:, [0, -1]].any(2).any(1) | holes[:, :, [0, -1]].any(1).any(1))
        sizes.append(torch.stack([holes.any(2).sum(1), holes.any(1).sum(1)])[:, clear & holes.any(2).any(1)])
    assert torch.cat(shares).max() <= (1 / 3) * 1.05
    height, width = torch.cat(sizes, 1).double()
    assert len(height) > 400
    assert ((height + 1) * (width + 1) >= 0.02 * side**2).all()
    assert ((height - 1) * (width - 1) <= side**2 / 3).all()
    assert ((height + 1) / (width - 1) >= 0.3).all() and ((height - 1) / (width + 1) <= 1 / 0.3).all()
    area, aspect = height * width / side**2, height / width
    assert area.min() < 0.025 and area.max() > 0.28
    assert aspect.min() < 0.33 and aspect.max() > 3


@given(st.integers(2, 12), st.floats(0, 1), st.integers(0, 100))
def test_smoothed_targets_are_distributions(classes, smoothing, seed):
    labels = torch.randint(0, classes, (5,), generator=generator(seed))
    targets = one_hot(labels, classes, smoothing)
    assert torch.allclose(targets.sum(1), torch.ones(5), atol=1e-6) and (targets >= 0).all()
    others = targets.scatter(1, labels[:, None], torch.nan)
    assert torch.allclose(others[~others.isnan()], torch.tensor(smoothing / classes), atol=1e-6)
    logits = torch.randn(5, classes, generator=generator(seed))
    ours = F.cross_entropy(logits, targets)
    assert torch.allclose(ours, F.cross_entropy(logits, labels, label_smoothing=smoothing), atol=1e-5)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_beta_has_the_mean_and_variance_of_the_distribution(alpha):
    g = generator()
    draws = torch.tensor([beta(alpha, g) for _ in range(4000)])
    assert draws.min() >= 0 and draws.max() <= 1
    assert draws.mean().item() == pytest.approx(0.5, abs=0.03)
    assert draws.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@given(st.sampled_from([mixup, cutmix]), st.floats(0.1, 3), st.integers(0, 1000))
def test_mixtures_mix_targets_in_the_proportion_of_the_pixels(mix, alpha, seed):
    """With image b constant and equal to b, the mean pixel says which share of whom is in the mixture."""
    B = 6
    images = torch.arange(float(B))[:, None, None, None].expand(B, 3, 8, 8).contiguous()
    mixed, targets = mix(images, torch.eye(B), alpha, generator(seed))
    assert torch.allclose(targets.sum(1), torch.ones(B), atol=1e-5)
    expected = targets @ torch.arange(float(B))
    assert torch.allclose(mixed.mean((1, 2, 3)), expected, atol=1e-4)
    if mix is cutmix:  # every pixel belongs to one image or the other
        assert torch.equal(mixed, mixed.round())


def test_augment_does_what_the_configuration_says():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(6)
    plain = dict.fromkeys(["flip", "rotate", "zoom", "shift", "jitter", "erase", "smoothing", "mixup", "cutmix"], 0.0)
    plain["crop"] = 0
    stats = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))

    def run(**changes):
        config = resolve(TrainConfig(data="digits", **{**plain, **changes}))
        return augment(images, labels, 6, *stats, config, generator())

    nothing, targets = run()
    assert torch.equal(nothing, normalise(images, *stats)) and torch.equal(targets, torch.eye(6))
    for change in ({"crop": 2}, {"flip": 1.0}, {"rotate": 30.0}, {"zoom": 0.3}, {"shift": 2.0}, {"jitter": 0.5},
                   {"erase": 1.0}, {"mixup": 1.0}, {"cutmix": 1.0}):  # fmt: skip
        assert not torch.equal(run(**change)[0], nothing), change
    assert run(smoothing=0.3)[1].max() == pytest.approx(0.75)


def test_what_is_erased_becomes_the_mean_and_not_black():
    plain = dict.fromkeys(["flip", "rotate", "zoom", "shift", "jitter", "smoothing", "mixup", "cutmix"], 0.0)
    config = resolve(TrainConfig(data="digits", **plain, crop=0, erase=1.0))
    images, labels = torch.full((20, 3, 32, 32), 200, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)
    out, _ = augment(images, labels, 2, (0.5,) * 3, (0.25,) * 3, config, generator())
    assert out.unique().tolist() == [0.0, pytest.approx((200 / 255 - 0.5) / 0.25)]


def test_with_both_mixtures_on_each_gets_about_half_of_the_batches():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    images[:2] = 255
    config = resolve(TrainConfig(data="shapes", crop=0, flip=0.0, smoothing=0.0, mixup=1.0, cutmix=1.0))
    blended = 0
    for seed in range(200):
        mixed, _ = augment(images, torch.arange(4), 4, (0.0,) * 3, (1.0,) * 3, config, generator(seed))
        blended += ((mixed > 0.001) & (mixed < 0.999)).any().item()
    assert 50 < blended < 120  # mixup gives greys unless it mixes equal images


def test_digits_are_never_mirrored():
    assert resolve(TrainConfig(data="digits")).flip == 0
    marked = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    marked[:, :, :, :2] = 255
    config = resolve(TrainConfig(data="digits"))
    out, _ = augment(marked, torch.zeros(64, dtype=torch.int64), 10, (0.0,) * 3, (1.0,) * 3, config, generator())
    assert (out[..., :4].sum((1, 2, 3)) > out[..., 4:].sum((1, 2, 3))).all()


def test_uniform_covers_its_interval():
    numbers = uniform(4000, -2, 5, generator())
    assert numbers.min() >= -2 and numbers.max() <= 5 and numbers.mean().item() == pytest.approx(1.5, abs=0.15)
