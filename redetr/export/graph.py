"""The computation of an exported file, traced once with a free batch, height and width.

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

from redetr.choices import ImageSize
from redetr.data.transforms import final_size, statistics
from redetr.data.views import Stretch
from redetr.postprocess import decode
from redetr.structures import DetectionModel, Size


class Plain(nn.Module):
    """From normalised images, and optionally their padding, to logits and boxes, and to mask logits
    if the model has masks."""

    def __init__(self, model: DetectionModel):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits `[B, Q, C]`, boxes `[B, Q, 4]` and mask logits `[B, Q, H / 4, W / 4]` of `images`
        `[B, channels, H, W]`."""
        outputs = self.model(images, mask)
        if not self.model.has_masks:
            return outputs["pred_logits"], outputs["pred_boxes"]
        return outputs["pred_logits"], outputs["pred_boxes"], outputs["pred_masks"]


class Processed(nn.Module):
    """From stored images to detections in their pixels, best score first.

    The same as `Detector.predict`, in one graph.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: DetectionModel, image_size: ImageSize):
        super().__init__()
        self.model = model
        self.final = final_size(model, image_size)
        means, deviations = statistics(model.channels)
        mean = torch.tensor(means).mul(255)[:, None, None]
        std = torch.tensor(deviations).mul(255)[:, None, None]
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Scores `[B, K]`, labels `[B, K]` and boxes `[B, K, 4]` (xyxy pixels).

        `images` are uint8 `[B, channels, H, W]`, as the model takes them. A model with masks also
        returns their logits `[B, K, h, w]` over the whole image, at the resolution of the model,
        because at that of the image, hundreds of masks would take gigabytes.
        """
        num_images, _, height, width = images.shape
        resized = resized_pixels(images, *self._size(height, width))
        outputs = self.model((resized - self.mean) / self.std)
        heights = torch.full((num_images,), height, dtype=torch.float32)
        widths = torch.full((num_images,), width, dtype=torch.float32)
        orig_sizes = torch.stack([heights, widths], -1)
        score_function = self.model.loss_config.scores
        decoded = decode(outputs, orig_sizes, score_function, self.model.max_detections)
        if not self.model.has_masks:
            return decoded.scores, decoded.labels, decoded.boxes
        masks = outputs["pred_masks"]
        index = decoded.queries[..., None, None].expand(-1, -1, *masks.shape[-2:])
        return decoded.scores, decoded.labels, decoded.boxes, masks.gather(1, index)

    def _size(self, height: int, width: int) -> tuple[Any, Any]:
        """The size of the model's input, as in `views.Stretch` and `views.Fit`.

        There are no branches, because in a graph for all sizes, neither side is always the longer
        one.
        """
        final = self.final
        if isinstance(final, Stretch):
            return final.size
        stored_short = torch.sym_min(height, width)
        stored_long = torch.sym_max(height, width)
        longest = final.longest
        short: Any = final.shorter
        if longest:
            limit = _rounded_ratio(longest * stored_short, stored_long)
            short = torch.sym_min(short, torch.sym_max(1, limit))
        sides = []
        for side in (height, width):
            scaled = short * side // stored_short
            if longest and final.shorter >= longest:  # the longer side is `longest`
                is_longer = 1 - torch.sym_min(1, stored_long - side)
                scaled = scaled + is_longer * (longest - scaled)
            if longest:
                scaled = torch.sym_min(scaled, 2 * longest)
            sides.append(scaled)
        return sides[0], sides[1]


def _rounded_ratio(numerator: Any, denominator: Any) -> Any:
    """The nearest whole number to a ratio of whole numbers; the even one of two that are equally
    near, as Python's `round` has it."""
    twice_more = 2 * numerator + denominator
    rounded_up = twice_more // (2 * denominator)
    is_tie = 1 - torch.sym_min(1, twice_more % (2 * denominator))
    is_odd = rounded_up % 2
    return rounded_up - is_tie * is_odd


def resized_pixels(images: Tensor, height: int, width: int) -> Tensor:
    """Resizes uint8 `images` `[B, channels, H, W]` to floats with whole values `[B, channels,
    height, width]`.

    Computed like PyTorch's resizing of bytes on a CPU, which training, `predict` and `evaluate`
    use: first along rows, then along columns, with rounding after each. PyTorch's weights are
    16-bit integers and these are floats, so about one value in 500 is off by 1.
    """
    stored_height = images.shape[2]
    narrow = F.interpolate(images.float(), (stored_height, width), mode="bilinear", antialias=True)
    rounded = (narrow + 0.5).floor()
    resized = F.interpolate(rounded, (height, width), mode="bilinear", antialias=True)
    return (resized + 0.5).floor()


def trace(
    module: Plain | Processed,
    mask: bool = False,
    size: Size | None = None,
    one_image: bool = False,
) -> ExportedProgram:
    """The traced program of a module on the host, for any number and size of images.

    `mask` adds the padding as an input. With `size`, height and width are fixed. With `one_image`,
    the batch is fixed to a single image.
    """
    sides = size or (96, 160)  # any two different sides
    side = None if size else Dim.DYNAMIC
    num_images = 1 if one_image else 2
    dtype = torch.uint8 if isinstance(module, Processed) else torch.float32
    batch = None if one_image else Dim("batch")
    inputs = [torch.zeros(num_images, module.model.channels, *sides, dtype=dtype)]
    shapes = [{0: batch, 2: side, 3: side}]
    if mask:
        inputs.append(torch.zeros(num_images, *sides, dtype=torch.bool))
        shapes.append({0: batch, 1: side, 2: side})
    # Other memory formats are saved with a warning.
    module = deepcopy(module).to(memory_format=torch.contiguous_format).eval()
    module.model.aux_loss = False  # boxes of all positions serve only the loss
    with torch.no_grad(), quiet():
        return torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(shapes))


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what exporters log about their attempts."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
