"""RT-DETR: files of the originals, how it learns, and its blocks by hand.

tests/parity/test_rtdetr.py compares its numbers with those of another implementation.
"""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from command_line import lines_of
from original_files import original_tensors, random_targets, randomized, saved
from torch import Tensor, nn
from torch.nn.functional import conv2d, silu
from torchvision.ops import FrozenBatchNorm2d

import redetr
from redetr.config import TrainConfig
from redetr.models import options_of
from redetr.models.deformable import DeformableAttention, read_points
from redetr.models.hybrid import RepVGGBlock, grid_sines
from redetr.models.resnet_vd import PResNet
from redetr.training import train
from redetr.weights.reading import read_weights
from redetr.weights.starting import start_from
from tests.tiers import cases

NUM_CLASSES = 3
# 8 heads, which files of the originals do not tell.
SMALL: dict[str, Any] = {
    "width": 16,
    "enc_hidden_dim": 32,
    "enc_dim_feedforward": 48,
    "hidden_dim": 32,
    "dim_feedforward": 64,
}


def small(name: str = "rtdetr_r18", num_classes: int = NUM_CLASSES, **options: Any) -> Any:
    """A small model in which no tensor is at a neutral start."""
    return randomized(name, num_classes, SMALL | options)


def first_version(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the names of v1, which does not store the points."""
    renamed = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^encoder\.input_proj\.(\d)\.conv", r"encoder.input_proj.\1.0", name)
        name = re.sub(r"^encoder\.input_proj\.(\d)\.norm", r"encoder.input_proj.\1.1", name)
        name = name.replace("decoder.enc_output.proj", "decoder.enc_output.0")
        name = name.replace("decoder.enc_output.norm", "decoder.enc_output.1")
        if not name.endswith("num_points_scale"):
            renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("size", cases(["r18", "r34", "r50m", "r50", "r101"], ["r18"]))
@pytest.mark.parametrize("version", ["rtdetr", "rtdetrv2"])
def test_files_of_the_originals(version, size, tmp_path):
    name = f"{version}_{size}"
    model = small(name, num_classes=80)
    tensors = original_tensors(model)
    if version == "rtdetr":
        tensors = first_version(tensors)
    path = saved(tensors, tmp_path / "model.pth")
    origin = read_weights(path).origin
    assert origin.model == name
    options = options_of(name) | SMALL
    assert origin.options == {option: options[option] for option in origin.options}
    detector = redetr.load(path, device="cpu")
    given = detector.model.state_dict()
    assert given.keys() == model.state_dict().keys()
    assert all(torch.equal(given[key], tensor) for key, tensor in model.state_dict().items())
    assert len(detector.class_names) == 80
    assert (detector.classes[0], detector.classes[-1]) == ((1, "person"), (90, "toothbrush"))


def test_a_file_tells_the_points_of_each_level(tmp_path):
    model = small("rtdetrv2_r18", points=(3, 6, 1))
    path = saved(original_tensors(model), tmp_path / "model.pth")
    detector = redetr.load(path, device="cpu")
    layer = detector.model.decoder.decoder["layers"][0]
    assert layer.cross_attn.per_level == [3, 6, 1]
    assert detector.class_names == ("class 0", "class 1", "class 2")


def test_files_of_deim(tmp_path):
    """Three layers for the positions of queries, and SiLU wherever the decoder has ReLU."""
    model = small("rtdetrv2_r18", num_classes=80, query_pos_layers=3, activation="silu")
    shapes = [tuple(layer.weight.shape) for layer in model.decoder.query_pos_head.layers]
    assert shapes == [(32, 4), (32, 32), (32, 32)]
    path = saved(original_tensors(model), tmp_path / "renamed.pth")
    loaded = redetr.load(path, device="cpu").model
    decoder = loaded.decoder
    heads = [decoder.query_pos_head, decoder.enc_bbox_head]
    heads += [*decoder.dec_bbox_head, *decoder.decoder["layers"]]
    assert all(head.activation is silu for head in heads)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        given, expected = loaded(images), model.eval()(images)
    torch.testing.assert_close(given["pred_boxes"], expected["pred_boxes"], rtol=0, atol=1e-5)


def test_training_from_a_file_of_deim_needs_the_flags_that_the_error_names(tmp_path):
    there = small("rtdetrv2_r18", query_pos_layers=3, activation="silu")
    weights = read_weights(saved(original_tensors(there), tmp_path / "model.pth"))
    flags = "use --model-options activation=silu query_pos_layers=3"
    with pytest.raises(redetr.InputError, match=flags):
        start_from(weights, small("rtdetrv2_r18"), start_config(), ["a", "b", "c"])
    given = (*start_config().model_options, *flags.split()[2:])
    here = small("rtdetrv2_r18", query_pos_layers=3, activation="silu")
    config = replace(start_config(), model_options=given)
    assert "loaded" in start_from(weights, here, config, ["class 0", "class 1", "class 2"])


def test_discrete_sampling_is_told_by_the_name_of_the_file(tmp_path):
    tensors = original_tensors(small("rtdetrv2_r18"))
    for name, expected in (("r18vd_dsp_3x.pth", "discrete"), ("r18vd.pth", "bilinear")):
        model = redetr.load(saved(tensors, tmp_path / name), device="cpu").model
        assert model.decoder.decoder["layers"][0].cross_attn.sampling == expected


def test_a_file_without_an_average(tmp_path):
    model = small()
    torch.save({"model": original_tensors(model), "last_epoch": 1}, tmp_path / "model.pth")
    given = redetr.load(tmp_path / "model.pth", device="cpu").model.state_dict()
    assert all(torch.equal(given[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_file_of_a_wrapped_model(wrapper, tmp_path):
    """By DataParallel, by `torch.compile`, or by both."""
    model = small("rtdetrv2_r18")
    tensors = original_tensors(model)
    wrapped = {wrapper + name: tensor for name, tensor in tensors.items()}
    given = redetr.load(saved(wrapped, tmp_path / "model.pth"), device="cpu").model.state_dict()
    assert all(torch.equal(given[key], tensor) for key, tensor in model.state_dict().items())


def test_an_average_without_a_module_around_it(tmp_path):
    model = small("rtdetrv2_r18")
    tensors = original_tensors(model)
    trained = {name: tensor / 2 for name, tensor in tensors.items()}
    contents = [
        {"model": trained, "ema": tensors},
        {"model": trained, "model_ema": tensors},
        {"ema": {"module": {}}, "model": tensors},
    ]
    for content in contents:
        torch.save(content, tmp_path / "model.pth")
        given = redetr.load(tmp_path / "model.pth", device="cpu").model.state_dict()
        assert all(torch.equal(given[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(("dec_layers", "answers"), [(2, 1), (4, 3), (6, 2)])
def test_the_last_layer_answers_unless_the_model_is_the_published_r50m(
    dec_layers, answers, tmp_path
):
    model = small("rtdetrv2_r50m", dec_layers=dec_layers, eval_idx=-1)
    path = saved(original_tensors(model), tmp_path / "model.pth")
    assert redetr.load(path, device="cpu").model.decoder.last_in_eval == answers


def test_an_unknown_backbone_is_named(tmp_path):
    tensors = original_tensors(small())
    kept = {name: t for name, t in tensors.items() if "res_layers.3.blocks.1." not in name}
    path = saved(kept, tmp_path / "model.pth")
    with pytest.raises(redetr.InputError, match=r"stages \[2, 2, 2, 1\]: only ResNet-vd"):
        redetr.load(path, device="cpu")


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
@pytest.mark.parametrize("name", ["rtdetr_r18", "rtdetrv2_r50m"])
def test_every_parameter_has_a_gradient(name, counts):
    model = small(name)
    outputs = model(torch.randn(2, 3, 96, 128))
    losses = redetr.SetCriterion.for_model(model)(outputs, random_targets(NUM_CLASSES, counts))
    losses["loss"].backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without
    if sum(counts):
        zero = [name for name, p in model.named_parameters() if not p.grad.any()]
        assert not zero
    assert {"loss_ce_enc", "loss_bbox_enc", "loss_giou_enc"} < losses.keys()


def test_a_box_teaches_the_head_of_its_layer_and_of_the_one_before():
    model = small("rtdetr_r34")
    outputs = model(torch.randn(1, 3, 64, 64))
    outputs["pred_boxes"].sum().backward()
    taught = []
    for i, head in enumerate(model.decoder.dec_bbox_head):
        if any(p.grad is not None for p in head.parameters()):
            taught.append(i)
    assert taught == [2, 3]
    assert all(p.grad is None for p in model.decoder.enc_bbox_head.parameters())
    assert all(p.grad is None for p in model.decoder.enc_output.parameters())


def test_layers_after_the_one_that_answers_are_trained_and_not_run():
    model = small("rtdetr_r50m")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        trained = model(images)
        model.eval()
        calls = []
        for i, layer in enumerate(model.decoder.decoder["layers"]):
            layer.register_forward_hook(lambda *_, i=i: calls.append(i))
        answered = model(images)
    assert len(trained["aux_outputs"]) == 5
    assert calls == [0, 1, 2]
    assert len(answered["aux_outputs"]) == 2
    torch.testing.assert_close(answered["pred_boxes"], trained["aux_outputs"][2]["pred_boxes"])


def test_points_that_are_whole_pixels_have_no_gradient():
    model = small("rtdetrv2_r18", sampling="discrete")
    outputs = model(torch.randn(2, 3, 64, 96))
    redetr.SetCriterion.for_model(model)(outputs, random_targets(NUM_CLASSES, (1, 2)))[
        "loss"
    ].backward()
    untrained = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(untrained) == 2 * 3 and all("sampling_offsets" in name for name in untrained)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_reading_whole_pixels_by_hand():
    """Level 0 is 2 x 2 pixels that hold 0 to 3; a point at 0.3 is pixel int(0.3 * 2 + 0.5) = 1."""
    values = torch.arange(4.0).view(1, 4, 1, 1)
    points = torch.tensor([[0.2, 0.2], [0.3, 0.2], [-1.0, 0.3], [2.0, 2.0]]).view(1, 1, 1, 4, 2)
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 1, 1, 4)
    read = read_points(values, [(2, 2)], points, weights, [4], "discrete")
    assert read.item() == 0 + 10 * 1 + 100 * 2 + 1000 * 3


def test_reading_between_pixels_by_hand():
    """Centres of 2 x 2 pixels are at 1/4 and 3/4; in the middle, all four count the same."""
    values = torch.arange(4.0).view(1, 4, 1, 1)
    points = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).view(1, 1, 1, 2, 2)
    weights = torch.tensor([1.0, 10.0]).view(1, 1, 1, 2)
    assert read_points(values, [(2, 2)], points, weights, [2]).item() == 2 + 10 * 1.5


def test_positions_are_encoded_row_by_row():
    """Width 4: one frequency, which is 1; sines and cosines of the row, then of the column."""
    encoded = grid_sines(2, 3, 4, torch.zeros(0, dtype=torch.float64))
    row, column = torch.tensor(1.0).double(), torch.tensor(2.0).double()
    expected = torch.stack([row.sin(), row.cos(), column.sin(), column.cos()])
    assert encoded.shape == (6, 4)
    torch.testing.assert_close(encoded[1 * 3 + 2], expected)


def test_two_branches_are_one_convolution():
    """The same numbers and gradients as two convolutions, norms, and a sum."""
    torch.manual_seed(0)
    block = RepVGGBlock(8, "frozen_batch").double()
    for norm in (module for module in block.modules() if isinstance(module, FrozenBatchNorm2d)):
        for buffer in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            buffer.uniform_(0.5, 1.5)
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    by_hand = silu(
        block.conv1.norm(conv2d(x, block.conv1.conv.weight, padding=1))
        + block.conv2.norm(conv2d(x, block.conv2.conv.weight))
    )
    parameters = list(block.parameters())
    torch.testing.assert_close(block(x), by_hand)
    given = torch.autograd.grad(block(x).square().sum(), parameters)
    expected = torch.autograd.grad(by_hand.square().sum(), parameters)
    torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
def test_an_empty_mask_is_no_mask(norm):
    model = small(norm=norm).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = model(images)
        given = model(images, torch.zeros(2, 96, 64, dtype=torch.bool))
    torch.testing.assert_close(given["pred_boxes"], expected["pred_boxes"], rtol=1e-4, atol=1e-5)


def test_queries_start_in_the_image_and_not_in_its_padding():
    """The image is the upper half of the canvas; boxes are fractions of the image."""
    model = small(num_queries=40).eval()
    decoder = model.decoder
    for zero in (decoder.enc_output.proj.bias, decoder.enc_output.norm.bias):
        nn.init.zeros_(zero)  # the score of an unused position is the bias of the head
    for zero in decoder.enc_bbox_head.layers[-1].parameters():
        nn.init.zeros_(zero)  # boxes are the anchors
    mask = torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[:, 64:] = True
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 128, 128), mask)
    x, y, width, height = outputs["enc_outputs"]["pred_boxes"][0].unbind(-1)
    level = (width / 0.05).log2().round()
    stride = 8 * 2**level
    torch.testing.assert_close(width, 0.05 * 2**level)
    torch.testing.assert_close(height, width)
    for pixels in (x * 128, y * 64):
        position = pixels / stride - 0.5
        torch.testing.assert_close(position, position.round(), rtol=0, atol=1e-3)
        assert position.min() > -0.1
    assert y.max() < 1 and y.max() > 0.5


def test_points_follow_the_image_in_its_canvas():
    """Points of an image that fills half of the canvas are those of a box half as far and large."""
    torch.manual_seed(0)
    attention = DeformableAttention(16, 2, [2, 1], "bilinear")
    nn.init.normal_(attention.sampling_offsets.weight)
    shapes = [(4, 4), (2, 2)]
    query, memory = torch.randn(1, 3, 16), torch.randn(1, 20, 16)
    boxes = torch.rand(1, 3, 4)
    half = torch.full((1, 2), 0.5)
    with torch.no_grad():
        given = attention(query, boxes, memory, shapes, half)
        expected = attention(query, boxes / 2, memory, shapes, torch.ones(1, 2))
        elsewhere = attention(query, boxes, memory, shapes, torch.ones(1, 2))
    torch.testing.assert_close(given, expected)
    assert (given - elsewhere).abs().max() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "imagenet"}, "resnet18vd has no weights named 'imagenet'.*--weights PekingU"),
        ({"backbone": "resnet18"}, "backbone must be one of resnet18vd"),
        ({"backbone": [16, 32, 64]}, "backbone must be one of resnet18vd"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"enc_hidden_dim": 36}, "enc_hidden_dim must be a multiple of 8 and of nheads"),
        ({"enc_hidden_dim": 40}, "enc_hidden_dim times expansion must be a multiple of 8"),
        ({"width": 24}, "width must be a multiple of 16"),
        ({"eval_idx": 3}, "eval_idx is 3, but there are 3 decoder layers"),
        ({"points": (1, 2)}, "points must be 1 to 1000 on each of 3 levels"),
        ({"class_loss": "focal"}, "class_loss must be mal or varifocal"),
        ({"sampling": "nearest"}, "sampling must be bilinear or discrete"),
        ({"query_pos_layers": 4}, "query_pos_layers must be 2 or 3"),
        ({"activation": "swish"}, "activation must be one of relu"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(redetr.InputError, match=message):
        redetr.build("rtdetr_r18", 2, **options)


def start_config(**changes: Any) -> TrainConfig:
    options = tuple(f"{name}={value}" for name, value in SMALL.items())
    return TrainConfig(model="rtdetrv2_r18", model_options=options, **changes)


def test_heads_start_from_the_rows_of_their_class(tmp_path):
    there = small("rtdetrv2_r18", num_classes=80)
    weights = read_weights(saved(original_tensors(there), tmp_path / "model.pth"))
    here = small("rtdetrv2_r18", num_classes=3)
    fresh = here.decoder.enc_score_head.weight[1].clone()
    said = start_from(weights, here, start_config(), ["dog", "tree", "person"])
    rows = {0: 16, 2: 0}  # of the 80 classes
    for ours, theirs in (
        (here.decoder.enc_score_head, there.decoder.enc_score_head),
        *zip(here.decoder.dec_score_head, there.decoder.dec_score_head, strict=True),
    ):
        for row, source in rows.items():
            assert torch.equal(ours.weight[row], theirs.weight[source])
            assert torch.equal(ours.bias[row], theirs.bias[source])
    assert torch.equal(here.decoder.enc_score_head.weight[1], fresh)
    assert torch.equal(
        here.encoder.input_proj[0].conv.weight, there.encoder.input_proj[0].conv.weight
    )
    assert "2 of 3 classes matched by name" in said and "query" not in said


def test_what_is_not_taken_from_a_file_is_named(tmp_path):
    """A mask head is left out; learned queries would make it another model."""
    tensors = original_tensors(small("rtdetrv2_r18", masks=True))
    del tensors["decoder.denoising_class_embed.weight"]
    classes = ["class 0", "class 1", "class 2"]
    path = saved(tensors, tmp_path / "model.pth")
    said = start_from(read_weights(path), small("rtdetrv2_r18"), start_config(), classes)
    assert said.endswith("; the mask head is left out: --masks takes it")

    saved(tensors | {"decoder.tgt_embed.weight": torch.zeros(300, 32)}, path)
    here = small("rtdetrv2_r18")
    before = {name: tensor.clone() for name, tensor in here.state_dict().items()}
    with pytest.raises(redetr.InputError, match=r"has 1 tensor that .* such as decoder\.tgt_embed"):
        start_from(read_weights(path), here, start_config(), classes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in here.state_dict().items())


def test_the_backbone_starts_from_a_file_of_its_own(tmp_path):
    torch.manual_seed(3)
    backbone = PResNet("resnet18vd", width=16)
    torch.save(backbone.state_dict(), tmp_path / "resnet18vd.pth")
    model = small("rtdetrv2_r18")
    said = start_from(read_weights(tmp_path / "resnet18vd.pth"), model, start_config(), ["a"])
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)
    assert "tensors of the backbone resnet18vd" in said


@pytest.mark.long
def test_it_learns_from_where_the_originals_stopped(shared_coco, tmp_path):
    """A run from a file of the originals, which is saved, and fine-tuned again."""
    model = small("rtdetrv2_r18", num_classes=80)
    weights = saved(original_tensors(model), tmp_path / "model.pth")
    config = start_config(
        data=str(shared_coco),
        output=str(tmp_path / "run"),
        weights=str(weights),
        steps=6,
        batch_size=4,
        eval_every=6,
        log_every=1,
        image_size=64,
        augment="plain",
        optimizer="adamw",
        lr=1e-3,
        device="cpu",
        precision="fp32",
        num_workers=0,
    )
    train(config)
    losses = [line["loss"] for line in lines_of(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]
    run = torch.load(tmp_path / "run/last.pt", weights_only=True)
    assert not any("num_batches_tracked" in name for name in run["model"])
    assert redetr.load(tmp_path / "run", device="cpu").model.num_queries == 300
    again = replace(config, weights=str(tmp_path / "run"), output=str(tmp_path / "again"), steps=1)
    train(again)
    assert lines_of(tmp_path / "again")[0]["loss"] < losses[0]
