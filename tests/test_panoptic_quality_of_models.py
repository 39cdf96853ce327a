"""Panoptic quality of a panoptic model: measured in evaluation, in a run, and on the command line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hotcoco.panoptic import pq_compute

import redetr
from redetr.cli import main
from redetr.commands.train import Train
from redetr.config import TrainConfig
from redetr.data import Hints, open_dataset
from redetr.evaluation import evaluate
from redetr.state import State
from tests.panoptic_scenes import CATEGORIES, write_scenes

RECIPES = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
OPTIONS = (
    "backbone=[16, 32, 64]",
    "hidden_dim=64",
    "nheads=8",
    "enc_layers=1",
    "dec_layers=1",
    "dim_feedforward=32",
    "dropout=0.0",
)
CONFIG = TrainConfig(
    model="detr_r50_panoptic",
    masks=True,
    num_queries=6,
    model_options=OPTIONS,
    image_size=64,
    batch_size=4,
    steps=2,
    eval_every=1,
    device="cpu",
    precision="fp32",
    num_workers=0,
    augment="plain",
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), {"train": 4, "val": 3})


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    """A run of two steps, and what it returned."""
    folder = tmp_path_factory.mktemp("run")
    config = replace(CONFIG, data=str(scenes), output=str(folder))
    return folder, redetr.train(config)


def test_a_run_on_panoptic_data(run):
    folder, result = run
    detector = redetr.load(folder, device="cpu")
    assert detector.model.is_thing == (True, True, False, False)
    assert detector.category_ids == (1, 3, 92, 95)
    assert result["panoptic"].keys() == {"PQ", "SQ", "RQ", "things", "stuff", "per_class"}
    assert result["best"]["PQ"] is not None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = {"loss_mask", "loss_dice", "val_loss_mask", "val_loss_dice", "panoptic", "masks"}
    assert names <= set().union(*lines)


def test_the_command_line_says_it(run, tmp_path, capsys):
    folder, _ = run
    arguments = ["evaluate", str(folder), "--device", "cpu", "--batch-size", "2"]
    main([*arguments, "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["panoptic"]["per_class"].keys() == {"ball", "crate", "sky", "grass"}
    main(arguments)
    printed = capsys.readouterr().out
    assert "PQ" in printed and "stuff" in printed
    main([*arguments, "--json", "--compare", str(folder), "--report", str(tmp_path)])
    compared = json.loads(capsys.readouterr().out)
    assert compared["panoptic"] == compared["compared"]["panoptic"] == measured["panoptic"]
    nothing = {"difference": 0.0, "lower": 0.0, "upper": 0.0}
    assert compared["differences"]["PQ"] == nothing
    report = json.loads((tmp_path / "report.json").read_text())
    assert [entry["panoptic"] for entry in report["checkpoints"]] == [measured["panoptic"]] * 2
    page = " ".join((tmp_path / "index.html").read_text().split())
    assert "Panoptic quality" in page and "PQ of B is 0.0 points higher" in page


def sure() -> redetr.Detector:
    """A detector with random weights whose queries are sure of a class each."""
    torch.manual_seed(0)
    model = redetr.build("detr_r50_panoptic", 4, **CONFIG.model_kwargs())
    with torch.no_grad():
        model.detr.class_embed.weight.normal_(0, 3)
        model.detr.class_embed.weight[4] = 0.0
        model.detr.class_embed.bias[4] = -30.0
        model.detr.query_embed.weight.normal_(0, 3)
        model.mask_head.out_lay.weight.mul_(10)
    model.is_thing = (True, True, False, False)
    names = tuple(category["name"] for category in CATEGORIES)
    return redetr.Detector(model, names, (1, 3, 92, 95), image_size=64, device="cpu")


def test_it_is_that_of_the_files(scenes, tmp_path):
    """What evaluation measures in memory is what panopticapi's rule finds in PNG files."""
    detector = sure()
    dataset = open_dataset(str(scenes), "val", masks=True)
    result = evaluate(detector.model, dataset, image_size=64, batch_size=2)
    detector.model.is_thing = ()  # as of weights that do not say it: the data does
    assert (
        evaluate(detector.model, dataset, image_size=64, batch_size=2).panoptic == result.panoptic
    )
    detector.model.is_thing = (True, True, False, False)
    annotations = []
    folder = tmp_path / "predictions"
    folder.mkdir()
    for index in range(len(dataset)):
        segments = detector.predict_panoptic(dataset.image(index))
        name = f"{index + 1:06}.png"
        segments.to_png().save(folder / name)
        annotations.append(segments.to_coco(dataset.image_id(index), name))
    assert any(len(entry["segments_info"]) > 1 for entry in annotations)
    (tmp_path / "predictions.json").write_text(json.dumps({"annotations": annotations}))
    truth = scenes / "annotations" / "panoptic_val2017.json"
    expected = pq_compute(str(truth), str(tmp_path / "predictions.json"))
    measured = result.panoptic
    for quality, name in ((measured.all, "All"), (measured.things, "Things")):
        assert quality.pq == pytest.approx(expected[name]["pq"], abs=1e-9)
    assert np.isfinite(measured.stuff.pq)


