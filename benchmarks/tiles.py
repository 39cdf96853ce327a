"""Are detections in a large photograph, divided into tiles, as good as in the tiles on which the
model is evaluated? Measured on `crowns`.

    pip download --no-deps deepforest==2.1.0
    python benchmarks/tiles.py runs/crowns deepforest-2.1.0-py3-none-any.whl

`redetr predict --tile` processes the whole large photograph that `make_crowns.py` cuts. The model
was not trained on any pixel of its right quarter. AP is measured there, both for the tiles of the
validation split one by one, and for the detections in the whole photograph. It is measured as in
`redetr evaluate`, with boxes cut at the tiles and compared with their annotations, and also on the
quarter as one image, with all detections (COCO's limit of 100 is for small images). Writes
results/DATE-tiles.json and a picture of the whole photograph.
"""

import argparse
import contextlib
import datetime
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
import torch
from make_crowns import LARGE, MIN_VISIBLE, TRAIN_SHARE, VAL_PX, Photograph, area, read
from PIL import Image, ImageDraw
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from record import RESULTS, record

from redetr.data import open_dataset
from redetr.data.windows import tile_windows
from redetr.detector.detections import Detections
from redetr.detector.detector import load
from redetr.evaluation import evaluate
from redetr.metrics import GroundTruth, coco_metrics
from redetr.pages.drawing import class_color, draw_boxes
from redetr.structures import DatasetDetections

OVERLAPS = (0.2, 0.35, 0.5)
SHOWN_PX = 1600  # the picture's longer side


class Found(NamedTuple):
    boxes: np.ndarray  # [N, 4] xyxy pixels of the photograph
    scores: np.ndarray  # [N], best first


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("wheel", type=Path)
    arguments = parser.parse_args()
    with ZipFile(arguments.wheel) as wheel:
        large = read(wheel, LARGE)
    width, height = large.image.size
    frame = (int(TRAIN_SHARE * width), 0, width, height)
    detector, tiles = load(arguments.checkpoint), open_dataset("crowns", "val")

    corners = [corner(tiles, index) for index in range(len(tiles))]
    alone = joined(
        [detector.predict(tiles.image(i), threshold=0.0) for i in range(len(tiles))], corners
    )
    whole = torch.from_numpy(np.array(large.image)).permute(2, 0, 1)
    windows = tile_windows(height, width, VAL_PX, OVERLAPS[0])
    parts = detector.predict([whole[:, y1:y2, x1:x2] for x1, y1, x2, y2 in windows], threshold=0.0)
    found = {
        "tiles one by one": alone,
        "all at once": joined([detector.predict(whole, threshold=0.0)], [(0, 0)]),
        f"overlap {OVERLAPS[0]}, not merged": joined(parts, [window[:2] for window in windows]),
    }
    seconds = {}
    for overlap in OVERLAPS:
        start = perf_counter()
        found[f"overlap {overlap}"] = predicted(arguments.checkpoint, large.image, overlap)
        seconds[f"overlap {overlap}"] = perf_counter() - start
    rows = {
        name: {
            "boxes": len(each.scores),
            **on_tiles(each, tiles),
            **on_the_whole(each, large, frame),
        }
        for name, each in found.items()
    }
    # The same boxes, cut at edges where they end already: evaluation and this script agree.
    as_trained = evaluate(
        detector.model, tiles, image_size=detector.image_size, classes=detector.classes
    ).ap
    assert abs(as_trained - rows["tiles one by one"]["tiles_AP"]) < 0.005, (as_trained, rows)
    score = draw(found[f"overlap {OVERLAPS[-1]}"], large, frame[0])
    about = {
        "pixels": [width, height],
        "held_out_from_x": frame[0],
        "objects": len(large.boxes),
        "tile": VAL_PX,
    }
    record("tiles", {**about, "rows": rows, "seconds": seconds, "shown_from_score": score, "n": 1})


def predicted(checkpoint: str, image: Image.Image, overlap: float) -> Found:
    """The detections of the command in the photograph."""
    with tempfile.TemporaryDirectory() as folder:
        image.save(f"{folder}/large.png")
        command = [
            "predict",
            checkpoint,
            f"{folder}/large.png",
            "--output",
            folder,
            "--save",
            "json",
        ]
        settings = ["--threshold", "0", "--tile", str(VAL_PX), "--overlap", str(overlap)]
        subprocess.run([sys.executable, "-m", "redetr", *command, *settings], check=True)
        rows = json.loads(Path(folder, "predictions.jsonl").read_text())["detections"]
    return Found(np.array([row["box"] for row in rows]), np.array([row["score"] for row in rows]))


