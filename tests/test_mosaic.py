"""Samples of several images: boxes stay on their objects, and the other images depend on (seed,
epoch, id) alone."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from redetr.data.dataset import DetectionDataset
from redetr.data.loader import Samples
from redetr.data.mosaic import combined, mixed, mosaic
from redetr.data.transforms import Transform, augmentation, derived_rng
from redetr.data.views import Fit, Stretch, Whole
from redetr.errors import InputError

# Each of four images has a rectangle in a colour of its own: red, green, blue, white.
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
SIZES = ((60, 90), (90, 60), (50, 50), (80, 120))
PLAIN = Transform(Whole(Stretch(64)))


def stored(number: int, crowd: bool = False) -> tuple[Tensor, dict]:
    """A black image with a rectangle over the middle ninth of it."""
    height, width = SIZES[number]
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    top, bottom, left, right = height // 3, 2 * height // 3, width // 3, 2 * width // 3
    image[:, top:bottom, left:right] = COLOURS[number][:, None, None]
    return image, {
        "boxes": torch.tensor([[left, top, right, bottom]], dtype=torch.float32),
        "labels": torch.tensor([number]),
        "image_id": number,
        "orig_size": (height, width),
        "size": (height, width),
        "iscrowd": torch.tensor([crowd]),
        "area": torch.tensor([100.0 + number]),
    }


class FourImages(DetectionDataset):
    def __len__(self) -> int:
        return 4

    def target(self, index: int) -> dict:
        return stored(index)[1]

    def stored_size(self, index: int) -> tuple[int, int]:
        return self.target(index)["orig_size"]

    def image(self, index: int) -> Tensor:
        return stored(index)[0]


def boxes_px(target: dict) -> np.ndarray:
    height, width = target["size"]
    centers, sizes = target["boxes"][:, :2], target["boxes"][:, 2:]
    return (
        torch.cat([centers - sizes / 2, centers + sizes / 2], 1) * torch.tensor([width, height] * 2)
    ).numpy()


def colour_box(image: Tensor, number: int) -> list[int]:
    """The xyxy box around the pixels of about this colour."""
    close = ((image.int() - COLOURS[number].int()[:, None, None]).abs() < 110).all(0)
    rows, columns = torch.where(close)
    return [
        columns.min().item(),
        rows.min().item(),
        columns.max().item() + 1,
        rows.max().item() + 1,
    ]


@given(seed=st.integers(0, 10_000), height=st.integers(64, 160), width=st.integers(64, 160))
def test_objects_of_a_mosaic_are_under_their_boxes(seed, height, width):
    image, target = mosaic(derived_rng(seed), PLAIN, (height, width), [stored(i) for i in range(4)])
    assert image.shape == (3, height, width)
    assert target["size"] == (height, width)
    assert target["image_id"] == 0
    assert len(target["boxes"]) >= 1
    assert len(set(target["labels"].tolist())) == len(target["labels"])
    for box, label, area in zip(
        boxes_px(target), target["labels"].tolist(), target["area"].tolist(), strict=True
    ):
        assert area == 100.0 + label
        assert colour_box(image, label) == pytest.approx(box.tolist(), abs=3.0)


def test_all_four_images_are_seen_anywhere():
    corners = {number: set() for number in range(4)}
    for seed in range(40):
        _, target = mosaic(derived_rng(seed), PLAIN, (128, 128), [stored(i) for i in range(4)])
        for label, (x, y, _, _) in zip(
            target["labels"].tolist(), target["boxes"].tolist(), strict=True
        ):
            corners[label].add((x > 0.5, y > 0.5))
    assert all(len(places) >= 3 for places in corners.values())


def test_crowds_of_a_mosaic_are_dropped():
    for seed in range(10):
        _, target = mosaic(
            derived_rng(seed), PLAIN, (128, 128), [stored(i, crowd=i > 0) for i in range(4)]
        )
        assert set(target["labels"].tolist()) <= {0}
        assert target["iscrowd"].shape == target["labels"].shape


def test_mixing_by_hand():
    first, second = (
        PLAIN.show(derived_rng(0), PLAIN.view(derived_rng(0), stored(i)[1]), *stored(i))
        for i in (0, 1)
    )
    image, target = mixed(0.4, first, second)
    assert image.dtype == torch.uint8
    assert image[:, 32, 32].tolist() == [102, 153, 0]  # 0.4 of red, 0.6 of green
    assert image[:, 0, 0].tolist() == [0, 0, 0]
    assert target["labels"].tolist() == [0, 1]
    assert target["image_id"] == 0
    assert torch.equal(target["boxes"], torch.cat([first[1]["boxes"], second[1]["boxes"]]))


@pytest.mark.parametrize(
    ("augment", "resize"), [("plain", "square"), ("photo", "square"), ("detr", "aspect")]
)
def test_samples_of_several_images_are_a_function_of_seed_epoch_and_id(augment, resize):
    transform = augmentation(augment, Stretch(64) if resize == "square" else Fit(64, 100))
    samples, again = (Samples(FourImages(), transform, seed=3, mosaic_epochs=20) for _ in range(2))
    keys = [(epoch, index) for epoch in range(20) for index in range(4)]
    forwards = {key: samples[key] for key in keys}
    for key in reversed(keys):
        image, target = again[key]
        assert torch.equal(image, forwards[key][0])
        assert torch.equal(target["boxes"], forwards[key][1]["boxes"])
        assert target["image_id"] == key[1]
        assert tuple(image.shape[1:]) == target["size"] == samples.size(key)
    counts = [len(target["labels"]) for _, target in forwards.values()]
    assert max(counts) >= 3
    # About 7 in 10 samples combine several images, some of which add no object.
    assert sum(count > 1 for count in counts) > 25


@pytest.mark.parametrize("size", [(1, 40), (40, 1), (1, 1)])
def test_an_image_of_one_row_is_in_no_mosaic(size):
    """It has no four parts."""
    first = stored(0)
    view = replace(PLAIN.view(derived_rng(0), first[1]), size=size)
    for seed in range(20):
        others = iter([stored(1), stored(2), stored(3)])
        image, _ = combined(derived_rng(seed), PLAIN, view, first, partial(next, others))
        assert image.shape[-2:] == size


def test_later_epochs_show_one_image_each_as_without_mosaics():
    transform = augmentation("photo", Stretch(64))
    samples, plain = (
        Samples(FourImages(), transform, 3, mosaic_epochs=2),
        Samples(FourImages(), transform, 3),
    )
    for epoch in range(2, 8):
        for index in range(4):
            (image, target), (other, expected) = samples[epoch, index], plain[epoch, index]
            assert torch.equal(image, other)
            assert torch.equal(target["boxes"], expected["boxes"])


def test_a_damaged_image_in_a_mosaic_is_told_like_any_other():
    class OneDamaged(FourImages):
        def sample(self, index: int) -> tuple[Tensor, dict]:
            if index == 2:
                raise InputError("third.jpg: cannot decode the image; replace the file")
            return stored(index)

    samples = Samples(OneDamaged(), augmentation("photo", Stretch(64)), seed=0, mosaic_epochs=50)
    told = [samples.__getitems__([(epoch, 0)]) for epoch in range(50)]
    errors = [batch for batch in told if isinstance(batch, InputError)]
    assert len(errors) > 5
    assert {str(error) for error in errors} == {
        "third.jpg: cannot decode the image; replace the file"
    }
