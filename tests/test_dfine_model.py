"""D-FINE: files of the original, how it learns, and its parts by hand.

tests/parity/test_dfine.py compares its numbers with those of another implementation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import lines_of
from original_files import original_tensors, random_targets, randomized, saved
from torch.nn.functional import silu

import redetr
from redetr.config import TrainConfig
from redetr.edges import bin_values, move_edges
from redetr.models import options_of
from redetr.models.hgnetv2 import HGNetV2
from redetr.step import training_outputs
from redetr.training import train
from redetr.weights.dfine import activation_of
from redetr.weights.reading import read_weights
from redetr.weights.starting import start_from
from tests.tiers import cases

NUM_CLASSES = 3
SMALL: dict[str, Any] = {
    "width": 8,
    "enc_hidden_dim": 32,
    "enc_dim_feedforward": 48,
    "block_width": 12,
    "hidden_dim": 32,
    "dim_feedforward": 64,
}


def small(name: str = "dfine_n", num_classes: int = NUM_CLASSES, **options: Any) -> Any:
    """A small model in which no tensor is at a neutral start."""
    return randomized(name, num_classes, SMALL | options)


@pytest.mark.parametrize(
    "name", cases(["dfine_n", "dfine_s", "dfine_m", "dfine_l", "dfine_x"], ["dfine_n"])
)
def test_files_of_the_original(name, tmp_path):
    model = small(name, num_classes=80)
    path = saved(original_tensors(model), tmp_path / "dfine.pth")
    origin = read_weights(path).origin
    assert origin.model == name
    options = options_of(name) | SMALL
    assert origin.options == {option: options[option] for option in origin.options}
    detector = redetr.load(path, device="cpu")
    given = detector.model.state_dict()
    assert given.keys() == model.state_dict().keys()
    assert all(torch.equal(given[key], tensor) for key, tensor in model.state_dict().items())
    assert (detector.classes[0], detector.classes[-1]) == ((1, "person"), (90, "toothbrush"))


def test_those_of_others_on_its_architecture(tmp_path):
    """DEIM and RT-DETRv4 have SiLU in the decoder; v4 has a projection that only training needs."""
    model = small("dfine_s", activation="silu")
    tensors = original_tensors(model)
    tensors["encoder.feature_projector.0.weight"] = torch.rand(768, 32)
    loaded = redetr.load(saved(tensors, tmp_path / "renamed.pth"), device="cpu").model
    heads = (loaded.decoder.pre_bbox_head, loaded.decoder.decoder["layers"][0])
    assert all(head.activation is silu for head in heads)


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("deim_dfine_hgnetv2_s_coco_120e.pth", "silu"),
        ("RTv4-S-hgnet.pth", "silu"),
        ("RT-DETRv4-S.pth", "silu"),
        ("deim_hgnetv2_s_custom/best_stg2.pth", "silu"),
        ("deim/dfine_s_coco.pth", "relu"),
        ("D-FINE/best_stg1.pth", "relu"),
        ("d_fine-m.pth", "relu"),
        ("dfine_airport_v4.pth", "relu"),
        ("dfine_wide_images.pth", "relu"),
        ("side_images/best_stg2.pth", None),
        ("weights/best_stg2.pth", None),
    ],
)
def test_the_name_of_a_file_or_its_folder_says_who_trained_it(name, activation):
    assert activation_of(Path(name), {}) == activation


def test_a_file_that_does_not_say_who_trained_it_is_not_guessed_at(tmp_path):
    """A wrong activation would load without an error, and find nothing."""
    folder = tmp_path / "output"
    folder.mkdir()
    path = saved(original_tensors(small(num_classes=1)), folder / "best.pth")
    with pytest.raises(redetr.InputError, match="put dfine- or deim- before its name") as refused:
        redetr.load(path, device="cpu")
    assert str(path) in str(refused.value) and "--model-options" not in str(refused.value)
    weights = read_weights(path)
    with pytest.raises(redetr.InputError, match="give --model-options activation=relu or"):
        start_from(weights, small(num_classes=1), start_config(), ["a"])
    config = start_config()
    config = replace(config, model_options=(*config.model_options, "activation=silu"))
    assert "loaded" in start_from(weights, small(num_classes=1), config, ["a"])


def test_an_unknown_backbone_is_named(tmp_path):
    tensors = original_tensors(small())
    kept = {name: t for name, t in tensors.items() if ".stages.2.blocks.1." not in name}
    path = saved(kept, tmp_path / "dfine.pth")
    with pytest.raises(redetr.InputError, match=r"stages \[1, 1, 1, 1\] of 3 layers: only HGNetV2"):
        redetr.load(path, device="cpu")


def test_no_d_fine(tmp_path):
    tensors = original_tensors(small())
    del tensors["decoder.reg_scale"]
    path = saved(tensors, tmp_path / "dfine.pth")
    with pytest.raises(redetr.InputError) as refused:
        redetr.load(path, device="cpu")
    text = "these weights are not a D-FINE: decoder.reg_scale is missing"
    assert str(refused.value) == f"{path}: {text}"


def test_bins_of_another_width_are_refused(tmp_path):
    tensors = original_tensors(small())
    tensors["decoder.up"] = torch.tensor([0.25])
    path = saved(tensors, tmp_path / "dfine.pth")
    with pytest.raises(redetr.InputError, match=r"decoder.up is 0.25 in these weights: only 0.5"):
        redetr.load(path, device="cpu")


@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
@pytest.mark.parametrize("name", ["dfine_n", "dfine_s"])
def test_every_parameter_has_a_gradient(name, counts):
    """With denoising; the embedding of padding learns nothing."""
    model = small(name, denoising=2)
    batch = redetr.collate(list(torch.randn(2, 3, 96, 128)))
    batch.targets = random_targets(NUM_CLASSES, counts)
    criterion = redetr.SetCriterion.for_model(model)
    losses = criterion(training_outputs(model, criterion, batch), batch.targets)
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    fixed = model.state_dict(keep_vars=True).keys() - trained.keys()
    assert {"decoder.up", "decoder.reg_scale"} <= fixed
    assert not [name for name, p in trained.items() if p.grad is None]
    if sum(counts):
        assert not [name for name, p in trained.items() if not p.grad.any()]


def test_half_precision_does_not_round_where_edges_move():
    model = small("dfine_n")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.randn(1, 3, 64, 96))
    shares = outputs["edge_logits"].double().unflatten(-1, (4, -1)).softmax(-1)
    moves = shares @ bin_values(torch.tensor([2.0]).double(), 32)
    expected = move_edges(outputs["first_boxes"].double(), moves, 4)
    assert moves.std() > 0.01
    torch.testing.assert_close(outputs["pred_boxes"].double(), expected, rtol=0, atol=1e-6)


def test_what_a_layer_teaches():
    """The boxes of a layer teach all heads of edges so far, but not what proposes them."""
    model = small("dfine_m")
    outputs = model(torch.randn(1, 3, 64, 64))
    outputs["aux_outputs"][1]["pred_boxes"].sum().backward()
    taught = []
    for i, head in enumerate(model.decoder.dec_bbox_head):
        if any(p.grad is not None for p in head.parameters()):
            taught.append(i)
    assert taught == [0, 1]
    assert all(p.grad is None for p in model.decoder.pre_bbox_head.parameters())
    assert all(p.grad is None for p in model.decoder.enc_output.parameters())


def test_layers_after_the_one_that_answers_are_trained_and_not_run():
    model = small("dfine_m", eval_idx=1)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        trained = model(images)
        answered = model.eval()(images)
    assert (len(trained["aux_outputs"]), len(answered["aux_outputs"])) == (3, 1)
    torch.testing.assert_close(answered["pred_boxes"], trained["aux_outputs"][1]["pred_boxes"])


@pytest.mark.parametrize("norm", ["frozen_batch", "group"])
def test_an_empty_mask_is_no_mask(norm):
    model = small(norm=norm).eval()
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = model(images)
        given = model(images, torch.zeros(2, 96, 64, dtype=torch.bool))
    torch.testing.assert_close(given["pred_boxes"], expected["pred_boxes"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "imagenet"}, "hgnetv2_b0 has no weights named 'imagenet'.*--weights ustc-com"),
        ({"backbone": "resnet18vd"}, "backbone must be one of hgnetv2_b0"),
        ({"backbone": [16, 32, 64]}, "backbone must be one of hgnetv2_b0"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
        ({"width": 12}, "width must be a multiple of 8"),
        ({"affine": 1}, "affine must be true or false"),
        ({"bins": 31}, "bins must be an even number"),
        ({"bins": 2}, "bins must be at least 8"),
        ({"reg_scale": 0}, "reg_scale must be at least 0.001"),
        ({"points": (6,)}, "points must be those of 2 to 4 levels"),
        ({"points": (6, 0)}, "points must be 1 to 1000 on each of 2 levels"),
        ({"points": "6"}, "points must be a number, or 3 of them"),
        ({"activation": "swish"}, "activation must be one of relu"),
        ({"dec_layers": 2, "eval_idx": 2}, "eval_idx is 2, but there are 2 decoder layers"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(redetr.InputError, match=message):
        redetr.build("dfine_n", 2, **options)


def start_config(**changes: Any) -> TrainConfig:
    options = tuple(f"{name}={value}" for name, value in SMALL.items())
    return TrainConfig(model="dfine_n", model_options=options, **changes)


def test_heads_start_from_the_rows_of_their_class(tmp_path):
    there = small(num_classes=80)
    weights = read_weights(saved(original_tensors(there), tmp_path / "dfine.pth"))
    here = small(num_classes=3)
    fresh = here.decoder.enc_score_head.weight[1].clone()
    said = start_from(weights, here, start_config(), ["dog", "tree", "person"])
    for ours, theirs in (
        (here.decoder.enc_score_head, there.decoder.enc_score_head),
        *zip(here.decoder.dec_score_head, there.decoder.dec_score_head, strict=True),
    ):
        for row, source in {0: 16, 2: 0}.items():  # of the 80 classes
            assert torch.equal(ours.weight[row], theirs.weight[source])
    assert torch.equal(here.decoder.enc_score_head.weight[1], fresh)
    assert "2 of 3 classes matched by name" in said


def test_the_backbone_starts_from_a_file_of_its_own(tmp_path):
    torch.manual_seed(3)
    backbone = HGNetV2("hgnetv2_b0", None, "frozen_batch", 8, True, 2)
    torch.save(backbone.state_dict(), tmp_path / "hgnetv2_b0.pth")
    model = small()
    said = start_from(read_weights(tmp_path / "hgnetv2_b0.pth"), model, start_config(), ["a"])
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)
    assert "tensors of the backbone hgnetv2_b0" in said


@pytest.mark.long
def test_it_learns_from_where_the_original_stopped(shared_coco, tmp_path):
    weights = saved(original_tensors(small(num_classes=80)), tmp_path / "dfine.pth")
    config = start_config(
        data=str(shared_coco),
        output=str(tmp_path / "run"),
        weights=str(weights),
        denoising=2,
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
    first, *_ = lines_of(tmp_path / "run")
    assert losses[-1] < losses[0]
    assert {"loss_ce_dn_0", "loss_fgl_dn", "loss_ddf_dn_1", "loss_ddn_1"} < first.keys()
    evaluation = lines_of(tmp_path / "run")[-1]
    weights = {"ce": 1, "bbox": 5, "giou": 2, "fgl": 0.15, "ddf": 1.5, "ddn": 1.5}
    total = 0.0
    for name, value in evaluation.items():
        if name.startswith("val_loss_"):
            total += weights[name.split("_")[2]] * value
    assert evaluation["val_loss"] == pytest.approx(total)
    assert evaluation["val_loss_fgl"] > 0 and evaluation["val_loss_ddn_1"] > 0
    assert redetr.load(tmp_path / "run", device="cpu").model.num_queries == 300


def test_weights_of_another_size_name_their_model(tmp_path):
    weights = read_weights(
        saved(original_tensors(redetr.build("dfine_s", 3)), tmp_path / "dfine.pth")
    )
    config = TrainConfig(model="dfine_n")
    with pytest.raises(redetr.InputError, match=r"use --model dfine_s$"):
        start_from(weights, redetr.build("dfine_n", 3), config, ["a", "b", "c"])
