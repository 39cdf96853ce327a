import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from redetr.data import DetectionDataset, open_dataset
from redetr.errors import DivergedError, InputError
from redetr.evaluation import evaluate
from redetr.losses import SetCriterion
from redetr.metrics import (
    METRIC_NAMES,
    CocoResult,
    GroundTruth,
    coco_metrics,
    distinct_names,
    tables_without_objects,
)
from redetr.models import build
from redetr.structures import DatasetDetections, DetectionModel, LossConfig

NAMES = ("cat", "dog", "bird", "fish", "never seen")


def target(image_id, boxes, labels, iscrowd=None, size=(480, 640)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {
        "boxes": boxes,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "image_id": image_id,
        "orig_size": size,
        "size": size,
        "iscrowd": torch.tensor(
            [False] * len(boxes) if iscrowd is None else iscrowd, dtype=torch.bool
        ),
        "area": (boxes[:, 2:] - boxes[:, :2]).prod(-1),
    }


class TinyDataset(DetectionDataset):
    """Targets without images."""

    def __init__(self, targets, class_names=NAMES):
        self.targets, self.class_names = targets, class_names

    def __len__(self):
        return len(self.targets)

    def target(self, index):
        return self.targets[index]

    def image(self, index):
        raise AssertionError("COCO numbers need no image")


def random_scene(rng, image_id, crowd_share):
    """A target with 0 to 9 boxes of all COCO sizes and classes 0 to 3 (class 4 stays empty)."""
    count = int(rng.integers(0, 10))
    corner = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate(
        [
            corner,
            corner + rng.choice([12, 60, 180], (count, 1)) * rng.uniform(0.5, 1.5, (count, 2)),
        ],
        1,
    )
    return target(image_id, boxes, rng.integers(0, 4, count), rng.random(count) < crowd_share)


def random_detections(rng, targets, per_image, decimals):
    """Flat detections near the ground truth and anywhere, with tied scores; every fourth image has
    none."""
    fields = []
    for index, scene in enumerate(targets):
        if index % 4 == 3:
            continue
        boxes, labels = scene["boxes"].numpy(), scene["labels"].numpy()
        for _ in range(int(rng.integers(1, per_image))):
            if len(boxes) and rng.random() < 0.7:
                pick = rng.integers(len(boxes))
                box, label = boxes[pick] + rng.normal(0, 5, 4), labels[pick]
            else:
                corner = rng.uniform(0, 400, 2)
                box, label = (
                    np.concatenate([corner, corner + rng.uniform(1, 200, 2)]),
                    rng.integers(0, 5),
                )
            box[2:] = np.maximum(box[2:], box[:2])
            fields.append((index, round(rng.random(), decimals), label, box))
    image_index, scores, labels, boxes = zip(*fields, strict=True)
    return (
        torch.tensor(image_index),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(np.array(labels)),
        torch.tensor(np.array(boxes), dtype=torch.float32),
    )


def pycocotools_evaluation(targets, image_index, scores, labels, boxes, area_range=None):
    """pycocotools' own evaluation, accumulated; `area_range` in the place of all sizes."""

    def xywh(box):
        x1, y1, x2, y2 = box.tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    annotations, detections = [], []
    for scene in targets:
        for box, label, crowd, area in zip(
            *(scene[k] for k in ("boxes", "labels", "iscrowd", "area")), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": scene["image_id"],
                    "category_id": int(label) + 1,
                    "bbox": xywh(box),
                    "iscrowd": int(crowd),
                    "area": float(area),
                }
            )
    for index, score, label, box in zip(
        image_index.tolist(), scores.tolist(), labels.tolist(), boxes, strict=True
    ):
        image_id = targets[index]["image_id"]
        detections.append(
            {"image_id": image_id, "category_id": label + 1, "bbox": xywh(box), "score": score}
        )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": scene["image_id"]} for scene in targets],
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        if area_range:
            evaluation.params.areaRng[0] = list(area_range)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def reference(targets, image_index, scores, labels, boxes):
    """The twelve numbers and AP per class as pycocotools computes them, nan for its -1."""
    evaluation = pycocotools_evaluation(targets, image_index, scores, labels, boxes)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    per_class = [
        p[p > -1].mean() if (p > -1).any() else math.nan for p in np.moveaxis(precision, 2, 0)
    ]
    return np.where(evaluation.stats < 0, math.nan, evaluation.stats), np.array(per_class)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("seed", "crowd_share", "per_image", "decimals"),
    [
        (0, 0.0, 20, 6),
        (1, 0.2, 20, 1),  # many ties
        (2, 0.5, 40, 6),
        (3, 0.2, 250, 2),  # more than 100 detections in most images
        (4, 0.1, 150, 1),
        (5, 1.0, 10, 6),  # nothing but crowds
    ],
)
def test_equal_to_pycocotools(seed, crowd_share, per_image, decimals, capfd):
    rng = np.random.default_rng(seed)
    image_ids = rng.permutation(1000)[:24].tolist()  # not in ascending order
    targets = [random_scene(rng, image_id, crowd_share) for image_id in image_ids]
    assert any(len(scene["labels"]) == 0 for scene in targets)
    detections = random_detections(rng, targets, per_image, decimals)
    result = coco_metrics(GroundTruth.from_dataset(TinyDataset(targets)), flat(*detections))
    assert capfd.readouterr() == ("", "")
    expected, expected_per_class = reference(targets, *detections)
    np.testing.assert_allclose(list(result.metrics.values()), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        list(result.per_class.values()), expected_per_class, rtol=0, atol=1e-12
    )
    assert math.isnan(result.per_class["never seen"])
    assert math.isnan(result.ap) == (crowd_share == 1.0)


