"""Model outputs to detections in pixels of the original image.

Shapes: B images, Q queries, C classes, K detections of an image.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.structures import Outputs, ScoreFunction, Size

_MASKS_AT_ONCE = 16  # at the size of an image: 300 of a photograph would take 400 MB as logits


class Decoded(NamedTuple):
    """The detections of a batch, best score first."""

    scores: Tensor  # [B, K]
    labels: Tensor  # [B, K]
    boxes: Tensor  # [B, K, 4] xyxy, pixels of the original images
    queries: Tensor  # [B, K] the query that each comes from


def decode(
    outputs: Outputs, orig_sizes: Tensor, score_function: ScoreFunction, top_k: int
) -> Decoded:
    """The detections of a batch.

    `orig_sizes` is `[B, 2]`: height and width of the original images, best on the model's device.
    "softmax" gives each query its best class except "no object": K = Q, whatever `top_k` is.
    "sigmoid" gives the `top_k` best pairs of query and class: K = min(top_k, Q * C). Boxes end
    at the edges of the image.

    Computed in fp32 on the model's device; nothing is copied to the host, and the graph can be
    exported. Raises ValueError for another `score_function`.

    Source: Carion et al., "End-to-End Object Detection with Transformers", 2020 (softmax); Zhu et
    al., "Deformable DETR", 2021 (sigmoid). Deviations: pairs are ranked by logit and not by score,
    so that scores which round to the same fp32 number keep their order; the originals leave boxes
    as predicted. Cutting off what lies outside the image never lowers a box's IoU with an object
    inside, so AP is that of the originals or slightly above.
    """
    logits = outputs["pred_logits"].float()
    if score_function == "softmax":
        best_scores, best_labels = best_classes(logits, score_function)
        scores, queries = _best_first(best_scores)
        labels = best_labels.gather(1, queries)
    elif score_function == "sigmoid":
        num_classes = logits.shape[-1]
        pairs = logits.flatten(1)  # [B, Q * C]
        best_logits, pair = pairs.topk(min(top_k, pairs.shape[1]), dim=1)
        # Sorted again: rounding does not promise that the sigmoid keeps the order of logits.
        scores, order = _best_first(best_logits.sigmoid())
        labels = (pair % num_classes).gather(1, order)
        queries = (pair // num_classes).gather(1, order)
    else:
        raise ValueError(f"score_function must be softmax or sigmoid, not {score_function!r}")

    boxes = box_cxcywh_to_xyxy(outputs["pred_boxes"].float())
    width_height = orig_sizes.to(boxes).flip(-1)
    corners = width_height.repeat(1, 2)[:, None]  # [B, 1, 4] the right bottom corner twice
    boxes = _rows(boxes, queries) * corners
    boxes = torch.minimum(boxes.clamp(min=0), corners)
    return Decoded(scores, labels, boxes, queries)


def best_classes(logits: Tensor, score_function: ScoreFunction) -> tuple[Tensor, Tensor]:
    """Score and label of each query's best class except "no object", `[..., Q]` each. `logits` are
    `[..., Q, C + 1]` for "softmax", with "no object" last, and `[..., Q, C]` for "sigmoid"."""
    if score_function == "softmax":
        probabilities = logits.float().softmax(-1)[..., :-1]
    else:
        probabilities = logits.float().sigmoid()
    best = probabilities.max(-1)
    return best.values, best.indices


def _best_first(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The scores `[B, K]` in descending order, and their indices; equal scores keep their order."""
    if torch.compiler.is_exporting():  # ONNX has a single kind of sort, which is stable
        return scores.sort(dim=1, descending=True)
    return scores.sort(dim=1, descending=True, stable=True)


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """The boxes `[B, K, 4]` with these indices `[B, K]`."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))


def decode_masks(
    outputs: Outputs,
    image: int,
    queries: Tensor,
    size: Size,
    canvas: Size,
    orig_size: Size,
    original: bool = False,
) -> Iterator[Tensor]:
    """The masks of `queries` `[K]` of one image of the batch, bool `[n, H, W]` on the host, a few
    at a time.

    `size` is the size of the image in the model's input, without the padding up to `canvas`;
    `orig_size` is (H, W). Logits are interpolated once, bilinearly, from the model's resolution to
    the original image; a pixel belongs to an object where they are above 0. With `original`, masks
    are decided by `original_masks`.

    Deviation: the originals of models in real time interpolate twice, to the canvas and to the
    image.
    """
    shares = (size[0] / canvas[0], size[1] / canvas[1])
    for chunk in queries.split(_MASKS_AT_ONCE):
        if "pred_masks" in outputs:
            logits = outputs["pred_masks"][image, chunk]
        else:
            logits = outputs["masks_of"](torch.full_like(chunk, image), chunk)
        logits = logits.float()  # [n, h, w]
        if original:
            yield original_masks(logits, canvas, size, orig_size).cpu()
        else:
            yield masks_of_size(logits.cpu(), shares, orig_size)


def original_masks(logits: Tensor, canvas: Size, size: Size, orig_size: Size) -> Tensor:
    """Masks bool `[N, H, W]` of logits `[N, h, w]` as the original panoptic DETR decides them.

    Sizes are those of `decode_masks`. The published mask AP contains two peculiarities: an object
    is decided at the size that the model saw, and then enlarged to the nearest pixel, so its edges
    have steps; and the nearest pixel is that of the corners, not of the centres.
    """
    on_canvas = F.interpolate(logits[:, None], size=canvas, mode="bilinear")
    height, width = size
    masks = on_canvas[..., :height, :width] > 0  # a score above 0.5
    return F.interpolate(masks.float(), size=orig_size, mode="nearest")[:, 0].bool()


def masks_of_size(logits: Tensor, shares: tuple[float, float], size: Size) -> Tensor:
    """Where `logits` `[N, h, w]` are above 0 once they are interpolated, bool `[N, *size]`.

    `shares` are those of the rows and the columns that show the image; the rest is padding.
    """
    height, width = size
    height_share, width_share = shares
    y = _pixel_centers(height_share, height)
    x = _pixel_centers(width_share, width)
    masks = torch.zeros(len(logits), *size, dtype=torch.bool)
    # Interpolation between logits of at most 0 gives at most 0: only the surroundings of positive
    # logits are computed.
    for mask, logit_map in zip(masks, logits, strict=True):
        is_inside = logit_map > 0
        rows = _reach(is_inside.any(1), height_share, height)
        columns = _reach(is_inside.any(0), width_share, width)
        grid_y, grid_x = torch.meshgrid(y[rows], x[columns], indexing="ij")
        grid = torch.stack([grid_x, grid_y], -1)  # [rows, columns, 2]
        if grid.numel():
            values = F.grid_sample(
                logit_map[None, None], grid[None], padding_mode="border", align_corners=False
            )
            mask[rows, columns] = values[0, 0] > 0
    return masks


def _pixel_centers(share: float, length: int) -> Tensor:
    """Where the `length` rows or columns of an image lie in maps of which it fills this share,
    `[length]`: from -1 to 1 across the maps."""
    centers = (torch.arange(length) + 0.5) / length  # in the image
    return 2 * share * centers - 1


def _reach(is_inside: Tensor, share: float, length: int) -> slice:
    """The range of an image's `length` rows or columns that interpolation between cells can fill
    from the True cells of `is_inside` `[n]`; the image covers this `share` of the cells."""
    (cells,) = torch.nonzero(is_inside, as_tuple=True)
    if not len(cells):
        return slice(0, 0)
    # Bilinear interpolation carries a cell's value up to the centres of its neighbours.
    pixels_per_cell = length / (share * len(is_inside))
    start = (int(cells[0]) - 0.5) * pixels_per_cell
    stop = (int(cells[-1]) + 1.5) * pixels_per_cell
    return slice(max(0, math.floor(start)), min(length, math.ceil(stop)))
