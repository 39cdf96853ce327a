"""The backbone of RT-DETR with weights of timm's ResNet-D, random ones with random statistics."""

from pathlib import Path

import pytest
import torch
from torch import nn

import redetr
from redetr.config import TrainConfig
from redetr.data.transforms import MEAN, STD
from redetr.models.resnet_vd import PResNet
from redetr.recipes import get_recipe
from redetr.weights.resnet_d import from_timm
from redetr.weights.starting import starting_point

pytestmark = pytest.mark.parity


def timm_net(name: str) -> nn.Module:
    timm = pytest.importorskip("timm")  # a second, in each process that collects these tests
    torch.manual_seed(0)
    net = timm.create_model(name).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return net


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels in [0, 1], and the same normalised."""
    torch.manual_seed(1)
    pixels = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    mean = torch.tensor(MEAN, dtype=torch.float64)[:, None, None]
    std = torch.tensor(STD, dtype=torch.float64)[:, None, None]
    return pixels, (pixels - mean) / std


def ours_from(net: nn.Module, name: str) -> PResNet:
    model = PResNet(name, norm="frozen_batch").eval()
    given = from_timm(net.state_dict())
    model.load_state_dict({key: given[key] for key in model.state_dict()})
    return model.double()


@pytest.mark.parametrize(
    ("name", "theirs"), [("resnet18vd", "resnet18d"), ("resnet50vd", "resnet50d")]
)
def test_features_are_those_of_timm(name, theirs):
    """Also in R18, where timm's first block has no projection."""
    net = timm_net(theirs)
    with torch.no_grad():  # the first layer does not see the border, which timm pads with the mean
        kernel = net.conv1[0].weight
        centre = kernel[:, :, 1, 1].clone()
        kernel.zero_()
        kernel[:, :, 1, 1] = centre
    pixels, normalised = images()
    with torch.no_grad():
        features = ours_from(net, name)(pixels)
        expected = net.double().forward_intermediates(normalised, intermediates_only=True)
    for feature, other in zip(features, expected[-3:], strict=True):
        torch.testing.assert_close(feature, other, rtol=1e-5, atol=1e-6)


def test_only_the_border_of_the_first_layer_differs():
    net = timm_net("resnet18d")
    pixels, normalised = images()
    with torch.no_grad():
        ours = ours_from(net, "resnet18vd").conv1.conv1_1(pixels)
        expected = net.double().conv1[:3](normalised)
    torch.testing.assert_close(ours[..., 1:, 1:], expected[..., 1:, 1:], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(ours[..., 0, :], expected[..., 0, :], atol=1e-2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_run_starts_from_a_file_of_timm(tmp_path: Path, wrapped):
    state = timm_net("resnet18d").state_dict()
    path = tmp_path / "resnet18d.pth"
    torch.save({"state_dict": state} if wrapped else state, path)
    config = TrainConfig(model="rtdetr_r18", weights=str(path), num_queries=10)
    model = redetr.build("rtdetr_r18", 3, num_queries=10)
    said, warning = starting_point(model, config, ("a", "b", "c"))
    assert "BatchNorm is frozen, but the weights are random in encoder and decoder" in warning
    assert "tensors of the backbone resnet18vd from" in said
    last = "layer4.1.conv2.weight"
    assert torch.equal(model.backbone.res_layers[3]["blocks"][1].branch2b.conv.weight, state[last])
    other = TrainConfig(model="rtdetr_r34", weights=str(path))
    with pytest.raises(redetr.InputError, match="neither a DETR nor a resnet34vd"):
        starting_point(redetr.build("rtdetr_r34", 3), other, ("a", "b", "c"))


def test_the_recipe_is_the_published_one():
    config = get_recipe("rtdetr_r18")
    assert (config.epochs, config.batch_size, config.lr, config.lr_backbone) == (72, 16, 1e-4, 1e-5)
    assert config.model_kwargs()["norm"] == "sync_batch"
    config.check(world_size=4)
