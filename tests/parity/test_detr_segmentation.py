"""The panoptic DETR against Transformers' `DetrForSegmentation`: masks of the same random weights,
and the names of the official checkpoints.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import redetr
from redetr.weights.panoptic import coco_class_names, from_transformers
from tests.parity.test_official_layout import official_weights, save, shapes
from tests.tiers import cases
from tests.transformers_peer import difference, ours_from, padded_batch, randomized, run_peer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

OUTPUTS = 251  # category ids 0 to 249 and "no object"
VARIANTS = {
    "resnet50": {},
    "resnet101": {"backbone": "resnet101", "decoder_layers": 1},
    "dilated": {"dilation": True, "decoder_layers": 1},
    "other sizes": {
        "backbone": "resnet18",
        "d_model": 64,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 4,
    },
}


def random_peer(**options: Any) -> Any:
    """A panoptic DETR of Transformers with random weights."""
    settings = {
        "backbone": "resnet50",
        "use_pretrained_backbone": False,
        "num_labels": 5,
        "dropout": 0.0,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 5,
    }
    config = transformers.DetrConfig(**settings | options)
    peer = randomized(transformers.DetrForSegmentation, config)
    with torch.no_grad():
        for parameter in peer.bbox_attention.parameters():
            parameter.mul_(3)  # so that the maps are peaked
    return peer


def assert_same_masks(peer: Any, tolerance: float) -> None:
    """Masks, logits and boxes agree on a padded batch, and without padding on an odd size."""
    ours = ours_from(peer)
    batch = padded_batch(peer.dtype)
    with torch.no_grad():
        theirs = run_peer(peer, batch)
        outputs = ours(batch.images, batch.mask)
        alone = peer(pixel_values=batch.images[2:, :, :50, :101])
        ours_alone = ours(batch.images[2:, :, :50, :101])
    assert theirs.pred_masks.std() > 0.1  # the comparison is not one of zeros
    assert theirs.pred_masks.shape == (3, 5, 24, 32)
    assert difference(outputs["pred_masks"], theirs.pred_masks) <= tolerance
    assert difference(outputs["pred_logits"], theirs.logits) <= tolerance
    assert difference(outputs["pred_boxes"], theirs.pred_boxes) <= tolerance
    assert ours_alone["pred_masks"].shape == (1, 5, 13, 26)
    assert difference(ours_alone["pred_masks"], alone.pred_masks) <= tolerance
    # The padding is part of the function: without it, the masks would be others.
    with torch.no_grad():
        unpadded = ours(batch.images)["pred_masks"]
    assert difference(unpadded[2], theirs.pred_masks[2]) > 100 * tolerance


@pytest.mark.parametrize("name", cases(VARIANTS, ["other sizes"]))
def test_masks_are_those_of_transformers(name):
    assert_same_masks(random_peer(**VARIANTS[name]), 1e-4)


@pytest.fixture
def double_by_default():
    """Transformers makes some tensors in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_masks_in_double_precision(double_by_default):
    assert_same_masks(random_peer(**VARIANTS["other sizes"]).double(), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["resnet50", "resnet101", "dilated"])
def test_masks_of_the_published_nets_in_double_precision(double_by_default, variant):
    assert_same_masks(random_peer(**VARIANTS[variant]).double(), 1e-9)


def test_both_formats_of_a_folder(tmp_path):
    """Transformers writes the official names of the mask head, or its own."""
    peer = random_peer(**VARIANTS["other sizes"])
    for original in (True, False):
        peer.save_pretrained(tmp_path / str(original), save_original_format=original)
    first = redetr.load(tmp_path / "True", device="cpu")
    second = redetr.load(tmp_path / "False", device="cpu")
    torch.testing.assert_close(first.model.state_dict(), second.model.state_dict(), rtol=0, atol=0)
    theirs = peer.mask_head.fpn_stages[1].refine.norm.weight
    assert torch.equal(second.model.mask_head.gn4.weight, theirs)


