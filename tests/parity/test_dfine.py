"""D-FINE against Hugging Face Transformers, with random weights in both.

As in test_rtdetr.py, from which the comparisons are.
"""

from typing import Any

import pytest
import torch
from test_rtdetr import (
    LARGE_IMAGES,
    NUM_CLASSES,
    SMALL_IMAGES,
    assert_same_in_both,
    assert_same_in_fp32,
    assert_same_in_fp64,
    fill,
    load,
    outputs_of,
)

import redetr
from redetr.detector.inference import for_inference
from redetr.losses import decoder_predictions
from redetr.matcher import cost_matrix, match
from redetr.weights.official import coco_class_names
from tests.tiers import cases
from tests.transformers_peer import no_init_weights

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

B0 = {"stem": (16, 16), "mid": (16, 32, 64, 128), "out": (64, 256, 512, 1024)}
B2 = {"stem": (24, 32), "mid": (32, 64, 128, 256), "out": (96, 384, 768, 1536)}
B4 = {"stem": (32, 48), "mid": (48, 96, 192, 384), "out": (128, 512, 1024, 2048)}
B5 = {"stem": (32, 64), "mid": (64, 128, 256, 512), "out": (128, 512, 1024, 2048)}
# Widths, blocks of the stages, layers of a block, whether activations are scaled.
BACKBONES: dict[str, tuple[dict[str, Any], tuple[int, ...], int, bool]] = {
    "n": (B0, (1, 1, 2, 1), 3, True),
    "s": (B0, (1, 1, 2, 1), 3, True),
    "m": (B2, (1, 1, 3, 1), 4, True),
    "l": (B4, (1, 1, 3, 1), 6, False),
    "x": (B5, (1, 2, 5, 2), 6, False),
}
# Settings of Transformers' configurations, as the published folders have them.
SIZES: dict[str, dict[str, Any]] = {
    "n": {
        "num_feature_levels": 2,
        "encode_proj_layers": [1],
        "feat_strides": [16, 32],
        "d_model": 128,
        "decoder_ffn_dim": 512,
        "encoder_hidden_dim": 128,
        "encoder_ffn_dim": 512,
        "decoder_in_channels": [128, 128],
        "decoder_n_points": [6, 6],
        "decoder_layers": 3,
        "depth_mult": 0.5,
        "hidden_expansion": 0.34,
    },
    "s": {"decoder_layers": 3, "depth_mult": 0.34, "hidden_expansion": 0.5},
    "m": {"decoder_layers": 4, "depth_mult": 0.67},
    "l": {},
    "x": {
        "encoder_hidden_dim": 384,
        "encoder_ffn_dim": 2048,
        "decoder_in_channels": [384, 384, 384],
        "reg_scale": 8.0,
    },
}
# The same with a small part of the channels, and heads of 8.
TINY: dict[str, Any] = {
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 48,
    "d_model": 64,
    "decoder_ffn_dim": 80,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 30,
}


