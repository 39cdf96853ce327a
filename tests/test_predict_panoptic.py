"""`redetr predict --panoptic`: segments, drawn and in COCO's panoptic format."""

import json

import numpy as np
import pytest
from hotcoco.panoptic import pq_compute
from PIL import Image

import redetr
from redetr.cli import main
from redetr.data import open_dataset
from redetr.detector.video import VideoWriter
from redetr.evaluation import evaluate
from redetr.panoptic import rgb2id
from tests.panoptic_scenes import write_scenes
from tests.test_panoptic_quality_of_models import sure


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), {"train": 1, "val": 3})


@pytest.fixture
def detector(monkeypatch):
    """That which the command loads."""
    detector = sure()
    monkeypatch.setattr("redetr.detector.detector.load", lambda *_, **__: detector)
    return detector


def ids_in(png):
    with Image.open(png) as image:
        return rgb2id(np.array(image))


def predicted(output, scenes, *flags):
    arguments = ["--device", "cpu", "--precision", "fp32", "--output", str(output)]
    main(["predict", "known", str(scenes / "val2017"), *arguments, *flags])
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]


def test_the_files_have_the_quality_that_evaluation_measures(detector, scenes, tmp_path, capsys):
    lines = predicted(tmp_path, scenes, "--panoptic")
    told = capsys.readouterr()
    assert "segments found" in told.out and "threshold: 0.85\n" in told.err
    assert lines[0]["panoptic_picture"] == "000001.panoptic.png"
    with Image.open(tmp_path / "000001.png") as annotated:
        assert annotated.width > 64  # enlarged
    page = (tmp_path / "index.html").read_text()
    assert "000001.png" in page and lines[0]["detections"][0]["label"] in page

    file = tmp_path / "predictions.panoptic.json"
    truth = scenes / "annotations" / "panoptic_val2017.json"
    expected = pq_compute(str(truth), str(file), pred_folder=str(tmp_path))
    dataset = open_dataset(str(scenes), "val", masks=True)
    measured = evaluate(detector.model, dataset, image_size=64, batch_size=2).panoptic
    assert measured.all.pq == pytest.approx(expected["All"]["pq"], abs=1e-9)
    content = json.loads(file.read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]
    for annotation, line in zip(content["annotations"], lines, strict=True):
        ids = ids_in(tmp_path / annotation["file_name"])
        segments = annotation["segments_info"]
        assert [segment["area"] for segment in segments] == np.bincount(ids.ravel())[1:].tolist()
        assert [row["category_id"] for row in line["detections"]] == [
            segment["category_id"] for segment in segments
        ]
    things = {category["name"]: category["isthing"] for category in content["categories"]}
    assert things.items() <= {"ball": 1, "crate": 1, "sky": 0, "grass": 0}.items()


def test_chosen_classes_are_numbered_anew(detector, scenes, tmp_path):
    lines = predicted(tmp_path / "all", scenes, "--panoptic", "--save", "json")
    name = lines[0]["detections"][-1]["label"]
    kept = predicted(tmp_path / "chosen", scenes, "--panoptic", "--save", "json", "--classes", name)
    rows = [row for row in lines[0]["detections"] if row["label"] == name]
    assert kept[0]["detections"] == rows
    ids = ids_in(tmp_path / "chosen" / "000001.panoptic.png")
    assert np.bincount(ids.ravel())[1:].tolist() == [row["area"] for row in rows]


def test_stuff_is_named_where_weights_do_not_say_it(detector, scenes, tmp_path, capsys):
    detector.model.is_thing = ()
    predicted(tmp_path / "unknown", scenes, "--panoptic", "--save", "json")
    assert "which classes are stuff" in capsys.readouterr().err
    lines = predicted(
        tmp_path / "named", scenes, "--panoptic", "--save", "json", "--stuff", "sky", "grass"
    )
    assert "which classes are stuff" not in capsys.readouterr().err
    for line in lines:
        stuff = [row["label"] for row in line["detections"] if not row["isthing"]]
        assert len(set(stuff)) == len(stuff)
    assert detector.model.is_thing == (True, True, False, False)


def test_a_note_says_that_frames_of_videos_have_no_png(detector, scenes, tmp_path, capsys):
    pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    with VideoWriter() as video:
        for _ in range(3):
            video.add(Image.new("RGB", (64, 64)), clip, 10.0)
    out = tmp_path / "out"
    flags = ("--panoptic", "--device", "cpu", "--precision", "fp32", "--output", str(out))
    main(["predict", "known", str(scenes / "val2017"), str(clip), *flags])
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    said = capsys.readouterr().err
    assert (
        "note: --panoptic: PNG files and entries of predictions.panoptic.json are written for "
        "images only; for the frames of videos, predictions.jsonl has the detections" in said
    )
    assert sum("frame" in line and "detections" in line for line in lines) == 3
    assert (out / "clip.mp4").exists() and not (out / "clip.panoptic.png").exists()
    content = json.loads((out / "predictions.panoptic.json").read_text())
    assert len(content["images"]) == 3


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--panoptic", "--tile", "32"), "--tile cannot be combined with --panoptic"),
        (("--stuff", "sky"), "--stuff has no effect without --panoptic: add it"),
        (("--panoptic", "--stuff", "sea"), "--stuff sea: the model knows ball, crate"),
    ],
)
def test_flags_that_do_not_fit(detector, scenes, tmp_path, capsys, flags, text):
    with pytest.raises(SystemExit):
        predicted(tmp_path, scenes, *flags)
    assert text in capsys.readouterr().err


def test_other_models_are_refused(scenes, tmp_path, monkeypatch, capsys):
    options = {"backbone": (8, 8, 8), "hidden_dim": 16, "nheads": 2, "dec_layers": 1}
    model = redetr.build("redetr_n", 1, **options)
    detector = redetr.Detector(model, ("cup",), (1,), image_size=64, device="cpu")
    monkeypatch.setattr("redetr.detector.detector.load", lambda *_, **__: detector)
    with pytest.raises(SystemExit):
        predicted(tmp_path, scenes, "--panoptic")
    assert "no panoptic segmentation" in capsys.readouterr().err
