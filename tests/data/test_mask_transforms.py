"""Masks on their way to the model: where the pixels of their objects go, to the pixel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from redetr.data import open_dataset
from redetr.data.cache import ImageCache
from redetr.data.loader import Samples, load_batches
from redetr.data.mosaic import mixed, mosaic
from redetr.data.sampler import TrainSampler
from redetr.data.transforms import Transform, augmentation, derived_rng, resizer, seen
from redetr.data.views import Fit, Stretch, View, Whole
from redetr.masks import boxes_of_masks, encode


def blob(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """An ellipse, a thin line or scattered pixels, bool `[h, w]`."""
    y, x = np.mgrid[:height, :width]
    center = random.random(2) * (height, width)
    radii = 1 + random.random(2) * (height / 2, width / 2)
    kind = random.integers(3)
    if kind == 0:
        return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1
    if kind == 1:
        return np.abs(y - x * height / width) < 0.8
    return random.random((height, width)) < 0.02


def drawn_view(random: np.random.Generator, height: int, width: int) -> View:
    """Any view: within the image or beyond it, smaller or larger, mirrored and turned."""
    left, top = (random.integers(-20, (width, height)) * (random.random(2) < 0.7)).tolist()
    right = max(left, 0) + 1 + int(random.integers(1, width))
    bottom = max(top, 0) + 1 + int(random.integers(1, height))
    size = tuple(random.integers(8, 90, 2).tolist())
    turns = int(random.integers(4))
    return View((left, top, right, bottom), size, bool(random.integers(2)), turns)


@given(seed=st.integers(0, 10**6))
def test_a_mask_goes_where_the_image_of_it_goes(seed):
    """The mask is painted red on blue: grey is what lies beyond the image."""
    random = np.random.default_rng(seed)
    height, width = random.integers(20, 100, 2).tolist()
    mask = blob(random, height, width)
    view = drawn_view(random, height, width)
    shown = np.zeros(view.size, bool)
    view.show_mask(mask, shown)

    painted = np.stack([255 * mask, 0 * mask, np.full_like(mask, 255, np.uint8)])
    pixels = view.pixels(torch.from_numpy(painted.astype(np.uint8)), (height, width)).numpy()
    red = np.where(pixels[2] == 255, pixels[0], 0).astype(int)
    clearly = np.abs(2 * red - red.max()) > 6  # torchvision and Pillow round differently
    expected = 2 * red >= max(red.max(), 1)
    np.testing.assert_array_equal(shown[clearly], expected[clearly])


@given(seed=st.integers(0, 10**6))
def test_mirroring_commutes_with_resizing(seed):
    random = np.random.default_rng(seed)
    height, width = random.integers(4, 60, 2).tolist()
    mask = blob(random, height, width)
    size = tuple(random.integers(2, 60, 2).tolist())
    plain, mirrored = np.zeros(size, bool), np.zeros(size, bool)
    View((0, 0, width, height), size).show_mask(mask, plain)
    View((0, 0, width, height), size, mirrored=True).show_mask(mask, mirrored)
    np.testing.assert_array_equal(mirrored[:, ::-1], plain)


def test_resizing_by_hand():
    mask = np.zeros((4, 8), bool)
    mask[1:3, 2:6] = True
    doubled, halved, same = np.zeros((8, 16), bool), np.zeros((2, 4), bool), np.zeros((4, 8), bool)
    view = View((0, 0, 8, 4), (8, 16))
    view.show_mask(mask, doubled)
    np.testing.assert_array_equal(doubled, mask.repeat(2, 0).repeat(2, 1))
    View((0, 0, 8, 4), (4, 8)).show_mask(mask, same)
    np.testing.assert_array_equal(same, mask)
    line = np.zeros((40, 40), bool)
    line[5] = True  # a quarter of a pixel of the result
    View((0, 0, 40, 40), (10, 10)).show_mask(line, shown := np.zeros((10, 10), bool))
    assert shown[1].all()
    assert shown.sum() == 10
    View((0, 0, 8, 4), (2, 4)).show_mask(np.zeros((4, 8), bool), halved)
    assert not halved.any()


def stored_scene(seed: int, crowd: bool = False) -> tuple[Tensor, dict]:
    """Rectangles in an image, with their masks; that of the last one, a large box, is not known."""
    random = np.random.default_rng(seed)
    height, width = random.integers(40, 90, 2).tolist()
    masks = np.zeros((4, height, width), bool)
    for mask in masks[:3]:
        top, left = random.integers(0, (height - 12, width - 12))
        mask[top : top + random.integers(4, 12), left : left + random.integers(4, 12)] = True
    boxes = boxes_of_masks(torch.from_numpy(masks))
    boxes[3] = torch.tensor([2, 2, width - 2, height - 2])
    image = torch.from_numpy(random.integers(0, 255, (3, height, width), np.uint8))
    return image, {
        "boxes": boxes,
        "labels": torch.arange(4),
        "image_id": seed,
        "orig_size": (height, width),
        "size": (height, width),
        "iscrowd": torch.tensor([crowd, False, False, False]),
        "area": boxes[:, 2:].prod(1),
        "masks": torch.from_numpy(masks),
    }


def assert_masks_fill_boxes(target: dict) -> None:
    """Each rectangle is its box, up to a pixel at each edge; only that of the last is not known."""
    height, width = target["size"]
    assert target["masks"].shape == (len(target["boxes"]), height, width)
    is_known = target["masks"].flatten(1).any(1)
    assert torch.equal(is_known, target["labels"] != 3)
    around = boxes_of_masks(target["masks"][is_known])
    centers, sides = target["boxes"][is_known, :2], target["boxes"][is_known, 2:]
    corners = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    pixels = corners * torch.tensor([width, height] * 2)
    torch.testing.assert_close(around, pixels, atol=1.0, rtol=0)


@pytest.mark.parametrize("augment", ["plain", "detr", "photo", "strong", "aerial"])
def test_masks_stay_in_their_boxes_in_every_augmentation(augment):
    transform = augmentation(augment, Stretch(64))
    count = count_unknown = 0
    for seed in range(30):
        image, target = stored_scene(seed, crowd=seed % 2 == 0)
        draws = derived_rng(seed)
        view = transform.view(draws, target)
        _, shown = transform.show(draws, view, image, target)
        assert_masks_fill_boxes(shown)
        compact = {key: value for key, value in target.items() if key != "masks"}
        compact["mask_counts"] = encode(target["masks"])
        again = seen(view, compact, transform.min_visible)
        assert torch.equal(again["masks"], shown["masks"])
        assert torch.equal(again["boxes"], shown["boxes"])
        count += len(shown["labels"])
        count_unknown += int((shown["labels"] == 3).sum())
    assert count - count_unknown > 20
    assert count_unknown > 5  # learned by their boxes


def test_masks_of_a_mosaic_stay_in_their_boxes():
    transform = Transform(Whole(Stretch(64)))
    for seed in range(10):
        sources = [stored_scene(4 * seed + number) for number in range(4)]
        _, target = mosaic(derived_rng(seed), transform, (70, 80), sources)
        assert_masks_fill_boxes(target)


def test_images_without_masks_may_be_joined_with_others():
    """A data set of a user's own need not give masks for all images: objects of the others are
    learned by their boxes, whichever image comes first."""
    transform = Transform(Whole(Stretch(64)))
    for seed in range(6):
        sources = [stored_scene(4 * seed + number) for number in range(4)]
        for number in (seed % 4, (seed + 1) % 4):
            del sources[number][1]["masks"]
        _, joined = mosaic(derived_rng(seed), transform, (70, 80), sources)
        is_known = joined["masks"].flatten(1).any(1)
        assert len(is_known) == len(joined["labels"])
        assert is_known.any() and not is_known[joined["labels"] < 3].all()
    masked = transform.show(derived_rng(0), View((0, 0, 40, 40), (64, 64)), *stored_scene(0))
    image, target = masked
    plain = image, {key: value for key, value in target.items() if key != "masks"}
    for pair in ((masked, plain), (plain, masked)):
        _, joined = mixed(0.5, *pair)
        assert joined["masks"].shape == (2 * len(target["labels"]), 64, 64)


def test_an_object_goes_with_its_mask():
    image, target = stored_scene(0)
    _, shown = resizer(Stretch(50)).show(
        derived_rng(0), View((0, 0, 1, 1), (50, 50)), image, target
    )
    assert shown["masks"].shape == (len(shown["labels"]), 50, 50)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_masks_come_through_the_loader(num_workers):
    """Bit for bit, from any number of processes, with a cache, in mosaics and mixtures."""
    data = open_dataset("digits", "train", masks=True)
    transform = augmentation("photo", Fit(96, 200))
    samples = Samples(data, transform, seed=1, cache=ImageCache(20_000, 10**6), mosaic_epochs=1)
    sampler = TrainSampler(8, 4, 0, 0, 2, 0, 1, size_of=samples.size)
    keys = [key for batch in sampler for key in batch]
    arrived = [s for batch in load_batches(samples, sampler, num_workers, False) for s in batch]
    assert len(arrived) == len(keys) == 8
    for key, (image, target) in zip(keys, arrived, strict=True):
        expected_image, expected = samples[key]
        assert torch.equal(image, expected_image)
        assert target["masks"].dtype == torch.bool
        assert target["masks"].shape[1:] == image.shape[1:]
        assert torch.equal(target["masks"], expected["masks"])
        assert target["masks"].flatten(1).any(1).all()
        target["masks"].logical_not_()  # they can be written to


def test_without_masks_no_target_has_the_key():
    samples = Samples(open_dataset("digits", "train"), augmentation("photo", Fit(96)), seed=1)
    assert "masks" not in samples[0, 0][1]
