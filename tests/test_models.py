"""Every model: what it returns, what it trains, and what does not change its answer."""

import math

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

import redetr
from redetr.models.backbone import (
    MOBILENETS,
    Backbone,
    _timm_features,
    conv_norm,
    padding_at,
)
from redetr.models.backbones import build_backbone
from redetr.models.deformable import DeformableAttention
from redetr.models.detr import DETR
from redetr.models.position import PositionEmbeddingLearned, PositionEmbeddingSine
from redetr.models.recompute import recompute_blocks
from redetr.models.resnet_vd import SmallResNet
from redetr.models.transformer import Transformer, attention, dropout
from tests.tiers import cases

SMALL_DETR = {
    "backbone": (16, 32, 64),
    "hidden_dim": 32,
    "nheads": 4,
    "enc_layers": 1,
    "dec_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
    "dropout": 0.0,
}
SMALL_FAST = {
    "backbone": (16, 32, 64),
    "hidden_dim": 32,
    "nheads": 4,
    "dec_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
}
SMALL_RTDETR = {
    "width": 16,
    "enc_hidden_dim": 32,
    "enc_dim_feedforward": 64,
    "hidden_dim": 32,
    "nheads": 4,
    "dec_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
}
SMALL_DFINE = {
    "enc_hidden_dim": 32,
    "enc_dim_feedforward": 64,
    "block_width": 16,
    "hidden_dim": 32,
    "nheads": 4,
    "dec_layers": 2,
    "dim_feedforward": 64,
    "num_queries": 7,
}
SMALL = {
    "detr_r50": SMALL_DETR,
    "redetr_n": SMALL_FAST,
    "redetr_mobile": SMALL_FAST | {"backbone": "mobilenet_v3_small"},
    "rtdetr_r18": SMALL_RTDETR,
    "dfine_n": SMALL_DFINE,
}
NUM_CLASSES = 3


def small(name: str, **options) -> nn.Module:
    """A small model of `SMALL` with the same random weights each time."""
    torch.manual_seed(0)
    return redetr.build(name, NUM_CLASSES, **{**SMALL[name], **options})


def targets(*counts: int) -> list[dict[str, Tensor]]:
    """Random objects, that many in each image."""
    objects = []
    for count in counts:
        labels = torch.randint(NUM_CLASSES, (count,))
        boxes = 0.3 + 0.4 * torch.rand(count, 4)
        objects.append({"labels": labels, "boxes": boxes})
    return objects


# One of each family.
QUICK = ("detr_r50", "detr_r50_panoptic", "redetr_n", "rtdetr_r18", "rtdetrv2_r18", "dfine_n")


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", cases(redetr.MODELS, QUICK))
def test_every_model_returns_what_it_promises(name):
    with torch.device("meta"):
        model = redetr.build(name, NUM_CLASSES)
        images = torch.zeros(2, 3, 160, 128)
        outputs = model(images, torch.zeros(2, 160, 128, dtype=torch.bool))
    columns = NUM_CLASSES
    if model.loss_config.scores == "softmax":
        columns += 1  # "no object"
    num_positions = 100 if name == "dfine_n" else 420  # from stride 16 or 8 on
    layers = [*outputs["aux_outputs"], outputs]
    three = ("redetr_n", "redetr_mobile", "rtdetr_r18", "rtdetrv2_r18", "dfine_n", "dfine_s")
    four = ("rtdetr_r34", "rtdetrv2_r34", "dfine_m")
    num_layers = 3 if name in three else 4 if name in four else 6
    assert len(layers) == num_layers
    if name.startswith("dfine"):
        layers.append(outputs["pre_outputs"])
    for layer in layers:
        num_queries = min(model.num_queries, num_positions)
        assert layer["pred_logits"].shape == (2, num_queries, columns)
        assert layer["pred_boxes"].shape == (2, num_queries, 4)
    assert ("enc_outputs" in outputs) != name.startswith("detr")