def one_box_truth():
    return GroundTruth.from_targets([target(7, [[0, 0, 100, 100]], [1]), target(8, [], [])], NAMES)


def flat(image_index, scores, labels, boxes):
    """`DatasetDetections` of what `random_detections` returns."""
    return DatasetDetections(
        image_index=np.asarray(image_index),
        labels=np.asarray(labels),
        scores=np.asarray(scores),
        boxes=np.asarray(boxes),
    )


def detect(boxes, scores, labels, image_index=None):
    """Detections from lists, all in image 0 by default."""
    image_index = [0] * len(scores) if image_index is None else image_index
    return DatasetDetections(
        image_index=np.array(image_index, np.int64),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float32),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
    )


def test_values_worked_by_hand():
    # IoU 0.8 clears the thresholds 0.50 to 0.80: 7 of 10. A box of 100 x 100 is large.
    result = coco_metrics(one_box_truth(), detect([[0, 0, 80, 100]], [0.9], [1]))
    assert result.ap == pytest.approx(0.7)
    assert result.ap50 == pytest.approx(1.0)
    assert result.metrics["AP75"] == pytest.approx(1.0)
    assert result.metrics["AR1"] == pytest.approx(0.7)
    assert result.metrics["APl"] == pytest.approx(0.7)
    assert math.isnan(result.metrics["APs"]) and math.isnan(result.metrics["ARm"])
    assert tuple(result.metrics) == METRIC_NAMES
    assert result.per_class["dog"] == pytest.approx(0.7) and math.isnan(result.per_class["cat"])


def test_a_better_scored_miss_halves_precision():
    boxes = [[300, 300, 400, 400], [0, 0, 100, 100]]
    assert coco_metrics(one_box_truth(), detect(boxes, [0.9, 0.8], [1, 1])).ap == pytest.approx(0.5)
    assert coco_metrics(one_box_truth(), detect(boxes, [0.8, 0.9], [1, 1])).ap == pytest.approx(1.0)


def test_detections_inside_a_crowd_are_ignored():
    boxes, labels = [[0, 0, 100, 100], [200, 200, 400, 400]], [1, 1]
    truth = GroundTruth.from_targets([target(1, boxes, labels, iscrowd=[False, True])], NAMES)
    found = detect([[250, 250, 300, 300], [0, 0, 100, 100]], [0.9, 0.8], [1, 1])
    assert coco_metrics(truth, found).ap == pytest.approx(1.0)


def test_the_truth_serves_again():
    rng = np.random.default_rng(0)
    targets = [random_scene(rng, i, 0.1) for i in range(6)]
    truth = GroundTruth.from_targets(targets, NAMES)
    detections = flat(*random_detections(rng, targets, 30, 3))
    first = coco_metrics(truth, detections)
    again = coco_metrics(truth, detections)
    assert first.ap > 0 and first.to_dict() == again.to_dict()


def test_no_detections_is_zero_where_there_is_ground_truth(capfd):
    result = coco_metrics(one_box_truth(), detect([], [], []))
    assert result.ap == 0 and result.per_class["dog"] == 0 and math.isnan(result.per_class["cat"])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("images", [0, 2])
def test_no_ground_truth_is_nan(images, capfd):
    truth = GroundTruth.from_targets([target(i, [], []) for i in range(images)], NAMES)
    found = detect([[0, 0, 9, 9]], [0.9], [2]) if images else detect([], [], [])
    result = coco_metrics(truth, found)
    assert all(
        math.isnan(value) for value in [*result.metrics.values(), *result.per_class.values()]
    )
    assert capfd.readouterr() == ("", "")


