"""Augmentation: boxes stay on their objects, and every draw is a function of (seed, epoch, image
id)."""

import random
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from redetr.choices import Augment
from redetr.data.dataset import DetectionDataset
from redetr.data.loader import Samples
from redetr.data.transforms import (
    Jitter,
    Transform,
    augmentation,
    derived_rng,
    derived_seed,
    final_size,
    normalize,
    resizer,
    seen,
)
from redetr.data.views import Fit, MultiScale, NativeCrop, Stretch, View, Whole, Zoomed

AUGMENTS = get_args(Augment)
FINAL_SIZES = {"aspect": Fit(64, 200), "square": Stretch(64)}


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


def look(transform: Transform, image: Tensor, target: dict, seed: int = 0) -> tuple[Tensor, dict]:
    """What the transform shows, with draws from `seed`."""
    draws = derived_rng(seed)
    return transform.show(draws, transform.view(draws, target), image, target)


def red_box(image: Tensor) -> list[float]:
    """The xyxy box around the red pixels."""
    red, blue = image[0].float(), image[2].float()
    rows, columns = torch.where(red - blue > 40)
    return [
        columns.min().item(),
        rows.min().item(),
        columns.max().item() + 1,
        rows.max().item() + 1,
    ]


def in_pixels(target: dict) -> Tensor:
    height, width = target["size"]
    centers, sizes = target["boxes"][:, :2], target["boxes"][:, 2:]
    return torch.cat([centers - sizes / 2, centers + sizes / 2], 1) * torch.tensor(
        [width, height, width, height]
    )


def test_square_resize_by_hand():
    image, target = look(resizer(Stretch(30)), *scene([(9, 6, 45, 36)]))
    assert image.shape == (3, 30, 30)
    assert image.dtype == torch.uint8
    assert target["boxes"][0].tolist() == pytest.approx([27 / 90, 21 / 60, 36 / 90, 30 / 60])
    assert (target["size"], target["orig_size"], target["image_id"]) == ((30, 30), (60, 90), 5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((60, 90), (40, 60)),
        ((90, 60), (60, 40)),
        ((50, 300), (20, 120)),
        ((40, 40), (40, 40)),
        ((20, 30), (40, 60)),
    ],
)
def test_aspect_resize_by_hand(size, expected):
    """The shorter side becomes 40 px, unless the longer one would exceed 120."""
    image, target = look(resizer(Fit(40, 120)), *scene([], *size))
    assert target["size"] == tuple(image.shape[-2:]) == expected


@pytest.mark.parametrize(
    ("fit", "stored", "expected"),
    [
        (Fit(800, 1333), (480, 640), (800, 1066)),
        (Fit(800, 1333), (360, 640), (750, 1333)),  # 1333 * 360 / 640 is 749.8
        (Fit(800, 1333), (640, 361), (1333, 752)),  # 751.9
        (Fit(800, 1333), (281, 500), (749, 1332)),  # 749.1, and 749 * 500 / 281 is 1332.7
        (Fit(800, 1333), (320, 640), (666, 1332)),  # 666.5: Python rounds to even numbers
        (Fit(800, 1333), (50, 511), (130, 1328)),  # 130.4
        (Fit(800, 1333), (40, 411), (130, 1335)),  # 129.7
        (Fit(800, 800), (2339, 1654), (800, 566)),  # 565.7
        (Fit(800, 800), (1000, 707), (800, 566)),  # 565.6
        (Fit(800, 800), (1000, 704), (800, 563)),  # 563.2, and 563 * 1000 / 704 is 799.7
        (Fit(80, 133), (1, 1000), (1, 266)),
    ],
)
def test_sizes_are_those_of_the_originals(fit, stored, expected):
    """Of DETR, and of Table Transformer, which scales the longer side."""
    assert fit(*stored) == expected


@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_sizes_without_a_limit_are_those_of_torchvision(height, width):
    expected = v2.Resize(80)(torch.zeros(1, height, width)).shape[-2:]
    assert Fit(80)(height, width) == tuple(expected)


def test_a_whole_image_is_resized_like_torchvision():
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    assert torch.equal(
        resizer(Fit(40, 120))(image), v2.Resize(40, max_size=120, antialias=True)(image)
    )


