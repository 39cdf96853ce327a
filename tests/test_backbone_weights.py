"""Weights of a backbone alone: ImageNet's from the cache or the net, and files of torchvision and
timm."""

import hashlib
import http.server
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import redetr
from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.models import backbone
from redetr.models.backbone import Backbone
from redetr.weights.starting import starting_point


def published(name: str, folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as torchvision publishes it, named by its hash, with BatchNorm's counters and the
    classifier."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()[:8]
    return (folder / "file").rename(folder / f"{name}-{digest}.pth"), model.state_dict()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/hub/checkpoints").mkdir(parents=True)
    return tmp_path / "cache/hub/checkpoints"


def point_at(url, monkeypatch):
    entry = type("Entry", (), {"url": url})
    monkeypatch.setattr(
        backbone.torchvision.models, "get_model_weights", lambda name: {"IMAGENET1K_V1": entry}
    )


def same(body, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in body.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_file_in_the_cache(name, cache, monkeypatch):
    path, weights = published(name, cache)
    point_at(f"http://127.0.0.1:9/{path.name}", monkeypatch)
    for norm in ("frozen_batch", "sync_batch"):
        assert same(Backbone(name, "imagenet", norm=norm).body, weights)


def test_download(cache, tmp_path, monkeypatch):
    path, weights = published("resnet18", tmp_path)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        point_at(f"http://127.0.0.1:{running.server_port}/{path.name}", monkeypatch)
        assert same(Backbone("resnet18", "imagenet").body, weights)
        running.shutdown()
    assert (cache / path.name).exists()


def test_offline_says_where_the_file_belongs(cache, monkeypatch):
    point_at("http://127.0.0.1:9/resnet18-f37072fd.pth", monkeypatch)  # nobody listens there
    with pytest.raises(
        InputError, match=f"download it elsewhere and put it at {cache}/resnet18-f37072fd.pth"
    ):
        Backbone("resnet18", "imagenet")


def test_group_norm_takes_no_imagenet_weights():
    with pytest.raises(InputError, match="frozen_batch"):
        Backbone("resnet18", "imagenet", norm="group")


def start(weights: Path, model: str = "redetr_mobile", *options: str) -> tuple[nn.Module, str]:
    """A model of three classes that starts from a file, and what is said about it."""
    config = TrainConfig(model=model, weights=str(weights), model_options=options)
    built = redetr.build(model, 3, **config.model_kwargs())
    (said,) = starting_point(built, config, ("a", "b", "c"))
    return built, said


@pytest.mark.parametrize(
    ("name", "model", "options"),
    [
        ("mobilenet_v2", "redetr_mobile", ("backbone=mobilenet_v2",)),
        ("mobilenet_v3_large", "redetr_mobile", ("backbone=mobilenet_v3_large",)),
        ("resnet18", "detr_r50", ("backbone=resnet18", "enc_layers=1", "dec_layers=1")),
    ],
)
def test_a_file_of_torchvision(name, model, options, tmp_path):
    path, weights = published(name, tmp_path)
    built, said = start(path, model, *options)
    body = built.backbone[0].body
    count = len(body.state_dict())
    assert same(body, weights)
    assert said == f"loaded {count} of {count} tensors of the backbone {name} from {path}"


def test_a_file_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    net = timm.create_model("efficientnet_lite0").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
    # This is what timm's training script writes.
    torch.save({"state_dict": net.state_dict()}, tmp_path / "mine.pth.tar")
    built, said = start(
        tmp_path / "mine.pth.tar", "redetr_mobile", "backbone=timm:efficientnet_lite0"
    )
    assert same(built.backbone[0].body, net.state_dict())
    assert "tensors of the backbone timm:efficientnet_lite0 from" in said
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, expected = (
            built.backbone[0](images),
            net.forward_intermediates(images, intermediates_only=True),
        )
    torch.testing.assert_close(features, [expected[2], expected[3]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "redetr_mobile",
            ("backbone=mobilenet_v3_small",),
            "neither a DETR nor a mobilenet_v3_small: 144 of its 144 ",
        ),
        (
            "redetr_mobile",
            ("backbone=mobilenet_v2", "norm=group"),
            "trained with BatchNorm: it needs norm=frozen_batch",
        ),
        ("redetr_n", (), "backbone weights, but the backbone of redetr_n is trained from scratch"),
    ],
)
def test_files_of_other_backbones_are_refused(model, options, message, tmp_path):
    path, _ = published("mobilenet_v2", tmp_path)
    with pytest.raises(InputError, match=message):
        start(path, model, *options)


def test_a_backbone_is_no_detector(tmp_path):
    path, _ = published("mobilenet_v2", tmp_path)
    with pytest.raises(
        InputError, match=r"mobilenet_v2-\w+\.pth: neither .* no DETR .* train with --weights"
    ):
        redetr.load(path)


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("resnet18", ("backbone=resnet18",), "layer1.0.se.fc1.weight"),
        ("resnet34", ("backbone=resnet18",), "layer1.2.conv1.weight"),
    ],
)
def test_another_backbone_with_the_same_tensors_and_more_is_refused(name, options, more, tmp_path):
    tensors = torchvision.models.get_model(name).state_dict()
    tensors |= {more: torch.zeros(1)}
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(InputError, match=f"not a resnet18, but .* such as {more}; choose the"):
        start(tmp_path / "other.pth", "detr_r50", *options, "enc_layers=1", "dec_layers=1")


def test_scales_of_activations_are_not_dropped(tmp_path):
    tensors = redetr.build("dfine_n", 3).backbone.state_dict()
    torch.save(tensors, tmp_path / "b0.pth")
    with pytest.raises(InputError, match=r"such as \S+\.lab\.\w+; .* --model-options affine=true"):
        start(tmp_path / "b0.pth", "dfine_n", "affine=false")


@pytest.mark.parametrize(("name", "model"), [("conv1", "detr_r50"), ("conv1.0", "rtdetr_r18")])
def test_a_backbone_for_other_channels_says_so(name, model, tmp_path):
    tensors = {f"{name}.weight": torch.zeros(8, 4, 3, 3), "conv1.6.weight": torch.zeros(1)}
    torch.save(tensors | {"layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "four.pth")
    with pytest.raises(InputError, match=r"four\.pth: takes images of 4 channels"):
        start(tmp_path / "four.pth", model)