def test_no_classes_at_all():
    truth = GroundTruth.from_targets([target(0, [], [])], ())
    assert coco_metrics(truth, detect([], [], [])).per_class == {}


def test_to_dict_is_json_without_nan():
    result = coco_metrics(one_box_truth(), detect([[0, 0, 100, 100]], [0.5], [1]))
    loaded = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert loaded["AP"] == pytest.approx(1.0) and loaded["APs"] is None
    assert loaded["per_class"]["cat"] is None and loaded["per_class"]["dog"] == pytest.approx(1.0)
    assert loaded["per_class_AP50"] == loaded["per_class"] and loaded["objects"]["dog"] == 1
    nothing = CocoResult({"AP": math.nan}, {}).to_dict()
    assert nothing == {"AP": None, "per_class": {}, "per_class_AP50": {}, "objects": {},
                       "threshold": None}  # fmt: skip


def test_numbers_of_each_class():
    """A box that is half as wide is right at an IoU of 0.5 and at no other; crowds are no
    objects."""
    targets = [target(0, [[0, 0, 100, 100], [0, 0, 90, 90]], [1, 1], [False, True])]
    result = coco_metrics(
        GroundTruth.from_targets(targets, ("cat", "dog")), detect([[0, 0, 51, 100]], [0.5], [1])
    )
    assert result.objects == {"cat": 0, "dog": 1}
    assert result.per_class["dog"] == pytest.approx(0.1) and result.per_class_ap50[
        "dog"
    ] == pytest.approx(1.0)


def test_classes_that_share_a_name_stay_apart():
    truth = GroundTruth.from_targets([target(0, [[0, 0, 50, 50]], [2])], ("tree", "bush", "tree"))
    result = coco_metrics(truth, detect([[0, 0, 50, 50]], [0.9], [2]))
    assert list(result.per_class) == ["tree (0)", "bush", "tree (2)"]
    assert result.per_class["tree (2)"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "names",
    [
        ("a", "a", "a (1)"),
        ("a (1)", "a", "a"),
        ("a", "a", "a (1)", "a (1)"),
        ("a", "a", "a (1)", "a (1) (1)"),
    ],
    ids=str,
)
def test_names_become_distinct_whatever_they_are(names):
    distinct = distinct_names(names)
    assert len(set(distinct)) == len(names)
    for name, own in zip(names, distinct, strict=True):
        assert own == name if names.count(name) == 1 else own.startswith(f"{name} (")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_model_is_told(value):
    with pytest.raises(DivergedError, match=r"1 of 2 detections .* image 8"):
        coco_metrics(
            one_box_truth(), detect([[0, 0, 9, 9], [0, 0, value, 9]], [0.9, 0.9], [1, 1], [0, 1])
        )
    with pytest.raises(DivergedError):
        coco_metrics(one_box_truth(), detect([[0, 0, 9, 9]], [value], [1]))


def test_wrong_arrays_are_refused():
    truth = one_box_truth()
    with pytest.raises(ValueError, match="image index is outside 0 to 1"):
        coco_metrics(truth, detect([[0, 0, 9, 9]], [0.9], [1], [2]))
    with pytest.raises(ValueError, match="image index is outside 0 to 1"):
        coco_metrics(truth, detect([[0, 0, 9, 9]], [0.9], [1], [-1]))
    with pytest.raises(ValueError, match="label is outside 0 to 4"):
        coco_metrics(truth, detect([[0, 0, 9, 9]], [0.9], [5]))


def test_more_objects_than_100_are_measured(tmp_path):
    """A model of 150 queries that knows all 150 objects of an image: COCO keeps 100 of each class,
    not of all."""
    size, count = 96, 150
    columns, rows = np.divmod(np.arange(count), 15)
    boxes = np.stack([6 * rows, 9 * columns, np.full(count, 5), np.full(count, 8)], 1)
    Image.new("RGB", (size, size)).save(tmp_path / "a.png")
    things = [{"id": i, "image_id": 1, "category_id": i % 3, "bbox": box.tolist(), "area": 40, "iscrowd": 0}
              for i, box in enumerate(boxes)]  # fmt: skip
    content = {"images": [{"id": 1, "file_name": "a.png", "width": size, "height": size}], "annotations": things,
               "categories": [{"id": i, "name": str(i)} for i in range(3)]}  # fmt: skip
    (tmp_path / "train").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "train" / "a.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(content))
    dataset = open_dataset(tmp_path, "train")

    class Knowing(DetectionModel):
        num_classes, num_queries, resize, image_size, max_size = 3, count, "square", size, None
        loss_config = LossConfig(scores="sigmoid")

        def __init__(self):
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(()))

        def forward(self, images, mask=None):
            logits = torch.full((1, count, 3), -9.0)
            logits[0, torch.arange(count), torch.arange(count) % 3] = 9.0
            known = torch.from_numpy(boxes).float() / size
            return {
                "pred_logits": logits,
                "pred_boxes": torch.cat([known[:, :2] + known[:, 2:] / 2, known[:, 2:]], 1)[None],
            }

    assert evaluate(Knowing(), dataset, image_size=size).ap == pytest.approx(1.0)