def test_the_model_decides_the_size_of_images():
    model = SimpleNamespace(resize="aspect", max_size=133)
    assert final_size(model, 80) == Fit(80, 133)
    model.resize = "square"
    assert final_size(model, 80) == Stretch(80)


@pytest.mark.parametrize("resize", ["aspect", "square"])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_boxes_stay_on_their_objects(augment, resize):
    transform = augmentation(augment, FINAL_SIZES[resize])
    shown = 0
    for seed in range(60):
        image, target = look(transform, *scene([(30, 15, 70, 45)]), seed)
        assert image.dtype == torch.uint8
        assert tuple(image.shape[-2:]) == target["size"]
        if len(target["boxes"]):
            shown += 1
            assert in_pixels(target)[0].tolist() == pytest.approx(red_box(image), abs=2.0)
            assert (target["boxes"] >= 0).all()
            assert (target["boxes"] <= 1).all()
    assert shown >= 45


@pytest.mark.parametrize("augment", AUGMENTS)
def test_images_without_objects(augment):
    for seed in range(10):
        image, target = look(augmentation(augment, Stretch(32)), *scene([]), seed)
        assert image.shape == (3, 32, 32)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == target["area"].shape == (0,)


@pytest.mark.parametrize("augment", [name for name in AUGMENTS if name != "plain"])
def test_draws_are_a_function_of_the_seed(augment):
    transform, sample = augmentation(augment, Fit(48, 150)), scene([(30, 15, 70, 45)])
    before = torch.get_rng_state(), random.getstate()
    first, _ = look(transform, *sample, seed=1)
    again, _ = look(transform, *sample, seed=1)
    assert torch.equal(first, again)
    # The global random state is untouched.
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    others = [look(transform, *sample, seed=seed)[0] for seed in range(2, 12)]
    assert any(other.shape != first.shape or not torch.equal(other, first) for other in others)


windows = st.tuples(
    st.integers(-20, 40), st.integers(-20, 30), st.integers(50, 120), st.integers(40, 90)
)


@given(window=windows, mirrored=st.booleans(), turns=st.integers(0, 3), height=st.integers(60, 90))
def test_a_painted_rectangle_is_under_its_box(window, mirrored, turns, height):
    """Whatever window of a 60 x 90 image, which holds (42, 32, 48, 38) and may reach beyond it."""
    view = View(window, (height, 75), mirrored, turns)
    image, _ = scene([(42, 32, 48, 38)])
    box = view.boxes(np.array([[42, 32, 48, 38]], np.float32))[0]
    cut = np.clip(box.reshape(2, 2), 0, [75, height]).ravel()
    larger = max(75, height) / min(view.region_size)
    assert red_box(view.pixels(image, (60, 90))) == pytest.approx(cut.tolist(), abs=1 + larger / 2)


def test_views_by_hand():
    """The right half of a 4 x 8 image, then mirrored, then turned counter-clockwise, then twice as
    large."""
    box = np.array([[5, 0, 6, 2]], float)  # in the half: (1, 0, 2, 2)
    right, square = (4, 0, 8, 4), (4, 4)
    assert View(right, square).boxes(box).tolist() == [[1, 0, 2, 2]]
    assert View(right, square, mirrored=True).boxes(box).tolist() == [[2, 0, 3, 2]]
    assert View(right, square, quarter_turns=1).boxes(box).tolist() == [[0, 2, 2, 3]]
    assert View(right, (8, 8), quarter_turns=1).boxes(box).tolist() == [[0, 4, 4, 6]]
    image = torch.arange(32, dtype=torch.uint8).view(1, 4, 8).repeat(3, 1, 1)
    half = image[:, :, 4:]
    assert torch.equal(View(right, square).pixels(image, (4, 8)), half)
    assert torch.equal(View(right, square, mirrored=True).pixels(image, (4, 8)), half.flip(2))
    assert torch.equal(
        View(right, square, quarter_turns=1).pixels(image, (4, 8)), half.rot90(1, (1, 2))
    )


def test_beyond_the_image_it_is_grey():
    image = torch.full((3, 2, 2), 200, dtype=torch.uint8)
    shown = View((-1, 0, 3, 2), (2, 4), mirrored=False).pixels(image, (2, 2))
    assert shown[0].tolist() == [[127, 200, 200, 127]] * 2


