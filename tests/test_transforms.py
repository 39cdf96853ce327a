"""Augmentation: boxes stay on their objects, and every draw is a function of (seed, epoch, image id)."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from redetr.data.loader import Samples
from redetr.data.transforms import (
    AUGMENTS,
    RandomNativeCrop,
    RandomQuarterTurn,
    RandomSizeCrop,
    apply,
    augmentation,
    drawn_from,
    resizer,
)


def scene(boxes: list[tuple[int, ...]], height: int = 60, width: int = 90) -> tuple[Tensor, dict]:
    """A black image with red rectangles at the boxes (xyxy), and its target."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        image[0, y1:y2, x1:x2] = 255
    return image, {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.arange(len(boxes)),
        "image_id": 5,
        "orig_size": (height, width),
        "size": (height, width),
        "iscrowd": torch.zeros(len(boxes), dtype=torch.bool),
        "area": 100.0 + torch.arange(len(boxes)),
    }


def red_box(image: Tensor) -> list[float]:
    """The xyxy box around the red pixels."""
    red, blue = image[0].float(), image[2].float()
    rows, columns = torch.where(red - blue > 40)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def in_pixels(target: dict) -> Tensor:
    height, width = target["size"]
    centers, sizes = target["boxes"][:, :2], target["boxes"][:, 2:]
    return torch.cat([centers - sizes / 2, centers + sizes / 2], 1) * torch.tensor([width, height, width, height])


def test_square_resize_by_hand():
    image, target = apply(resizer("square", 30, None), *scene([(9, 6, 45, 36)]))
    assert image.shape == (3, 30, 30)
    assert image.dtype == torch.uint8
    assert target["boxes"][0].tolist() == pytest.approx([27 / 90, 21 / 60, 36 / 90, 30 / 60])
    assert (target["size"], target["orig_size"], target["image_id"]) == ((30, 30), (60, 90), 5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((60, 90), (40, 60)), ((90, 60), (60, 40)), ((50, 300), (20, 120)), ((40, 40), (40, 40)), ((20, 30), (40, 60))],
)
def test_aspect_resize_by_hand(size, expected):
    """The shorter side becomes 40 px, unless the longer one would exceed 120."""
    image, target = apply(resizer("aspect", 40, 120), *scene([], *size))
    assert target["size"] == tuple(image.shape[-2:]) == expected


@pytest.mark.parametrize("resize", ["aspect", "square"])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_boxes_stay_on_their_objects(augment, resize):
    transform = augmentation(augment, resize, 64, 200)
    seen = 0
    for seed in range(40):
        image, target = apply(transform, *scene([(30, 15, 70, 45)]), seed)
        assert image.dtype == torch.uint8
        assert tuple(image.shape[-2:]) == target["size"]
        if len(target["boxes"]):
            seen += 1
            assert in_pixels(target)[0].tolist() == pytest.approx(red_box(image), abs=2.0)
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"] <= 1).all()
    assert seen >= 30


@pytest.mark.parametrize("augment", AUGMENTS)
def test_images_without_objects(augment):
    image, target = apply(augmentation(augment, "square", 32, None), *scene([]), seed=1)
    assert image.shape == (3, 32, 32)
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == target["area"].shape == (0,)


@pytest.mark.parametrize("augment", [name for name in AUGMENTS if name != "plain"])
def test_draws_are_a_function_of_the_seed(augment):
    transform, sample = augmentation(augment, "aspect", 48, 150), scene([(30, 15, 70, 45)])
    torch.manual_seed(0)
    first, _ = apply(transform, *sample, seed=1)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after  # the random numbers of everybody else are left alone
    again, _ = apply(transform, *sample, seed=1)
    assert torch.equal(first, again)
    others = [apply(transform, *sample, seed=seed)[0] for seed in range(2, 12)]
    assert any(other.shape != first.shape or not torch.equal(other, first) for other in others)


def crop_to(top: int, left: int, height: int, width: int):
    return lambda image, boxes: (F.crop(image, top, left, height, width), F.crop(boxes, top, left, height, width))


def test_boxes_that_are_mostly_cut_off_are_dropped():
    """A crop that starts at x = 40 leaves 100%, 50%, 40% and 30% of the boxes, and nothing of the last."""
    boxes = [(50, 10, 60, 20), (30, 0, 50, 20), (34, 0, 44, 10), (33, 0, 43, 10), (0, 0, 10, 10)]
    _, target = apply(crop_to(0, 40, 60, 50), *scene(boxes))
    assert target["labels"].tolist() == [0, 1, 2]
    assert target["area"].tolist() == [100, 101, 102]
    assert in_pixels(target).round().tolist() == [[10, 10, 20, 20], [0, 0, 10, 20], [0, 0, 4, 10]]