def panoptic_weights(backbone: str = "resnet50", num_queries: int = 100) -> dict[str, Tensor]:
    """A random state dict as facebookresearch/detr writes it with --masks, made without redetr."""
    weights = {}
    for name, tensor in official_weights(backbone, num_queries).items():
        weights[f"detr.{name}"] = tensor
    classifier = nn.Linear(256, OUTPUTS)
    weights["detr.class_embed.weight"] = classifier.weight.detach()
    weights["detr.class_embed.bias"] = classifier.bias.detach()
    modules: dict[str, nn.Module] = {
        "bbox_attention.q_linear": nn.Linear(256, 256),
        "bbox_attention.k_linear": nn.Linear(256, 256),
        "mask_head.out_lay": nn.Conv2d(16, 1, 3),
    }
    widths = (264, 264, 128, 64, 32, 16)
    for i in range(1, 6):
        modules[f"mask_head.lay{i}"] = nn.Conv2d(widths[i - 1], widths[i], 3)
        modules[f"mask_head.gn{i}"] = nn.GroupNorm(8, widths[i])
    for i, channels in enumerate((1024, 512, 256), start=1):
        modules[f"mask_head.adapter{i}"] = nn.Conv2d(channels, widths[i + 1], 1)
    for prefix, module in modules.items():
        for name, tensor in module.state_dict().items():
            weights[f"{prefix}.{name}"] = tensor
    return weights


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("detr_r50_panoptic", "resnet50"),
        ("detr_r50_dc5_panoptic", "resnet50"),
        ("detr_r101_panoptic", "resnet101"),
    ],
)
def test_names_and_shapes_are_the_official_ones(name, backbone):
    with torch.device("meta"):
        model = redetr.build(name, num_classes=OUTPUTS - 1)
        expected = panoptic_weights(backbone)
    assert shapes(model.state_dict()) == shapes(expected)


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "backbone", "name"),
    [
        ("detr-r50-dc5-panoptic-da08f1b1.pth", "resnet50", None),
        ("mine.pth", "resnet50", "detr_r50_dc5_panoptic"),
        ("detr-r101-panoptic-40021d53.pth", "resnet101", None),
    ],
)
def test_a_file_of_the_original_loads(file, backbone, name, tmp_path):
    weights = panoptic_weights(backbone, num_queries=3)
    detector = redetr.load(save(tmp_path / file, weights), model=name, device="cpu")
    torch.testing.assert_close(detector.model.state_dict(), weights, rtol=0, atol=0)
    assert detector.model.num_classes == 250
    assert detector.model.num_queries == 3
    assert detector.class_names[1] == "person"
    assert detector.class_names[200] == "rug-merged"
    assert detector.category_ids == tuple(range(250))
    with torch.inference_mode():
        outputs = detector.model(torch.zeros(1, 3, 64, 96))
        (_, _, _, last) = detector.model.backbone[0](torch.zeros(1, 3, 64, 96))
    assert outputs["pred_masks"].shape == (1, 3, 16, 24)
    is_dilated = "dc5" in f"{file}{name}"
    assert last.shape == ((1, 2048, 4, 6) if is_dilated else (1, 2048, 2, 3))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    weights = panoptic_weights(num_queries=3)
    del weights["mask_head.gn3.bias"]
    with pytest.raises(redetr.InputError, match=r"1 missing.*mask_head\.gn3\.bias"):
        redetr.load(save(tmp_path / "incomplete.pth", weights), device="cpu")
    del weights["mask_head.lay1.weight"]
    with pytest.raises(redetr.InputError, match=r"not a panoptic DETR: mask_head\.lay1\.weight"):
        redetr.load(save(tmp_path / "incomplete.pth", weights), device="cpu")


def test_names_of_the_categories():
    """53 kinds of stuff, some of them at gaps of the list, by hand from COCO's definition."""
    names = coco_class_names(250)
    assert len(names) == 250
    assert sum(name != "unused" for name in names) == 80 + 53
    some = {90: "toothbrush", 92: "banner", 93: "blanket", 119: "flower", 149: "road"}
    some |= {155: "sea", 178: "water-other", 187: "sky-other-merged", 193: "grass-merged"}
    some |= {95: "bridge", 181: "window-other", 195: "paper-merged", 94: "unused", 201: "unused"}
    assert {i: names[i] for i in some} == some


def random_labels(batch: redetr.Batch) -> list[dict[str, Tensor]]:
    """Objects of each image, with masks of its size without padding."""
    torch.manual_seed(2)
    labels = []
    for (height, width), count in zip(batch.sizes, (3, 0, 1), strict=True):
        coarse = torch.randn(count, 1, 4, 4)
        masks = nn.functional.interpolate(coarse, size=(height, width))[:, 0] > 0
        boxes = torch.rand(count, 4, dtype=batch.images.dtype) * 0.4 + 0.1
        classes = torch.randint(5, (count,))
        labels.append({"class_labels": classes, "boxes": boxes, "masks": masks})
    return labels


def test_losses_and_gradients_are_those_of_transformers(double_by_default):
    """In double precision, masks of matched queries against masks of all."""
    peer = random_peer(**VARIANTS["other sizes"]).double()
    ours = ours_from(peer)
    ours.aux_loss = False
    batch = padded_batch(torch.float64)
    labels = random_labels(batch)
    theirs = run_peer(peer, batch, labels=labels)
    theirs.loss.backward()
    targets = []
    for label, size in zip(labels, batch.sizes, strict=True):
        target = {"labels": label["class_labels"], "boxes": label["boxes"], "size": size}
        targets.append(target | {"masks": label["masks"]})
    outputs = ours(batch.images, batch.mask, all_masks=False)
    losses = redetr.SetCriterion.for_model(ours)(outputs, targets)
    losses["loss"].backward()

    expected = {name: loss for name, loss in theirs.loss_dict.items() if "card" not in name}
    assert {"loss_mask", "loss_dice"} < expected.keys()
    # The weight of "no object" is a constant in fp32 there.
    torch.testing.assert_close(losses, expected | {"loss": theirs.loss}, rtol=1e-6, atol=0)
    gradients = {name: parameter.grad for name, parameter in peer.named_parameters()}
    gradients = from_transformers(gradients)
    heads = [name for name in gradients if name.startswith(("mask_head.", "bbox_attention."))]
    assert len(heads) == 32
    for name in [*heads, "detr.input_proj.weight", "detr.query_embed.weight"]:
        gradient = ours.get_parameter(name).grad
        error = (gradient - gradients[name]).norm()
        # That of a bias before a norm is 0 but for rounding.
        assert error <= 1e-6 * gradients[name].norm() + 1e-12, name
