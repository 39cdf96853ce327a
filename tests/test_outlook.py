"""What a run that cannot end well is told."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import SMALL
from rich.console import Console

import redetr
from redetr.data import DetectionDataset, Hints, open_dataset
from redetr.outlook import outlook
from redetr.recipes import get_recipe


@pytest.fixture(scope="module")
def crowns() -> DetectionDataset:
    return open_dataset("crowns", "train")


@pytest.mark.parametrize(
    ("recipe", "options", "advice"),
    [
        ("detr_r50", (), "use redetr_n, or --weights facebook/detr-resnet-50"),
        ("detr_r50", ("dropout=0.0",), "use redetr_n, or --weights facebook/detr-resnet-50"),
        ("detr_r101", (), "use redetr_n, or --weights facebook/detr-resnet-101"),
        ("detr_r50_dc5", (), "use redetr_n, or --weights facebook/detr-resnet-50-dc5"),
        ("detr_table", (), "use redetr_n, or --weights microsoft/table-transformer-detection"),
        ("detr_r50", ("enc_layers=3",), "use redetr_n"),
        ("detr_tiny", (), "use redetr_n"),
    ],
)
def test_published_weights_are_named_where_they_fit(recipe, options, advice, crowns):
    config = get_recipe(recipe)
    config = replace(config, steps=100, model_options=(*config.model_options, *options))
    model = redetr.build("redetr_n", 1)
    warning, *_ = outlook(config.resolved(model, Hints(), len(crowns)), crowns, crowns)
    assert warning.endswith(f": results of {config.model} will be poor; {advice}")


class Rows(DetectionDataset):
    """Two images, each with this many objects."""

    name = "rows"
    class_names, category_ids = ("square",), (1,)

    def __init__(self, objects: int):
        left = torch.arange(objects, dtype=torch.float32)
        self.boxes = torch.stack([left, 0 * left, left + 8, 0 * left + 8], dim=1)

    def __len__(self) -> int:
        return 2

    def image(self, index: int) -> torch.Tensor:
        return torch.zeros(3, 64, 64, dtype=torch.uint8)

    def target(self, index: int) -> redetr.StoredTarget:
        objects = len(self.boxes)
        return redetr.StoredTarget(
            boxes=self.boxes,
            labels=torch.zeros(objects, dtype=torch.int64),
            iscrowd=torch.zeros(objects, dtype=torch.bool),
            area=torch.full((objects,), 64.0),
            image_id=index,
            orig_size=(64, 64),
            size=(64, 64),
        )


def crowding_notes(train: int, val: int, folder: Path, **settings: Any) -> list[str]:
    """What a run says of queries whose images hold so many objects."""
    config = redetr.TrainConfig(
        output=str(folder), steps=1, batch_size=2, image_size=64, device="cpu", precision="fp32",
        num_workers=0, pictures=False, model_options=tuple(SMALL), **settings,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=1000)
    redetr.train(config, console, (Rows(train), Rows(val)))
    said = console.file.getvalue().splitlines()
    return [line.strip() for line in said if "--num-queries" in line]


def test_images_of_val_with_more_objects_than_queries(tmp_path):
    warning = (
        "warning: an image of val holds 40 objects, but the model has only 25 queries: the rest are never "
        "detected; "
    )
    run = tmp_path / "run"
    assert crowding_notes(2, 40, run) == [warning + "raise --num-queries"]
    again = crowding_notes(2, 40, run, resume=True)
    assert again == [warning + "a new run may take a larger --num-queries"]
    assert crowding_notes(2, 25, tmp_path / "fits") == []


def test_images_of_both_splits_with_more_objects_than_queries(tmp_path):
    of_train, of_val = crowding_notes(12, 11, tmp_path / "run", num_queries=10)
    assert (
        "an image holds 12 objects, but the model has only 10 queries: the rest stay unm"
        in of_train
    )
    assert "an image of val holds 11 objects" in of_val
