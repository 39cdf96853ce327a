"""Models made ready to answer give the same numbers, with less in them."""

from typing import get_overloads, get_type_hints

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import redetr
from redetr.detector.detections import Detections
from redetr.detector.detector import Detector
from redetr.detector.inference import for_inference, fuse_norms
from redetr.detector.segments import PanopticDetections
from redetr.models.backbone import conv_norm
from tests.tiers import cases

SMALL = {"hidden_dim": 32, "nheads": 4, "dec_layers": 2, "dim_feedforward": 64}
FORMS = {
    "detr_r50": SMALL | {"enc_layers": 1},
    "detr_r50_dc5": SMALL | {"enc_layers": 1},
    "redetr_n": SMALL,
    "redetr_mobile": SMALL,
    "rtdetr_r18": SMALL | {"width": 16, "enc_hidden_dim": 32, "enc_dim_feedforward": 64},
    "dfine_n": SMALL | {"enc_hidden_dim": 32, "enc_dim_feedforward": 64, "block_width": 16},
    "rtdetrv2_r50m": SMALL
    | {"width": 16, "enc_hidden_dim": 32, "dec_layers": 3, "eval_idx": 1, "points": (2, 4, 1)},
}


def built(name: str) -> redetr.structures.DetectionModel:
    """Random weights, random statistics in its norms."""
    torch.manual_seed(0)
    model = redetr.build(name, 3, **FORMS[name]).eval()
    for norm in (module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)):
        for buffer, (low, high) in (
            (norm.weight, (0.5, 1)),
            (norm.running_var, (0.5, 2)),
            (norm.bias, (-0.5, 0.5)),
            (norm.running_mean, (-0.5, 0.5)),
        ):
            buffer.uniform_(low, high)
    return model


@pytest.mark.parametrize("name", cases(FORMS, ["redetr_n", "redetr_mobile", "rtdetr_r18"]))
@pytest.mark.parametrize("padded", [False, True])
def test_the_same_numbers(name, padded):
    """In fp64: in fp32, rounding alone may exchange two proposals of nearly the same score."""
    model = built(name).double()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images, mask = (
        torch.randn(2, 3, 96, 64, dtype=torch.float64),
        torch.zeros(2, 96, 64, dtype=torch.bool),
    )
    mask[1, 70:], mask[1, :, 50:] = padded, padded
    ready = for_inference(model)
    with torch.no_grad():
        expected, given = model(images, mask), ready(images, mask)
    for key in ("pred_logits", "pred_boxes"):
        torch.testing.assert_close(given[key], expected[key], rtol=1e-9, atol=1e-9)
    assert expected["aux_outputs"] and not given["aux_outputs"] and "enc_outputs" not in given
    # The model itself is unchanged.
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", FORMS)
def test_no_frozen_norm_is_left_and_nothing_is_trained(name):
    ready = for_inference(built(name))
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in ready.modules())
    assert not any(p.requires_grad for p in ready.parameters()) and not ready.training


@pytest.mark.parametrize(("bias", "expected"), [(None, 3.5), (0.5, 4.25)])
def test_folding_by_hand(bias, expected):
    """y = 3 (2 x - 1) / sqrt(4 - 1e-5 + 1e-5) + 5 = 3 x + 3.5; a bias of 0.5 adds 3 * 0.5 / 2."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=bias is not None), FrozenBatchNorm2d(1)
    nn.init.constant_(conv.weight, 2.0)
    if bias is not None:
        nn.init.constant_(conv.bias, bias)
    for buffer, value in (
        (norm.weight, 3.0),
        (norm.bias, 5.0),
        (norm.running_mean, 1.0),
        (norm.running_var, 4 - 1e-5),
    ):
        buffer.fill_(value)
    parent = nn.Sequential(conv, norm).requires_grad_(False)
    x = torch.full((1, 1, 1, 1), 0.25)
    assert conv_norm(x, conv, norm).item() == pytest.approx(0.75 + expected)
    fuse_norms(parent)
    assert parent[0].weight.item() == pytest.approx(3)
    assert parent[0].bias.item() == pytest.approx(expected)
    assert isinstance(parent[1], nn.Identity)


@pytest.mark.parametrize("net", ["resnet18", "resnetv2_18"])
def test_nets_of_timm_give_the_same_numbers(net):
    torch.manual_seed(0)
    model = redetr.build("redetr_n", 3, **SMALL, backbone=f"timm:{net}").eval().double()
    for name, buffer in model.named_buffers():
        if "running_" in name:
            buffer.uniform_(0.5, 1.5)
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        expected, given = model(images), for_inference(model)(images)
    torch.testing.assert_close(given["pred_logits"], expected["pred_logits"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given["pred_boxes"], expected["pred_boxes"], rtol=1e-9, atol=1e-9)


def test_an_optimized_detector_finds_the_same(shared_coco):
    def detector() -> redetr.Detector:
        return redetr.Detector(
            built("detr_r50"), ("a", "b", "c"), (1, 2, 3), image_size=96, device="cpu"
        )

    images = sorted((shared_coco / "val").glob("*.jpg"))
    plain, ready = detector(), detector().optimize(precision="fp32")
    assert plain.model.aux_loss and not ready.model.aux_loss
    for expected, given in zip(plain.predict(images, 0.0), ready.predict(images, 0.0), strict=True):
        torch.testing.assert_close(given.scores, expected.scores, rtol=1e-4, atol=1e-4)
        assert (given.boxes - expected.boxes).abs().max() < 0.1  # of 64 px


def test_more_than_100_are_found_by_a_model_with_more_queries():
    model = redetr.build("redetr_n", 2, num_queries=150, **SMALL)
    detector = redetr.Detector(model, ["a", "b"], [1, 2], 192, device="cpu")
    assert len(detector.predict(torch.zeros(3, 192, 192, dtype=torch.uint8), threshold=0.0)) == 150


def test_a_detector_computes_in_the_precision_it_was_given():
    model = redetr.build("redetr_n", 2, **SMALL)
    detector = redetr.Detector(model, ["a", "b"], [1, 2], 64, device="cpu", precision="fp64")
    assert {p.dtype for p in detector.model.parameters()} == {torch.float64}
    detector.predict(torch.zeros(3, 64, 64, dtype=torch.uint8))
    bf16 = redetr.Detector(model, ["a", "b"], [1, 2], 64, device="cpu", precision="bf16").optimize()
    assert bf16.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("predict", "kind"),
    [(Detector.predict, Detections), (Detector.predict_panoptic, PanopticDetections)],
)
def test_type_checkers_tell_an_image_from_a_list(predict, kind):
    returned = [get_type_hints(overload)["return"] for overload in get_overloads(predict)]
    assert returned == [kind, list[kind]]
