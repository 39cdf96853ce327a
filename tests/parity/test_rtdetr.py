"""RT-DETR and RT-DETRv2 against Hugging Face Transformers, with random weights in both.

Whatever Transformers leaves at a neutral start is random here: norms, their statistics, biases,
offsets of the sampled points. Positions of equal rank are told apart by rounding only, so that in
fp32 two queries may change places: the comparison in fp32 matches each query with its nearest.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import redetr
from redetr.detector.inference import for_inference
from redetr.weights.official import coco_class_names
from tests.tiers import cases
from tests.transformers_peer import no_init_weights

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NUM_CLASSES = 5
# Settings of Transformers' configurations, as the published folders have them.
SIZES: dict[str, dict[str, Any]] = {
    "r18": {"depths": [2, 2, 2, 2], "hidden_expansion": 0.5, "decoder_layers": 3},
    "r34": {"depths": [3, 4, 6, 3], "hidden_expansion": 0.5, "decoder_layers": 4},
    "r50m": {"depths": [3, 4, 6, 3], "hidden_expansion": 0.5, "layer_type": "bottleneck"},
    "r50": {"depths": [3, 4, 6, 3], "layer_type": "bottleneck"},
    "r101": {
        "depths": [3, 4, 23, 3],
        "layer_type": "bottleneck",
        "encoder_hidden_dim": 384,
        "encoder_ffn_dim": 2048,
        "decoder_in_channels": [384, 384, 384],
    },
}
# The same with a 16th of the channels, and heads of 8.
TINY: dict[str, Any] = {
    "width": 16,
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 48,
    "d_model": 64,
    "decoder_ffn_dim": 80,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
    "num_queries": 30,
}


# With 0, all boxes of these are the whole image.
_SEEDS = {"r50m": 1, "r101": 3}


def random_peer(version: str, size: str, width: int = 64, **options: Any) -> Any:
    """A Transformers model of a published size in which nothing is neutral.

    Matrices are as large as in a trained model, so that attention is peaked and positions matter.
    """
    settings = {"num_labels": NUM_CLASSES} | SIZES[size] | options
    depths = settings.pop("depths")
    layer_type = settings.pop("layer_type", "basic")
    factor = 4 if layer_type == "bottleneck" else 1
    widths = [factor * width * 2**stage for stage in range(4)]
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=width,
        layer_type=layer_type,
        depths=depths,
        hidden_sizes=widths,
        out_indices=[2, 3, 4],
    )
    settings |= {"backbone_config": backbone, "encoder_in_channels": widths[1:]}
    with no_init_weights():  # all are drawn below
        if version == "rtdetr":
            peer = transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(**settings))
        else:
            peer = transformers.RTDetrV2ForObjectDetection(transformers.RTDetrV2Config(**settings))
    torch.manual_seed(_SEEDS.get(size, 0))
    for name, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
        fill(name, tensor.data)
    return peer.eval()


def fill(name: str, tensor: Tensor) -> None:
    """Random values that suit a tensor of that name."""
    if "n_points_scale" in name or not tensor.is_floating_point():
        return
    if name.endswith("running_var"):
        tensor.uniform_(0.5, 1.5)
    elif name.endswith("sampling_offsets.bias"):
        tensor.normal_(0, 2)
    elif name.endswith(("running_mean", "bias")):
        tensor.normal_(0, 0.1)
    elif tensor.dim() == 1:
        # Scales of norms; 0.4 keeps the residual sums of many blocks in bounds.
        low, high = (0.2, 0.6) if ".backbone." in name else (0.5, 1.5)
        tensor.uniform_(low, high)
    elif tensor.dim() == 2:
        tensor.normal_(0, tensor.shape[1] ** -0.5)
    else:
        tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)


def load(peer: Any, **changes: Any) -> redetr.Detector:
    """Our detector from the folder that the peer writes, with `changes` in its config.json."""
    with TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        path = Path(folder, "config.json")
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | changes))
        return redetr.load(folder, device="cpu")


def outputs_of(
    peer: Any,
    ours: Any,
    height: int,
    width: int,
    dtype: torch.dtype,
    batch: int = 2,
    seed: int = 1,
) -> tuple[Any, Any]:
    """What both answer to the same pixels in [0, 1], which ours takes normalised."""
    torch.manual_seed(seed)
    pixels = torch.rand(batch, 3, height, width).to(dtype)  # the same in every precision
    peer.to(dtype)
    ours.to(dtype).eval()
    with torch.no_grad():
        return peer(pixel_values=pixels), ours((pixels - ours.mean) / ours.std)


def assert_same_in_fp64(logits: Tensor, boxes: Tensor, outputs: Any) -> None:
    assert logits.std() > 0.1 and boxes.std() > 0.1  # the comparison is not one of zeros
    torch.testing.assert_close(outputs["pred_logits"], logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(outputs["pred_boxes"], boxes, rtol=0, atol=1e-10)


def assert_same_in_fp32(logits: Tensor, boxes: Tensor, outputs: Any) -> None:
    """Boxes within 1e-5, logits within 1e-5 of the largest."""
    ours = outputs["pred_logits"], outputs["pred_boxes"]
    assert distances((logits, boxes), ours).max() <= 1e-5


def distances(expected: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor]) -> Tensor:
    """How far the answers `given` are from those expected, and these from those: the distance of
    logits, as a share of the largest, or of boxes to those of the nearest query, `[2, B, Q]`.
    """
    scale = expected[0].abs().max()
    queries = [
        torch.cat([logits / scale, boxes], -1).double() for logits, boxes in (expected, given)
    ]
    pairs = torch.cdist(*queries, p=torch.inf)  # [B, Q, Q]
    return torch.stack([pairs.min(1).values, pairs.min(2).values])


def assert_same_in_both(
    peer: Any, ours: Any, height: int, width: int, layer: int = -1, convert: Any = nn.Module.to
) -> None:
    """In fp64 the numbers are the same; in fp32 they are within 1e-5 or as near to those of fp64 as
    Transformers' are, up to a factor of 2, for one image of three.

    Models of full size with random weights enlarge rounding errors, on some processors more than on
    others: a query in a hundred may start from another position that scores nearly the same. If
    more do, the image says nothing about rounding.
    """
    for seed in (1, 2, 3):
        our_error, their_error = errors_in_fp32(peer, ours, height, width, layer, convert, seed)
        if our_error <= max(1e-5, 2 * their_error):
            return
    pytest.fail(f"off by {our_error:.1e}, where Transformers is off by {their_error:.1e}")


def errors_in_fp32(
    peer: Any, ours: Any, height: int, width: int, layer: int, convert: Any, seed: int
) -> tuple[float, float]:
    """How far our answers and Transformers' in fp32 are from those in fp64, which are the same."""
    answers = []
    for dtype in (torch.float64, torch.float32):
        convert(peer, dtype)
        theirs, outputs = outputs_of(peer, ours, height, width, dtype, batch=1, seed=seed)
        logits = theirs.intermediate_logits[:, layer]
        boxes = theirs.intermediate_reference_points[:, layer]
        answers.append((logits, boxes))
        if dtype == torch.float64:
            assert_same_in_fp64(logits, boxes, outputs)
    exact, rounded = answers
    their_error = distances(exact, rounded).quantile(0.99)
    given = outputs["pred_logits"], outputs["pred_boxes"]
    our_error = distances(exact, given).quantile(0.99)
    return float(our_error), float(their_error)


