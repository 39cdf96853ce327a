"""The layout of the official checkpoints, built from torchvision's and torch's modules.

And what it computes.
"""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

import redetr
from redetr.models.transformer import (
    MultiheadAttention,
    Transformer,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
)
from redetr.weights.reading import read_weights

pytestmark = pytest.mark.parity

OUTPUTS = 92  # category ids 0 to 90 and "no object"
RESNETS = {"resnet50": 53, "resnet101": 104}  # convolutions


def official_weights(backbone: str = "resnet50", num_queries: int = 100) -> dict[str, Tensor]:
    """A random state dict as facebookresearch/detr writes it, made without redetr."""
    modules: dict[str, nn.Module] = {}
    modules["backbone.0.body"] = torchvision.models.get_model(
        backbone, norm_layer=torchvision.ops.FrozenBatchNorm2d
    )
    for i in range(6):
        modules[f"transformer.encoder.layers.{i}"] = nn.TransformerEncoderLayer(256, 8, 2048)
        modules[f"transformer.decoder.layers.{i}"] = nn.TransformerDecoderLayer(256, 8, 2048)
    modules |= {
        "transformer.decoder.norm": nn.LayerNorm(256),
        "class_embed": nn.Linear(256, OUTPUTS),
        "query_embed": nn.Embedding(num_queries, 256),
        "input_proj": nn.Conv2d(2048, 256, 1),
        "bbox_embed.layers.0": nn.Linear(256, 256),
        "bbox_embed.layers.1": nn.Linear(256, 256),
        "bbox_embed.layers.2": nn.Linear(256, 4),
    }
    weights = {}
    for prefix, module in modules.items():
        for name, tensor in module.state_dict().items():
            weights[f"{prefix}.{name}"] = tensor
    # The classifier of the ResNet is not part of a detector.
    del weights["backbone.0.body.fc.weight"]
    del weights["backbone.0.body.fc.bias"]
    return weights


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def save(path: Path, weights: dict[str, Tensor]) -> Path:
    """A file as the official training script writes it: more in it than the model."""
    torch.save({"model": weights, "epoch": 299}, path)
    return path


@pytest.mark.parametrize("backbone", RESNETS)
@pytest.mark.parametrize("dilated", [False, True])
def test_names_and_shapes_are_the_official_ones(backbone, dilated):
    name = backbone.replace("resnet", "detr_r")
    if dilated:
        name += "_dc5"
    with torch.device("meta"):
        model = redetr.build(name, num_classes=OUTPUTS - 1)
        expected = official_weights(backbone)
    assert shapes(model.state_dict()) == shapes(expected)
    # 5 tensors per convolution and its norm, 12 per encoder layer, 18 per decoder layer, 13 others
    assert len(expected) == 5 * RESNETS[backbone] + 6 * 12 + 6 * 18 + 13


def test_some_names_by_hand():
    with torch.device("meta"):
        model = redetr.build("detr_r50", num_classes=OUTPUTS - 1)
    model_shapes = shapes(model.state_dict())
    expected = {
        "transformer.encoder.layers.0.self_attn.in_proj_weight": (768, 256),
        "transformer.decoder.layers.5.multihead_attn.out_proj.bias": (256,),
        "backbone.0.body.layer1.0.conv1.weight": (64, 64, 1, 1),
        "backbone.0.body.layer4.0.downsample.1.running_var": (2048,),
        "class_embed.weight": (92, 256),
        "bbox_embed.layers.0.weight": (256, 256),
        "bbox_embed.layers.2.weight": (4, 256),
        "query_embed.weight": (100, 256),
        "input_proj.weight": (256, 2048, 1, 1),
    }
    assert {name: model_shapes[name] for name in expected} == expected


def test_a_file_of_the_original_loads(tmp_path):
    weights = official_weights(num_queries=20)
    detector = redetr.load(save(tmp_path / "detr-r50-e632da11.pth", weights), device="cpu")
    torch.testing.assert_close(detector.model.state_dict(), weights, rtol=0, atol=0)
    assert detector.model.num_classes == 91
    assert detector.model.num_queries == 20
    assert detector.image_size == 800
    assert detector.class_names[1] == "person"
    assert detector.class_names[17] == "cat"
    assert detector.class_names[62] == "chair"
    assert detector.class_names[90] == "toothbrush"
    assert detector.category_ids == tuple(range(91))


@pytest.mark.parametrize(
    ("file", "model"), [("detr-r50-dc5-f0fb7ef5.pth", None), ("mine.pth", "detr_r50_dc5")]
)
def test_the_dilated_variant_is_known_by_file_name_or_argument(tmp_path, file, model):
    path = save(tmp_path / file, official_weights(num_queries=5))
    detector = redetr.load(path, model=model, device="cpu")
    with torch.inference_mode():
        (features,) = detector.model.backbone[0](torch.zeros(1, 3, 64, 96))
    assert features.shape == (1, 2048, 4, 6)  # stride 16


def test_arguments_of_a_training_say_what_the_tensors_do_not(tmp_path):
    """The original's script writes them beside the weights."""
    arguments = Namespace(dilation=True, nheads=4, backbone="resnet50", device="cuda", lr=1e-4)
    content = {"model": official_weights(num_queries=5), "epoch": 299, "args": arguments}
    torch.save(content, tmp_path / "checkpoint.pth")
    options = read_weights(tmp_path / "checkpoint.pth").origin.options
    assert (options["dilation"], options["nheads"], options["enc_layers"]) == (True, 4, 6)


