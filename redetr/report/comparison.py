"""Confidence intervals for the difference between two checkpoints."""

from typing import Any, TypedDict

import numpy as np
from hotcoco import COCOeval
from numpy.typing import NDArray

from redetr.panoptic_quality import mean_quality

METRICS = ("AP", "AP50", "AP75")  # the metrics over all sizes

_LEAST_IMAGES = 2  # a single image cannot be halved
_MOST_HALVES = 1000
_LEAST_HALVES = 200
_DRAWN_IMAGES = 500_000  # of all halves together: within a minute on two cores
_QUANTILES = (0.025, 0.975)  # of a 95% confidence interval


class Difference(TypedDict):
    """A metric of the second checkpoint minus that of the first, as a fraction."""

    difference: float
    lower: float  # of the 95% confidence interval
    upper: float


def ap_differences(first: COCOeval, second: COCOeval) -> dict[str, Difference]:
    """The differences in METRICS between two evaluations of the same images by `coco_evaluation`.

    The intervals reflect the choice of images, but not the seed of training. Empty if there are no
    objects or fewer than two images.

    Both checkpoints are measured on random halves of the images. A mean over n/2 of n images, drawn
    without replacement, varies around the mean over all images as much as the latter varies around
    the true mean, so the quantiles of the differences give the interval. hotcoco's own `compare`
    (1.3) draws n images with replacement, but counts an image that is drawn twice only once, so its
    intervals are a quarter too narrow.

    Source: Shao, Wu, "A General Theory for Jackknife Variance Estimation", Annals of Statistics
    1989, for leaving out more than one. Deviation: quantiles instead of a variance.
    """
    image_ids = np.array(first.params.img_ids)
    if len(image_ids) < _LEAST_IMAGES:
        return {}
    num_halves = _DRAWN_IMAGES // len(image_ids)
    num_halves = max(_LEAST_HALVES, min(_MOST_HALVES, num_halves))
    halves = _random_halves(image_ids, num_halves)
    before = _over_all_sizes(first).slice_by(halves)
    after = _over_all_sizes(second).slice_by(halves)
    differences = {}
    for name in METRICS:
        if before["_overall"][name] >= 0:  # -1 without objects
            differences[name] = _difference(before, after, name)
    return differences


def pq_difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> dict[str, Difference]:
    """The difference in PQ, as "PQ", between two evaluations of the same images, given by their
    `image_counts`; see `ap_differences`."""
    num_images = len(first)
    if num_images < _LEAST_IMAGES:
        return {}
    halves = _random_halves(np.arange(num_images), _MOST_HALVES)
    changes = []
    for images in halves.values():
        before, after = (mean_quality(counts[images].sum(0)) for counts in (first, second))
        changes.append(after - before)
    difference = float(mean_quality(second.sum(0)) - mean_quality(first.sum(0)))
    if np.isnan(difference):  # there are no objects
        return {}
    lower, upper = np.nanquantile(changes, _QUANTILES).tolist()
    return {"PQ": {"difference": difference, "lower": lower, "upper": upper}}


def _difference(before: dict[str, Any], after: dict[str, Any], name: str) -> Difference:
    changes = {}
    for part, numbers in before.items():
        if numbers[name] >= 0:  # -1 without objects in this half
            changes[part] = after[part][name] - numbers[name]
    difference = changes.pop("_overall")
    lower, upper = np.quantile(list(changes.values()), _QUANTILES).tolist()
    return {"difference": difference, "lower": lower, "upper": upper}


def _random_halves(image_ids: np.ndarray, count: int) -> dict[str, list[int]]:
    generator = np.random.default_rng(seed=0)  # the same halves in every run
    size = len(image_ids) // 2
    halves = {}
    for number in range(count):
        shuffled = generator.permutation(image_ids)
        halves[str(number)] = shuffled[:size].tolist()
    return halves


def _over_all_sizes(evaluation: COCOeval) -> COCOeval:
    """The same evaluation without size groups, with which a half takes a quarter of the time."""
    reduced = COCOeval(evaluation.coco_gt, evaluation.coco_dt, evaluation.params.iou_type)
    reduced.params.area_rng = reduced.params.area_rng[:1]
    reduced.params.area_rng_lbl = reduced.params.area_rng_lbl[:1]
    reduced.params.max_dets = reduced.params.max_dets[-1:]
    reduced.evaluate()
    reduced.accumulate()
    return reduced
