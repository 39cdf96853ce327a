"""Table Transformer against Hugging Face Transformers: outputs, losses and gradients of the same
random weights, and the layout of the original's files."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

import redetr
from redetr.weights.official import from_transformers
from redetr.weights.reading import read_weights
from tests.transformers_peer import (
    NUM_CLASSES,
    assert_same_losses_and_gradients,
    assert_same_outputs,
    ours_from,
    padded_batch,
    randomized,
)

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

TINY = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "d_model": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
}
BATCHES = {
    "one size": [(96, 160), (96, 160)],
    "padded": [(64, 128), (96, 64), (50, 101)],
}


def random_peer(**options: Any) -> Any:
    """A Table Transformer of Transformers with random weights."""
    settings = {"backbone": "resnet18", "num_labels": NUM_CLASSES, "dropout": 0.0}
    config = transformers.TableTransformerConfig(**settings | TINY | options)
    return randomized(transformers.TableTransformerForObjectDetection, config)


@pytest.fixture
def double_by_default():
    """Transformers makes some tensors in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES.keys())
def test_same_outputs(sizes):
    assert_same_outputs(random_peer(), padded_batch(torch.float32, sizes), 1e-5)


@pytest.mark.parametrize("sizes", BATCHES.values(), ids=BATCHES.keys())
def test_same_outputs_in_fp64(double_by_default, sizes):
    # Positions are in fp32 there.
    assert_same_outputs(random_peer(), padded_batch(torch.float64, sizes), 1e-7)


PUBLISHED = {"encoder_layers": 6, "decoder_layers": 6, "d_model": 256, "num_queries": 15}


def test_same_outputs_at_the_published_size():
    settings = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    peer = random_peer(**PUBLISHED, **settings, encoder_ffn_dim=2048, decoder_ffn_dim=2048)
    assert_same_outputs(peer, padded_batch(torch.float32), 1e-5)


def test_same_losses_and_gradients(double_by_default):
    peer = random_peer(decoder_layers=3, eos_coefficient=0.4)  # as published
    assert_same_losses_and_gradients(peer, 1e-5)


VARIATIONS = {
    "learned positions": {"position_embedding_type": "learned"},
    "gelu": {"activation_function": "gelu"},
    "auxiliary loss": {"auxiliary_loss": True},
    "resnet34, dilated": {"backbone": "resnet34", "dilation": True},
    "resnet50": {"backbone": "resnet50"},
    "decoder unlike encoder": {"decoder_attention_heads": 8, "decoder_ffn_dim": 80},
}


@pytest.mark.parametrize("options", VARIATIONS.values(), ids=VARIATIONS.keys())
def test_same_outputs_of_variations(options):
    assert_same_outputs(random_peer(**options), padded_batch(torch.float32), 1e-5)


def test_every_name_is_used():
    """Nothing that Transformers saves is left over, and nothing is missing."""
    peer = random_peer()
    ours = ours_from(peer).state_dict()
    theirs = from_transformers(peer.state_dict())
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def original_weights() -> dict[str, Tensor]:
    """A random state dict as the original code writes it, made without redetr."""
    resnet = resnet18(norm_layer=FrozenBatchNorm2d).state_dict()
    weights = {}
    for name, tensor in resnet.items():
        if not name.startswith("fc."):
            weights[f"backbone.0.body.{name}"] = tensor
    modules: dict[str, nn.Module] = {
        "transformer.encoder.norm": nn.LayerNorm(256),
        "transformer.decoder.norm": nn.LayerNorm(256),
        "class_embed": nn.Linear(256, 3),
        "query_embed": nn.Embedding(15, 256),
        "input_proj": nn.Conv2d(512, 256, 1),
        "bbox_embed.layers.0": nn.Linear(256, 256),
        "bbox_embed.layers.1": nn.Linear(256, 256),
        "bbox_embed.layers.2": nn.Linear(256, 4),
    }
    for i in range(6):
        modules[f"transformer.encoder.layers.{i}"] = nn.TransformerEncoderLayer(256, 8, 2048)
        modules[f"transformer.decoder.layers.{i}"] = nn.TransformerDecoderLayer(256, 8, 2048)
    for prefix, module in modules.items():
        for name, tensor in module.state_dict().items():
            weights[f"{prefix}.{name}"] = tensor
    return weights


def test_a_file_of_the_original_loads(tmp_path):
    """Those files hold the state dict alone."""
    weights = original_weights()
    path = tmp_path / "pubtables1m_detection_detr_r18.pth"
    torch.save(weights, path)
    detector = redetr.load(path, device="cpu")
    torch.testing.assert_close(detector.model.state_dict(), weights, rtol=0, atol=0)
    assert detector.model.num_queries == 15
    assert detector.model.max_size == 800
    with torch.device("meta"):
        built = redetr.build("detr_table", num_classes=2)
    assert built.state_dict().keys() == weights.keys()

    # The file that the original's script writes after each epoch.
    torch.save({"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": {}}, path)
    resumable = redetr.load(path, device="cpu").model
    torch.testing.assert_close(resumable.state_dict(), weights, rtol=0, atol=0)

    # That of rows and columns.
    torch.save(weights | {"query_embed.weight": torch.zeros(125, 256)}, path)
    origin = read_weights(path).origin
    assert (origin.image_size, origin.options["max_size"]) == (1000, 1000)
