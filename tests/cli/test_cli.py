"""The command line as a user meets it: files, exit codes, one clear line for what is wrong.

What a new process would not change runs in this one.
"""

import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from command_line import SMALL, lines_of, train_arguments, wait_for_step
from forked import Fork
from PIL import Image

import redetr
from redetr.cli import main
from redetr.commands import COMMANDS
from redetr.commands.evaluate import thresholds
from redetr.commands.export import Export
from redetr.config import TrainConfig
from redetr.data.dataset import Hints
from redetr.postprocess import decode
from redetr.state import State
from redetr.step import announce

ROOT = Path(__file__).parents[2]


def fails(capsys, arguments: list[str], code: int = 1) -> list[str]:
    """The lines on standard error of a command that ends with `code` and without a traceback."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    errors = capsys.readouterr().err
    assert ended.value.code == code, errors
    assert "Traceback" not in errors
    return errors.strip().splitlines()


def refused(capsys, arguments: list[str], *fragments: str, code: int = 1) -> None:
    """The command says in one line what is wrong, and nothing else."""
    lines = fails(capsys, arguments, code)
    assert len(lines) == 1, lines
    assert lines[0].startswith("redetr: ")
    for fragment in fragments:
        assert fragment in lines[0]


# Several command lines in one process, as each new one would import PyTorch anew.
COMMAND_LINES = """
import json, sys
from redetr.cli import main
for arguments in json.loads(sys.argv[1]):
    main(arguments)
