"""What a report says of masks and of panoptic quality."""

import json
import re

import numpy as np
import pytest
import torch
from selenium.webdriver.common.by import By

from redetr.data import DetectionDataset
from redetr.masks import encode
from redetr.metrics import GroundTruth, coco_metrics
from redetr.panoptic_quality import PanopticResult, Quality
from redetr.report import make_report, write_report
from redetr.structures import DatasetDetections, StoredTarget

SIZE = (60, 80)


class Plates(DetectionDataset):
    """Two images: a cup and a plate, then another plate, whose mask may be unknown, and a crowd of
    cups."""

    name = "plates"
    class_names = ("cup", "plate")
    category_ids = (1, 2)
    has_masks = True
    boxes = (((0, 0, 20, 20), (40, 0, 80, 40)), ((10, 10, 30, 30), (40, 20, 80, 60)))
    labels = ((0, 1), (1, 0))

    def __init__(self, all_known=True):
        self.all_known = all_known

    def __len__(self):
        return 2

    def target(self, index):
        boxes = torch.tensor(self.boxes[index], dtype=torch.float32)
        masks = rectangles(self.boxes[index])
        if index == 1 and not self.all_known:
            masks[0] = False
        return StoredTarget(
            boxes=boxes,
            labels=torch.tensor(self.labels[index]),
            image_id=5 - index,
            orig_size=SIZE,
            size=SIZE,
            iscrowd=torch.tensor([False, index == 1]),
            area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            masks=masks,
        )

    def image(self, index):
        return torch.full((3, *SIZE), 90, dtype=torch.uint8)


def rectangles(boxes):
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def found(scores=(0.9, 0.8, 0.7), cup=(0, 0, 20, 5)):
    """Every box is exact. The mask of the cup is `cup`, by default a quarter of it; of the first
    plate, half is there."""
    boxes = [(0, 0, 20, 20), (40, 0, 80, 40), (10, 10, 30, 30)]
    return DatasetDetections(
        image_index=np.array([0, 0, 1]),
        labels=np.array([0, 1, 1]),
        scores=np.array(scores),
        boxes=np.array(boxes, dtype=np.float64),
        masks=encode(rectangles([cup, (40, 0, 60, 40), (10, 10, 30, 30)])),
    )


def test_pairs_by_hand():
    detections = found()
    numbers = make_report(Plates(), [("a.pt", detections)]).numbers["checkpoints"][0]
    masks = numbers["masks"]
    assert masks["all"] == {"found": 3, "iou": pytest.approx(1.75 / 3), "poor": 1}
    cup, plate = masks["per_class"].values()
    assert (cup["found"], cup["iou"], cup["poor"]) == (1, 0.25, 1)
    assert (plate["found"], plate["iou"], plate["poor"]) == (2, 0.75, 0)
    sizes = [(group["from_px"], group["found"], group["iou"]) for group in masks["by_size"]]
    assert sizes == [(20.0, 1, 0.25), (20.0, 1, 1.0), (40.0, 1, 0.5)]
    expected = coco_metrics(GroundTruth.from_dataset(Plates()), detections).masks
    assert masks["metrics"] == {
        name: None if np.isnan(value) else value for name, value in expected.metrics.items()
    }
    assert numbers["metrics"]["AP"] == pytest.approx(1.0)


def test_a_detection_below_the_threshold_is_no_pair():
    """At the best threshold, the cup is not shown: its score is below that of a false alarm."""
    detections = found()
    wrong = DatasetDetections(
        image_index=np.array([0, 0, 0]),
        labels=np.array([0, 0, 0]),
        scores=np.array([0.2, 0.2, 0.2]),
        boxes=np.array([(50, 40, 60, 50), (0, 40, 9, 50), (20, 40, 29, 50)], dtype=np.float64),
        masks=encode(rectangles([(50, 40, 60, 50)] * 3)),
    )
    shown = DatasetDetections.concatenate([found((0.1, 0.8, 0.7)), wrong])
    report = make_report(Plates(), [("a.pt", shown)])
    assert report.numbers["checkpoints"][0]["masks"]["all"]["found"] == 2
    boxes = DatasetDetections(*(getattr(detections, name) for name in BOXES))
    report = make_report(Plates(), [("a.pt", boxes)])
    assert report.numbers["checkpoints"][0]["masks"] is None