def test_an_image_decoded_at_half_its_size_is_seen_the_same():
    image, _ = scene([(40, 20, 60, 40)], 80, 120)
    view = View((20, 10, 100, 70), (30, 40), mirrored=True)
    whole, half = view.pixels(image, (80, 120)), view.pixels(image[:, ::2, ::2], (80, 120))
    assert red_box(half) == pytest.approx(red_box(whole), abs=1.0)


def test_boxes_that_are_mostly_cut_off_are_dropped():
    """A view that starts at x = 40 leaves 100%, 50%, 40% and 30% of the boxes, and nothing of the
    last."""
    boxes = [(50, 10, 60, 20), (30, 0, 50, 20), (34, 0, 44, 10), (33, 0, 43, 10), (0, 0, 10, 10)]
    target = seen(View((40, 0, 90, 60), (60, 50)), scene(boxes)[1], min_visible=0.4)
    assert target["labels"].tolist() == [0, 1, 2]
    assert target["area"].tolist() == [100, 101, 102]
    assert in_pixels(target).round().tolist() == [[10, 10, 20, 20], [0, 0, 10, 20], [0, 0, 4, 10]]
    assert seen(View((40, 0, 90, 60), (60, 50)), scene(boxes)[1], 0.0)["labels"].tolist() == [
        0,
        1,
        2,
        3,
    ]


def test_boxes_of_less_than_a_pixel_are_dropped():
    """Sixty pixels become six: a box of 9 px is less than one."""
    _, target = look(resizer(Stretch(6)), *scene([(0, 0, 45, 9), (0, 0, 45, 10)]))
    assert target["labels"].tolist() == [1]


def test_crowds_are_dropped():
    image, target = scene([(0, 0, 20, 20), (30, 30, 50, 50), (60, 30, 80, 50)])
    target["iscrowd"][1] = True
    _, shown = look(resizer(Stretch(32)), image, target)
    assert shown["labels"].tolist() == [0, 2]
    assert not shown["iscrowd"].any()
    assert len(target["labels"]) == 3  # the data set's own target is left alone


def views(draw, height: int, width: int, boxes: list[tuple[int, ...]], count: int) -> list[View]:
    return [
        draw(derived_rng(seed), height, width, np.array(boxes, float).reshape(-1, 4))
        for seed in range(count)
    ]


def test_multi_scale_of_the_original():
    """Shorter sides of 480 to 800 px in steps of 32, here a tenth; at most 133 px long."""
    draw = augmentation("detr", Fit(80, 133)).draw
    shorter = {min(view.size) for view in views(draw, 60, 61, [], 300)}
    assert shorter == {48, 51, 54, 58, 61, 64, 67, 70, 74, 77, 80}
    # 133 / 5 is 26.6, and the shorter side is rounded first.
    assert max(max(view.size) for view in views(draw, 40, 200, [], 60)) == 5 * 27
    assert sum(view.mirrored for view in views(draw, 60, 61, [], 300)) == pytest.approx(150, abs=40)


def test_crops_of_the_original():
    """Half of the views are crops of 384 to 600 px out of a shorter side of 400, 500 or 600, the
    rest is whole."""
    draw = augmentation("detr", Fit(800, 1333)).draw
    drawn = views(draw, 480, 640, [], 400)
    crops = [view for view in drawn if view.region != (0, 0, 640, 480)]
    assert len(crops) == pytest.approx(200, abs=40)
    for view in crops:
        left, top, right, bottom = view.region
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        # Scaled from 600 px to 480, so a crop of 384 px shows 307 px of the original.
        assert 384 * 0.8 - 1 <= view.region_size[0] <= 480
        assert 384 * 0.8 - 1 <= view.region_size[1] <= 600 * 1.2 + 1
        shape, window = view.size[1] / view.size[0], view.region_size[1] / view.region_size[0]
        assert shape == pytest.approx(window, rel=0.01)  # hardly distorted by whole pixels
    assert {view.region[0] == 0 for view in crops} == {True, False}


def test_crops_of_small_images_stay_inside():
    draw = MultiScale(Fit(80, 133), (48, 80), (40, 50, 60), (38, 60))
    for view in views(draw, 3, 5, [], 100):
        left, top, right, bottom = view.region
        assert 0 <= left < right <= 5
        assert 0 <= top < bottom <= 3


