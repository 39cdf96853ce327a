"""Masks: compressed as pycocotools does it, and the boxes around them."""

import numpy as np
import pycocotools.mask
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from redetr.masks import MaskCrop, boxes_of_masks, decode, encode


def random_masks(seed: int) -> torch.Tensor:
    """Some masks, bool `[N, H, W]`, at times empty, full, or of one pixel's height or width."""
    random = np.random.default_rng(seed)
    shape = random.integers((0, 1, 1), (5, 24, 30))
    share = random.choice([0.0, 0.05, 0.5, 1.0])
    return torch.from_numpy(random.random(shape) < share)


@given(st.integers(0, 10**6))
def test_compression_is_that_of_pycocotools_and_loses_nothing(seed):
    masks = random_masks(seed)
    counts = encode(masks)
    for mask, text in zip(masks.numpy(), counts, strict=True):
        assert text == pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    size = (masks.shape[1], masks.shape[2])
    decoded = decode(counts, size)
    assert decoded.dtype == torch.bool
    assert torch.equal(decoded, masks)


def test_what_is_no_mask_of_this_size_is_refused():
    large = encode(torch.ones(1, 9, 9, dtype=torch.bool))
    for counts in (large, [b"\xff\xff"]):
        with pytest.raises(ValueError, match="RLE"):
            decode(counts, (4, 4))


def test_boxes_of_masks_by_hand():
    masks = torch.zeros(4, 5, 7, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[1, 1:4, 2:7] = True
    masks[2, 0, 6] = True
    masks[2, 4, 0] = True
    expected = [[3, 2, 4, 3], [2, 1, 7, 4], [0, 0, 7, 5], [0, 0, 0, 0]]
    assert boxes_of_masks(masks).tolist() == expected
    assert boxes_of_masks(masks[:0]).shape == (0, 4)


@given(st.integers(0, 10**6))
def test_boxes_of_masks_are_those_of_pycocotools(seed):
    masks = random_masks(seed)
    for box, mask in zip(boxes_of_masks(masks).tolist(), masks.numpy(), strict=True):
        rle = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
        x, y, width, height = pycocotools.mask.toBbox(rle).tolist()
        assert box == [x, y, x + width, y + height]


def test_a_crop_is_reduced_to_the_nearest_pixels():
    generator = torch.Generator().manual_seed(1)
    for _ in range(60):
        height, width, new_height, new_width = torch.randint(1, 60, (4,), generator=generator)
        size, new_size = (int(height), int(width)), (int(new_height), int(new_width))
        mask = torch.zeros(size, dtype=torch.bool)
        top, left = int(height) // 3, int(width) // 2
        part = mask[top : top + 9, left : left + 7]
        part |= torch.rand(part.shape, generator=generator) > 0.4
        reduced = torch.zeros(new_size, dtype=torch.bool)
        MaskCrop.of(mask).reduced(size, new_size).paint(reduced, True)
        expected = F.interpolate(mask[None, None].float(), new_size, mode="nearest-exact")
        assert torch.equal(reduced, expected[0, 0].bool())
