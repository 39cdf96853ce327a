"""What `distributed.py` refuses, warns of and switches on."""

import os

import pytest
import torch
from torch import nn

import redetr
from redetr.distributed import Dist, check_norms, process_group, rank_cores, replicate, restart_notes
from redetr.ema import ModelEma

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def with_norm(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), norm)


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 2)])
def test_batch_norm_of_parts_of_the_batch_is_refused(world_size, accumulate):
    with pytest.raises(redetr.InputError, match=r"trains BatchNorm.*norm=group"):
        check_norms(with_norm(nn.BatchNorm2d(8)), Dist(0, world_size, CUDA), accumulate)


def test_batch_norm_of_the_whole_batch_is_allowed():
    assert check_norms(with_norm(nn.BatchNorm2d(8)), Dist(0, 1, CPU), accumulate=1) == []
    assert check_norms(with_norm(nn.GroupNorm(2, 8)), Dist(0, 8, CPU), accumulate=4) == []


def test_synchronised_batch_norm_is_for_gpus_and_not_exact_over_accumulation():
    model = with_norm(nn.SyncBatchNorm(8))
    assert check_norms(model, Dist(0, 8, CUDA), accumulate=1) == []
    assert "not over accumulated" in check_norms(model, Dist(0, 8, CUDA), accumulate=2)[0]
    with pytest.raises(redetr.InputError, match="GPUs only"):
        check_norms(model, Dist(0, 1, CPU), accumulate=1)


def test_models_can_be_built_with_it_and_a_cpu_refuses_to_train_them(shared_coco, tmp_path):
    model = redetr.build("detr_r50", 2, norm="sync_batch")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    config = redetr.TrainConfig(model="detr_r50", data=str(shared_coco), output=str(tmp_path / "run"), steps=1,
                                batch_size=1, device="cpu", model_options=("norm=sync_batch",))  # fmt: skip
    with pytest.raises(redetr.InputError, match="GPUs only"):
        redetr.train(config)
    assert not (tmp_path / "run").exists()


def test_the_average_of_the_weights_takes_over_statistics():
    model = with_norm(nn.BatchNorm2d(8))
    ema = ModelEma(model, 0.9)
    model.train()(torch.randn(4, 3, 5, 5) + 3)
    ema.update(0)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert ema.model[1].num_batches_tracked == 1


def test_compressed_gradients_are_rounded_to_bf16():
    def gradient(compression) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(50, 40)
        replica = replicate(model, dist, compression=compression)
        replica(torch.randn(7, 50)).square().mean().backward()
        return model.weight.grad.clone()

    with process_group("cpu") as dist:
        exact, rounded = gradient("none"), gradient("bf16")
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)


def test_a_restart_that_may_meet_dead_ranks_is_warned_of(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in restart_notes()[0]
    for name, value in (("TORCHELASTIC_MAX_RESTARTS", "0"), ("TORCHELASTIC_USE_AGENT_STORE", "False")):
        monkeypatch.setenv(name, value)
        assert restart_notes() == []
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")


def test_ranks_of_a_host_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert rank_cores() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert rank_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert rank_cores() == 2