def test_zoomed_out_by_hand():
    """Up to twice the sides, the image anywhere on it."""
    drawn = views(Zoomed(Stretch(64), out=1.0, largest=2), 60, 90, [], 200)
    for view in drawn:
        left, top, right, bottom = view.region
        assert left <= 0 <= 60 <= bottom
        assert top <= 0 <= 90 <= right
        assert 90 <= right - left <= 180
        assert (right - left) / (bottom - top) == pytest.approx(1.5, rel=0.02)
    assert min(view.region[0] for view in drawn) < -60


def test_zoomed_in_windows_hold_an_object():
    boxes = [(10, 10, 20, 20), (60, 40, 80, 58)]
    drawn = views(Zoomed(Stretch(64), out=0.0, largest=2, into=1.0), 60, 90, boxes, 300)
    parts = [view.region for view in drawn if view.region != (0, 0, 90, 60)]
    assert len(parts) > 100
    for left, top, right, bottom in parts:
        assert 0 <= left < right <= 90
        assert 0 <= top < bottom <= 60
        assert any(
            left < (a + c) / 2 < right and top < (b + d) / 2 < bottom for a, b, c, d in boxes
        )


@pytest.mark.parametrize("size", [(200, 300), (20, 30), (64, 64)])
def test_native_crops_have_one_size(size):
    image, target = scene([(2, 2, 18, 18)], *size)
    for seed in range(20):
        shown, _ = look(Transform(NativeCrop(Stretch(64))), image, target, seed)
        assert shown.shape == (3, 64, 64)


@pytest.mark.parametrize(("final", "size"), [((32, 640), (40, 8)), ((640, 32), (8, 40))])
def test_native_crops_of_narrow_images_have_pixels(final, size):
    """The width of the image allows less than half a pixel of height."""
    image, target = scene([(1, 1, 7, 7)], *size)
    for seed in range(20):
        shown, _ = look(Transform(NativeCrop(Stretch(*final))), image, target, seed)
        assert shown.shape == (3, *final)


def test_native_crops_hold_an_object_when_asked():
    image, target = scene([(150, 20, 166, 36)], 200, 300)
    held = [
        len(
            look(Transform(NativeCrop(Stretch(64), (1.0, 1.0), share)), image, target, seed)[1][
                "boxes"
            ]
        )
        for share in (0.0, 1.0)
        for seed in range(60)
    ]
    assert sum(held[:60]) < 30 < 50 < sum(held[60:])


def test_native_crops_are_mirrored_and_turned_in_all_ways():
    drawn = views(NativeCrop(Stretch(64)), 200, 300, [], 100)
    assert len({(view.mirrored, view.quarter_turns) for view in drawn}) == 8


def test_colours_by_hand():
    """Twice as bright; then half the contrast about the mean brightness of 0.299 * 40 + 0.587 * 80
    + 0.114 * 120."""
    mean = np.array([20.0, 40.0, 60.0])
    fixed = FixedDraws([2.0, 0.5, 1.0, 0.0])
    matrix = Jitter(1, 1, 1, 0.5).matrix(fixed, mean)
    grey = 0.299 * 40 + 0.587 * 80 + 0.114 * 120
    assert matrix @ [20, 40, 60, 1] == pytest.approx(
        [20 + grey / 2, 40 + grey / 2, 60 + grey / 2], abs=0.5
    )
    without = Jitter(1, 1, 1, 0.5).matrix(FixedDraws([1.0, 1.0, 0.0, 0.0]), mean)
    assert without @ [100, 0, 0, 1] == pytest.approx([29.9] * 3, abs=0.5)  # no saturation: grey
    turned = Jitter(1, 1, 1, 0.5).matrix(FixedDraws([1.0, 1.0, 1.0, 0.5]), mean)
    assert turned @ [90, 90, 90, 1] == pytest.approx([90] * 3, abs=0.5)  # grey has no hue
    assert (turned @ [200, 50, 50, 1]).argmin() == 0  # red becomes cyan


class FixedDraws(random.Random):
    def __init__(self, values: list[float]):
        self.values = iter(values)

    def uniform(self, low: float, high: float) -> float:
        return next(self.values)


def test_no_jitter_leaves_the_image_alone():
    image = torch.randint(0, 256, (3, 8, 9), dtype=torch.uint8)
    assert torch.equal(Jitter(0, 0, 0, 0)(derived_rng(1), image), image)


