"""Sharing a model: `redetr push`, and `redetr.load` of what it has pushed."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_tiny_coco
from hub_server import TOKEN, hub_server
from PIL import Image

import redetr
from redetr.checkpoint import read_safetensors, save_checkpoint
from redetr.cli import main
from redetr.config import TrainConfig
from redetr.files import without_folders
from redetr.models import build
from redetr.weights.locating import locate

OPTIONS = (
    "backbone=[8,16,32]",
    "hidden_dim=16",
    "nheads=2",
    "dec_layers=1",
    "dim_feedforward=16",
    "num_queries=10",
)

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder with random weights, which says that it was trained on three classes."""
    folder = tmp_path_factory.mktemp("secret") / "run"
    folder.mkdir()
    data = write_tiny_coco(folder.parent / "kitchen")
    config = TrainConfig(
        model="redetr_n",
        image_size=64,
        model_options=OPTIONS,
        data=str(data),
        output=str(folder),
        weights="none",
    )
    torch.manual_seed(0)
    model = build("redetr_n", 3, **config.model_kwargs())
    content = {"model": model.state_dict(), "ema": None, "optimizer": {}, "step": 300}
    content |= {"config": config.to_dict(), "data": str(data), "threshold": 0.3}
    content |= {"class_names": ["cup", "plate", "spoon"], "category_ids": [7, 12, 90]}
    save_checkpoint(folder / "best.pt", content | {"weights_from": "random weights"})
    return folder


