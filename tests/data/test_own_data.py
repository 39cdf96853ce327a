"""Data sets of a user's own are checked before anything is trained."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import SMALL
from rich.console import Console
from torch import Tensor

import redetr
from redetr.data import DetectionDataset, open_dataset
from redetr.data.own_data import require_valid
from redetr.errors import NoMasksError


class Squares(DetectionDataset):
    """The same image many times; keeps its targets, of which the last has other `columns`."""

    name = "squares"
    class_names, category_ids = ("square", "circle"), (1, 2)

    def __init__(self, count: int = 3, pixels: object = None, **columns: object):
        self.pixels = torch.zeros(3, 32, 48, dtype=torch.uint8) if pixels is None else pixels
        self.targets = []
        for index in range(count):
            target = redetr.StoredTarget(
                boxes=torch.tensor([[4.0, 4.0, 20.0, 20.0]]),
                labels=torch.tensor([1]),
                iscrowd=torch.tensor([False]),
                area=torch.tensor([256.0]),
                image_id=index,
                orig_size=(32, 48),
                size=(32, 48),
            )
            self.targets.append(target)
        if count:
            self.targets[-1] |= columns

    def __len__(self) -> int:
        return len(self.targets)

    def image(self, index: int) -> Tensor:
        return self.pixels

    def target(self, index: int) -> redetr.StoredTarget:
        return self.targets[index]


NO_OBJECTS = {
    "boxes": torch.zeros(0, 4),
    "labels": torch.zeros(0, dtype=torch.int64),
    "iscrowd": torch.zeros(0, dtype=torch.bool),
    "area": torch.zeros(0),
}
EXPECTED = r"expected a uint8 tensor \[3, 32, 48\], the size that its target states"
FAULTS = {
    "class": (
        Squares(labels=torch.tensor([2])),
        r"squares: target\(2\): labels from 2 to 2, but 2",
    ),
    "xywh": (Squares(boxes=torch.tensor([[9.0, 9.0, 2.0, 2.0]])), "a box is not x1, y1, x2, y2"),
    "nan": (Squares(boxes=torch.full((1, 4), torch.nan)), "a box is not x1, y1, x2, y2"),
    "labels": (
        Squares(labels=torch.tensor([0, 1])),
        r"'boxes' is not a tensor \[2, 4\], for 2 lab",
    ),
    "list": (Squares(area=[256.0]), r"'area' is not a tensor \[1\], for 1 label"),
    "crowd": (
        Squares(iscrowd=torch.tensor([0])),
        r"squares: target\(2\): 'iscrowd' is torch.int64; give torch.bool: iscrowd.to\(torch.bool",
    ),
    "int32": (
        Squares(labels=torch.tensor([1], dtype=torch.int32)),
        r"'labels' is torch.int32; give torch.int64",
    ),
    "whole boxes": (Squares(boxes=torch.tensor([[4, 4, 20, 20]])), "'boxes' is torch.int64; give"),
    "whole area": (Squares(area=torch.tensor([256])), "'area' is torch.int64; give torch.float32"),
    "masks": (
        Squares(masks=torch.zeros(1, 32, 48, dtype=torch.uint8)),
        "'masks' is torch.uint8; give torch.bool",
    ),
    "size of masks": (
        Squares(masks=torch.zeros(1, 20, 48, dtype=torch.bool)),
        r"'masks' is not a tensor \[1, 32, 48\]",
    ),
    "name as id": (Squares(image_id="a.jpg"), "image_id is 'a.jpg', not an integer; give a number"),
    "tensor as id": (
        Squares(image_id=torch.tensor([2])),
        r"image_id is tensor\(\[2\]\), not an integer",
    ),
    "tensor as size": (Squares(orig_size=torch.tensor([32, 48])), r"a size is tensor\(\[32, 48\]"),
    "two sizes": (Squares(size=(64, 96)), r"size \(64, 96\) is not orig_size \(32, 48\)"),
    "fractions": (
        Squares(1, boxes=torch.tensor([[0.1, 0.1, 0.4, 0.6]])),
        "squares: boxes look like fractions of the image: 1 of 1 box in the first pixel; multiply x "
        "by the wid",
    ),
    "HWC": (Squares(pixels=torch.zeros(32, 48, 3, dtype=torch.uint8)), EXPECTED),
    "float": (Squares(pixels=torch.zeros(3, 32, 48)), "is torch.float32 .*" + EXPECTED),
    "array": (Squares(pixels=torch.zeros(3, 32, 48).numpy()), "is a ndarray, " + EXPECTED),
    "no images": (Squares(0), "squares: the train split holds no images; give at least one"),
    "outside": (
        Squares(boxes=torch.tensor([[20.0, 8.0, 360.0, 24.0]])),
        r"squares: target\(2\): box \[20.0, 8.0, 360.0, 24.0\] leaves its image of 48x32 px; give",
    ),
    "before the image": (Squares(boxes=torch.tensor([[4.0, -3.0, 9.0, 9.0]])), "leaves its image"),
    "no area": (
        Squares(boxes=torch.tensor([[49.0, 4.0, 50.0, 9.0]])),
        r"squares: box \[49.0, 4.0, 50.0, 9.0\] has no area in its image, as 1 of 3 boxes; correct",
    ),
    "no objects": (
        Squares(1, **NO_OBJECTS),
        "squares: the train split has no object in 1 image; give its targets boxes and labels",
    ),
    "crowds": (
        Squares(1, iscrowd=torch.tensor([True])),
        "squares: the train split has 1 object, all of them crowds, which training ignores",
    ),
    "no data set": (
        [1, 2],
        "is of type list, not a data set; open it with .* derive it from redetr.data.DetectionDataset",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_data_that_cannot_be_meant_is_refused(name, tmp_path):
    data, said = FAULTS[name]
    with pytest.raises(redetr.InputError, match=said):
        redetr.train(config_of(tmp_path / "run"), datasets=(data, Squares()))
    assert not (tmp_path / "run").exists()


def test_val_without_images_is_refused(tmp_path):
    """Training would end with an AP that is undefined."""
    said = "squares: the val split holds no images; give at least one"
    with pytest.raises(redetr.InputError, match=said):
        redetr.train(config_of(tmp_path / "run"), datasets=(Squares(), Squares(0)))
    assert not (tmp_path / "run").exists()


def test_boxes_that_overshoot_a_little_are_sound():
    """By up to 2 px, or 1% of a side, as in files."""
    require_valid(Squares(boxes=torch.tensor([[-2.0, -2.0, 50.0, 34.0]])))


def test_objects_that_are_rare_are_not_overlooked():
    """The only object is in a target that the check of the types does not look at."""
    data = Squares(2001)
    for target in data.targets:
        target |= NO_OBJECTS
    sparse = Squares(1, masks=torch.ones(1, 32, 48, dtype=torch.bool))
    data.targets[1] = sparse.targets[0]
    require_valid(data, masks=True)


def test_a_missing_key_is_named():
    data = Squares()
    del data.targets[0]["area"]
    with pytest.raises(redetr.InputError, match=r"target\(0\): has no 'area'"):
        require_valid(data)


def test_targets_that_a_data_set_keeps_stay_as_they_are():
    """Masks were taken out of the target itself when they were compressed."""
    masks = torch.zeros(1, 32, 48, dtype=torch.bool)
    data = Squares(masks=masks)
    require_valid(data)
    assert "mask_counts" in data.compact_target(2) and data.target(2)["masks"] is masks
    assert data.objects(2).keys() == data.target(2).keys() - {"masks"}
    assert data.target(2)["masks"] is masks


def test_objects_are_counted_without_compressing_masks(monkeypatch):
    data = Squares(masks=torch.zeros(1, 32, 48, dtype=torch.bool))
    monkeypatch.setattr("redetr.data.dataset.encode", None)
    assert data.max_objects() == 1


def config_of(folder: Path, **changes: Any) -> redetr.TrainConfig:
    """A run of a small model, two steps long."""
    config = redetr.TrainConfig(
        model_options=tuple(SMALL),
        steps=2,
        batch_size=2,
        image_size=64,
        augment="plain",
        precision="fp32",
        num_workers=0,
        device="cpu",
        output=str(folder),
    )
    return replace(config, **changes)


def masked(count: int = 3) -> Squares:
    """A data set with masks."""
    data = Squares(count)
    for target in data.targets:
        target["masks"] = torch.zeros(1, 32, 48, dtype=torch.bool)
        target["masks"][:, 4:20, 4:20] = True
    return data


def test_own_data_with_masks_is_learned(tmp_path):
    result = redetr.train(config_of(tmp_path / "run", masks=True), datasets=(masked(), masked()))
    assert "masks" in result


@pytest.mark.parametrize("is_empty", [False, True])
def test_own_data_with_some_masks_is_learned_and_measured_by_its_boxes(is_empty, tmp_path):
    """A mask that is not known is empty, or its target has none."""
    train, val = masked(), masked()
    for data in (train, val):
        data.targets[1]["masks"] = torch.zeros(1, 32, 48, dtype=torch.bool)
        if not is_empty:
            del data.targets[1]["masks"]
    console = Console(file=io.StringIO(), width=1000)
    config = config_of(tmp_path / "run", masks=True, mosaic_until=1.0)
    result = redetr.train(config, console, datasets=(train, val))
    gaps = "1 of 3 objects has no mask (the first in image 1)"
    assert "masks" not in result and result["why_no_masks"] == gaps
    shown = console.file.getvalue()
    assert f"warning: squares: {gaps}; only the boxes of such objects are learned" in shown
    assert f"warning: masks are not measured on val, only boxes, because {gaps}" in shown
    assert "masks" in redetr.train(
        config_of(tmp_path / "other", masks=True), datasets=(train, masked())
    )


def test_own_data_with_empty_masks_only_is_refused(tmp_path):
    data = masked()
    for target in data.targets:
        target["masks"] = torch.zeros(1, 32, 48, dtype=torch.bool)
    with pytest.raises(NoMasksError, match="squares: has only boxes, no masks; give its targets"):
        redetr.train(config_of(tmp_path / "run", masks=True), datasets=(data, masked()))


@pytest.mark.parametrize("split", ["train", "val"])
def test_own_data_without_masks_is_refused_for_them(split, tmp_path):
    """As that of `--data` is: otherwise, a mask head learns from nothing."""
    datasets = (Squares(), masked()) if split == "train" else (masked(), Squares())
    with pytest.raises(NoMasksError, match="squares: has only boxes, no masks; give its targets"):
        redetr.train(config_of(tmp_path / "run", masks=True), datasets=datasets)
    boxes_only = open_dataset("crowns", "train"), open_dataset("crowns", "val")
    with pytest.raises(NoMasksError, match="has only boxes, no masks"):
        redetr.train(config_of(tmp_path / "run", masks=True), datasets=boxes_only)
    assert not (tmp_path / "run").exists()


def test_a_run_on_own_data_does_not_name_another_data_set(tmp_path):
    """The default of `data` is digits, whose class names may be those of other data."""
    run = tmp_path / "run"
    redetr.train(config_of(run), datasets=(Squares(), Squares()))
    assert json.loads((run / "config.json").read_text())["data"] == "data sets given in Python"
    with pytest.raises(redetr.InputError, match="its training data was given in Python: give"):
        redetr.load(run).evaluate()
    assert redetr.load(run).evaluate(Squares()).objects == {"square": 0, "circle": 3}
    resumed = redetr.TrainConfig.read(run / "config.json")
    with pytest.raises(redetr.InputError, match="given in Python; give --data, or resume the run"):
        redetr.train(replace(resumed, resume=True))


IGNORED = {
    "skip_unreadable": (True, "skip_unreadable applies to image files"),
    "val_fraction": (0.1, "val_fraction has no effect on datasets; give val_fraction to redetr.d"),
    "cache_dir": (".", "cache_dir has no effect on a data set of your own, .*; leave it out"),
}


@pytest.mark.parametrize("setting", IGNORED)
def test_settings_without_an_effect_on_own_data_are_refused(setting, tmp_path):
    value, said = IGNORED[setting]
    config = config_of(tmp_path / "run", **{setting: value})
    with pytest.raises(redetr.InputError, match=said):
        redetr.train(config, datasets=(Squares(), Squares()))
    assert not (tmp_path / "run").exists()


def squares(**changes: Any) -> Squares:
    """A data set with other attributes."""
    data = Squares()
    for name, value in changes.items():
        setattr(data, name, value)
    return data


DIFFERENT = "squares: train and val list different categories: "
DIFFERENCES = {
    "order": (
        {"class_names": ("circle", "square")},
        DIFFERENT
        + r"label 0 is 1 \('square'\) in train, 1 \('circle'\) in val; give both the same",
    ),
    "ids": (
        {"category_ids": (1, 3)},
        DIFFERENT + r"label 1 is 2 \('circle'\) in train, 3 \('circle'\) in val",
    ),
    "fewer": (
        {"class_names": ("square",), "category_ids": (1,)},
        DIFFERENT + r"label 1 is 2 \('circle'\) in train, missing in val",
    ),
    "more": (
        {"class_names": ("square", "circle", "dot"), "category_ids": (1, 2, 3)},
        DIFFERENT + r"label 2 is missing in train, 3 \('dot'\) in val",
    ),
    "stuff": (
        {"is_thing": (True, False)},
        DIFFERENT + r"label 1 is 2 \('circle'\) in train, 2 \('circle'\), stuff in val",
    ),
    "channels": (
        {"channels": 5, "pixels": torch.zeros(5, 32, 48, dtype=torch.uint8)},
        "squares: its images have 5 channels, but the model takes 3",
    ),
    "too few ids": ({"category_ids": (1,)}, "has 2 class names, but category_ids of 1; give one"),
    "too few kinds": ({"is_thing": (True,)}, "has 2 class names, but is_thing of 1; give one"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_splits_that_differ_are_refused_before_anything_is_written(name, tmp_path):
    """AP would be that of other classes, or the first evaluation would fail."""
    changes, said = DIFFERENCES[name]
    val = squares(**changes)
    for target in val.targets:
        target["labels"] = torch.tensor([0])  # a class of each of them
    train = squares(is_thing=(True, True))
    with pytest.raises(redetr.InputError, match=said):
        redetr.train(config_of(tmp_path / "run"), datasets=(train, val))
    assert not (tmp_path / "run").exists()


def test_splits_of_which_one_does_not_know_what_is_stuff(tmp_path):
    data = squares(is_thing=(True, False)), squares()
    assert redetr.train(config_of(tmp_path / "run"), datasets=data)["step"] == 2


def test_a_run_is_not_resumed_with_other_classes(tmp_path):
    config = config_of(tmp_path / "run")
    redetr.train(config, datasets=(Squares(), Squares()))
    swapped = squares(class_names=("circle", "square"))
    says = "the classes of train have changed since the run began; restore the data"
    with pytest.raises(redetr.InputError, match=says):
        redetr.train(replace(config, resume=True), datasets=(swapped, swapped))


class OfNumpy(Squares):
    """Whoever computes classes with NumPy has its values."""

    class_names = tuple(np.array(["square", "circle"]))
    category_ids = tuple(np.array([1, 2]))
    is_thing = tuple(np.array([True, False]))

    def max_objects(self) -> int:
        return np.int64(20)


def test_values_of_numpy_are_saved_as_plain_ones(tmp_path):
    """A checkpoint with others cannot be read, neither to evaluate nor to resume."""
    run = tmp_path / "run"
    config = config_of(run)
    redetr.train(config, datasets=(OfNumpy(), OfNumpy()))
    for name in ("last.pt", "best.pt"):
        saved = torch.load(run / name, weights_only=True)
        assert saved["class_names"] == ["square", "circle"]
        assert saved["category_ids"] == [1, 2]
        assert saved["is_thing"] == [True, False]
        assert saved["config"]["num_queries"] == 40
    for source in (run, run / "best.safetensors"):
        detector = redetr.load(source, device="cpu")
        assert detector.classes == [(1, "square"), (2, "circle")]
    resumed = redetr.train(replace(config, resume=True), datasets=(OfNumpy(), OfNumpy()))
    assert resumed["step"] == 2
