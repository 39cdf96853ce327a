"""Any split of a global batch over ranks and micro-batches is the same step, in real processes.

They communicate over gloo. W ranks with A accumulated micro-batches each must give the gradient of one process on the whole
batch. The images have several sizes and 0 to 15 objects, half of them none, so that every split has
a part without any.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import free_ports, spawn_ranks
from torch import Tensor

import redetr
from redetr.data import DetectionDataset
from redetr.data.loader import Sample
from redetr.distributed import Dist, process_group
from redetr.evaluation import detect_share, evaluate
from redetr.structures import DatasetDetections, DetectionModel
from redetr.verification import TOLERANCE, put_in_general_position, split_gradient, whole_gradient

# Numbers of micro-batches, by dtype and number of ranks. 12 images are not divided evenly by 5
# micro-batches, by 2 ranks with 4, by 3 with 3 or by 4 with 2: fp32 rounds more there (2e-6).
ACCUMULATE: dict[str, dict[int, tuple[int, ...]]] = {
    "fp64": {1: (1, 5), 2: (1, 4), 3: (3,), 4: (2,)},
    "fp32": {1: (1, 4), 2: (2,), 3: (1,), 4: (1,)},
}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
NUM_CLASSES = 3

# Dropout is off: its masks differ between ranks by nature. The faithful variant has fewer queries
# than some image has objects. Two of the others learn
# boxes only, and three masks.
SMALL: dict[str, Any] = {
    "backbone": (32, 32, 64),
    "hidden_dim": 32,
    "nheads": 4,
    "dec_layers": 2,
    "dim_feedforward": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "detr_r50": {**SMALL, "enc_layers": 1, "dropout": 0.0, "num_queries": 10},
    "redetr_n": {**SMALL, "num_queries": 20, "masks": True},
    "rtdetr_r18": {
        "width": 16,
        "enc_hidden_dim": 32,
        "enc_dim_feedforward": 64,
        "hidden_dim": 32,
        "nheads": 4,
        "dec_layers": 2,
        "dim_feedforward": 64,
        "num_queries": 20,
        "denoising": 2,
    },
    "detr_r50_panoptic": {
        **SMALL,
        "nheads": 8,
        "hidden_dim": 64,
        "enc_layers": 1,
        "dec_layers": 1,
        "dropout": 0.0,
        "num_queries": 10,
    },
    "dfine_n": {
        "width": 8,
        "enc_hidden_dim": 32,
        "enc_dim_feedforward": 64,
        "block_width": 16,
        "hidden_dim": 32,
        "nheads": 4,
        "dec_layers": 2,
        "dim_feedforward": 64,
        "num_queries": 20,
        "denoising": 2,
        "masks": True,
    },
}

COUNTS = (0, 0, 0, 0, 0, 0, 15, 1, 7, 2, 3, 4)
# The first half is smaller than the canvas of the whole batch; the last three fill it and need no
# mask of their own.
SIZES = (
    (64, 72),
    (80, 48),
    (32, 64),
    (50, 70),
    (72, 56),
    (40, 40),
    (64, 64),
    (33, 47),
    (80, 80),
    *[(96, 80)] * 3,
)

_WITHOUT_MASKS = 9  # an image with objects


def global_samples() -> list[Sample]:
    """What the loader yields for one optimizer step: uint8 images and targets."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i, (count, size) in enumerate(zip(COUNTS, SIZES, strict=True)):
        boxes = torch.rand(count, 4, generator=generator) * 0.4 + 0.2
        labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        target = redetr.Target(
            boxes=boxes,
            labels=labels,
            image_id=i,
            orig_size=size,
            size=size,
            iscrowd=torch.zeros(count, dtype=torch.bool),
            area=torch.ones(count),
            seed=i,
        )
        if i != _WITHOUT_MASKS:
            target["masks"] = torch.rand(count, *size, generator=generator) < 0.3
            target["masks"][2:3] = False  # not known
        samples.append((image, target))
    return samples


