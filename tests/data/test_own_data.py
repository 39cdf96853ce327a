"""Data sets of a user's own are checked before anything is trained."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import redetr
from redetr.data import DetectionDataset
from redetr.data.dataset import require_valid


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
    "HWC": (Squares(pixels=torch.zeros(32, 48, 3, dtype=torch.uint8)), EXPECTED),
    "float": (Squares(pixels=torch.zeros(3, 32, 48)), "is torch.float32 .*" + EXPECTED),
    "array": (Squares(pixels=torch.zeros(3, 32, 48).numpy()), "is a ndarray, " + EXPECTED),
    "no images": (Squares(0), "squares: the training data holds no images"),
    "no data set": (
        [1, 2],
        "a list is not a data set; derive it from redetr.data.DetectionDataset",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_data_that_cannot_be_meant_is_refused(name, tmp_path):
    data, said = FAULTS[name]
    config = replace(redetr.TrainConfig(), output=str(tmp_path / "run"), device="cpu")
    with pytest.raises(redetr.InputError, match=said):
        redetr.train(config, datasets=(data, Squares()))
    assert not (tmp_path / "run").exists()


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
