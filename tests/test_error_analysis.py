import numpy as np
import pytest
from test_metrics import pycocotools_evaluation, random_detections, random_scene, target

from redetr.error_analysis import (KINDS, best_threshold, calibration, confusion, image_errors, judge, mistakes, precision_at_recall, threshold_curve)
from redetr.metrics import (GroundTruth, _evaluated)


def judged(targets, detections, num_classes=2):
    """`detections` are (image, label, score, box)."""
    columns = list(zip(*detections, strict=True)) if detections else [(), (), (), ()]
    index, labels, scores = (np.array(values, kind) for values, kind in zip(columns, "iif", strict=False))
    return judge(targets, num_classes, index, labels, scores, np.array(columns[3], np.float32).reshape(-1, 4))


# Objects: left to right of class 0, 1, 0, 1, each 100 px wide.
OBJECTS = target(5, [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100], [600, 0, 700, 100]], [0, 1, 0, 1])
ONE_OF_EACH = [
    (0, 0, 0.9, [0, 0, 100, 100]),  # correct
    (0, 0, 0.8, [0, 0, 100, 90]),  # the same object again
    (0, 0, 0.7, [200, 0, 300, 100]),  # there is class 1
    (0, 1, 0.6, [600, 0, 700, 40]),  # an IoU of 0.4
    (0, 0, 0.5, [600, 60, 700, 100]),  # an IoU of 0.4 with class 1
    (0, 0, 0.4, [800, 800, 900, 900]),  # nothing
]


def kinds_of(found):
    return [KINDS[kind] for kind in found.kind]


def test_one_mistake_of_each_kind():
    found = judged([OBJECTS], ONE_OF_EACH)
    assert kinds_of(found) == ["correct", "duplicate", "class", "localization", "both", "background"]
    assert found.object.tolist() == [0, 0, 1, 3, -1, -1]
    assert found.found_by.tolist() == [0, -1, -1, -1]
    assert found.missed.tolist() == [False, False, True, False]  # others would be found without the mistake


def test_what_the_mistakes_cost():
    """Class 0: recall 1/2 at a precision of 1, class 1: nothing. 51 of 101 levels of recall are up to 1/2."""
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
    found = judged([OBJECTS], [(0, 0, 0.9, [0, 0, 100, 100]), (0, label, 0.8, box), (0, 0, 0.7, [400, 0, 500, 100])])
    assert kinds_of(found)[1] == kind
    lost = mistakes(found)
    assert lost[kind]["ap50"] == pytest.approx((1 - (51 + 50 * 2 / 3) / 101) / 2)
    assert all(loss["ap50"] == 0 for other, loss in lost.items() if other not in (kind, "missed"))


def test_only_the_best_of_several_mistakes_is_fixed():
    twice = [(0, 0, 0.9, [200, 0, 300, 100]), (0, 0, 0.8, [200, 0, 300, 99])]
    found = judged([OBJECTS], twice)
    assert kinds_of(found) == ["class", "class"] and found.rescued.tolist() == [True, False]
    # An object that is found needs no fix.
    found = judged([OBJECTS], [*twice, (0, 1, 0.1, [200, 0, 300, 100])])
    assert kinds_of(found) == ["class", "class", "correct"] and not found.rescued.any()


def test_better_overlap_wins_and_score_goes_first():
    pair = target(0, [[0, 0, 100, 100], [20, 0, 120, 100]], [0, 0])
    found = judged([pair], [(0, 0, 0.5, [0, 0, 100, 100]), (0, 0, 0.9, [18, 0, 118, 100])])
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.object.tolist() == [1, 0] and kinds_of(found) == ["correct", "correct"]


def test_detections_in_a_crowd_are_no_mistakes():
    crowd = target(0, [[0, 0, 400, 400], [500, 0, 600, 100]], [0, 0], [True, False])
    inside, beside = (0, 0, 0.9, [10, 10, 50, 50]), (0, 1, 0.8, [10, 10, 50, 50])
    found = judged([crowd], [inside, beside])
    assert kinds_of(found) == ["background"] and (len(found.objects), len(found.crowds)) == (1, 1)
    assert confusion(found, 0.0).tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_confusion_by_hand():
    found = judged([OBJECTS], ONE_OF_EACH)
    # The duplicate, both poor boxes and the one on nothing lie on background; class 1 was taken for 0 once.
    assert confusion(found, 0.0).tolist() == [[1, 0, 1], [1, 0, 1], [3, 1, 0]]
    assert confusion(found, 0.75).tolist() == [[1, 0, 1], [0, 0, 2], [1, 0, 0]]
    assert confusion(found, 1.0).tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]


