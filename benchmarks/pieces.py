"""One side of `pieces_before.py`: does the work of a piece each time it is asked, and says how long
that took.

    python benchmarks/pieces.py PIECE IMAGES

The package and the benchmarks are those of the folder in PYTHONPATH, which may be of an earlier
commit, so names of both are tried. Prints the names of the works, and then, for each line of its
input, the processor seconds of each.
"""

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import torch

Works = dict[str, Callable[[], object]]


def evaluation(images: Path) -> Works:
    """COCO's numbers of 1,000 images, without the threshold, for which earlier commits did not
    look."""
    truth, detections = _scenes()
    scenes = importlib.import_module("evaluation")
    if not hasattr(scenes, "without_threshold"):
        return {"evaluation": _whole(truth, detections)}
    return {"evaluation": lambda: scenes.without_threshold(truth, detections)}


def threshold(images: Path) -> Works:
    """The same with the threshold. In a process of its own: what it leaves in memory slows the
    next evaluation."""
    return {"evaluation, with the threshold": _whole(*_scenes())}


def _scenes() -> tuple[Any, Any]:
    """The ground truth and the detections of 1,000 images."""
    metrics = importlib.import_module("redetr.metrics")
    targets, detections = importlib.import_module("evaluation").scenes(1000)
    truth = metrics.GroundTruth.from_targets(targets, [str(label) for label in range(80)])
    return truth, detections


def _whole(truth: Any, detections: Any) -> Callable[[], object]:
    """All that an evaluation computes."""
    metrics = importlib.import_module("redetr.metrics")
    if isinstance(detections, dict):
        return lambda: metrics.coco_metrics(truth, **detections)
    return lambda: metrics.coco_metrics(truth, detections)


def criterion(images: Path) -> Works:
    """Matching, loss and gradient of 6 layers, 16 images and 100 queries, ten times."""
    scene = importlib.import_module("criterion").scene
    losses = importlib.import_module("redetr.losses")
    structures = importlib.import_module("redetr.structures")
    logits, boxes, targets = scene("cpu")
    set_loss = losses.SetCriterion(structures.LossConfig(), 80, 100)

    def work() -> None:
        for _ in range(10):
            layers = []
            for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
                layers.append({"pred_logits": layer_logits, "pred_boxes": layer_boxes})
            outputs = {**layers[-1], "aux_outputs": layers[:-1]}
            set_loss(outputs, targets)["loss"].backward()

    return {"criterion": work}


def loader(images: Path) -> Works:
    """50 photographs, decoded and augmented, or only resized."""
    photographs = importlib.import_module("loader")
    samples = importlib.import_module("redetr.data.loader").Samples
    frame: tuple[Any, ...] = ("aspect", 800, 1333)
    if "max_size" not in signature(photographs.augmentation).parameters:
        frame = (importlib.import_module("redetr.data.views").Fit(800, 1333),)
    data = photographs.Photographs(images)
    augmented = samples(data, photographs.augmentation("detr", *frame), 0)
    whole = samples(data, photographs.resizer(*frame), 0)

    def read(source: Any) -> Callable[[], object]:
        return lambda: [source[0, index] for index in range(50)]

    return {"loader": read(augmented), "loader, whole images": read(whole)}


def check(images: Path) -> Works:
    """What `redetr check` reads of each photograph."""
    names = sorted(path.name for path in images.iterdir())
    try:
        headers = importlib.import_module("redetr.data.headers")
        cache = importlib.import_module("redetr.data.header_cache").HeaderCache(images).folder
    except ModuleNotFoundError:
        headers = importlib.import_module("redetr.check_images")
        cache = headers.cache_file(images)

    def read(**options: bool) -> Callable[[], object]:
        def afresh() -> None:
            if cache.is_dir():
                shutil.rmtree(cache)
            cache.unlink(missing_ok=True)
            headers.read_headers(images, names, **options)

        return afresh

    return {
        "check, headers": read(),
        "check, headers_and_content": read(content=True),
        "check, thorough": read(content=True, looks=True),
        # follows the one that fills the cache
        "check, remembered": lambda: headers.read_headers(images, names, content=True, looks=True),
    }


PIECES = {
    "evaluation": evaluation,
    "threshold": threshold,
    "criterion": criterion,
    "loader": loader,
    "check": check,
}


def main() -> None:
    piece, images = sys.argv[1:]
    torch.set_num_threads(1)
    works = PIECES[piece](Path(images))
    for work in works.values():
        work()
    print(json.dumps(list(works)), flush=True)
    answer_rounds(works)


def answer_rounds(works: Works) -> None:
    """Does each work for every line of the input, and prints its processor seconds."""
    for _ in sys.stdin:
        seconds = {}
        for name, work in works.items():
            started = time.process_time()
            work()
            seconds[name] = time.process_time() - started
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache_folder:
        os.environ["XDG_CACHE_HOME"] = cache_folder
        main()