class Reordered(DetectionDataset):
    """A data set with its classes in reverse order."""

    name = "reordered"

    def __init__(self, dataset):
        self._dataset = dataset
        self.class_names = dataset.class_names[::-1]
        self.category_ids = dataset.category_ids[::-1]

    def __len__(self):
        return len(self._dataset)

    def image(self, index):
        return self._dataset.image(index)

    def target(self, index):
        stored = self._dataset.target(index)
        return {**stored, "labels": len(self.class_names) - 1 - stored["labels"]}


def test_losses_are_those_of_the_labels_of_the_model(tiny_coco):
    """The data set may have the classes in another order."""
    dataset = open_dataset(tiny_coco, "val")
    torch.manual_seed(0)
    model = build("redetr_n", len(dataset.class_names), hidden_dim=32, backbone=[8, 16, 16])
    with torch.no_grad():
        model.class_embed[-1].bias.copy_(torch.tensor([-3.0, 0.0, 3.0]))
    options = {"criterion": SetCriterion.for_model(model), "image_size": 64}
    expected = evaluate(model, dataset, **options)
    classes = list(zip(dataset.category_ids, dataset.class_names, strict=True))
    result = evaluate(model, Reordered(dataset), classes=classes, **options)
    assert result.losses == expected.losses
    assert result.ap == expected.ap


@pytest.mark.parametrize("mode", [True, False])
def test_an_evaluation_leaves_the_model_in_its_mode(mode, tiny_coco):
    """It stayed in evaluation mode, in which the next steps of a user's loop were taken."""
    dataset = open_dataset(tiny_coco, "val")
    model = build("redetr_n", len(dataset.class_names), hidden_dim=32, backbone=[8, 16, 16])
    evaluate(model.train(mode), dataset, image_size=64)
    assert model.training == model.backbone.training == mode
    broken = model.train(mode)
    broken.num_classes += 1
    with pytest.raises(InputError, match="the model knows"):
        evaluate(broken, dataset, image_size=64)
    assert model.training == mode


def test_the_threshold_by_hand():
    """In steps of 0.01, over all classes: the highest score with the best F1."""
    targets = [target(0, [[0, 0, 10, 10], [20, 0, 30, 10], [50, 0, 70, 10]], [0, 0, 1])]
    truth = GroundTruth.from_targets(targets, ("cat", "dog", "none of these"))
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [50, 0, 70, 10], [80, 80, 90, 90], [0, 50, 9, 59]]
    scores, labels = [0.905, 0.415, 0.417, 0.6, 0.3], [0, 0, 1, 2, 0]
    # F1 at 0.90: 2 / (1 + 3); 0.60: 2 / (2 + 3); 0.41: 6 / (4 + 3), with one of a class that no
    # object has; 0.30: 6 / (5 + 3).
    result = coco_metrics(truth, detect(boxes, scores, labels))
    assert result.threshold == 0.41 and result.to_dict()["threshold"] == 0.41
    assert coco_metrics(truth, detect(boxes[3:], scores[3:], labels[3:])).threshold is None
    # Nothing is shown at a threshold of 0, which would be everything.
    assert coco_metrics(truth, detect(boxes[:1], [0.005], [0])).threshold is None


@pytest.mark.parametrize("score", [0.29, 0.7, 0.9])
def test_a_score_is_in_the_same_step_from_one_rank_and_from_many(score):
    """Ranks send each other scores in fp64; one rank alone keeps them in fp32."""
    of_one = np.array([score], np.float32)
    steps = [tables_without_objects(1, of_one.astype(kind)).by_score for kind in (float, "f4")]
    assert np.array_equal(*steps)


def test_detections_in_crowds_do_not_move_the_threshold():
    crowd = [0, 0, 100, 100]
    targets = [target(0, [[200, 0, 210, 10], crowd], [0, 0], [False, True])]
    boxes = [[200, 0, 210, 10], [10, 10, 20, 20], [30, 30, 40, 40]]
    truth = GroundTruth.from_targets(targets, ("cat",))
    assert coco_metrics(truth, detect(boxes, [0.25, 0.2, 0.9], [0, 0, 0])).threshold == 0.25
