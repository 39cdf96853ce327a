"""Predicting on anything: sources, forms of output, tiles, several processes, resuming."""

import base64
import csv
import http.server
import io
import json
import os
import re
import shutil
import signal
import struct
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CATEGORIES, write_tiny_coco
from forked import run_ranks
from PIL import Image

import redetr
from redetr.checkpoint import save_checkpoint
from redetr.cli import main
from redetr.commands.predict import Predict
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.detector import records as predictions
from redetr.detector import sources
from redetr.detector.detector import Detector, as_image
from redetr.detector.output_names import output_names
from redetr.detector.record_formats import write_formats
from redetr.detector.sources import find_sources, frames, read_ahead
from redetr.detector.video import VideoFrame, VideoWriter, video_frames
from redetr.doctor.check import essential_faults
from redetr.errors import InputError
from redetr.evaluation import detect_share
from redetr.models import build

OPTIONS = (
    "backbone=[8,16,32]",
    "hidden_dim=16",
    "nheads=2",
    "dec_layers=1",
    "dim_feedforward=16",
    "num_queries=10",
)
SMALL = TrainConfig(model="redetr_n", image_size=64, model_options=OPTIONS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny model with random weights, whose scores are far from each other."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), CATEGORIES)


def save_tiny_model(folder: Path, classes: dict[int, str]) -> Path:
    """A checkpoint with random weights, given the names of the classes by category id."""
    torch.manual_seed(0)
    model = build("redetr_n", len(classes), **SMALL.model_kwargs())
    path = folder / "best.pt"
    content = {
        "model": model.state_dict(),
        "ema": None,
        "optimizer": {},
        "step": 1,
        "config": SMALL.to_dict(),
        "class_names": list(classes.values()),
        "category_ids": list(classes),
    }
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def detector(checkpoint):
    return redetr.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five images: val-0.jpg to val-4.jpg."""
    return write_tiny_coco(tmp_path_factory.mktemp("images") / "tiny") / "val"


def predict(*arguments, threshold: float = 0.0) -> None:
    """In fp32, whatever the processor is fast at: the expected detections are those of a detector
    in fp32."""
    flags = ["--device", "cpu", "--precision", "fp32", f"--threshold={threshold}"]
    main(["predict", *map(str, arguments), *flags])


def lines_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def refused(capsys, *arguments, **options) -> str:
    with pytest.raises(SystemExit) as ended:
        predict(*arguments, **options)
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1
    assert said[-1].startswith("redetr: ")
    assert not any("Traceback" in line for line in said)
    return said[-1]


def test_sources_are_found_once_and_in_order(tmp_path, monkeypatch):
    for name in (
        "b/2.JPG",
        "b/1.png",
        "a/x.webp",
        "b/deep/clip.mp4",
        "b/text.txt",
        "b/.hidden.jpg",
        "odd[1].jpg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "b/folder.jpg").mkdir()
    (tmp_path / "b/loop").symlink_to(tmp_path / "b", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    in_b = ["b/1.png", "b/2.JPG", "b/deep/clip.mp4"]
    assert find_sources(["b"]) == in_b
    assert find_sources(["a/x.webp", "b", "b/1.png"]) == ["a/x.webp", *in_b]
    spellings = ["a/x.webp", "./a/../a/x.webp", str(tmp_path / "a/x.webp")]
    assert find_sources(spellings) == ["a/x.webp"]
    assert find_sources(["**/*.png", "odd[1].jpg"]) == ["b/1.png", "odd[1].jpg"]
    assert find_sources(["0", "http://a.b/c.jpg", "HTTPS://a.b/c"]) == [
        "0",
        "http://a.b/c.jpg",
        "HTTPS://a.b/c",
    ]
    (tmp_path / "0").touch()
    assert find_sources(["0"]) == ["./0"]  # not the camera
    for wrong, message in (
        ("nothing.jpg", "nothing.jpg: no such file or folder; check"),
        ("*.tif", r"\*.tif: no file matches this pattern; check"),
        ("ftp://x/a.jpg", "ftp://x/a.jpg: ftp URLs are not supported; download it"),
        ("s3://x/*.jpg", "s3 URLs are not supported; download it"),
        ("file:///a.jpg", "file URLs are not supported; give the path without file://"),
        ("b/folder.jpg", "no images"),
    ):
        with pytest.raises(InputError, match=message):
            find_sources([wrong])


def test_what_is_passed_over_in_a_folder_is_reported(checkpoint, folder, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    with Image.open(folder / "val-0.jpg") as image:
        kinds = {"jpg": "JPEG", "gif": "GIF", "jp2": "JPEG2000", "jfif": "JPEG", "ppm": "PPM"}
        for number, (ending, kind) in enumerate(kinds.items()):
            image.save(source / f"p{number}.{ending}", format=kind)
        image.save(source / "no_ending", format="PNG")
        image.save(source / ".hidden.png")
    for name in ("a.heic", "b.heic", "c.arw"):
        (source / name).write_bytes(b"\0\0\0\x18ftypheic")
    (source / "LICENSE").write_text("free")
    (source / "more").symlink_to(folder, target_is_directory=True)
    predict(checkpoint, source, "--output", tmp_path / "out")
    assert len(lines_in(tmp_path / "out")) == 5
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith(("warning: ", "note: "))] == [
        f"warning: {source}: a.heic: has a suffix that is not read, and is skipped (such files: "
        "2 .heic, 1 .arw, 1 no suffix); convert it if it belongs to the data (and 3 more "
        "like it)",
        f"warning: {source}: more: is a link to a folder, which is not followed; put the folder "
        "itself there",
        f"note: {source}: .hidden.png: is hidden or a system file, and is skipped; delete it",
    ]
    for path in source.glob("p*"):
        path.unlink()
    said = refused(capsys, checkpoint, source, "--output", tmp_path / "other")
    assert "no images in this folder" in said and "a.heic has a suffix that is not read" in said


@pytest.mark.parametrize("output", ["predictions", "."])
def test_what_predict_wrote_is_no_source(checkpoint, folder, tmp_path, capsys, monkeypatch, output):
    shutil.copytree(folder, tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    flags = (checkpoint, ".", "--output", output)
    predict(*flags)
    first = (tmp_path / "in" / output / "predictions.jsonl").read_text()
    for again in ("--overwrite", "--resume", "--overwrite"):
        predict(*flags, again)
        assert (tmp_path / "in" / output / "predictions.jsonl").read_text() == first
        said = capsys.readouterr().err
        assert "is an image that redetr wrote, and is skipped" in said
    assert find_sources(["**/*.*g"]) == [f"val-{number}.jpg" for number in range(5)]
    said = refused(capsys, checkpoint, f"{output}/val-1.png", "--overwrite", "--output", output)
    assert "which --overwrite deletes" in said
    assert (tmp_path / "in" / output / "val-1.png").exists()


def test_files_in_the_output_folder_stay(checkpoint, folder, tmp_path):
    (tmp_path / "val-0.png").write_text("mine")
    predict(checkpoint, folder, "--output", tmp_path)
    predict(checkpoint, folder, "--output", tmp_path, "--overwrite")
    assert (tmp_path / "val-0.png").read_text() == "mine"
    assert lines_in(tmp_path)[0]["picture"] == "val-0-2.png"


@pytest.mark.parametrize("finished", [(), (0,), (1,), (0, 2)], ids=str)
def test_resuming_gives_the_names_of_a_run_without_an_interruption(
    checkpoint, folder, tmp_path, finished
):
    """Three images of one name, of which an interrupted run recorded some."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.jpg").write_bytes((folder / "val-0.jpg").read_bytes())
    sources = (tmp_path / "a", tmp_path / "b", tmp_path / "c")
    flags = (checkpoint, *sources, "--output", tmp_path / "out")
    predict(*flags)
    record = tmp_path / "out/predictions.jsonl"
    whole = lines_in(tmp_path / "out")
    kept = [json.dumps(whole[number]) + "\n" for number in finished]
    record.write_text("".join(kept))
    for number in range(3):
        if number not in finished:
            (tmp_path / "out" / whole[number]["picture"]).unlink()
    predict(*flags, "--resume")
    names = {line["image"]: line["picture"] for line in lines_in(tmp_path / "out")}
    assert names == {line["image"]: line["picture"] for line in whole}
    assert set(names.values()) == {"same.png", "same-2.png", "same-3.png"}


