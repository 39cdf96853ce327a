"""Fine-tuning on other classes: before the first step, the classes that are kept are found as
before."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import redetr
from redetr.checkpoint import save_weights
from redetr.config import TrainConfig
from redetr.data import DetectionDataset
from redetr.data.transforms import normalize
from redetr.detector.detector import Detector
from redetr.evaluation import evaluate
from redetr.structures import DetectionModel, StoredTarget
from redetr.weights.starting import starting_point

CLASSES = ("cup", "plate", "spoon", "fork")
SMALL = ("hidden_dim=32", "nheads=4", "dec_layers=2", "dim_feedforward=64")
SIZE = 64
# As many queries as positions of all levels, 84: other classes then select the same ones.
CONFIGS = {
    "rtdetr_r18": TrainConfig(
        model="rtdetr_r18",
        num_queries=84,
        model_options=("width=16", "enc_hidden_dim=32", "enc_dim_feedforward=64", *SMALL),
    ),
    "redetr_n": TrainConfig(
        model="redetr_n", num_queries=84, model_options=("backbone=[16,32,64]", *SMALL)
    ),
}


class Found(DetectionDataset):
    """Six images of noise, in which `detections` are the truth, as far as their class is known."""

    name = "found"

    def __init__(self, class_names: Sequence[str], detections: list[dict[str, Any]]):
        self.class_names = tuple(class_names)
        self.category_ids = tuple(range(1, 1 + len(class_names)))
        self.detections = detections

    def __len__(self) -> int:
        return 6

    def image(self, index: int) -> Tensor:
        pixels = np.random.default_rng(index).integers(0, 256, (3, SIZE, SIZE), np.uint8)
        return torch.from_numpy(pixels)

    def target(self, index: int) -> StoredTarget:
        truth = (
            self.detections[index] if self.detections else {"names": [], "boxes": torch.zeros(0, 4)}
        )
        kept = [i for i, name in enumerate(truth["names"]) if name in self.class_names]
        labels = [self.class_names.index(truth["names"][i]) for i in kept]
        boxes = truth["boxes"][kept]
        return StoredTarget(
            boxes=boxes,
            labels=torch.tensor(labels, dtype=torch.int64),
            image_id=index,
            orig_size=(SIZE, SIZE),
            size=(SIZE, SIZE),
            iscrowd=torch.zeros(len(boxes), dtype=torch.bool),
            area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        )


def trained(config: TrainConfig) -> DetectionModel:
    """A model whose scores differ, as if it had learned."""
    torch.manual_seed(1)
    model = redetr.build(config.model, len(CLASSES), **config.model_kwargs()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "class_embed" in name or "score_head" in name:
                parameter.mul_(3 if parameter.dim() > 1 else 0)  # and without the doubt of a start
            elif "bbox" in name and "layers.2" in name:
                parameter.normal_(std=0.2)
            elif name == "query_embed.weight":  # by rank, which other classes change
                parameter.mul_(1e-6)
        # Every class is found now and then.
        images = torch.stack([normalize(Found(CLASSES, []).image(i)) for i in range(6)])
        logits = model(images)["pred_logits"]  # [6, Q, C]
        head = model.decoder.dec_score_head if config.model == "rtdetr_r18" else model.class_embed
        head[-1].bias -= logits.mean((0, 1))
    return model


def truth_of(model: DetectionModel) -> list[dict[str, Any]]:
    """What the model finds best: of each image and class the two best boxes."""
    detector = Detector(model, CLASSES, range(len(CLASSES)), SIZE, device="cpu")
    noise = Found(CLASSES, [])
    truth = []
    for index in range(len(noise)):
        detections = detector.predict(noise.image(index), threshold=0.0)
        best = []
        for label in range(len(CLASSES)):
            best += (detections.labels == label).nonzero()[:2, 0].tolist()
        names = [CLASSES[label] for label in detections.labels[best].tolist()]
        truth.append({"names": names, "boxes": detections.boxes[best].clone()})
    return truth


def ap_by_class(model: DetectionModel, dataset: DetectionDataset) -> dict[str, float]:
    return evaluate(model, dataset, image_size=SIZE).per_class


@pytest.fixture(scope="module", params=CONFIGS)
def before(request, tmp_path_factory):
    """A run, its truth, and its AP by class."""
    config = CONFIGS[request.param]
    model = trained(config)
    about = {"config": config.to_dict(), "class_names": CLASSES, "category_ids": (1, 2, 3, 4)}
    path = tmp_path_factory.mktemp("weights") / "best.safetensors"
    save_weights(path, model.state_dict(), about)
    truth = truth_of(model)
    ap = ap_by_class(model, Found(CLASSES, truth))
    assert all(value > 0.2 for value in ap.values())
    return replace(config, weights=str(path)), truth, ap


@pytest.mark.parametrize(
    ("class_names", "said"),
    [
        (("fork", "spoon", "plate", "cup"), None),
        (("spoon", "cup"), None),
        (("bowl", "plate", "knife", "fork", "pan", "cup"), "3 of 6 classes matched by name"),
        (("plate", "bowl"), "1 of 2 classes matched by name"),
    ],
    ids=["another order", "a subset", "others too", "others instead"],
)
def test_kept_classes_are_found_as_before(before, class_names, said):
    config, truth, ap_before = before
    torch.manual_seed(2)
    model = redetr.build(config.model, len(class_names), **config.model_kwargs())
    (note,) = starting_point(model, config, class_names)
    ap = ap_by_class(model.eval(), Found(class_names, truth))
    kept = [name for name in class_names if name in CLASSES]
    assert {name: ap[name] for name in kept} == pytest.approx(
        {name: ap_before[name] for name in kept}, abs=1e-3
    )
    assert (said in note) if said else "re-initialised" not in note