def test_sizes_are_those_of_the_documentation():
    with torch.device("meta"):
        size = {name: num_parameters(redetr.build(name, 80)) for name in redetr.MODELS}
        original_size = num_parameters(redetr.build("detr_r50", 91))
    assert 0.6e6 < size["redetr_n"] < 0.8e6
    assert 2e6 < size["redetr_mobile"] < 3e6
    ascending = ("redetr_n", "rtdetr_r18", "detr_r50", "detr_r101")
    assert sorted(ascending, key=size.__getitem__) == list(ascending)
    assert size["detr_r50_dc5"] == size["detr_r50"]  # dilation has no weights
    # Published: 41 M and 60 M.
    assert 41e6 < original_size < 42e6
    assert 60e6 < size["detr_r101"] < 61e6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("detr_r51", {}, "unknown model 'detr_r51'.*detr_r50"),
        ("detr_r50", {"queries": 3}, "unknown option 'queries'.*num_queries"),
        ("redetr_n", {"dropout": 0.1}, "unknown option 'dropout'"),
        ("detr_r50", {"backbone": "resnet7"}, "unknown backbone 'resnet7'.*resnet50"),
        (
            "detr_r50",
            {"backbone": "mobilenet_v2", "dilation": True},
            "mobilenet_v2 has no dilated variant: choose one of resnet18",
        ),
        ("detr_r50", {"activation": "prelu"}, "activation must be one of relu, .*gelu"),
        ("detr_r50", {"dec_nheads": 7}, "hidden_dim must be a multiple of dec_nheads"),
        ("detr_r50", {"dec_dim_feedforward": "many"}, "dec_dim_feedforward must be a number"),
        ("detr_r50", {"norm_between": 1}, "norm_between must be true or false"),
        (
            "detr_r50",
            {"backbone": "timm:resnet18", "dilation": True},
            "timm:resnet18 has no dilated variant",
        ),
        (
            "redetr_n",
            {"backbone": "timm:resnet7"},
            "timm:resnet7: timm cannot provide it .Unknown model",
        ),
        (
            "redetr_n",
            {"backbone": "timm:resnet18", "weights": "imagenet"},
            "timm cannot provide it .*--weights FILE",
        ),
        (
            "redetr_n",
            {"backbone": "timm:resnet18", "norm": "group"},
            "timm:resnet18 cannot have norm=group",
        ),
        (
            "redetr_n",
            {"backbone": "timm:vit_tiny_patch16_224"},
            "at strides 8, 16, but this one has 16",
        ),
        ("redetr_n", {"backbone": "timm:swin_tiny_patch4_window7_224"}, "takes images of any size"),
        ("redetr_mobile", {"weights": "coco"}, "unknown backbone weights 'coco'"),
        ("redetr_n", {"norm": "batch"}, "unknown norm 'batch' of a backbone"),
        (
            "redetr_n",
            {"nheads": 7},
            "with nheads=7: hidden_dim must be a multiple of 4 and of nheads",
        ),
        ("detr_r50", {"hidden_dim": 90, "nheads": 9}, "hidden_dim must be a multiple of 4"),
        ("redetr_n", {"dec_layers": 0}, "dec_layers must be at least 1"),
        ("redetr_n", {"hidden_dim": 12, "nheads": 3}, "hidden_dim must be a multiple of 8"),
        ("redetr_n", {"hidden_dim": "wide"}, "hidden_dim must be a number"),
        ("redetr_n", {"nheads": 0}, "nheads must be at least 1"),
        ("redetr_n", {"nheads": 8.0}, "nheads must be a whole number"),
        ("redetr_n", {"points": 0}, "points must be at least 1"),
        ("redetr_n", {"num_queries": 10**30}, "num_queries must be at most"),
        ("detr_r50", {"dropout": float("nan")}, "dropout must be at most 1"),
        ("detr_r50", {"pre_norm": "yes"}, "pre_norm must be true or false"),
        ("detr_r50", {"position": "none"}, "position must be sine or learned"),
        ("detr_r50", {"norm": {}}, "norm must be a name"),
        ("redetr_n", {"backbone": (8, 16)}, "backbone must be a name, or three widths"),
        ("redetr_n", {"backbone": (8, 16, 30)}, "multiples of 8"),
    ],
)
def test_unknown_names_and_options(name, options, message):
    with torch.device("meta"), pytest.raises(redetr.InputError, match=message):
        redetr.build(name, NUM_CLASSES, **options)


