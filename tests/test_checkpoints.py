"""Checkpoints of other data, other versions and other programs."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console

import redetr
from redetr import memory, training
from redetr.boxes import box_xyxy_to_cxcywh
from redetr.checkpoint import read_safetensors, save_weights
from redetr.commands.demonstration import demo_config
from redetr.config import TrainConfig
from redetr.data.formats.digits import DigitsDataset
from redetr.detector.detections import Detections
from redetr.earlier import with_earlier_network
from redetr.evaluation import evaluate
from redetr.labels import labels_in
from redetr.model_options import parsed_options
from redetr.models import build
from redetr.models.basic_resnet import BasicResNet
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


@pytest.mark.long
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


# The network of redetr_n in earlier versions, whose runs did not state it.
EARLIER_OPTIONS = ("backbone=basic:32,64,128", "hidden_dim=128", "dim_feedforward=512")


@pytest.fixture
def earlier_run(tmp_path, shared_coco) -> Path:
    """A run of one step as an earlier version wrote it."""
    run = tmp_path / "run"
    config = replace(
        demo_config("digits", run, 1),
        data=str(shared_coco),
        eval_batch_size=2,
        image_size=64,
        model_options=EARLIER_OPTIONS,
    )
    train(config, Console(stderr=True))
    for name in ("last.pt", "best.pt"):
        checkpoint = torch.load(run / name, weights_only=True)
        checkpoint["config"]["model_options"] = []
        torch.save(checkpoint, run / name)
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**settings, "model_options": []}))
    tensors, metadata = read_safetensors(run / "best.safetensors")
    about = json.loads(metadata["redetr"])
    about["config"]["model_options"] = []
    save_weights(run / "best.safetensors", tensors, about)
    return run


@pytest.mark.long
def test_a_run_with_the_network_of_an_earlier_version_loads_and_resumes(earlier_run, tmp_path):
    tensors, _ = read_safetensors(earlier_run / "best.safetensors")
    images = torch.rand(2, 3, 64, 96)
    num_queries = len(tensors["query_embed.weight"])
    options = parsed_options(EARLIER_OPTIONS)
    model = build("redetr_n", 3, num_queries=num_queries, **options)
    model.load_state_dict(tensors)
    expected = model.eval()(images)["pred_boxes"]
    for name in ("", "last.pt", "best.safetensors"):
        detector = redetr.load(earlier_run / name)
        torch.testing.assert_close(detector.model(images)["pred_boxes"], expected)

    resumed = replace(TrainConfig.read(earlier_run / "config.json"), steps=1, resume=True)
    train(replace(resumed, output=str(earlier_run)), Console(stderr=True))
    checkpoint = torch.load(earlier_run / "last.pt", weights_only=True)
    assert checkpoint["model"].keys() == tensors.keys()

    config = replace(resumed, resume=False, weights=str(earlier_run), output=str(tmp_path / "next"))
    flags = "--model-options backbone=basic:32,64,128 hidden_dim=128 dim_feedforward=512"
    with pytest.raises(redetr.InputError, match=flags):
        train(config, Console(stderr=True))
    train(replace(config, model_options=EARLIER_OPTIONS), Console(stderr=True))


def test_the_tensors_of_a_run_say_which_network_it_has():
    earlier = ["backbone.0.stem.0.weight"]
    options = {"backbone": [64, 128, 256], "hidden_dim": 192}
    basic = {"backbone": "basic:64,128,256", "hidden_dim": 192}
    assert with_earlier_network("detr_r50", options, earlier) == basic
    assert with_earlier_network("redetr_n", options, earlier) == basic | {"dim_feedforward": 512}
    panoptic = ["detr.backbone.0.stem.0.weight"]
    assert with_earlier_network("detr_r50_panoptic", options, panoptic) == basic
    assert with_earlier_network("redetr_n", options, ["backbone.0.conv1.weight"]) == options
    named = {"backbone": "resnet18"}
    assert with_earlier_network("detr_r50", named, earlier) == named


def test_the_network_of_an_earlier_version_by_hand():
    """Every map by functions, from the names and shapes that those checkpoints have."""
    torch.manual_seed(0)
    backbone = BasicResNet((8, 16, 24), strides=(4, 8, 16))
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter)
    tensors = backbone.state_dict()

    def normed(x, conv, norm, stride):
        x = F.conv2d(x, tensors[f"{conv}.weight"], stride=stride, padding=1)
        return F.group_norm(x, 8, tensors[f"{norm}.weight"], tensors[f"{norm}.bias"])

    images = torch.rand(1, 3, 64, 48)
    x = normed(images, "stem.0", "stem.1", 2).relu()
    expected = []
    for stage, blocks in enumerate((1, 2, 2)):
        for block in range(blocks):
            name = f"stages.{stage}.{block}"
            stride = 2 if block == 0 else 1
            out = normed(x, f"{name}.conv1", f"{name}.norm1", stride).relu()
            out = normed(out, f"{name}.conv2", f"{name}.norm2", 1)
            if block == 0:
                x = F.conv2d(x, tensors[f"{name}.shortcut.weight"], stride=2)
            x = (out + x).relu()
        expected.append(x)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["basic:", "basic:32,64", "basic:32,64,100", "basic:8,8,x"])
def test_widths_of_a_basic_backbone_are_three_multiples_of_8(name):
    with pytest.raises(redetr.InputError, match="three widths that are multiples of 8"):
        build("redetr_n", 3, backbone=name)