"""


@pytest.fixture(scope="module")
def new_process(shared_coco, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """`redetr train` with two loader processes, and `redetr predict`, in a new process in which
    every warning is an error; and the folder of the run."""
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    train = train_arguments(shared_coco, folder, num_workers=2)
    image = ROOT / "examples" / "digits.png"
    predicted = folder.parent / "predicted"
    predict = ["predict", folder / "best.pt", image, "--device=cpu", "--output", predicted]
    command_lines = json.dumps([train, predict], default=str)
    strict = [sys.executable, "-W", "error", "-c", COMMAND_LINES, command_lines]
    return folder, subprocess.run(strict, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def trained(new_process) -> Path:
    """The folder of a finished run."""
    folder, ended = new_process
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "AP50" in ended.stdout
    assert str(folder) in ended.stdout
    return folder


def test_a_run_leaves_its_files(trained):
    files = {path.name for path in trained.iterdir()} - {"tensorboard"}
    assert files == {
        "config.json",
        "metrics.jsonl",
        "data.json",
        "last.pt",
        "previous.pt",
        "best.pt",
        "best.safetensors",
    }
    config = json.loads((trained / "config.json").read_text())
    assert (config["steps"], config["batch_size"], config["model"]) == (6, 4, "redetr_n")
    training = [line for line in lines_of(trained) if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    assert {
        "loss_ce",
        "loss_bbox",
        "loss_giou",
        "loss_ce_0",
        "loss_ce_enc",
        "grad_norm",
        "lr",
    } <= training[0].keys()
    assert "lr_backbone" not in training[0], "it is lr"
    evaluations = [line for line in lines_of(trained) if "AP" in line]
    assert [line["step"] for line in evaluations] == [3, 6]
    assert evaluations[0]["per_class"].keys() == {"cup", "plate", "spoon"}


def test_the_best_threshold_travels_in_the_checkpoint(trained, shared_coco, tmp_path, capsys):
    """Every tool shows what scores at least that by default, and says so; older checkpoints have
    none."""
    measured = {line["step"]: line["threshold"] for line in lines_of(trained) if "AP" in line}
    state = torch.load(trained / "last.pt", weights_only=True)
    assert state["threshold"] == measured[6]
    best = torch.load(trained / "best.pt", weights_only=True)
    assert best["threshold"] == measured[best["step"]]
    with safetensors.safe_open(trained / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["redetr"])["threshold"] == best["threshold"]

    image = shared_coco / "val" / "val-1.jpg"
    for threshold, said in ((0.02, "0.02 (best F1 when this checkpoint was evaluated)"),
                            (None, "0.5 (not measured in training; ")):  # fmt: skip
        checkpoint = tmp_path / f"{threshold}.pt"
        torch.save(state | {"threshold": threshold}, checkpoint)
        detector = redetr.load(checkpoint)
        assert detector.threshold == (threshold or 0.5)
        expected = detector.predict(image, threshold=threshold or 0.5)
        assert len(detector.predict(image)) == len(expected)
        output = tmp_path / f"found-{threshold}"
        main(
            [
                "predict",
                str(checkpoint),
                str(image),
                "--output",
                str(output),
                "--save",
                "json",
                "--precision",
                "fp32",
            ]
        )
        assert f"threshold: {said}" in capsys.readouterr().err
        record = json.loads((output / "predictions.jsonl").read_text())
        assert len(record["detections"]) == len(expected)
    assert len(redetr.load(tmp_path / "0.02.pt").predict(image)) > len(expected)
    main(["predict", str(checkpoint), str(image), "--output", str(output), "--save", "json",
          "--overwrite", "--threshold", "0.3"])  # fmt: skip
    assert "threshold:" not in capsys.readouterr().err, "the user chose it"


def test_checkpoints_are_plain_values(trained):
    for name, steps in (("last.pt", {6}), ("best.pt", {3, 6})):
        state = torch.load(trained / name, weights_only=True)
        assert {
            "model",
            "ema",
            "optimizer",
            "step",
            "epoch",
            "config",
            "class_names",
            "category_ids",
        } <= state.keys()
        assert state["step"] in steps
        assert state["epoch"] == state["step"] * 4 // 8  # 8 training images
        assert state["category_ids"] == [7, 12, 90]
        assert state["model"].keys() == state["ema"].keys()
    with safetensors.safe_open(trained / "best.safetensors", "pt") as file:
        best = torch.load(trained / "best.pt", weights_only=True)
        assert set(file.keys()) == best["ema"].keys()
        assert torch.equal(file.get_tensor("query_embed.weight"), best["ema"]["query_embed.weight"])


@pytest.mark.parametrize("name", ["", "best.pt", "best.safetensors"])
def test_evaluate_repeats_the_best_evaluation(trained, capsys, name):
    main(
        [
            "evaluate",
            str(trained / name),
            "--json",
            "--precision",
            "fp32",
            "--device",
            "cpu",
            "--batch-size",
            "16",
        ]
    )
    found = json.loads(capsys.readouterr().out)
    best = max((line for line in lines_of(trained) if "AP" in line), key=lambda line: line["AP"])
    assert (found["images"], found["image_size"], found["split"]) == (5, 64, "val")
    for metric in best.keys() & found.keys():
        assert found[metric] == pytest.approx(best[metric], abs=1e-6), metric
    assert {"AP", "ARl", "per_class", "per_class_AP50", "objects"} <= best.keys() & found.keys()


def test_what_was_measured_stands_above_the_numbers(trained, shared_coco, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "best.pt").unlink()
    objects = json.loads((shared_coco / "annotations" / "instances_val.json").read_text())[
        "annotations"
    ]
    for folder, taken in (
        (trained, "best.pt"),
        (tmp_path / "run", "last.pt (there is no best.pt)"),
    ):
        main(["evaluate", str(folder), "--device", "cpu", "--precision", "fp32"])
        first, *tables = capsys.readouterr().out.splitlines()
        measured = f"{folder}/{taken}: val split of {shared_coco}, 5 images, at 64 px in fp32"
        assert first == f"{measured}; weights: a run of redetr from random weights"
        (header,) = [line.split() for line in tables if "objects" in line]
        assert [word for word in header if word.isalnum()] == ["class", "objects", "AP", "AP50"]
        (cup,) = [line for line in tables if " cup " in line]
        threshold = redetr.load(folder).threshold  # of training; the best one here may differ
        text = " ".join(" ".join(tables).split())
        assert f"redetr predict shows those with a score of at least {threshold}" in text
        assert int(cup.split()[1]) == sum(thing["category_id"] == 7 for thing in objects)


def test_the_threshold_of_predict_is_not_taken_for_the_best_one_here():
    told = thresholds({"predict_threshold": 0.32, "threshold": 0.4})
    assert told.endswith("shows those with a score of at least 0.32, and F1 is best here with 0.4")
    for best in (0.32, None):
        told = thresholds({"predict_threshold": 0.32, "threshold": best})
        assert told.endswith("shows those with a score of at least 0.32")


def test_the_numbers_after_training_say_of_which_step_they_are(shared_coco, tmp_path, capsys):
    main(train_arguments(shared_coco, tmp_path / "run", lr=1e-30, ema_decay=0))
    best = next(line for line in lines_of(tmp_path / "run") if "AP" in line)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"final evaluation (step 6); best.pt is from step 3, AP {100 * best['AP']:.1f}"


def test_predict_writes_pictures_and_numbers(trained, shared_coco, tmp_path, capsys):
    output = tmp_path / "found"
    words = [trained, shared_coco / "val", "--output", output, "--threshold=0", "--json"]
    main(["predict", *map(str, words)])
    found = json.loads((output / "predictions.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert sorted(Path(name).name for name in found) == [f"val-{i}.jpg" for i in range(5)]
    listed = ["index.html", "predictions.json", "predictions.jsonl"]
    written = [*listed, *(f"val-{i}.png" for i in range(5))]
    assert sorted(path.name for path in output.iterdir()) == written
    for name, entry in found.items():
        with Image.open(name) as image, Image.open(output / f"{Path(name).stem}.png") as picture:
            assert entry["image_size"] == [image.height, image.width]
            assert picture.width / picture.height == pytest.approx(
                image.width / image.height, abs=0.05
            )
        assert len(entry["detections"]) > 10  # with threshold 0, every query answers
        for detection in entry["detections"]:
            x1, y1, x2, y2 = detection["box"]
            assert 0 <= x1 <= x2 <= image.width
            assert 0 <= y1 <= y2 <= image.height
            assert detection["label"] in ("cup", "plate", "spoon")


def test_predict_keeps_sure_detections_only(trained, shared_coco, tmp_path, capsys):
    output = tmp_path / "found"
    main(
        [
            "predict",
            str(trained),
            str(shared_coco / "val" / "val-0.jpg"),
            f"--output={output}",
            "--threshold=0.9",
        ]
    )
    (entry,) = json.loads((output / "predictions.json").read_text()).values()
    assert entry["detections"] == []
    assert (output / "val-0.png").exists()


# With dropout, the faithful form draws random numbers in every step.
RUNS = {
    "fast": {},
    "faithful, with dropout": {
        "recipe": "detr_tiny",
        "augment": "plain",
        "options": [
            "backbone=[16,32,64]",
            "hidden_dim=32",
            "nheads=4",
            "enc_layers=1",
            "dec_layers=2",
            "dim_feedforward=64",
            "dropout=0.3",
        ],
    },
    "RT-DETR, with denoising": {
        "recipe": "rtdetr_r18_finetune",
        "weights": "none",
        "denoising": 2,
        "num_queries": 20,
        "options": [
            "width=16",
            "enc_hidden_dim=32",
            "enc_dim_feedforward=64",
            "hidden_dim=32",
            "dec_layers=2",
            "dim_feedforward=64",
        ],
    },
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_a_stopped_and_resumed_run_is_the_same_bit_for_bit(
    shared_coco, tmp_path, capsys, monkeypatch, settings
):
    main(train_arguments(shared_coco, tmp_path / "whole", **settings))

    calls = []

    def announce_with_a_signal(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            # The signal arrives before step 1; all ranks learn of it with the counts of step 3.
            signal.raise_signal(signal.SIGTERM)
        return announce(*args, **kwargs)

    monkeypatch.setattr("redetr.training.announce", announce_with_a_signal)
    arguments = train_arguments(shared_coco, tmp_path / "parts", **settings)
    capsys.readouterr()
    lines = fails(capsys, arguments, code=75)
    assert lines[-1].startswith("redetr: stopped by a signal")
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"] == 2
    main([*arguments, "--resume"])
    # Steps 1 to 4, of which the last two were not computed, and then 3 to 6.
    assert len(calls) == 4 + 4

    whole, parts = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    for key in ("model", "ema", "optimizer"):
        torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=0)
    assert (parts["step"], parts["best"]) == (whole["step"], whole["best"])
    timings = {"time_s", "images_per_s", "data_wait"}
    logged = [
        [{k: v for k, v in line.items() if k not in timings} for line in lines_of(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert logged[0] == logged[1]


def test_a_signal_in_an_evaluation(shared_coco, tmp_path, capsys, monkeypatch):
    """Ends it after its batch or the next; the run resumes with it, and ends as if nothing had
    been."""
    main(train_arguments(shared_coco, tmp_path / "whole"))
    arguments = train_arguments(shared_coco, tmp_path / "two parts", eval_batch_size=1)
    batches = []

    def decode_with_a_signal(*args):
        batches.append(args)
        signal.raise_signal(signal.SIGTERM)
        return decode(*args)

    with monkeypatch.context() as patch:
        patch.setattr("redetr.evaluation.decode", decode_with_a_signal)
        lines = fails(capsys, arguments, code=75)
    assert lines[-1].startswith("redetr: stopped by a signal in the evaluation of step 3; ")
    assert len(batches) <= 2
    _, command = lines[-1].split("to continue: ")
    assert shlex.split(command) == ["redetr", "train", str(tmp_path / "two parts"), "--resume"]
    main(shlex.split(command)[1:])
    logged = [lines_of(tmp_path / name) for name in ("whole", "two parts")]
    for lines in logged:
        assert [line["step"] for line in lines if "AP" in line] == [3, 6]
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in logged]
    assert losses[0] == losses[1]


class Killed(Exception):
    """Stands for the end of the process: nothing more is saved."""


def kill_after_the_evaluation(line: dict[str, Any]) -> None:
    if line["step"] == 4:
        raise Killed


def stop_after_the_evaluation(line: dict[str, Any]) -> None:
    if line["step"] == 3 and "AP" in line:
        signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def best_at_step_3(shared_coco, tmp_path, monkeypatch) -> TrainConfig:
    """A run of six steps, evaluated every three, whose AP is best at step 3."""
    record = State.record

    def recorded(state, ap, *others):
        return record(state, 0.9 if state.step == 3 else 0.5, *others)

    monkeypatch.setattr(State, "record", recorded)
    return TrainConfig(
        data=str(shared_coco),
        output=str(tmp_path / "run"),
        model_options=tuple(SMALL),
        steps=6,
        batch_size=4,
        image_size=64,
        device="cpu",
        precision="fp32",
        num_workers=0,
        log_every=1,
        eval_every=3,
        eval_batch_size=1,
        pictures=False,
    )


def evaluated_steps(config: TrainConfig) -> list[int]:
    return [line["step"] for line in lines_of(Path(config.output)) if "AP" in line]


@pytest.mark.parametrize("how", ["killed after it", "killed in it", "stopped in it"])
def test_an_evaluation_that_was_not_saved_is_repeated_with_another_eval_every(
    how, best_at_step_3, monkeypatch
):
    """Its step would be due no more; a worse model would then replace the best."""

    def decode_and_end(*arguments):
        if how == "killed in it":
            raise Killed
        signal.raise_signal(signal.SIGTERM)
        return decode(*arguments)

    callback = kill_after_the_evaluation if how == "killed after it" else None
    with monkeypatch.context() as patch:
        if callback is None:
            patch.setattr("redetr.evaluation.decode", decode_and_end)
        with pytest.raises(redetr.StoppedError if how == "stopped in it" else Killed):
            redetr.train(best_at_step_3, callback=callback)
    folder = Path(best_at_step_3.output)
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == 3
    resumed = replace(best_at_step_3, resume=True, eval_every=4)
    result = redetr.train(resumed)
    assert evaluated_steps(resumed) == [3, 4, 6]
    assert result["best"] == {"AP": 0.9, "step": 3}
    assert torch.load(folder / "best.pt", weights_only=True)["step"] == 3


def test_an_evaluation_after_which_a_run_is_stopped_keeps_its_line(best_at_step_3):
    """The first time, the steps go on; the second time, at once after the evaluation, they do not,
    and a checkpoint of the same step holds its result."""
    with pytest.raises(Killed):
        redetr.train(best_at_step_3, callback=kill_after_the_evaluation)
    resumed = replace(best_at_step_3, resume=True, eval_every=4)
    with pytest.raises(redetr.StoppedError, match="stopped by a signal after step 3; "):
        redetr.train(resumed, callback=stop_after_the_evaluation)
    result = redetr.train(resumed)
    assert evaluated_steps(resumed) == [3, 4, 6]
    assert result["best"] == {"AP": 0.9, "step": 3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step(shared_coco, tmp_path, capsys, monkeypatch, number):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("redetr.training.prepare", lambda *_: signal.raise_signal(number))
        (line,) = fails(capsys, train_arguments(shared_coco, folder), code=75)
    assert line.startswith("redetr: stopped by a signal before the first step")
    assert not folder.exists()


@pytest.mark.parametrize("whole_group", [False, True], ids=["to the process", "to its group"])
def test_a_signal_saves_the_run(shared_coco, tmp_path, capsys, whole_group):
    """`timeout` and batch systems send the signal to the loader processes as well. Until then no
    other run may use the folder."""
    folder = tmp_path / "run"
    settings = {"steps": 100_000, "eval_every": 100_000, "num_workers": 2}
    arguments = train_arguments(shared_coco, folder, **settings)
    process = Fork(arguments, prepare=[os.setsid])
    try:
        wait_for_step(folder, 3, process)
        said = f"process {process.pid} on "
        refused(capsys, [*arguments, "--resume"], said, "has been training there since")
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=100)
    finally:
        process.kill()
    assert process.returncode == 75, errors
    assert errors.splitlines()[-1].startswith("redetr: stopped by a signal after step")
    assert "Traceback" not in errors
    assert torch.load(folder / "last.pt", weights_only=True)["step"] == lines_of(folder)[-1]["step"]


@pytest.mark.long
def test_a_finished_run_can_be_resumed_and_not_overwritten(trained, shared_coco, capsys, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    refused(capsys, train_arguments(shared_coco, folder), "already holds a run", "--resume")
    refused(capsys, [*train_arguments(shared_coco, folder, lr=0.5), "--resume"], "lr=0.006", "0.5")
    # The model is named first: with another one, the recipe's augmentation differs as well.
    other = train_arguments(shared_coco, folder, recipe="detr_tiny", options=[])
    said = "last.pt: saved with model=redetr_n, resumed with detr_r50; redetr train "
    refused(capsys, [*other, "--resume"], said, "give another --output for a new run")
    other = train_arguments(Path("digits"), folder)
    refused(capsys, [*other, "--resume"], "saved with different data (8 images, now ", "--data")
    main([*train_arguments(shared_coco, folder, num_workers=2), "--resume"])
    told = capsys.readouterr()
    assert "AP50" in told.out and "nothing to train: ended at step 6 of 6; " in told.err
    before, after = (torch.load(path / "last.pt", weights_only=True) for path in (trained, folder))
    torch.testing.assert_close(after["model"], before["model"], rtol=0, atol=0)


def test_training_in_half_precision(shared_coco, tmp_path):
    main(train_arguments(shared_coco, tmp_path / "run", precision="bf16", steps=3, accumulate=2))
    losses = [line["loss"] for line in lines_of(tmp_path / "run") if "loss" in line]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert {tensor.dtype for tensor in state["model"].values()} == {torch.float32}


def test_loss_that_is_not_finite(shared_coco, tmp_path, capsys):
    lines = fails(
        capsys, train_arguments(shared_coco, tmp_path / "run", lr=1e20, clip_norm=0.0), code=3
    )
    assert lines[-1].startswith("redetr: step ")
    assert "not finite: loss" in lines[-1]
    named = json.loads(lines[-1].partition("images ")[2].partition("]")[0] + "]")
    assert len(named) == 4
    assert set(named) <= set(range(100, 108))  # the ids of the tiny data set


def damage(root: Path, change: Callable[[dict], Any]) -> None:
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def first_box(**fields: Any) -> Callable[[Path], None]:
    return lambda root: damage(root, lambda document: document["annotations"][0].update(fields))


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BAD_DATA = {
    "missing folder": (shutil.rmtree, "no such folder"),
    "empty folder": (lambda root: [shutil.rmtree(p) for p in root.iterdir()], "empty"),
    "no data set": (lambda root: shutil.rmtree(root / "annotations"), "no data set found"),
    "no validation": (
        lambda root: (root / "annotations" / "instances_val.json").unlink(),
        "no val split",
    ),
    "broken JSON": (
        lambda root: (root / "annotations" / "instances_train.json").write_text('{"images": [}'),
        "not JSON",
        "line 1",
    ),
    "image cut short": (
        lambda root: halve(root / "train" / "train-1.jpg"),
        "train-1.jpg",
        "cannot decode",
    ),
    "missing image": (
        lambda root: (root / "train" / "train-3.jpg").unlink(),
        "image 103",
        "train-3.jpg",
    ),
    "box outside": (first_box(bbox=[0, 0, 500, 20]), "annotation 0", "leaves its image 100"),
    "box without area": (first_box(bbox=[5, 5, 0, 9]), "annotation 0", "zero or negative size"),
    "unknown category": (first_box(category_id=8), "annotation 0", "category_id 8"),
    "other classes": (
        lambda root: damage(root, lambda d: d["categories"].append({"id": 91, "name": "fork"})),
        "different categories",
        "fork",
    ),
}


@pytest.mark.parametrize("case", BAD_DATA.values(), ids=BAD_DATA.keys())
def test_bad_data_is_refused_before_anything_is_written(case, tiny_coco, tmp_path, capsys):
    spoil, *fragments = case
    spoil(tiny_coco)
    refused(capsys, train_arguments(tiny_coco, tmp_path / "run"), tiny_coco.name, *fragments)
    assert not (tmp_path / "run").exists()


def test_an_image_of_another_size_is_named_before_training(tiny_coco, tmp_path, capsys):
    Image.new("RGB", (33, 44)).save(tiny_coco / "train" / "train-1.jpg")
    refused(
        capsys,
        train_arguments(tiny_coco, tmp_path / "run"),
        "instances_train.json",
        "train-1.jpg",
        "is 33x44 px",
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_damaged_in_the_middle_is_named_when_it_is_read(
    tiny_coco, tmp_path, capsys, num_workers
):
    """Its header and its end are sound, so only decoding finds it."""
    image = tiny_coco / "train" / "train-1.jpg"
    with Image.open(image) as whole:
        whole.save(tmp_path / "whole.png")
    content = bytearray((tmp_path / "whole.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    image.write_bytes(content)
    lines = fails(capsys, train_arguments(tiny_coco, tmp_path / "run", num_workers=num_workers))
    assert lines[-1].startswith(f"redetr: {image}: cannot decode the image")


BAD_SETTINGS = {
    "batch and accumulation": ({"accumulate": 5}, "--batch-size 4", "--batch-size 5 or more"),
    "no batch": ({"batch_size": 0}, "--batch-size 0"),
    "two lengths": ({"epochs": 2}, "--epochs", "--steps"),
    "learning rate": ({"lr": 0}, "--lr 0"),
    "recipe": ({"recipe": "detr_r51"}, "unknown recipe 'detr_r51'", "detr_r50"),
    "model for recipe": ({"recipe": "dfine_n"}, "dfine_n is a model", "use dfine_n_finetune"),
    "model without recipe": (
        {"recipe": "rtdetrv2_r18"},
        "use rtdetr_r18_finetune --model rtdetrv2_r18 --weights PekingU/rtdetr_v2_r18vd",
    ),
    "BatchNorm over ranks": (
        {"options": ["norm=sync_batch", "backbone=resnet18"]},
        "--model-options norm=frozen_batch",
    ),
    "denoising": ({"denoising": 2}, "redetr_n has no denoising", "--denoising 0"),
    "model": ({"model": "yolo"}, "unknown model 'yolo'", "redetr_n"),
    "option": ({"options": ["width=3"]}, "unknown option 'width'", "hidden_dim"),
    "option without value": (
        {"options": ["hidden_dim"]},
        "'hidden_dim' is not of the form name=value",
    ),
    "option of the wrong kind": ({"options": ["hidden_dim=wide"]}, "redetr_n", "hidden_dim"),
    "option that does not fit": ({"options": ["hidden_dim=30", "nheads=7"]}, "hidden_dim must be"),
    "option that is not there": (
        {"recipe": "redetr_mobile", "weights": "none", "options": ["norm=batch"]},
        "norm",
    ),
    "weights": ({"weights": "imagenet"}, "imagenet"),
    "image size": ({"image_size": -5}, "--image-size"),
    "workers": ({"num_workers": -1}, "--num-workers"),
    "queries": ({"num_queries": -3}, "--num-queries"),
    "average": ({"ema_decay": 1.5}, "--ema-decay"),
    "device": ({"device": "tpu"}, "unknown device 'tpu'", "cuda"),
    "output under a file": ({"output": __file__ + "/run"}, "is not a folder"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS.values(), ids=BAD_SETTINGS.keys())
def test_bad_settings_are_refused_before_anything_is_written(case, shared_coco, tmp_path, capsys):
    flags, *fragments = case
    refused(
        capsys,
        train_arguments(**{"data": shared_coco, "output": tmp_path / "run"} | flags),
        *fragments,
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", "redetr_n", "--output", ""], "output"),
        (["train", "redetr_n", "--freeze", "backbone", ""], "freeze"),
        (["check", ""], "data"),
        (["predict", "runs/a", "image.png", ""], "source"),
    ],
)
def test_a_variable_of_the_shell_that_is_not_set(arguments, name, capsys):
    """As a path, an empty text would be the current folder."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == f"redetr: the value of {name} is empty; is a shell variable not set?\n"


