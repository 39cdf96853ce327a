"""Images whose pixels are the numbers of objects: their masks are encoded one at a time."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from redetr.data.formats import label_images, voc_masks
from redetr.data.segment_images import SegmentImages, encode_numbers
from redetr.masks import boxes_of_masks, encode

HEIGHT, WIDTH = 1000, 1500
COUNT = 200  # objects, of which dense masks take 300 MB
MOST_BYTES = 50  # a pixel


@pytest.mark.parametrize("highest", [1, 3, 255, 256, 70_000, 2**24 - 1])
def test_numbers_are_encoded_as_their_masks(highest):
    random = np.random.default_rng(highest)
    numbers = random.choice([0, highest // 2, highest], (13, 17)).astype(np.int64)
    wanted = [highest, 2, highest // 2, highest + 1, 2**40]
    masks = torch.from_numpy(numbers == np.array(wanted)[:, None, None])
    assert encode_numbers(numbers, wanted) == encode(masks)
    assert encode_numbers(numbers, []) == []


@pytest.fixture(scope="module")
def large_image(tmp_path_factory) -> Path:
    """A label image with 200 objects in 20 rows."""
    rows = np.arange(HEIGHT)[:, None] // 50
    columns = np.arange(WIDTH) // 150
    numbers = rows * 10 + columns + 1
    file = tmp_path_factory.mktemp("numbers") / "a.png"
    Image.fromarray(numbers.astype(np.uint8)).save(file)
    return file


def read_voc(file: Path) -> list:
    return voc_masks._read_scene(file.parent, "a", COUNT, (HEIGHT, WIDTH)).masks


def read_segments(file: Path) -> list:
    names = np.array([file.name.encode()], "S")
    files = np.zeros(COUNT, np.int64)
    images = SegmentImages(file.parent, names, files, np.arange(1, COUNT + 1))
    return images.rles(slice(0, COUNT), (HEIGHT, WIDTH))


def read_labels(file: Path) -> list:
    return label_images._read(file.parent, True, file.name).masks


@pytest.mark.parametrize("read", [read_voc, read_segments, read_labels])
def test_memory_does_not_grow_with_the_objects(large_image, read):
    read(large_image)  # imports take memory once
    tracemalloc.start()
    counts = read(large_image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_BYTES * HEIGHT * WIDTH
    assert len(set(counts)) == COUNT


def test_boxes_of_voc_are_those_of_the_masks(tmp_path):
    """With an object that has no pixels, and void pixels, which widen the boxes by 5 px."""
    numbers = np.random.default_rng(0).choice([0, 0, 0, 1, 3], (30, 40))
    for void, margin in ((0, 0), (255, 5)):
        numbers[0, 0] = void
        Image.fromarray(numbers.astype(np.uint8)).save(tmp_path / "a.png")
        scene = voc_masks._read_scene(tmp_path, "a", 3, (30, 40))
        masks = torch.from_numpy(numbers == np.array([1, 2, 3])[:, None, None])
        widened = boxes_of_masks(masks) + torch.tensor([-margin, -margin, margin, margin])
        widened[1] = torch.nan
        np.testing.assert_array_equal(scene.boxes, widened.numpy())
        assert scene.masks == encode(masks)
