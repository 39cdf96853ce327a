"""Faults of the boxes of a data set, beyond those that its readers refuse."""

from collections.abc import Mapping

import numpy as np

from redetr.choices import ImageSize, size_text
from redetr.data.annotations import Annotations, Split, image_reference
from redetr.data.contradictions import are_fractions, from_corners, look_like_corners
from redetr.data.faults import Fault, Severity, listed_locations
from redetr.doctor.images import faults_of
from redetr.doctor.locations import location_of
from redetr.doctor.plan import Plan, sides_of
from redetr.doctor.splits import of_split
from redetr.wording import counted

# A val split measures little with fewer images, or with a smaller share of those of train.
_FEW_IMAGES = 10
_SMALL_SHARE = 0.02
_ENOUGH_IMAGES = 500  # whatever the share
_SMALL_PX = 8  # the finest stride of the fast models: smaller objects fall between two positions
_MANY_SMALL, _FEW_SMALL = 0.25, 0.1  # shares of the boxes
_SAME_IOU = 0.99
_SAME_EDGE = 0.02  # of the width: if left edges are farther apart, the IoU is lower than that
_MANY_IGNORED = 0.8  # share of the objects; no data set ignores so many on purpose
_WHOLE = 0.98  # of each side of an image
_NEARLY_ALL = 0.9
_REACHED = 2 / 3  # of the sides of images by boxes that were drawn on smaller copies, at most
_ANYWHERE = 50  # so many boxes are in all parts of their images, if the images are the right ones
_SURE = 10  # boxes all on one side: by chance in one of 2**10 data sets


def is_sound(annotations: Annotations) -> bool:
    """Whether the reader left out nothing."""
    return not any(fault.severity == "error" for fault in annotations.faults)


def box_faults(annotations: Annotations) -> list[Fault]:
    """Faults for boxes in another format than that of the file, for duplicate boxes, and for images
    without boxes."""
    faults = [*_formats(annotations), *_boxes_twice(annotations)]
    if not is_sound(annotations):  # the reader may have left out what seems to be missing
        return faults
    if annotations.iscrowd.all():  # also if there is none
        return [*faults, _no_objects(annotations)]
    faults += _ignored(annotations)
    faults += _whole_images(annotations)
    counts = np.diff(annotations.first)
    return faults + faults_of(
        counts == 0,
        "note",
        "image-empty",
        annotations.source,
        lambda i: (image_reference(annotations, i), "has no objects"),
        "nothing to do if none is visible: models learn from empty images as well",
    )


def _no_objects(a: Annotations) -> Fault:
    """The fault for a split with nothing to learn or to measure."""
    count = len(a.iscrowd)
    text = f"no object in {counted(len(a), 'image')}"
    remedy = "annotate, or export again"
    if count:
        objects = counted(count, "object")
        text = f"{objects}, all of them crowds or difficult, which training and evaluation ignore"
        remedy = "write iscrowd (ignore, difficult) 0 for single objects"
    return Fault("error", "no-objects", a.source, "", text, remedy)


def _ignored(a: Annotations) -> list[Fault]:
    """The number of ignored objects; a warning if most are ignored."""
    count = int(a.iscrowd.sum())
    if not count:
        return []
    share = count / len(a.iscrowd)
    severity: Severity = "warning" if share > _MANY_IGNORED else "note"
    objects = counted(len(a.iscrowd), "object")
    text = (
        f"{count:,} of {objects} ({share:.0%}) are marked as crowds or difficult, which training "
        "and evaluation ignore"
    )
    remedy = "write iscrowd (ignore, difficult) 0 for single objects"
    file, where = location_of(a, int(a.iscrowd.argmax()))
    return [Fault(severity, "object-ignored", file, where, text, remedy)]


def _whole_images(a: Annotations) -> list[Fault]:
    """A warning if nearly all boxes cover the whole image, as in data made for classification."""
    sizes = a.sizes[a.image_of(), ::-1]  # [A, 2], width and height
    sides = a.boxes[:, 2:] - a.boxes[:, :2]
    is_whole = (sides >= _WHOLE * sizes).all(1)
    if len(is_whole) < _SURE or is_whole.mean() < _NEARLY_ALL:
        return []
    text = f"{is_whole.sum()} of {counted(len(is_whole), 'box', 'boxes')} cover the whole image"
    remedy = "draw boxes around the objects: these do not show where they are"
    return [Fault("warning", "box-whole", a.source, "", text, remedy)]


def _formats(a: Annotations) -> list[Fault]:
    """Faults for boxes that make more sense in another format."""
    if not len(a.boxes):
        return []
    sizes = a.sizes[a.image_of(), ::-1]  # [A, 2], width and height
    outside = sum(fault.count for fault in a.faults if fault.code == "box-outside")
    faults = _fractions(a, sizes)
    if not any(fault.code.startswith("format-") for fault in a.faults):  # reported by the reader
        faults += _two_corners(a, sizes, outside) or _lopsided(a, sizes, outside > 0)
    return faults or _upper_left(a, sizes)