def backbone_of(size: str, width: int | None) -> Any:
    widths, blocks, layers, affine = BACKBONES[size]
    stem = widths["stem"]
    width = width or stem[1]

    def scaled(channels: tuple[int, ...]) -> list[int]:
        return [channel * width // stem[1] for channel in channels]

    outputs = scaled(widths["out"])
    return transformers.HGNetV2Config(
        stem_channels=[3, *scaled(stem)],
        stage_in_channels=[width, *outputs[:-1]],
        stage_mid_channels=scaled(widths["mid"]),
        stage_out_channels=outputs,
        stage_num_blocks=blocks,
        stage_numb_of_layers=[layers] * 4,
        hidden_sizes=outputs,
        out_indices=[3, 4] if size == "n" else [2, 3, 4],
        use_learnable_affine_block=affine,
    )


def random_peer(size: str, width: int | None = None, **options: Any) -> Any:
    """A Transformers model of a published size in which nothing is neutral."""
    backbone = backbone_of(size, width)
    settings = {"num_labels": NUM_CLASSES, "decoder_n_points": [3, 6, 3]} | SIZES[size] | options
    levels = len(backbone.out_indices)
    if "encoder_hidden_dim" in options:
        settings["decoder_in_channels"] = [options["encoder_hidden_dim"]] * levels
    settings["encoder_in_channels"] = backbone.hidden_sizes[-levels:]
    config = transformers.DFineConfig(backbone_config=backbone, **settings)
    with no_init_weights():  # all are drawn below
        peer = transformers.DFineForObjectDetection(config)
    torch.manual_seed(0)
    for name, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
        if name.endswith((".up", ".reg_scale")):
            continue
        if name.endswith("lab.scale"):
            tensor.data.uniform_(0.5, 1.5)
        elif name.endswith(".norm.weight") and "_blocks." in name:
            tensor.data.uniform_(0.2, 0.6)  # keeps what many convolutions in a row give in bounds
        elif "num_points_scale" not in name:
            fill(name, tensor.data)
    return peer.eval()


def convert(peer: Any, dtype: torch.dtype) -> None:
    """Transformers holds 1 / 3 in fp32, whatever the model computes in: here it is rounded anew."""
    peer.to(dtype)
    exact = [1 / count for count in peer.config.decoder_n_points for _ in range(count)]
    for layer in peer.model.decoder.layers:
        layer.encoder_attn.num_points_scale = torch.tensor(exact, dtype=dtype)


def compare(
    peer: Any, ours: Any, height: int, width: int, dtype: torch.dtype, batch: int = 2
) -> None:
    convert(peer, dtype)
    theirs, outputs = outputs_of(peer, ours, height, width, dtype, batch)
    check = assert_same_in_fp64 if dtype == torch.float64 else assert_same_in_fp32
    check(theirs.logits, theirs.pred_boxes, outputs)


@pytest.fixture(scope="module")
def tiny_peer():
    return random_peer("n", width=16, **TINY)


def test_same_outputs_of_n():
    peer = random_peer("n", num_queries=60)  # small images have 80 positions
    detector = load(peer)
    assert detector.model.decoder.bins == 32
    for height, width in SMALL_IMAGES:
        compare(peer, detector.model, height, width, torch.float64)
    compare(peer, detector.model, 128, 192, torch.float32)


@pytest.mark.parametrize("size", cases(SIZES, ["n", "s"]))
def test_same_outputs_of_all_sizes_scaled_down(size):
    peer = random_peer(size, width=16, **TINY)
    ours = load(peer).model
    compare(peer, ours, 96, 160, torch.float64)
    assert ours.decoder.reg_scale.item() == (8 if size == "x" else 4)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_same_outputs_of_all_sizes(size):
    peer = random_peer(size)
    ours = load(peer).model
    for height, width in LARGE_IMAGES if size == "n" else LARGE_IMAGES[2:]:
        assert_same_in_both(peer, ours, height, width, convert=convert)


def test_all_layers_and_the_proposals_are_the_same():
    """Transformers' decoder in training mode gives all of them; its norms are frozen."""
    peer = random_peer("n", width=16, **TINY)
    ours = load(peer).model.double()
    convert(peer, torch.float64)
    peer.model.decoder.train()
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, 96, 160, dtype=torch.float64)
    with torch.no_grad():
        theirs = peer(pixel_values=pixels)
        outputs = ours((pixels - ours.mean) / ours.std)
    assert len(outputs["aux_outputs"]) == 2
    layers = [outputs["pre_outputs"], *outputs["aux_outputs"], outputs]
    for i, layer in enumerate(layers):
        logits = theirs.intermediate_logits[:, i]
        assert_same_in_fp64(logits, theirs.intermediate_reference_points[:, i], layer)
    proposals = outputs["enc_outputs"]
    assert_same_in_fp64(theirs.enc_topk_logits, theirs.enc_topk_bboxes, proposals)


def test_ready_for_inference_the_numbers_are_the_same():
    peer = random_peer("s", width=16, **TINY)
    ready = for_inference(load(peer).model.double())
    names = [name for name, _ in ready.named_modules()]
    assert not any("bottlenecks.0.conv2" in name for name in names)
    assert not any(type(module).__name__ == "FrozenBatchNorm2d" for module in ready.modules())
    compare(peer, ready, 96, 160, torch.float64)


