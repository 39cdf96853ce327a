"""Panoptic quality: PQ, SQ and RQ of all classes, of things, of stuff, and of each class.

Matching is hotcoco's, which follows panopticapi: pixels that no object of the truth covers are
void; a segment that lies in void, or in a crowd of its class, by more than half does not count
against the model.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019. Deviation from panopticapi: what is
undefined is None, where that divides by zero or reports 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import hotcoco.mask
import numpy as np
from hotcoco.panoptic import PanopticEval
from numpy.typing import NDArray

from redetr.class_shares import to_main
from redetr.distributed import Dist
from redetr.metrics import TruthObjects, distinct_names, segmentation
from redetr.structures import DatasetDetections


@dataclass(frozen=True)
class Quality:
    """Fractions in [0, 1]; None where there is neither an object nor a segment of the class, or of
    any class of the group."""

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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `PQ`, `SQ` and `RQ` of all classes, and the same in `things`, `stuff` and of
        each class in `per_class`."""
        return {
            **self.all.to_dict(),
            "things": self.things.to_dict(),
            "stuff": self.stuff.to_dict(),
            "per_class": {name: quality.to_dict() for name, quality in self.per_class.items()},
        }


def quality_rows(panoptic: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """The rows of a table of what `PanopticResult.to_dict` gives: of all classes, of things, of
    stuff, and of each class."""
    rows = {"all": panoptic, "things": panoptic["things"], "stuff": panoptic["stuff"]}
    return {**rows, **panoptic["per_class"]}


def panoptic_quality(
    truth: TruthObjects, segments: DatasetDetections, is_thing: Sequence[bool]
) -> PanopticResult:
    """The quality of `segments`, of which no two cover the same pixel, as in the truth.

    Both have masks; `is_thing` `[C]` says of each class whether it is a thing or stuff. Scores and
    boxes do not matter. Raises ValueError without masks, and for a segment that others cover.
    """
    if truth.masks is None or truth.image_sizes is None or segments.masks is None:
        raise ValueError("panoptic quality needs masks of the truth and of the segments")
    categories = []
    for label, thing in enumerate(is_thing):
        categories.append({"id": label, "name": str(label), "isthing": int(thing)})
    images = []
    for number, (height, width) in enumerate(truth.image_sizes.tolist()):
        images.append({"id": number, "height": height, "width": width})

    def annotations(
        image: NDArray[np.int64], labels: NDArray[np.int64], masks: list[bytes], iscrowd: NDArray
    ) -> hotcoco.COCO:
        rles: Any = segmentation(masks, image, truth.image_sizes)
        return hotcoco.COCO.from_arrays(
            images,
            categories,
            image,
            labels,
            np.zeros((len(masks), 4)),  # boxes do not matter
            area=hotcoco.mask.area(rles).astype(np.float64),
            iscrowd=iscrowd,
            segmentation=rles,
        )

    no_crowds = np.zeros(len(segments), bool)
    evaluation = PanopticEval(
        annotations(truth.image, truth.labels, truth.masks, truth.iscrowd),
        annotations(segments.image_index, segments.labels, segments.masks, no_crowds),
    )
    evaluation.evaluate()
    results = evaluation.results()
    names = distinct_names(truth.class_names)
    per_class = {name: _quality(results["per_class"][i]) for i, name in enumerate(names)}
    return PanopticResult(
        all=_quality(results["All"]),
        things=_quality(results["Things"]),
        stuff=_quality(results["Stuff"]),
        per_class=per_class,
    )


def shared_quality(
    truth: TruthObjects, share: DatasetDetections, is_thing: Sequence[bool], dist: Dist
) -> PanopticResult:
    """What `panoptic_quality` returns, the same on each rank and for any number of ranks; `share`
    are the segments of this one. Communicates.

    All segments go to the first rank: they do not overlap, so they are few.
    """
    segments = to_main(share, dist)
    results: list[PanopticResult] = []
    if dist.rank == 0:
        in_order = segments.keep(np.argsort(segments.image_index, kind="stable"))
        results.append(panoptic_quality(truth, in_order, is_thing))
    (result,) = dist.gather(results)
    return result


def _quality(numbers: dict[str, Any]) -> Quality:
    """What hotcoco found; -1 is its undefined."""
    values = [numbers[name] for name in ("pq", "sq", "rq")]
    return Quality(*(None if value < 0 else float(value) for value in values))