def test_a_flag_in_place_of_the_recipe(capsys):
    said = "or a run folder comes first, as in redetr train redetr_n --data: choose one of"
    arguments = ["train", "--data", "digits"]
    refused(capsys, arguments, said, "detr_r50", "redetr_mobile", code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "runs/mine"], "no input: give images or folders after the checkpoint"),
        (["predict", "runs/mine", "--json"], "no input: give images or folders"),
        (["explain", "runs/mine"], "nothing to explain: give an image file"),
    ],
)
def test_a_missing_argument_is_a_wrong_command_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_every_command_needs_its_arguments(capsys):
    for command in COMMANDS:
        if command in ("demo", "models", "verify"):  # they need none
            continue
        with pytest.raises(SystemExit) as ended:
            main([command])
        assert ended.value.code == 2, command


def work(*_: Any, **__: Any) -> None:
    """In place of a forward pass, or of reading an image."""
    pytest.fail("the work has begun")


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "{data}", "--report", "{file}"],
        ["check", "{data}", "--report", "{file}/page"],
        ["convert", "{data}", "{file}/new"],
        ["train", "redetr_n", "--data", "{data}", "--output", "{file}"],
        ["predict", "{run}", "{data}/train", "--output", "{file}/a/b"],
        ["evaluate", "{run}", "--report", "{file}"],
        ["explain", "{run}", "{data}/train/a.png", "--output", "{file}"],
        ["push", "a/b", "{run}", "--to", "{file}/new"],
        ["export", "{run}", "--output", "{closed}/a.onnx"],
        ["check", "{data}", "--report", "{closed}/page"],
        ["train", "redetr_n", "--data", "{data}", "--output", "{closed}"],
    ],
)
def test_results_that_cannot_be_written_are_refused_before_the_work(
    arguments, trained, shared_coco, tmp_path, capsys, monkeypatch
):
    """Root may write everywhere, so the permission is taken away where it is looked up."""
    file = tmp_path / "file"
    file.write_text("")
    closed = tmp_path / "closed"
    closed.mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode, **options: path != closed and access(path, mode, **options)
    )
    names = {"data": shared_coco, "run": trained, "file": file, "closed": closed}
    if arguments[0] == "train":  # which takes the lock of its folder after it has read the data
        monkeypatch.setattr("redetr.training.train_step", work)
    else:
        monkeypatch.setattr("torch.nn.Module.__call__", work)
        monkeypatch.setattr("PIL.Image.open", work)
    filled = [argument.format(**names) for argument in arguments]
    said = "is not a folder" if "file" in str(arguments) else "that you may not write to"
    refused(capsys, filled, said, "give another folder")
    assert not any(closed.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "a\nb"], "redetr: a\\nb: no such folder"),
        (["check", "hf:"], "redetr: hf:: names no data set; write hf:NAME or hf:FOLDER"),
        (["check", "https://"], "redetr: https://: is an address without a server; write https://"),
        (["check", "https://[a"], "redetr: https://[a: is not an address (Invalid IPv6 URL)"),
        (["convert", "digits", "new"], "redetr: digits: is drawn on demand, so it has no images"),
        (["check", "{run}"], "is the folder of a run, which is not data; give the data that it"),
        (["train", "{odd}"], "odd/config.json: setting 'data' cannot be 7"),
        (["train", "{data}"], "config.json: not the settings of a run (No such file or directory)"),
    ],
)
def test_sources_that_cannot_be_any(arguments, said, trained, shared_coco, tmp_path, capsys):
    odd = tmp_path / "odd"
    odd.mkdir()
    settings = json.loads((trained / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps(settings | {"data": 7}))
    names = {"run": trained, "odd": odd, "data": shared_coco}
    refused(capsys, [argument.format(**names) for argument in arguments], said)


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_evaluate_measures_on_the_split_that_is_asked_for(trained, tiny_coco, tmp_path, capsys):
    def measured(*options):
        main(["evaluate", str(trained), "--data", str(root), "--json", *options])
        return json.loads(capsys.readouterr().out)["AR100"]

    root = Path(shutil.copytree(tiny_coco, tmp_path / "data"))
    refused(capsys, ["evaluate", trained, "--data", root, "--split", "test"], "no test split")
    refused(
        capsys,
        ["evaluate", trained, "--data", "digits", "--split", "test"],
        "digits: has no test split",
    )
    (root / "val").rename(root / "test")
    (root / "annotations/instances_val.json").rename(root / "annotations/instances_test.json")
    shutil.copytree(root / "train", root / "val")
    shutil.copy(root / "annotations/instances_train.json", root / "annotations/instances_val.json")
    assert measured() == measured("--split", "train") != measured("--split", "test")


def test_evaluation_decodes_in_loader_processes(trained, capsys):
    """The numbers are those of one process."""
    answers = []
    for num_workers in ("0", "2"):
        arguments = ["evaluate", str(trained), "--batch-size", "2", "--num-workers", num_workers]
        main([*arguments, "--device", "cpu", "--json"])
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1]
    assert answers[0]["images"] == 5


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_pickle_with_code_is_not_executed(command, tmp_path, shared_coco, capsys):
    marker, file = tmp_path / "executed", tmp_path / "best.pt"
    torch.save({"model": Payload(marker)}, file)
    refused(
        capsys,
        [command, file, *([shared_coco / "val"] if command == "predict" else [])],
        str(file),
        "safely",
    )
    file.write_bytes(pickle.dumps(Payload(marker)))
    refused(
        capsys, [command, file, *([shared_coco / "val"] if command == "predict" else [])], str(file)
    )
    assert not marker.exists()


