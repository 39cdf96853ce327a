"""`weights="imagenet"`: torchvision's file from the cache, or from a server; a clear line when there is neither."""

import hashlib
import http.server
import threading

import pytest
import torch
import torchvision

from redetr.errors import InputError
from redetr.models import backbone
from redetr.models.backbone import Backbone


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of torch's hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache/hub/checkpoints").mkdir(parents=True)
    return tmp_path / "cache/hub/checkpoints"


@pytest.fixture
def weights():
    """A state dict as torchvision publishes it: with BatchNorm's counters and the classifier."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return model.state_dict()


@pytest.fixture
def server(tmp_path, weights):
    """A local server with the weights in a file named by its hash, as on the original server; yields its URL."""
    folder = tmp_path / "served"
    folder.mkdir()
    torch.save(weights, folder / "file")
    digest = hashlib.sha256((folder / "file").read_bytes()).hexdigest()[:8]
    name = f"resnet18-{digest}.pth"
    (folder / "file").rename(folder / name)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/{name}"
        running.shutdown()


def point_at(url, monkeypatch):
    entry = type("Entry", (), {"url": url})
    monkeypatch.setattr(backbone.torchvision.models, "get_model_weights", lambda name: {"IMAGENET1K_V1": entry})


def same(body, weights):
    return all(torch.equal(tensor, weights[name]) for name, tensor in body.state_dict().items())


def test_file_in_the_cache(cache, weights):
    torch.save(weights, cache / "resnet18-f37072fd.pth")
    assert same(Backbone("resnet18", "imagenet").body, weights)


def test_download(cache, server, weights, monkeypatch):
    point_at(server, monkeypatch)
    assert same(Backbone("resnet18", "imagenet").body, weights)
    assert len(list(cache.iterdir())) == 1


def test_wrong_hash_is_refused(cache, server, weights, tmp_path, monkeypatch):
    (served,) = (tmp_path / "served").iterdir()
    served.rename(served.with_name("resnet18-00000000.pth"))
    point_at(server.rpartition("/")[0] + "/resnet18-00000000.pth", monkeypatch)
    with pytest.raises(InputError, match="hash"):
        Backbone("resnet18", "imagenet")
    assert not list(cache.glob("*.pth"))


def test_offline_says_where_the_file_belongs(cache, monkeypatch):
    point_at("http://127.0.0.1:9/resnet18-f37072fd.pth", monkeypatch)  # nobody listens there
    with pytest.raises(InputError, match=f"put that file at {cache}/resnet18-f37072fd.pth"):
        Backbone("resnet18", "imagenet")


def test_group_norm_takes_no_imagenet_weights():
    with pytest.raises(InputError, match="frozen_batch"):
        Backbone("resnet18", "imagenet", norm="group")
