"""What `redetr train` shows of a run in its folder, after each evaluation."""

import io
import json
from dataclasses import replace

import pytest
import torch
from command_line import SMALL, train_arguments
from forked import run_ranks
from PIL import Image
from rich.console import Console

from redetr.commands import run_pictures
from redetr.commands.run_pictures import _threshold_for, draw_run, prediction_grid
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.detector.detector import load
from redetr.recipes import get_recipe
from redetr.training import train

NAMES = ("curves.png", "predictions.png")


def small_run(data, output) -> TrainConfig:
    """Two steps, each with an evaluation."""
    return replace(
        get_recipe("redetr_n"),
        data=str(data),
        output=str(output),
        steps=2,
        batch_size=4,
        image_size=64,
        model_options=tuple(SMALL),
        device="cpu",
        precision="fp32",
        num_workers=0,
        eval_every=1,
    )


@pytest.fixture(scope="module")
def folder(shared_coco, tmp_path_factory):
    """A run without pictures."""
    folder = tmp_path_factory.mktemp("run") / "plain"
    train(small_run(shared_coco, folder))
    return folder


def test_each_evaluation_draws_the_pictures_anew_and_changes_nothing(shared_coco, folder, tmp_path):
    drawn = []

    def draw(state, val, folder):
        notes = draw_run(state, val, folder)
        drawn.append([(folder / name).read_bytes() for name in NAMES])
        return notes

    output = io.StringIO()
    config = small_run(shared_coco, tmp_path / "run")
    train(config, Console(file=output), after_evaluation=draw)
    assert len(drawn) == 2
    for first, second in zip(*drawn, strict=True):
        assert first != second
    with Image.open(tmp_path / "run" / "predictions.png") as sheet:
        # Five validation images with their truth: two in a row, each at most 480 px wide.
        assert sheet.width <= 12 + 4 * (480 + 12)
        assert sheet.height > 3 * 300
        assert sheet.getcolors(100) is None  # there are more
    assert "warning: " not in output.getvalue().partition("weights: ")[2].partition("step 1")[2]
    weights = [
        torch.load(run / "last.pt", weights_only=True)["ema"] for run in (tmp_path / "run", folder)
    ]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name])


def test_a_failure_to_draw_is_said_and_the_run_goes_on(shared_coco, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no ink")

    monkeypatch.setattr(run_pictures, "plot_curves", fail)
    output = io.StringIO()
    config = small_run(shared_coco, tmp_path / "run")
    result = train(config, Console(file=output, width=1000), after_evaluation=draw_run)
    assert result["step"] == 2
    path = tmp_path / "run" / "curves.png"
    text = f"warning: {path} could not be drawn; training continues: ValueError: no ink\n"
    assert output.getvalue().count(text) == 2
    assert not path.exists()
    assert (tmp_path / "run" / "predictions.png").exists()


def test_the_first_of_two_processes_draws(shared_coco, tmp_path):
    arguments = train_arguments(shared_coco, tmp_path, steps=1, log_every=1)
    arguments.remove("--no-pictures")
    first, second = run_ranks(2, arguments)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "look at curves.png, and predictions.png" in first[1]
    assert not second[1]
    for name in NAMES:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300


def test_each_image_of_the_sheet_is_named(shared_coco, folder, monkeypatch):
    captions = []
    monkeypatch.setattr(run_pictures, "comparison_grid", lambda *grid: captions.extend(grid[2]))
    prediction_grid(load(folder, device="cpu"), open_dataset(str(shared_coco), "val"), 2)
    document = json.loads((shared_coco / "annotations" / "instances_val.json").read_text())
    names = {f"ground truth: {image['file_name']}" for image in document["images"]}
    assert len(captions) == 2 and set(captions) < names


def test_no_image_is_shown_twice_nor_larger_than_its_panel(shared_coco, folder):
    detector = load(folder, device="cpu")
    val = open_dataset(str(shared_coco), "val")
    sheet = prediction_grid(detector, val, 8)
    assert sheet.size == prediction_grid(detector, val, 5).size
    assert sheet.height < prediction_grid(detector, val, 3).height * 2


@pytest.mark.parametrize(("objects", "shown"), [(0, 0), (1, 1), (3, 3), (9, 4)])
def test_as_many_detections_are_shown_as_there_are_objects(objects, shown):
    scores = torch.tensor([0.25, 0.75, 0.5, 0.375])
    threshold = _threshold_for(scores, objects)
    assert int((scores >= threshold).sum()) == shown
