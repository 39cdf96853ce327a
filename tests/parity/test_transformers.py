"""The faithful variant against Hugging Face Transformers, with the same random weights.

Outputs, losses and gradients are compared. Transformers 5 with `auxiliary_loss=True` feeds each decoder layer the *normalised* output of the
layer before, which neither the original nor Transformers itself with `auxiliary_loss=False` does.
So its model runs with False, and the predictions of the earlier layers are made here from its
hidden states, its norm and its heads.
"""

from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import redetr
from redetr.weights.official import from_transformers

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

NUM_CLASSES = 5


def random_peer(**options: Any) -> Any:
    """A DETR of Transformers in which even norms, biases and statistics are random.

    Matrices are as large as in a trained model, so that attention is peaked and positions and masks
    matter.
    """
    settings = {
        "backbone": "resnet50",
        "use_pretrained_backbone": False,
        "num_labels": NUM_CLASSES,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    config = transformers.DetrConfig(**settings | options)
    peer = transformers.DetrForObjectDetection(config)
    with torch.no_grad():
        for name, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif tensor.dim() == 1 and ".backbone." in name:
                # Scales of norms; 0.4 keeps the residual sums of 16 or 33 blocks in bounds.
                tensor.uniform_(0.2, 0.6)
            elif tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 2 and "embeddings" in name:
                tensor.normal_(0, 1)
            elif tensor.dim() == 2:
                tensor.normal_(0, tensor.shape[1] ** -0.5)
    return peer.eval()


def ours_from(peer: Any) -> torch.nn.Module:
    """Our model with the weights of the peer, by way of a folder on disk."""
    with TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        return redetr.load(folder, device="cpu").model


def padded_batch(dtype: torch.dtype) -> redetr.Batch:
    torch.manual_seed(1)
    sizes = ((64, 128), (96, 64), (50, 101))
    images = [torch.randn(3, height, width, dtype=dtype) for height, width in sizes]
    return redetr.collate(images)


def random_targets(dtype: torch.dtype) -> list[dict[str, Tensor]]:
    torch.manual_seed(2)
    targets = []
    for count in (4, 0, 1):
        labels = torch.randint(NUM_CLASSES, (count,))
        boxes = torch.rand(count, 4, dtype=dtype) * 0.4 + 0.1
        targets.append({"labels": labels, "boxes": boxes})
    return targets


def run_peer(peer: Any, batch: redetr.Batch, **options: Any) -> Any:
    return peer(pixel_values=batch.images, pixel_mask=(~batch.mask).long(), **options)


@pytest.fixture
def double_by_default():
    """Transformers makes some tensors in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


VARIANTS = {
    "resnet50": {},
    "resnet101": {"backbone": "resnet101", "encoder_layers": 1, "decoder_layers": 2},
    "dilated": {"dilation": True, "encoder_layers": 1, "decoder_layers": 2},
    "dilated by its backbone": {
        "backbone_config": {
            "model_type": "timm_backbone",
            "backbone": "resnet50",
            "out_indices": [1, 2, 3, 4],
            "output_stride": 16,
        },
        "encoder_layers": 1,
        "decoder_layers": 1,
    },
    "learned positions": {
        "position_embedding_type": "learned",
        "encoder_layers": 1,
        "decoder_layers": 2,
    },
    "own resnet": {
        "backbone_config": {"model_type": "resnet", "out_features": ["stage4"]},
        "encoder_layers": 1,
        "decoder_layers": 2,
    },
    "other sizes": {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "d_model": 96,
        "encoder_attention_heads": 6,
        "decoder_attention_heads": 6,
        "encoder_ffn_dim": 80,
        "decoder_ffn_dim": 80,
        "num_queries": 7,
    },
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_same_outputs(options):
    peer = random_peer(**options)
    ours = ours_from(peer)
    batch = padded_batch(torch.float32)
    with torch.no_grad():
        theirs = run_peer(peer, batch)
        outputs = ours(batch.images, batch.mask)
    assert theirs.logits.std() > 0.1  # the comparison is not one of zeros
    torch.testing.assert_close(outputs["pred_logits"], theirs.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs["pred_boxes"], theirs.pred_boxes, rtol=1e-5, atol=1e-5)


def layerwise(peer: Any, batch: redetr.Batch) -> tuple[Tensor, Tensor]:
    """Logits and boxes of all decoder layers, `[L, B, Q, ...]`, by Transformers' modules."""
    output = run_peer(peer, batch, output_hidden_states=True)
    # First comes the input of the decoder; the last one is normalised already.
    earlier = [peer.model.decoder.layernorm(state) for state in output.decoder_hidden_states[1:-1]]
    states = torch.stack([*earlier, output.last_hidden_state])
    return peer.class_labels_classifier(states), peer.bbox_predictor(states).sigmoid()


def peer_loss(
    peer: Any, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]]
) -> tuple[Tensor, dict]:
    labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
    config = SimpleNamespace(
        **peer.config.to_dict() | {"auxiliary_loss": True, "num_labels": NUM_CLASSES}
    )
    total, losses, _ = peer.loss_function(
        logits[-1], labels, logits.device, boxes[-1], config, logits, boxes
    )
    return total, {name: loss for name, loss in losses.items() if "cardinality" not in name}


@pytest.mark.parametrize(
    "backbone", ["resnet50", pytest.param("resnet101", marks=pytest.mark.slow)]
)
def test_same_losses_and_gradients(double_by_default, backbone):
    peer = random_peer(backbone=backbone, encoder_layers=2, decoder_layers=3).double()
    ours = ours_from(peer).double()
    batch = padded_batch(torch.float64)
    targets = random_targets(torch.float64)

    logits, boxes = layerwise(peer, batch)
    total, losses = peer_loss(peer, logits, boxes, targets)
    total.backward()
    outputs = ours(batch.images, batch.mask)
    our_losses = redetr.SetCriterion.for_model(ours)(outputs, targets)
    our_losses["loss"].backward()

    torch.testing.assert_close(our_losses, losses | {"loss": total}, rtol=1e-6, atol=0)
    names = set()
    for term in ("loss_ce", "loss_bbox", "loss_giou"):
        names |= {f"{term}_0", f"{term}_1", term}
    assert losses.keys() == names
    gradients = from_transformers({name: p.grad for name, p in peer.named_parameters()})
    trainable = {name: p.grad for name, p in ours.named_parameters() if p.requires_grad}
    assert len(trainable) > 100
    # A gradient that is zero but for rounding, such as that of attention between equal values, has
    # no relative error.
    smallest = 1e-8 * torch.stack([gradient.norm() for gradient in trainable.values()]).norm()
    for name, gradient in trainable.items():
        error = (gradient - gradients[name]).norm() / gradients[name].norm().clamp(min=smallest)
        assert error < 1e-5, f"{name}: {error:.1e}"
