import numpy as np
import pytest
import torch
from test_metrics import NAMES, flat, random_detections, random_scene, target

from redetr.metrics import GroundTruth, coco_evaluation, coco_metrics
from redetr.report import ap_differences

NOTHING = (torch.zeros(0).long(), torch.zeros(0), torch.zeros(0).long(), torch.zeros(0, 4))


def random_pair(num_images):
    """Targets and the detections of two random detectors on them."""
    rng = np.random.default_rng(7)
    targets = [random_scene(rng, image_id, 0.1) for image_id in range(num_images)]
    return targets, random_detections(rng, targets, 12, 6), random_detections(rng, targets, 12, 6)


def differences_of(targets, first, second):
    truth = GroundTruth.from_targets(targets, NAMES)
    return ap_differences(
        coco_evaluation(truth, flat(*first)), coco_evaluation(truth, flat(*second))
    )


def test_the_difference_is_that_of_the_coco_numbers():
    targets, first, second = random_pair(40)
    truth = GroundTruth.from_targets(targets, NAMES)
    before = coco_metrics(truth, flat(*first)).metrics
    after = coco_metrics(truth, flat(*second)).metrics
    differences = differences_of(targets, first, second)
    assert list(differences) == ["AP", "AP50", "AP75"]
    for name, change in differences.items():
        assert change["difference"] == pytest.approx(after[name] - before[name], abs=1e-12)
        assert change["lower"] < change["difference"] < change["upper"]


def test_the_other_way_round_the_signs_change():
    targets, first, second = random_pair(40)
    forth = differences_of(targets, first, second)
    back = differences_of(targets, second, first)
    for name in forth:
        assert forth[name]["difference"] == pytest.approx(-back[name]["difference"])
        assert forth[name]["lower"] == pytest.approx(-back[name]["upper"], abs=0.01)


def test_a_checkpoint_does_not_differ_from_itself():
    targets, first, _ = random_pair(10)
    for change in differences_of(targets, first, first).values():
        assert change == {"difference": 0.0, "lower": 0.0, "upper": 0.0}


def test_better_on_every_image_is_better_on_every_resample():
    targets = [target(image_id, [[0, 0, 50, 50]], [0]) for image_id in range(4)]
    boxes = torch.tensor([[0.0, 0.0, 50.0, 50.0]]).repeat(4, 1)
    perfect = torch.arange(4), torch.full((4,), 0.9), torch.zeros(4).long(), boxes
    for change in differences_of(targets, NOTHING, perfect).values():
        assert list(change.values()) == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.long
@pytest.mark.parity
def test_the_interval_is_that_of_a_bootstrap():
    """Images are drawn with replacement; one that is drawn twice counts twice."""
    targets, first, second = random_pair(30)
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(400):
        drawn = rng.integers(0, len(targets), len(targets))
        before = ap_of_drawn(targets, first, drawn)
        after = ap_of_drawn(targets, second, drawn)
        changes.append(after - before)
    lower, upper = np.quantile(changes, [0.025, 0.975])
    tolerance = 0.15 * (upper - lower)
    change = differences_of(targets, first, second)["AP"]
    assert change["lower"] == pytest.approx(lower, abs=tolerance)
    assert change["upper"] == pytest.approx(upper, abs=tolerance)


def ap_of_drawn(targets, detections, drawn):
    """AP on the images that are drawn, each time as an image of its own."""
    image_index, *others = detections
    resampled = []
    rows = []
    for number, index in enumerate(drawn.tolist()):
        resampled.append({**targets[index], "image_id": number})
        rows.append(torch.nonzero(image_index == index).flatten())
    counts = torch.tensor([len(row) for row in rows])
    new_index = torch.arange(len(drawn)).repeat_interleave(counts)
    row = torch.cat(rows)
    truth = GroundTruth.from_targets(resampled, NAMES)
    return coco_metrics(truth, flat(new_index, *(values[row] for values in others))).ap


@pytest.mark.parametrize(
    "targets",
    [[], [target(0, [[0, 0, 9, 9]], [0])], [target(0, [], []), target(1, [], [])]],
    ids=["no images", "one image", "no objects"],
)
def test_nothing_to_compare(targets):
    assert differences_of(targets, NOTHING, NOTHING) == {}
