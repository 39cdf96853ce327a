"""The head for instance masks: what it adds to a detector, and how training starts and freezes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import redetr
from redetr.checkpoint import save_weights
from redetr.denoising import NoisyQueries
from redetr.detector.inference import for_inference
from redetr.errors import InputError
from redetr.models.freezing import freeze
from redetr.optim import param_groups
from redetr.structures import DetectionModel
from redetr.weights.reading import read_weights
from redetr.weights.starting import start_from, starting_point

SMALL = {"hidden_dim": 32, "nheads": 4, "dec_layers": 2, "dim_feedforward": 64, "num_queries": 12}
OPTIONS = {
    "redetr_n": {**SMALL, "backbone": (8, 16, 24)},
    "rtdetr_r18": {**SMALL, "width": 16, "enc_hidden_dim": 32, "enc_dim_feedforward": 64},
    "dfine_n": {
        **SMALL,
        "width": 8,
        "enc_hidden_dim": 32,
        "enc_dim_feedforward": 64,
        "block_width": 16,
    },
    "dfine_s": {
        **SMALL,
        "width": 8,
        "enc_hidden_dim": 32,
        "enc_dim_feedforward": 64,
        "block_width": 16,
    },
}
CLASSES = ("a", "b", "c")
LOOSE = {"rtol": 1e-4, "atol": 1e-4}


def small(name: str, masks: bool = True, **options) -> DetectionModel:
    torch.manual_seed(0)
    return redetr.build(name, len(CLASSES), masks=masks, **OPTIONS[name], **options)


def batch() -> tuple[Tensor, Tensor]:
    """Two images, the second with padding at the right."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    images[1, :, :, 64:] = 0
    return images, mask


@pytest.mark.parametrize("name", OPTIONS)
def test_every_query_has_a_mask_within_its_box(name):
    """A product of the embeddings that the loss takes; and low beyond the box and a pixel."""
    model = small(name).eval()
    images, mask = batch()
    with torch.inference_mode():
        outputs = model(images, mask)
    masks = outputs["pred_masks"]
    assert masks.shape == (2, 12, 16, 24)
    assert outputs["canvas"] == (64, 96)
    product = torch.einsum("bqe,behw->bqhw", outputs["mask_embed"], outputs["pixel_embed"])
    for i, share in enumerate((1, 64 / 96)):
        for query in range(12):
            x, y, width, height = outputs["pred_boxes"][i, query].tolist()
            columns = (torch.arange(24) + 0.5) / 24
            rows = (torch.arange(16) + 0.5) / 16
            beside = (columns - x * share).abs() - width * share / 2
            above = (rows - y).abs() - height / 2
            # A border may lie on the centre of a pixel, which may then count either way.
            outside = (beside > 1 / 24 + 1e-6)[None, :] | (above > 1 / 16 + 1e-6)[:, None]
            inside = (beside < 1 / 24 - 1e-6)[None, :] & (above < 1 / 16 - 1e-6)[:, None]
            expected = product[i, query][inside]
            torch.testing.assert_close(masks[i, query][inside], expected, **LOOSE)
            assert (masks[i, query][outside] <= -5).all()
    assert (masks > 0).any() and (masks < 0).any()


@pytest.mark.parametrize("name", OPTIONS)
def test_boxes_are_those_of_the_detector_without_it(name):
    """Its weights come last: the same seed gives the same detector with and without."""
    images, mask = batch()
    with torch.inference_mode():
        with_masks = small(name).eval()(images, mask)
        without = small(name, masks=False).eval()(images, mask)
    assert with_masks.keys() - without.keys() == {
        "pred_masks",
        "mask_embed",
        "pixel_embed",
        "canvas",
    }
    torch.testing.assert_close(with_masks["pred_boxes"], without["pred_boxes"])
    torch.testing.assert_close(with_masks["pred_logits"], without["pred_logits"])


@pytest.mark.parametrize("name", OPTIONS)
def test_training_leaves_masks_to_the_loss(name):
    """Which reaches every parameter that is trained."""
    model = small(name)
    images, mask = batch()
    outputs = model(images, mask)
    assert "pred_masks" not in outputs
    targets = []
    for i, size in enumerate(((64, 96), (64, 64))):
        masks = torch.zeros(1, *size, dtype=torch.bool)
        masks[0, 20:40, 20:40] = True
        center = (30 / size[1], 30 / size[0])
        box = torch.tensor([[*center, 20 / size[1], 20 / size[0]]])
        target = {"labels": torch.tensor([i]), "boxes": box, "size": size, "masks": masks}
        targets.append(target)
    losses = redetr.SetCriterion.for_model(model)(outputs, targets)
    assert {"loss_mask", "loss_dice"} < losses.keys()
    losses["loss"].backward()
    for part, parameter in model.mask_head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, part


