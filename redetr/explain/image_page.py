"""The page from image to boxes: `image.html` and the data that `image.js` draws."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from redetr.explain.attention import Explanation, Points
from redetr.explain.habits import Habits
from redetr.explain.packing import packed, picture_data
from redetr.pages.templates import render, write_page
from redetr.structures import Size

_MOST_CELLS = 1200  # of a map; larger ones are drawn coarser
_BRIGHTNESS_STEPS = 63  # of a map
_POINT_UNIT = 4096  # points are whole numbers of this part of the image's side
_LEVEL_COLORS = ("blue", "orange", "pink")  # as in canvas.js


def write_image_page(
    path: Path,
    explanation: Explanation,
    name: str,
    threshold: float,
    habits: Habits | None = None,
    loss_link: str = "",
) -> None:
    """Writes the page as a single file. `name` is the name of the image."""
    heading = f"From image to boxes: {name}"
    page = image_page(explanation, threshold, name, heading, habits, loss_link)
    write_page(path, page)


def image_page(
    explanation: Explanation,
    threshold: float,
    title: str,
    heading: str = "",
    habits: Habits | None = None,
    loss_link: str = "",
) -> str:
    """The page as HTML. `loss_link` is a link to the page on the loss, if there is one."""
    layers, queries = explanation.scores.shape
    height, width = explanation.encoder_attention.shape[:2]
    return render(
        "explain/image.html",
        title=title,
        heading=heading,
        loss_link=loss_link,
        has_masks=explanation.masks is not None,
        fast=isinstance(explanation.cross_attention, Points),
        strides=explanation.strides,
        colors=_LEVEL_COLORS,
        encoder_stride=explanation.encoder_stride,
        layers=layers,
        queries=queries,
        grid={"height": height, "width": width},
        habits=None if habits is None else _HabitSummary.of(habits),
        data=image_data(explanation, threshold, habits),
    )


def image_data(
    explanation: Explanation, threshold: float, habits: Habits | None = None
) -> dict[str, Any]:
    """The argument of `explainImage`, for JSON."""
    boxes = explanation.boxes
    picks = explanation.picks
    if picks is not None:
        starts = picks.boxes[None]
        boxes = torch.cat([starts, boxes])

    self_attention = explanation.self_attention
    self_peaks = self_attention.amax(-1)
    self_brightness = 255 * self_attention / self_peaks[..., None]
    encoder = _coarse_encoder(explanation.encoder_attention)
    data = {
        **picture_data(explanation.image, explanation.class_names),
        "threshold": threshold,
        "boxes": packed(boxes, np.float32),
        "scores": packed(explanation.scores, np.float32),
        "labels": packed(explanation.labels, np.int16),
        "self": packed(self_brightness.round(), np.uint8),
        "self_peaks": packed(self_peaks, np.float32),
        "steps": _BRIGHTNESS_STEPS,
        "encoder": _brightness(encoder),
        "encoder_peaks": packed(encoder.amax((-2, -1)), np.float32),
        "strides": explanation.strides,
    }
    data |= _cross_data(explanation)
    if picks is not None:
        data["picks"] = packed(picks.centers, np.float32)
        data["levels"] = packed(picks.level, np.uint8)
    if habits is not None:
        data |= _habit_data(habits)
    if explanation.masks is not None:
        shares = F.adaptive_avg_pool2d(explanation.masks, _coarse_size(explanation.masks))
        data["masks"] = packed((255 * shares).round(), np.uint8)
    return data


@dataclass(frozen=True)
class _HabitSummary:
    """Sentences about the habits of the queries."""

    images: int
    levels: list[list[str]]  # a row of the table for each level; none for learned queries

    @classmethod
    def of(cls, habits: Habits) -> "_HabitSummary":
        rows = []
        if habits.level is not None:
            for level in range(len(habits.strides)):
                rows.append(_level_row(habits, habits.level == level, level))
        return cls(images=len(habits.boxes), levels=rows)


def _level_row(habits: Habits, at_level: Tensor, level: int) -> list[str]:
    """How many queries start at the level, and how large their boxes are; `at_level` is bool
    `[N, Q]`."""
    num_queries = at_level.shape[1]
    best_tenth = at_level[:, : max(1, num_queries // 10)]
    widths, heights = habits.boxes[..., 2], habits.boxes[..., 3]
    sides = (widths * heights).sqrt()[at_level]
    return [
        f"{habits.strides[level]} px ({_LEVEL_COLORS[level]})",
        _percent(at_level.float().mean()),
        _percent(best_tenth.float().mean()),
        _percent(sides.median()) if len(sides) else "-",
    ]


def _percent(share: Tensor) -> str:
    return f"{100 * share:.0f}%"


def _cross_data(explanation: Explanation) -> dict[str, Any]:
    cross = explanation.cross_attention
    if isinstance(cross, Points):
        int16 = torch.iinfo(torch.int16)
        where = (_POINT_UNIT * cross.where).round()
        weights = (255 * cross.weights).round()
        return {
            "where": packed(where.clamp(int16.min, int16.max), np.int16),
            "unit": _POINT_UNIT,
            "weights": packed(weights, np.uint8),
        }
    maps = _coarse(cross.weights)
    return {"maps": _brightness(maps), "peaks": packed(maps.amax((-2, -1)), np.float32)}


def _habit_data(habits: Habits) -> dict[str, Any]:
    if habits.centers is None or habits.level is None:
        boxes = habits.boxes.clamp(0, 1)
        return {"habits": packed((255 * boxes).round(), np.uint8)}
    return {
        "habits": packed((255 * habits.centers).round(), np.uint8),
        "habit_levels": packed(habits.level, np.uint8),
    }


def _coarse_encoder(attention: Tensor) -> Tensor:
    """The encoder's attention `[h, w, h, w]`, with fewer cells on both sides."""
    height, width = attention.shape[:2]
    maps = _coarse(attention)
    rows = _centers(height, maps.shape[2])
    columns = _centers(width, maps.shape[3])
    return maps[rows][:, columns]


def _centers(size: int, count: int) -> Tensor:
    """The indices below `size` in the middle of each of `count` equal parts."""
    odd = 2 * torch.arange(count) + 1
    return odd * size // (2 * count)


def _coarse(maps: Tensor) -> Tensor:
    """Maps `[..., h, w]` with at most about `_MOST_CELLS` cells; they still sum to 1."""
    size = _coarse_size(maps)
    if size == maps.shape[-2:]:
        return maps
    pooled = F.adaptive_avg_pool2d(maps.flatten(0, -3), size)
    normalized = pooled / pooled.sum((-2, -1), keepdim=True)
    return normalized.view(*maps.shape[:-2], *size)


def _coarse_size(maps: Tensor) -> Size:
    """The size of maps `[..., h, w]` with at most about `_MOST_CELLS` cells."""
    height, width = maps.shape[-2:]
    factor = math.ceil(math.sqrt(height * width / _MOST_CELLS))
    return math.ceil(height / factor), math.ceil(width / factor)


def _brightness(maps: Tensor) -> dict[str, Any]:
    """Maps as steps of brightness, each relative to its own peak."""
    peaks = maps.amax((-2, -1), keepdim=True)
    steps = _BRIGHTNESS_STEPS * maps / peaks
    return packed(steps.round(), np.uint8)