VERSIONS = ("rtdetr", "rtdetrv2")
# The third has positions at the border whose anchors are not used.
SMALL_IMAGES = ((128, 128), (128, 192), (64, 416))
LARGE_IMAGES = ((640, 640), (512, 512), (512, 768))


@pytest.mark.long
@pytest.mark.parametrize("version", VERSIONS)
def test_same_outputs_of_r18(version):
    peer = random_peer(version, "r18")
    ours = load(peer).model
    assert sum(p.numel() for p in ours.parameters()) == pytest.approx(20e6, rel=0.02)  # published
    for batch, (height, width) in zip((2, 1, 1), SMALL_IMAGES, strict=True):
        theirs, outputs = outputs_of(peer, ours, height, width, torch.float64, batch)
        assert_same_in_fp64(theirs.logits, theirs.pred_boxes, outputs)
    theirs, outputs = outputs_of(peer, ours, 128, 192, torch.float32)
    assert_same_in_fp32(theirs.logits, theirs.pred_boxes, outputs)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", cases(SIZES, ["r18", "r50m"]))
def test_same_outputs_of_all_sizes_scaled_down(version, size):
    tiny = dict(TINY)
    if size == "r101":
        tiny |= {"encoder_hidden_dim": 48, "decoder_in_channels": [48, 48, 48]}
    peer = random_peer(version, size, **tiny)
    ours = load(peer)
    theirs, outputs = outputs_of(peer, ours.model, 96, 160, torch.float64)
    logits, boxes = theirs.logits, theirs.pred_boxes
    if size == "r50m":  # Transformers runs all six layers, the authors three
        logits, boxes = theirs.intermediate_logits[:, 2], theirs.intermediate_reference_points[:, 2]
    assert_same_in_fp64(logits, boxes, outputs)


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", SIZES)
def test_same_outputs_of_all_sizes(version, size):
    peer = random_peer(version, size)
    ours = load(peer).model
    layer = 2 if size == "r50m" else -1  # Transformers runs all six, the authors three
    for height, width in LARGE_IMAGES if size == "r18" else LARGE_IMAGES[2:]:
        assert_same_in_both(peer, ours, height, width, layer)