def test_names_that_differ_only_in_capitals_are_one_name(tmp_path):
    """As on Windows and macOS, where the second file would replace the first."""
    sources = ["a/A.jpg", "b/a.jpg", "b/a.MASKS.jpg"]
    names = output_names(tmp_path, sources, (), "png", ["masks"])
    assert [path.name for path in names.values()] == ["A.png", "a-2.png", "a.MASKS-2.png"]
    earlier = {"a/A.jpg": "A.png"}
    assert output_names(tmp_path, sources, (), "png", ["masks"], earlier) == names
    present = ["X.Masks.PNG", "cafe\u0301.png"]  # macOS stores accents separately
    names = output_names(tmp_path, ["in/x.jpg", "in/caf\u00e9.jpg"], present, "png", ["masks"])
    assert [path.name for path in names.values()] == ["x-2.png", "caf\u00e9-2.png"]


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_an_original_with_other_capitals_is_not_replaced(checkpoint, folder, tmp_path, flag):
    original = tmp_path / "IMG_1.JPG"
    shutil.copy(folder / "val-0.jpg", original)
    flags = (checkpoint, original, "--output", tmp_path, "--save", "jpg")
    for again in ((), (flag,)):
        predict(*flags, *again)
        assert [line["picture"] for line in lines_in(tmp_path)] == ["IMG_1-2.jpg"]
        assert original.read_bytes() == (folder / "val-0.jpg").read_bytes()


