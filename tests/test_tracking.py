"""Objects that are followed through videos: `redetr predict --track`."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from redetr.cli import main
from redetr.detector import detector as detectors
from redetr.detector.detections import Detections
from redetr.detector.sources import Frame
from redetr.detector.tracking import Tracker, without_duplicates
from redetr.detector.video import VideoWriter, video_frames
from redetr.pages.drawing import NO_COLOR, class_color
from redetr.precision import PrecisionChoice

RED, BLUE = (255, 0, 0), (0, 0, 255)
SIDE = 24
FRAMES = 30
RATE = 10.0


@pytest.fixture(autouse=True, scope="module")
def _trackers() -> None:
    """Imported here, as it takes a second, and where its OpenCV finds no libGL, the tests say
    so."""
    pytest.importorskip("trackers", exc_type=ImportError)


def squares(*rows: tuple[float, float, float]) -> Detections:
    """Detections of one class from (centre x, centre y, score)."""
    rows = sorted(rows, key=lambda row: -row[2])
    centres = torch.tensor([row[:2] for row in rows]).reshape(-1, 2).float()
    return Detections(
        scores=torch.tensor([row[2] for row in rows]),
        labels=torch.zeros(len(rows), dtype=torch.long),
        boxes=torch.cat([centres - SIDE / 2, centres + SIDE / 2], 1),
        class_names=("ball",),
        category_ids=(1,),
        image_size=(64, 200),
    )


def followed(tracker: Tracker, number: int, *rows: tuple[float, float, float]) -> list[int]:
    """The identity of each detection that is shown in a frame, the best score first."""
    frame = Frame("clip.mp4", number=number, rate=RATE, time_s=number / RATE)
    return tracker.follow(frame, squares(*rows)).track_ids.tolist()


def test_an_identity_starts_in_the_third_frame_and_in_each_video_at_one():
    tracker = Tracker(0.5)
    for _ in range(2):
        assert followed(tracker, 0, (20, 32, 0.9), (150, 32, 0.8)) == [0, 0]
        assert followed(tracker, 1, (22, 32, 0.9), (149, 32, 0.8)) == [0, 0]
        assert followed(tracker, 2, (24, 32, 0.7), (148, 32, 0.8)) == [2, 1]
    image = tracker.follow(Frame("a.jpg"), squares((20, 32, 0.9), (150, 32, 0.3)))
    assert len(image) == 1 and image.track_ids is None


def test_low_scores_continue_an_identity_and_start_none():
    tracker = Tracker(0.5)
    assert tracker.lowest_score == 0.25
    for number in range(4):
        seen = followed(tracker, number, (20, 32, 0.9), (150, 32, 0.3))
        assert seen == [1 if number >= 2 else 0]
    assert followed(tracker, 4, (20, 32, 0.3), (150, 32, 0.3)) == [1]


@pytest.mark.parametrize(("hidden_s", "expected"), [(0.8, 1), (3.0, 2)])
def test_what_is_hidden_for_a_second_at_most_keeps_its_identity(hidden_s, expected):
    tracker = Tracker(0.5)
    for number in range(5):
        followed(tracker, number, (20, 32, 0.9))
    back = 5 + round(hidden_s * RATE)
    for number in range(5, back):
        assert followed(tracker, number) == []
    for number in (back, back + 1):
        followed(tracker, number, (20, 32, 0.9))
    assert followed(tracker, back + 2, (20, 32, 0.9)) == [expected]


def boxes_of(*rows: tuple[int, float, tuple[int, int, int, int]]) -> Detections:
    """Detections from (class, score, box), the best score first."""
    return Detections(
        scores=torch.tensor([score for _, score, _ in rows]),
        labels=torch.tensor([label for label, _, _ in rows]),
        boxes=torch.tensor([box for _, _, box in rows]).float(),
        class_names=("ball", "hand"),
        category_ids=(1, 2),
        image_size=(64, 200),
    )


@pytest.mark.parametrize(
    ("second", "stays"),
    [
        ((0, 0.8, (25, 10, 45, 30)), False),  # IoU 0.6
        ((0, 0.8, (30, 10, 50, 30)), True),  # IoU a third
        ((1, 0.8, (25, 10, 45, 30)), True),  # of another class
        ((1, 0.8, (21, 10, 41, 30)), False),  # of another class, at the same position
        ((0, 0.4, (20, 10, 30, 30)), False),  # a part of the first
        ((0, 0.6, (20, 10, 29, 30)), True),  # inside the first, and as sure
        ((1, 0.4, (20, 10, 30, 30)), True),
    ],
)
def test_a_detection_that_shows_an_object_again_is_left_out(second, stays):
    both = boxes_of((0, 0.9, (20, 10, 40, 30)), second)
    assert len(without_duplicates(both)) == 1 + stays


def test_several_detections_of_each_object_are_two_identities():
    """As a model had them after a minute of training, at the threshold of its best F1, 0.2."""
    tracker = Tracker(0.2)
    identities = set()
    for number in range(12):
        red, blue = 4 * number, 100 - 4 * number
        rows = [
            (0, 0.88, (red, 10, red + 24, 30)),
            (1, 0.86, (blue, 20, blue + 24, 40)),
            (0, 0.81, (red + number % 3, 12, red + 23, 30)),
            (1, 0.75, (blue, 19, blue + 22, 38 + number % 2)),
            (1, 0.26, (blue + 8, 23, blue + 23, 36)),
            (1, 0.15, (red, 10, red + 24, 30)),
        ]
        frame = Frame("clip.mp4", number=number, rate=RATE, time_s=number / RATE)
        seen = tracker.follow(frame, boxes_of(*rows))
        assert len(seen) == 2
        identities |= {
            (track_id, label)
            for track_id, label in zip(seen.track_ids.tolist(), seen.labels.tolist(), strict=True)
        }
    assert identities == {(0, 0), (0, 1), (1, 0), (2, 1)}


def test_a_frame_that_goes_back_in_time_is_followed_too():
    tracker = Tracker(0.5)
    tracker.follow(Frame("clip.mp4", None, 0, RATE, 0.0), squares((20, 32, 0.9)))
    for number, time_s in ((1, 0.2), (2, 0.3)):
        tracker.follow(Frame("clip.mp4", None, number, RATE, time_s), squares((20, 32, 0.9)))
    back = tracker.follow(Frame("clip.mp4", None, 3, RATE, 0.1), squares((20, 32, 0.9)))
    assert back.track_ids.tolist() == [1]


def test_a_followed_object_keeps_its_colour():
    """Whatever its score and its position in the list are."""
    grey = Image.new("RGB", (200, 64), (90, 90, 90))
    pair = squares((50, 32, 0.9), (150, 32, 0.8))
    for order in ([3, 0], [0, 3]):
        drawn = pair.with_track_ids(torch.tensor(order)).draw(grey, scale=1, labels="none")
        for track_id, centre_x in zip(order, (50, 150), strict=True):
            expected = class_color(track_id) if track_id else NO_COLOR
            assert drawn.getpixel((centre_x, 32 - SIDE // 2)) == expected
    assert pair.with_track_ids(torch.tensor([3, 0]))[1].track_ids.tolist() == [0]
    assert pair.with_track_ids(torch.tensor([3, 0])).to_supervision().tracker_id.tolist() == [3, 0]


# ----------------------------------------------------------------------------- on the command line


def centres(number: int) -> tuple[int, int]:
    """x of the red and of the blue square, which meet in the middle."""
    return 20 + 5 * number, 180 - 5 * number


@pytest.fixture
def clip(tmp_path) -> Path:
    """Two squares of one class that cross, the red one in front."""
    path = tmp_path / "crossing.mp4"
    writer = VideoWriter()
    for number in range(FRAMES):
        image = Image.new("RGB", (200, 64), (40, 40, 40))
        drawing = ImageDraw.Draw(image)
        red, blue = centres(number)
        for x, color in ((blue, BLUE), (red, RED)):
            drawing.rectangle((x - SIDE // 2, 20, x + SIDE // 2 - 1, 20 + SIDE - 1), color)
        writer.add(image, path, RATE)
    writer.close()
    return path


class ColourDetector:
    """Finds the squares by their colour; the more of one is hidden, the lower is its score."""

    threshold = 0.5
    has_measured_threshold = True
    precision = PrecisionChoice("fp32")
    class_names = ("ball",)
    model = SimpleNamespace(has_masks=False, channels=3, weights_from="nowhere")

    def optimize(self, **_):
        pass

    def predict(self, images, threshold, tile, overlap):
        return [self.squares_in(image).above(threshold) for image in images]

    def squares_in(self, image: torch.Tensor) -> Detections:
        rows = []
        red, _, blue = image.float()
        for this, other in ((red, blue), (blue, red)):
            ys, xs = np.nonzero(((this > 150) & (other < 120)).numpy())
            if len(xs) > 20:
                score = min(1.0, len(xs) / SIDE**2) ** 2
                rows.append(((xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, score))
        return replace(squares(*rows), image_size=(64, 200))


def test_two_objects_that_cross_keep_their_identities(clip, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(detectors, "load", lambda *_, **__: ColourDetector())
    out = tmp_path / "out"
    save = ("--save", "png", "json", "coco", "csv")
    main(["predict", "best.pt", str(clip), "--track", "--output", str(out), *save])
    assert "2 objects tracked" in capsys.readouterr().out
    frames = list(json.loads((out / "predictions.json").read_text()).values())
    assert len(frames) == FRAMES
    ids_of = {"red": set(), "blue": set()}
    together = 0
    for number, frame in enumerate(frames):
        red, blue = centres(number)
        if abs(red - blue) < SIDE:  # one hides a part of the other, or all of it
            together += len(frame["detections"]) < 2
            continue
        assert len(frame["detections"]) == 2
        for detection in frame["detections"]:
            x = (detection["box"][0] + detection["box"][2]) / 2
            name = "red" if abs(x - red) < abs(x - blue) else "blue"
            ids_of[name].add(detection["track_id"])
    assert together >= 2  # frames in which one is out of sight
    # The first two frames have no identity yet.
    assert sorted(ids_of.values(), key=str) == [{None, 1}, {None, 2}]

    entries = json.loads((out / "predictions.coco.json").read_text())
    assert {entry["track_id"] for entry in entries} == {None, 1, 2}
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert {row["track_id"] for row in rows} == {"", "1", "2"}

    red_id = max(ids_of["red"] - {None})
    for number in (5, FRAMES - 5):  # before and after they meet, drawn in one colour
        image = list(video_frames(out / "crossing.mp4"))[number].image
        red, _ = centres(number)
        edge = image[:, 20, red - 4 : red + 4].float().mean(1)
        difference = edge - torch.tensor(class_color(red_id)).float()
        assert difference.abs().max() < 70


def test_what_cannot_be_followed(clip, tmp_path, capsys, monkeypatch):
    def refused(source: Path) -> str:
        with pytest.raises(SystemExit):
            main(["predict", "best.pt", str(source), "--track", "--output", str(tmp_path / "new")])
        return capsys.readouterr().err

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "--track needs a video, and none of the sources is one" in refused(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "trackers", None)
    assert 'pip install "redetr[track]"' in refused(clip)
    assert not (tmp_path / "new").exists()