@pytest.mark.parametrize("name", ["rtdetr_r18", "dfine_n"])
def test_noisy_queries_have_no_masks(name):
    model = small(name, denoising=1)
    images, mask = batch()
    noisy = NoisyQueries(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2, 4), 0.5))
    outputs = model(images, mask, noisy)
    alone = model(images, mask)
    assert outputs["mask_embed"].shape == (2, 12, 32)
    torch.testing.assert_close(outputs["mask_embed"], alone["mask_embed"], **LOOSE)
    assert "mask_embed" not in outputs["denoising"]


@pytest.mark.parametrize("name", OPTIONS)
def test_ready_for_inference_it_answers_the_same(name):
    model = small(name).eval()
    images, _ = batch()
    with torch.inference_mode():
        expected = model(images)["pred_masks"]
        outputs = for_inference(model)(images)
    assert "mask_embed" not in outputs
    torch.testing.assert_close(outputs["pred_masks"], expected, **LOOSE)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_detector_can_be_frozen(name):
    model = small(name)
    freeze(model, ["detector"])
    trained = {part for part, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"mask_head.{part}" for part, _ in model.mask_head.named_parameters()}
    groups = param_groups(model, 1e-3, 1e-4, 1e-2, "muon")
    assert {group["base_lr"] for group in groups} == {1e-3}
    assert sum(len(group["params"]) for group in groups) == len(trained)


def test_without_masks_a_frozen_detector_leaves_nothing():
    with pytest.raises(InputError, match="nothing is left to train"):
        freeze(small("redetr_n", masks=False), ["detector"])


@pytest.mark.parametrize("weights", [None, "none", "imagenet", "backbone"])
@pytest.mark.parametrize(("name", "freeze"), [
    ("redetr_n", "detector"), ("rtdetr_r18", "detector"), ("dfine_n", "detector"),
    ("detr_r50_panoptic", "detector"), ("detr_r50_panoptic", "detr"),
])  # fmt: skip
def test_a_detector_without_training_cannot_be_frozen(name, freeze, weights, tmp_path):
    """A backbone is not a detector."""
    if weights == "backbone":
        weights = str(tmp_path / "backbone.pth")
        torch.save({"conv1.weight": torch.zeros(1)}, weights)
    config = redetr.TrainConfig(model=name, masks=True, freeze=(freeze,), weights=weights)
    with torch.device("meta"):
        model = redetr.build(name, len(CLASSES), **replace(config, weights=None).model_kwargs())
    message = f"^{name} with a frozen detector needs .*; give --weights RUN, .* or leave --freeze "
    with pytest.raises(InputError, match=message):
        starting_point(model, config, CLASSES)
    starting_point(model, replace(config, weights=None, freeze=("backbone",)), CLASSES)


def saved(folder, masks: bool):
    """The file of a small detector of other weights."""
    model = small("redetr_n", masks)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    path = folder / f"{masks}.safetensors"
    options = [
        f"{name}={list(value) if name == 'backbone' else value}"
        for name, value in OPTIONS["redetr_n"].items()
    ]
    config = redetr.TrainConfig(model="redetr_n", model_options=tuple(options), masks=masks)
    about = {
        "config": config.to_dict(),
        "class_names": list(CLASSES),
        "category_ids": [1, 2, 3],
    }
    save_weights(path, model.state_dict(), about)
    return path, config


def test_training_starts_from_a_checkpoint_without_the_head(tmp_path):
    path, config = saved(tmp_path, masks=False)
    weights = read_weights(path)
    model = small("redetr_n")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    note = start_from(weights, model, replace(config, masks=True), CLASSES)
    assert note.endswith("; the mask head starts at random")
    for name, tensor in model.state_dict().items():
        expected = before[name] if name.startswith("mask_head.") else weights.tensors[name]
        assert torch.equal(tensor, expected), name


def test_training_starts_from_a_checkpoint_with_the_head(tmp_path):
    """With masks, all of it is taken; for boxes only, all but the head."""
    path, config = saved(tmp_path, masks=True)
    weights = read_weights(path)
    model = small("redetr_n")
    note = start_from(weights, model, config, CLASSES)
    total = len(model.state_dict())
    assert note == f"loaded {total} of {total} tensors from {path}"
    boxes_only = small("redetr_n", masks=False)
    start_from(weights, boxes_only, replace(config, masks=False), CLASSES)
    for name, tensor in boxes_only.state_dict().items():
        assert torch.equal(tensor, weights.tensors[name]), name


def test_a_checkpoint_says_that_it_has_masks(tmp_path):
    path, _ = saved(tmp_path, masks=True)
    detector = redetr.load(path, device="cpu")
    assert detector.model.has_masks
    boxes_only, _ = saved(tmp_path, masks=False)
    assert not redetr.load(boxes_only, device="cpu").model.has_masks


