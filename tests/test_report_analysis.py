import numpy as np
import pytest
import torch
from test_metrics import (
    NAMES,
    flat,
    pycocotools_evaluation,
    random_detections,
    random_scene,
    target,
)

from redetr.metrics import GroundTruth, coco_evaluation
from redetr.report.analysis import (
    KINDS,
    calibration,
    confusion,
    exact_best_threshold,
    image_errors,
    judge,
    mistakes,
    threshold_curve,
)


def judged(targets, detections, num_classes=2):
    """`detections` are (image, label, score, box)."""
    columns = list(zip(*detections, strict=True)) if detections else [(), (), (), ()]
    image_index, labels = (np.array(column, int) for column in columns[:2])
    scores = np.array(columns[2], float)
    boxes = np.array(columns[3], np.float32).reshape(-1, 4)
    return judged_arrays(targets, (image_index, scores, labels, boxes), NAMES[:num_classes])


def judged_arrays(targets, detections, class_names=NAMES):
    """`detections` are (image index, scores, labels, boxes)."""
    joined = flat(*detections)
    truth = GroundTruth.from_targets(targets, class_names)
    return judge(targets, coco_evaluation(truth, joined), joined)


# Objects: left to right of class 0, 1, 0, 1, each 100 px wide.
OBJECTS = target(
    5, [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100], [600, 0, 700, 100]], [0, 1, 0, 1]
)
ONE_OF_EACH = [
    (0, 0, 0.9, [0, 0, 100, 100]),  # correct
    (0, 0, 0.8, [0, 0, 100, 90]),  # the same object again
    (0, 0, 0.7, [200, 0, 300, 100]),  # there is class 1
    (0, 1, 0.6, [600, 0, 700, 40]),  # an IoU of 0.4
    (0, 0, 0.5, [600, 60, 700, 100]),  # an IoU of 0.4 with class 1
    (0, 0, 0.4, [800, 800, 900, 900]),  # nothing
]


def kinds_of(found):
    return [KINDS[kind] for kind in found.kinds]


def test_one_mistake_of_each_kind():
    found = judged([OBJECTS], ONE_OF_EACH)
    assert kinds_of(found) == [
        "correct",
        "duplicate",
        "class",
        "localization",
        "both",
        "background",
    ]
    assert found.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    assert found.finder.tolist() == [0, -1, -1, -1]
    # Of the three that are not found, two would be without the mistake.
    assert mistakes(found)["missed"]["count"] == 1


def test_what_the_mistakes_cost():
    """Class 0: recall 1/2 at a precision of 1, class 1: nothing. 51 of 101 levels of recall are up
    to 1/2."""
    found = judged([OBJECTS], ONE_OF_EACH)
    now = 51 / 101 / 2
    lost = mistakes(found)
    assert {kind: loss["count"] for kind, loss in lost.items()} == dict.fromkeys(lost, 1)
    assert lost["class"]["ap50"] == pytest.approx(51 / 101 - now)  # half of class 1 as well
    assert lost["localization"]["ap50"] == pytest.approx(51 / 101 - now)
    assert lost["missed"]["ap50"] == pytest.approx(1 / 2 - now)  # all of class 0
    for kind in ("both", "duplicate", "background"):  # no correct detection has a lower score
        assert lost[kind]["ap50"] == 0


@pytest.mark.parametrize(
    ("kind", "label", "box"),
    [
        ("duplicate", 0, [0, 0, 100, 90]),
        ("background", 0, [800, 800, 900, 900]),
        ("both", 0, [600, 60, 700, 100]),
        ("localization", 0, [0, 0, 100, 30]),  # of an object that is found: taken away
    ],
)
def test_a_wrong_detection_between_two_right_ones(kind, label, box):
    """Precision 1 up to a recall of 1/2, then 2/3: 51 levels and 50."""
    found = judged(
        [OBJECTS],
        [(0, 0, 0.9, [0, 0, 100, 100]), (0, label, 0.8, box), (0, 0, 0.7, [400, 0, 500, 100])],
    )
    assert kinds_of(found)[1] == kind
    lost = mistakes(found)
    assert lost[kind]["ap50"] == pytest.approx((1 - (51 + 50 * 2 / 3) / 101) / 2)
    assert all(loss["ap50"] == 0 for other, loss in lost.items() if other not in (kind, "missed"))


def test_only_the_best_of_several_mistakes_is_fixed():
    twice = [(0, 0, 0.9, [200, 0, 300, 100]), (0, 0, 0.8, [200, 0, 300, 99])]
    found = judged([OBJECTS], twice)
    assert kinds_of(found) == ["class", "class"]
    # One of two objects of class 1 at a precision of 1; class 0 stays at nothing.
    assert mistakes(found)["class"] == {"count": 2, "ap50": pytest.approx(51 / 101 / 2)}
    # An object that is found needs no fix.
    found = judged([OBJECTS], [*twice, (0, 1, 0.1, [200, 0, 300, 100])])
    assert kinds_of(found) == ["class", "class", "correct"]
    assert mistakes(found)["class"] == {"count": 2, "ap50": 0.0}