def test_discrete_sampling():
    peer = random_peer("rtdetrv2", "r18", **TINY, decoder_method="discrete")
    ours = load(peer).model
    assert {layer.cross_attn.sampling for layer in ours.decoder.decoder["layers"]} == {"discrete"}
    theirs, outputs = outputs_of(peer, ours, 96, 160, torch.float64)
    assert_same_in_fp64(theirs.logits, theirs.pred_boxes, outputs)


def test_the_first_version_has_no_discrete_sampling():
    peer = random_peer("rtdetr", "r18", **TINY)
    for layer in load(peer, decoder_method="discrete").model.decoder.decoder["layers"]:
        assert layer.cross_attn.sampling == "bilinear"


def test_all_layers_and_the_proposals_are_the_same():
    peer = random_peer("rtdetr", "r18", **TINY)
    ours = load(peer).model
    theirs, outputs = outputs_of(peer, ours, 96, 160, torch.float64)
    layers = [*outputs["aux_outputs"], outputs]
    assert len(layers) == 3
    for i, layer in enumerate(layers):
        logits = theirs.intermediate_logits[:, i]
        assert_same_in_fp64(logits, theirs.intermediate_reference_points[:, i], layer)
    assert_same_in_fp64(theirs.enc_topk_logits, theirs.enc_topk_bboxes, outputs["enc_outputs"])


@pytest.mark.parametrize("size", ["r18", "r50"])
def test_ready_for_inference_the_numbers_are_the_same(size):
    peer = random_peer("rtdetr", size, **TINY)
    ready = for_inference(load(peer).model.double())
    names = [name for name, _ in ready.named_modules()]
    assert not any("bottlenecks.0.conv2" in name for name in names)
    theirs, outputs = outputs_of(peer, ready, 96, 160, torch.float64)
    assert_same_in_fp64(theirs.logits, theirs.pred_boxes, outputs)


def coco_names() -> list[str]:
    return [name for name in coco_class_names() if name != "unused"]


@pytest.mark.parametrize("other_names", [{}, {"couch": "sofa", "airplane": "aeroplane"}])
def test_names_of_coco_have_ids_of_coco(other_names):
    peer = random_peer("rtdetr", "r18", **TINY, num_labels=80)
    names = [other_names.get(name, name) for name in coco_names()]
    labels = {str(i): name for i, name in enumerate(names)}
    detector = load(peer, id2label=labels)
    assert list(detector.class_names) == coco_names()
    assert detector.classes[:2] == [(1, "person"), (2, "bicycle")]
    assert detector.classes[-1] == (90, "toothbrush")


def test_other_names_are_numbered():
    peer = random_peer("rtdetrv2", "r18", **TINY)
    labels = dict(zip("01234", ["a", "b", "c", "d", "person"], strict=True))
    detector = load(peer, id2label=labels)
    assert detector.classes == [(0, "a"), (1, "b"), (2, "c"), (3, "d"), (4, "person")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "yolos"},
            "model_type is 'yolos': only detr, table-transformer, rt_detr, rt_detr_v2",
        ),
        ({"eval_size": [640, 640]}, "config.json: eval_size is .640, 640.: only None"),
        ({"activation_function": "relu"}, "activation_function is 'relu': only 'silu'"),
        ({"backbone_config": {"model_type": "resnet"}}, "model_type is 'resnet': only 'rt_detr_"),
    ],
)
def test_what_is_another_function_is_refused(changes, message):
    peer = random_peer("rtdetr", "r18", **TINY)
    with pytest.raises(redetr.InputError, match=message):
        load(peer, **changes)
