"""The faithful variant against Hugging Face Transformers: outputs, losses and gradients of the same
random weights.

Transformers with `auxiliary_loss=True` feeds each decoder layer the *normalised* output of the
layer before, which neither the original nor Transformers itself with `auxiliary_loss=False` does.
Folders that say so load as such a model. Losses are compared for the original's function: there the
peer runs with False, and the predictions of the earlier layers are made here from its hidden
states, its norm and its heads.
"""

import json
from typing import Any

import pytest
import torch

import redetr
from redetr.models.transformer import ACTIVATIONS
from redetr.weights import detr_config
from tests.tiers import cases
from tests.transformers_peer import (
    NUM_CLASSES,
    assert_same_losses_and_gradients,
    assert_same_outputs,
    difference,
    ours_from,
    padded_batch,
    randomized,
    run_peer,
)

transformers = pytest.importorskip("transformers")
activations = pytest.importorskip("transformers.activations")
pytestmark = pytest.mark.parity


def random_peer(**options: Any) -> Any:
    """A DETR of Transformers with random weights."""
    settings = {
        "backbone": "resnet50",
        "use_pretrained_backbone": False,
        "num_labels": NUM_CLASSES,
        "dropout": 0.0,
    }
    config = transformers.DetrConfig(**settings | options)
    return randomized(transformers.DetrForObjectDetection, config)


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


TINY = {
    "backbone": "resnet18",
    "encoder_layers": 1,
    "decoder_layers": 2,
    "d_model": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 7,
}


def timm_resnet(name: str, **settings: Any) -> dict[str, Any]:
    settings = {"backbone": name, "out_indices": [1, 2, 3, 4], **settings}
    return {"backbone_config": {"model_type": "timm_backbone", **settings}}


def own_resnet(kind: str, depths: list[int], widths: list[int]) -> dict[str, Any]:
    settings = {"layer_type": kind, "depths": depths, "hidden_sizes": widths}
    settings["out_features"] = ["stage2", "stage4"]
    return {"backbone": None, "backbone_config": {"model_type": "resnet", **settings}}


VARIATIONS = {
    "resnet18": {},
    "resnet34": timm_resnet("resnet34"),
    "a tag of weights": timm_resnet("resnet18.a1_in1k"),
    "resnet18, dilated": {"dilation": True},
    "resnet34, dilated": timm_resnet("resnet34", output_stride=16),
    "own resnet18": own_resnet("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "own resnet34": own_resnet("basic", [3, 4, 6, 3], [64, 128, 256, 512]),
    "own resnet101": own_resnet("bottleneck", [3, 4, 23, 3], [256, 512, 1024, 2048]),
    "own resnet, dilation without effect": {
        "dilation": True,
        **own_resnet("basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    },
    "decoder unlike encoder": {"decoder_attention_heads": 16, "decoder_ffn_dim": 80},
    "gelu": {"activation_function": "gelu"},
    "silu": {"activation_function": "silu"},
    "learned positions": {"position_embedding_type": "learned"},
    "no encoder": {"encoder_layers": 0},
    "more layers than encoder": {"decoder_layers": 3},
    "auxiliary loss": {"auxiliary_loss": True},
    "dropouts": {"dropout": 0.2, "attention_dropout": 0.3, "activation_dropout": 0.4},
}


@pytest.mark.parametrize("name", cases(VARIANTS, ["own resnet", "other sizes"]))
def test_same_outputs(name):
    assert_same_outputs(random_peer(**VARIANTS[name]), padded_batch(torch.float32), 1e-5)


@pytest.mark.parametrize("name", cases(VARIATIONS, ["resnet18", "gelu", "learned positions"]))
def test_same_outputs_of_variations(name):
    peer = random_peer(**TINY | VARIATIONS[name])
    assert_same_outputs(peer, padded_batch(torch.float32), 1e-5)


@pytest.mark.parametrize("options", [{}, {"auxiliary_loss": True}], ids=["plain", "auxiliary"])
def test_same_outputs_in_fp64(double_by_default, options):
    peer = random_peer(**TINY | options).double()
    assert_same_outputs(peer, padded_batch(torch.float64), 1e-10)
    learned = random_peer(**TINY | options, position_embedding_type="learned").double()
    assert_same_outputs(learned, padded_batch(torch.float64), 1e-10)


def test_same_outputs_of_earlier_layers_with_auxiliary_loss():
    peer = random_peer(**TINY | {"decoder_layers": 3, "auxiliary_loss": True})
    batch = padded_batch(torch.float32)
    mask = (~batch.mask).long()
    with torch.no_grad():
        states = peer.model(batch.images, mask).intermediate_hidden_states
        outputs = ours_from(peer)(batch.images, batch.mask)
        logits = peer.class_labels_classifier(states)
        boxes = peer.bbox_predictor(states).sigmoid()
    assert len(outputs["aux_outputs"]) == 2
    for i, layer in enumerate(outputs["aux_outputs"]):
        assert difference(layer["pred_logits"], logits[i]) <= 1e-5
        assert difference(layer["pred_boxes"], boxes[i]) <= 1e-5


@pytest.mark.parametrize("name", detr_config._ACTIVATIONS)
def test_same_activations(name):
    theirs = activations.ACT2FN[name]
    ours = ACTIVATIONS[detr_config._ACTIVATIONS[name]]
    x = torch.linspace(-8, 8, 1001, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


# Settings of the versions before `backbone_config`, and whether the last stage is dilated.
OLD_CONFIGS = {
    "plain": ({"backbone": "resnet18", "use_timm_backbone": True}, False),
    "dilated": ({"backbone": "resnet18", "dilation": True}, True),
    "arguments": (
        {"backbone": "resnet18", "backbone_kwargs": {"out_indices": [1, 2, 3, 4], "in_chans": 3}},
        False,
    ),
    "dilated by arguments": (
        {"backbone": "resnet18", "backbone_kwargs": {"output_stride": 16}},
        True,
    ),
}


@pytest.mark.parametrize(("old", "dilated"), OLD_CONFIGS.values(), ids=OLD_CONFIGS.keys())
def test_configs_of_older_versions(old, dilated, tmp_path):
    peer = random_peer(**TINY | {"dilation": dilated})
    peer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["backbone_config"]
    (tmp_path / "config.json").write_text(json.dumps(config | {"dilation": False} | old))
    batch = padded_batch(torch.float32)
    with torch.no_grad():
        theirs = run_peer(peer, batch)
        outputs = redetr.load(tmp_path, device="cpu").model(batch.images, batch.mask)
    assert difference(outputs["pred_logits"], theirs.logits) <= 1e-5


@pytest.mark.long
@pytest.mark.parametrize(
    "backbone", ["resnet50", pytest.param("resnet101", marks=pytest.mark.slow)]
)
def test_same_losses_and_gradients(double_by_default, backbone):
    peer = random_peer(backbone=backbone, encoder_layers=2, decoder_layers=3).double()
    assert_same_losses_and_gradients(peer, 1e-5)  # positions are in fp32 here