def test_better_overlap_wins_and_score_goes_first():
    pair = target(0, [[0, 0, 100, 100], [20, 0, 120, 100]], [0, 0])
    found = judged([pair], [(0, 0, 0.5, [0, 0, 100, 100]), (0, 0, 0.9, [18, 0, 118, 100])])
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.finder.tolist() == [1, 0]
    assert kinds_of(found) == ["correct", "correct"]


def test_detections_in_a_crowd_are_no_mistakes():
    crowd = target(0, [[0, 0, 400, 400], [500, 0, 600, 100]], [0, 0], [True, False])
    inside, beside = (0, 0, 0.9, [10, 10, 50, 50]), (0, 1, 0.8, [10, 10, 50, 50])
    found = judged([crowd], [inside, beside])
    assert kinds_of(found) == ["background"]
    assert (len(found.objects), len(found.crowds)) == (1, 1)
    counts = {kind: mistake["count"] for kind, mistake in mistakes(found).items()}
    assert counts == dict.fromkeys(counts, 0) | {"background": 1, "missed": 1}
    assert confusion(found, 0.0).tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_an_object_before_a_crowd():
    """A detection that lies on both finds the object."""
    both = target(0, [[0, 0, 400, 400], [10, 10, 50, 50]], [0, 0], [True, False])
    found = judged([both], [(0, 0, 0.9, [10, 10, 50, 50]), (0, 0, 0.8, [10, 10, 50, 49])])
    assert kinds_of(found) == ["correct"]
    assert found.finder.tolist() == [0]


def test_confusion_by_hand():
    found = judged([OBJECTS], ONE_OF_EACH)
    # The duplicate, both poor boxes and the one on nothing lie on background; class 1 was taken for
    # 0 once.
    assert confusion(found, 0.0).tolist() == [[1, 0, 1], [1, 0, 1], [3, 1, 0]]
    assert confusion(found, 0.75).tolist() == [[1, 0, 1], [0, 0, 2], [1, 0, 0]]
    assert confusion(found, 1.0).tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]


def test_confusion_counts_more_than_100_detections_in_an_image():
    corners = 10 * np.arange(150)
    boxes = np.stack([corners, np.zeros(150), corners + 8, np.full(150, 8)], axis=1)
    labels = np.arange(150) % 2
    detections = [(0, label, 0.9, box) for label, box in zip(labels, boxes, strict=True)]
    found = judged([target(0, boxes, labels)], detections)
    assert confusion(found, 0.5).tolist() == [[75, 0, 0], [0, 75, 0], [0, 0, 0]]


def test_errors_of_images():
    images = [OBJECTS, target(6, [], []), target(7, [[0, 0, 9, 9]], [0])]
    found = judged(images, [*ONE_OF_EACH, (1, 0, 0.95, [0, 0, 9, 9])])
    wrong, missed = image_errors(found, 0.55, 3)
    assert wrong.tolist() == [3, 1, 0] and missed.tolist() == [3, 0, 1]
    wrong, missed = image_errors(found, 0.93, 3)
    assert wrong.tolist() == [0, 1, 0] and missed.tolist() == [4, 0, 1]


def scenes(seed, crowd_share, per_image, decimals):
    rng = np.random.default_rng(seed)
    targets = [
        random_scene(rng, image_id, crowd_share) for image_id in rng.permutation(1000)[:24].tolist()
    ]
    return targets, random_detections(rng, targets, per_image, decimals)


RANDOM_SCENES = [
    # seed, share of crowds, detections per image, decimals of scores
    (0, 0.0, 20, 6),
    (1, 0.2, 20, 1),
    (2, 0.5, 40, 6),
    (3, 0.2, 250, 2),
    (4, 0.3, 700, 3),  # of some classes more than 100
    (5, 1.0, 10, 6),
]


