"""Any split of the same global batch over ranks and micro-batches is the same step: real processes,
over gloo.

W ranks with A accumulated micro-batches each must give the gradient of one process on the whole
batch. The images have several sizes and 0 to 15 objects, half of them none, so that every split has
a part without any.
"""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

import redetr
from redetr.data import DetectionDataset
from redetr.data.loader import Sample
from redetr.distributed import Dist, process_group
from redetr.evaluation import detect_dataset, evaluate
from redetr.structures import DetectionModel
from redetr.verification import split_gradient, whole_gradient

ACCUMULATE = {1: (1, 2, 4), 2: (1, 2), 3: (1,), 4: (1,)}  # by number of ranks
UNEVEN = {
    1: (5,),
    2: (4,),
    3: (3,),
    4: (2,),
}  # do not divide the batch: in fp64 only, fp32 rounds more (2e-6)
LARGEST_ERROR = {"fp64": 1e-12, "fp32": 1e-6}
DTYPES = {"fp64": torch.float64, "fp32": torch.float32}
NUM_CLASSES = 3

# Dropout is off: its masks differ between ranks by nature. The faithful form has fewer queries than
# some image objects.
SMALL: dict[str, Any] = {"backbone": (16, 32, 64), "hidden_dim": 32, "nheads": 4, "dec_layers": 2,
                         "dim_feedforward": 64}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "detr_r50": {**SMALL, "enc_layers": 1, "dropout": 0.0, "num_queries": 10},
    "redetr_n": {**SMALL, "num_queries": 20},
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


def global_samples() -> list[Sample]:
    """What the loader gives for one optimizer step: uint8 images and targets."""
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
        )
        samples.append((image, target))
    return samples


def gradient(
    dist: Dist, form: str, dtype: torch.dtype, accumulate: int, normalization: Any = "global"
) -> Tensor:
    """The whole gradient of one optimizer step as training computes it, as one vector."""
    model, criterion = build(form, normalization)
    return flat(split_gradient(model, criterion, global_samples(), dist, accumulate, dtype))


def build(form: str, normalization: Any = "global") -> tuple[DetectionModel, redetr.SetCriterion]:
    torch.manual_seed(0)
    model = redetr.build(form, NUM_CLASSES, **FORMS[form]).to(memory_format=torch.channels_last)
    return model, redetr.SetCriterion.for_model(model, normalization)


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


class Rectangles(DetectionDataset):
    """Eleven images, none of 2 and 3 divides that, with up to one rectangle per class: red, green,
    blue."""

    name, class_names, category_ids = "rectangles", ("red", "green", "blue"), (1, 5, 9)

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

    num_classes, num_queries, resize, image_size, max_size = 3, 3, "aspect", 64, 100
    loss_config = redetr.LossConfig(scores="sigmoid")

    def forward(self, images: Tensor, mask: Tensor | None = None) -> redetr.Outputs:
        logits, boxes = torch.full((len(images), 3, 3), -5.0), torch.full((len(images), 3, 4), 0.5)
        for i, image in enumerate(images):
            height, width = (
                image.shape[-2:] if mask is None else ((~mask[i])[:, 0].sum(), (~mask[i])[0].sum())
            )
            for label in range(3):
                rows, columns = torch.where(image[label] > 1.5)
                if len(rows):
                    top, bottom, left, right = (
                        rows.min(),
                        rows.max() + 1,
                        columns.min(),
                        columns.max() + 1,
                    )
                    shift = (len(rows) % 7) / 4  # px
                    boxes[i, label] = torch.stack(
                        [
                            (left + right + shift) / (2 * width),
                            (top + bottom) / (2 * height),
                            (right - left) / width,
                            (bottom - top) / height,
                        ]
                    )
                    logits[i, label, label] = len(rows) / 300 - 1
        return {"pred_logits": logits, "pred_boxes": boxes}


def detections(dist: Dist) -> dict[str, np.ndarray]:
    """What a random model finds in each image, in the order of the images; batches of two are
    padded."""
    torch.manual_seed(0)
    model = redetr.build("detr_r50", 3, **FORMS["detr_r50"])
    found, _ = detect_dataset(model, Rectangles(), dist, image_size=48, batch_size=2)
    order = np.argsort(found.image_index, kind="stable")
    return asdict(found.keep(order))


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
    """The lines of metrics.jsonl without timings, all weights as one vector, the images and their
    hashes."""
    timings = {"time_s", "images_per_s", "data_wait"}
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    weights = torch.load(output / "last.pt", weights_only=True)["model"]
    images = json.loads((output / "data.json").read_text())
    return (
        [{k: v for k, v in line.items() if k not in timings} for line in lines],
        flat(weights),
        images,
    )