@pytest.mark.parametrize("bug", [TypeError, KeyError, RuntimeError, AttributeError, ValueError])
def test_an_error_of_our_code_is_not_taken_for_an_impossible_option(bug, monkeypatch):
    def broken(num_classes, **options):
        raise bug("a mistake in the model")

    monkeypatch.setitem(redetr.MODELS, "redetr_n", broken)
    with pytest.raises(bug, match="a mistake in the model"):
        redetr.build("redetr_n", NUM_CLASSES)


def test_a_model_without_classes_is_refused():
    with pytest.raises(redetr.InputError, match="num_classes is 0"):
        redetr.build("redetr_n", 0)


@pytest.mark.parametrize(
    ("name", "early", "count"),
    [
        # The stem; three blocks of three convolutions, and a shortcut.
        ("detr_r50", ("conv1.", "layer1."), 1 + 10),
        (
            "redetr_mobile",
            ("stem.", "blocks.0.", "blocks.1.", "blocks.2."),
            1 + 2 + 3 + 3,
        ),
    ],
)
def test_norms_and_what_comes_before_stride_8_are_frozen_in_a_pretrained_backbone(
    name, early, count
):
    with torch.device("meta"):
        model = redetr.build(name, NUM_CLASSES)
    frozen = set()
    expected = set()
    prefixes = tuple(f"backbone.0.body.{part}" for part in early)
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen.add(parameter_name)
        if parameter_name.startswith(prefixes):
            expected.add(parameter_name)
    assert frozen == expected
    assert len(frozen) == count
    # Statistics, scales and shifts of the norms are buffers.
    assert all(parameter.dim() > 1 for parameter in model.backbone.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large"])
def test_a_backbone_with_group_norm_is_trained_as_a_whole(name):
    assert all(p.requires_grad for p in Backbone(name, norm="group").parameters())


def randomize_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            randomize_norm(module)


@torch.no_grad()
def randomize_norm(norm: nn.Module) -> None:
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.uniform_(0.3, 0.7)
    norm.bias.normal_(0, 0.2)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}])