class Photographs(DetectionDataset):
    """One JPEG file of 400 x 300 px with a red rectangle."""

    def __init__(self, folder):
        self.box = (80, 60, 240, 180)
        image, self._target = scene([self.box], 300, 400)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / "a.jpg", quality=95)
        self._file = folder / "a.jpg"

    def __len__(self):
        return 1

    def file_to_decode(self, index):
        return self._file

    def target(self, index):
        return dict(self._target)

    def image(self, index):
        raise AssertionError("decoded as a whole")


def test_large_photographs_are_decoded_small(tmp_path):
    """300 px to 64 allows a quarter."""
    samples = Samples(Photographs(tmp_path), augmentation("photo", Stretch(64)), seed=0)
    assert samples._stored(0)[0].shape == (3, 75, 100)
    for epoch in range(10):
        image, target = samples[epoch, 0]
        assert image.shape == (3, 64, 64)
        assert in_pixels(target)[0].tolist() == pytest.approx(red_box(image), abs=2.0)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (augmentation("photo", Stretch(100)), (150, 200)),
        (augmentation("detr", Fit(80, 133)), (150, 200)),  # crops look 1.56 times as close
        (augmentation("strong", Stretch(64)), (300, 400)),
    ],
)
def test_how_small_depends_on_the_closest_look(tmp_path, transform, expected):
    dataset = Photographs(tmp_path)
    dataset.sample = lambda index: (torch.zeros(3, 300, 400, dtype=torch.uint8), dataset.target(0))
    assert Samples(dataset, transform, 0)._stored(0)[0].shape[1:] == expected


@pytest.mark.parametrize("path", ["a.jpg", lambda index: f"{index}.jpg"])
def test_a_path_of_own_data_has_no_meaning(path):
    """Many data sets have one: it was called, or replaced `image`."""
    dataset = OneImage(7)
    dataset.path = path
    image, _ = Samples(dataset, augmentation("photo", Stretch(64)), 0)[0, 0]
    assert image.shape == (3, 64, 64)


def test_evaluation_decodes_whole_images():
    assert resizer(Fit(80, 133)).least_decoded is None
    assert isinstance(resizer(Stretch(80)).draw, Whole)


class OneImage(DetectionDataset):
    def __init__(self, image_id: int):
        self.image_id = image_id

    def __len__(self) -> int:
        return 3

    def image(self, index: int) -> Tensor:
        return scene([(30, 15, 70, 45)])[0]

    def target(self, index: int) -> dict:
        return scene([(30, 15, 70, 45)])[1] | {"image_id": self.image_id}

    def stored_size(self, index: int) -> tuple[int, int]:
        return self.target(index)["orig_size"]


def test_samples_differ_by_epoch_and_image_but_not_by_order():
    transform = augmentation("detr", Stretch(32))
    samples = Samples(OneImage(7), transform, seed=3)
    first, second = samples[0, 0][0], samples[1, 0][0]
    # The index decides, whatever the id.
    assert torch.equal(Samples(OneImage(8), transform, 3)[0, 0][0], first)
    assert torch.equal(samples[0, 0][0], first)
    others = [samples[epoch, 0][0] for epoch in range(1, 6)] + [samples[0, 1][0]]
    assert not all(torch.equal(other, first) for other in others)
    assert torch.equal(samples[1, 0][0], second)


@pytest.mark.parametrize("resize", ["aspect", "square"])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_the_size_of_a_sample_is_known_beforehand(augment, resize):
    samples = Samples(
        OneImage(7), augmentation(augment, FINAL_SIZES[resize]), seed=3, mosaic_epochs=15
    )
    for epoch in range(30):
        assert samples.size((epoch, 0)) == tuple(samples[epoch, 0][0].shape[1:])


def test_seeds_are_distinct_and_stay_the_same():
    keys = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    seeds = {derived_seed(*key) for key in keys}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(1, 2, 3) != derived_seed(3, 2, 1)
    assert derived_seed(0, 0, -5) == derived_seed(0, 0, 5)  # ids below zero are allowed


def test_pixels_with_gradients_after_a_prediction():
    """Statistics that are first asked for in inference mode are cached for all."""
    channels = 7  # of no other test
    images = torch.zeros(1, channels, 2, 2)
    with torch.inference_mode():
        normalize(images)
    normalize(images.requires_grad_()).sum().backward()
    assert images.grad.shape == images.shape