@pytest.fixture
def online(monkeypatch):
    """The other tests must not reach a hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files by LFS
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def server(online, tmp_path, monkeypatch):
    """A hub on this machine, with a token for it."""
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def push(*words: object) -> None:
    main(["push", *map(str, words), "--device", "cpu"])


def refused(capsys, *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        push(*words)
    assert ended.value.code == 1
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("redetr: ")
    return line


def test_what_is_pushed_is_what_is_loaded(run, server, tmp_path, capsys, monkeypatch):
    push("me/cups", run, "--licence", "cc-by-4.0")
    assert f"{server.address}/me/cups: README.md, model.safetensors" in capsys.readouterr().out
    files = server.repositories["me/cups"]
    expected = {"README.md", "model.safetensors", "evaluation.json", "predictions.jpg"}
    assert expected <= set(files) <= expected | {".gitattributes"}
    assert server.commits == 1 and not server.private

    monkeypatch.chdir(tmp_path)
    given = redetr.load(run, device="cpu")
    taken = redetr.load("me/cups", device="cpu")
    assert taken.class_names == given.class_names and taken.category_ids == given.category_ids
    assert taken.threshold == 0.3 and taken.image_size == 64
    for name, tensor in taken.model.state_dict().items():
        assert torch.equal(tensor, given.model.state_dict()[name])
    assert taken.model.weights_from == given.model.weights_from
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.pt"))


ON_HUB = {
    "safetensors beside pickles": (
        ["model.safetensors", "pytorch_model.bin", "checkpoint-5/model.safetensors", "args.bin"],
        ["model.safetensors"],
    ),
    "shards": (
        ["model-1.safetensors", "model.safetensors.index.json", "pytorch_model.bin"],
        ["model-1.safetensors", "model.safetensors.index.json"],
    ),
    "older": (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
}


@pytest.mark.parametrize(("files", "taken"), ON_HUB.values(), ids=ON_HUB.keys())
def test_weights_are_taken_once(files, taken, server):
    settings = ["config.json", "preprocessor_config.json"]
    server.repositories["me/detr"] = dict.fromkeys([*settings, *files, "README.md"], b"{}")
    folder = locate("me/detr")
    given = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert given == {*settings, *taken}


def test_the_folder_can_be_looked_at_first(run, tmp_path, capsys):
    """Without a hub and without a token."""
    folder = tmp_path / "card"
    push("me/cups", run, "--to", folder)
    said = capsys.readouterr()
    assert "nothing was pushed" in said.out
    assert "the card states no licence" in said.err
    with Image.open(folder / "predictions.jpg") as picture:
        assert picture.width > 400
    numbers = json.loads((folder / "evaluation.json").read_text())
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert front["library_name"] == "redetr" and front["pipeline_tag"] == "object-detection"
    assert "license" not in front
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "ap", "name": "AP", "value": numbers["AP"]}
    assert result["dataset"] == {"name": "kitchen", "type": "kitchen", "split": "val"}
    assert 'redetr.load("me/cups")' in text
    assert "| spoon |" in text and "for 300 steps" in text
    assert "Weights: a run of redetr from random weights." in text
    assert "Licence of these weights: not stated" in text
    loaded = redetr.load(folder, device="cpu")
    assert loaded.class_names == ("cup", "plate", "spoon")

    # No path of this machine is published.
    metadata = read_safetensors(folder / "model.safetensors")[1]["redetr"]
    for content in (text, json.dumps(front), json.dumps(numbers), metadata):
        assert "secret" not in content
    assert json.loads(metadata)["data"] == "kitchen"


def test_a_card_without_a_picture(run, tmp_path):
    push("me/cups", run, "--to", tmp_path / "card", "--no-picture")
    assert not (tmp_path / "card" / "predictions.jpg").exists()
    assert "predictions.jpg" not in (tmp_path / "card" / "README.md").read_text()


def test_a_card_without_numbers(run, tmp_path):
    push("me/cups", run, "--to", tmp_path / "card", "--no-evaluate", "--licence", "apache-2.0")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "Not evaluated." in text and "license: apache-2.0" in text
    assert {path.name for path in (tmp_path / "card").iterdir()} == {
        "README.md",
        "model.safetensors",
    }


def test_a_private_repository(run, server):
    push("me/cups", run, "--private", "--no-evaluate")
    assert server.private == {"me/cups"}


def test_what_the_hub_refuses_is_one_line(run, server, tmp_path, capsys, monkeypatch):
    assert "the token has no write permission there" in refused(
        capsys, "them/cups", run, "--no-evaluate"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    assert "the token is not valid" in refused(capsys, "me/cups", run)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    line = refused(capsys, "me/cups", run)
    assert line == "redetr: no token for the hub; run `hf auth login` once, or set HF_TOKEN"
    assert server.repositories == {}


def test_a_hub_that_cannot_be_reached_is_one_line(run, online, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach the hub (" in refused(capsys, "me/cups", run)


def test_what_cannot_be_pushed(run, tmp_path, capsys):
    assert "'cups' is not a name on the hub; give OWNER/NAME" in refused(capsys, "cups", run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    assert "exists already" in refused(capsys, "me/cups", run, "--to", tmp_path / "full")
    content = torch.load(run / "best.pt", weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "other.pth")
    assert "redetr" in refused(capsys, "me/cups", tmp_path / "other.pth", "--to", tmp_path / "new")
    content["data"] = str(tmp_path / "gone")
    save_checkpoint(tmp_path / "moved.pt", content)
    line = refused(capsys, "me/cups", tmp_path / "moved.pt", "--to", tmp_path / "new")
    assert "or give --no-evaluate for a card without results" in line
    assert not (tmp_path / "new").exists()


def test_numbers_of_other_data_have_its_name(run, tmp_path):
    other = write_tiny_coco(tmp_path / "private" / "bathroom")
    push("me/cups", run, "--to", tmp_path / "card", "--data", other, "--no-picture")
    text = (tmp_path / "card" / "README.md").read_text()
    _, front, _ = text.split("---\n", 2)
    (result,) = yaml.safe_load(front)["model-index"][0]["results"]
    assert result["dataset"] == {"name": "bathroom", "type": "bathroom", "split": "val"}
    assert "on the val split of bathroom: " in text
    assert "Trained on kitchen" in text
    assert "private" not in text


@pytest.mark.parametrize(
    ("source", "published"),
    [
        ("/home/me/secret/x.pt", "x.pt"),
        ("secret/x.pt", "x.pt"),
        ("~/secret/set", "set"),
        ("PekingU/rtdetr_r18vd", "PekingU/rtdetr_r18vd"),
        ("imagenet", "imagenet"),
        ("hf:owner/set@main,boxes=xyxy", "hf:owner/set@main,boxes=xyxy"),
        ("hf:../secret/set", "hf:set"),
        ("hf:./secret/set,boxes=xyxy", "hf:set,boxes=xyxy"),
        ("hf:~/secret/set", "hf:set"),
        ("hf:/secret/set", "hf:set"),
    ],
)
def test_what_is_published_of_a_source(source, published):
    assert without_folders(source) == published


def test_an_older_run_keeps_the_folder_of_its_weights_private(run, tmp_path):
    content = torch.load(run / "best.pt", weights_only=True)
    del content["weights_from"]
    content["config"]["weights"] = "/home/me/secret/x.pt"
    save_checkpoint(tmp_path / "older.pt", content)
    push("me/cups", tmp_path / "older.pt", "--to", tmp_path / "card", "--no-evaluate")
    text = (tmp_path / "card" / "README.md").read_text()
    assert "Weights: a run of redetr from x.pt of unknown origin and licence." in text
    assert "secret" not in text


def test_a_repository_whose_weights_have_another_name(server):
    server.repositories["me/dfine"] = {"best.pt": b"x"}
    with pytest.raises(redetr.InputError) as error:
        redetr.load("me/dfine", device="cpu")
    assert str(error.value) == (
        "me/dfine: has no model.safetensors on the hub, and no config.json of Transformers; "
        "download its weight file and give the path"
    )