def test_folding_a_frozen_norm_changes_neither_value_nor_gradient(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, bias=False, **options).double()
    norm = FrozenBatchNorm2d(6).double()
    randomize_norms(norm)
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64, requires_grad=True)
    plain = norm(conv(x))
    folded = conv_norm(x, conv, norm)
    torch.testing.assert_close(folded, plain)
    weights = torch.randn_like(plain)
    expected = torch.autograd.grad((plain * weights).sum(), (x, conv.weight))
    gradients = torch.autograd.grad((folded * weights).sum(), (x, conv.weight))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize(
    ("name", "dilation"), [("resnet18", False), ("resnet50", False), ("resnet50", True)]
)
def test_features_are_those_of_torchvision(name, dilation):
    torch.manual_seed(0)
    ours = Backbone(name, dilation=dilation, strides=(8, 16, 32)).eval()
    randomize_norms(ours)
    theirs = torchvision.models.get_model(
        name, norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=[False, False, dilation]
    ).eval()
    theirs.load_state_dict(ours.body.state_dict(), strict=False)  # theirs has a classifier besides
    layers = {"layer2": "8", "layer3": "16", "layer4": "32"}
    getter = torchvision.models._utils.IntermediateLayerGetter(theirs, layers)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = ours(images), getter(images)
    actual_strides = (8, 16, 16) if dilation else (8, 16, 32)
    for i, feature_map in enumerate(features):
        of_torchvision = expected[str(ours.strides[i])]
        torch.testing.assert_close(feature_map, of_torchvision, rtol=1e-4, atol=1e-4)
        stride = actual_strides[i]
        assert feature_map.shape == (1, ours.num_channels[i], 64 // stride, 96 // stride)


@pytest.mark.parametrize("name", MOBILENETS)
def test_features_of_mobilenets_are_those_of_torchvision(name):
    """The last map of each stride; of the last, the whole feature extractor's."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomize_norm(module)
    images = torch.randn(1, 3, 64, 96)
    expected = {}
    ours = Backbone(name, strides=(8, 16, 32)).eval()
    missing, _ = ours.body.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    with torch.no_grad():
        x = images
        for layer in theirs.features:
            x = layer(x)
            expected[64 // x.shape[2]] = x
        features = ours(images)
    of_torchvision = [expected[stride] for stride in (8, 16, 32)]
    torch.testing.assert_close(features, of_torchvision, rtol=1e-4, atol=1e-4)
    assert [feature_map.shape[1] for feature_map in features] == ours.num_channels
    linear_layers = [module for module in theirs.classifier if isinstance(module, nn.Linear)]
    assert ours.num_channels[-1] == linear_layers[0].in_features


@pytest.mark.parametrize(
    "name", ["resnet50", "mobilenet_v2", "efficientnet_lite0", "timm:efficientnet_lite0"]
)
def test_a_backbone_ends_with_the_last_stride(name):
    """What came later would be computed for nothing, and get no gradient."""
    short = build_backbone(name, None, "frozen_batch", (8, 16))
    whole = build_backbone(name, None, "frozen_batch", (8, 16, 32))
    assert short.num_channels == whole.num_channels[:2]
    assert num_parameters(short) < num_parameters(whole)
    at8, at16 = short(torch.randn(1, 3, 64, 64))
    (at8.square().sum() + at16.square().sum()).backward()
    for parameter in short.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
def test_features_of_timm_for_images_normalised_as_imagenet(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ours = build_backbone(f"timm:{name}", None, "frozen_batch", (8, 32)).eval()
    theirs = timm.create_model(name).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomize_norm(module)
    missing, _ = ours.body.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    pixels = torch.rand(2, 3, 64, 96)
    as_imagenet = normalized(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    statistics = theirs.pretrained_cfg
    as_trained = normalized(pixels, statistics["mean"], statistics["std"])
    assert torch.equal(as_trained, as_imagenet) == (name == "convnext_atto")
    with torch.no_grad():
        features = ours.train()(as_imagenet)
        expected = theirs.forward_intermediates(as_trained, intermediates_only=True)
    torch.testing.assert_close(features, [expected[-3], expected[-1]], rtol=1e-3, atol=1e-3)
    assert [feature_map.shape[1] for feature_map in features] == ours.num_channels
    for module in ours.modules():  # none has statistics that would follow the batch
        assert not isinstance(module, _BatchNorm)


def normalized(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_small_backbone_does_not_see_the_batch():
    torch.manual_seed(0)
    backbone = SmallResNet((16, 24, 32))
    images = torch.randn(3, 3, 64, 96)
    together8, together16 = backbone(images)
    assert together8.shape == (3, 24, 8, 12)
    assert together16.shape == (3, 32, 4, 6)
    alone8, alone16 = backbone(images[:1])
    torch.testing.assert_close(together8[:1], alone8)
    torch.testing.assert_close(together16[:1], alone16)


def test_sine_positions_by_hand():
    """A map of 1 x 2 valid positions: the row is at 2 pi, the columns are at pi and 2 pi.

    y comes first.
    """
    (encoding,) = PositionEmbeddingSine(4)(torch.zeros(1, 1, 2, dtype=torch.bool))
    y = 2 * math.pi
    for column, x in enumerate((math.pi, 2 * math.pi)):
        expected = []
        for angle in (y, y / 100, x, x / 100):
            expected += [math.sin(angle), math.cos(angle)]
        assert encoding[0, column].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("embedding", [PositionEmbeddingSine, PositionEmbeddingLearned])
def test_positions_of_an_image_do_not_depend_on_the_canvas(embedding):
    embedding = embedding(8)
    mask = torch.ones(1, 6, 9, dtype=torch.bool)
    mask[:, :4, :5] = False
    alone = embedding(torch.zeros(1, 4, 5, dtype=torch.bool))
    torch.testing.assert_close(embedding(mask)[:, :4, :5], alone)
    assert len(torch.unique(alone.flatten(0, 2), dim=0)) == 20  # every position has its own


def test_learned_positions_have_an_end():
    with pytest.raises(redetr.InputError, match="50 x 50"):
        PositionEmbeddingLearned(4)(torch.zeros(1, 51, 3, dtype=torch.bool))


def test_mask_at_the_size_of_a_feature_map():
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[:, :4, :6] = False
    (padding,) = padding_at(torch.zeros(1, 1, 2, 2), mask)
    assert padding.tolist() == [[False, False], [True, True]]
    (padding,) = padding_at(torch.zeros(1, 1, 4, 4), mask)
    assert (~padding).sum() == 2 * 3


@pytest.mark.parametrize("name", SMALL)
def test_no_images_have_no_detections(name):
    model = small(name).eval()
    images = torch.zeros(1, 3, 64, 96)
    outputs = model(images)
    of_no_image = model(images[:0])
    for key in ("pred_logits", "pred_boxes"):
        assert of_no_image[key].shape == (0, *outputs[key].shape[1:])


@pytest.mark.parametrize("name", SMALL)
def test_no_mask_means_no_padding(name):
    model = small(name).double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        without = model(images)
        empty = model(images, torch.zeros(2, 64, 96, dtype=torch.bool))
    torch.testing.assert_close(without, empty, rtol=1e-12, atol=1e-12)


class Patches(nn.Module):
    """A backbone in which no position sees its neighbours.

    So a change can only come from the rest of the model.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 16, stride=16)
        self.num_channels = [24]

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.conv(images)]


