"""Finds the faults of masks: of each mask alone, and compared with its image and its box.

If masks are trained on, an invalid mask is an error. If only boxes matter, it is a warning, and the
mask is left out. An object without a mask among others that have one is learned by its box alone.
"""

from typing import TYPE_CHECKING

import hotcoco.mask
import numpy as np

from redetr.data.contradictions import cross_themselves, outline_agrees, outline_differs
from redetr.data.crossing import clip_masks, leaves_image
from redetr.data.mask_columns import (
    LARGEST_SIDE_PX,
    MOST_PIXELS,
    MaskBuilder,
    MaskColumns,
    may_have_masks,
)
from redetr.structures import Size
from redetr.wording import counted

if TYPE_CHECKING:
    from redetr.data.annotations import Images, Objects
    from redetr.data.faults import Rows, Severity

# COCO's own train2017 has 2 boxes without height among 860,001, and a few polygons that are smaller
# than a pixel. So few are left out; more are an error.
FEW = 1e-4
# The codes of faults with which a mask is left out if it is not trained on.
MASKS_LEFT_OUT = ("mask-invalid", "mask-size", "mask-outside", "mask-empty")
_MANY = 10  # from here on, wrong boxes are a systematic fault
_SHARE_OF_BOX = 1 / 200  # a mask that fills less of its box should be checked
_MOST_POINTS = 500  # of a polygon that is checked for crossing sides, in quadratic time
_BLOCK = 2**18  # points that are checked at a time
_BATCH = 2**10  # masks that are measured at a time


def judge_mask_sizes(objects: "Objects", images: "Images", outlines: np.ndarray) -> None:
    """Adds faults for masks that differ in size from their image. They are errors if the box was
    computed from the mask, and is therefore wrong too."""
    stated = objects.mask_sizes
    if stated is None or not len(images.sizes):
        return
    sizes = images.sizes[objects.image]
    differs = _sizes_differ(objects, images)
    same_box = outline_agrees(objects.corners, outlines)

    def size(i: int) -> str:
        height, width = stated[i]
        image_height, image_width = sizes[i]
        image = images.called(objects.image[i])
        return f"its mask is {width}x{height} px, its image {image} {image_width}x{image_height} px"

    remedy = "export the annotations of this image again"
    objects.rows.fault("mask-size", differs & same_box, size, remedy)
    severity = objects.masks.severity if objects.masks is not None else "warning"
    if severity == "warning":
        remedy += ", or check on the page of check --report whether its box is right"
    objects.rows.fault("mask-size", differs & ~same_box, size, remedy, severity)


def _sizes_differ(objects: "Objects", images: "Images") -> np.ndarray:
    """Which objects have a mask that differs in size from their image, bool `[A]`."""
    stated = objects.mask_sizes
    if stated is None or not len(images.sizes):
        return np.zeros(len(objects.image), bool)
    sizes = images.sizes[objects.image]
    return (stated > 0).all(1) & (stated != sizes).any(1)


def judge_outlines(
    objects: "Objects", images: "Images", boxes: np.ndarray, is_judged: np.ndarray
) -> None:
    """Adds a fault for boxes, xyxy `[A, 4]`, that clearly differ from those around their outlines,
    of the objects that `is_judged`, bool `[A]`, marks. It is an error if most of many differ."""
    outlines = objects.outlines
    if outlines is None:
        return
    differs = is_judged & outline_differs(boxes, outlines)

    def text(i: int) -> str:
        span = outlines[i].round(2).tolist()
        return f"{objects.quoted(i)} is not the box around its outline, which is {span} as xyxy"

    severity: Severity = "warning"
    remedy = "only the box is learned: check on the page of check --report whether it is right"
    if objects.masks is not None and objects.masks.for_training:
        severity = "error"
        remedy = "correct the one that is wrong (see the page of check --report)"
    comparable = is_judged & ~np.isnan(outlines).any(1) & ~_sizes_differ(objects, images)
    num_differing = int((differs & comparable).sum())
    if num_differing >= _MANY and num_differing > comparable.sum() / 2:
        severity = "error"
        remedy = (
            "most boxes contradict their outlines: export both again, or leave out the wrong one"
        )
    objects.rows.fault("outline-differs", differs, text, remedy, severity)