def gradient(
    dist: Dist, name: str, dtype: torch.dtype, accumulate: int, normalization: Any = "global"
) -> Tensor:
    """The whole gradient of one optimizer step as training computes it, as one vector."""
    model, criterion = build(name, normalization)
    with threads_for(dtype):
        return flat(split_gradient(model, criterion, global_samples(), dist, accumulate, dtype))


@contextmanager
def threads_for(dtype: torch.dtype) -> Iterator[None]:
    """In fp32, one thread. On eight, kernels differ with the size of a batch, and rounding exchanges
    queries whose scores all but tie: 2e-4. In fp64, as many threads as there are."""
    before = torch.get_num_threads()
    if dtype == torch.float32:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(name: str, normalization: Any = "global") -> tuple[DetectionModel, redetr.SetCriterion]:
    """The model of `VARIANTS` with the same random weights in each process, and its criterion."""
    torch.manual_seed(0)
    model = redetr.build(name, NUM_CLASSES, **VARIANTS[name])
    put_in_general_position(model)
    model = model.to(memory_format=torch.channels_last)
    return model, redetr.SetCriterion.for_model(model, normalization)


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


class Rectangles(DetectionDataset):
    """Eleven images with up to three rectangles: red, green, blue. No number of ranks divides 11."""

    name = "rectangles"
    class_names = ("red", "green", "blue")
    category_ids = (1, 5, 9)

    def __len__(self) -> int:
        return 11

    def sample(self, index: int) -> Sample:
        random = np.random.default_rng(index)
        height, width = random.integers(40, 80, 2).tolist()
        image = torch.from_numpy(random.integers(0, 100, (3, height, width), dtype=np.uint8))
        labels = [label for label in range(3) if (index + label) % 4]
        boxes = []
        for label in labels:
            x, y, w, h = random.integers(5, 20, 4).tolist()
            boxes.append([x, y, x + w, y + h])
            image[label, y : y + h, x : x + w] = 255
        boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
        return image, redetr.StoredTarget(
            boxes=boxes,
            labels=torch.tensor(labels),
            image_id=100 - index,
            area=boxes[:, 2],
            orig_size=(height, width),
            size=(height, width),
            iscrowd=torch.zeros(len(labels), dtype=torch.bool),
        )

    def image(self, index: int) -> Tensor:
        return self.sample(index)[0]

    def target(self, index: int) -> redetr.StoredTarget:
        return self.sample(index)[1]


class Finder(DetectionModel):
    """Finds rectangles by their colour, a little beside the truth and surer of large ones."""

    num_classes = 3
    num_queries = 3
    resize = "aspect"
    image_size = 64
    max_size = 100
    loss_config = redetr.LossConfig(scores="sigmoid")

    def forward(self, images: Tensor, mask: Tensor | None = None) -> redetr.Outputs:
        logits = torch.full((len(images), 3, 3), -5.0)
        boxes = torch.full((len(images), 3, 4), 0.5)
        for i, image in enumerate(images):
            height, width = image.shape[-2:]
            if mask is not None:
                valid = ~mask[i]
                height = valid[:, 0].sum()
                width = valid[0].sum()
            for label in range(3):
                rows, columns = torch.where(image[label] > 1.5)
                if len(rows) == 0:
                    continue
                top = rows.min()
                bottom = rows.max() + 1
                left = columns.min()
                right = columns.max() + 1
                shift = (len(rows) % 7) / 4  # px
                center_x = (left + right + shift) / (2 * width)
                center_y = (top + bottom) / (2 * height)
                box = [center_x, center_y, (right - left) / width, (bottom - top) / height]
                boxes[i, label] = torch.stack(box)
                logits[i, label, label] = len(rows) / 300 - 1
        return {"pred_logits": logits, "pred_boxes": boxes}