@pytest.mark.parametrize("position", ["sine", "learned"])
def test_padding_does_not_change_the_faithful_variant(position):
    """Beyond the convolutions at the border: attention, positions and box coordinates."""
    torch.manual_seed(0)
    transformer = Transformer(32, 4, 2, 2, 64)
    model = DETR(NUM_CLASSES, Patches(), transformer, 7, 32, position, aux_loss=True)
    model = model.double().eval()
    image = torch.randn(3, 64, 96, dtype=torch.float64)
    padded = redetr.collate([image], canvas=(112, 128))
    garbage = torch.where(padded.mask[:, None], 1e3, padded.images)
    with torch.no_grad():
        alone = model(image[None])
        in_canvas = model(garbage, padded.mask)
        ignoring_the_mask = model(garbage)
    torch.testing.assert_close(in_canvas, alone)
    assert not torch.allclose(ignoring_the_mask["pred_boxes"], alone["pred_boxes"], atol=1e-3)


def test_the_fast_variant_works_on_a_padded_canvas():
    """Boxes are fractions of the image, and no proposal from the padding is chosen."""
    model = small("redetr_n", num_queries=40).eval()
    batch = redetr.collate([torch.randn(3, 64, 96), torch.randn(3, 40, 50)], canvas=(64, 128))
    with torch.no_grad():
        outputs = model(batch.images, batch.mask)
    proposals = outputs["enc_outputs"]
    centers = proposals["pred_boxes"][..., :2]  # the proposals start at their anchors
    scores = proposals["pred_logits"].sigmoid().amax(-1)
    # 64 x 128 px: 8 x 16 + 4 x 8 + 2 x 4 positions; 96 and 50 px are 12, 6, 3 and 6.25, 3.1, 1.6
    # columns
    assert scores.shape == (2, 168)
    assert (scores[0] > 0).sum() == 8 * 12 + 4 * 6 + 2 * 3
    assert (scores[1] > 0).sum() == 5 * 6 + 2 * 3 + 1 * 2
    assert (centers[scores > 0] < 1).all()
    for layer in [*outputs["aux_outputs"], outputs]:
        assert layer["pred_logits"].isfinite().all()
        assert ((layer["pred_boxes"] > 0) & (layer["pred_boxes"] < 1)).all()
    losses = redetr.SetCriterion.for_model(model)(model(batch.images, batch.mask), targets(3, 2))
    assert torch.stack(list(losses.values())).isfinite().all()


