"""Mask AP: equal to pycocotools', whatever the number of processes."""

import contextlib
import io
import math
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from forked import free_ports, spawn_ranks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from redetr import class_shares
from redetr.class_shares import shared_metrics, to_main
from redetr.distributed import Dist, process_group
from redetr.masks import encode
from redetr.metrics import METRIC_NAMES, CocoResult, GroundTruth, TruthObjects, coco_metrics
from redetr.structures import DatasetDetections, StoredTarget

NAMES = ("cat", "dog", "bird", "never seen")
SIZE = (130, 170)
ALONE = Dist(0, 1, torch.device("cpu"))


def ellipse(center: np.ndarray, radii: np.ndarray) -> torch.Tensor:
    """A mask of `SIZE`, empty where the ellipse lies outside."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2
    return torch.from_numpy(distance < 1)


def scene(rng: np.random.Generator, image_id: int, crowd_share: float) -> StoredTarget:
    """0 to 6 objects of the first three classes and of all of COCO's sizes."""
    masks = []
    for _ in range(int(rng.integers(0, 7))):
        radius = rng.choice([8, 25, 60])
        masks.append(ellipse(rng.uniform(0, SIZE, 2)[::-1], radius * rng.uniform(0.7, 1.3, 2)))
    count = len(masks)
    stacked = torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=torch.bool)
    return StoredTarget(
        boxes=torch.from_numpy(rng.uniform(0, 9, (count, 4))).float(),  # masks decide, not boxes
        labels=torch.from_numpy(rng.integers(0, 3, count)),
        image_id=image_id,
        orig_size=SIZE,
        size=SIZE,
        iscrowd=torch.from_numpy(rng.random(count) < crowd_share),
        area=stacked.sum((1, 2)).float(),
        masks=stacked,
    )


def near(rng: np.random.Generator, targets: list[StoredTarget], count: int) -> DatasetDetections:
    """Objects moved by a few pixels, and blobs; scores of one decimal, so that many are equal."""
    image = np.sort(rng.integers(0, len(targets), count))
    labels = rng.integers(0, 4, count)
    masks = []
    for row, index in enumerate(image):
        objects = targets[index]
        if len(objects["labels"]) and rng.random() < 0.7:
            pick = int(rng.integers(len(objects["labels"])))
            shift = rng.integers(-4, 5, 2).tolist()
            masks.append(objects["masks"][pick].roll(shift, (0, 1)))
            labels[row] = objects["labels"][pick]
        else:
            masks.append(ellipse(rng.uniform(-20, 150, 2), rng.uniform(2, 40, 2)))
    return DatasetDetections(
        image_index=image,
        labels=labels,
        scores=rng.random(count).round(1).astype(np.float32),
        boxes=rng.uniform(0, 9, (count, 4)).astype(np.float32),
        masks=encode(torch.stack(masks)),
    )


def random_set(
    seed: int, crowd_share: float = 0.3, images: int = 12, count: int = 80
) -> tuple[list[StoredTarget], DatasetDetections]:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(100)[:images].tolist()
    targets = [scene(rng, image_id, crowd_share) for image_id in ids]
    return targets, near(rng, targets, count)


def pycocotools_numbers(
    targets: list[StoredTarget], detections: DatasetDetections
) -> tuple[list[float], list[float]]:
    """The twelve numbers and AP of each class, from what a file of results without boxes says."""
    annotations = []
    for objects in targets:
        for row, mask in enumerate(objects["masks"].numpy()):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": objects["image_id"],
                "category_id": int(objects["labels"][row]) + 1,
                "iscrowd": int(objects["iscrowd"][row]),
                "area": float(objects["area"][row]),
                "segmentation": pycocotools.mask.encode(np.asfortranarray(mask)),
            }
            annotations.append(annotation)
    results = []
    assert detections.masks is not None
    for row, counts in enumerate(detections.masks):
        target = targets[detections.image_index[row]]
        result = {
            "image_id": target["image_id"],
            "category_id": int(detections.labels[row]) + 1,
            "score": float(detections.scores[row]),
            "segmentation": {"size": list(SIZE), "counts": counts},
        }
        results.append(result)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [
                {"id": target["image_id"], "height": SIZE[0], "width": SIZE[1]}
                for target in targets
            ],
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)],
            "annotations": annotations,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    per_class = []
    for table in np.moveaxis(evaluation.eval["precision"][:, :, :, 0, 2], 2, 0):
        known = table[table > -1]
        per_class.append(known.mean() if len(known) else math.nan)
    numbers = np.where(evaluation.stats < 0, math.nan, evaluation.stats)
    return numbers.tolist(), per_class