def test_names_of_coco_have_ids_of_coco():
    names = [name for name in coco_class_names() if name != "unused"]
    peer = random_peer("n", width=16, **TINY, num_labels=80)
    detector = load(peer, id2label={str(i): name for i, name in enumerate(names)})
    assert (detector.classes[0], detector.classes[-1]) == ((1, "person"), (90, "toothbrush"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_scale": 2}, "config.json: layer_scale is 2: only 1 can be loaded"),
        ({"eval_idx": 1}, "eval_idx is 1: only -1"),
        ({"num_feature_levels": 4}, "num_feature_levels is 4: only 2 and 3"),
        ({"num_feature_levels": 3.0}, "num_feature_levels is 3.0: only 2 and 3"),
        ({"feat_strides": [8, 16]}, r"feat_strides is \[8, 16\]: only \[16, 32\]"),
        ({"decoder_activation_function": "silu"}, "decoder_activation_function is 'silu'"),
        ({"backbone_config": {"model_type": "resnet"}}, "model_type is 'resnet': only 'hgnet_v2'"),
        ({"backbone_config": "hgnet_v2"}, "backbone_config has to be a table of settings"),
        ({"decoder_n_points": [6, 3]}, "the weights do not fit the model"),
        ({"decoder_n_points": {"6": 6}}, "points must be a number, or 3 of them"),
        ({"decoder_n_points": ["6", "6"]}, "points must be 1 to 1000 on each of 2 levels"),
        ({"decoder_layers": "3", "eval_idx": 2}, "eval_idx is 2: only -1"),
        ({"model_type": "d_fine_v2"}, "only detr, table-transformer, .*rt_detr_v2, d_fine"),
    ],
)
def test_what_is_another_function_is_refused(tiny_peer, changes, message):
    with pytest.raises(redetr.InputError, match=message):
        load(tiny_peer, **changes)


def test_losses_of_edges_and_their_gradients(tiny_peer):
    """On one matching, each layer against Transformers' function for a layer.

    Its whole loss is another function: it pairs the edges of a layer with the boxes of the layer
    before, and the last layer has no localisation loss. Its casts allow fp32 only.
    """
    from transformers.loss.loss_d_fine import DFineLoss

    config = tiny_peer.config
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Any:
        return torch.rand(*shape, generator=generator, dtype=torch.float32)

    layers, batch, num_queries, counts = 3, 2, 6, (3, 0)
    edge_logits = (4 * random(layers, batch, num_queries, 4 * 33)).requires_grad_()
    first_boxes = 0.3 + 0.3 * random(batch, num_queries, 4)
    boxes = 0.3 + 0.3 * random(layers, batch, num_queries, 4)
    logits = random(layers, batch, num_queries, NUM_CLASSES)
    targets = []
    for count in counts:
        labels = torch.zeros(count, dtype=torch.int64)
        targets.append({"labels": labels, "boxes": 0.3 + 0.3 * random(count, 4)})

    outputs: list[Any] = []
    for i in range(layers):
        layer = {"pred_logits": logits[i], "pred_boxes": boxes[i], "edge_logits": edge_logits[i]}
        outputs.append({**layer, "first_boxes": first_boxes})
    weights = {"loss_fgl": config.weight_loss_fgl, "loss_ddf": config.weight_loss_ddf}
    loss_config = redetr.LossConfig(scores="sigmoid", **weights, loss_ddn=config.weight_loss_ddf)
    criterion = redetr.SetCriterion(loss_config, NUM_CLASSES, num_queries)
    losses = criterion({**outputs[-1], "aux_outputs": outputs[:-1]}, targets)

    peer_loss = DFineLoss(config)
    predictions = decoder_predictions({**outputs[-1], "aux_outputs": outputs[:-1]})
    padded = torch.zeros(batch, max(counts), 4, dtype=torch.float32)
    padded[0] = targets[0]["boxes"]
    labels = torch.zeros(batch, max(counts), dtype=torch.int64)
    costs = cost_matrix(predictions.logits, predictions.boxes, labels, padded, loss_config)
    (matched,) = match([costs], list(counts))
    ours, theirs = 0.0, 0.0
    for i in range(layers):
        indices = []
        for image, count in enumerate(counts):
            indices.append((matched[i, image, :count], torch.arange(count)))
        layer = {
            "pred_boxes": boxes[i],
            "pred_corners": edge_logits[i],
            "ref_points": first_boxes,
            "teacher_corners": edge_logits[-1],
            "teacher_logits": logits[-1],
        }
        expected = peer_loss.loss_local(layer, targets, indices, sum(counts))
        suffix = "" if i == layers - 1 else f"_{i}"
        torch.testing.assert_close(losses[f"loss_fgl{suffix}"], expected["loss_fgl"])
        ours = ours + losses[f"loss_fgl{suffix}"]
        theirs = theirs + expected["loss_fgl"]
        if suffix:
            distilled = losses[f"loss_ddf{suffix}"] + losses[f"loss_ddn{suffix}"]
            torch.testing.assert_close(distilled, expected["loss_ddf"])
            ours = ours + distilled
            theirs = theirs + expected["loss_ddf"]
    (gradient,) = torch.autograd.grad(ours, edge_logits)
    (expected_gradient,) = torch.autograd.grad(theirs, edge_logits)
    torch.testing.assert_close(gradient, expected_gradient)