def test_damaged_and_foreign_checkpoints(trained, tmp_path, capsys):
    for name in ("best.pt", "best.safetensors"):
        cut = tmp_path / name
        cut.write_bytes((trained / name).read_bytes()[:1000])
        refused(capsys, ["evaluate", cut], str(cut))
    refused(capsys, ["evaluate", tmp_path / "nothing.pt"], "nothing.pt", "no such file")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    refused(capsys, ["evaluate", tmp_path / "foreign.pt"], "foreign.pt", "no DETR")
    half = torch.load(trained / "best.pt", weights_only=True)
    half["ema"].popitem()
    torch.save(half, tmp_path / "half.pt")
    refused(capsys, ["evaluate", tmp_path / "half.pt"], "half.pt", "1 missing")


def flip_a_byte(path: Path) -> None:
    """As a bad disk does: the file keeps its size, and `torch.load` alone would take it."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize("damage_file", [flip_a_byte, cut_short, Path.unlink])
def test_resuming_past_a_damaged_checkpoint(trained, shared_coco, tmp_path, capsys, damage_file):
    """The checkpoint before it is taken, and the run ends as it would have."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / ".unfinished-last-x.pt").write_bytes(b"left by a killed process")
    damage_file(folder / "last.pt")
    damaged = (folder / "last.pt").exists()
    main([*train_arguments(shared_coco, folder, num_workers=2), "--resume"])
    said = capsys.readouterr().err.replace("\n", " ")
    assert ("warning:" in said and "last.pt: not a checkpoint" in said) == damaged
    assert "previous.pt at step 6" in said
    states = [torch.load(path / "last.pt", weights_only=True) for path in (trained, folder)]
    torch.testing.assert_close(states[0]["model"], states[1]["model"], rtol=0, atol=0)
    assert states[0]["best"] == states[1]["best"]
    assert not list(folder.glob(".unfinished*"))


