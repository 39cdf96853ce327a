"""Scenes of handwritten digits: a function of (seed, split, index), with tight boxes, and no scan in both splits."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from redetr.data import Hints, open_dataset
from redetr.data.forms.digits import _INKED, DigitsDataset, _arranged, _scans, in_validation


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
    dataset, again = DigitsDataset("val", seed=3), pickle.loads(pickle.dumps(DigitsDataset("val", seed=3)))
    again.sample(5)
    image, target = dataset.sample(7)
    assert torch.equal(image, again.image(7))
    assert torch.equal(image, DigitsDataset("val", seed=3, size=8).image(-1))
    assert torch.equal(target["boxes"], again.target(7)["boxes"])
    assert torch.equal(target["labels"], again.target(7)["labels"])
    for other in (DigitsDataset("val", seed=4).image(7), DigitsDataset("train", seed=3).image(7), dataset.image(8)):
        assert not torch.equal(image, other)


def test_no_scan_is_in_both_splits():
    data = load_digits()
    held_out = in_validation(data.target)
    train, val = (set(map(bytes, data.data[rows].astype(np.uint8))) for rows in (~held_out, held_out))
    assert not train & val
    assert len(val) == held_out.sum() == 355
    assert [int((data.target[held_out] == digit).sum()) for digit in range(10)] == [
        int((data.target == digit).sum()) // 5 for digit in range(10)
    ]
    assert len(_scans("train")[0]) + len(_scans("val")[0]) == len(data.target)


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