def test_boxes_of_less_than_a_pixel_are_dropped():
    """Sixty pixels become six: a box of 9 px is less than one."""
    _, target = apply(resizer("square", 6, None), *scene([(0, 0, 45, 9), (0, 0, 45, 10)]))
    assert target["labels"].tolist() == [1]


def test_crowds_are_dropped():
    image, target = scene([(0, 0, 20, 20), (30, 30, 50, 50), (60, 30, 80, 50)])
    target["iscrowd"][1] = True
    _, seen = apply(resizer("square", 32, None), image, target)
    assert seen["labels"].tolist() == [0, 2]
    assert not seen["iscrowd"].any()
    assert len(target["labels"]) == 3  # the data set's own target is left alone


def test_multi_scale_of_the_original():
    """Shorter sides of 480 to 800 px in steps of 32, here a tenth; at most 133 px long."""
    transform = augmentation("detr", "aspect", 80, 133)
    sides = {apply(transform, *scene([], 60, 61), seed)[1]["size"] for seed in range(150)}
    shorter, allowed = {min(side) for side in sides}, (48, 51, 54, 58, 61, 64, 67, 70, 74, 77, 80)
    assert all(any(side in (size, size - 1) for size in allowed) for side in shorter)  # torchvision rounds down
    assert len(shorter) > 6
    long = {apply(transform, *scene([], 40, 200), seed)[1]["size"] for seed in range(30)}
    assert max(max(side) for side in long) == 133


def test_crop_sizes_of_the_original():
    crop = RandomSizeCrop(20, 30)
    sizes = {tuple(crop(torch.zeros(3, 60, 25, dtype=torch.uint8)).shape[-2:]) for _ in range(200)}
    assert {height for height, _ in sizes} == set(range(20, 31))
    assert {width for _, width in sizes} == set(range(20, 26))  # no wider than the image
    assert crop(torch.zeros(3, 10, 12, dtype=torch.uint8)).shape == (3, 10, 12)  # smaller than the smallest crop


@pytest.mark.parametrize("size", [(200, 300), (20, 30), (64, 64)])
def test_native_crops_have_one_size(size):
    image, target = scene([(2, 2, 18, 18)], *size)
    for seed in range(20):
        seen, _ = apply(RandomNativeCrop(64, (0.7, 1.4)), image, target, seed)
        assert seen.shape == (3, 64, 64)


def test_native_crops_hold_an_object_when_asked():
    image, target = scene([(150, 20, 166, 36)], 200, 300)
    held = [len(apply(RandomNativeCrop(64, (1.0, 1.0), share), image, target, seed)[1]["boxes"])
            for share in (0.0, 1.0) for seed in range(60)]  # fmt: skip
    assert sum(held[:60]) < 30 < 50 < sum(held[60:])


def test_quarter_turns_by_hand():
    """Counter-clockwise: what was at the right of a 60 x 90 image comes to the top of a 90 x 60 one."""
    image, target = scene([(80, 10, 90, 30)])
    found = set()
    for seed in range(30):
        _, seen = apply(RandomQuarterTurn(), image, target, seed)
        found.add((seen["size"], *in_pixels(seen)[0].round().int().tolist()))
    assert found == {
        ((60, 90), 80, 10, 90, 30),
        ((90, 60), 10, 0, 30, 10),
        ((60, 90), 0, 30, 10, 50),
        ((90, 60), 30, 80, 50, 90),
    }


class OneImage:
    def __init__(self, image_id: int):
        self.image_id = image_id

    def __len__(self) -> int:
        return 3

    def sample(self, index: int) -> tuple[Tensor, dict]:
        image, target = scene([(30, 15, 70, 45)])
        return image, target | {"image_id": self.image_id}


def test_samples_differ_by_epoch_and_image_but_not_by_order():
    transform = augmentation("detr", "square", 32, None)
    samples = Samples(OneImage(7), transform, seed=3)
    first, second = samples[0, 0][0], samples[1, 0][0]
    assert torch.equal(samples[0, 2][0], first)  # the id decides, not the place
    assert torch.equal(samples[0, 0][0], first)
    others = [samples[epoch, 0][0] for epoch in range(1, 6)] + [Samples(OneImage(8), transform, 3)[0, 0][0]]
    assert not all(torch.equal(other, first) for other in others)
    assert torch.equal(samples[1, 0][0], second)


def test_seeds_are_distinct_and_stay_the_same():
    keys = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    seeds = {drawn_from(*key) for key in keys}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert drawn_from(1, 2, 3) != drawn_from(3, 2, 1)
    assert drawn_from(0, 0, -5) == drawn_from(0, 0, 5)  # ids below zero are allowed
