"""Folders of Transformers as users have them: in several files, with names and images of their own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_rtdetr import TINY, random_peer

import redetr
from redetr.data.transforms import MEAN, STD
from redetr.weights.reading import read_weights

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def rtdetr_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rtdetr")
    random_peer("rtdetrv2", "r18", **TINY).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory):
    config = transformers.TableTransformerConfig(
        backbone="resnet18", d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("table")
    transformers.TableTransformerForObjectDetection(config).save_pretrained(folder)
    return folder


def copied(folder: Path, target: Path, processor: Any = None, **config: Any) -> Path:
    """A copy of a folder with these settings of its images and of its model."""
    target.mkdir()
    (target / "model.safetensors").hardlink_to(folder / "model.safetensors")
    shutil.copy(folder / "config.json", target)
    settings = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(settings | config))
    if processor is not None:
        (target / "preprocessor_config.json").write_text(json.dumps(processor))
    return target


def refusal(path: Path) -> str:
    """The line that refuses a folder."""
    with pytest.raises(redetr.InputError) as refused:
        redetr.load(path, device="cpu")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_in_several_files(kind, rtdetr_folder, tmp_path):
    whole = redetr.load(rtdetr_folder, device="cpu").model.state_dict()
    folder = copied(rtdetr_folder, tmp_path / "shards")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if kind == "safetensors":
        peer = transformers.RTDetrV2ForObjectDetection.from_pretrained(rtdetr_folder)
        peer.save_pretrained(folder, max_shard_size="400KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    else:  # of older versions
        halves: list[dict[str, torch.Tensor]] = [{}, {}]
        file_of_tensor = {}
        for i, (name, tensor) in enumerate(tensors.items()):
            halves[i % 2][name] = tensor
            file_of_tensor[name] = f"pytorch_model-{i % 2}.bin"
        for i, half in enumerate(halves):
            torch.save(half, folder / f"pytorch_model-{i}.bin")
        index = {"metadata": {}, "weight_map": file_of_tensor}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded = redetr.load(folder, device="cpu").model.state_dict()
    torch.testing.assert_close(loaded, whole, rtol=0, atol=0)

    next(folder.glob("*-*.*")).unlink()
    assert "no such file" in refusal(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "weights.pt", 3])
def test_an_index_names_files_of_its_folder_only(name, rtdetr_folder, tmp_path):
    folder = copied(rtdetr_folder, tmp_path / "folder")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    assert refusal(folder) == f"{index}: weight_map has {name!r}, no file of this folder"
    index.write_text(json.dumps({"weight_map": {}}))
    assert "has no weight_map" in refusal(folder)
    index.unlink()
    assert "neither model.safetensors nor pytorch_model.bin" in refusal(folder)


def test_the_file_of_weights_stands_for_its_folder(rtdetr_folder):
    detector = redetr.load(rtdetr_folder / "model.safetensors", device="cpu")
    assert detector.class_names[0] == "LABEL_0"


def test_a_folder_of_timm_is_its_weights(tmp_path):
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18d"}')
    for path in (tmp_path, tmp_path / "model.safetensors"):
        weights = read_weights(path)
        assert weights.origin is None and list(weights.tensors) == ["conv1.weight"]


@pytest.mark.parametrize("labels", [{"1": "a", "5": "b"}, {"0": "a", "b": "c"}])
def test_a_name_of_no_class_is_refused(labels, rtdetr_folder, tmp_path):
    folder = copied(rtdetr_folder, tmp_path / "named", id2label=labels)
    label = list(labels)[1]
    assert refusal(folder).endswith(f"id2label has class {label!r}, and the weights have 0 to 4")


def test_images_are_stretched_to_the_size_of_the_folder(rtdetr_folder, tmp_path):
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 160})
    folder = copied(rtdetr_folder, tmp_path / "wide")
    processor.save_pretrained(folder)
    detector = redetr.load(folder, device="cpu")
    assert detector.image_size == (96, 160)
    (folder / "preprocessor_config.json").write_text('{"size": {"height": 480, "width": 480}}')
    assert redetr.load(folder, device="cpu").image_size == 480
    neutral = {"do_normalize": True, "image_mean": [0.0, 0, 0], "image_std": [1.0, 1, 1]}
    (folder / "preprocessor_config.json").write_text(json.dumps(neutral))
    assert redetr.load(folder, device="cpu").image_size == 640


def test_boxes_are_those_of_transformers_up_to_the_edges_of_the_image(rtdetr_folder, tmp_path):
    height, width = 96, 160
    processor = transformers.RTDetrImageProcessor(size={"height": height, "width": width})
    folder = copied(rtdetr_folder, tmp_path / "wide")
    processor.save_pretrained(folder)
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8)
    peer = transformers.RTDetrV2ForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = peer(**processor(images=pixels, return_tensors="pt"))
    sizes = [(height, width)]
    (theirs,) = processor.post_process_object_detection(outputs, 0.0, sizes)
    ours = redetr.load(folder, device="cpu", precision="fp32").predict(pixels, threshold=0.0)

    edges = torch.tensor([width, height, width, height])
    clipped = theirs["boxes"].clamp(min=0).minimum(edges)
    assert (clipped - theirs["boxes"]).abs().max() > 1
    # Equal scores have no order: each detection is compared with the nearest of its class.
    distances = (clipped[:, None] - ours.boxes).abs().amax(-1)
    distances += (theirs["scores"][:, None] - ours.scores).abs()
    distances[theirs["labels"][:, None] != ours.labels] = torch.inf
    assert distances.min(1).values.max() < 1e-2


NO_SQUARE = ": this model needs a height and a width"
STRETCHED_REFUSED = {
    "normalised": ({"do_normalize": True}, "do_normalize is True: this model needs False"),
    "mean": ({"do_normalize": True, "image_mean": [0.0, 0, 0]}, "do_normalize is True"),
    "values": ({"do_rescale": False}, "do_rescale is False: this model needs True"),
    "factor": ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.00784"),
    "no float": ({"rescale_factor": 10**400}, "rescale_factor is 10000"),
    "filter": ({"resample": 3}, "resample is 3: this model needs 2"),
    "own size": ({"do_resize": False}, "do_resize is False"),
    "padded": ({"pad_size": {"height": 9, "width": 9}}, "pad_size is {'height': 9, 'width': 9}"),
    "aspect": ({"size": {"shortest_edge": 480, "longest_edge": 640}}, NO_SQUARE),
    "a number": ({"size": 640}, f"size is 640{NO_SQUARE}"),
    "text": ({"size": {"height": "640", "width": 640}}, NO_SQUARE),
    "zero": ({"size": {"height": 0, "width": 640}}, NO_SQUARE),
    "huge": ({"size": {"height": 640, "width": 99999}}, "images of 99999 px: at most 16383"),
}


@pytest.mark.parametrize("name", STRETCHED_REFUSED)
def test_images_that_are_prepared_otherwise_are_refused(name, rtdetr_folder, tmp_path):
    processor, message = STRETCHED_REFUSED[name]
    folder = copied(rtdetr_folder, tmp_path / "odd", processor)
    said = refusal(folder)
    assert said.startswith(f"{folder / 'preprocessor_config.json'}: ")
    assert message in said


PUBLISHED = {"do_normalize": True, "image_mean": list(MEAN), "image_std": list(STD), "resample": 2}
NO_ASPECT = ": this model needs a shortest_edge and a longest_edge"
SIZES = {
    "both": ({"size": {"shortest_edge": 640, "longest_edge": 900}}, (640, 900)),
    "older": (PUBLISHED | {"size": 600, "max_size": 1000}, (600, 1000)),
    "older, by default": ({"size": 600}, (600, 1333)),
    "longest alone": ({"size": {"longest_edge": 1000}}, (1000, 1000)),
    "at most": ({"size": {"max_height": 480, "max_width": 480}}, (480, 480)),
    "nothing": ({}, (800, 800)),
    "unlike sides": ({"size": {"max_height": 480, "max_width": 640}}, NO_ASPECT),
    "stretched": ({"size": {"height": 480, "width": 480}}, NO_ASPECT),
    "shorter alone": ({"size": {"shortest_edge": 480}}, NO_ASPECT),
    "as they are": ({"do_normalize": False}, "do_normalize is False: this model needs True"),
    "mean": ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean is [0.5, 0.5, 0.5]: this model needs"),
    "grey": ({"image_std": [0.2]}, "image_std is [0.2]"),
}


@pytest.mark.parametrize("name", SIZES)
def test_images_of_a_detr(name, table_folder, tmp_path):
    processor, expected = SIZES[name]
    folder = copied(table_folder, tmp_path / "sized", processor)
    if isinstance(expected, str):
        assert expected in refusal(folder)
        return
    detector = redetr.load(folder, device="cpu")
    assert (detector.image_size, detector.model.max_size) == expected