@pytest.mark.parametrize("name", [*SMALL, "detr_r50_panoptic"])
def test_a_mask_that_is_not_of_the_images_is_an_error(name):
    with torch.device("meta"):
        model = redetr.build(name, NUM_CLASSES)
        images = torch.zeros(2, 3, 64, 96)
        swapped = torch.zeros(2, 96, 64, dtype=torch.bool)
        pixel_mask = torch.ones(2, 64, 96, dtype=torch.int64)
        of_one_image = torch.zeros(1, 64, 96, dtype=torch.bool)
    for mask, message in (
        (swapped, r"mask is \[2, 96, 64\], expected \[2, 64, 96\] for images \[2, 3, 64, 96\]"),
        (of_one_image, r"mask is \[1, 64, 96\], expected"),
        (pixel_mask, "mask is torch.int64, expected bool with True for padding: for a pixel_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            model(images, mask)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "counts", [(3, 1), (0, 0), (20, 0)], ids=["usual", "no objects", "too many objects"]
)
def test_every_parameter_gets_a_gradient(name, counts):
    """A parameter without one would stop distributed training, and differ between ranks."""
    model = small(name)
    outputs = model(torch.randn(2, 3, 64, 96))
    redetr.SetCriterion.for_model(model)(outputs, targets(*counts))["loss"].backward()
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_without_aux_loss_only_the_last_layer_is_returned():
    model = small("detr_r50").eval()
    bare = small("detr_r50", aux_loss=False).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        full, last = model(images), bare(images)
    assert last["aux_outputs"] == []
    torch.testing.assert_close(last["pred_boxes"], full["pred_boxes"])


@pytest.mark.parametrize("name", SMALL)
def test_an_image_gets_the_same_answer_in_any_batch(name):
    model = small(name).double().eval()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        together = model(images)
        alone = [model(image[None]) for image in images]
    for key in ("pred_logits", "pred_boxes"):
        one_by_one = torch.cat([outputs[key] for outputs in alone])
        torch.testing.assert_close(together[key], one_by_one)


@pytest.mark.parametrize("size", [(64, 160), (33, 47), (32, 32)])
def test_the_fast_variant_takes_any_size(size):
    outputs = small("redetr_n").eval()(torch.randn(1, 3, *size))
    assert outputs["pred_boxes"].shape == (1, 7, 4)
    assert outputs["pred_logits"].isfinite().all()


def test_fewer_positions_than_queries():
    """32 x 32 px have 16 + 4 + 1 positions."""
    model = small("redetr_n", num_queries=50)
    outputs = model(torch.randn(1, 3, 32, 32))
    assert outputs["pred_logits"].shape[1] == 21
    losses = redetr.SetCriterion.for_model(model)(outputs, targets(2))
    assert losses["loss"].isfinite()


def test_boxes_are_refined_from_layer_to_layer():
    """The heads start at zero: every layer repeats the proposal until it has learned a correction,
    which adds up."""
    model, images = small("redetr_n").eval(), torch.randn(1, 3, 64, 64)
    proposals = model(images)["pred_boxes"].detach()
    for head, step in zip(model.bbox_embed, (0.3, 0.5), strict=True):
        nn.init.constant_(head.layers[-1].bias, step)
    outputs = model(images)
    first, last = outputs["aux_outputs"][0]["pred_boxes"], outputs["pred_boxes"]
    first_step = first.logit() - proposals.logit()
    second_step = last.logit() - first.logit()
    torch.testing.assert_close(first_step, torch.full_like(first, 0.3), rtol=0, atol=1e-3)
    torch.testing.assert_close(second_step, torch.full_like(first, 0.5), rtol=0, atol=1e-3)
    # Each layer learns its own correction: the second one's boxes do not teach the first one's
    # head.
    last.sum().backward()
    assert model.bbox_embed[1].layers[-1].bias.grad.any()
    assert not any(p.grad is not None and p.grad.any() for p in model.bbox_embed[0].parameters())


def test_deformable_attention_looks_at_the_image_wherever_the_canvas_ends():
    """Boxes are fractions of the image; the same features in a canvas of twice the width give the
    same answer."""
    torch.manual_seed(0)
    attention = DeformableAttention(16, nheads=2, points=[3, 3, 3], sampling="bilinear").double()
    nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    nn.init.normal_(attention.attention_weights.weight)
    query = torch.randn(1, 5, 16).double()
    boxes = 0.2 + 0.6 * torch.rand(1, 5, 4).double()
    levels = [torch.randn(1, 16, side, side).double() for side in (8, 4, 2)]
    padded = [nn.functional.pad(level, (0, level.shape[-1])) for level in levels]

    def answer(boxes: Tensor, levels: list[Tensor], valid_ratio: list[float]) -> Tensor:
        memory = torch.cat([level.flatten(2).mT for level in levels], 1)
        shapes = [tuple(level.shape[-2:]) for level in levels]
        return attention(query, boxes, memory, shapes, torch.tensor([valid_ratio]).double())

    alone = answer(boxes, levels, [1.0, 1.0])
    torch.testing.assert_close(answer(boxes, padded, [0.5, 1.0]), alone)
    moved = answer(boxes + 0.1, levels, [1.0, 1.0])
    assert not torch.allclose(moved, alone, atol=1e-3)


def start_queries_at_first_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at the best ones: rounded scores would choose others."""

    def first_positions(logits: Tensor, count: int) -> Tensor:
        return torch.arange(count).expand(len(logits), -1)

    for module in ("fast", "two_stage"):
        monkeypatch.setattr(f"redetr.models.{module}.best_positions", first_positions)


def make_boxes_move(model: nn.Module) -> None:
    """From where queries start: the last layers, which do that, are 0 before training."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("name", SMALL)
def test_bf16_autocast_is_close_to_fp32(name, monkeypatch):
    start_queries_at_first_positions(monkeypatch)
    model = small(name).eval()
    make_boxes_move(model)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        full = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(images)
    assert half["pred_logits"].dtype == half["pred_boxes"].dtype == torch.float32
    for output in ("pred_logits", "pred_boxes"):
        error = half[output] - full[output]
        assert error.norm() < 0.05 * full[output].norm(), output


HALF_MODELS = [(name, {}) for name in SMALL]
HALF_MODELS += [(name, {"masks": True}) for name in ("redetr_n", "rtdetr_r18", "dfine_n")]
HALF_MODELS += [("detr_r50_panoptic", SMALL_DETR | {"hidden_dim": 64, "nheads": 8})]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "options"), HALF_MODELS)
@torch.no_grad()
def test_weights_of_a_half_type_give_about_the_same(name, options, dtype, monkeypatch):
    start_queries_at_first_positions(monkeypatch)
    torch.manual_seed(0)
    model = redetr.build(name, NUM_CLASSES, **SMALL.get(name, {}), **options).eval()
    make_boxes_move(model)
    images = torch.randn(2, 3, 64, 96)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    exact = model(images, mask)
    half = model.to(dtype)(images.to(dtype), mask)
    names = ["pred_logits", "pred_boxes"]
    if model.has_masks:
        names.append("pred_masks")
    for output in names:
        assert half[output].dtype == torch.float32, output
        error = half[output] - exact[output]
        assert error.norm() < 0.05 * exact[output].norm(), output  # up to 2% were seen
    assert half["pred_boxes"].std() > 0.005


