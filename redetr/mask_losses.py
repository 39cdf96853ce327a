"""The losses of masks: sums over matched objects, which the criterion divides by given counts.

Two regions, of which a model has one. "canvas" is that of the original panoptic DETR: focal and
dice loss of every pixel of the padded batch, to which predictions are enlarged. "crops" is for
models that answer in real time: binary cross-entropy and dice at points in a frame around each
object, so that a small object counts as much as a large one, and the price does not grow with the
image. There is one point in each cell of a grid over that frame, drawn from the target's `seed`: a
function of (seed, epoch, image), hence the same for any number of ranks and micro-batches. It takes
the mask's value where it lies in the image itself, so that masks at stride 4 learn edges that are
finer than their pixels.

An object whose mask is not known, because its target has none or an empty one, adds nothing. All
losses are divided by the number of all objects, as those of boxes are.

Sources: Carion et al., "End-to-End Object Detection with Transformers", 2020 (canvas); the points
are inspired by Kirillov et al., "PointRend", 2020, which draws them over the image where the model
is unsure.

Shape letters: B images, Q queries, T objects of an image, padded to the most in the batch, N
objects of all images, P points of an object, E width of embeddings; H, W of the canvas and h, w at
stride 4.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from redetr.boxes import at_least_float32
from redetr.structures import Outputs, RelativeBoxes, Size, Target, to_device

_FOCAL_ALPHA = 0.25
_FOCAL_GAMMA = 2
_DICE_SMOOTHING = 1
_CELLS = 24  # a side of the grid of points
_FRAME = 1.5  # sides of an object's frame, in sides of its box


class _Objects(NamedTuple):
    """The objects of a batch one after the other, on the host."""

    image: Tensor  # [N] int64
    row: Tensor  # [N] int64, which of its image
    has_mask: Tensor  # [N] bool


class _Points(NamedTuple):
    """The predictions and the truth of N objects at P points each."""

    logits: Tensor  # [N, P]
    goals: Tensor  # [N, P], 1 in the mask, 0 outside
    weights: Tensor  # [N, P], 1 in the image, 0 outside


def mask_sums(
    outputs: Outputs,
    queries: Tensor,
    targets: list[Target],
    region: Literal["canvas", "crops"],
) -> dict[str, Tensor]:
    """Returns the sums "loss_mask" and "loss_dice" over all objects, each `[1]`, not divided.

    `queries` `[B, T]` is the query of every object, Q for those without one. `outputs` hold
    `canvas` and either `masks_of`, or both `mask_embed` and `pixel_embed`, or `pred_masks`; the
    first of these that is there counts. Computed in fp32 or fp64. Does not wait for the device,
    unless the targets are there.
    """
    targets = [_on_host(target) for target in targets]
    objects = _objects_of(targets)
    device = queries.device
    image = to_device(objects.image, device)
    row = to_device(objects.row, device)
    has_mask = to_device(objects.has_mask, device)
    num_queries = outputs["pred_logits"].shape[1]
    is_judged = has_mask & (queries[image, row] < num_queries)  # [N]
    logits = _matched_masks(outputs, queries.clamp(max=num_queries - 1), image, row)  # [N, h, w]

    if region == "canvas":
        points = _every_pixel(logits, targets, outputs["canvas"])
        by_point = _focal(points.logits, points.goals)
    else:
        points = _around_objects(logits, targets, outputs["canvas"])
        by_point = F.binary_cross_entropy_with_logits(points.logits, points.goals, reduction="none")
    num_points = points.weights.sum(1).clamp(min=1)
    by_object = (by_point * points.weights).sum(1) / num_points  # [N]
    dice = _dice(points.logits.sigmoid() * points.weights, points.goals)
    judged = is_judged.to(logits.dtype)
    return {
        "loss_mask": (by_object * judged).sum()[None],
        "loss_dice": (dice * judged).sum()[None],
    }


def _every_pixel(logits: Tensor, targets: list[Target], canvas: Size) -> _Points:
    """Returns the pixels of the padded canvas, to which `logits` `[N, h, w]` are enlarged."""
    enlarged = F.interpolate(logits[:, None], size=canvas, mode="bilinear")
    masks = to_device(_on_canvas(targets, canvas), logits.device)  # [N, H, W]
    goals = masks.flatten(1).to(logits.dtype)
    return _Points(enlarged[:, 0].flatten(1), goals, torch.ones_like(goals))


def _around_objects(logits: Tensor, targets: list[Target], canvas: Size) -> _Points:
    """Returns points in the frames around the objects, at which `logits` `[N, h, w]` are
    sampled."""
    points, values, inside = _sampled(targets, canvas)
    device = logits.device
    dtype = logits.dtype
    at_points = _read(logits, to_device(points, device).to(dtype))
    goals = to_device(values, device).to(dtype)
    weights = to_device(inside, device).to(dtype)
    return _Points(at_points, goals, weights)


def _on_host(target: Target) -> Target:
    """Returns the target with those of its tensors on the host that this file reads."""
    moved = target.copy()
    moved["boxes"] = RelativeBoxes(target["boxes"].cpu())
    if "masks" in target:
        moved["masks"] = target["masks"].cpu()
    return moved


def _objects_of(targets: list[Target]) -> _Objects:
    """All objects of `targets`, in order."""
    images = []
    rows = []
    known = []
    for i, target in enumerate(targets):
        num_objects = len(target["labels"])
        images.append(torch.full((num_objects,), i))
        rows.append(torch.arange(num_objects))
        if "masks" in target:
            known.append(target["masks"].flatten(1).any(1))
        else:
            known.append(torch.zeros(num_objects, dtype=torch.bool))
    return _Objects(torch.cat(images), torch.cat(rows), torch.cat(known))


def _matched_masks(outputs: Outputs, queries: Tensor, image: Tensor, row: Tensor) -> Tensor:
    """Returns the logits `[N, h, w]` of the objects' queries; `queries` is `[B, T]`, in [0, Q)."""
    if "masks_of" in outputs:
        return outputs["masks_of"](image, queries[image, row])
    if "mask_embed" not in outputs:
        return at_least_float32(outputs["pred_masks"][image, queries[image, row]])
    mask_embed = at_least_float32(outputs["mask_embed"])  # [B, Q, E]
    pixel_embed = at_least_float32(outputs["pixel_embed"])  # [B, E, h, w]
    index = queries[..., None].expand(-1, -1, mask_embed.shape[-1])
    matched = mask_embed.gather(1, index)  # [B, T, E]
    masks = matched @ pixel_embed.flatten(2)  # [B, T, h * w]
    return masks[image, row].unflatten(-1, pixel_embed.shape[-2:])


