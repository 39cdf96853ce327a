"""What `distributed.py` refuses, warns of and switches on."""

import gc
import multiprocessing
import os
import re
import sys
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as torch_dist
from forked import free_ports, spawn_ranks
from torch import nn

import redetr
from redetr import distributed
from redetr.distributed import Dist, check_norms, process_group, replicate
from redetr.ema import ModelEma
from redetr.errors import LostRankError
from redetr.launch import Launch, pick_device, rank_cores, read_launch, restart_notes
from redetr.state import resume_command, start_folder

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer. This is "
    "typically caused by a remote worker hanging."
)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO),
        RuntimeError(
            "[enforce fail at ../third_party/gloo/gloo/transport/tcp/pair.cc:1] x. y vs z"
        ),
        RuntimeError(f"Gloo connectFullMesh failed with {GLOO}"),
        RuntimeError("Application timeout caused pair closure"),
        torch_dist.DistBackendError("NCCL communicator was aborted on rank 0"),
        torch_dist.DistBackendError("store->get('0') got error: failed to recv, got 0 bytes"),
        torch_dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
    ids=str,
)
def test_errors_of_communication_are_a_lost_rank(error):
    lost = pytest.raises(LostRankError, match="rank 0 lost another rank: it died")
    with lost as raised, one_process():
        raise error
    assert raised.value.exit_code == 1


def test_a_lost_rank_is_reported_without_advice_for_developers():
    with pytest.raises(LostRankError) as raised, one_process():
        raise RuntimeError(GLOO)
    assert str(raised.value).endswith(
        "see that rank's output for the cause (Connection closed by peer)"
    )


def test_an_error_of_nccl_that_is_not_about_another_rank_is_reported_with_its_cause():
    message = (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, unhandled system "
        "error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\n"
        "ncclSystemError: System call or external library call failed.\n"
        "Last error:\nBootstrap : no socket interface found"
    )
    with pytest.raises(redetr.InputError) as raised, one_process():
        raise torch_dist.DistBackendError(message)
    said = str(raised.value)
    assert said.startswith("NCCL failed: ")
    assert "Last error: Bootstrap : no socket interface found; set NCCL_DEBUG=INFO" in said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no tensor may travel over gloo or nccl here: broken pipe"),
        RuntimeError("shapes [2, 3] and [3:4] do not match"),
        ValueError(GLOO),
    ],
    ids=str,
)
def test_other_errors_are_not(error):
    with pytest.raises(type(error)) as raised, one_process():
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    ("world_size", "local_world_size", "command"),
    [
        (2, 2, "torchrun --nproc-per-node 2 -m redetr train runs/a --resume"),
        (4, 2, "redetr train runs/a --resume (started on all hosts as before)"),
        (3, 2, "redetr train runs/a --resume (started on all hosts as before)"),
    ],
)
def test_the_command_that_resumes_does_not_guess_how_hosts_meet(
    world_size, local_world_size, command, monkeypatch
):
    launched(monkeypatch, WORLD_SIZE=world_size, RANK=0, LOCAL_WORLD_SIZE=local_world_size)
    assert resume_command(Path("runs/a")) == command


def test_the_command_that_resumes_names_the_augmentation_before_the_hosts(monkeypatch):
    launched(monkeypatch, WORLD_SIZE=4, RANK=0, LOCAL_WORLD_SIZE=2)
    assert resume_command(Path("runs/a"), "my file.py:FLIP") == (
        "redetr train runs/a --resume --custom-augment 'my file.py:FLIP' (started on all hosts as "
        "before)"
    )


def test_ranks_that_see_different_folders_are_told_their_steps(tmp_path, monkeypatch):
    steps = torch.tensor([[20.0], [0.0]], dtype=torch.float64)
    monkeypatch.setattr(Dist, "gather_rows", lambda self, row: lambda: steps)
    state = SimpleNamespace(step=20, config=SimpleNamespace(resume=False))
    expected = re.escape("run: ranks found checkpoints of different steps there (20, 0): --output")
    with pytest.raises(redetr.InputError, match=expected):
        start_folder(tmp_path / "run", state, {}, Dist(0, 2, CPU))


def test_the_command_that_resumes_is_not_taken_for_a_recipe():
    assert resume_command(Path("redetr_n")) == "redetr train ./redetr_n --resume"
    assert resume_command(Path("mine")) == "redetr train mine --resume"