def detections(dist: Dist) -> dict[str, np.ndarray]:
    """What a random model detects, in the order of the images; batches of two are padded."""
    torch.manual_seed(0)
    model = redetr.build("detr_r50", 3, **VARIANTS["detr_r50"])
    share = detect_share(model, Rectangles(), dist, image_size=48, batch_size=2).detections
    detected = DatasetDetections.concatenate(dist.gather([share]))
    order = np.argsort(detected.image_index, kind="stable")
    arrays = asdict(detected.keep(order))
    assert arrays.pop("masks") is None
    return arrays


def run_training(data: Path, output: Path, accumulate: int) -> None:
    """Four steps with the optimizer, in fp64, where rounding does not grow."""
    options = [f"{name}={json.dumps(value)}" for name, value in SMALL.items()]
    config = redetr.TrainConfig(
        model="redetr_n",
        data=str(data),
        output=str(output),
        steps=4,
        batch_size=6,
        num_queries=10,
        accumulate=accumulate,
        image_size=64,
        log_every=1,
        eval_every=4,
        model_options=tuple(options),
        lr=1e-3,
        device="cpu",
        precision="fp64",
        num_workers=0,
    )
    redetr.train(config)


Result = tuple[list[dict[str, Any]], Tensor, dict[str, Any]]