def _on_canvas(targets: list[Target], canvas: Size) -> Tensor:
    """Returns the masks of all objects `[N, H, W]`, padded; False where they are not known."""
    height, width = canvas
    padded = []
    for target in targets:
        values = torch.zeros(len(target["labels"]), height, width, dtype=torch.bool)
        if "masks" in target:
            h, w = target["masks"].shape[-2:]
            values[:, :h, :w] = target["masks"]
        padded.append(values)
    return torch.cat(padded)


def _sampled(targets: list[Target], canvas: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the points of all objects, `[N, P, 2]`, the masks there, and which are in the image.

    Points are x and y as fractions of the canvas; the other two are `[N, P]` bool. On the host.
    """
    height, width = canvas
    all_points = []
    all_values = []
    all_inside = []
    for target in targets:
        points = points_around(target)  # fractions of the image
        h, w = target["masks"].shape[-2:] if "masks" in target else canvas
        x = (points[..., 0] * w).floor().long()
        y = (points[..., 1] * h).floor().long()
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)  # [T, P]
        values = torch.zeros_like(inside)
        if "masks" in target:
            objects = torch.arange(len(points))[:, None]
            rows = y.clamp(0, h - 1)
            columns = x.clamp(0, w - 1)
            values = target["masks"][objects, rows, columns] & inside
        all_points.append(points * torch.tensor([w / width, h / height]))
        all_values.append(values)
        all_inside.append(inside)
    return torch.cat(all_points), torch.cat(all_values), torch.cat(all_inside)


def points_around(target: Target) -> Tensor:
    """Returns the points in the frames around the objects of a target, `[T, P, 2]` on the host.

    They are x and y as fractions of the image, and may lie outside it. A target without a `seed`
    has the centres of the cells.
    """
    boxes = target["boxes"]
    num_objects = len(boxes)
    offsets = torch.full((num_objects, _CELLS, _CELLS, 2), 0.5)
    if "seed" in target:
        generator = torch.Generator()
        generator.manual_seed(target["seed"])
        offsets = torch.rand(offsets.shape, generator=generator)
    corner = torch.arange(_CELLS)
    y, x = torch.meshgrid(corner, corner, indexing="ij")
    corners = torch.stack([x, y], -1)  # [cells, cells, 2]
    in_frame = (corners + offsets) / _CELLS - 0.5  # from -0.5 to 0.5
    in_frame = in_frame.flatten(1, 2)  # [T, P, 2]
    centers, sides = boxes[:, None, :2], boxes[:, None, 2:]
    return centers + in_frame * _FRAME * sides


def _read(logits: Tensor, points: Tensor) -> Tensor:
    """Returns `logits` `[N, h, w]` at `points` `[N, P, 2]`, fractions of the canvas: `[N, P]`."""
    grid = 2 * points[:, :, None] - 1  # [N, P, 1, 2]
    values = F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)
    return values[:, 0, :, 0]


def _focal(logits: Tensor, goals: Tensor) -> Tensor:
    """Returns the focal loss of every point, of the shape of `logits`; `goals` are 0 or 1."""
    scores = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, goals, reduction="none")
    background = 1 - goals
    score_of_goal = scores * goals + (1 - scores) * background
    alpha = _FOCAL_ALPHA * goals + (1 - _FOCAL_ALPHA) * background
    focus = (1 - score_of_goal) ** _FOCAL_GAMMA
    return alpha * focus * cross_entropy


def _dice(scores: Tensor, goals: Tensor) -> Tensor:
    """Returns the dice loss `[N]` of `scores` `[N, P]` in [0, 1]; `goals` are 0 or 1."""
    shared = 2 * (scores * goals).sum(1)
    both = scores.sum(1) + goals.sum(1)
    return 1 - (shared + _DICE_SMOOTHING) / (both + _DICE_SMOOTHING)