def test_resuming_removes_only_unfinished_files_of_the_run(trained, shared_coco, tmp_path):
    """An export may be writing to the folder, and a killed one has left a folder there."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for path in trained.iterdir():
        if path.is_file() and path.name != "previous.pt":  # the latter is renamed
            (folder / f".unfinished-{path.stem}-k2x_9d0a{path.suffix}").write_text("half of it")
    others = {".unfinished-model-k2x_9d0a.onnx", ".unfinished-k2x_9d0a"}
    (folder / ".unfinished-model-k2x_9d0a.onnx").write_text("half of it")
    (folder / ".unfinished-k2x_9d0a" / "new").mkdir(parents=True)
    main([*train_arguments(shared_coco, folder, num_workers=2), "--resume"])
    assert {path.name for path in folder.glob(".unfinished*")} == others


def test_no_whole_checkpoint(trained, shared_coco, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for name in ("last.pt", "previous.pt"):
        flip_a_byte(folder / name)
    refused(
        capsys,
        [*train_arguments(shared_coco, folder), "--resume"],
        "no intact checkpoint",
        "last.pt",
        "previous.pt",
    )


def test_a_checkpoint_of_other_classes_is_not_evaluated(trained, tiny_coco, capsys):
    for split in ("train", "val"):
        file = tiny_coco / "annotations" / f"instances_{split}.json"
        document = json.loads(file.read_text())
        document["categories"].append({"id": 91, "name": "fork"})
        file.write_text(json.dumps(document))
    lines = fails(capsys, ["evaluate", trained, "--data", tiny_coco, "--json"])
    assert lines[-1].startswith(
        "redetr: the model knows 3 classes, such as cup (7), plate (12), spoon (90); tiny has 4, "
    )
    assert "of which the model does not know fork (91): " in lines[-1]


def measured(capsys, checkpoint: Path, data: Path) -> dict[str, Any]:
    capsys.readouterr()
    main(["evaluate", str(checkpoint), "--data", str(data), "--json", "--device", "cpu"])
    return json.loads(capsys.readouterr().out)


def test_converted_data_gives_the_same_numbers(trained, shared_coco, tmp_path, capsys):
    """Conversion numbers the classes 7, 12 and 90 from 0 on: their names tell which is which."""
    main(["convert", str(shared_coco), str(tmp_path / "yolo"), "--to", "yolo"])
    before, after = (measured(capsys, trained, data) for data in (shared_coco, tmp_path / "yolo"))
    assert after["per_class"] == pytest.approx(before["per_class"], abs=1e-3)
    assert after["objects"] == before["objects"]


def test_names_that_do_not_tell_classes_apart_are_refused(trained, tiny_coco, capsys):
    for split in ("train", "val"):
        renumbered = {
            "categories": [
                {"id": i, "name": name} for i, name in enumerate(("cup", "plate", "plate"))
            ]
        }
        file = tiny_coco / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | renumbered | {"annotations": []}))
    lines = fails(capsys, ["evaluate", trained, "--data", tiny_coco, "--json"])
    assert "does not know cup (0), plate (1), plate (2): " in lines[-1]


def test_bad_sources_for_predict(trained, shared_coco, tmp_path, capsys):
    output = ["--output", tmp_path / "found"]
    (tmp_path / "empty").mkdir()
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    refused(
        capsys,
        ["predict", trained, tmp_path / "nothing.jpg", *output],
        "nothing.jpg",
        "no such file",
    )
    refused(capsys, ["predict", trained, tmp_path / "empty", *output], "empty", "no images")
    refused(
        capsys,
        ["predict", trained, tmp_path / "emp*", *output],
        "emp*: the pattern matches only folders",
    )
    refused(
        capsys,
        ["predict", trained, shared_coco / "val", "--threshold", "1.5", *output],
        "--threshold 1.5",
    )
    refused(
        capsys,
        ["predict", trained, shared_coco / "val", "--batch-size", "0", *output],
        "--batch-size",
    )
    refused(
        capsys, ["predict", trained, shared_coco / "val", "--output", text / "found"], "text.jpg"
    )
    assert not (tmp_path / "found").exists()
    assert fails(capsys, ["predict", trained, text, *output])[-1].startswith(
        f"redetr: {text}: not an image"
    )


def test_usage(capsys):
    assert fails(capsys, ["frobnicate"], code=2)[0].startswith(
        "redetr: unknown command 'frobnicate'"
    )
    assert fails(capsys, ["train", "redetr_n", "--steps", "many"], code=2)
    assert fails(capsys, ["train", "redetr_n", "--stepz", "3"], code=2)
    for arguments, code, said in (
        ([], 2, "redetr train"),
        (["--help"], 0, "redetr train"),
        (["train"], 2, "detr_tiny"),
        (["train", "redetr_n", "--help"], 0, "--batch-size"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == code
        assert said in capsys.readouterr().out


def test_a_run_without_progress_ends_early(shared_coco, tmp_path, capsys, monkeypatch):
    """With a learning rate of next to nothing AP stays where it is. The run waits for its schedule:
    at step 8 of 12, cosine has fallen to a quarter."""
    announced = []

    def counted(*args, **kwargs):
        announced.append(args)
        return announce(*args, **kwargs)

    monkeypatch.setattr("redetr.training.announce", counted)
    arguments = train_arguments(
        shared_coco, tmp_path / "run", steps=12, eval_every=2, patience=0.3, lr=1e-30, ema_decay=0
    )
    main(arguments)
    evaluations = [line["step"] for line in lines_of(tmp_path / "run") if "AP" in line]
    assert evaluations == [2, 4, 6, 8]
    assert len(announced) == 9  # one ahead
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["step"] == 8
    ended = "ended early at step 8 of 12: AP has not improved for 6 steps "
    ended += "(3 evaluations, --patience 0.3)"
    assert f"\n{ended}; best.pt is from step 2: AP 0." in capsys.readouterr().err
    main([*arguments, "--resume", "--eval-every=4"])  # it stays ended
    assert len(announced) == 9  # nothing is loaded for a run that has ended
    told = capsys.readouterr().err
    assert f"nothing to train: {ended}; " in told and "give a larger --patience" in told
    assert f"\n{ended}; best.pt is from step 2: AP 0." in told
    assert [line["step"] for line in lines_of(tmp_path / "run") if "AP" in line] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("schedule", "steps", "every", "end"),
    [
        ("cosine", 60, 3, 42),  # not 33: two thirds of the run are over at 40
        ("step", 60, 3, 42),  # the drop is at 0.67
        ("constant", 60, 3, 18),  # nothing to wait for but a quarter of the run
        ("constant", 8, 2, 6),  # two evaluations at least
        ("cosine", 60, 30, 60),
    ],
)
def test_patience_is_a_share_of_the_run(schedule, steps, every, end):
    """AP is best at the first evaluation."""
    state = object.__new__(State)
    config = replace(TrainConfig(), steps=steps, schedule=schedule, patience=0.25, warmup=0.0)
    with torch.device("meta"):
        model = redetr.build("redetr_n", 3)
    state.config, state.model = config.resolved(model, Hints(), 4), model
    state.best, state.evaluations_since_best, state.last_evaluated_step, state.step = (
        {"AP": None, "step": 0},
        0,
        0,
        0,
    )
    while not state.end_reason():
        state.step += 1
        if state.step % every == 0:
            state.record(0.3 if state.step == every else 0.2)
    assert state.step == end


def test_patience_of_earlier_versions_counted_evaluations():
    values = TrainConfig().to_dict()
    assert TrainConfig.from_dict(values | {"patience": 5}).patience == 0.25
    assert TrainConfig.from_dict(values | {"patience": 0}).patience == 0
    assert TrainConfig.from_dict(values | {"patience": 0.1}).patience == 0.1


def test_what_a_short_run_on_few_images_should_know_at_its_start(shared_coco, tmp_path, capsys):
    """The usual length, the time that is left, and a val split that measures little."""
    main(train_arguments(shared_coco, tmp_path / "run", steps=8, eval_every=8))
    told = capsys.readouterr().err
    # 8 images in steps of 4, each image 500 times.
    assert (
        "note: 8 steps are less than 1% of the usual length for 8 images; the default "
        "is --steps 1000" in told
    )
    assert re.search(r"warning: the val split has only 5 images with \d objects, so AP", told)
    estimates = re.findall(r"the remaining 2 steps will take about \d+ s, plus evaluations", told)
    assert len(estimates) == 1


@pytest.mark.parametrize(
    ("recipe", "flags", "said"),
    [
        (
            "detr_tiny",
            {},
            r"8 images with \d+ objects, 1 step, no pretrained weights: results of detr_r50 will be poor; "
            "use redetr_n",
        ),
        (
            "redetr_n",
            {},
            r"(?s)8 images with \d+ objects, 1 step, no pretrained weights: little to learn from.*"
            "note: 1 step is less than 1% of the usual length",
        ),
    ],
)
def test_what_cannot_work_is_said(shared_coco, tmp_path, capsys, recipe, flags, said):
    options = RUNS["faithful, with dropout"]["options"] if recipe == "detr_tiny" else SMALL
    main(
        train_arguments(
            shared_coco, tmp_path / "run", recipe, options, steps=1, eval_every=1, **flags
        )
    )
    assert re.search(said, capsys.readouterr().err.replace("\n", " "))


def test_a_run_names_its_images_and_goes_on_with_no_others(
    trained, shared_coco, tiny_coco, tmp_path, capsys
):
    inventory = json.loads((trained / "data.json").read_text())
    assert {split: part["count"] for split, part in inventory.items()} == {"train": 8, "val": 5}
    file = shared_coco / "val" / "val-3.jpg"
    assert inventory["val"]["images"]["val-3.jpg"] == hashlib.sha256(file.read_bytes()).hexdigest()
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    with Image.open(tiny_coco / "train" / "train-2.jpg") as image:
        image.rotate(180).save(tiny_coco / "train" / "train-2.jpg")
    refused(
        capsys,
        [*train_arguments(tiny_coco, folder), "--resume"],
        "train-2.jpg of train has changed",
    )


LEAKED = "was trained on some of these images"


def test_what_was_held_out_is_what_is_evaluated(tiny_coco, tmp_path, capsys):
    """A folder without a val split: the checkpoint knows which images its run did not learn
    from."""
    (tiny_coco / "annotations" / "instances_val.json").unlink()
    refused(capsys, train_arguments(tiny_coco, tmp_path / "run"), "--val-fraction")
    main(train_arguments(tiny_coco, tmp_path / "run", val_fraction=0.4))
    best = max(
        (line for line in lines_of(tmp_path / "run") if "AP" in line), key=lambda line: line["AP"]
    )
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "run"), "--json", "--precision", "fp32", "--device", "cpu"])
    output, errors = capsys.readouterr()
    assert json.loads(output)["AR100"] == pytest.approx(best["AR100"], abs=1e-6)
    assert LEAKED not in errors
    inventory = json.loads((tmp_path / "run" / "data.json").read_text())
    train, val = (set(inventory[split]["images"]) for split in ("train", "val"))
    assert val and not train & val and len(train | val) == 8

    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    del checkpoint["threshold"]  # which an earlier version did not write
    earlier = tmp_path / "earlier.pt"
    torch.save(checkpoint, earlier)
    main(["evaluate", str(earlier), "--precision", "fp32", "--device", "cpu"])
    assert f"warning: the run of {earlier} {LEAKED}" in capsys.readouterr().err
    run = str(tmp_path / "run")
    main(["evaluate", run, "--compare", str(earlier), "--precision", "fp32", "--device", "cpu"])
    errors = capsys.readouterr().err
    assert f"warning: the run of {earlier} {LEAKED}" in errors and errors.count(LEAKED) == 1

    more = ["--val-fraction", "0.6"]
    main(["evaluate", run, *more, "--precision", "fp32", "--device", "cpu"])
    assert LEAKED in capsys.readouterr().err
    card = ["--to", str(tmp_path / "card"), "--no-picture", "--device", "cpu"]
    main(["push", "me/cups", run, *more, *card])
    assert LEAKED in capsys.readouterr().err
    Export(run, val_fraction=0.6)._images_of(redetr.load(run, device="cpu"), "val")
    assert LEAKED in capsys.readouterr().err

    first_val, first_train = min(val), min(train)
    images = {split: inventory[split]["images"] for split in ("train", "val")}
    images["train"][first_val] = images["val"].pop(first_val)
    images["val"][first_train] = images["train"].pop(first_train)
    (tmp_path / "run" / "data.json").write_text(json.dumps(inventory))
    main(["evaluate", run, "--precision", "fp32", "--device", "cpu"])
    assert LEAKED in capsys.readouterr().err
    main(["evaluate", run, "--split", "train", "--precision", "fp32", "--device", "cpu"])
    assert LEAKED not in capsys.readouterr().err


@pytest.mark.long
def test_a_run_that_left_no_checkpoint_is_begun_anew(shared_coco, tmp_path, capsys):
    """What it wrote of itself does not hold up another run there, with other data; a refused one
    changes nothing, nor does one that would overwrite the best weights of a run whose checkpoints
    were deleted to save space."""
    folder = tmp_path / "run"
    main(train_arguments(shared_coco, folder, steps=1, eval_every=1))
    before = {name: (folder / name).read_bytes() for name in ("config.json", "data.json")}
    capsys.readouterr()
    refused(capsys, train_arguments(shared_coco, folder, seed=5), "already holds a run")
    for name in ("last.pt", "previous.pt"):
        (folder / name).unlink()
    for resume in ([], ["--resume"]):
        arguments = [*train_arguments(shared_coco, folder, steps=1), *resume]
        refused(capsys, arguments, "already holds best.pt, but no checkpoint", "another --output")
    (folder / "best.pt").unlink()
    refused(capsys, train_arguments(shared_coco, folder), "already holds best.safetensors")
    assert before == {name: (folder / name).read_bytes() for name in before}
    (folder / "best.safetensors").unlink()
    data = tmp_path / "data"
    shutil.copytree(shared_coco, data)
    with Image.open(data / "train" / "train-2.jpg") as image:
        image.rotate(180).save(data / "train" / "train-2.jpg")
    main(train_arguments(data, folder, steps=1, eval_every=1))
    assert (folder / "data.json").read_bytes() != before["data.json"]


def test_classes_may_have_brackets_in_their_names(tiny_coco, tmp_path, capsys):
    for file in (tiny_coco / "annotations").iterdir():
        file.write_text(file.read_text().replace('"cup"', '"[ignore] cup [/old]"'))
    main(train_arguments(tiny_coco, tmp_path / "run", steps=1, eval_every=1))
    main(["check", str(tiny_coco)])
    assert capsys.readouterr().out.count("[ignore] cup [/old]") >= 2


def test_the_folder_of_a_run_stands_for_its_settings(shared_coco, tmp_path, capsys, monkeypatch):
    """It goes on by itself, from any place that its data can be found; or again with some other
    settings."""
    whole, folder = tmp_path / "whole", tmp_path / "a run"
    main(train_arguments(shared_coco, whole, seed=3))
    with monkeypatch.context() as patch:
        calls: list[int] = []
        stop_at_3 = lambda *rest: calls.append(1) or announce(*rest[:3], stopping=len(calls) == 3)  # noqa: E731
        patch.setattr("redetr.training.announce", stop_at_3)
        fails(capsys, train_arguments(shared_coco, folder, seed=3), code=75)
    again = train_arguments(shared_coco, folder, seed=4)
    refused(capsys, [*again, "--resume"], "seed=3", f"redetr train '{folder}' --resume takes")
    main(["train", str(folder), "--resume"])
    saved = [torch.load(run / "last.pt", weights_only=True) for run in (whole, folder)]
    assert all(
        torch.equal(value, saved[1]["model"][name]) for name, value in saved[0]["model"].items()
    )
    capsys.readouterr()
    refused(capsys, ["train", str(folder)], "already holds a run")
    main(["train", str(folder / "config.json"), "--steps=2", f"--output={tmp_path / 'again'}"])
    configs = [
        json.loads((run / "config.json").read_text()) for run in (folder, tmp_path / "again")
    ]
    assert {name for name in configs[0] if configs[0][name] != configs[1][name]} == {
        "steps",
        "eval_every",  # it follows from the steps, and the next one from it
        "save_every",
        "output",
        "resume",
    }
    assert (configs[1]["eval_every"], configs[1]["save_every"]) == (1, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no JSON", "not the settings of a run"),
        ("[1]", "not the settings of a run"),
        ("{}", "not the settings of a run (no 'model')"),
        ('{"model": "redetr_n"}', "not the settings of a run (no 'data')"),
        (
            '{"model": "redetr_n", "data": "digits", "color": 3}',
            "setting 'color' is not known to this version",
        ),
        ('{"model": "redetr_n", "data": "digits", "steps": "many"}', "steps"),
    ],
)
def test_settings_that_cannot_be_read(tmp_path, capsys, content, said):
    (tmp_path / "config.json").write_text(content)
    refused(capsys, ["train", str(tmp_path)], said)


def test_a_checkpoint_finds_its_data_from_another_directory(
    tiny_coco, tmp_path, capsys, monkeypatch
):
    """And says where it looked when the data is gone. The run itself goes on with the path that it
    is given."""
    monkeypatch.chdir(tiny_coco.parent)
    arguments = train_arguments(Path("tiny"), tmp_path / "run", steps=2, eval_every=1)
    main(arguments)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == "tiny"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in ("best.pt", "best.safetensors"):
        capsys.readouterr()
        main(["evaluate", f"../run/{name}", "--json", "--device=cpu"])
        assert json.loads(capsys.readouterr().out)["data"] == str(tiny_coco)
    tiny_coco.rename(tmp_path / "elsewhere" / "moved")
    stored = f"{tiny_coco}: no such folder;"
    for command in ("evaluate", "export"):
        refused(
            capsys, [command, "../run"], stored, "the checkpoint stores this path", "give --data"
        )
    refused(
        capsys,
        ["explain", "../run", "--image-id=100"],
        stored,
        "the checkpoint stores",
        "give --data",
    )
    refused(capsys, ["evaluate", "../run", "--data=nowhere"], "redetr: nowhere: no such folder")
    main([*train_arguments(Path("moved"), tmp_path / "run", steps=2, eval_every=1), "--resume"])
    main(["evaluate", "../run/last.pt", "--device=cpu"])
    assert f"split of {tmp_path}/elsewhere/moved, " in capsys.readouterr().out


def test_nothing_of_a_dependency_reaches_the_terminal(new_process):
    """Not even where every warning is an error."""
    _, ended = new_process
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    assert "predictions.jsonl" in ended.stdout


@pytest.mark.parametrize(
    "category", ["DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"]
)
def test_what_a_dependency_deprecates_is_not_shown(category):
    program = f"""