def test_weights_are_a_function_of_the_seed():
    first, second = small("redetr_n").state_dict(), small("redetr_n").state_dict()
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(7, 11), (2, 8, 60, 61), ()])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_is_that_of_pytorch(shape, p):
    """The same share of entries, the same factor for the others, a gradient through these alone;
    each seed its own."""
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    out = dropout(x, p)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient, out.detach())
    assert set(out.flatten().tolist()) <= {0.0, 1 / (1 - p)}
    deviation = (p * (1 - p) / max(1, x.numel())) ** 0.5
    assert abs((out == 0).double().mean() - p) <= 4 * deviation
    # Entries that share a draw are independent: of neighbours, both are dropped with p * p.
    both = (out.flatten()[1:] == 0) & (out.flatten()[:-1] == 0)
    assert x.numel() < 1000 or abs(both.double().mean() - p * p) <= 8 * deviation
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), out)
    assert x.numel() < 50 or not torch.equal(dropout(x, p), out)
    assert torch.equal(dropout(x, 0.0), x)
    assert not dropout(x, 1.0).any()


def test_attention_with_dropout_is_in_the_mean_that_without():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 20, 8)
    ignored = torch.rand(1, 1, 1, 20) <= 0.3
    many = [part.expand(3000, -1, -1, -1) for part in (q, k, v)]
    mean = attention(*many, ignored, p=0.2).mean(0)
    without_dropout = attention(q, k, v, ignored)
    torch.testing.assert_close(mean, without_dropout[0], rtol=0, atol=0.05)
    with_dropout = attention(q, k, v, ignored, p=0.2)
    assert (with_dropout - without_dropout).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the fused and the other kernel
