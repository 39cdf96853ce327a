"""Panoptic quality: equal to panopticapi's rule, which is written down here plainly."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import free_ports, spawn_ranks
from hotcoco.panoptic import pq_compute
from PIL import Image

from redetr.distributed import Dist, process_group
from redetr.masks import encode
from redetr.metrics import TruthObjects
from redetr.panoptic_quality import (
    image_counts,
    mean_quality,
    panoptic_quality,
    quality_rows,
    shared_quality,
)
from redetr.report import pq_difference
from redetr.structures import DatasetDetections

NAMES = ("cat", "dog", "sky", "grass", "never seen")
IS_THING = (True, True, False, False, False)
SIZE = (24, 32)
VOID = 0


def blocks(rng, count):
    """A map `[H, W]` of up to `count` regions, numbered from 0."""
    coarse = rng.integers(0, count, (6, 8))
    return np.kron(coarse, np.ones((4, 4), int))


def random_image(rng):
    """The truth and a prediction: each a map of ids with VOID, and a class (and crowd) of each."""
    truth = blocks(rng, 8)
    classes = {number: int(rng.integers(0, 4)) for number in range(1, 8)}
    crowds = {number for number in classes if IS_THING[classes[number]] and rng.random() < 0.3}
    predicted = np.roll(truth, rng.integers(-1, 2, 2), (0, 1))
    noise = rng.random(SIZE) < 0.1
    predicted[noise] = rng.integers(0, 8, noise.sum())
    predicted[predicted == int(rng.integers(0, 8))] = 8  # often what is void in the truth
    found = {}
    for number in np.unique(predicted[predicted != VOID]).tolist():
        is_right = number in classes and rng.random() < 0.8
        found[number] = classes[number] if is_right else int(rng.integers(0, 4))
    classes = {number: classes[number] for number in np.unique(truth[truth != VOID]).tolist()}
    return truth, classes, crowds & set(classes), predicted, found


def plain_rule(images):
    """[label] -> (tp, fp, fn, sum of IoU), as panopticapi counts."""
    counts = {label: [0, 0, 0, 0.0] for label in range(len(NAMES))}
    for truth, classes, crowds, predicted, found in images:
        matched_truth, matched_found = set(), set()
        for t in classes.keys() - crowds:
            for p in found:
                if classes[t] != found[p]:
                    continue
                common = ((truth == t) & (predicted == p)).sum()
                in_void = ((truth == VOID) & (predicted == p)).sum()
                union = (truth == t).sum() + (predicted == p).sum() - common - in_void
                if common / union > 0.5:
                    counts[found[p]][0] += 1
                    counts[found[p]][3] += common / union
                    matched_truth.add(t)
                    matched_found.add(p)
        for t in classes.keys() - crowds - matched_truth:
            counts[classes[t]][2] += 1
        crowd_of_class = {classes[t]: t for t in sorted(crowds)}  # one of each class
        for p in found.keys() - matched_found:
            forgiven = ((truth == VOID) & (predicted == p)).sum()
            if found[p] in crowd_of_class:
                forgiven += ((truth == crowd_of_class[found[p]]) & (predicted == p)).sum()
            if forgiven / (predicted == p).sum() <= 0.5:
                counts[found[p]][1] += 1
    return counts


def plain_numbers(images):
    """The qualities by group and class; None where a class does not occur."""
    per_class = {}
    for label, (tp, fp, fn, iou) in plain_rule(images).items():
        halves = tp + fp / 2 + fn / 2
        per_class[label] = None
        if halves:
            per_class[label] = {
                "PQ": iou / halves,
                "SQ": iou / tp if tp else 0.0,
                "RQ": tp / halves,
            }
    result = {"per_class": {NAMES[label]: per_class[label] for label in per_class}}
    for group, wanted in (("all", (True, False)), ("things", (True,)), ("stuff", (False,))):
        known = [per_class[i] for i in per_class if IS_THING[i] in wanted and per_class[i]]
        result[group] = None
        if known:
            result[group] = {key: np.mean([row[key] for row in known]) for key in known[0]}
    return result


def as_arrays(images):
    """The truth and the segments as evaluation holds them."""
    truth_columns, found_columns = [], []
    for index, (truth, classes, crowds, predicted, found) in enumerate(images):
        for t, label in classes.items():
            (mask,) = encode(torch.from_numpy(truth == t)[None])
            truth_columns.append((index, label, t in crowds, mask))
        for p, label in found.items():
            (mask,) = encode(torch.from_numpy(predicted == p)[None])
            found_columns.append((index, label, mask))
    of_truth = list(zip(*truth_columns, strict=True)) or [()] * 4
    of_found = list(zip(*found_columns, strict=True)) or [()] * 3
    count = len(truth_columns)
    objects = TruthObjects(
        image_ids=np.arange(len(images)) + 100,
        class_names=NAMES,
        image=np.array(of_truth[0], np.int64),
        labels=np.array(of_truth[1], np.int64),
        boxes=np.zeros((count, 4)),
        area=np.zeros(count),
        iscrowd=np.array(of_truth[2], bool),
        masks=list(of_truth[3]),
        image_sizes=np.array([SIZE] * len(images)),
    )
    segments = DatasetDetections(
        image_index=np.array(of_found[0], np.int64),
        labels=np.array(of_found[1], np.int64),
        scores=np.ones(len(found_columns)),
        boxes=np.zeros((len(found_columns), 4)),
        masks=list(of_found[2]),
    )
    return objects, segments


def random_images(seed, count=8):
    rng = np.random.default_rng(seed)
    return [random_image(rng) for _ in range(count)]


def check(result, expected):
    content = result.to_dict()
    undefined = {"PQ": None, "SQ": None, "RQ": None}
    pairs = [(content["things"], expected["things"]), (content["stuff"], expected["stuff"])]
    pairs.append(({key: content[key] for key in undefined}, expected["all"]))
    for name in NAMES:
        pairs.append((content["per_class"][name], expected["per_class"][name]))
    for measured, wanted in pairs:
        if wanted is None:
            assert measured == undefined
        else:
            assert measured == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(6))
def test_equal_to_the_plain_rule_with_void_and_crowds(seed):
    images = random_images(seed)
    assert any(crowds for _, _, crowds, _, _ in images)
    result = panoptic_quality(*as_arrays(images), IS_THING)
    check(result, plain_numbers(images))
    assert 0.05 < result.all.pq < 0.95


@pytest.mark.parity
def counts_of(images):
    return image_counts(*as_arrays(images), IS_THING)


def test_counts_of_images_add_up_to_the_quality():
    images = random_images(3)
    result = panoptic_quality(*as_arrays(images), IS_THING)
    counts = counts_of(images)
    assert counts.shape == (len(images), len(NAMES), 4)
    assert mean_quality(counts.sum(0)) == pytest.approx(result.all.pq, abs=1e-12)
    assert np.array_equal(counts.sum(0)[:, :3], [row[:3] for row in plain_rule(images).values()])
    assert np.isnan(mean_quality(np.zeros((2, 4))))


def test_the_interval_of_pq_is_that_of_a_bootstrap():
    """Two predictions of the same truth, on images that are drawn with replacement."""
    images = random_images(5, count=40)
    first = counts_of(images)
    second = counts_of([(*image[:3], image[0], image[1]) for image in images[:20]] + images[20:])
    rng = np.random.default_rng(0)
    changes = []
    for _ in range(400):
        drawn = rng.integers(0, len(images), len(images))
        changes.append(mean_quality(second[drawn].sum(0)) - mean_quality(first[drawn].sum(0)))
    lower, upper = np.quantile(changes, [0.025, 0.975])
    change = pq_difference(first, second)["PQ"]
    tolerance = 0.2 * (upper - lower)
    assert change["difference"] == mean_quality(second.sum(0)) - mean_quality(first.sum(0)) > 0
    assert change["lower"] == pytest.approx(lower, abs=tolerance)
    assert change["upper"] == pytest.approx(upper, abs=tolerance)
    back = pq_difference(second, first)["PQ"]
    assert back["lower"] == pytest.approx(-change["upper"])
    assert pq_difference(first[:1], second[:1]) == pq_difference(0 * first, 0 * second) == {}


def test_files_give_the_same(tmp_path):
    """COCO's panoptic files of the same images, read by hotcoco."""
    images = random_images(7)
    categories = [
        {"id": label + 1, "name": name, "isthing": int(IS_THING[label])}
        for label, name in enumerate(NAMES)
    ]
    written = {"truth": [], "found": []}
    for index, (truth, classes, crowds, predicted, found) in enumerate(images):
        for kind, ids, labels in (("truth", truth, classes), ("found", predicted, found)):
            (tmp_path / kind).mkdir(exist_ok=True)
            colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
            Image.fromarray(colors).save(tmp_path / kind / f"{index}.png")
            segments = []
            for number, label in labels.items():
                segment = {"id": number, "category_id": label + 1}
                segment["area"] = int((ids == number).sum())
                segment["iscrowd"] = int(kind == "truth" and number in crowds)
                segments.append(segment)
            entry = {"image_id": index, "file_name": f"{index}.png", "segments_info": segments}
            written[kind].append(entry)
    for kind, annotations in written.items():
        sizes = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(images))]
        content = {"images": sizes, "categories": categories, "annotations": annotations}
        (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    by_files = pq_compute(str(tmp_path / "truth.json"), str(tmp_path / "found.json"))
    result = panoptic_quality(*as_arrays(images), IS_THING)
    assert by_files["All"]["pq"] == pytest.approx(result.all.pq, abs=1e-12)
    assert by_files["Stuff"]["sq"] == pytest.approx(result.stuff.sq, abs=1e-12)
    assert by_files["Things"]["rq"] == pytest.approx(result.things.rq, abs=1e-12)


def test_nothing_is_undefined_and_not_divided_by():
    nothing = np.zeros(SIZE, int)
    check(panoptic_quality(*as_arrays([]), IS_THING), plain_numbers([]))
    empty = [(nothing, {}, set(), nothing, {})] * 2
    result = panoptic_quality(*as_arrays(empty), IS_THING)
    assert result.all.pq is None and result.to_dict()["PQ"] is None
    truth = blocks(np.random.default_rng(0), 3)
    classes = {1: 2, 2: 3}
    for images in (
        [(truth, classes, set(), nothing, {})],  # nothing predicted
        [(nothing, {}, set(), truth, classes)],  # all of it in void
        [(truth, classes, {1}, truth, classes)],
    ):
        check(panoptic_quality(*as_arrays(images), IS_THING), plain_numbers(images))


def test_masks_are_needed_and_may_not_cover_each_other():
    objects, segments = as_arrays(random_images(0))
    boxes_alone = DatasetDetections(**(vars(segments) | {"masks": None}))
    with pytest.raises(ValueError, match="needs masks"):
        panoptic_quality(objects, boxes_alone, IS_THING)
    twice = DatasetDetections.concatenate([segments, segments])
    with pytest.raises(ValueError, match="segment"):
        panoptic_quality(objects, twice, IS_THING)


def _rank(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
        for name, value in environment.items():
            patch.setenv(name, str(value))
        with process_group("cpu") as dist:
            objects, segments = as_arrays(random_images(9, count=5))
            share = segments.keep(segments.image_index % world_size == rank)
            torch.save(
                shared_quality(objects, share, IS_THING, dist).to_dict(), folder / f"{rank}.pt"
            )


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_give_the_digits_of_one_process(world_size, tmp_path):
    (port,) = free_ports(1)
    (tmp_path / "port").write_text(str(port))
    spawn_ranks(_rank, (world_size, tmp_path), world_size)
    alone = Dist(0, 1, torch.device("cpu"))
    objects, segments = as_arrays(random_images(9, count=5))
    expected = shared_quality(objects, segments, IS_THING, alone).to_dict()
    for rank in range(world_size):
        assert torch.load(tmp_path / f"{rank}.pt") == expected


def test_a_class_may_have_the_name_of_a_group():
    groups = {name: {"PQ": share} for name, share in (("things", 0.2), ("stuff", 0.3))}
    result = {"PQ": 0.1, **groups, "per_class": {"stuff": {"PQ": 0.4}}}
    rows = [(name, quality["PQ"]) for name, quality in quality_rows(result)]
    assert rows == [("all", 0.1), ("things", 0.2), ("stuff", 0.3), ("stuff", 0.4)]