@pytest.mark.parametrize("folder_name", ["link", "OUT"])
def test_a_source_in_the_output_folder_is_kept_however_that_is_written(tmp_path, folder_name):
    """It has the mark of redetr, so that its name does not count as taken when resuming."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out", target_is_directory=True)
    source = str(tmp_path / folder_name / "a.png")
    names = output_names(tmp_path / "out", [source], (), "png")
    assert names[source].name == "a-2.png"


def test_names_of_masks_without_annotated_images_are_kept(tmp_path):
    """A record that names the mask of a source shows which name the source has."""
    sources = ["a/x.jpg", "b/x.jpg"]
    whole = output_names(tmp_path, sources, (), "png", ["masks"])
    assert [path.name for path in whole.values()] == ["x.png", "x-2.png"]
    line = {"image": "a/x.jpg", "mask_picture": "x.masks.png", "detections": []}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    earlier = predictions.finished(tmp_path)
    assert earlier == {"a/x.jpg": "x.png"}
    assert output_names(tmp_path, sources, ["x.masks.png"], "png", ["masks"], earlier) == whole


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_resuming_replaces_no_file_but_those_that_it_drew(checkpoint, folder, tmp_path, suffix):
    """An interrupted run may have drawn images that it did not record: these it draws again."""
    flags = (checkpoint, folder, "--output", tmp_path, "--save", suffix)
    predict(*flags)
    record = tmp_path / "predictions.jsonl"
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:2]))
    Image.new("RGB", (9, 9)).save(tmp_path / f"val-3.{suffix}")
    mine = (tmp_path / f"val-3.{suffix}").read_bytes()
    predict(*flags, "--resume")
    names = [line["picture"] for line in lines_in(tmp_path)]
    assert names == [f"val-{name}.{suffix}" for name in ("0", "1", "2", "3-2", "4")]
    assert (tmp_path / f"val-3.{suffix}").read_bytes() == mine


def test_few_images_are_in_memory_however_many_there_are():
    started = count()
    results = read_ahead((lambda: next(started) for _ in range(100_000)), ahead=5)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()
    assert next(started) <= 3 + 5 + 1


def test_images_are_read_while_the_model_works():
    """The reader is ahead of the one who asks, and in order."""
    entered = threading.Semaphore(0)
    results = read_ahead(
        (lambda i=i: (entered.release(), i)[1] for i in range(9)), ahead=3, threads=2
    )
    assert next(results) == 0
    for _ in range(4):
        assert entered.acquire(timeout=10)
    assert list(results) == list(range(1, 9))


def test_all_forms_say_the_same(checkpoint, detector, folder, tmp_path, capsys):
    predict(
        checkpoint, folder, "--output", tmp_path, "--save", "jpg", "json", "coco", "csv", "--json"
    )
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "predictions.json").read_text())
    lines = lines_in(tmp_path)
    assert [Path(line["image"]).name for line in lines] == [f"val-{i}.jpg" for i in range(5)]
    assert {line.pop("image"): line for line in (dict(line) for line in lines)} == said
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    entries = json.loads((tmp_path / "predictions.coco.json").read_text())
    flat = [(line, found) for line in lines for found in line["detections"]]
    assert len(rows) == len(entries) == len(flat) > 20
    for row, entry, (line, found) in zip(rows, entries, flat, strict=True):
        assert (row["image"], row["frame"], row["label"]) == (line["image"], "", found["label"])
        assert row["picture"] == line["picture"] == f"{Path(line['image']).stem}.jpg"
        assert [float(row[side]) for side in ("x1", "y1", "x2", "y2")] == found["box"]
        assert entry["image_id"] == 1 + lines.index(line) and entry["file_name"] == line["image"]
        assert {7: "cup", 12: "plate", 90: "spoon"}[entry["category_id"]] == found["label"]
        x, y, w, h = entry["bbox"]
        assert [x, y, x + w, y + h] == pytest.approx(found["box"], abs=2e-3)
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == [
        f"val-{i}.jpg" for i in range(5)
    ]
    alone = detector.predict(folder / "val-2.jpg", threshold=0.0)
    assert alone.to_dict()["detections"][0]["box"] == pytest.approx(
        lines[2]["detections"][0]["box"], abs=0.01
    )


def test_labels_and_lines_of_annotated_images(checkpoint, folder, tmp_path, capsys):
    source = folder / "val-0.jpg"
    looks = {"plain": (), "bare": ("--labels", "none", "--line-width", "1")}
    drawn = {}
    for name, flags in looks.items():
        predict(checkpoint, source, "--output", tmp_path / name, "--save", "png", *flags)
        with Image.open(tmp_path / name / "val-0.png") as file:
            drawn[name] = np.asarray(file)
    detector = redetr.load(checkpoint, device="cpu").optimize(precision="fp32")
    alone = detector.predict(source, threshold=0.0)
    assert (drawn["bare"] == np.asarray(alone.draw(labels="none", line_width=1))).all()
    assert (drawn["plain"] == np.asarray(alone.draw())).all()
    assert (drawn["bare"] != drawn["plain"]).any()
    said = refused(capsys, checkpoint, source, "--output", tmp_path / "no", "--line-width", 0)
    assert said == "redetr: --line-width 0 must be at least 1"


def test_the_page_replaces_no_other(checkpoint, folder, tmp_path, capsys):
    page = tmp_path / "index.html"
    page.write_text("<title>precious</title>")
    source = folder / "val-0.jpg"
    for flags in ((), ("--overwrite",), ("--resume",)):
        said = refused(capsys, checkpoint, source, "--output", tmp_path, *flags)
        assert said.startswith(f"redetr: {page}: is a page that predict did not write; give ")
    said = refused(capsys, checkpoint, source, "--output", tmp_path, "--save", "html")
    assert said == "redetr: --save html shows annotated images: add png or jpg"
    predict(checkpoint, source, "--output", tmp_path, "--save", "png")
    assert page.read_text() == "<title>precious</title>"
    page.unlink()
    for name in ("val-0.jpg", "val-1.jpg"):
        predict(checkpoint, folder / name, "--output", tmp_path, "--overwrite")
        assert f'"{folder / name}"' in page.read_text()


def test_images_called_by_numbers_have_these_as_ids(checkpoint, folder, tmp_path):
    for number in (42, 139):
        (tmp_path / f"{number:012}.jpg").write_bytes((folder / "val-0.jpg").read_bytes())
    predict(checkpoint, tmp_path, "--output", tmp_path / "out", "--save", "coco")
    entries = json.loads((tmp_path / "out/predictions.coco.json").read_text())
    assert {entry["image_id"] for entry in entries} == {42, 139}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "predictions.coco.json",
        "predictions.jsonl",
    ]
    assert all("picture" not in line for line in lines_in(tmp_path / "out"))


def test_equal_names_and_only_some_classes(checkpoint, folder, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same.jpg").write_bytes((folder / "val-0.jpg").read_bytes())
    predict(
        checkpoint,
        tmp_path / "a",
        tmp_path / "b",
        "--output",
        tmp_path / "out",
        "--classes",
        "cup",
        "spoon",
    )
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"same.png", "same-2.png"}
    assert [line["picture"] for line in lines_in(tmp_path / "out")] == ["same.png", "same-2.png"]
    labels = {found["label"] for line in lines_in(tmp_path / "out") for found in line["detections"]}
    assert labels and labels <= {"cup", "spoon"}
    assert "knows cup, plate, spoon" in refused(
        capsys, checkpoint, folder, "--classes", "cow", "--output", tmp_path
    )


def test_a_picture_takes_no_name_of_a_source_or_of_an_earlier_run(checkpoint, folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with Image.open(folder / "val-0.jpg") as image:
            image.save(tmp_path / name / "same.png")
    before = (tmp_path / "a/same.png").read_bytes()
    predict(checkpoint, tmp_path / "a/same.png", "--output", tmp_path / "a")
    predict(
        checkpoint, tmp_path / "b", tmp_path / "a/same.png", "--output", tmp_path / "a", "--resume"
    )
    assert {
        Path(line["image"]).parent.name: line["picture"] for line in lines_in(tmp_path / "a")
    } == {
        "a": "same-2.png",
        "b": "same-3.png",
    }
    assert (tmp_path / "a/same.png").read_bytes() == before


def test_what_cannot_be_read_does_not_stop_the_rest(checkpoint, folder, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / f"in/{i}.jpg").write_bytes((folder / "val-0.jpg").read_bytes())
    (tmp_path / "in/1.jpg").write_text("no image")
    said = refused(capsys, checkpoint, tmp_path / "in", "--output", tmp_path / "out")
    assert said.startswith(f"redetr: {tmp_path}/in/1.jpg: not an image")
    assert ["error" in line for line in lines_in(tmp_path / "out")] == [False, True, False]
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 2
    (tmp_path / "in/1.jpg").write_bytes((folder / "val-0.jpg").read_bytes())
    # Sources that failed are tried again.
    predict(checkpoint, tmp_path / "in", "--output", tmp_path / "out", "--resume")
    assert "2 of them in an earlier run" in capsys.readouterr().out
    assert ["error" in line for line in lines_in(tmp_path / "out")] == [False] * 3


def test_the_command_says_what_was_found(checkpoint, folder, tmp_path, capsys):
    predict(checkpoint, folder, "--output", tmp_path / "all")
    found = [[each["label"] for each in line["detections"]] for line in lines_in(tmp_path / "all")]
    counted = Counter(label for labels in found for label in labels)
    most = ", ".join(f"{count} {name}" for name, count in counted.most_common())
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"objects found: {counted.total()} in 5 of 5 images: {most}; ")
    assert re.search(r"; \d+\.\d images/s$", said[0])
    assert said[1:] == [f"processed 5 of 5 sources: {tmp_path}/all/predictions.jsonl"]
    # Nothing is left to do, so no speed is reported.
    predict(checkpoint, folder, "--output", tmp_path / "all", "--resume")
    assert capsys.readouterr().out.splitlines()[0] == said[0].rpartition(";")[0]
    predict(checkpoint, folder, "--output", tmp_path / "none", threshold=1.0)
    said = capsys.readouterr().out
    assert said.startswith(
        "nothing found in 5 images with a score of 1.0 or more: lower --threshold; "
    )


@pytest.mark.parametrize(
    ("classes", "threshold", "said"),
    [
        ((), 0.5, "nothing found in 1 image with a score of 0.5 or more: lower --threshold"),
        ((), 0.0, "nothing found in 1 image"),
        (("cup",), 0.5, "no cup found in 1 image with a score of 0.5 or more: lower --threshold"),
        (("cup", "spoon"), 0.0, "no cup or spoon found in 1 image"),
    ],
)
def test_where_nothing_was_found_what_was_looked_for_is_named(
    classes, threshold, said, tmp_path, capsys
):
    """A threshold of 0 cannot be lowered."""
    line = {"image": "a.jpg", "detections": []}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    command = Predict("best.pt", ("a.jpg",), classes=classes)
    command._print_summary(predictions.summary(tmp_path), rate=0.0, threshold=threshold)
    assert capsys.readouterr().out == f"{said}\n"


def test_many_classes_are_not_all_told(tmp_path, capsys):
    labels = [[], *([f"class {n}"] * (9 - n) for n in range(7))]
    lines = [
        {"image": str(i), "detections": [{"label": name} for name in some]}
        for i, some in enumerate(labels)
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Predict("best.pt", ("a.jpg",))._print_summary(
        predictions.summary(tmp_path), rate=0.0, threshold=0.5
    )
    most = ", ".join(f"{9 - n} class {n}" for n in range(5))
    assert (
        capsys.readouterr().out
        == f"objects found: 42 in 7 of 8 images (none in 1): {most} and 2 more classes\n"
    )


def test_resuming_looks_at_the_rest_only(checkpoint, folder, tmp_path, capsys):
    predict(checkpoint, folder, "--output", tmp_path)
    whole = (tmp_path / "predictions.jsonl").read_text()
    rows = whole.splitlines(keepends=True)
    # Would change if the image were processed again.
    known = json.loads(rows[1]) | {"detections": []}
    # The last line is cut off, as if the run had been killed there.
    (tmp_path / "predictions.jsonl").write_text(rows[0] + json.dumps(known) + "\n" + rows[2][:40])
    (tmp_path / "val-0.png").unlink()
    predict(checkpoint, folder, "--output", tmp_path, "--resume", "--batch-size", 1)
    after = lines_in(tmp_path)
    assert [line["image"] for line in after] == [json.loads(row)["image"] for row in rows]
    assert after[1]["detections"] == [] and after[2]["detections"]
    assert not (tmp_path / "val-0.png").exists() and (tmp_path / "val-3.png").exists()
    predict(checkpoint, folder, "--output", tmp_path, "--overwrite")  # from the start
    assert (tmp_path / "predictions.jsonl").read_text() == whole


def test_earlier_predictions_are_deleted_on_demand_only(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (checkpoint, folder, "--output", out)
    predict(*arguments, "--save", "jpg", "json", "coco", "csv")
    before = {path: path.read_bytes() for path in out.iterdir()}
    said = refused(capsys, *arguments)
    assert said.startswith(
        f"redetr: {out}: already holds predictions: give another --output, --resume"
    )
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert "give only one" in refused(capsys, *arguments, "--resume", "--overwrite")
    for name in ("mine.jpg", "notes.txt"):
        (out / name).touch()
    with open(out / "predictions.jsonl", "a") as record:  # as one from elsewhere might say
        for name in (
            "../secret.jpg",
            str(tmp_path / "secret.jpg"),
            "notes.txt",
            "..",
            7,
            ["mine.jpg"],
        ):
            record.write(json.dumps({"image": "x", "picture": name}) + "\n")
    (tmp_path / "secret.jpg").touch()
    predict(checkpoint, folder / "val-1.jpg", "--output", out, "--save", "png", "--overwrite")
    assert {path.name for path in out.iterdir()} == {
        "mine.jpg",
        "notes.txt",
        "predictions.jsonl",
        "val-1.png",
    }
    assert (tmp_path / "secret.jpg").exists()


def test_parts_of_killed_processes_are_taken_over(tmp_path):
    def line(name, **more):
        return (
            json.dumps({"image": name, **(more or {"image_size": [1, 1], "detections": []})}) + "\n"
        )

    (tmp_path / "predictions.jsonl").write_text(line("a") + line("b", error="gone"))
    (tmp_path / "predictions.part-0.jsonl").write_text(line("c") + line("a"))
    frame = {"detections": [], "frame": 0}
    (tmp_path / "predictions.part-1.jsonl").write_text(
        line("v", **frame) + line("v", frames=1) + line("w", **frame) + '{"image": "d", "det'
    )
    assert set(predictions.finished(tmp_path)) == {"a", "c", "v"}
    predictions.begin(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert [line["image"] for line in lines_in(tmp_path)] == ["a", "c", "v", "v"]
    predictions.begin(tmp_path, resume=False)
    assert not list(tmp_path.iterdir())


def test_two_processes_write_what_one_does(checkpoint, folder, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    arguments = [
        "predict",
        checkpoint,
        folder,
        bad,
        "--threshold=0",
        "--device=cpu",
        "--precision=fp32",  # two trials of auto may end differently
        "--batch-size=1",
    ]
    ((code, said_alone, _),) = run_ranks(1, [*arguments, "--output", tmp_path / "one"])
    assert code == 1  # one file is no image
    ranks = run_ranks(2, [*arguments, "--output", tmp_path / "two"])
    assert any(code for code, _, _ in ranks)
    said = "".join(output for _, output, _ in ranks)
    errors = "".join(errors for _, _, errors in ranks)
    assert errors.count(f"redetr: {bad}: not an image") == 1
    assert said.count("processed 5 of 6") == 1
    counts = [
        re.search(r"objects found: \d+ in 5 of 5 images.*(?=;)", output).group()
        for output in (said, said_alone)
    ]
    assert counts[0] == counts[1]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in ("predictions.jsonl", "predictions.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


@pytest.mark.parametrize(
    ("source", "proxy"),
    [
        ("http://me:secret@127.0.0.1/a.jpg", ""),
        ("http://data.invalid/a.jpg", "http:/me:secret@host"),
        ("http://data.invalid/a.jpg", "http://me:pass@host:secret"),
    ],
)
def test_passwords_are_not_shown(checkpoint, source, proxy, tmp_path, capsys, monkeypatch):
    """Neither that of a proxy nor that of an address."""
    monkeypatch.setenv("http_proxy", proxy)
    said = refused(capsys, checkpoint, source, "--output", tmp_path)
    assert (
        "a.jpg: cannot be read (a part of its URL, or of that of the proxy, is malformed)" in said
    )
    assert "secret" not in said
    (line,) = lines_in(tmp_path)
    assert line["image"] == source
    assert "secret" not in line["error"]


class Server(http.server.BaseHTTPRequestHandler):
    """/image is one; others are wrong in one way each."""

    content = b""
    released = threading.Event()  # on which /slow waits

    def do_GET(self):
        if self.path == "/away":
            return self.answer(302, Location="file:///etc/passwd")
        if self.path.startswith("/moved"):
            return self.answer(302, Location="/image")
        if self.path == "/gone":
            return self.answer(404)
        if self.path == "/page":
            return self.answer(200, b"<html>", **{"Content-Type": "text/html"})
        if self.path == "/slow":
            self.released.wait(60)
        if self.path == "/drip":
            self.send_response(200)
            self.flush_headers()
            with suppress(OSError):  # the client has given up
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
        body = self.content * (50 if self.path == "/large" else 1)
        if self.path == "/cut":
            body = body[: len(body) // 2]
        return self.answer(200, body, **{"Content-Type": "image/jpeg"})

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(folder):
    Server.content = (folder / "val-0.jpg").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        Server.released.set()
        server.shutdown()


def test_images_from_the_net(checkpoint, detector, address, folder, tmp_path):
    assert torch.equal(as_image(f"{address}/image"), as_image(folder / "val-0.jpg"))
    predict(checkpoint, f"{address}/moved?a=1", f"{address}/..%2Fimage", "--output", tmp_path)
    assert [line["image"] for line in lines_in(tmp_path)] == [
        f"{address}/moved?a=1",
        f"{address}/..%2Fimage",
    ]
    assert {path.name for path in tmp_path.glob("*.png")} == {"moved.png", "image.png"}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/gone", "404"),
        ("/away", "cannot be read"),
        ("/page", "its type is text/html"),
        ("/large", "larger than"),
        ("/slow", "timed out"),
        ("/drip", "not complete after 1 s"),
        ("/cut", "cannot decode"),
        (":99999/a", "cannot be read"),
        ("/no such", "cannot be read"),
    ],
)
def test_what_the_net_may_send(address, path, says, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUT_S", 0.2 if path == "/slow" else 5.0)
    monkeypatch.setattr(sources, "_LONGEST_S", 1.0 if path == "/drip" else 100.0)
    monkeypatch.setattr(sources, "LARGEST_BYTES", 10 * len(Server.content))
    url = f"http://127.0.0.1{path}" if path[0] == ":" else address + path
    with pytest.raises(InputError, match=says) as told:
        as_image(url)
    assert str(told.value).startswith(url) and "\n" not in str(told.value)


def clip(path: Path, pictures: int = 6, size: tuple[int, int] = (64, 48)) -> Path:
    writer = VideoWriter()
    for i in range(pictures):
        writer.add(Image.new("RGB", size, (40 * i, 100, 200 - 30 * i)), path, 10.0)
    writer.close()
    return path


def test_videos_are_read_and_written(checkpoint, tmp_path):
    predict(checkpoint, clip(tmp_path / "clip.mp4", size=(65, 49)), "--output", tmp_path / "out")
    *lines, end = lines_in(tmp_path / "out")
    assert [(line["frame"], line["time_s"]) for line in lines] == [(i, i / 10) for i in range(6)]
    assert end == {"image": str(tmp_path / "clip.mp4"), "picture": "clip.mp4", "frames": 6}
    assert {line["picture"] for line in lines} == {"clip.mp4"}
    assert (
        list(json.loads((tmp_path / "out/predictions.json").read_text()))[3]
        == f"{tmp_path}/clip.mp4#3"
    )
    annotated = list(video_frames(tmp_path / "out/clip.mp4"))
    assert (
        len(annotated) == 6
        and annotated[0].image.shape == (3, 48, 64)
        and annotated[0].rate == 10.0
    )
    plain = [frame.image.float() for frame in video_frames(tmp_path / "clip.mp4")]
    assert all(
        (frame.image.float() - other).abs().max() > 50
        for frame, other in zip(annotated, plain, strict=True)
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "clip.mp4",
        "index.html",
        "predictions.json",
        "predictions.jsonl",
    }


def stated_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """The video with this display matrix (a, b, c, d) in its track header."""
    a, b, c, d = (65_536 * number for number in matrix)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("matrix", "corner", "size"),
    [
        ((1, 0, 0, 1), "upper left", (96, 128)),
        ((0, 1, -1, 0), "upper right", (128, 96)),  # a quarter clockwise: a phone held upright
        ((-1, 0, 0, -1), "lower right", (96, 128)),
        ((0, -1, 1, 0), "lower left", (128, 96)),
        ((-1, 0, 0, 1), "upper right", (96, 128)),  # mirrored, as some front cameras do
    ],
)
def test_videos_are_turned_as_players_turn_them(matrix, corner, size, tmp_path):
    """A white corner, stored at the upper left, is where the matrix puts it."""
    picture = Image.new("RGB", (128, 96))
    picture.paste((255, 255, 255), (0, 0, 40, 40))
    writer = VideoWriter()
    for _ in range(3):
        writer.add(picture, tmp_path / "clip.mp4", 10.0)
    writer.close()
    first, *_ = video_frames(stated_matrix(tmp_path / "clip.mp4", matrix))
    assert first.image.shape == (3, *size)
    corners = {
        "upper left": first.image[:, :20, :20],
        "upper right": first.image[:, :20, -20:],
        "lower left": first.image[:, -20:, :20],
        "lower right": first.image[:, -20:, -20:],
    }
    assert [name for name, part in corners.items() if part.float().mean() > 200] == [corner]


def test_frames_of_unequal_distance_keep_their_times(tmp_path):
    """As telephones film in the dark."""
    av = pytest.importorskip("av")
    times_ms = [0, 100, 500, 510, 2000]
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in times_ms:
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    *pictures, end = frames([str(path)], ahead=2)
    assert [frame.position["time_s"] for frame in pictures] == [time / 1000 for time in times_ms]
    assert end.number == len(times_ms)


def test_damaged_videos_and_playlists_in_disguise(tmp_path, address):
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip(tmp_path / "clip.mp4").read_bytes()[:-200])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "list.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}/image\n"
    )
    for name in ("cut.mp4", "text.mp4", "list.mp4", "gone.mp4"):
        (frame,) = frames([str(tmp_path / name)], ahead=2)
        assert frame.error.startswith(f"{tmp_path / name}: ") and "\n" not in frame.error


@pytest.fixture
def camera(monkeypatch):
    """A camera of which the user stops the recording with Ctrl+C after 19 frames."""

    class Camera:
        def __init__(self, number):
            self.taken = 0

        def get(self, _):
            return 0.0

        def read(self):
            self.taken += 1
            if self.taken == 20:  # the user presses Ctrl+C
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)
            return True, np.full((48, 64, 3), self.taken, np.uint8)

        def release(self):
            pass

    fake = type(sys)("cv2")
    fake.VideoCapture, fake.CAP_PROP_FPS = Camera, 5
    monkeypatch.setitem(sys.modules, "cv2", fake)


def test_a_camera_is_a_video_that_ends_when_it_is_stopped(checkpoint, camera, tmp_path):
    predict(checkpoint, "3", "--output", tmp_path)
    *lines, end = lines_in(tmp_path)
    assert len(lines) > 5
    assert end == {"image": "3", "picture": "camera-3.mp4", "frames": len(lines)}
    assert len(list(video_frames(tmp_path / "camera-3.mp4"))) == len(lines)


@pytest.mark.parametrize(
    ("package", "says"), [("av", "videos need PyAV"), ("cv2", "cameras need OpenCV")]
)
def test_a_camera_without_a_package_is_refused_before_the_model_is_loaded(
    package, says, camera, tmp_path, monkeypatch, capsys
):
    """And leaves no predictions.jsonl, which would refuse the next command."""
    monkeypatch.setattr("redetr.detector.detector.load", None)
    monkeypatch.setitem(sys.modules, package, None)
    assert says in refused(capsys, "best.pt", "3", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_camera_that_is_not_drawn_needs_no_pyav(checkpoint, camera, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    predict(checkpoint, "3", "--output", tmp_path, "--save", "json")
    *lines, end = lines_in(tmp_path)
    assert end == {"image": "3", "frames": len(lines)}


def test_a_recording_survives_resuming(checkpoint, camera, folder, tmp_path):
    """And sources after the camera wait for it: they are not reported as processed."""
    sources = ["3", folder / "val-0.jpg"]
    with pytest.raises(SystemExit) as ended:
        predict(checkpoint, *sources, "--output", tmp_path)
    assert ended.value.code == 75
    recorded = lines_in(tmp_path)
    assert {line["image"] for line in recorded} == {"3"}
    predict(checkpoint, *sources, "--output", tmp_path, "--resume")
    *lines, image_line = lines_in(tmp_path)
    assert lines == recorded
    assert image_line["image"] == str(folder / "val-0.jpg")
    assert len(list(video_frames(tmp_path / "camera-3.mp4"))) == len(lines) - 1


def test_a_recording_that_was_cut_off_is_not_deleted(checkpoint, camera, tmp_path, capsys):
    predict(checkpoint, "3", "--output", tmp_path)
    record = tmp_path / "predictions.jsonl"
    without_end = record.read_text().splitlines()[:-1]  # as after SIGKILL
    record.write_text("\n".join(without_end) + "\n")
    with pytest.raises(SystemExit):
        predict(checkpoint, "3", "--output", tmp_path, "--resume")
    assert "holds frames of camera 3, which was cut off" in capsys.readouterr().err
    assert len(lines_in(tmp_path)) == len(without_end)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_video_that_is_stopped_begins_again(number, checkpoint, tmp_path, monkeypatch):
    """And does not leave half of it under its name."""
    film = clip(tmp_path / "clip.mp4", pictures=40)
    detect = Detector.predict
    batches = []

    def stop_later(self, images, *rest):
        batches.append(len(images))
        if len(batches) == 6:
            os.kill(os.getpid(), number)
        return detect(self, images, *rest)

    monkeypatch.setattr(Detector, "predict", stop_later)
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        predict(checkpoint, film, "--output", out)
    assert ended.value.code == 75
    assert [path.name for path in out.iterdir()] == ["predictions.jsonl"]
    predict(checkpoint, film, "--output", out, "--resume")
    *lines, end = lines_in(out)
    assert end["frames"] == len(lines) == 40
    assert len(list(video_frames(out / "clip.mp4"))) == 40
    assert not (out / "clip-2.mp4").exists()


def test_the_annotated_part_of_a_damaged_video_is_replaced(checkpoint, tmp_path, monkeypatch):
    """Once the video can be read: what showed its beginning is deleted, not kept beside it."""
    film = clip(tmp_path / "clip.mp4")
    out = tmp_path / "out"

    def cut_off(path):
        yield from islice(video_frames(path), 3)
        raise InputError("is cut off", where=path)

    with monkeypatch.context() as patched:
        patched.setattr(sources, "video_frames", cut_off)
        with pytest.raises(SystemExit):
            predict(checkpoint, film, "--output", out)
    assert len(list(video_frames(out / "clip.mp4"))) == 3
    predict(checkpoint, film, "--output", out, "--resume")
    assert len(list(video_frames(out / "clip.mp4"))) == 6
    assert not (out / "clip-2.mp4").exists()


def test_a_live_stream_that_fails_keeps_its_frames(checkpoint, tmp_path, monkeypatch, capsys):
    def two_frames(address, *_):
        for i in range(2):
            yield VideoFrame(torch.zeros(3, 48, 64, dtype=torch.uint8), i / 10, 10.0, True)
        raise InputError("the stream dropped", where=address)

    monkeypatch.setattr(sources, "stream_frames", two_frames)
    command = (checkpoint, "rtsp://camera/a", "--output", tmp_path)
    with pytest.raises(SystemExit):
        predict(*command)
    assert "the stream dropped" in capsys.readouterr().err
    predict(*command, "--resume")
    *lines, end = lines_in(tmp_path)
    assert [line["frame"] for line in lines] == [0, 1]
    assert end["frames"] == 2


def test_names_of_sources_that_are_long_odd_or_numbers(checkpoint, folder, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(data)
    content = (folder / "val-0.jpg").read_bytes()
    for name in ("a" * 240 + ".jpg", "日" * 80 + ".jpg", "~nobody.jpg", "7"):
        Path(name).write_bytes(content)
    given = ["a" * 240 + ".jpg", "日" * 80 + ".jpg", "~nobody.jpg", "./7"]
    predict(checkpoint, *given, "--output", "out")
    assert [line["image"] for line in lines_in(Path("out"))] == given


@pytest.mark.parametrize("source", ["http://[cam/a.jpg", "rtsp://[fe80::1/stream"])
def test_what_is_no_url_is_one_line(checkpoint, source, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        predict(checkpoint, source, "--output", tmp_path)
    assert ended.value.code == 1
    assert f"redetr: {source}: is not a URL (" in capsys.readouterr().err


def test_cells_of_a_spreadsheet_are_no_formulas(tmp_path):
    """A program that opens the file would compute them."""
    detection = {"box": [0, 0, 1, 1], "score": 0.5, "category_id": 1, "label": "@sum"}
    line = {"image": "=1+1.jpg", "image_size": [9, 9], "detections": [detection]}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    write_formats(tmp_path, ["csv"])
    with open(tmp_path / "predictions.csv", newline="") as text:
        _, row = csv.reader(text)
    assert row[0] == "./=1+1.jpg"
    assert row[2] == "'@sum"


@pytest.mark.parametrize(
    ("module", "source", "says"), [("cv2", "0", "camera"), ("av", "clip.mp4", "video")]
)
def test_missing_packages_say_what_to_install(module, source, says, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (frame,) = frames([source], ahead=1)
    assert f'pip install "redetr[{says}]"' in frame.error


def test_tiles_of_a_large_image(checkpoint, detector, folder, tmp_path, capsys):
    image = torch.cat([as_image(folder / "val-0.jpg")] * 3, dim=2)  # 48 x 192
    found = detector.predict(image, threshold=0.0, tile=64, overlap=0.25)
    assert found.image_size == (48, 192)
    assert (found.boxes[:, 2] > 150).any() and (found.boxes[:, 0] < 40).any()
    assert (found.scores.diff() <= 0).all()
    small = detector.predict(image, threshold=0.0, tile=500)  # all of it in one tile
    assert torch.equal(small.boxes, detector.predict(image, threshold=0.0).boxes)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "long.png")
    predict(
        checkpoint,
        tmp_path / "long.png",
        "--tile",
        64,
        "--overlap",
        0.25,
        "--output",
        tmp_path / "out",
    )
    (line,) = lines_in(tmp_path / "out")
    expected = replace(found, image=None).to_dict()
    assert {key: line[key] for key in expected} == expected
    assert "--tile 0" in refused(capsys, checkpoint, folder, "--tile", 0, "--output", tmp_path)
    assert "--overlap 1.0" in refused(
        capsys, checkpoint, folder, "--overlap", 1, "--output", tmp_path
    )


def test_bf16_finds_nearly_the_same(checkpoint, detector, folder, tmp_path):
    """On any processor: one without bf16 units emulates them."""
    flags = ["--device", "cpu", "--precision", "bf16", "--threshold=0", "--save", "json"]
    main(["predict", str(checkpoint), str(folder), *flags, "--output", str(tmp_path)])
    lines = lines_in(tmp_path)
    assert len(lines) == 5
    differences = []
    for line in lines:
        expected = detector.predict(folder / Path(line["image"]).name, threshold=0.0)
        scores = torch.tensor([detection["score"] for detection in line["detections"]])
        differences.append((scores - expected.scores).abs().mean().item())
    assert max(differences) < 0.01  # of scores from 0.02 to 0.06
    assert max(differences) > 1e-5, "it was computed in fp32"


def test_a_single_prediction_knows_its_image(detector, folder):
    found = detector.predict(folder / "val-0.jpg")
    assert torch.equal(found.image, as_image(folder / "val-0.jpg"))
    assert found._repr_png_().startswith(b"\x89PNG")
    assert [each.image for each in detector.predict([folder / "val-0.jpg"] * 2)] == [None, None]
    assert detector.predict([]) == []


def test_a_photograph_is_seen_upright(detector, tmp_path):
    """Whether it comes as a file or from PIL."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = as_image(tmp_path / "a.png")
    assert (
        image.shape == (3, 80, 40) and (image[:, :20] == 255).all() and (image[:, 20:] == 0).all()
    )
    with Image.open(tmp_path / "a.png") as opened:
        assert torch.equal(as_image(opened), image)
    assert detector.predict(tmp_path / "a.png").image_size == (80, 40)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_model_of_one_channel_sees_a_photograph_upright(mode, tmp_path):
    """Whether it comes as a file or from PIL, in colour or grey."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png", exif=exif)
    image = as_image(tmp_path / "a.png", 1)
    assert image.shape == (1, 80, 40)
    with Image.open(tmp_path / "a.png") as opened:
        assert torch.equal(as_image(opened, 1), image)


@pytest.mark.slow
def test_a_notebook_shows_the_picture(checkpoint, folder, tmp_path):
    """Run as Jupyter runs it: of a single image, the picture with its boxes; of a list, the
    text."""
    import nbformat
    from nbclient import NotebookClient

    cells = [f"import redetr\ndetector = redetr.load({str(checkpoint)!r}, device='cpu')",
             f"found = detector.predict({str(folder / 'val-0.jpg')!r}, threshold=0.0)\nfound",
             f"detector.predict([{str(folder / 'val-0.jpg')!r}])[0]"]  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    single, of_a_list = (cell.outputs[0].data for cell in notebook.cells[1:])
    with (
        Image.open(io.BytesIO(base64.b64decode(single["image/png"]))) as shown,
        Image.open(folder / "val-0.jpg") as image,
    ):
        assert shown.width / shown.height == pytest.approx(image.width / image.height, rel=0.02)
        assert shown.tobytes() != image.resize(shown.size).tobytes()
    assert list(of_a_list) == ["text/plain"]
    assert of_a_list["text/plain"].startswith("Detections: ") and single["text/plain"].startswith(
        "Detections: 30 in"
    )


@pytest.mark.parametrize("annotated", ["as stored", "as shown"])
def test_a_turned_photograph_is_told_until_it_is_one_picture_for_training_and_predict(
    tmp_path, annotated
):
    path = write_tiny_coco(tmp_path) / "train" / "train-0.jpg"
    with Image.open(path) as image:
        exif = Image.Exif()
        exif[0x0112] = 6
        image.rotate(0 if annotated == "as stored" else 90, expand=True).save(path, exif=exif)
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))

    def faults():
        return [
            fault
            for fault in essential_faults(train, val)
            if fault.code in ("image-orientation", "image-turned")
        ]

    if annotated == "as stored":
        (fault,) = faults()
        assert (fault.severity, fault.code) == ("warning", "image-orientation")
        assert "training and evaluation use it as stored, predict rotates it" in str(fault)
        assert train.image(0).shape == as_image(path).mT.shape
        return
    for look in (faults, lambda: train.image(0)):
        with pytest.raises(
            InputError, match=r"annotated as its EXIF tag rotates it(:|\?) save it "
        ):
            look()
    page = (Path(__file__).parent.parent / "docs/your-data.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (script,) = (text for text in scripts if "exif" in text)
    exec(script.replace("FOLDER", str(tmp_path)))
    assert faults() == []
    assert torch.equal(train.image(0), as_image(path))


def test_arrays_are_taken_as_the_same_pil_images_are(detector):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    for array, mode in (
        (pixels[..., 0], "L"),
        (pixels[..., :3], "RGB"),
        (pixels, "RGBA"),
        (pixels[:, ::-1], "RGBA"),
    ):
        image = Image.fromarray(array)
        assert image.mode == mode
        assert torch.equal(as_image(array), as_image(image))
    assert detector.predict(pixels[..., 0]).image_size == (40, 60)


@pytest.mark.parametrize("threshold", [3, -0.1, float("nan")])
def test_thresholds_that_are_none(detector, threshold):
    with pytest.raises(InputError, match=f"threshold={threshold} is not a number between 0"):
        detector.predict([], threshold=threshold)


NO_PATHS = {
    "rtsp://x/a": "rtsp://x/a: is a stream, not an image; redetr predict reads streams",
    "ftp://x/y.jpg": "ftp://x/y.jpg: ftp URLs are not supported; download it",
    "a/*.jpg": r"a/\*.jpg: is a pattern, not an image; give the images",
    "nothing.jpg": "nothing.jpg: the image file is missing; give another file",
}


@pytest.mark.parametrize("source", NO_PATHS)
def test_what_is_no_path_of_an_image(detector, source):
    with pytest.raises(InputError, match=NO_PATHS[source]):
        detector.predict(source)


NO_IMAGES = [
    3,
    None,
    np.zeros((4, 4)),
    np.zeros((4, 4, 2), np.uint8),
    np.zeros(4, np.uint8),
    np.zeros((0, 4), np.uint8),
    torch.zeros(3, 4, 4),
    torch.zeros(3, 0, 4).byte(),
]


@pytest.mark.parametrize("wrong", NO_IMAGES)
def test_what_is_no_image(detector, wrong):
    with pytest.raises(InputError, match="image"):
        detector.predict(wrong)


NO_IMAGES_OF_FOUR_CHANNELS = {
    "a number": (5, "cannot be of type int"),
    "nothing": (None, "cannot be of type NoneType"),
    "numbers": ([1, 2], "cannot be of type list"),
    "objects": (np.array([None, "a"]), r"this one is object \[2\]"),
    "a row": (np.zeros(5, np.uint8), r"this one is uint8 \[5\]"),
    "three channels": (np.zeros((6, 5, 3), np.uint8), r"this one is uint8 \[6, 5, 3\]"),
    "four axes": (np.zeros((6, 5, 2, 2), np.uint8), r"this one is uint8 \[6, 5, 2, 2\]"),
    "no rows": (np.zeros((0, 5, 4), np.uint8), r"this one is uint8 \[0, 5, 4\]"),
    "fractions": (np.zeros((6, 5, 4)), r"this one is float64 \[6, 5, 4\]"),
    "an empty tensor": (torch.zeros(4, 0, 5).byte(), r"this one is torch.uint8 \[4, 0, 5\]"),
    "another PIL image": (Image.new("RGB", (5, 6)), r"this one is uint8 \[6, 5, 3\]"),
}


@pytest.mark.parametrize("name", NO_IMAGES_OF_FOUR_CHANNELS)
def test_what_is_no_image_of_four_channels(name):
    wrong, message = NO_IMAGES_OF_FOUR_CHANNELS[name]
    with pytest.raises(InputError, match=message):
        as_image(wrong, 4)


def test_a_truncated_image_for_four_channels(tmp_path):
    path = tmp_path / "cut.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 4), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with (
        Image.open(path) as image,
        pytest.raises(InputError, match="this image: cannot decode the image"),
    ):
        as_image(image, 4)


def test_images_of_other_channels():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    pixels.flags.writeable = False
    expected = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for image in (pixels, Image.fromarray(pixels), expected):
        assert torch.equal(as_image(image, 4), expected)
    assert torch.equal(as_image(pixels[:, ::-1], 4), expected.flip(2))
    assert torch.equal(as_image(pixels[..., 1], 1), expected[1:2])
    assert torch.equal(as_image(pixels[..., 1:2], 1), expected[1:2])


def test_images_of_one_colour_are_reported(checkpoint, tmp_path, capsys):
    """Such as 16-bit values of which a few hide the others."""
    folder = tmp_path / "images"
    folder.mkdir()
    grey = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) % 100
    Image.fromarray(grey).save(folder / "fine.png")
    grey[5, 5] = 0xFFFF
    Image.fromarray(grey).save(folder / "spiked.png")
    main(["predict", str(checkpoint), str(folder), "--output", str(tmp_path / "out"), "--save"])
    said = capsys.readouterr().err
    assert "1 image is almost a single colour, " in said
    assert "spiked.png ((0, 0, 0)): it may be damaged, or a few extreme" in said
    assert "fine.png" not in said


def test_further_frames_are_reported_at_the_end(checkpoint, tmp_path, capsys, monkeypatch):
    """Files are counted when they are read, not in a pass over all of them before the first."""
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    (tmp_path / "in").mkdir()
    for name in ("a.gif", "b.gif"):
        path = tmp_path / "in" / name
        first.save(path, save_all=True, append_images=[second])
    first.save(tmp_path / "in/still.png")
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", None)
        assert len(find_sources([str(tmp_path / "in")], [])) == 3
    predict(checkpoint, tmp_path / "in", "--output", tmp_path / "out")
    said = capsys.readouterr().err.splitlines()
    notes = [line for line in said if line.startswith("note: ")]
    assert notes == [
        f"note: {tmp_path}/in/a.gif: holds 2 images, of which only the first is used; save the "
        "others as files (and 1 more like it)"
    ]
    assert [line for line in said if "predicting" in line]
    assert said.index(notes[0]) == len(said) - 1


def test_what_is_measured_is_what_is_predicted(detector, folder):
    """Also where boxes reach beyond the image, as many of a model with random weights do."""
    dataset = open_dataset(folder.parent, "val")
    size = detector.image_size
    measured = detect_share(detector.model, dataset, image_size=size, batch_size=1).detections
    boxes_at_the_edge = 0
    for index in range(len(dataset)):
        predicted = detector.predict(dataset.path(index), threshold=0)
        of_image = measured.image_index == index
        assert measured.scores[of_image].tolist() == predicted.scores.tolist()
        assert measured.labels[of_image].tolist() == predicted.labels.tolist()
        assert measured.boxes[of_image].tolist() == predicted.boxes.tolist()
        boxes_at_the_edge += (predicted.boxes == 0).any(1).sum().item()
    assert boxes_at_the_edge


def test_file_names_that_are_not_utf_8(checkpoint, folder, tmp_path):
    """Every output holds them: bytes in CSV, JSON as Python spells them."""
    images = tmp_path / "images"
    images.mkdir()
    source = images / os.fsdecode(b"caf\xe9.jpg")
    source.write_bytes((folder / "val-0.jpg").read_bytes())
    every = ("--save", "png", "json", "coco", "csv", "--threshold", "0")
    predict(checkpoint, images, "--output", tmp_path / "out", *every)
    (line,) = lines_in(tmp_path / "out")
    assert line["image"] == str(source)
    assert (tmp_path / "out" / line["picture"]).is_file()
    assert b"/caf\xe9.jpg," in (tmp_path / "out/predictions.csv").read_bytes()
    assert json.loads((tmp_path / "out/predictions.json").read_text())[str(source)]
    results = json.loads((tmp_path / "out/predictions.coco.json").read_text())
    assert {result["file_name"] for result in results} == {str(source)}


@pytest.mark.parametrize("tile", [None, 48])
def test_what_is_predicted_can_be_changed(detector, folder, tile):
    """In place and under gradients, which tensors of inference mode cannot."""
    path = folder / "val-0.jpg"
    for found in (detector.predict(path, 0, tile), detector.predict([path], 0, tile)[0]):
        found.boxes[:, 0] += 1
        found.scores.mul_(0.5)
        found.labels.zero_()
        if found.image is not None:
            found.image.zero_()
        weight = torch.ones(4, requires_grad=True)
        (found.boxes * weight).sum().backward()
