"""The pictures of a run at each evaluation: its curves, and predictions beside the ground truth."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from redetr.data import DetectionDataset
from redetr.data.dataset import spread_indices
from redetr.detector.detector import Detector
from redetr.pages.curves import plot_curves
from redetr.pages.drawing import comparison_grid, draw_objects, save_image
from redetr.state import State
from redetr.structures import StoredTarget

CURVES = "curves.png"
PREDICTIONS = "predictions.png"
_SHOWN = 8  # images, so that an evaluation hardly takes longer
_PANEL_PX = 480


def draw_run(state: State, val: DetectionDataset, folder: Path) -> list[str]:
    """Draws `curves.png` and `predictions.png`, of the averaged weights, into the run folder.

    Returns a warning for each that could not be drawn.
    """
    draw = {
        CURVES: partial(plot_curves, [folder]),
        PREDICTIONS: partial(_draw_predictions, state, val),
    }
    warnings = []
    for name, draw_file in draw.items():
        path = folder / name
        problem = _problem(draw_file, path)
        if problem:
            warnings.append(f"warning: {path} could not be drawn; training continues: {problem}")
    return warnings


def _problem(draw: Callable[[Path], None], path: Path) -> str:
    """What went wrong when the file was drawn: whatever it is, a run of days does not end for a
    picture."""
    try:
        draw(path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _draw_predictions(state: State, val: DetectionDataset, path: Path) -> None:
    config, model = state.config, state.ema.model
    detector = Detector(
        model,
        state.class_names,
        state.category_ids,
        config.image_size,
        device=next(model.parameters()).device.type,
        precision=config.precision,
    )
    save_image(prediction_grid(detector, val, _SHOWN), path)


def prediction_grid(detector: Detector, dataset: DetectionDataset, count: int) -> Image.Image:
    """Truth, with the name of the image, beside predictions for at most `count` images spread over
    the data set, each about 480 px large.

    As many predictions are shown as there are objects, the best-scored of all these images
    together: scores that are trained towards the IoU are low while boxes are rough, so no fixed
    threshold suits every stage of training.
    """
    indices = spread_indices(count, len(dataset))
    samples = [dataset.sample(index) for index in indices]
    scores = []
    num_objects = 0
    for image, target in samples:
        # Without their boxes and masks: with a threshold of 0, the masks of an image may take
        # hundreds of MB. So those that are drawn are computed again.
        scores.append(detector.predict(image, threshold=0.0, masks=False).scores)
        is_object = ~target["iscrowd"]
        num_objects += int(is_object.sum())
    threshold = _threshold_for(torch.cat(scores), num_objects)
    scenes = []
    for image, target in samples:
        truth = _drawn_truth(image, target, dataset.class_names)
        best = detector.predict(image, threshold)
        scenes.append((truth, best.draw(image, within_px=_PANEL_PX)))
    names = [f"ground truth: {dataset.image_name(index)}" for index in indices]
    return comparison_grid(scenes, f"predictions, score ≥ {threshold:.2f}", names)


def _threshold_for(scores: Tensor, count: int) -> float:
    """The lowest score of the best `count` of all detections; 1, which hardly any reaches, if
    `count` is 0."""
    if count == 0:
        return 1.0
    best = scores.sort(descending=True).values[:count]
    return float(best[-1]) if len(best) else 0.0


def _drawn_truth(image: Tensor, target: StoredTarget, class_names: tuple[str, ...]) -> Image.Image:
    """The image with the boxes of its objects, and their masks if it has them; crowds are left
    out."""
    kept = ~target["iscrowd"]
    boxes = target["boxes"][kept]
    labels = target["labels"][kept].tolist()
    masks = target["masks"][kept] if "masks" in target else None
    return draw_objects(image, boxes, labels, class_names, _PANEL_PX, masks)
