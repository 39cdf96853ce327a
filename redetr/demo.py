"""The demo: train for minutes, then show what was learned."""

import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console

from redetr.config import TrainConfig
from redetr.data import DetectionDataset, open_dataset
from redetr.errors import InputError
from redetr.predict import Detector, load
from redetr.recipes import redetr_n
from redetr.train import train
from redetr.visualize import comparison_grid, draw_boxes, plot_curves, save_image

# About five minutes on two cores.
_STEPS = {"digits": 800, "crowns": 600}


def demo(data: str, folder: Path, steps: int, console: Console) -> None:
    """Trains `redetr_n` on `data` into `folder` (an earlier demo there is replaced), draws curves and predictions, and
    says on `console` what to do next."""
    if folder.exists():
        if not (folder / "demo").exists():
            raise InputError(f"{folder}: exists and is no earlier demo: give another --output")
        shutil.rmtree(folder)
    config = demo_config(data, folder, steps)
    open_dataset(data, "val")  # says what is wrong before a folder is made
    result = train(config, console)
    (folder / "demo").touch()
    plot_curves([folder], folder / "curves.png")
    save_image(prediction_grid(load(folder), open_dataset(data, "val"), count=8), folder / "predictions.png")
    console.print(
        f"\nAP {100 * (result['AP'] or 0):.1f}, AP50 {100 * (result['AP50'] or 0):.1f} after "
        f"{result['time_s'] / 60:.1f} minutes of training. Next:\n"
        f"  look at    {folder}/predictions.png (left: the truth, right: found) and {folder}/curves.png\n"
        f"  predict    redetr predict {folder}/best.pt IMAGE_OR_FOLDER\n"
        "  your data  redetr train redetr_n --data FOLDER --output runs/mine   (COCO layout)",
        soft_wrap=True,
    )


def demo_config(data: str, folder: Path, steps: int) -> TrainConfig:
    """The recipe `redetr_n` for a demo's length."""
    length = steps or _STEPS.get(data, 800)
    return replace(redetr_n(), data=data, output=str(folder), steps=length, epochs=0.0)


def prediction_grid(detector: Detector, dataset: DetectionDataset, count: int, threshold: float = 0.4) -> Image.Image:
    """Truth beside predictions for `count` images spread over the data set."""
    scenes = []
    for k in range(count):
        image, target = dataset.sample(k * len(dataset) // count)
        names = [dataset.class_names[label] for label in target["labels"].tolist()]
        truth = draw_boxes(image, target["boxes"], names, None, target["labels"].tolist())
        scenes.append((truth, detector.predict(image, threshold).draw(image)))
    return comparison_grid(scenes)