def one_process():
    return process_group("cpu")


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
    with pytest.raises(redetr.InputError, match="only on GPUs"):
        check_norms(model, Dist(0, 1, CPU), accumulate=1)


def test_synchronised_batch_norm_is_not_compiled_for_several_ranks():
    model = with_norm(nn.SyncBatchNorm(8))
    assert check_norms(model, Dist(0, 1, CUDA), accumulate=1, is_compiled=True) == []
    with pytest.raises(redetr.InputError, match=r"leave out --compile .*needs --no-compile"):
        check_norms(model, Dist(0, 2, CUDA), accumulate=1, is_compiled=True)


class Gpus:
    """As many GPUs as a process is told of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, current: int = 0):
        self.chosen: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
        monkeypatch.setattr(torch.cuda, "set_device", self.chosen.append)


@pytest.mark.parametrize(
    ("device", "count", "launch", "expected"),
    [
        ("auto", 0, {}, "cpu"),
        ("cpu", 2, {}, "cpu"),
        ("auto", 2, {}, "cuda:1"),  # the current one
        ("cuda", 2, {}, "cuda:1"),
        ("cuda:0", 2, {}, "cuda:0"),
        (torch.device("cuda:0"), 2, {}, "cuda:0"),
        ("auto", 8, {"WORLD_SIZE": 8, "RANK": 5, "LOCAL_RANK": 2}, "cuda:2"),
        ("cuda", 1, {"WORLD_SIZE": 8, "RANK": 5, "LOCAL_RANK": 2}, "cuda:0"),  # it sees no other
    ],
)
def test_the_device_of_a_process(device, count, launch, expected, monkeypatch):
    launched(monkeypatch, **launch)
    gpus = Gpus(monkeypatch, count, current=1)
    picked = pick_device(device)
    assert str(picked) == expected
    assert gpus.chosen == ([] if picked.type == "cpu" else [picked.index])


@pytest.mark.parametrize(
    ("device", "count", "launch", "said"),
    [
        ("cuda", 0, {}, "--device cuda: no CUDA device is visible; use --device cpu"),
        ("cuda:1", 0, {}, "--device cuda:1: no CUDA device is visible"),
        ("cuda:2", 2, {}, "--device cuda:2: there are 2 GPUs, numbered from 0"),
        ("cuda:", 2, {}, "unknown device 'cuda:': choose auto, cpu, cuda or cuda:NUMBER"),
        ("tpu:0", 2, {}, "unknown device 'tpu:0'"),
        (0, 2, {}, "unknown device '0'"),
        ("cuda:0", 2, {"WORLD_SIZE": 2, "RANK": 0}, "each needs its own GPU; use --device cuda"),
        (
            "auto",
            2,
            {"WORLD_SIZE": 4, "RANK": 3, "LOCAL_RANK": 3},
            "process 3 has no GPU of its own: start at most 2 processes per host",
        ),
    ],
)
def test_a_device_that_is_not_there_is_refused(device, count, launch, said, monkeypatch):
    launched(monkeypatch, **launch)
    gpus = Gpus(monkeypatch, count)
    with pytest.raises(redetr.InputError, match=re.escape(said)):
        pick_device(device)
    assert gpus.chosen == []


def test_ranks_that_share_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="mine")
    )
    dist = Dist(1, 3, CUDA)
    monkeypatch.setattr(Dist, "gather", lambda self, items: ["other", *items, "third"])
    distributed._require_different_gpus(dist)
    monkeypatch.setattr(Dist, "gather", lambda self, items: ["other", *items, *items])
    with pytest.raises(redetr.InputError, match="ranks 1 and 2 share a GPU; start at most one"):
        distributed._require_different_gpus(dist)


def test_a_group_that_cannot_even_be_aborted_does_not_hold_up_the_error(monkeypatch):
    never = threading.Event()
    is_aborting = threading.Event()

    def abort() -> None:
        is_aborting.set()
        never.wait(60)

    monkeypatch.setattr(distributed, "_ABORT_S", 0.05)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch_dist.distributed_c10d, "_abort_process_group", abort)
    distributed._abort_group(CUDA)
    assert is_aborting.wait(60)
    never.set()


@pytest.mark.parametrize(
    ("world_size", "fails", "expected"),
    [(2, False, "close"), (2, True, "abort"), (1, True, "close")],
)
def test_after_an_error_nccl_does_not_wait_for_other_ranks(
    world_size, fails, expected, monkeypatch
):
    ends = []
    monkeypatch.setattr(distributed, "read_launch", lambda: Launch(0, world_size))
    monkeypatch.setattr(distributed, "pick_device", lambda device: CUDA)
    monkeypatch.setattr(torch_dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch_dist, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(distributed, "_require_different_gpus", lambda dist: None)
    monkeypatch.setattr(distributed, "SetUp", lambda *_: SimpleNamespace(end=ends.append))
    monkeypatch.setattr(distributed, "_abort_group", lambda device: ends.append("abort"))
    monkeypatch.setattr(distributed, "_close_group", lambda: ends.append("close"))
    started: list[dict] = []
    monkeypatch.setattr(
        distributed, "_meet_other_ranks", lambda launch, options: started.append(options)
    )
    with suppress(redetr.InputError), process_group("cuda"):
        if fails:
            raise redetr.InputError("no such folder")
    assert started[0]["backend"] == "cpu:gloo,cuda:nccl"
    assert ends[-1] == expected
    assert ("no such folder" in ends) == (fails and world_size > 1)


def test_gpus_without_nccl_reduce_over_gloo(monkeypatch):
    """Which some builds of PyTorch lack."""
    monkeypatch.setattr(distributed, "pick_device", lambda device: CUDA)
    monkeypatch.setattr(torch_dist, "is_nccl_available", lambda: False)
    with process_group("cuda") as dist:
        assert torch_dist.get_backend() == "gloo"
        assert dist.device == CUDA


def _twice(rank: int, port: int, folder: Path) -> None:
    """Two process groups in one process, as in a script with two runs."""
    torch.set_num_threads(1)
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    launch |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # torchrun holds the store
    os.environ |= {name: str(value) for name, value in launch.items()}
    sums = []
    for number in range(2):
        if rank == 0 and number == 1:
            time.sleep(1)  # the other rank looks for it in the meantime
        with process_group("cpu", timeout_s=30) as dist:
            sums.append(dist.gather_rows([float(rank + number)])().sum().item())
    (folder / f"{rank}.txt").write_text(str(sums))


def test_two_runs_of_one_script(tmp_path):
    (port,) = free_ports(1)
    store = torch_dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    spawn_ranks(_twice, (port, tmp_path), 2)
    del store
    for rank in range(2):
        assert (tmp_path / f"{rank}.txt").read_text() == "[1.0, 3.0]"


def test_models_can_be_built_with_it_and_a_cpu_refuses_to_train_them(shared_coco, tmp_path):
    model = redetr.build("detr_r50", 2, norm="sync_batch")
    assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    config = redetr.TrainConfig(
        model="detr_r50",
        data=str(shared_coco),
        output=str(tmp_path / "run"),
        steps=1,
        batch_size=1,
        device="cpu",
        model_options=("norm=sync_batch",),
    )
    with pytest.raises(redetr.InputError, match="only on GPUs"):
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


def _compressing_rank(rank: int, port: int, folder: Path) -> None:
    """One of two ranks, with a PyTorch that is built without CUDA."""
    torch.version.cuda = None
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in launch.items()}
    with process_group("cpu", timeout_s=300) as dist:
        torch.manual_seed(0)
        model = nn.Linear(50, 40)
        replica = replicate(model, dist, compression="bf16")
        replica(torch.full((1, 50), rank + 0.3)).sum().backward()
    torch.save(model.weight.grad, folder / f"{rank}.pt")


def test_two_ranks_compress_without_cuda(tmp_path):
    """Which DDP refuses a hook of PyTorch's own."""
    (port,) = free_ports(1)
    spawn_ranks(_compressing_rank, (port, tmp_path), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    halves = torch.tensor([0.3, 1.3]).bfloat16() / 2
    assert torch.equal(first, torch.full_like(first, (halves[0] + halves[1]).item()))


def test_a_closed_group_is_freed_only_when_the_next_one_is_closed():
    # Freed at once, it could wait for its own thread for ever (torch 2.11).
    with process_group("cpu"):
        first = weakref.ref(torch_dist.group.WORLD)
    gc.collect()
    assert first() is not None
    with process_group("cpu"):
        pass
    gc.collect()
    assert first() is None


def test_tracebacks_after_a_run_are_as_before_it():
    hook = sys.excepthook
    with process_group("cpu"):
        assert sys.excepthook is not hook  # PyTorch's, which states the rank
    assert sys.excepthook is hook


@pytest.mark.parametrize("function", [redetr.train, redetr.verify])
def test_a_group_of_the_program_is_named_and_left_alone(function, tmp_path):
    """It was destroyed, and the error was about the address."""
    torch_dist.init_process_group("gloo", store=torch_dist.HashStore(), rank=0, world_size=1)
    try:
        config = redetr.TrainConfig(device="cpu", output=str(tmp_path / "run"))
        with pytest.raises(redetr.InputError, match="already has a process group"):
            function(config)
        assert torch_dist.is_initialized()
    finally:
        torch_dist.destroy_process_group()
    assert not (tmp_path / "run").exists()


def close_a_group() -> None:
    with process_group("cpu"):
        pass


def test_a_forked_process_closes_its_own_group():
    close_a_group()
    forked = multiprocessing.get_context("fork").Process(target=close_a_group)
    forked.start()
    forked.join(60)
    is_hanging = forked.is_alive()
    forked.kill()
    assert not is_hanging and forked.exitcode == 0


def test_a_restart_that_may_meet_dead_ranks_is_warned_of(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in restart_notes()[0]
    for name, value in (
        ("TORCHELASTIC_MAX_RESTARTS", "0"),
        ("TORCHELASTIC_USE_AGENT_STORE", "False"),
    ):
        monkeypatch.setenv(name, value)
        assert restart_notes() == []
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")


def test_ranks_of_a_host_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    assert rank_cores() == 12
    launched(monkeypatch, RANK=0, WORLD_SIZE=4, LOCAL_WORLD_SIZE=4)
    assert rank_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert rank_cores() == 2
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert rank_cores() == 1  # more ranks than cores


ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def launched(monkeypatch, **variables) -> None:
    """The environment of a process that torchrun started, or that an earlier job left behind."""
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    for name, value in (ADDRESS | variables).items():
        if value is not None:
            monkeypatch.setenv(name, str(value))


def test_torchrun_says_which_process_this_is(monkeypatch):
    launched(monkeypatch, RANK=5, WORLD_SIZE=8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)
    assert read_launch() == Launch(rank=5, world_size=8, local_rank=1, local_world_size=4)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": 1},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": 1, "RANK": 0},
        {"WORLD_SIZE": 1, "RANK": 3, "LOCAL_RANK": 3},
        {"RANK": 1},
        {"LOCAL_RANK": 2, "LOCAL_WORLD_SIZE": 0},
        {"MASTER_PORT": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "address", [{}, {"MASTER_ADDR": None, "MASTER_PORT": None}], ids=["address", "no-address"]
)
def test_leftovers_of_a_launcher_do_not_stop_a_single_process(variables, address, monkeypatch):
    launched(monkeypatch, **address, **{k: v for k, v in variables.items() if k not in address})
    assert read_launch() == Launch()
    with process_group("cpu") as dist:
        assert (dist.rank, dist.world_size) == (0, 1)
        assert dist.gather_rows([1.0, 2.0])().tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": 2}, "WORLD_SIZE=2, but not RANK:"),
        (
            {"WORLD_SIZE": 2, "MASTER_ADDR": None, "MASTER_PORT": ""},
            "but not RANK, MASTER_ADDR, MASTER_PORT:",
        ),
        ({"WORLD_SIZE": 2, "RANK": 2}, "RANK=2, but WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two, which is not an integer of at least 1"),
        ({"WORLD_SIZE": 0}, "WORLD_SIZE=0, which is not an integer of at least 1"),
        ({"WORLD_SIZE": 2, "RANK": -1}, "RANK=-1, which is not an integer of at least 0"),
        (
            {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_WORLD_SIZE": 0},
            "LOCAL_WORLD_SIZE=0, which is not an integer of at least 1",
        ),
        (
            {"WORLD_SIZE": 2, "RANK": 0, "MASTER_PORT": "http"},
            "MASTER_PORT=http, which is not an integer of at least 1",
        ),
    ],
    ids=str,
)
def test_an_environment_that_cannot_work_is_refused(variables, message, monkeypatch):
    launched(monkeypatch, **variables)
    with pytest.raises(redetr.InputError, match=message):
        read_launch()
    with pytest.raises(redetr.InputError, match="or unset"), process_group("cpu"):
        pass
