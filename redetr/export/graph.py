"""What an exported file computes, traced once with a free batch, height and width.

Shapes: B images, Q queries, C classes, K detections of an image.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from redetr.data.transforms import MEAN, STD
from redetr.postprocess import decode
from redetr.structures import DetectionModel


class Plain(nn.Module):
    """Normalised `images` `[B, 3, H, W]`, and their padding if asked, to logits `[B, Q, C]` and
    boxes `[B, Q, 4]`."""

    def __init__(self, model: DetectionModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        outputs = self.model(images, mask)
        return outputs["pred_logits"], outputs["pred_boxes"]


class Processed(nn.Module):
    """Images as stored to detections in their pixels, best score first: what `Detector.predict`
    does, in one graph."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DetectionModel, image_size: int):
        super().__init__()
        self.model = model
        self.image_size = image_size
        self.register_buffer("mean", torch.tensor(MEAN).mul(255)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD).mul(255)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores `[B, K]`, labels `[B, K]`, boxes `[B, K, 4]` (xyxy pixels) of uint8 `images` `[B,
        3, H, W]`."""
        height, width = images.shape[-2:]
        resized = F.interpolate(
            images.float(), self._size(height, width), mode="bilinear", antialias=True
        )
        # Rounded, as the resized images are that the model learned from.
        outputs = self.model((resized.round() - self.mean) / self.std)
        sides = torch.stack(
            [torch.full((images.shape[0],), side, dtype=torch.float32) for side in (height, width)],
            -1,
        )
        scores, labels, boxes = decode(
            outputs, sides, self.model.loss_config.scores, self.model.most_detections
        )
        scores, order = scores.sort(descending=True)
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        inside = torch.minimum(boxes.clamp(min=0), sides.flip(-1).repeat(1, 2)[:, None])
        return scores, labels.gather(1, order), inside

    def _size(self, height: int, width: int) -> tuple[Any, Any]:
        """As `views.Stretch` and `views.Fit`, without a branch: in a graph for all sizes, no side
        is the longer one."""
        if self.model.resize == "square":
            return self.image_size, self.image_size
        shorter = torch.sym_min(height, width)
        sides = [self.image_size * side // shorter for side in (height, width)]
        if self.model.max_size:
            longer = torch.sym_max(*sides)
            sides = [
                torch.sym_min(side, torch.sym_max(1, self.model.max_size * side // longer))
                for side in sides
            ]
        return sides[0], sides[1]


def trace(module: Plain | Processed, mask: bool = False) -> ExportedProgram:
    """The program of a module on the host, for any number and size of images; `mask` adds the
    padding as an input."""
    sides = (96, 160)  # any two that differ
    batch = Dim("batch")
    inputs = [
        torch.zeros(
            2, 3, *sides, dtype=torch.uint8 if isinstance(module, Processed) else torch.float32
        )
    ]
    shapes = [{0: batch, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}]
    if mask:
        inputs.append(torch.zeros(2, *sides, dtype=torch.bool))
        shapes.append({0: batch, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC})
    module = (
        deepcopy(module).to(memory_format=torch.contiguous_format).eval()
    )  # other layouts are saved with a warning
    module.model.aux_loss = False  # boxes of all positions are there for the loss alone
    with torch.no_grad(), quiet():
        return torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(shapes))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log of what exporters try on their way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