BOXES = ("image_index", "labels", "scores", "boxes")


def test_masks_are_not_measured_if_one_is_not_known(tmp_path):
    why = GroundTruth.from_dataset(Plates(all_known=False)).why_no_masks
    assert why == "1 of 4 objects has no mask (the first in image 4)"
    report = make_report(Plates(all_known=False), [("a.pt", found())], why_no_masks=[why])
    numbers = report.numbers["checkpoints"][0]
    assert numbers["masks"] is None and numbers["why_no_masks"] == why
    assert numbers["metrics"]["AP"] == pytest.approx(1.0)
    write_report(report, tmp_path)
    assert f"Masks are not measured, because {why}." in (tmp_path / "index.html").read_text()


def quality(pq):
    half = Quality(pq, 1.0, pq)
    return PanopticResult(half, half, Quality(None, None, None), {"cup": half, "plate": half})


def test_masks_of_two_checkpoints_in_a_browser(tmp_path, browser):
    """The second has a whole mask of the cup."""
    checkpoints = [("a.pt", found()), ("b.pt", found(cup=(0, 0, 20, 20)))]
    differences = {"mask AP": {"difference": 0.1, "lower": -0.1, "upper": 0.3}}
    report = make_report(Plates(), checkpoints, differences, [quality(0.5), quality(0.75)])
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["checkpoints"][1]["panoptic"]["PQ"] == 0.75
    browser.get_log("browser")  # of pages before
    browser.get((tmp_path / "index.html").as_uri())
    section = browser.find_element(By.ID, "masks")
    first_row = section.find_element(By.CSS_SELECTOR, "tbody tr").text.split()
    first, second = (run["masks"]["metrics"]["AP"] for run in written["checkpoints"])
    values = [f"{100 * first:.1f}", f"{100 * second:.1f}", f"{100 * (second - first):+.1f}"]
    assert first_row[:5] == ["mask", "AP", *values]
    assert "-10.0 to +30.0" in section.text
    cup = section.find_element(By.CSS_SELECTOR, ".sortable tbody tr").text.split()
    assert cup[0] == "cup" and cup[4:] == ["25.0", "100.0", "+75.0", "1", "0"]
    captions = [figure.text for figure in section.find_elements(By.TAG_NAME, "figcaption")]
    assert len(captions) == 6  # of three pairs each, the poorest first
    assert captions[0].startswith("cup 90%: mask IoU 25.0 box IoU 100.0")
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('#masks img')].map(x => x.naturalWidth)"
    )
    assert len(sizes) == 12 and min(sizes) > 100
    panoptic = browser.find_element(By.ID, "panoptic")
    assert "all 75.0 100.0 75.0" in panoptic.text and "stuff - - -" in panoptic.text
    assert browser.get_log("browser") == []
    assert (tmp_path / "index.html").stat().st_size < 200_000


def test_a_checkpoint_that_is_compared_with_itself_is_a_and_b(tmp_path):
    checkpoints = [("a.pt", found()), ("a.pt", found())]
    report = make_report(Plates(), checkpoints, qualities=[quality(0.5), quality(0.5)])
    write_report(report, tmp_path)
    page = (tmp_path / "index.html").read_text()
    for text in ("size, px</th><th>found", "The poorest masks", "classes</th><th>PQ"):
        assert re.findall(rf">([AB])</b>\s*{text}", page) == ["A", "B"]


class Hebrew(Plates):
    class_names = ("ספל", "צלחת")


def test_a_name_from_right_to_left_does_not_move_the_numbers_of_masks(tmp_path):
    write_report(make_report(Hebrew(), [("a.pt", found())]), tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<figcaption><bdi>ספל</bdi> 90%:" in page
    for kind in ("true", "predicted"):
        assert f'alt="{kind} mask of \u2068ספל\u2069 in \u2068image 5\u2069"' in page
