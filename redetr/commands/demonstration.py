"""The demo: train for minutes, then show what was learned."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console

from redetr.config import TrainConfig
from redetr.data import DetectionDataset, open_dataset
from redetr.detector.detector import Detector, load
from redetr.errors import InputError
from redetr.pages.curves import plot_curves
from redetr.pages.drawing import comparison_grid, draw_boxes, save_image
from redetr.recipes import redetr_n
from redetr.training import train

# About five minutes on two cores.
_STEPS = {"digits": 720, "crowns": 600}


def demo(data: str, folder: Path, steps: int, console: Console) -> None:
    """Trains `redetr_n` on `data` into `folder` (an earlier demo there is replaced), draws curves
    and predictions, and says on `console` what to do next."""
    if folder.exists() and not (folder / "demo").exists():
        raise InputError(f"{folder}: exists and is no earlier demo: give another --output")
    config = demo_config(data, folder, steps)
    config.check(world_size=1)  # what is wrong is said before an earlier demo goes
    val = open_dataset(data, "val")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "demo").touch()
    result = train(config, console)
    plot_curves([folder], folder / "curves.png")
    save_image(prediction_grid(load(folder), val, count=8), folder / "predictions.png")
    console.print(
        f"\nAP {100 * (result['AP'] or 0):.1f}, AP50 {100 * (result['AP50'] or 0):.1f} after "
        f"{result['time_s'] / 60:.1f} minutes of training. Next:\n"
        f"  look at    {folder}/predictions.png (left: the truth, right: found) and "
        f"{folder}/curves.png\n"
        f"  predict    redetr predict {shlex.quote(str(folder / 'best.pt'))} IMAGE_OR_FOLDER\n"
        "  your data  redetr train redetr_n --data FOLDER --output runs/mine   (COCO, YOLO or VOC "
        "form)",
        soft_wrap=True,
        markup=False,
    )


def demo_config(data: str, folder: Path, steps: int) -> TrainConfig:
    """The recipe `redetr_n` for a demo's length."""
    length = steps or _STEPS.get(data, 720)
    return replace(redetr_n(), data=data, output=str(folder), steps=length, epochs=0.0)


def prediction_grid(detector: Detector, dataset: DetectionDataset, count: int) -> Image.Image:
    """Truth beside predictions for `count` images spread over the data set.

    As many predictions are shown as there are objects, the best-scored of all these images
    together: scores that are trained towards the IoU are low while boxes are rough, so no fixed
    threshold suits every stage of training.
    """
    samples = [dataset.sample(k * len(dataset) // count) for k in range(count)]
    found = [detector.predict(image, threshold=0.0) for image, _ in samples]
    objects = sum(int((~target["iscrowd"]).sum()) for _, target in samples)
    scores = torch.cat([detections.scores for detections in found]).sort(descending=True).values
    threshold = float(scores[min(objects, len(scores) - 1)]) if len(scores) else 0.0
    scenes = []
    for (image, target), detections in zip(samples, found, strict=True):
        kept = ~target["iscrowd"]
        labels = target["labels"][kept].tolist()
        names = [dataset.class_names[label] for label in labels]
        truth = draw_boxes(image, target["boxes"][kept], names, None, labels)
        scenes.append((truth, detections.above(threshold).draw(image)))
    return comparison_grid(scenes, f"found, score {threshold:.2f} and more")
