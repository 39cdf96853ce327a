"""The demo: train for minutes, then show what was learned."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from redetr.config import TrainConfig
from redetr.data import DetectionDataset, open_dataset
from redetr.data.transforms import StoredSample
from redetr.detector.detections import Detections
from redetr.detector.detector import Detector, load
from redetr.errors import InputError
from redetr.models import build
from redetr.monitor import in_percent
from redetr.pages.curves import plot_curves
from redetr.pages.drawing import class_color, comparison_grid, draw_boxes, save_image
from redetr.recipes import get_recipe
from redetr.structures import StoredTarget
from redetr.training import train

_STEPS = {"digits": 720, "crowns": 600}  # of redetr_n: about five minutes on two cores
_SHOWN = 8  # images in the picture of predictions


def demo(data: str, folder: Path, steps: int, console: Console, recipe: str = "redetr_n") -> None:
    """Trains by a recipe on `data` into `folder` (an earlier demo there is replaced), draws curves
    and predictions, and says on `console` what to do next."""
    if folder.exists() and not (folder / "demo").exists():
        raise InputError(f"{folder}: exists and is no earlier demo: give another --output")
    config = demo_config(data, folder, steps, recipe)
    # Before an earlier demo is removed.
    config.check(world_size=1)
    build(config.model, 1, **config.model_kwargs())
    val = open_dataset(data, "val")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "demo").touch()
    result = train(config, console)
    plot_curves([folder], folder / "curves.png")
    picture = prediction_grid(load(folder), val, _SHOWN)
    save_image(picture, folder / "predictions.png")
    console.print(_next_steps(result, folder), soft_wrap=True, markup=False)


def _next_steps(result: dict[str, Any], folder: Path) -> str:
    """What the demo measured, and what to do with it."""
    ap = in_percent(result["AP"])
    ap50 = in_percent(result["AP50"])
    minutes = result["time_s"] / 60
    predictions = folder / "predictions.png"
    curves = folder / "curves.png"
    checkpoint = shlex.quote(str(folder / "best.pt"))
    return (
        f"\nAP {ap}, AP50 {ap50} after {minutes:.1f} minutes of training. Next:\n"
        "  look at    "
        f"{predictions} (left: the truth, right: predictions) and {curves}\n"
        "  predict    "
        f"redetr predict {checkpoint} IMAGE_OR_FOLDER\n"
        "  your data  "
        "redetr train redetr_n --data FOLDER --output runs/mine   (COCO, YOLO or VOC format)"
    )


def demo_config(data: str, folder: Path, steps: int, recipe: str = "redetr_n") -> TrainConfig:
    """The recipe for a demo's length."""
    length = steps or _STEPS.get(data, _STEPS["digits"])
    settings = get_recipe(recipe)
    return replace(settings, data=data, output=str(folder), steps=length, epochs=0.0, patience=0)


def prediction_grid(detector: Detector, dataset: DetectionDataset, count: int) -> Image.Image:
    """Truth beside predictions for `count` images spread over the data set.

    As many predictions are shown as there are objects, the best-scored of all these images
    together: scores that are trained towards the IoU are low while boxes are rough, so no fixed
    threshold suits every stage of training.
    """
    samples: list[StoredSample] = []
    predictions: list[Detections] = []
    num_objects = 0
    for k in range(count):
        index = k * len(dataset) // count
        sample = dataset.sample(index)
        image, target = sample
        samples.append(sample)
        predictions.append(detector.predict(image, threshold=0.0))
        is_object = ~target["iscrowd"]
        num_objects += int(is_object.sum())
    threshold = _threshold_for(predictions, num_objects)
    scenes = []
    for (image, target), detections in zip(samples, predictions, strict=True):
        truth = _drawn_truth(image, target, dataset.class_names)
        shown = detections.above(threshold)
        scenes.append((truth, shown.draw(image)))
    return comparison_grid(scenes, f"found, score {threshold:.2f} and more")


def _threshold_for(predictions: list[Detections], count: int) -> float:
    """The score that the best `count` of all detections exceed."""
    scores = torch.cat([detections.scores for detections in predictions])
    if not len(scores):
        return 0.0
    ranked = scores.sort(descending=True).values
    last = len(ranked) - 1
    threshold = ranked[min(count, last)]
    return float(threshold)


def _drawn_truth(image: Tensor, target: StoredTarget, class_names: tuple[str, ...]) -> Image.Image:
    """The image with the boxes of its objects, and their masks if it has them; crowds are left
    out."""
    kept = ~target["iscrowd"]
    boxes = target["boxes"][kept]
    labels = target["labels"][kept].tolist()
    names = [class_names[label] for label in labels]
    colors = [class_color(label) for label in labels]
    masks = target["masks"][kept] if "masks" in target else None
    return draw_boxes(image, boxes, names, None, colors, masks=masks)
