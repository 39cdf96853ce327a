"""Scenes of handwritten digits: a function of (seed, split, index), with tight boxes, and no scan
in both splits."""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from redetr.data import Hints, open_dataset
from redetr.data.formats.digits import (
    _INKED,
    DigitsDataset,
    _arranged,
    _scans,
    in_validation,
    read_scans,
)
from redetr.errors import InputError

# Validation scenes: index, digits, their boxes, mean brightness. Recorded results rest on them.
KNOWN_SCENES = [
    (
        1,
        [5, 1, 3, 7, 6, 1, 6],
        [
            [68, 56, 84, 77],
            [84, 32, 107, 64],
            [69, 89, 87, 117],
            [83, 91, 96, 112],
            [76, 19, 87, 40],
            [44, 90, 62, 120],
            [17, 54, 31, 74],
        ],
        104.38,
    ),
    (150, [6, 9], [[25, 47, 54, 89], [7, 2, 23, 26]], 178.11),
]


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_a_scene_is(split):
    dataset = open_dataset("digits", split)
    assert dataset.class_names == tuple("0123456789")
    assert dataset.category_ids == tuple(range(10))
    assert dataset.hints == Hints(image_size=128, augment="plain", num_queries=25)
    assert len(dataset) == {"train": 20_000, "val": 300}[split]
    for index in range(30):
        image, target = dataset[index]
        assert (image.shape, image.dtype) == ((3, 128, 128), torch.uint8)
        count = len(target["labels"])
        assert 1 <= count <= 8
        assert target["boxes"].shape == (count, 4)
        assert target["boxes"].min() >= 0
        assert target["boxes"].max() <= 128
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        assert sides.min() >= 2
        assert torch.equal(target["area"], sides.prod(1))
        assert target["labels"].dtype == torch.int64
        assert set(target["labels"].tolist()) <= set(range(10))
        assert not target["iscrowd"].any()
        assert target["image_id"] == index
        assert target["orig_size"] == target["size"] == (128, 128)


def test_scenes_depend_on_seed_split_and_index_alone():
    dataset, again = (
        DigitsDataset("val", seed=3),
        pickle.loads(pickle.dumps(DigitsDataset("val", seed=3))),
    )
    again.sample(5)
    image, target = dataset.sample(7)
    assert torch.equal(image, again.image(7))
    assert torch.equal(image, DigitsDataset("val", seed=3, size=8).image(-1))
    assert torch.equal(target["boxes"], again.target(7)["boxes"])
    assert torch.equal(target["labels"], again.target(7)["labels"])
    for other in (
        DigitsDataset("val", seed=4).image(7),
        DigitsDataset("train", seed=3).image(7),
        dataset.image(8),
    ):
        assert not torch.equal(image, other)


def test_the_scans_are_those_of_uci():
    scans, digits = read_scans()
    assert (scans.shape, scans.dtype) == ((1797, 8, 8), np.uint8)
    assert (digits.shape, digits.dtype) == ((1797,), np.uint8)
    assert (
        hashlib.sha256(scans).hexdigest()
        == "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    )
    assert (
        hashlib.sha256(digits).hexdigest()
        == "8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0"
    )


@pytest.mark.parametrize(("index", "labels", "boxes", "brightness"), KNOWN_SCENES)
def test_scenes_stay_as_they_are(index, labels, boxes, brightness):
    """Up to what processors round differently: a pixel at the edge of a digit."""
    image, target = DigitsDataset("val").sample(index)
    assert target["labels"].tolist() == labels
    torch.testing.assert_close(
        target["boxes"], torch.tensor(boxes, dtype=torch.float32), atol=1, rtol=0
    )
    assert image.float().mean().item() == pytest.approx(brightness, abs=0.1)


def test_no_scan_is_in_both_splits():
    scans, digits = read_scans()
    held_out = in_validation(digits)
    train = {scan.tobytes() for scan in scans[~held_out]}
    val = {scan.tobytes() for scan in scans[held_out]}
    assert not train & val
    assert len(val) == held_out.sum() == 355
    for digit in range(10):
        of_digit = digits == digit
        assert held_out[of_digit].sum() == of_digit.sum() // 5
    assert len(_scans("train")[0]) + len(_scans("val")[0]) == len(digits)


def test_boxes_are_tight_and_no_digit_is_hidden():
    random = np.random.default_rng(0)
    for _ in range(100):
        glyphs = _arranged(random, "train")
        owner = np.zeros((128, 128), int)
        for number, glyph in enumerate(glyphs, start=1):
            left, top, right, bottom = glyph.box
            inked = glyph.ink >= _INKED
            assert inked[0].any()
            assert inked[-1].any()
            assert inked[:, 0].any()
            assert inked[:, -1].any()
            owner[top:bottom, left:right][inked] = number
        for number, glyph in enumerate(glyphs, start=1):
            assert (owner == number).sum() >= 0.6 * (glyph.ink >= _INKED).sum()


def test_digits_stand_out_from_the_ground():
    dataset = DigitsDataset("train")
    apart = []
    for index in range(40):
        image, target = dataset.sample(index)
        brightness = image.numpy().mean(axis=0)
        for left, top, right, bottom in target["boxes"].int().tolist():
            inside = brightness[top:bottom, left:right]
            apart.append(np.quantile(np.abs(inside - np.median(brightness)), 0.9))
    assert np.quantile(apart, 0.05) > 45


def test_masks_are_where_the_ink_of_a_digit_is_on_top():
    dataset = open_dataset("digits", "val", masks=True)
    assert dataset.has_masks
    for index in range(20):
        _, target = dataset.sample(index)
        masks = target["masks"]
        assert masks.dtype == torch.bool
        assert masks.shape == (len(target["labels"]), 128, 128)
        assert torch.equal(masks, dataset.target(index)["masks"])
        assert masks.sum(0).max() <= 1  # no pixel belongs to two digits
        glyphs = _arranged(dataset._random(index), "val")
        for number, glyph in enumerate(glyphs):
            left, top, right, bottom = glyph.box
            inked = torch.from_numpy(glyph.ink >= _INKED)
            mask = masks[number].clone()
            covers = masks[number + 1 :, top:bottom, left:right].any(0)
            assert torch.equal(mask[top:bottom, left:right], inked & ~covers)
            mask[top:bottom, left:right] = False
            assert not mask.any()  # none outside of the box
    _, plain = open_dataset("digits", "val").sample(0)
    assert "masks" not in plain
    assert torch.equal(plain["boxes"], dataset.target(0)["boxes"])


def test_data_with_boxes_only_has_no_masks():
    with pytest.raises(InputError, match="has only boxes, no masks; draw outlines"):
        open_dataset("crowns", "train", masks=True)
