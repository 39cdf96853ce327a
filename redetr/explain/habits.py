"""The habits of a model's queries over a data set."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from redetr.data import DetectionDataset
from redetr.data.dataset import spread_indices
from redetr.detector.detector import Detector
from redetr.explain.attention import (
    attention_layers,
    model_input,
    on_host,
    picked_proposals,
    recorded_inputs,
    selecting_modules,
    strides_of,
    with_all_layers,
)
from redetr.models.detr import DETR
from redetr.models.panoptic import PanopticDETR
from redetr.postprocess import best_classes
from redetr.precision import exact_products


@dataclass(frozen=True, eq=False)
class Habits:
    """The habits of queries on N images of a data set. All tensors are on the host."""

    boxes: Tensor  # [N, Q, 4] cxcywh, of the last layer
    scores: Tensor  # [N, Q]
    centers: Tensor | None  # [N, Q, 2] where queries started that are not learned vectors
    level: Tensor | None  # [N, Q] index into the strides
    strides: tuple[int, ...]  # px of a cell of each level; none for the faithful variant


@torch.no_grad()
@exact_products()
def query_habits(
    detector: Detector,
    dataset: DetectionDataset,
    count: int,
    on_image: Callable[[], Any] = lambda: None,
) -> Habits:
    """The habits of queries on `count` images spread over the data set, or on all images if there
    are fewer."""
    model = detector.model
    recorded: list[Any] = []
    is_faithful = isinstance(model, DETR | PanopticDETR)
    if not is_faithful:
        recorded = [attention_layers(model).to_image[0], *selecting_modules(model)]
    boxes = []
    scores = []
    centers = []
    levels = []
    strides: tuple[int, ...] = ()
    for index in spread_indices(count, len(dataset)):
        batch = model_input(detector, dataset.image(index))
        with recorded_inputs(recorded) as inputs:
            outputs = with_all_layers(model)(batch)
        image_scores, _ = best_classes(outputs["pred_logits"][0], model.loss_config.scores)
        boxes.append(on_host(outputs["pred_boxes"][0]))
        scores.append(on_host(image_scores))
        if not is_faithful:
            _, _, _, shapes, _ = inputs[recorded[0]]
            strides = strides_of(batch, shapes)
            picks = picked_proposals(model, outputs, inputs)
            centers.append(picks.centers)
            levels.append(picks.level)
        on_image()
    return Habits(
        boxes=torch.stack(boxes),
        scores=torch.stack(scores),
        centers=torch.stack(centers) if centers else None,
        level=torch.stack(levels) if levels else None,
        strides=strides,
    )