def test_attention_ignores_the_keys_whose_mask_is_true(dtype):
    torch.manual_seed(0)
    q = torch.randn(1, 2, 4, 8).to(dtype)
    k, v = torch.randn(2, 1, 2, 5, 8).to(dtype)
    ignored = torch.tensor([False, False, False, True, True])
    attended = attention(q, k, v, ignored[None, None, None])
    alone = attention(q, k[:, :, :3], v[:, :, :3])
    torch.testing.assert_close(attended, alone)


def kept_bytes(model: nn.Module, images: Tensor) -> tuple[int, list[Tensor]]:
    """How much is kept for the gradients of a step, weights included, and these gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(images)
        loss = outputs["pred_boxes"].square().sum() + outputs["pred_logits"].square().sum()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return sum(kept.values()), list(gradients)


@pytest.mark.parametrize(
    ("name", "options", "share"),
    [
        ("detr_r50", {"backbone": "resnet18", "enc_layers": 3, "dropout": 0.1}, 0.6),
        ("detr_r50", {"dropout": 0.1}, 0.7),
        ("redetr_n", {}, 0.8),
        ("redetr_mobile", {"backbone": "mobilenet_v2"}, 0.6),
        ("redetr_mobile", {"backbone": "efficientnet_lite0"}, 0.6),
        ("redetr_n", {"backbone": "timm:resnet10t", "norm": "frozen_batch"}, 0.8),
    ],
)
def test_blocks_computed_twice_give_the_same_gradient_from_less_memory(name, options, share):
    model, images = small(name, **options).train(), torch.randn(2, 3, 160, 160)
    kept, expected = kept_bytes(model, images)
    recompute_blocks(model)
    less, gradients = kept_bytes(model, images)
    assert less < share * kept
    assert all(map(torch.equal, gradients, expected))


def test_what_cannot_be_computed_twice_is_refused():
    with pytest.raises(
        redetr.InputError,
        match="statistics of a trained BatchNorm twice: use norm=group or norm=frozen_batch",
    ):
        recompute_blocks(small("redetr_n", backbone="resnet18", norm="sync_batch"))
    with torch.device("meta"):  # it has wide layers
        model = small("redetr_n", backbone="timm:vgg11_bn")
    with pytest.raises(redetr.InputError, match="this timm backbone does not support it"):
        recompute_blocks(model)


def test_timm_fails_without_a_reason():
    def create_model(*_, **__):
        raise AssertionError

    with pytest.raises(
        redetr.InputError, match=r"timm:any: timm cannot provide it \(AssertionError\)"
    ):
        _timm_features(create_model, "any", False, (8, 16))