def test_a_head_that_is_not_whole_is_refused(tmp_path):
    path, config = saved(tmp_path, masks=True)
    weights = read_weights(path)
    del weights.tensors["mask_head.refine.0.weight"]
    with pytest.raises(InputError, match=r"lacks 1 tensor .* mask_head\.refine\.0\.weight"):
        start_from(weights, small("redetr_n"), config, CLASSES)


def test_models_without_such_a_head_say_so():
    with pytest.raises(InputError, match="detr_r50 predicts only boxes"):
        redetr.build("detr_r50", 3, masks=True)


# What D-FINE-seg calls the parts of the head, by what they are called here.
DFINE_SEG = {
    "mask_head.lateral.0.0.": "decoder.mask_decoder.lateral.0.",
    "mask_head.lateral.0.1.": "decoder.mask_decoder.bn.0.",
    "mask_head.lateral.1.0.": "decoder.mask_decoder.lateral.1.",
    "mask_head.lateral.1.1.": "decoder.mask_decoder.bn.1.",
    "mask_head.lateral.2.0.": "decoder.mask_decoder.lateral.2.",
    "mask_head.lateral.2.1.": "decoder.mask_decoder.bn.2.",
    "mask_head.fuse.0.": "decoder.mask_decoder.fusion_conv.",
    "mask_head.fuse.1.": "decoder.mask_decoder.fusion_norm.",
    "mask_head.refine.0.": "decoder.mask_decoder.up_conv.",
    "mask_head.refine.1.": "decoder.mask_decoder.bn1.",
    "mask_head.queries.": "decoder.mask_head.",
}


def as_dfine_seg(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of D-FINE-seg, with what its files hold besides."""
    tensors = {"decoder.anchors": torch.zeros(1, 4, 4)}
    for name, tensor in state.items():
        for ours, theirs in DFINE_SEG.items():
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        tensors[name] = tensor
    return tensors


def pixels_by_hand(tensors: dict[str, Tensor], levels: list[Tensor]) -> Tensor:
    """What D-FINE-seg's head makes of three levels, written out by its names."""
    prefix = "decoder.mask_decoder."

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = tensors[f"{prefix}{name}.weight"], tensors[f"{prefix}{name}.bias"]
        return F.group_norm(x, 32, weight, bias)

    mixed = torch.zeros(())
    for i, level in enumerate(levels):
        part = norm(F.conv2d(level, tensors[f"{prefix}lateral.{i}.weight"]), f"bn.{i}")
        scale = 2**i
        mixed = mixed + F.interpolate(part, scale_factor=scale, mode="bilinear")
    mixed = F.conv2d(mixed, tensors[prefix + "fusion_conv.weight"], padding=1)
    mixed = norm(mixed, "fusion_norm").relu()
    mixed = F.interpolate(mixed, scale_factor=2, mode="bilinear")
    mixed = F.conv2d(mixed, tensors[prefix + "up_conv.weight"], padding=1)
    return norm(mixed, "bn1").relu()


@pytest.mark.long
@pytest.mark.parametrize("name", ["dfine_n", "dfine_s"])
def test_files_of_dfine_seg_load(name, tmp_path):
    """Under its names, the same masks as it computes. That of size n has features of stride 8 of
    the backbone, as there."""
    options = {**OPTIONS[name], "nheads": 8}  # the file does not say it
    torch.manual_seed(0)
    model = redetr.build(name, len(CLASSES), masks=True, **options).eval()
    with torch.no_grad():
        for part, parameter in model.mask_head.named_parameters():
            if part.endswith((".1.weight", ".1.bias")):  # of norms
                parameter.uniform_(-1, 1)
    tensors = as_dfine_seg(model.state_dict())
    path = tmp_path / f"{name}_seg.pt"
    torch.save(tensors, path)
    detector = redetr.load(path, device="cpu")
    assert detector.model.has_masks
    for part, tensor in detector.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[part]), part

    generator = torch.Generator().manual_seed(2)
    images = torch.randn(1, 3, 64, 64, generator=generator)
    seen: list[list[Tensor]] = []
    head = detector.model.mask_head
    pixels = head.pixels

    def noting(levels: list[Tensor], fine: Tensor | None = None) -> Tensor:
        seen.append(levels)
        return pixels(levels, fine)

    head.pixels = noting
    with torch.inference_mode():
        outputs = detector.model(images)
        expected = pixels_by_hand(tensors, seen[0])
    assert [level.shape[-1] for level in seen[0]] == [8, 4, 2]
    torch.testing.assert_close(outputs["pixel_embed"], expected, **LOOSE)
