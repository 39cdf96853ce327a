"""Checkpoints of other data, other versions and other programs."""

import json
import threading
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from rich.console import Console

import redetr
from redetr import memory, training
from redetr.boxes import box_xyxy_to_cxcywh
from redetr.checkpoint import read_safetensors, save_weights
from redetr.commands.demonstration import demo_config
from redetr.data.formats.digits import DigitsDataset
from redetr.detector.detections import Detections
from redetr.evaluation import evaluate, labels_in
from redetr.models import build
from redetr.structures import DetectionModel, Outputs
from redetr.training import train
from redetr.weights.official import coco_class_names


class Oracle(DetectionModel):
    """Answers with the truth of a data set, under 91 labels of which label `k` stands for category
    id `k`."""

    num_classes, num_queries, resize, image_size, max_size = 91, 10, "square", 128, None
    loss_config = redetr.LossConfig(scores="softmax")

    def __init__(self, dataset):
        super().__init__()
        self.dataset, self.index, self.anchor = dataset, 0, torch.nn.Parameter(torch.zeros(()))

    def forward(self, images, mask=None):
        logits, boxes = torch.zeros(len(images), 10, 92), torch.full((len(images), 10, 4), 0.5)
        logits[..., 91] = 20.0
        for i in range(len(images)):
            target = self.dataset.target(self.index)
            height, width = target["orig_size"]
            for q, (label, box) in enumerate(zip(target["labels"], target["boxes"], strict=True)):
                logits[i, q, self.dataset.category_ids[label]] = 40.0
                boxes[i, q] = box_xyxy_to_cxcywh(box) / torch.tensor([width, height, width, height])
            self.index += 1
        return Outputs(pred_logits=logits, pred_boxes=boxes)


def test_classes_are_matched_by_id_and_name():
    """The 91 labels of official checkpoints are evaluated on the categories that the data has."""
    dataset = DigitsDataset("val", size=6)
    dataset.category_ids = tuple(range(5, 15))
    classes = [(k, dataset.class_names[k - 5] if 5 <= k < 15 else "unused") for k in range(91)]
    assert evaluate(Oracle(dataset), dataset, image_size=128, classes=classes).ap == pytest.approx(
        1.0
    )
    classes[7] = (7, "another thing")
    with pytest.raises(
        redetr.InputError, match=r"digits has 10, of which the model does not know 2 \(7\): "
    ):
        evaluate(Oracle(dataset), dataset, image_size=128, classes=classes)


def test_classes_with_other_ids_are_matched_by_names_that_tell_them_apart():
    """Names that occur twice do not matter among those that the data does not have."""
    dataset = DigitsDataset("val", size=6)  # ids 0 to 9
    classes = [(k, dataset.class_names[k - 5] if 5 <= k < 15 else "unused") for k in range(91)]
    labels = labels_in(dataset, 91, classes)
    assert labels[5:15].tolist() == list(range(10)) and set(labels[:5]) == set(labels[15:]) == {-1}
    with pytest.raises(
        redetr.InputError, match=r"the model knows 91 classes, such as unused \(0\), "
    ):
        labels_in(dataset, 91, [*classes[:90], (90, "3")])


def test_other_spellings_of_classes_are_matched():
    dataset = DigitsDataset("val", size=6)
    dataset.class_names = ("aeroplane", *dataset.class_names[1:])
    classes = [(k, name) for k, name in enumerate(["x", *dataset.class_names, "airplane"])]
    classes[1] = (1, "y")
    assert labels_in(dataset, 12, classes).tolist() == [-1, -1, *range(1, 10), 0]
    classes[1] = (1, "airplane")  # which of them it is, nothing says
    with pytest.raises(redetr.InputError, match=r"does not know aeroplane \(0\): "):
        labels_in(dataset, 12, classes)


def test_coco_names_have_80_categories():
    names = coco_class_names()
    assert len(names) == 91 and names.count("unused") == 11
    assert (names[1], names[17], names[44], names[90]) == ("person", "cat", "bottle", "toothbrush")


@pytest.fixture
def weights_file(tmp_path):
    """`best.safetensors` of a run, with its metadata open to changes."""

    def write(**changes):
        config = demo_config("digits", tmp_path, 1).to_dict() | {
            "num_queries": 5,
            "image_size": 128,
        }
        about = {"config": config | changes, "class_names": ["a"], "category_ids": [3]}
        model = build("redetr_n", 1, num_queries=5)
        path = tmp_path / "best.safetensors"
        safetensors.torch.save_file(model.state_dict(), path, {"redetr": json.dumps(about)})
        return path

    return write