@pytest.mark.parity
@pytest.mark.parametrize(("seed", "crowd_share", "per_image", "decimals"), RANDOM_SCENES)
def test_correct_detections_are_those_of_pycocotools(seed, crowd_share, per_image, decimals):
    targets, detections = scenes(seed, crowd_share, per_image, decimals)
    found = judged_arrays(targets, detections)
    mine = []
    columns = (found.detections.image, found.detections.label, found.scores, found.correct)
    for image, label, score, correct in zip(*(c.tolist() for c in columns), strict=True):
        mine.append((targets[image]["image_id"], label + 1, score, correct))

    theirs = []
    evaluation = pycocotools_evaluation(targets, *detections)
    all_sizes = evaluation.params.areaRng[0]
    for image in evaluation.evalImgs:
        if image is None or image["aRng"] != all_sizes:
            continue
        rows = zip(image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
        for score, match, ignored in rows:
            if not ignored:
                theirs.append((image["image_id"], image["category_id"], score, bool(match)))
    assert sorted(mine) == sorted(theirs)


@pytest.mark.parity
@pytest.mark.parametrize(("seed", "crowd_share", "per_image", "decimals"), RANDOM_SCENES)
def test_kinds_add_up_to_the_counts_of_hotcoco(seed, crowd_share, per_image, decimals):
    targets, detections = scenes(seed, crowd_share, per_image, decimals)
    found = judged_arrays(targets, detections)
    counts = np.bincount(found.kinds, minlength=len(KINDS)).tolist()
    table = mistakes(found)
    assert counts[1:] == [table[kind]["count"] for kind in KINDS[1:]]
    assert counts[0] == np.count_nonzero(found.finder >= 0)


@pytest.mark.parity
def test_crowds_and_what_lies_in_them_change_nothing():
    targets, detections = scenes(0, 0.0, 20, 6)
    crowded = []
    for scene in targets:
        crowd = target(scene["image_id"], [[2000, 2000, 3000, 3000]], [0], [True])
        joined = {
            key: torch.cat([scene[key], crowd[key]])
            for key in ("boxes", "labels", "area", "iscrowd")
        }
        crowded.append({**scene, **joined})
    inside = (
        torch.arange(len(targets)),
        torch.full((len(targets),), 0.99),
        torch.zeros(len(targets), dtype=torch.int64),
        torch.tensor([[2100.0, 2100.0, 2200.0, 2200.0]]).repeat(len(targets), 1),
    )
    both = [torch.cat(pair) for pair in zip(detections, inside, strict=True)]
    with_crowds, without = judged_arrays(crowded, both), judged_arrays(targets, detections)
    assert len(with_crowds.crowds) == len(targets)
    assert mistakes(with_crowds) == mistakes(without)
    assert confusion(with_crowds, 0.4).tolist() == confusion(without, 0.4).tolist()


def test_curves_by_hand():
    scores, correct = np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, False, True, True])
    precision, recall = threshold_curve(
        scores, correct, 4, np.array([0.0, 0.3, 0.31, 0.8, 0.85, 0.95])
    )
    np.testing.assert_allclose(precision, [3 / 4, 3 / 4, 2 / 3, 2 / 3, 1, np.nan])
    np.testing.assert_allclose(recall, [3 / 4, 3 / 4, 2 / 4, 2 / 4, 1 / 4, 0])
    assert exact_best_threshold(scores, correct, 4) == 0.3
    # The two that score 0.8 come together.
    assert exact_best_threshold(scores, np.array([True, True, False, False]), 2) == 0.8
    assert exact_best_threshold(scores, np.zeros(4, bool), 4) is None
    assert np.isnan(threshold_curve(scores, np.zeros(4, bool), 0, np.array([0.5]))[1]).all()


def test_best_threshold_against_all_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = np.sort(rng.integers(0, 12, 20) / 12)[::-1]
        correct, objects = rng.random(20) < 0.4, int(rng.integers(9, 25))
        f1 = {
            t: 2 * correct[scores >= t].sum() / ((scores >= t).sum() + objects)
            for t in scores.tolist()
        }
        chosen = exact_best_threshold(scores, correct, objects)
        assert f1[chosen] == max(f1.values()) if correct.any() else chosen is None


def test_calibration_by_its_formula():
    rng = np.random.default_rng(1)
    scores = np.append(rng.random(500), [0.0, 1.0, 0.1, 0.05])
    correct = rng.random(504) < scores**2
    found = calibration(scores, correct, 0.05)
    seen = [(s, c) for s, c in zip(scores, correct, strict=True) if s >= 0.05]
    error = 0.0
    for i in range(10):
        inside = [(s, c) for s, c in seen if int(s * 10) == i or (i == 9 and s == 1)]
        gap = abs(np.mean([s for s, _ in inside]) - np.mean([c for _, c in inside]))
        error += len(inside) / len(seen) * gap
        assert found["bins"][i]["count"] == len(inside)
    assert found["error"] == pytest.approx(error)
    assert calibration(scores[:0], correct[:0], 0.05) == {
        "error": None,
        "least_score": 0.05,
        "bins": [],
    }


@pytest.mark.parametrize(
    "targets", [[], [target(0, [], [])], [OBJECTS]], ids=["no images", "no objects", "objects"]
)
def test_nothing_is_found(targets):
    found = judged(targets, [])
    objects = sum(len(image["labels"]) for image in targets)
    assert mistakes(found)["missed"] == {"count": objects, "ap50": 0.0}
    assert confusion(found, 0.5).sum() == objects