def test_errors_of_images():
    images = [OBJECTS, target(6, [], []), target(7, [[0, 0, 9, 9]], [0])]
    found = judged(images, [*ONE_OF_EACH, (1, 0, 0.95, [0, 0, 9, 9])])
    wrong, missed = image_errors(found, 0.55, 3)
    assert wrong.tolist() == [3, 1, 0] and missed.tolist() == [3, 0, 1]
    wrong, missed = image_errors(found, 0.93, 3)
    assert wrong.tolist() == [0, 1, 0] and missed.tolist() == [4, 0, 1]


def scenes(seed, crowd_share, per_image, decimals):
    rng = np.random.default_rng(seed)
    targets = [random_scene(rng, image_id, crowd_share) for image_id in rng.permutation(1000)[:24].tolist()]
    return targets, random_detections(rng, targets, per_image, decimals)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("seed", "crowd_share", "per_image", "decimals"),
    [(0, 0.0, 20, 6), (1, 0.2, 20, 1), (2, 0.5, 40, 6), (3, 0.2, 250, 2), (5, 1.0, 10, 6)],
)
def test_precision_is_that_of_pycocotools(seed, crowd_share, per_image, decimals):
    targets, detections = scenes(seed, crowd_share, per_image, decimals)
    index, scores, labels, boxes = (values.numpy() for values in detections)
    found = judge(targets, 5, index, labels, scores, boxes)
    objects = np.bincount(found.objects.label, minlength=5)
    expected = pycocotools_evaluation(targets, *detections).eval["precision"][0, :, :, 0, 2].T
    actual = precision_at_recall(found.detections.label, found.correct, objects)
    np.testing.assert_allclose(actual, np.where(expected < 0, np.nan, expected), rtol=0, atol=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize(("seed", "per_image", "decimals"), [(0, 20, 6), (1, 60, 6), (2, 100, 5), (3, 5, 6)])
def test_mistakes_confusion_and_calibration_are_those_of_hotcoco(seed, per_image, decimals):
    """Without crowds, which it counts as objects in both."""
    targets, detections = scenes(seed, 0.0, per_image, decimals)
    index, scores, labels, boxes = (values.numpy() for values in detections)
    found = judge(targets, 5, index, labels, scores, boxes)
    evaluation = _evaluated(GroundTruth.from_targets(targets, tuple("abcde")), *detections)
    theirs, lost = evaluation.tide_errors(), mistakes(found)
    names = {"class": "Cls", "localization": "Loc", "both": "Both", "duplicate": "Dupe", "background": "Bkg",
             "missed": "Miss"}  # fmt: skip
    for mine, name in names.items():
        assert lost[mine]["count"] == theirs["counts"][name]
        assert lost[mine]["ap50"] == pytest.approx(theirs["delta_ap"][name], abs=1e-12)
    for threshold in (0.0, 0.4):
        expected = evaluation.confusion_matrix(iou_thr=0.5, min_score=threshold)["matrix"]
        assert confusion(found, threshold).tolist() == expected.tolist()
    assert calibration(found.scores, found.correct, 0.0)["error"] == pytest.approx(evaluation.calibration()["ece"])


def test_curves_by_hand():
    scores, correct = np.array([0.9, 0.8, 0.8, 0.3]), np.array([True, False, True, True])
    precision, recall = threshold_curve(scores, correct, 4, np.array([0.0, 0.3, 0.31, 0.8, 0.85, 0.95]))
    np.testing.assert_allclose(precision, [3 / 4, 3 / 4, 2 / 3, 2 / 3, 1, np.nan])
    np.testing.assert_allclose(recall, [3 / 4, 3 / 4, 2 / 4, 2 / 4, 1 / 4, 0])
    assert best_threshold(scores, correct, 4) == 0.3
    # The two that score 0.8 come together.
    assert best_threshold(scores, np.array([True, True, False, False]), 2) == 0.8
    assert best_threshold(scores, np.zeros(4, bool), 4) is None
    assert np.isnan(threshold_curve(scores, np.zeros(4, bool), 0, np.array([0.5]))[1]).all()


def test_best_threshold_against_all_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = np.sort(rng.integers(0, 12, 20) / 12)[::-1]
        correct, objects = rng.random(20) < 0.4, int(rng.integers(9, 25))
        f1 = {t: 2 * correct[scores >= t].sum() / ((scores >= t).sum() + objects) for t in scores.tolist()}
        chosen = best_threshold(scores, correct, objects)
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
    assert calibration(scores[:0], correct[:0], 0.05) == {"error": None, "least_score": 0.05, "bins": []}


@pytest.mark.parametrize("targets", [[], [target(0, [], [])], [OBJECTS]], ids=["no images", "no objects", "objects"])
def test_nothing_is_found(targets):
    found = judged(targets, [])
    objects = sum(len(image["labels"]) for image in targets)
    assert mistakes(found)["missed"] == {"count": objects, "ap50": 0.0}
    assert confusion(found, 0.5).sum() == objects
