"""The images of a report with their objects and detections, as boxes to draw on a page, and its
poorest masks next to the true ones."""

from dataclasses import dataclass

import numpy as np
import torch

from redetr.masks import decode
from redetr.pages.drawing import class_color, draw_boxes, to_pil
from redetr.pages.images import data_uri
from redetr.report.analysis import KINDS, Boxes, Judgement
from redetr.report.masks import MaskPairs
from redetr.report.numbers import Report

_POOREST_MASKS = 12  # shown, of all checkpoints together
_MASK_PX = 240  # longer side of the image of a mask
_MARGIN = 0.25  # around an object and its detection, as a share of their longer side
_PICTURE_PX = 720  # longer side of the embedded picture
_LEAST_SCORE = 0.05  # of detections that can be shown, unless the threshold is lower
_LETTERS = 1 / 26  # height of letters, as a share of the longer side
_RIGHT = 0.7  # share of the width from which a label ends at its box


@dataclass(frozen=True)
class DrawnBox:
    """A box with its label, in pixels of the original image."""

    kind: str  # of KINDS, or missed, truth, crowd
    title: str
    label: str
    left: float
    top: float
    width: float
    height: float
    label_x: float
    label_y: float
    anchor: str  # whether the label starts or ends at label_x
    score: float | None = None  # of a detection
    finder_score: float | None = None  # of what found the object; -1 for nothing


@dataclass(frozen=True)
class Scene:
    """An image, its objects, and the detections of each checkpoint."""

    name: str  # of the image
    picture: str  # a data URI
    width: int
    height: int
    font_size: float
    truth: list[DrawnBox]
    detected: list[list[DrawnBox]]  # of each checkpoint, the best on top


def scenes(report: Report) -> list[Scene]:
    """The scenes for the images that a report shows."""
    return [_scene(report, number) for number in range(len(report.images))]


def least_score(report: Report) -> float:
    """The lowest score of the detections in the scenes."""
    thresholds = [run["threshold"] for run in report.numbers["checkpoints"]]
    return min(_LEAST_SCORE, *thresholds)


def _scene(report: Report, number: int) -> Scene:
    index = report.images[number]
    image = to_pil(report.dataset.image(index))
    width, height = image.size
    class_names = report.dataset.class_names
    painter = _Painter(index, width, height, class_names, least_score(report))
    image.thumbnail((_PICTURE_PX, _PICTURE_PX))
    return Scene(
        name=report.dataset.image_name(index),
        picture=data_uri(image),
        width=width,
        height=height,
        font_size=painter.font_size,
        truth=painter.truth(report.judged[0]),
        detected=[painter.detected(judged) for judged in report.judged],
    )


@dataclass(frozen=True)
class DrawnMasks:
    """The masks of an object and of the detection that finds it, in the part of the image around
    both."""

    name: str  # of the image
    label: str  # of the class
    score: float
    mask_iou: float
    box_iou: float
    truth: str  # a data URI
    detected_mask: str  # a data URI


def poorest_masks(report: Report, run: int) -> list[DrawnMasks]:
    """The poorest masks of a checkpoint among those whose boxes are right, poorest first."""
    pairs = report.mask_pairs[run]
    if pairs is None:
        return []
    count = min(len(pairs), _POOREST_MASKS // len(report.judged))
    return [_drawn_masks(report, run, pairs, number) for number in range(count)]


def _drawn_masks(report: Report, run: int, pairs: MaskPairs, number: int) -> DrawnMasks:
    judged = report.judged[run]
    row = int(pairs.objects[number])
    finder = int(pairs.detections[number])
    index = int(judged.objects.image[row])
    label = int(judged.objects.label[row])
    image = to_pil(report.dataset.image(index))
    boxes = np.stack([judged.objects.xyxy[row], judged.detections.xyxy[finder]])
    left, top, right, bottom = _part_around(boxes, image.size)
    part = image.crop((left, top, right, bottom))
    in_part = torch.from_numpy(boxes - [left, top, left, top]).float()
    masks = decode([pairs.true_masks[number], pairs.masks[number]], (image.height, image.width))
    masks = masks[:, top:bottom, left:right]
    drawn = []
    for i in range(2):
        picture = draw_boxes(
            part,
            in_part[i : i + 1],
            [""],
            None,
            [class_color(label)],
            within_px=_MASK_PX,
            masks=masks[i : i + 1],
        )
        drawn.append(data_uri(picture))
    return DrawnMasks(
        name=report.dataset.image_name(index),
        label=report.dataset.class_names[label],
        score=float(judged.scores[finder]),
        mask_iou=float(pairs.mask_iou[number]),
        box_iou=float(pairs.box_iou[number]),
        truth=drawn[0],
        detected_mask=drawn[1],
    )


def _part_around(boxes: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The window (left, top, right, bottom) around boxes `[N, 4]`, with a margin, inside an image
    of `size` (width, height), all in pixels."""
    left_top = boxes[:, :2].min(0)
    right_bottom = boxes[:, 2:].max(0)
    longest_side = (right_bottom - left_top).max()
    margin = _MARGIN * longest_side
    start = np.floor(left_top - margin).clip(0)
    end = np.ceil(right_bottom + margin)
    end = np.minimum(end, size)
    left, top = start.astype(int).tolist()
    right, bottom = end.astype(int).tolist()
    return left, top, right, bottom


@dataclass(frozen=True)
class _Painter:
    """Places the boxes of one image."""

    index: int  # of the image in the data set
    width: int
    height: int
    class_names: tuple[str, ...]
    least_score: float  # of detections that are drawn

    @property
    def font_size(self) -> float:
        return _LETTERS * max(self.width, self.height)

    def truth(self, judged: Judgement) -> list[DrawnBox]:
        crowds = [self._box(judged.crowds, i, "crowd") for i in self._rows(judged.crowds)]
        objects = [self._box(judged.objects, i, "truth") for i in self._rows(judged.objects)]
        return crowds + objects

    def detected(self, judged: Judgement) -> list[DrawnBox]:
        """The objects, which the page shows as missed if no shown detection found them, and the
        detections."""
        drawn = []
        finder_scores = np.append(judged.scores, -1.0)[judged.finder]
        for i in self._rows(judged.objects):
            finder_score = float(finder_scores[i])
            drawn.append(self._box(judged.objects, i, "missed", finder_score=finder_score))
        for i in reversed(self._rows(judged.detections)):
            score = float(judged.scores[i])
            if score >= self.least_score:
                kind = KINDS[judged.kinds[i]]
                drawn.append(self._box(judged.detections, i, kind, score=score))
        return drawn

    def _rows(self, boxes: Boxes) -> list[int]:
        return np.flatnonzero(boxes.image == self.index).tolist()

    def _box(
        self,
        boxes: Boxes,
        i: int,
        kind: str,
        score: float | None = None,
        finder_score: float | None = None,
    ) -> DrawnBox:
        left, top, right, bottom = boxes.xyxy[i].tolist()
        name = self.class_names[boxes.label[i]]
        tag = "" if score is None else f"{100 * score:.0f}%"
        with_name = f"{name} {tag}".strip()
        ends_at_box = left > _RIGHT * self.width
        return DrawnBox(
            kind=kind,
            title=f"{with_name}: {kind}",
            label=with_name if len(self.class_names) > 1 else tag,  # a single class needs no name
            left=left,
            top=top,
            width=max(0, right - left),
            height=max(0, bottom - top),
            label_x=right if ends_at_box else left,
            label_y=max(top, 1.2 * self.font_size),  # stays in the image
            anchor="end" if ends_at_box else "start",
            score=score,
            finder_score=finder_score,
        )