def judge_masks(objects: "Objects", images: "Images", boxes: np.ndarray) -> MaskColumns | None:
    """The valid masks of the objects; None if masks are not read. Adds the faults of all masks.
    Areas that the source does not state become those of the masks.

    `boxes` are the boxes of the objects, clipped to their images, xyxy `[A, 4]`.
    """
    builder = objects.masks
    if builder is None:
        return None
    rows = objects.rows
    masks = clip_masks(builder.columns(), objects, images)
    _report_problems(rows, builder)
    has_problem = np.isin(np.arange(len(masks)), list(builder.problems))
    sound = masks.has_mask & rows.good & ~has_problem & ~_sizes_differ(objects, images)
    _report_missing(rows, builder, masks, sound | has_problem | objects.iscrowd)
    sizes = np.concatenate([images.sizes, [[1, 1]]])[objects.image]  # the last: no image
    sound &= ~_report_large(rows, builder, sizes, sound)
    sound &= ~_report_outside(rows, builder, masks, sizes, sound)
    areas = _areas(masks, sizes, sound)
    is_empty = sound & (areas == 0)
    _report_empty(rows, builder, is_empty, int(sound.sum()))
    sound &= ~is_empty
    if builder.for_training:
        judge_outlines(objects, images, boxes, sound & ~objects.iscrowd)
    _report_thin(rows, areas, boxes, sound & ~objects.iscrowd)
    _report_crossing(rows, masks, sound)
    has_no_area = sound & (objects.area < 0)
    objects.area = np.where(has_no_area, areas, objects.area).astype(np.float32)
    return masks.only(sound)


def _report_problems(rows: "Rows", builder: MaskBuilder) -> None:
    """Adds the faults of values that are not valid masks."""
    problems = builder.problems
    remedies = {problem.remedy: problem.code for problem in problems.values()}
    for remedy, code in remedies.items():
        bad_rows = [row for row, problem in problems.items() if problem.remedy == remedy]
        bad = np.zeros(len(rows.good), bool)
        bad[bad_rows] = True
        rows.fault(code, bad, lambda i: problems[i].text, remedy, builder.severity)


def _report_missing(
    rows: "Rows", builder: MaskBuilder, masks: MaskColumns, is_there: np.ndarray
) -> None:
    """Adds a fault for objects without a mask among others that have one. It is no error: their
    boxes are learned, and mask AP, which would count them as missed, is not measured."""
    missing = rows.good & ~is_there
    with_mask = int(masks.has_mask.sum())
    if not with_mask:
        return
    text = f"has a box but no mask, as {int(missing.sum()):,} of {counted(len(missing), 'object')}"
    remedy = "draw its outline, or train it by its box alone"
    severity: Severity = "note"
    if builder.for_training:
        severity = "warning"
        remedy = "only its box is used, and masks of this split are not measured: draw its outline"
    rows.fault("mask-missing", missing, lambda i: text, remedy, severity)


def _report_large(
    rows: "Rows", builder: MaskBuilder, sizes: np.ndarray, sound: np.ndarray
) -> np.ndarray:
    """Adds a fault for masks in images that are too large for them, and returns which objects have
    them, bool `[A]`."""
    is_large = sound & ~may_have_masks(sizes)

    def text(i: int) -> str:
        height, width = sizes[i].tolist()
        limits = f"{LARGEST_SIDE_PX:,} px a side and {MOST_PIXELS:,} px in all"
        return f"its image is {width}x{height} px, and masks have at most {limits}"

    remedy = "correct the size of the image, or cut the image into smaller ones"
    rows.fault("mask-invalid", is_large, text, remedy, builder.severity)
    return is_large