def test_a_frozen_detector_needs_weights(scenes, tmp_path):
    config = replace(CONFIG, data=str(scenes), output=str(tmp_path / "run"), freeze=("detr",))
    with pytest.raises(redetr.InputError, match=r"frozen detector.*--weights RUN.*detr_r50"):
        redetr.train(config)


def test_the_second_stage_trains_the_masks_alone(run, scenes, tmp_path):
    """From a run of the same detector on boxes, as published; its recipe in short."""
    boxes = replace(
        CONFIG, model="detr_r50", masks=False, data=str(scenes), output=str(tmp_path / "boxes"),
        eval_every=2,
    )  # fmt: skip
    redetr.train(boxes)
    recipe = redetr.get_recipe("detr_r50_panoptic")
    assert recipe.freeze == ("detr",) and recipe.epochs == 25 and recipe.masks
    config = replace(
        recipe, weights=str(tmp_path / "boxes"), num_queries=6, model_options=OPTIONS,
        image_size=64, batch_size=4, steps=2, epochs=0.0, eval_every=2, device="cpu",
        precision="fp32", num_workers=0, data=str(scenes), output=str(tmp_path / "masks"),
    )  # fmt: skip
    result = redetr.train(config)
    assert result["panoptic"] is not None
    before = torch.load(tmp_path / "boxes" / "last.pt", weights_only=True)["ema"]
    after = torch.load(tmp_path / "masks" / "last.pt", weights_only=True)["model"]
    for name, tensor in before.items():
        assert torch.equal(after[f"detr.{name}"], tensor), name
    assert any(name.startswith("mask_head.") for name in after)


def test_the_quality_in_the_docs_is_the_recorded_one():
    root = Path(__file__).parent.parent
    pattern = r"a PQ of (\S+), (\S+) and (\S+) after (\d+) steps.*?\(\.\./(\S+?)\)"
    sentence = re.search(pattern, RECIPES, re.DOTALL)
    *qualities, steps, file = sentence.groups()
    measured = json.loads((root / file).read_text())
    assert int(steps) == measured["steps"]
    for seed, quality in enumerate(qualities):
        of_seed = measured["runs"][f"seed {seed}"]
        assert quality == f"{100 * of_seed['PQ']:.1f}"
        assert of_seed["PQ"] == pytest.approx(of_seed["PQ of files"], abs=1e-9)


@pytest.mark.slow
def test_a_short_training_reaches_a_panoptic_quality_of_60(tmp_path):
    """From scratch, boxes and masks together; within a minute or so. It reached 75 after 900
    steps."""
    scenes = write_scenes(tmp_path / "scenes", {"train": 200, "val": 40})
    options = {"dec_layers": 2, "dim_feedforward": 128}
    named = [option for option in OPTIONS if option.split("=")[0] not in options]
    config = replace(
        CONFIG,
        model_options=(*named, *(f"{name}={value}" for name, value in options.items())),
        num_queries=10,
        batch_size=8,
        lr=1e-3,
        steps=900,
        eval_every=900,
        data=str(scenes),
        output=str(tmp_path / "run"),
    )
    result = redetr.train(config)
    assert result["panoptic"]["PQ"] > 0.6
    detector = redetr.load(tmp_path / "run", device="cpu")
    output = tmp_path / "predictions"
    arguments = ["--device", "cpu", "--precision", "fp32", "--panoptic", "--save", "json"]
    main(
        [
            "predict",
            str(tmp_path / "run"),
            str(scenes / "val2017"),
            *arguments,
            "--output",
            str(output),
        ]
    )
    truth = scenes / "annotations" / "panoptic_val2017.json"
    file = output / "predictions.panoptic.json"
    expected = pq_compute(str(truth), str(file), pred_folder=str(output))
    measured = detector.evaluate(str(scenes)).panoptic
    assert measured.all.pq == pytest.approx(expected["All"]["pq"], abs=1e-9)


def test_what_ends_and_chooses_a_panoptic_run_is_named(monkeypatch, capsys):
    """AP stays as it is with a frozen detector: PQ decides."""
    settings = replace(CONFIG, steps=100, eval_every=1, patience=0.1, schedule="constant")
    with torch.device("meta"):
        model = redetr.build(CONFIG.model, 4, **CONFIG.model_kwargs())
    config = settings.resolved(model, Hints(), 4)
    state = State(config, model, None, None, (), (), 4)
    for step, pq in ((5, 0.4), (10, 0.3), (15, 0.2)):
        state.step = step
        state.record(0.5, None, pq)
    assert "at step 15 of 100: PQ has not improved for 10 steps (2 eval" in state.end_reason()
    monkeypatch.setattr("redetr.commands.train.print_results", lambda results: None)
    Train(config)._report({"step": 15, "best": state.best})
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "final evaluation (step 15); best.pt is from step 5, PQ 40.0"
