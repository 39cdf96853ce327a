"""Panoptic quality: PQ, SQ and RQ of all classes, of things, of stuff, and of each class.

hotcoco matches segments as panopticapi does. Pixels that no object of the truth covers are void. A
segment does not count against the model if more than half of it lies in void or in a crowd of its
class.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019. Deviation from panopticapi: an
undefined value is None; panopticapi divides by zero or reports 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import hotcoco
import hotcoco.mask
import numpy as np
from hotcoco.panoptic import PanopticEval
from numpy.typing import NDArray

from redetr.class_shares import to_main
from redetr.distributed import Dist
from redetr.metrics import distinct_names, segmentation
from redetr.structures import DatasetDetections
from redetr.truth import TruthObjects


@dataclass(frozen=True)
class Quality:
    """Fractions in [0, 1]; None if the class, or every class of the group, has neither an object
    nor a segment."""

    pq: float | None  # the mean over classes of sq * rq
    sq: float | None  # segmentation: mean IoU of matched segments
    rq: float | None  # recognition: the F1 of segments

    def to_dict(self) -> dict[str, float | None]:
        return {"PQ": self.pq, "SQ": self.sq, "RQ": self.rq}


@dataclass(frozen=True)
class PanopticResult:
    """Panoptic quality of a data set."""

    all: Quality
    things: Quality
    stuff: Quality
    per_class: dict[str, Quality]
    by_image: NDArray[np.float64] | None = None  # `image_counts`, if requested

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `PQ`, `SQ` and `RQ` of all classes, and the same three in `things`, in
        `stuff`, and for each class in `per_class`."""
        return {
            **self.all.to_dict(),
            "things": self.things.to_dict(),
            "stuff": self.stuff.to_dict(),
            "per_class": {name: quality.to_dict() for name, quality in self.per_class.items()},
        }


def quality_rows(panoptic: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    """The rows of a table from `PanopticResult.to_dict`, with their names: all classes, things,
    stuff, and each class, which may have one of these names, too."""
    rows = [("all", panoptic), ("things", panoptic["things"]), ("stuff", panoptic["stuff"])]
    return [*rows, *panoptic["per_class"].items()]


def panoptic_quality(
    truth: TruthObjects, segments: DatasetDetections, is_thing: Sequence[bool]
) -> PanopticResult:
    """The quality of `segments`, no two of which cover the same pixel, as in the truth.

    Both have masks; `is_thing` `[C]` is True for things and False for stuff. Scores and boxes do
    not matter. Raises ValueError without masks, and for a segment that others cover.
    """
    if truth.masks is None or truth.image_sizes is None or segments.masks is None:
        raise ValueError("panoptic quality needs masks of the truth and of the segments")
    results = _evaluated(truth, segments, is_thing, range(len(truth.image_sizes)))
    names = distinct_names(truth.class_names)
    per_class = {name: _quality(results["per_class"][i]) for i, name in enumerate(names)}
    return PanopticResult(
        all=_quality(results["All"]),
        things=_quality(results["Things"]),
        stuff=_quality(results["Stuff"]),
        per_class=per_class,
    )


def image_counts(
    truth: TruthObjects, segments: DatasetDetections, is_thing: Sequence[bool]
) -> NDArray[np.float64]:
    """The counts behind the quality of each image, `[N, C, 4]`: matched segments, unmatched
    segments, unmatched objects, and the sum of IoU over matches.

    `mean_quality` of their sum over images is the PQ of these images. The arguments are those of
    `panoptic_quality`. Takes some 0.2 ms per image.
    """
    assert truth.image_sizes is not None
    counts = np.zeros((len(truth.image_sizes), len(is_thing), 4))
    for image in range(len(counts)):
        per_class = _evaluated(truth, segments, is_thing, [image])["per_class"]
        for label in range(len(is_thing)):
            numbers = per_class[label]
            counts[image, label] = [numbers[name] for name in ("tp", "fp", "fn", "iou")]
    return counts


def mean_quality(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """PQ `[...]` of counts `[..., C, 4]`, averaged over the classes that occur; NaN without any."""
    matched, false_positives, missed, iou = np.moveaxis(counts, -1, 0)  # each [..., C]
    weight = matched + (false_positives + missed) / 2
    occurs = weight > 0
    safe_weight = np.where(occurs, weight, 1)
    pq = np.where(occurs, iou / safe_weight, 0)
    num_classes = occurs.sum(-1)
    mean = pq.sum(-1) / np.maximum(num_classes, 1)
    return np.where(num_classes > 0, mean, np.nan)


def _evaluated(
    truth: TruthObjects,
    segments: DatasetDetections,
    is_thing: Sequence[bool],
    images: Sequence[int],
) -> dict[str, Any]:
    """The results of hotcoco on these images."""
    assert truth.masks is not None and truth.image_sizes is not None
    assert segments.masks is not None
    categories = []
    for label, thing in enumerate(is_thing):
        categories.append({"id": label, "name": str(label), "isthing": int(thing)})
    rows = []
    for number in images:
        height, width = truth.image_sizes[number].tolist()
        rows.append({"id": number, "height": height, "width": width})

    def annotations(
        image: NDArray[np.int64], labels: NDArray[np.int64], masks: list[bytes], iscrowd: NDArray
    ) -> hotcoco.COCO:
        kept = np.flatnonzero(np.isin(image, images))
        kept_masks = [masks[row] for row in kept.tolist()]
        rles: Any = segmentation(kept_masks, image[kept], truth.image_sizes)
        return hotcoco.COCO.from_arrays(
            rows,
            categories,
            image[kept],
            labels[kept],
            np.zeros((len(kept), 4)),  # boxes do not matter
            area=hotcoco.mask.area(rles).astype(np.float64),
            iscrowd=iscrowd[kept],
            segmentation=rles,
        )

    no_crowds = np.zeros(len(segments), bool)
    evaluation = PanopticEval(
        annotations(truth.image, truth.labels, truth.masks, truth.iscrowd),
        annotations(segments.image_index, segments.labels, segments.masks, no_crowds),
    )
    evaluation.evaluate()
    return evaluation.results()


def shared_quality(
    truth: TruthObjects,
    share: DatasetDetections,
    is_thing: Sequence[bool],
    dist: Dist,
    by_image: bool = False,
) -> PanopticResult:
    """Returns `panoptic_quality`, the same on every rank and for any number of ranks; `share` has
    the segments of this rank. With `by_image`, the result has `image_counts` too. Communicates.

    All segments are sent to the first rank: they do not overlap, so there are few of them.
    """
    segments = to_main(share, dist)
    results: list[PanopticResult] = []
    if dist.rank == 0:
        in_order = segments.keep(np.argsort(segments.image_index, kind="stable"))
        quality = panoptic_quality(truth, in_order, is_thing)
        if by_image:
            quality = replace(quality, by_image=image_counts(truth, in_order, is_thing))
        results.append(quality)
    (result,) = dist.gather(results)
    return result


def _quality(numbers: dict[str, Any]) -> Quality:
    """The quality from hotcoco's numbers, in which -1 means undefined."""
    return Quality(_defined(numbers["pq"]), _defined(numbers["sq"]), _defined(numbers["rq"]))


def _defined(value: float) -> float | None:
    return None if value < 0 else float(value)
