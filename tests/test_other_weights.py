"""Weights that are not quite those of the model: of a variant, of a run without a checkpoint, with a
mask head, for other channels, of another precision."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import redetr
from redetr.checkpoint import save_weights
from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.files import write_json
from redetr.weights import panoptic, rtdetr
from redetr.weights.locating import locate
from redetr.weights.reading import read_weights
from redetr.weights.starting import starting_point

SIZES = ("hidden_dim=32", "nheads=2", "dec_layers=1", "dim_feedforward=32")
DETR = TrainConfig(
    model="detr_r50",
    model_options=("backbone=resnet18", "enc_layers=1", *SIZES),
    num_queries=5,
)
PANOPTIC = TrainConfig(
    model="detr_r50_panoptic",
    model_options=(
        "backbone=resnet18",
        "enc_layers=1",
        "hidden_dim=64",
        "nheads=8",
        "dec_layers=1",
        "dim_feedforward=32",
    ),
    num_queries=5,
)
RTDETR = TrainConfig(
    model="rtdetr_r18",
    model_options=("width=16", "enc_hidden_dim=32", "enc_dim_feedforward=32", *SIZES),
    num_queries=5,
)
FAST = TrainConfig(model="redetr_n", model_options=("backbone=[8,16,32]", *SIZES), num_queries=5)
CLASSES = ("cup", "plate", "spoon")


def built(config: TrainConfig, seed: int = 0, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return redetr.build(config.model, num_classes, **config.model_kwargs())


def foreign(config: TrainConfig, path: Path, **arguments) -> Path:
    """Weights that do not say what they are, as another program writes them."""
    content = {"model": built(config).state_dict()}
    if arguments:
        content["args"] = Namespace(**arguments)
    torch.save(content, path)
    return path


def of_run(config: TrainConfig, path: Path) -> Path:
    about = {"config": config.to_dict(), "class_names": CLASSES, "category_ids": (1, 2, 3)}
    save_weights(path, built(config, seed=1).state_dict(), about)
    return path


@pytest.mark.parametrize(
    ("config", "model", "holds"),
    [
        (DETR, "detr_r101", "detr_r50"),
        (DETR, "detr_table", "detr_r50"),
        (DETR, "detr_r101_dc5", "detr_r50"),
        (DETR, "detr_r50_panoptic", "detr_r50"),
        (RTDETR, "rtdetr_r50", "rtdetrv2_r18"),
        (RTDETR, "detr_r50", "rtdetrv2_r18"),
    ],
)
def test_weights_are_not_called_another_model(config, model, holds, tmp_path):
    path = foreign(config, tmp_path / "mine.pth")
    with pytest.raises(InputError, match=f"mine.pth: holds a {holds}, not a {model}; leave out"):
        redetr.load(path, model=model, device="cpu")


@pytest.mark.parametrize(
    ("config", "models"),
    [
        (DETR, ("detr_r50", "detr_r50_dc5")),
        (PANOPTIC, ("detr_r50_panoptic", "detr_r50_dc5_panoptic")),
        (RTDETR, ("rtdetr_r18", "rtdetrv2_r18")),  # in files of this library, one and the same
    ],
)
def test_variants_with_the_same_tensors_are_what_the_user_says(config, models, tmp_path):
    path = foreign(config, tmp_path / "mine.pth")
    for model in models:
        assert read_weights(path, model).origin.model == model


def test_the_versions_of_rtdetr_have_other_names_in_their_own_files():
    tensors = {"encoder.input_proj.0.0.weight": torch.zeros(1)}
    assert rtdetr.version_of(tensors) == "rtdetr"


@pytest.mark.parametrize(
    ("file", "arguments", "model", "stated"),
    [
        ("mine.pth", {"dilation": False}, "detr_r50_dc5", "not dilated"),
        ("mine.pth", {"dilation": True}, "detr_r50", "dilated"),
        ("dc5.pth", {}, "detr_r50", "dilated"),
    ],
)
def test_what_a_file_says_of_dilation_is_not_contradicted(file, arguments, model, stated, tmp_path):
    path = foreign(DETR, tmp_path / file, **arguments)
    with pytest.raises(InputError, match=f"its backbone is {stated}, unlike that of {model}; "):
        read_weights(path, model)
    right = "detr_r50_dc5" if model == "detr_r50" else "detr_r50"
    assert read_weights(path, right).origin.model == right


@pytest.mark.parametrize(
    ("file", "is_dilated"),
    [
        ("detr-r50-1bdc5a23.pth", False),
        ("detr-r50-1bdc5.pth", False),
        ("detr-r50-dc5-f0fb7ef5.pth", True),
        ("mine_R50DC5.pth", True),
    ],
)
def test_a_word_in_the_name_says_that_the_backbone_is_dilated(file, is_dilated, tmp_path):
    """Letters in a hash do not."""
    path = foreign(DETR, tmp_path / file)
    options = read_weights(path, None).origin.options
    assert options.get("dilation", False) is is_dilated


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    write_json(tmp_path / "config.json", FAST.to_dict())
    (tmp_path / "run.lock").touch()
    with pytest.raises(InputError, match="this run has no checkpoint yet"):
        locate(tmp_path)
    best = of_run(FAST, tmp_path / "best.safetensors")
    assert locate(tmp_path) == best
    (tmp_path / "last.pt").touch()
    assert locate(tmp_path) == tmp_path / "last.pt"


def test_three_widths_have_group_norm_only():
    for model in ("redetr_n", "detr_r50"):
        for norm in ("frozen_batch", "group"):  # the first is in checkpoints: it was the default
            redetr.build(model, 3, backbone=[8, 16, 32], norm=norm)
        message = r"widths .* has GroupNorm, not norm=sync_batch; leave out norm"
        with pytest.raises(InputError, match=message):
            redetr.build(model, 3, backbone=[8, 16, 32], norm="sync_batch")


def test_group_norm_of_three_widths_may_be_said_or_not(tmp_path):
    path = of_run(FAST, tmp_path / "best.safetensors")
    group = replace(FAST, model_options=(*FAST.model_options, "norm=group"), weights=str(path))
    (said,) = starting_point(built(group), group, CLASSES)
    assert said.startswith("loaded ")


def test_a_first_layer_for_other_channels_says_which(tmp_path):
    path = of_run(replace(FAST, channels=4), tmp_path / "best.safetensors")
    config = replace(FAST, weights=str(path))
    message = "takes images of 4 channels, but this model of 3; give --channels 4"
    with pytest.raises(InputError, match=message):
        starting_point(built(config), config, CLASSES)


def test_tensors_of_another_shape_are_not_missing(tmp_path):
    path = of_run(FAST, tmp_path / "best.safetensors")
    weights = read_weights(path)
    name = next(name for name in weights.tensors if name.endswith("sampling_offsets.weight"))
    content = {"model": weights.tensors | {name: torch.zeros(3, 3)}, "optimizer": {}, "step": 1}
    content |= {"config": FAST.to_dict(), "class_names": list(CLASSES), "category_ids": [1, 2, 3]}
    torch.save(content, tmp_path / "last.pt")
    config = replace(FAST, weights=str(tmp_path / "last.pt"))
    with pytest.raises(InputError, match=f"has 1 tensor of another shape .* such as {name}"):
        starting_point(built(config), config, CLASSES)


def test_a_detr_starts_from_a_panoptic_one(tmp_path):
    path = of_run(PANOPTIC, tmp_path / "best.safetensors")
    config = replace(PANOPTIC, model="detr_r50", weights=str(path))
    model = built(config)
    (said,) = starting_point(model, config, CLASSES)
    count = len(model.state_dict())
    assert said == (
        f"loaded {count} of {count} tensors from {path}; the mask head is left out: "
        "--model detr_r50_panoptic takes it"
    )
    tensors = read_weights(path).tensors
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[panoptic.PREFIX + name])


@pytest.mark.parametrize("kind", ["load", "--weights"])
def test_weights_of_eight_bits_are_one_line(kind, tmp_path):
    path = of_run(FAST, tmp_path / "best.safetensors")
    weights = read_weights(path)
    tensors = {}
    for name, tensor in weights.tensors.items():
        tensors[name] = tensor.to(torch.float8_e4m3fn)
    about = {"config": FAST.to_dict(), "class_names": CLASSES, "category_ids": (1, 2, 3)}
    save_weights(path, tensors, about)
    with pytest.raises(InputError, match="is float8_e4m3fn, which is less than half precision"):
        if kind == "load":
            redetr.load(path, device="cpu")
        else:
            starting_point(built(FAST), replace(FAST, weights=str(path)), CLASSES)


def test_a_share_of_the_width_loses_no_channel():
    """The quotient of two widths is rounded: times the one, it may be less than the other."""
    width, block = next(
        (width, block)
        for width in range(8, 1000, 8)
        for block in range(8, width, 8)
        if int(width * (block / width)) < block
    )
    with torch.device("meta"):
        model = redetr.build(
            "rtdetr_r18", 3, enc_hidden_dim=width, expansion=block / width, nheads=1
        )
    name = "encoder.fpn_blocks.0.conv1.conv.weight"
    assert len(model.state_dict()[name]) == block
