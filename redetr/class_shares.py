"""The COCO numbers of detections that lie on many ranks. Classes do not depend on each other: each
rank evaluates its share of them, a few at a time, so that neither time nor memory is spent twice.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray

from redetr.distributed import Dist
from redetr.errors import DivergedError
from redetr.metrics import (
    CocoResult,
    GroundTruth,
    Measured,
    Tables,
    check_detections,
    coco_evaluation,
    result_of_tables,
    tables_of,
    tables_without_objects,
)
from redetr.structures import DatasetDetections
from redetr.truth import TruthObjects

_AT_ONCE = 400_000  # detections that are evaluated together; hotcoco takes some 400 bytes for each
_MASKS_AT_ONCE = 20_000  # of all classes of a group; hotcoco and Python take some kB for each
_BEST = 100  # of a class in an image, as in COCO

# A detection on its way to another rank; float64 holds every smaller type exactly. Masks follow it,
# the bytes of one after those of the other.
_ROW = np.dtype(
    [("image", "i8"), ("label", "i8"), ("score", "f8"), ("box", "f8", (4,)), ("mask_bytes", "i8")]
)


def shared_metrics(objects: TruthObjects, share: DatasetDetections, dist: Dist) -> CocoResult:
    """The numbers of `coco_metrics`, the same on each rank and for any number of ranks; `share` are
    the detections of this one, with all of their images. Errors as there. Communicates.
    """
    _check_everywhere(objects, share, dist)
    if objects.masks is None:
        share = replace(share, masks=None)
    mine = to_ranks(share, share.labels % dist.world_size, dist)
    boxes_alone = replace(mine, masks=None)
    result = _measure(replace(objects, masks=None), boxes_alone, "bbox", dist)
    if mine.masks is None:
        return result
    return replace(result, masks=_measure(objects, mine, "segm", dist))


def _measure(
    objects: TruthObjects, mine: DatasetDetections, measured: Measured, dist: Dist
) -> CocoResult:
    """The numbers from overlaps of boxes or masks; `mine` are the detections of this rank's
    classes. Communicates."""
    num_classes = len(objects.class_names)
    tables_of_shards: list[tuple[NDArray[np.int64], Tables]] = []
    for classes in _shards(mine, num_classes, dist):
        tables_of_shards.append((classes, _tables(objects, mine, classes, measured)))
    everything = tables_without_objects(num_classes, np.zeros(0))
    for classes, tables in dist.gather(tables_of_shards):
        everything.precision[:, :, classes] = tables.precision
        everything.recall[:, classes] = tables.recall
        everything.by_score[:] += tables.by_score
    return result_of_tables(objects.class_names, objects.counts(), everything)


def to_ranks(
    detections: DatasetDetections, ranks: NDArray[np.int64], dist: Dist
) -> DatasetDetections:
    """The detections that all ranks send to this one; `ranks` has the receivers. Communicates."""
    if dist.world_size == 1:
        return detections
    all_rows = []
    all_masks = []
    for rank in range(dist.world_size):
        part = detections.keep(np.flatnonzero(ranks == rank))
        part_masks = part.masks or []
        rows = np.zeros(len(part), _ROW)
        rows["image"] = part.image_index
        rows["label"] = part.labels
        rows["score"] = part.scores
        rows["box"] = part.boxes
        if part_masks:
            rows["mask_bytes"] = [len(mask) for mask in part_masks]
        all_rows.append(rows)
        all_masks.append(np.frombuffer(bytearray(b"".join(part_masks)), np.uint8))
    received = np.concatenate(dist.exchange(all_rows))
    masks = None
    if any(dist.gather([detections.masks is not None])):  # a rank without images does not know
        joined = np.concatenate(dist.exchange(all_masks)).tobytes()
        masks = _cut(joined, received["mask_bytes"])
    return DatasetDetections(
        image_index=received["image"],
        labels=received["label"],
        scores=received["score"],
        boxes=received["box"],
        masks=masks,
    )


def _cut(joined: bytes, lengths: NDArray[np.int64]) -> list[bytes]:
    """Parts of these lengths, which stand one after the other."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    return [joined[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def to_main(detections: DatasetDetections, dist: Dist) -> DatasetDetections:
    """The detections of all ranks on rank 0, none on the others. Communicates."""
    return to_ranks(detections, np.zeros(len(detections), np.int64), dist)


def _check_everywhere(objects: TruthObjects, share: DatasetDetections, dist: Dist) -> None:
    """Raises the error of the first rank that has one, on every rank."""
    error: DivergedError | None = None
    try:
        check_detections(objects.image_ids, len(objects.class_names), share)
    except DivergedError as reason:
        error = reason
    dist.raise_any(error)


def _shards(
    detections: DatasetDetections, num_classes: int, dist: Dist
) -> Iterator[NDArray[np.int64]]:
    """The classes of this rank in groups of not many more detections than `_AT_ONCE`."""
    counts = np.bincount(detections.labels, minlength=num_classes)
    group: list[int] = []
    in_group = 0
    for label in range(dist.rank, num_classes, dist.world_size):
        if group and in_group + counts[label] > _AT_ONCE:
            yield np.array(group)
            group = []
            in_group = 0
        group.append(label)
        in_group += int(counts[label])
    if group:
        yield np.array(group)


