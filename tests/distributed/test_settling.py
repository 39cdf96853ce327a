"""With three ranks, the order in which gradients are added depends on their places in DDP's
buckets: every step of every process must have the same places, or a resumed run differs from one
that never stopped."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import free_ports, spawn_ranks
from torch import Tensor

import redetr
from redetr.config import Settings
from redetr.data import Hints
from redetr.data.sampler import slice_of
from redetr.distributed import Dist, process_group, replicate
from redetr.models.freezing import freeze
from redetr.settling import settle_buckets
from redetr.step import announce, receive, train_step
from tests.distributed.test_exactness import SMALL, build, flat, global_samples

pytestmark = pytest.mark.long

RANKS = 3
STEPS = 3
# What DDP treats in ways of its own: a static graph, accumulation, masks that are computed after
# `forward`, frozen parameters, and a hook.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("detr_r50", {}),
    "accumulated": ("detr_r50", {"accumulate": 2}),
    "denoising and masks": ("dfine_n", {}),
    "panoptic": ("detr_r50_panoptic", {}),
    "frozen": ("rtdetr_r18", {"freeze": ("backbone",)}),
    "compressed": ("redetr_n", {"gradient_compression": "bf16"}),
}
OPTIONS = SMALL | {"backbone": "[32,32,64]"}


def settings(name: str, chosen: dict[str, Any]) -> Settings:
    model, _ = build(name)
    config = redetr.TrainConfig(name, batch_size=12, image_size=64, precision="fp32", **chosen)
    return config.resolved(model, Hints(), 12)


def gradients(dist: Dist, name: str, config: Settings, settling: bool) -> list[Tensor]:
    """The gradient of one batch in each of the first steps of a process, which change nothing."""
    model, criterion = build(name)
    freeze(model, config.freeze)
    replica = replicate(model, dist, config.accumulate, config.gradient_compression)
    if settling:
        settle_buckets(replica, criterion, config, dist)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    micro_batches = []
    for micro in range(config.accumulate):
        part = slice_of(12, micro, config.accumulate, dist.rank, dist.world_size)
        micro_batches.append(global_samples()[part])
    gradients_of_steps = []
    for _ in range(STEPS):
        window = announce(micro_batches, criterion, dist)
        batches, denominators, _ = receive(window, criterion, dist)
        train_step(replica, criterion, batches, denominators, optimizer, torch.float32, 0.0)
        trained = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        gradients_of_steps.append(flat(trained))
    return gradients_of_steps


def measure(dist: Dist) -> dict[str, list[int]]:
    """How many entries of the gradient of each later step differ from those of the first."""
    differing = {}
    for kind, (name, chosen) in {"unsettled": KINDS["static"], **KINDS}.items():
        config = settings(name, chosen)
        first, *later = gradients(dist, name, config, settling=kind != "unsettled")
        differing[kind] = [int((gradient != first).sum()) for gradient in later]
    return differing


def train_and_resume(data: Path, folder: Path, ports: list[int]) -> None:
    """A run of four steps, and the second half of it again, from its checkpoint."""
    whole, resumed = folder / "whole", folder / "resumed"
    config = redetr.TrainConfig(
        model="redetr_n",
        data=str(data),
        output=str(whole),
        steps=4,
        eval_every=2,
        batch_size=6,
        image_size=64,
        model_options=tuple(f"{name}={value}" for name, value in OPTIONS.items()),
        device="cpu",
        precision="fp32",
        num_workers=0,
        pictures=False,
    )

    def keep(line: dict[str, Any]) -> None:
        if "AP" in line and line["step"] == 2:  # the checkpoint has just been saved
            shutil.copytree(whole, resumed)

    os.environ["MASTER_PORT"] = str(ports[0])
    redetr.train(config, callback=keep)
    os.environ["MASTER_PORT"] = str(ports[1])
    redetr.train(replace(config, output=str(resumed), resume=True))


def _rank(rank: int, ports: list[int], folder: Path, data: Path) -> None:
    torch.set_num_threads(1)
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    os.environ |= {name: str(value) for name, value in launch.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    with process_group("cpu", timeout_s=300) as dist:
        torch.save(measure(dist), folder / f"{rank}.pt")
    train_and_resume(data, folder, ports[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shared_coco) -> Path:
    folder = tmp_path_factory.mktemp("settling")
    spawn_ranks(_rank, (free_ports(3), folder, shared_coco), RANKS)
    return folder


def test_each_step_of_a_process_adds_in_the_same_order(folder):
    for rank in range(RANKS):
        differing = torch.load(folder / f"{rank}.pt")
        assert any(differing.pop("unsettled"))  # the comparison can fail
        assert differing == dict.fromkeys(KINDS, [0] * (STEPS - 1))


def test_a_resumed_run_of_three_ranks_is_the_same_bit_for_bit(folder):
    lines = (folder / "resumed/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 2, 4, 4]
    whole = torch.load(folder / "whole/last.pt", weights_only=True)
    resumed = torch.load(folder / "resumed/last.pt", weights_only=True)
    assert whole["step"] == resumed["step"] == 4
    for part in ("model", "ema"):
        for name, tensor in whole[part].items():
            assert torch.equal(tensor, resumed[part][name]), name


def test_random_numbers_buffers_and_gradients_stay_as_they_are(monkeypatch):
    """On one process, which has nothing to settle, as if it were one of three."""
    config = settings("redetr_n", {})
    model, criterion = build("redetr_n")
    model.norm = torch.nn.BatchNorm2d(3)  # one that is trained

    def normalized(module: Any, inputs: tuple) -> tuple:
        images, *others = inputs
        return module.norm(images), *others

    model.register_forward_pre_hook(normalized)
    passes: list[bool] = []
    model.register_forward_hook(lambda *_: passes.append(model.training))
    with process_group("cpu") as alone:
        replica = replicate(model, alone)
        before = torch.get_rng_state()
        buffers = [buffer.clone() for buffer in model.buffers()]
        settle_buckets(replica, criterion, config, replace(alone, world_size=RANKS))
    assert passes  # otherwise the rest would say nothing
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, model.buffers(), buffers))
    assert all(parameter.grad is None for parameter in model.parameters())