def _upper_left(a: Annotations, sizes: np.ndarray) -> list[Fault]:
    """A warning if many boxes in pixels begin at the upper left corners of their images, and none
    of them reaches the other sides: they may be those of smaller copies."""
    if a.box_format == "cxcywh" or len(a.boxes) < _ANYWHERE:
        return []
    nearest = (a.boxes[:, :2] / sizes).min(0)
    farthest = (a.boxes[:, 2:] / sizes).max(0)
    if (nearest > 0.1).any() or (farthest > _REACHED).any():
        return []
    if len(np.unique(a.boxes, axis=0)) < _ANYWHERE:  # one box many times is nowhere else
        return []
    width, height = farthest.tolist()
    text = (
        f"all {len(a.boxes):,} boxes lie in the upper left {width:.0%} x {height:.0%} of their "
        "images: were they drawn on smaller copies?"
    )
    remedy = "look at the page of --report: restore the annotated images, or rescale boxes"
    return [Fault("warning", "boxes-scaled", a.source, "", text, remedy)]


def _fractions(a: Annotations, sizes: np.ndarray) -> list[Fault]:
    """Boxes given as fractions of the image."""
    fractions = are_fractions(a.boxes, sizes)
    if not fractions.any():
        return []
    file, where = location_of(a, int(fractions.argmax()))
    boxes = counted(len(fractions), "box", "boxes")
    text = (
        f"boxes look like fractions of the image: {fractions.sum():,} of {boxes} in the first pixel"
    )
    remedy = "multiply x and width by the width of the image, y and height by its height"
    return [Fault("error", "format-fractions", file, where, text, remedy)]


def _two_corners(a: Annotations, sizes: np.ndarray, outside: int) -> list[Fault]:
    """Boxes given as two corners where the format has width and height: an error if many leave
    their image, and the others are boxes when read that way as well."""
    if a.box_format == "xyxy":
        return []
    numbers = from_corners(a.boxes.astype(np.float64), a.box_format)
    corners = np.all(numbers[:, 2:] > numbers[:, :2], axis=1)
    many_outside = outside > 0.05 * len(a.boxes)
    remedy = _CORNER_REMEDIES[a.box_format]
    if many_outside and corners.mean() > 0.95:
        text = (
            f"{outside} boxes leave their image, {corners.sum()} of the other {len(numbers)} fit "
            "as xyxy"
        )
        return [Fault("error", "format-xyxy", a.source, "", text, remedy)]
    if not look_like_corners(numbers, sizes):
        return []
    text = (
        f"two corners given as {a.box_format}? The last two numbers are always larger than the "
        "first two and change with them, "
        f"in {counted(len(numbers), 'box', 'boxes')}"
    )
    return [Fault("warning", "format-xyxy", a.source, "", text, remedy)]


_CORNER_REMEDIES = {
    "xywh": "write [x, y, width, height]: subtract x and y from the last two numbers",
    "cxcywh": "write class cx cy w h: the middle of the two corners, and their difference",
}
# The meaning of boxes that are nearer to the right and lower border, or to the other borders, than
# half their size, by box format.
_MOVED = {
    ("xywh", "right or lower"): (
        "the centre instead of the corner",
        "write the upper left one: x - width / 2",
    ),
    ("cxcywh", "left or upper"): (
        "the corner instead of the centre",
        "write the centre: x + width / 2",
    ),
    ("cxcywh", "right or lower"): (
        "the lower right corner instead of the centre",
        "write the centre: x - width / 2",
    ),
    ("xyxy", "right or lower"): (
        "boxes moved by half their size",
        "write xmin ymin xmax ymax: the upper left and the lower right corner",
    ),
}


def _lopsided(a: Annotations, sizes: np.ndarray, leaving: bool) -> list[Fault]:
    """Faults for boxes that are shifted by half their size: many are near the right and lower
    border, and none near the others."""
    starts = a.boxes[:, :2]
    ends = a.boxes[:, 2:]
    half = (ends - starts) / 2 - 1
    near_start = starts < half
    near_end = sizes - ends < half
    counts_start = (near_start & ~near_end).sum(0)  # over x and y
    counts_end = (near_end & ~near_start).sum(0)
    side = ""
    if _is_one_sided(counts_end, counts_start, leaving):
        side = "right or lower"
    elif _is_one_sided(counts_start, counts_end, leaving):
        side = "left or upper"
    if (a.box_format, side) not in _MOVED:
        return []
    guess, remedy = _MOVED[a.box_format, side]
    count = int(counts_start.sum() + counts_end.sum())
    chance = f"if boxes were placed at random, 1 in {2 ** min(count, 20):,}"
    observation = (
        f"{count} boxes are nearer to the {side} border than half their size, and none to the "
        "opposite border"
    )
    text = f"{guess}? {observation} ({chance})"
    return [Fault("warning", "format-center", a.source, "", text, remedy)]


def _is_one_sided(near: np.ndarray, opposite: np.ndarray, leaving: bool) -> bool:
    """Whether many boxes are near these borders, counted over x and y, and none near the opposite
    ones."""
    # Objects that stand on the ground are near the lower border, so only x counts, in which both
    # borders are alike. If boxes leave their images, y counts as well.
    count = near.sum() if leaving else near[0]
    return bool(count >= _SURE and not opposite.any())


