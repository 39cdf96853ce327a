"""Is a large photograph looked at in tiles as well as the tiles that the model is evaluated on? On `crowns`.

    pip download --no-deps deepforest==2.1.0
    python benchmarks/tiles.py runs/crowns deepforest-2.1.0-py3-none-any.whl

The photograph is the right quarter of the large one that `make_crowns.py` cuts: the model has not seen a pixel of it.
Once AP on all of it, with as many detections as there are (COCO's limit of 100 is for small images); and once its
detections cut into the 128 px tiles of the validation split and compared with the annotations of these, which gives the
same measure as `redetr evaluate` does for the tiles one by one. Writes results/DATE-tiles.json and a picture.
"""

import argparse
import contextlib
import datetime
import io
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from zipfile import ZipFile

import numpy as np
import torch
from make_crowns import LARGE, MIN_VISIBLE, TRAIN_SHARE, VAL_PX, area, read
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from record import RESULTS, record

from redetr.data import open_dataset
from redetr.evaluate import evaluate
from redetr.metrics import GroundTruth, coco_metrics
from redetr.postprocess import Detections
from redetr.predict import load
from redetr.tiles import merge_tiles, tile_windows
from redetr.visualize import draw_boxes

OVERLAPS = (0.2, 0.35)
SHOWN = 0.35  # the overlap of the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("wheel", type=Path)
    arguments = parser.parse_args()
    with ZipFile(arguments.wheel) as wheel:
        large = read(wheel, LARGE)
    left, (width, height) = int(TRAIN_SHARE * large.image.width), large.image.size
    image = torch.from_numpy(np.array(large.image.crop((left, 0, width, height)))).permute(2, 0, 1)
    clipped = large.boxes.clip((left, 0, left, 0), (width, height, width, height))
    visible = area(clipped) / area(large.boxes)
    boxes, ignored = clipped[visible > 0] - (left, 0, left, 0), visible[visible > 0] < MIN_VISIBLE

    detector, tiles = load(arguments.checkpoint), open_dataset("crowns", "val")
    alone = evaluate(detector.model, tiles, image_size=detector.image_size, classes=detector.classes).to_dict()
    rows = {"tiles one by one, as in training": {"tiles_AP": alone["AP"], "tiles_AP50": alone["AP50"]}}
    rows["whole, at once"] = measured(detector.predict(image, threshold=0.0), boxes, ignored, tiles, left)
    for overlap in OVERLAPS:
        windows = tile_windows(*image.shape[1:], VAL_PX, overlap)
        start = perf_counter()
        parts = detector.predict([image[:, y1:y2, x1:x2] for x1, y1, x2, y2 in windows], threshold=0.0)
        middle = perf_counter()
        found = merge_tiles(parts, windows, (image.shape[1], image.shape[2]))
        times = {"tiles": len(windows), "model_s": middle - start, "merge_s": perf_counter() - middle}
        not_merged = measured(joined(parts, windows, found), boxes, ignored, tiles, left)
        rows[f"overlap {overlap}"] = times | measured(found, boxes, ignored, tiles, left) | {"not_merged": not_merged}
        if overlap == SHOWN:
            shown = found
    # As many as there are crowns, the surest ones: see `demo.prediction_grid`.
    sure = shown.above(float(shown.scores[min(int((~ignored).sum()), len(shown)) - 1]))
    picture = draw_boxes(image, sure.boxes, [""] * len(sure), None, sure.labels.tolist(), scale=1)
    picture.save(RESULTS / f"{datetime.date.today().isoformat()}-tiles-crowns.jpg", quality=80)
    about = {"pixels": [width - left, height], "objects": int((~ignored).sum()), "tile": VAL_PX, "n": 1}
    record("tiles", {**about, "rows": rows, "shown": {"overlap": SHOWN, "score": float(sure.scores.min())}})


def joined(parts: list[Detections], windows: list, merged: Detections) -> Detections:
    """All boxes of all tiles, where they are in the photograph."""
    boxes = torch.cat([part.boxes + torch.tensor(window[:2] * 2) for part, window in zip(parts, windows, strict=True)])
    scores, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("scores", "labels"))
    return replace(merged, boxes=boxes, scores=scores, labels=labels)


def measured(found: Detections, boxes: np.ndarray, ignored: np.ndarray, tiles, left: int) -> dict[str, float]:
    return {"boxes": len(found), **on_the_whole(found, boxes, ignored), **on_tiles(found, tiles, left)}


def on_the_whole(found: Detections, boxes: np.ndarray, ignored: np.ndarray) -> dict[str, float]:
    """AP on the photograph as one image."""
    annotations = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(ignored[i]),
         "area": (x2 - x1) * (y2 - y1)} for i, (x1, y1, x2, y2) in enumerate(boxes.tolist())
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": annotations}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found.to_coco(1)), "bbox")
        evaluation.params.maxDets = [1, 100, len(found)]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, 0, 0, -1]
    return {"AP": float(precision.mean()), "AP50": float(precision[0].mean())}


def on_tiles(found: Detections, tiles, left: int) -> dict[str, float]:
    """AP of the same detections cut into the tiles of the validation split, as its annotations were."""
    parts = []
    whole = found.boxes.numpy()
    for index in range(len(tiles)):
        x, y = (int(part[1:]) for part in tiles.path(index).stem.split("_")[-2:])
        cut = whole.clip(*(np.array([x - left, y] * 2) + side for side in (0, VAL_PX)))
        kept = area(cut) >= MIN_VISIBLE * np.maximum(area(whole), 1e-6)
        shifted = torch.from_numpy(cut[kept] - np.array([x - left, y] * 2)).float()
        parts.append((np.full(kept.sum(), index), found.labels[kept], found.scores[kept], shifted))
    index, labels, scores, boxes = zip(*parts, strict=True)
    result = coco_metrics(GroundTruth.from_dataset(tiles), image_index=np.concatenate(index), labels=torch.cat(labels),
                          scores=torch.cat(scores), boxes=torch.cat(boxes)).to_dict()  # fmt: skip
    return {"tiles_AP": result["AP"], "tiles_AP50": result["AP50"]}


if __name__ == "__main__":
    main()
