"""Commands for a model with masks."""

import json

import pytest
from reciting import reciting

from redetr.cli import main
from redetr.data.formats.digits import DigitsDataset
from tests.test_explain import small_detector


@pytest.fixture
def known(monkeypatch):
    """The checkpoint called "known" is a model that recites the first validation scenes of digits;
    others of `digits` do not exist."""
    monkeypatch.setitem(DigitsDataset.__init__.__globals__["_DEFAULT_SIZES"], "val", 6)
    monkeypatch.setattr("redetr.weights.locating.locate", lambda checkpoint: checkpoint)
    scenes = DigitsDataset("val", masks=True)
    monkeypatch.setattr("redetr.detector.detector.load", lambda *_, **__: reciting(scenes))
    return "known"


def evaluated(capsys, *flags):
    main(["evaluate", "known", "--data", "digits", "--device=cpu", "--precision=fp32", *flags])
    return capsys.readouterr().out


def test_evaluate_prints_boxes_and_masks(known, capsys):
    content = json.loads(evaluated(capsys, "--json"))
    assert content["AP"] > 0.99 and 0.3 < content["masks"]["AP"] < 0.95
    text = evaluated(capsys)
    lines = [line.split() for line in text.splitlines()]
    boxes = next(line for line in lines if line[:1] == ["boxes"])
    masks = next(line for line in lines if line[:1] == ["masks"])
    assert boxes[1] == f"{100 * content['AP']:.1f}"
    assert masks[1] == f"{100 * content['masks']['AP']:.1f}"
    assert "mask AP" in text


@pytest.mark.long
def test_two_checkpoints_are_compared_by_boxes_and_masks(known, capsys):
    content = json.loads(evaluated(capsys, "--json", "--compare", "known"))
    assert content["masks"] == content["compared"]["masks"]
    assert content["masks"] == json.loads(evaluated(capsys, "--json"))["masks"]
    assert content["differences"]["mask AP"]["difference"] == 0.0
    lines = evaluated(capsys, "--compare", "known").splitlines()
    by_words = [line.split() for line in lines if not line.startswith("If an interval")]
    rows = [words[0] for words in by_words if len(words) == 13]
    assert rows == ["1", "masks", "2", "masks"]


def test_masks_are_read_where_data_states_them(tiny_coco):
    """Data says only when it is read for masks whether it has some: polygons, or boxes alone."""
    detector = small_detector("redetr_n", masks=True)
    boxes = detector.open_data("val", str(tiny_coco), masks=True)
    assert not boxes.has_masks and "masks" not in boxes.target(0)
    file = next(tiny_coco.rglob("*val*.json"))
    content = json.loads(file.read_text())
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    file.write_text(json.dumps(content))
    dataset = detector.open_data("val", str(tiny_coco), masks=True)
    assert dataset.has_masks and dataset.target(0)["masks"].any()
    assert "masks" not in detector.open_data("val", str(tiny_coco)).target(0)