def measure(dist: Dist) -> dict[str, Any]:
    """Everything that is compared between numbers of ranks."""
    gradients = {
        (form, dtype, accumulate): gradient(dist, form, DTYPES[dtype], accumulate)
        for form in FORMS
        for dtype in DTYPES
        for accumulate in ACCUMULATE[dist.world_size]
        + (UNEVEN[dist.world_size] if dtype == "fp64" else ())
    }
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
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}  # fmt: skip
    with process_group("cpu", timeout_s=300) as dist:
        result = measure(dist)
    os.environ["MASTER_PORT"] = str(ports[1])
    run_training(data, folder / "run", accumulate=1)
    torch.save(result, folder / f"{rank}.pt")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def alone(tmp_path_factory, shared_coco) -> dict[str, Any]:
    """One process, started by nobody: the reference."""
    with process_group("cpu") as dist:
        result = measure(dist)
    folder = tmp_path_factory.mktemp("alone")
    run_training(shared_coco, folder / "whole", accumulate=1)
    run_training(shared_coco, folder / "accumulated", accumulate=2)
    return result | {name: training_result(folder / name) for name in ("whole", "accumulated")}


@pytest.fixture(scope="module", params=[2, 3, 4], ids=["2 ranks", "3 ranks", "4 ranks"])
def ranks(request, tmp_path_factory, shared_coco) -> list[dict[str, Any]]:
    """What each process of a world measured."""
    folder = tmp_path_factory.mktemp(f"world{request.param}")
    multiprocessing.set_forkserver_preload(["redetr.training"])  # imported once, not by each rank
    arguments = (request.param, free_ports(2), folder, shared_coco)
    mp.start_processes(_rank, arguments, nprocs=request.param, start_method="forkserver")
    results = [
        torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)
    ]
    return [result | {"run": training_result(folder / "run")} for result in results]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def assert_exact(
    gradients: dict, reference: dict, skip: Callable[[int], bool] = lambda accumulate: False
) -> None:
    errors = {
        key: relative_error(found, reference[key[0], key[1], 1])
        for key, found in gradients.items()
        if not skip(key[2])
    }
    assert errors
    assert {key: error for key, error in errors.items() if not error <= LARGEST_ERROR[key[1]]} == {}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_one_process_computes_what_one_would_write_by_hand(alone, form, dtype):
    """One forward pass, the set loss, one backward pass, no process group."""
    expected = flat(
        whole_gradient(*build(form), global_samples(), torch.device("cpu"), DTYPES[dtype])
    )
    assert relative_error(alone["gradients"][form, dtype, 1], expected) <= LARGEST_ERROR[dtype]


def test_accumulation_does_not_change_the_gradient(alone):
    assert_exact(alone["gradients"], alone["gradients"], skip=lambda accumulate: accumulate == 1)


def test_the_number_of_ranks_does_not_change_the_gradient(alone, ranks):
    for rank in ranks:
        assert_exact(rank["gradients"], alone["gradients"])


def test_the_split_matters_where_it_is_meant_to(alone, ranks):
    """The class loss of the original is a mean over each rank's own images: the comparison would
    see it."""
    assert relative_error(alone["per_rank"], alone["gradients"]["detr_r50", "fp64", 1]) < 1e-12
    assert relative_error(ranks[0]["per_rank"], alone["per_rank"]) > 0.01


def test_evaluation_gives_the_same_numbers_everywhere(alone, ranks):
    metrics = alone["metrics"]
    assert 0.1 < metrics["AP"] < 0.9  # the numbers say something
    assert metrics["AP"] < metrics["AP50"]
    weighted = metrics["loss_ce"] + 5 * metrics["loss_bbox"] + 2 * metrics["loss_giou"]
    assert metrics["loss"] == pytest.approx(weighted)
    for rank in ranks:
        assert rank["metrics"] == metrics


def test_every_image_is_looked_at_once_and_padded_as_alone(alone, ranks):
    expected = alone["detections"]
    assert np.bincount(expected["image_index"]).tolist() == [10] * 11
    for rank in ranks:
        for name, values in rank["detections"].items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def same_run(found: Result, expected: Result) -> bool:
    return found[::2] == expected[::2] and relative_error(found[1], expected[1]) < 1e-12


def test_whole_runs_are_equal(alone, ranks):
    """Every logged digit, losses and AP, and the final weights. 4 ranks get 1 or 2 images of a
    batch of 6 each."""
    lines, _, images = alone["whole"]
    assert [len(set(images[split]["images"].values())) for split in ("train", "val")] == [8, 5]
    assert [(line["step"], "AP" in line) for line in lines] == [
        *((i, False) for i in (1, 2, 3, 4)),
        (4, True),
    ]
    assert {"loss_bbox_0", "loss_giou_enc", "grad_norm", "lr"} < lines[0].keys()
    assert {"val_loss", "val_loss_ce", "val_loss_giou_enc"} < lines[4].keys()
    assert same_run(alone["accumulated"], alone["whole"])
    assert same_run(ranks[0]["run"], alone["whole"])
