"""Classes shared out over ranks: the same digits as from one evaluation of everything."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import free_ports, spawn_ranks

from redetr import class_shares
from redetr.class_shares import shared_metrics, to_main
from redetr.distributed import Dist, process_group
from redetr.errors import DivergedError
from redetr.metrics import GroundTruth, TruthObjects, coco_metrics
from redetr.structures import DatasetDetections

IMAGES, CLASSES, OBJECTS = 30, 7, 150
ALONE = Dist(0, 1, torch.device("cpu"))


def boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 80, (count, 2))], axis=1)


def truth(seed: int) -> TruthObjects:
    """Objects in images whose ids are in no order; none of the last class."""
    rng = np.random.default_rng(seed)
    objects = boxes(rng, OBJECTS).astype(np.float32)
    return TruthObjects(
        image_ids=rng.permutation(1000)[:IMAGES],
        class_names=tuple(f"class {label}" for label in range(CLASSES)),
        image=np.sort(rng.integers(0, IMAGES, OBJECTS)),
        labels=rng.integers(0, CLASSES - 1, OBJECTS),
        boxes=objects,
        area=(objects[:, 2:] - objects[:, :2]).prod(1),
        iscrowd=rng.random(OBJECTS) < 0.15,
    )


def detections(objects: TruthObjects, seed: int, per_image: int) -> DatasetDetections:
    """Half near objects; scores of one decimal, so that many are equal."""
    rng = np.random.default_rng(seed)
    count = IMAGES * per_image
    found = boxes(rng, count)
    labels = rng.integers(0, CLASSES, count)
    image = np.repeat(np.arange(IMAGES), per_image)
    near = rng.integers(0, OBJECTS, count // 2)
    found[::2] = objects.boxes[near] + rng.normal(0, 3, (count // 2, 4))
    image[::2] = objects.image[near]
    labels[::2] = objects.labels[near]
    order = np.argsort(image, kind="stable")
    scores = rng.random(count).round(1)
    return DatasetDetections(
        image[order], labels[order], scores[order].astype(np.float32), found[order]
    )


def expected(objects: TruthObjects, found: DatasetDetections) -> dict:
    return coco_metrics(GroundTruth.from_objects(objects), found).to_dict()


@pytest.mark.parametrize(("seed", "per_image"), [(0, 20), (1, 900)])
def test_in_shards_of_few_detections(seed, per_image, monkeypatch):
    """With 900 detections in an image, most classes have more than the 100 that count."""
    monkeypatch.setattr(class_shares, "_AT_ONCE", 200)
    objects = truth(seed)
    found = detections(objects, seed, per_image)
    result = shared_metrics(objects, found, ALONE).to_dict()
    assert result == expected(objects, found)
    assert result["AP"] > 0
    assert result["per_class"][f"class {CLASSES - 1}"] is None


def test_without_detections_and_without_objects():
    objects = truth(0)
    none = DatasetDetections.concatenate([])
    assert shared_metrics(objects, none, ALONE).to_dict() == expected(objects, none)
    nothing = np.zeros(0, np.int64)
    empty = TruthObjects(
        np.arange(2), ("a",), nothing, nothing, np.zeros((0, 4)), np.zeros(0), nothing > 0
    )
    assert math.isnan(shared_metrics(empty, none, ALONE).ap)


def _rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
        for name, value in environment.items():
            patch.setenv(name, str(value))
        with process_group("cpu") as dist:
            objects = truth(3)
            found = detections(objects, 3, 40)
            share = found.keep(found.image_index % 2 == rank)  # none for the last rank
            result = shared_metrics(objects, share, dist).to_dict()
            gathered = to_main(share, dist)
            share.scores[: 1 - rank] = np.nan  # on the first rank only
            message = ""
            try:
                shared_metrics(objects, share, dist)
            except DivergedError as error:
                message = str(error)
            torch.save((result, len(gathered), message), folder / f"{rank}.pt")


def test_ranks_give_the_digits_of_one_process(tmp_path):
    (port,) = free_ports(1)
    (tmp_path / "port").write_text(str(port))
    spawn_ranks(_rank, (tmp_path,), 3)
    objects = truth(3)
    found = detections(objects, 3, 40)
    for rank in range(3):
        result, gathered, message = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert result == expected(objects, found)
        assert gathered == (len(found) if rank == 0 else 0)
        in_share = (found.image_index % 2 == 0).sum()
        assert message.startswith(f"a score or box is not finite in 1 of {in_share} detections")