def training_result(output: Path) -> Result:
    """What a run has written: its metrics, all weights as one vector, the images and their hashes.

    The metrics are the lines of metrics.jsonl without timings.
    """
    lines = []
    for text in (output / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for timing in ("time_s", "images_per_s", "data_wait"):
            line.pop(timing, None)
        lines.append(line)
    weights = torch.load(output / "last.pt", weights_only=True)["model"]
    images = json.loads((output / "data.json").read_text())
    return lines, flat(weights), images


def measure(dist: Dist) -> dict[str, Any]:
    """Everything that is compared between numbers of ranks."""
    gradients = {}
    for name in VARIANTS:
        for dtype in DTYPES:
            for accumulate in ACCUMULATE[dtype][dist.world_size]:
                key = (name, dtype, accumulate)
                gradients[key] = gradient(dist, name, DTYPES[dtype], accumulate)
    per_rank = gradient(dist, "detr_r50", torch.float64, 1, "per_rank")
    finder = Finder()
    criterion = redetr.SetCriterion.for_model(finder)
    metrics = evaluate(finder, Rectangles(), dist, image_size=64, batch_size=2, criterion=criterion)
    return {
        "gradients": gradients,
        "per_rank": per_rank,
        "metrics": metrics.to_dict() | metrics.losses,
        "detections": detections(dist),
    }


def _rank(rank: int, world_size: int, ports: list[int], folder: Path, data: Path) -> None:
    """One process of a world, as torchrun starts it."""
    torch.set_num_threads(1)
    os.environ["RANK"] = str(rank)
    os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = str(world_size)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    os.environ["MASTER_PORT"] = str(ports[0])
    with process_group("cpu", timeout_s=300) as dist:
        result = measure(dist)
    os.environ["MASTER_PORT"] = str(ports[1])
    run_training(data, folder / "run", accumulate=1)
    torch.save(result, folder / f"{rank}.pt")


WORLDS = [2, pytest.param(3, marks=pytest.mark.long), pytest.param(4, marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, shared_coco) -> dict[str, Any]:
    """The reference: one process, without a launcher."""
    with process_group("cpu") as dist:
        result = measure(dist)
    folder = tmp_path_factory.mktemp("alone")
    run_training(shared_coco, folder / "whole", accumulate=1)
    run_training(shared_coco, folder / "accumulated", accumulate=2)
    result["whole"] = training_result(folder / "whole")
    result["accumulated"] = training_result(folder / "accumulated")
    return result


@pytest.fixture(scope="module", params=WORLDS, ids="{} ranks".format)
def ranks(request, tmp_path_factory, shared_coco) -> list[dict[str, Any]]:
    """What each process of a world measured."""
    world_size = request.param
    folder = tmp_path_factory.mktemp(f"world{world_size}")
    arguments = (world_size, free_ports(2), folder, shared_coco)
    spawn_ranks(_rank, arguments, world_size)
    run = training_result(folder / "run")
    results = []
    for rank in range(world_size):
        result = torch.load(folder / f"{rank}.pt", weights_only=False)
        results.append(result | {"run": run})
    return results


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def assert_exact(gradients: dict, whole: dict) -> None:
    """Compares gradients by (model, dtype, accumulate) with those of the whole batch in `whole`."""
    assert gradients
    for (name, dtype, accumulate), actual in gradients.items():
        error = relative_error(actual, whole[name, dtype, 1])
        assert error <= TOLERANCE[dtype], (name, dtype, accumulate)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_single_process_computes_what_is_written_by_hand(alone, name, dtype):
    """One forward pass, the set loss, one backward pass, no process group."""
    model, criterion = build(name)
    device = torch.device("cpu")
    with threads_for(DTYPES[dtype]):
        gradients = whole_gradient(model, criterion, global_samples(), device, DTYPES[dtype])
    error = relative_error(alone["gradients"][name, dtype, 1], flat(gradients))
    assert error <= TOLERANCE[dtype]


def test_accumulation_does_not_change_the_gradient(alone):
    accumulated = {}
    for (name, dtype, accumulate), value in alone["gradients"].items():
        if accumulate > 1:
            accumulated[name, dtype, accumulate] = value
    assert_exact(accumulated, alone["gradients"])


def test_the_number_of_ranks_does_not_change_the_gradient(alone, ranks):
    for rank in ranks:
        assert_exact(rank["gradients"], alone["gradients"])


def test_the_split_matters_where_it_is_meant_to(alone, ranks):
    """The original's class loss is a mean over the images of a rank: the comparison would see it."""
    whole = alone["gradients"]["detr_r50", "fp64", 1]
    assert relative_error(alone["per_rank"], whole) < 1e-12
    assert relative_error(ranks[0]["per_rank"], alone["per_rank"]) > 0.01


def test_evaluation_gives_the_same_numbers_everywhere(alone, ranks):
    metrics = alone["metrics"]
    assert 0.1 < metrics["AP"] < 0.9  # the numbers say something
    assert metrics["AP"] < metrics["AP50"]
    weighted = metrics["loss_ce"] + 5 * metrics["loss_bbox"] + 2 * metrics["loss_giou"]
    assert metrics["loss"] == pytest.approx(weighted)
    for rank in ranks:
        assert rank["metrics"] == metrics


def test_every_image_is_evaluated_once_and_padded_as_alone(alone, ranks):
    expected = alone["detections"]
    assert np.bincount(expected["image_index"]).tolist() == [10] * 11
    for rank in ranks:
        for name, values in rank["detections"].items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def assert_same_run(actual: Result, expected: Result) -> None:
    lines, weights, images = actual
    expected_lines, expected_weights, expected_images = expected
    assert lines == expected_lines
    assert images == expected_images
    assert relative_error(weights, expected_weights) < 1e-12


def test_whole_runs_are_equal(alone, ranks):
    """Every logged digit, losses and AP, and the final weights.

    Four ranks take 1 or 2 images each of a batch of 6.
    """
    lines, _, images = alone["whole"]
    assert len(set(images["train"]["images"].values())) == 8
    assert len(set(images["val"]["images"].values())) == 5
    steps = [(line["step"], "AP" in line) for line in lines]
    assert steps == [(1, False), (2, False), (3, False), (4, False), (4, True)]
    assert {"loss_bbox_0", "loss_giou_enc", "grad_norm", "lr"} < lines[0].keys()
    assert {"val_loss", "val_loss_ce", "val_loss_giou_enc"} < lines[4].keys()
    assert_same_run(alone["accumulated"], alone["whole"])
    assert_same_run(ranks[0]["run"], alone["whole"])