@pytest.mark.long
def test_a_resnet101_is_recognised(tmp_path):
    weights = official_weights("resnet101", num_queries=5)
    detector = redetr.load(save(tmp_path / "detr-r101-2c7b67e5.pth", weights), device="cpu")
    assert len(detector.model.backbone[0].body.layer3) == 23
    with torch.inference_mode():
        (features,) = detector.model.backbone[0](torch.zeros(1, 3, 64, 96))
    assert features.shape == (1, 2048, 2, 3)  # stride 32


def test_weights_that_do_not_fit_are_refused(tmp_path):
    weights = official_weights(num_queries=5)
    resnet = torchvision.models.resnet18().state_dict()
    incomplete = dict(weights)
    del incomplete["transformer.encoder.layers.3.norm1.weight"]
    del incomplete["transformer.encoder.layers.3.norm1.bias"]
    with pytest.raises(redetr.InputError, match=r"2 missing.*encoder\.layers\.3\.norm1\.bias"):
        redetr.load(save(tmp_path / "incomplete.pth", incomplete), device="cpu")
    with pytest.raises(redetr.InputError, match="no DETR"):
        redetr.load(save(tmp_path / "resnet.pth", resnet), device="cpu")


def randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double()


# The second image is padded after 4 of 7 positions.
PADDING = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])


@pytest.mark.parametrize("padding", [None, PADDING], ids=["all", "padded"])
@pytest.mark.parametrize("self_attention", [True, False])
def test_attention_is_that_of_torch(padding, self_attention):
    theirs = randomized(nn.MultiheadAttention(24, 3, batch_first=True))
    ours = MultiheadAttention(24, 3).double()
    ours.load_state_dict(theirs.state_dict())
    key, value = torch.randn(2, 2, 7, 24, dtype=torch.float64)
    query = key if self_attention else torch.randn(2, 5, 24, dtype=torch.float64)
    expected, _ = theirs(query, key, value, key_padding_mask=padding)
    torch.testing.assert_close(ours(query, key, value, padding), expected)


def test_attention_in_bf16_on_a_cpu_is_that_of_fp32():
    attention = randomized(MultiheadAttention(24, 3)).float()
    x = torch.randn(2, 7, 24)
    expected = attention(x, x, x, PADDING)
    half = attention.bfloat16()(x.bfloat16(), x.bfloat16(), x.bfloat16(), PADDING).float()
    assert (half - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_without_positions_are_those_of_torch(pre_norm):
    options = {"dropout": 0.0, "batch_first": True, "norm_first": pre_norm}
    encoder = randomized(nn.TransformerEncoderLayer(24, 3, 40, **options))
    decoder = randomized(nn.TransformerDecoderLayer(24, 3, 40, **options))
    our_encoder = TransformerEncoderLayer(24, 3, 40, 0.0, pre_norm).double()
    our_decoder = TransformerDecoderLayer(24, 3, 40, 0.0, pre_norm).double()
    our_encoder.load_state_dict(encoder.state_dict())
    our_decoder.load_state_dict(decoder.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    queries = torch.randn(2, 5, 24, dtype=torch.float64)
    no_pos = torch.zeros_like(x)
    no_query_pos = torch.zeros_like(queries)

    memory = encoder(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(our_encoder(x, no_pos, PADDING), memory)
    expected = decoder(queries, memory, memory_key_padding_mask=PADDING)
    decoded = our_decoder(queries, no_query_pos, memory, memory, PADDING)
    torch.testing.assert_close(decoded, expected)


def test_positions_go_to_queries_and_keys_but_not_to_values():
    """What the original adds to torch's layer, written with torch's attention."""
    theirs = randomized(nn.TransformerEncoderLayer(24, 3, 40, dropout=0.0, batch_first=True))
    ours = TransformerEncoderLayer(24, 3, 40, 0.0, pre_norm=False).double()
    ours.load_state_dict(theirs.state_dict())
    x, pos = torch.randn(2, 2, 7, 24, dtype=torch.float64)
    attended, _ = theirs.self_attn(x + pos, x + pos, x)
    between = theirs.norm1(x + attended)
    expected = theirs.norm2(between + theirs.linear2(theirs.linear1(between).relu()))
    torch.testing.assert_close(ours(x, pos), expected)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_padded_positions_change_nothing(pre_norm):
    torch.manual_seed(0)
    transformer = Transformer(24, 3, 2, 2, 40, dropout=0.0, pre_norm=pre_norm).double()
    features, pos = torch.randn(2, 2, 7, 24, dtype=torch.float64)
    queries = torch.randn(2, 5, 24, dtype=torch.float64)
    changed = torch.where(PADDING[..., None], 100.0, features)
    expected, _ = transformer(features, pos, queries, PADDING)
    states, _ = transformer(changed, pos, queries, PADDING)
    torch.testing.assert_close(states, expected)
    without_mask, _ = transformer(features, pos, queries)
    states, _ = transformer(changed, pos, queries)
    assert not torch.allclose(states, without_mask)
