"""The advice of a report knows how long its run was, and where AP was heading."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_report import scene_of_each_kind

from redetr.config import TrainConfig
from redetr.report import make_report, write_report
from redetr.report.advice import longer_training


def curve(*values: float, every: int = 100) -> list[dict]:
    lines = [{"step": every * (number + 1), "AP": ap} for number, ap in enumerate(values)]
    return [{"step": 1, "loss": 9.0}, *lines]


@pytest.fixture
def folder(tmp_path):
    """A run on 300 images, whose usual length is 1,500 steps of 16."""
    (tmp_path / "config.json").write_text(json.dumps(TrainConfig().to_dict()))
    (tmp_path / "data.json").write_text(json.dumps({"train": {"count": 300}}))
    return tmp_path


@pytest.mark.parametrize(
    ("metrics", "advice"),
    [
        (curve(0.1, 0.2, every=107), "train longer (--steps 1500 is the usual length; this run has "
                                     "14% of it)"),
        (curve(*[0.1] * 8, 0.3, 0.35, every=150), "train longer (AP was still rising at the end: "
                                                  "--steps 3000)"),
        (curve(0.1, 0.4, *[0.3] * 8, every=150), "more steps alone will not help (no better AP "
                                                 "since step 300)"),
        (curve(*[0.1] * 7, 0.3, 0.302, 0.304, every=150), "train longer (AP hardly rose at the "
                                                          "end, so expect little improvement)"),
        (curve(*[0.0] * 10, every=150), "train longer"),
        (curve(), "train longer"),
    ],
    ids=["a seventh of the usual length", "rising", "flat", "hardly rising", "nothing learned yet",
         "not evaluated"],
)  # fmt: skip
def test_whether_more_steps_would_help(folder, metrics, advice):
    assert longer_training(folder, metrics) == advice


def test_a_folder_that_does_not_say_how_long_is_usual(folder):
    (folder / "data.json").unlink()
    advice = longer_training(folder, curve(0.1, 0.2, every=107))
    assert advice == "train longer (AP was still rising at the end: --steps 428)"


def test_scenes_that_are_drawn_have_no_usual_length(folder):
    """As many scenes as asked for can be drawn, so their number says nothing."""
    drawn = {"train": {"count": 20_000, "annotations": {}}}
    (folder / "data.json").write_text(json.dumps(drawn))
    advice = longer_training(folder, curve(0.1, 0.2, every=107))
    assert advice == "train longer (AP was still rising at the end: --steps 428)"


def test_where_hardly_anything_is_lost_the_headline_says_so(folder):
    """A fraction of a point of AP50 is no reason to train longer or to annotate more."""
    dataset, found = scene_of_each_kind()
    report = make_report(dataset, [(str(folder), found)])
    write_report(report, folder / "lost")
    mistakes = report.numbers["checkpoints"][0]["mistakes"]
    for mistake in mistakes.values():
        mistake["ap50"] = 0.004
    write_report(report, folder / "hardly")
    said = "Almost no AP50 is lost."
    assert said not in (folder / "lost" / "index.html").read_text()
    assert said in (folder / "hardly" / "index.html").read_text()


def test_the_page_says_it(folder):
    dataset, found = scene_of_each_kind()
    lines = [json.dumps(line) + "\n" for line in curve(0.1, 0.2, every=107)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    write_report(make_report(dataset, [(str(folder), found)]), folder / "report")
    page = " ".join((folder / "report" / "index.html").read_text().split())
    assert "Mostly an early stage of training: train longer (--steps 1500 is the usual" in page
    write_report(make_report(dataset, [(str(folder), found)] * 2), folder / "both")
    page = " ".join((folder / "both" / "index.html").read_text().split())
    assert "Mostly an early stage of training: train longer." in page


def test_where_no_detection_is_correct_the_length_of_the_run_counts(folder):
    dataset, found = scene_of_each_kind()
    lines = [json.dumps(line) + "\n" for line in curve(0.1, 0.2, every=107)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    nothing = found.keep(np.zeros(0, int))
    write_report(make_report(dataset, [(str(folder), nothing)]), folder / "report")
    page = " ".join((folder / "report" / "index.html").read_text().split())
    assert "No detection is correct: train longer (--steps 1500 is the usual length;" in page


def test_where_no_score_reaches_the_threshold_no_share_is_given(tmp_path):
    """Correct detections below 0.01 have no threshold with a best F1."""
    dataset, found = scene_of_each_kind()
    low = replace(found, scores=found.scores / 1000)
    write_report(make_report(dataset, [("a.pt", low)]), tmp_path)
    page = " ".join((tmp_path / "index.html").read_text().split())
    assert "No detection has a score of 0.5 or more: train longer." in page
    assert "of the detections are correct" not in page