def of_masks(result: CocoResult) -> CocoResult:
    assert result.masks is not None
    return result.masks


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_pycocotools(seed):
    targets, detections = random_set(seed, crowd_share=[0, 0.2, 0.5][seed % 3])
    truth = GroundTruth.from_targets(targets, NAMES)
    result = of_masks(coco_metrics(truth, detections))
    numbers, per_class = pycocotools_numbers(targets, detections)
    assert list(result.metrics) == list(METRIC_NAMES)
    assert list(result.metrics.values()) == pytest.approx(numbers, abs=1e-9, nan_ok=True)
    assert list(result.per_class.values()) == pytest.approx(per_class, abs=1e-9, nan_ok=True)
    assert 0.05 < result.ap < 0.95 and math.isnan(result.per_class["never seen"])


def test_worked_by_hand():
    """A mask that covers 3 of the 4 pixels of its object counts up to an IoU of 0.75."""
    target = scene(np.random.default_rng(0), image_id=7, crowd_share=0)
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 5, 5:9] = True
    target |= {"masks": mask, "boxes": torch.tensor([[5.0, 5.0, 9.0, 6.0]])}
    target |= {"labels": torch.tensor([1]), "iscrowd": torch.tensor([False])}
    target["area"] = torch.tensor([4.0])
    smaller = mask.clone()
    smaller[0, 5, 8] = False
    detections = DatasetDetections(
        image_index=np.array([0]),
        labels=np.array([1]),
        scores=np.array([0.9]),
        boxes=target["boxes"].numpy(),
        masks=encode(smaller),
    )
    result = coco_metrics(GroundTruth.from_targets([target], NAMES), detections)
    assert result.ap == pytest.approx(1)
    assert of_masks(result).ap == pytest.approx(0.6)
    assert of_masks(result).per_class["dog"] == pytest.approx(0.6)
    content = result.to_dict()
    assert content["AP"] == result.ap and content["masks"]["AP"] == pytest.approx(0.6)
    assert content["masks"]["APl"] is content["masks"]["per_class"]["cat"] is None


def test_masks_are_measured_where_both_sides_have_them():
    targets, detections = random_set(1)
    truth = GroundTruth.from_targets(targets, NAMES)
    boxes_alone = DatasetDetections.concatenate([])
    assert coco_metrics(truth, boxes_alone).masks is None
    assert "masks" not in coco_metrics(truth, boxes_alone).to_dict()
    for target in targets:
        del target["masks"]
    assert coco_metrics(GroundTruth.from_targets(targets, NAMES), detections).masks is None
    objects = TruthObjects.from_targets(targets, NAMES)
    assert shared_metrics(objects, detections, ALONE).masks is None


def test_nothing_detected_and_nothing_to_detect():
    targets, detections = random_set(2)
    truth = GroundTruth.from_targets(targets, NAMES)
    none = detections.keep(np.zeros(len(detections), bool))
    assert of_masks(coco_metrics(truth, none)).ap == 0
    for target in targets:
        for key in ("boxes", "labels", "iscrowd", "area", "masks"):
            target[key] = target[key][:0]
    empty = TruthObjects.from_targets(targets, NAMES)
    for result in (
        coco_metrics(GroundTruth.from_objects(empty), detections),
        shared_metrics(empty, detections, ALONE),
        shared_metrics(empty, none, ALONE),
    ):
        assert math.isnan(of_masks(result).ap)


def test_in_shards_of_few_detections(monkeypatch):
    targets, detections = random_set(3)
    expected = coco_metrics(GroundTruth.from_targets(targets, NAMES), detections).to_dict()
    monkeypatch.setattr(class_shares, "_AT_ONCE", 10)
    monkeypatch.setattr(class_shares, "_MASKS_AT_ONCE", 5)
    objects = TruthObjects.from_targets(targets, NAMES)
    assert shared_metrics(objects, detections, ALONE).to_dict() == expected


def _rank(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
        for name, value in environment.items():
            patch.setenv(name, str(value))
        with process_group("cpu") as dist:
            targets, detections = random_set(4)
            share = detections.keep(detections.image_index % 2 == rank)
            if rank == 2:  # no images at all: this rank has seen no outputs
                share = DatasetDetections.concatenate([])
            objects = TruthObjects.from_targets(targets, NAMES)
            result = shared_metrics(objects, share, dist).to_dict()
            torch.save((result, to_main(share, dist).masks), folder / f"{rank}.pt")


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_give_the_digits_of_one_process(world_size, tmp_path):
    (port,) = free_ports(1)
    (tmp_path / "port").write_text(str(port))
    spawn_ranks(_rank, (world_size, tmp_path), world_size)
    targets, detections = random_set(4)
    expected = coco_metrics(GroundTruth.from_targets(targets, NAMES), detections).to_dict()
    for rank in range(world_size):
        result, masks = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert result == expected
        assert len(masks) == (len(detections) if rank == 0 else 0)
        if rank == 0:
            assert sorted(masks) == sorted(detections.masks)