def test_safetensors_load_with_their_classes(weights_file):
    detector = redetr.load(weights_file(), device="cpu")
    assert detector.classes == [(3, "a")]
    assert isinstance(
        detector.predict(torch.zeros(3, 50, 70, dtype=torch.uint8), threshold=0.0), Detections
    )


def test_a_newer_version_is_told(weights_file):
    with pytest.raises(redetr.InputError, match="'new_setting' is not known"):
        redetr.load(weights_file(new_setting=1), device="cpu")


def test_damaged_metadata_is_told(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", {"redetr": "{"})
    with pytest.raises(redetr.InputError, match="metadata is damaged"):
        redetr.load(tmp_path / "w.safetensors")


def test_training_in_a_thread(tmp_path):
    """A notebook or a server may train outside of the main thread, where signals cannot be
    caught."""
    config, results = demo_config("crowns", tmp_path / "run", 1), []
    thread = threading.Thread(target=lambda: results.append(redetr.train(config)))
    thread.start()
    thread.join()
    assert results[0]["step"] == 1


def test_weights_that_a_disk_cannot_take(tmp_path, monkeypatch):
    def full(*arguments):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    (tmp_path / "best.safetensors").write_text("before")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        redetr.InputError, match=r"best\.safetensors: cannot be written \(\d+ MB are free"
    ):
        save_weights(tmp_path / "best.safetensors", {"a": torch.zeros(2)}, {})
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [
        ("best.safetensors", "before")
    ]


@pytest.mark.parametrize(("options", "calls"), [({}, 1), ({"keep_memory": False}, 0)])
def test_a_program_that_trains_keeps_memory_unless_it_says_no(
    options, calls, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr(memory, "keep_memory", lambda: made.append(1))
    monkeypatch.setattr(training, "_train", lambda *arguments: {})
    redetr.train(replace(demo_config("digits", tmp_path, 1), device="cpu"), **options)
    assert len(made) == calls


@pytest.mark.parametrize(("options", "calls"), [({}, 1), ({"keep_memory": False}, 0)])
def test_a_program_that_loads_a_detector_keeps_memory_unless_it_says_no(
    options, calls, weights_file, monkeypatch
):
    made = []
    monkeypatch.setattr(memory, "keep_memory", lambda: made.append(1))
    redetr.load(weights_file(), device="cpu", **options)
    assert len(made) == calls


def test_the_names_of_an_earlier_version_are_read(weights_file):
    """Those of the attention to the image in the fast variants."""
    path = weights_file()
    tensors, metadata = read_safetensors(path)
    earlier = {}
    for name, tensor in tensors.items():
        name = name.replace("sampling_offsets", "offsets")
        name = name.replace("attention_weights", "weights").replace("output_proj", "out_proj")
        earlier[name] = tensor
    assert earlier.keys() != tensors.keys()
    safetensors.torch.save_file(earlier, path, metadata)
    torch.testing.assert_close(redetr.load(path).model.state_dict(), tensors)


# A layer of the small backbone that models trained from scratch had before.
EARLIER_LAYER = "backbone.0.stem.0.weight"


@pytest.mark.parametrize("prefix", ["", "detr."])  # of the panoptic DETR
def test_weights_of_the_network_of_an_earlier_version_are_refused(prefix, tmp_path, shared_coco):
    """By everything that reads them, in one line that says what to do."""
    run = tmp_path / "run"
    config = replace(demo_config("digits", run, 1), data=str(shared_coco), eval_batch_size=2)
    train(config, Console(stderr=True))
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    for weights in (checkpoint["model"], checkpoint["ema"]):
        weights[prefix + EARLIER_LAYER] = torch.zeros(32, 3, 3, 3)
    for name in ("last.pt", "best.pt"):
        torch.save(checkpoint, run / name)
    message = "are from an earlier version of redetr.*; train again, or use that version"
    with pytest.raises(redetr.InputError, match=message):
        redetr.load(run)
    with pytest.raises(redetr.InputError, match=message):
        train(replace(config, resume=True), Console(stderr=True))
    with pytest.raises(redetr.InputError, match=message):
        starting = replace(config, weights=str(run), output=str(tmp_path / "next"))
        train(starting, Console(stderr=True))