def _boxes_twice(a: Annotations) -> list[Fault]:
    """Faults for boxes of one class in one image that are equal up to a pixel."""
    originals = _same_boxes(a)
    copies = np.flatnonzero(originals >= 0)
    if not len(copies):
        return []
    i = int(copies[0])
    file, where = location_of(a, i)
    text = f"is the same box as {a.object_kind} {a.object_ids[originals[i]]}"
    remedy = "delete one: otherwise the model has to detect the object twice"
    items = listed_locations(location_of(a, copy) for copy in copies.tolist())
    return [Fault("warning", "box-twice", file, where, text, remedy, len(copies), items)]


def _same_boxes(a: Annotations) -> np.ndarray:
    """For each box, another box that is equal, or -1 if there is none, int64 `[A]`.

    If boxes are sorted by image, class and left edge, equal boxes are close to each other. So each
    is compared with those that follow, as long as their left edges may be equal.
    """
    image = a.image_of()
    x1, y1, x2, y2 = a.boxes.T
    order = np.lexsort((x1, a.labels, image))
    order = order[~a.iscrowd[order]]
    original = np.full(len(a.boxes), -1)
    active = np.arange(len(order) - 1)
    lag = 1
    while len(active):
        i = order[active]
        j = order[active + lag]
        same_image = image[i] == image[j]
        same_class = a.labels[i] == a.labels[j]
        same_edge = x1[j] - x1[i] <= _SAME_EDGE * (x2 - x1)[i]
        near = same_image & same_class & same_edge
        active = active[near]
        i = i[near]
        j = j[near]
        width = np.minimum(x2[i], x2[j]) - np.maximum(x1[i], x1[j])
        height = np.minimum(y2[i], y2[j]) - np.maximum(y1[i], y1[j])
        shared = width.clip(0) * height.clip(0)
        areas = (x2 - x1) * (y2 - y1)
        union = areas[i] + areas[j] - shared
        same = shared > _SAME_IOU * union
        original[j[same]] = i[same]
        lag += 1
        active = active[active + lag < len(order)]
    return original


def plan_faults(splits: Mapping[Split, Annotations], plan: Plan) -> list[Fault]:
    """Faults of data that does not suit the model and its image size, or of a tiny val split."""
    faults = []
    for split, annotations in splits.items():
        trains_on_crops = split == "train" and plan.config.augment == "aerial"
        if not trains_on_crops:
            crowded = _crowded(annotations, plan.num_queries)
            faults += of_split(crowded, split, splits)
    train = splits.get("train")
    val = splits.get("val")
    if train is None:
        return faults
    faults += _small_objects(train, plan)
    if val is not None:
        faults += _small_val(train, val)
    return faults


def _small_val(train: Annotations, val: Annotations) -> list[Fault]:
    share = min(_SMALL_SHARE * len(train), _ENOUGH_IMAGES)
    if len(val) >= max(_FEW_IMAGES, share):
        return []
    images = counted(len(val), "image")
    text = f"val has {images}, train {len(train):,}: AP will jump from one evaluation to the next"
    remedy = "hold out 10-20% of the images"
    if len(val) >= 0.1 * (len(train) + len(val)):  # already held out
        remedy = "annotate more images: a larger val split would take too many from training"
    return [Fault("warning", "val-small", val.source, "", text, remedy)]


def _crowded(a: Annotations, num_queries: int) -> list[Fault]:
    """Images with more objects than the model has queries."""
    counts = a.object_counts()

    def describe(i: int) -> tuple[str, str]:
        queries = counted(num_queries, "query", "queries")
        text = f"holds {counted(counts[i], 'object')}, but the model has only {queries}"
        return image_reference(a, i), text

    most = counts.max(initial=0)
    remedy = f"use --num-queries {most}, or cut the images into tiles"
    return faults_of(counts > num_queries, "warning", "image-crowded", a.source, describe, remedy)


def _small_objects(train: Annotations, plan: Plan) -> list[Fault]:
    """A fault if many boxes are smaller than the stride at the training size, with a sufficient
    size as the remedy."""
    size = plan.config.image_size
    small = plan.shorter_sides(train, size) < _SMALL_PX
    if not len(small) or small.mean() <= _MANY_SMALL:
        return []
    remedy = "cut the images into tiles, or use images of a higher resolution"
    for factor in (1.5, 2, 3, 4):
        enlarged = tuple(round(side * factor / 32) * 32 for side in sides_of(size))
        larger: ImageSize = enlarged[0] if isinstance(size, int) else (enlarged[0], enlarged[1])
        share = (plan.shorter_sides(train, larger) < _SMALL_PX).mean()
        if share < _FEW_SMALL:
            remedy = (
                f"train at --image-size {size_text(larger)} (then {share:.0%}), or cut the images "
                "into tiles"
            )
            break
    text = (
        f"{small.mean():.0%} of the boxes are under {_SMALL_PX} px when the model sees images at "
        f"{size_text(size)} px"
    )
    count = int(small.sum())
    return [Fault("warning", "object-small", train.source, "", text, remedy, count)]