def _report_outside(
    rows: "Rows", builder: MaskBuilder, masks: MaskColumns, sizes: np.ndarray, sound: np.ndarray
) -> np.ndarray:
    """Adds a fault for polygons that exceed their images, and returns which objects have them, bool
    `[A]`."""
    outside = np.zeros(len(masks), bool)
    with_polygons = np.flatnonzero(masks.has_polygons)
    if not len(with_polygons):
        return outside
    starts = masks.first_point[with_polygons]
    low = np.fmin.reduceat(masks.points, starts)  # NaN between polygons does not count
    high = np.fmax.reduceat(masks.points, starts)
    limits = sizes[with_polygons, ::-1]  # width, height
    outside[with_polygons] = leaves_image(low, high, limits)
    outside &= sound
    row_of = {int(row): number for number, row in enumerate(with_polygons) if outside[row]}

    def text(i: int) -> str:
        number = row_of[i]
        span = np.concatenate([low[number], high[number]]).round(2).tolist()
        height, width = sizes[i].tolist()
        return f"its polygons span {span} as xyxy, in an image of {width}x{height} px"

    remedy = "was the image resized? draw the outline again, or clip it at the border"
    rows.fault("mask-outside", outside, text, remedy, builder.severity)
    return outside


def _areas(masks: MaskColumns, sizes: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """The number of pixels of each mask that is `sound`, int64 `[A]`; -1 for others."""
    areas = np.full(len(masks), -1, np.int64)
    rows = np.flatnonzero(sound)
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]
        rles = []
        for row in batch.tolist():
            height, width = sizes[row].tolist()
            size: Size = (height, width)
            rles.append({"size": [height, width], "counts": masks.rle(row, size)})
        areas[batch] = hotcoco.mask.area(rles)
    return areas


def _report_empty(rows: "Rows", builder: MaskBuilder, is_empty: np.ndarray, count: int) -> None:
    """Adds a fault for empty masks. If they are few, their objects are left out."""
    are_few = is_empty.sum() <= FEW * count
    text = "its mask covers no pixel"
    if not builder.for_training or not are_few:
        remedy = "draw it again, or delete the object"
        rows.fault("mask-empty", is_empty, lambda i: text, remedy, builder.severity)
        return
    text += f", and it is left out, as one of {int(is_empty.sum()):,} in {counted(count, 'object')}"
    rows.fault("mask-empty", is_empty, lambda i: text, "delete it", "warning")
    rows.good &= ~is_empty


def _report_thin(rows: "Rows", areas: np.ndarray, boxes: np.ndarray, sound: np.ndarray) -> None:
    """Adds a warning for masks that fill hardly anything of their boxes."""
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    is_thin = sound & (areas < _SHARE_OF_BOX * box_areas)

    def text(i: int) -> str:
        return f"its mask has {areas[i]:,} px, its box {box_areas[i]:,.0f}"

    remedy = "check this on the page of check --report"
    rows.fault("mask-thin", is_thin, text, remedy, "warning")


def _report_crossing(rows: "Rows", masks: MaskColumns, sound: np.ndarray) -> None:
    """Adds a warning for polygons whose sides cross."""
    crossing = sound & _crossing(masks)
    rows.fault(
        "mask-crossing",
        crossing,
        lambda i: "its outline crosses itself: what it encloses twice is not part of the mask",
        "draw it again, with its points in order",
        "warning",
    )


def _crossing(masks: MaskColumns) -> np.ndarray:
    """Which objects have a polygon of up to 500 points whose sides cross, bool `[A]`."""
    crossing = np.zeros(len(masks), bool)
    if not len(masks.points):
        return crossing
    is_point = ~np.isnan(masks.points[:, 0])  # [P], False for the gaps between polygons
    first_of_object = np.zeros(len(masks.points) + 1, bool)
    first_of_object[masks.first_point] = True
    after_gap = np.append(True, ~is_point[:-1])
    before_gap = np.append(~is_point[1:], True)
    starts = np.flatnonzero(is_point & (first_of_object[:-1] | after_gap))
    ends = np.flatnonzero(is_point & (first_of_object[1:] | before_gap)) + 1
    lengths = ends - starts  # [polygons], as are `starts`, `ends` and `owners`
    owners = np.searchsorted(masks.first_point, starts, side="right") - 1
    for length in np.unique(lengths).tolist():
        if not 3 < length <= _MOST_POINTS:
            continue
        of_length = np.flatnonzero(lengths == length)
        step = max(1, _BLOCK // length)
        for first in range(0, len(of_length), step):
            polygons = of_length[first : first + step]
            rows = starts[polygons][:, None] + np.arange(length)
            points = masks.points[rows]  # [polygons, length, 2]
            crossing_polygons = polygons[cross_themselves(points)]
            crossing[owners[crossing_polygons]] = True
    return crossing