def joined(parts: list[Detections], corners: list[tuple[int, int]]) -> Found:
    """All boxes of all tiles, in pixels of the photograph."""
    boxes = np.concatenate(
        [part.boxes.numpy() + np.array(at * 2) for part, at in zip(parts, corners, strict=True)]
    )
    scores = np.concatenate([part.scores.numpy() for part in parts])
    order = np.argsort(-scores, kind="stable")
    return Found(boxes[order], scores[order])


def corner(tiles, index: int) -> tuple[int, int]:
    """The position (left, top) of the tile in the photograph."""
    left, top = (int(part[1:]) for part in tiles.path(index).stem.split("_")[-2:])
    return left, top


def inside(boxes: np.ndarray, frame: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The boxes clipped to the frame, and the share of each that is inside."""
    cut = boxes.clip(frame[:2] * 2, frame[2:] * 2)
    return cut, area(cut) / np.maximum(area(boxes), 1e-6)


def on_tiles(found: Found, tiles) -> dict[str, float]:
    """AP of the detections cut into the tiles of the validation split, as its annotations were."""
    parts = []
    for index in range(len(tiles)):
        left, top = corner(tiles, index)
        cut, share = inside(found.boxes, (left, top, left + VAL_PX, top + VAL_PX))
        kept = share >= MIN_VISIBLE
        parts.append(
            (np.full(kept.sum(), index), found.scores[kept], cut[kept] - (left, top, left, top))
        )
    index, scores, boxes = (np.concatenate(each) for each in zip(*parts, strict=True))
    detections = DatasetDetections(
        image_index=index,
        labels=np.zeros(len(index), np.int64),
        scores=np.asarray(scores),
        boxes=np.asarray(boxes),
    )
    result = coco_metrics(GroundTruth.from_dataset(tiles), detections).to_dict()
    return {"tiles_AP": result["AP"], "tiles_AP50": result["AP50"]}


def on_the_whole(
    found: Found, large: Photograph, frame: tuple[int, int, int, int]
) -> dict[str, float]:
    """AP on the frame of the photograph as one image."""
    boxes, share = inside(large.boxes, frame)
    annotations = [
        {
            "id": i + 1,
            "image_id": 1,
            "category_id": 1,
            "bbox": xywh(box),
            "iscrowd": int(share[i] < MIN_VISIBLE),
            "area": float(area(box[None])[0]),
        }
        for i, box in enumerate(boxes)
        if share[i] > 0
    ]
    cut, share = inside(found.boxes, frame)
    results = [
        {"image_id": 1, "category_id": 1, "bbox": xywh(box), "score": float(score)}
        for box, score in zip(
            cut[share >= MIN_VISIBLE], found.scores[share >= MIN_VISIBLE], strict=True
        )
    ]
    if not results:
        return {"AP": 0.0, "AP50": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": 1}],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 100, len(results)]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]
    return {"AP": float(precision.mean()), "AP50": float(precision[0].mean())}


def xywh(box: np.ndarray) -> list[float]:
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def draw(found: Found, large: Photograph, border: int) -> float:
    """Draws as many boxes as there are crowns, those with the best scores (see
    `demo.prediction_grid`); returns the lowest score."""
    count = min(len(large.boxes), len(found.scores))
    scale = SHOWN_PX / max(large.image.size)
    picture = large.image.resize([round(scale * side) for side in large.image.size])
    boxes = torch.from_numpy(found.boxes[:count] * scale)
    picture = draw_boxes(picture, boxes, [""] * count, None, [class_color(0)] * count, scale=1)
    drawing = ImageDraw.Draw(picture)
    x = round(border * scale)
    drawing.line([(x, 0), (x, picture.height)], "white", 3)
    for text, place, anchor in (("pixels of training", x - 12, "ra"), ("held out", x + 12, "la")):
        drawing.text(
            (place, 12),
            text,
            "white",
            anchor=anchor,
            font_size=30,
            stroke_width=3,
            stroke_fill="black",
        )
    picture.save(
        RESULTS / f"{datetime.date.today().isoformat()}-tiles-crowns.jpg", quality=75, optimize=True
    )
    return float(found.scores[count - 1])


if __name__ == "__main__":
    main()