import warnings
from redetr.cli import quiet_dependencies
quiet_dependencies()
warnings.warn("gone", {category})
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "variables", [{"WORLD_SIZE": 1}, {"RANK": 1}, {"WORLD_SIZE": 1, "RANK": 0}], ids=str
)
def test_leftovers_of_a_launcher_do_not_swallow_the_result(trained, variables):
    arguments = ["evaluate", trained / "best.pt", "--device=cpu", "--precision=fp32"]
    process = Fork(arguments, variables)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "AP50" in output


def test_ranks_that_do_not_meet_end_in_one_line(trained):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        leftovers = {"WORLD_SIZE": 2, "RANK": 1} | address
        process = Fork([*train_arguments(trained, trained / "other"), "--timeout-s=1"], leftovers)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = errors.strip().splitlines()
    assert (
        "rank 1 of 2 did not meet the other ranks at 127.0.0.1" in line
        and "unset WORLD_SIZE" in line
    )


FULL = "redetr: cannot read or write: No space left on device; free some space\n"


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("| true", 1, ""),
        ("> /dev/full", 1, FULL),
        (">&-", 0, ""),
    ],
    ids=["a pipe without a reader", "a full disk", "closed"],
)
@pytest.mark.parametrize("arguments", ["completion bash", "train --help"])
def test_an_output_that_takes_nothing(arguments, output, code, said):
    """The reader of a pipe has seen enough, and nothing is said; a full disk is one line."""
    command = f'("$0" -m redetr {arguments}; echo $? >&3) {output}'
    ended = subprocess.run(
        ["bash", "-c", f"exec 3>&1; {command}", sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.stdout, ended.stderr) == (f"{code}\n", said)