def _tables(
    objects: TruthObjects,
    detections: DatasetDetections,
    classes: NDArray[np.int64],
    measured: Measured,
) -> Tables:
    """The tables of these classes: of the images that hold an object or a detection of them."""
    new_label = np.full(len(objects.class_names), -1)
    new_label[classes] = np.arange(len(classes))
    rows = np.flatnonzero(new_label[objects.labels] >= 0)
    part = detections.keep(np.flatnonzero(new_label[detections.labels] >= 0))
    part = part.keep(_best(part))
    images = np.union1d(objects.image[rows], part.image_index)
    if not len(rows):  # then COCO leaves the classes at -1
        return tables_without_objects(len(classes), part.scores)
    masks, image_sizes = None, None
    if objects.masks is not None and objects.image_sizes is not None:
        masks = [objects.masks[row] for row in rows.tolist()]
        image_sizes = objects.image_sizes[images]
    truth = TruthObjects(
        image_ids=objects.image_ids[images],
        class_names=tuple(objects.class_names[label] for label in classes),
        image=np.searchsorted(images, objects.image[rows]),
        labels=new_label[objects.labels[rows]],
        boxes=objects.boxes[rows],
        area=objects.area[rows],
        iscrowd=objects.iscrowd[rows],
        masks=masks,
        image_sizes=image_sizes,
    )
    relabelled = replace(
        part,
        image_index=np.searchsorted(images, part.image_index),
        labels=new_label[part.labels],
    )
    if measured == "segm":
        return _mask_tables(truth, relabelled)
    return tables_of(coco_evaluation(GroundTruth.from_objects(truth), relabelled))


def _mask_tables(objects: TruthObjects, detections: DatasetDetections) -> Tables:
    """The tables of masks, a few images at a time: of these, hotcoco keeps scores and matches."""
    categories = [{"id": label, "name": name} for label, name in enumerate(objects.class_names)]
    streaming = hotcoco.StreamingEval(categories, "segm")
    object_rows = _rows_by_image(objects.image, len(objects.image_ids))
    detection_rows = _rows_by_image(detections.image_index, len(objects.image_ids))
    in_order = objects.image_ids.argsort(kind="stable")  # which breaks ties in score
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, image in enumerate(in_order.tolist()):
        images.append({"id": number})
        annotations += _object_entries(objects, object_rows[image], number)
        results += _detection_entries(objects, detections, detection_rows[image], number)
        if len(results) > _MASKS_AT_ONCE or number == len(in_order) - 1:
            streaming.update(images, annotations, results)
            images, annotations, results = [], [], []
    evaluation = streaming.finalize()
    evaluation.accumulate()
    return tables_of(evaluation)


def _rows_by_image(image: NDArray[np.int64], num_images: int) -> list[NDArray[np.int64]]:
    """The rows of each image, in their order."""
    order = image.argsort(kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))


def _object_entries(
    objects: TruthObjects, rows: NDArray[np.int64], image_id: int
) -> list[dict[str, Any]]:
    """Objects of an image as COCO's annotations."""
    assert objects.masks is not None and objects.image_sizes is not None
    entries = []
    for row in rows.tolist():
        size = objects.image_sizes[objects.image[row]].tolist()
        entry = {
            "id": row + 1,
            "image_id": image_id,
            "category_id": int(objects.labels[row]),
            "bbox": [0, 0, 0, 0],  # of no importance
            "area": float(objects.area[row]),
            "iscrowd": int(objects.iscrowd[row]),
            "segmentation": {"size": size, "counts": objects.masks[row]},
        }
        entries.append(entry)
    return entries


def _detection_entries(
    objects: TruthObjects, detections: DatasetDetections, rows: NDArray[np.int64], image_id: int
) -> list[dict[str, Any]]:
    """Detections of an image as COCO's results without boxes: their area is that of the mask."""
    assert detections.masks is not None and objects.image_sizes is not None
    entries = []
    for row in rows.tolist():
        size = objects.image_sizes[detections.image_index[row]].tolist()
        entry = {
            "image_id": image_id,
            "category_id": int(detections.labels[row]),
            "score": float(detections.scores[row]),
            "segmentation": {"size": size, "counts": detections.masks[row]},
        }
        entries.append(entry)
    return entries


def _best(detections: DatasetDetections) -> NDArray[np.bool_]:
    """Which detections are among the best of their class in their image, bool `[M]`; of equal
    ones, the first."""
    order = np.lexsort((-detections.scores, detections.labels, detections.image_index))
    images = detections.image_index[order]
    labels = detections.labels[order]
    other_image = images[1:] != images[:-1]
    other_label = labels[1:] != labels[:-1]
    is_first = np.ones(len(order), bool)  # of a class in an image
    is_first[1:] = other_image | other_label
    numbers = np.arange(len(order))
    first = np.maximum.accumulate(np.where(is_first, numbers, 0))
    rank = numbers - first
    is_best = np.empty(len(order), bool)
    is_best[order] = rank < _BEST
    return is_best
