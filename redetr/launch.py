"""What a launcher such as torchrun says about this process, and the share of its host that is this
process's own: processor cores and a GPU."""

import os
from dataclasses import dataclass

import torch

from redetr.errors import InputError
from redetr.threads import cores
from redetr.wording import counted


@dataclass(frozen=True)
class Launch:
    """What the launcher states about this process. Without a launcher: a single process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among the ranks of this host
    local_world_size: int = 1


def read_launch() -> Launch:
    """What torchrun's variables in the environment say. Those that an earlier job left behind do no
    harm.

    A world of one process needs no address, so it starts regardless of other variables. Raises
    InputError if values are not numbers or contradict each other, or if the processes of a larger
    world have no address at which to meet.
    """
    world_size = _number_in_environment("WORLD_SIZE", default=1, least=1)
    if world_size == 1:
        return Launch()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"the environment sets WORLD_SIZE={world_size}, but not {', '.join(missing)}: start "
            "with torchrun, or unset WORLD_SIZE to run one process"
        )
    _number_in_environment("MASTER_PORT", default=0, least=1)  # PyTorch would raise a traceback
    rank = _number_in_environment("RANK", default=0, least=0)
    if rank >= world_size:
        raise InputError(
            f"the environment sets RANK={rank}, but WORLD_SIZE={world_size}: start with torchrun, "
            "or unset both to run one process"
        )
    local_rank = _number_in_environment("LOCAL_RANK", default=0, least=0)
    local_world_size = _number_in_environment("LOCAL_WORLD_SIZE", default=1, least=1)
    return Launch(rank, world_size, local_rank, local_world_size)


def _number_in_environment(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise InputError(
            f"the environment sets {name}={text}, which is not an integer of at least {least}: "
            f"start with torchrun, or unset {name}"
        )
    return int(text)


def rank_cores() -> int:
    """How many processor cores this process may use: its share among the ranks of its host, at
    least one."""
    return max(1, cores() // read_launch().local_world_size)


def restart_notes() -> list[str]:
    """Warnings for the user about the way torchrun restarts ranks."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        return [
            "warning: restarted ranks may get the addresses of dead ones: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before you start torchrun"
        ]
    return []


def pick_device(device: str | torch.device) -> torch.device:
    """The device of this process, which becomes PyTorch's current one.

    "auto" is CUDA where there is any. "cuda" is the GPU with the number of this rank on its host,
    the only one that this process sees, or in a single process PyTorch's current one; "cuda:1" is
    for a single process. Raises InputError for a device that is not there.
    """
    device = str(device)  # also of a `torch.device`
    launch = read_launch()
    kind, _, number = device.partition(":")
    is_numbered = number.isascii() and number.isdigit()
    if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and is_numbered):
        raise InputError(f"unknown device {device!r}: choose auto, cpu, cuda or cuda:NUMBER")
    has_cuda = torch.cuda.is_available()
    if kind == "cuda" and not has_cuda:
        raise InputError(f"--device {device}: no CUDA device is visible; use --device cpu")
    if device == "cpu" or not has_cuda:
        return torch.device("cpu")
    if is_numbered and launch.world_size > 1:
        text = f"--device {device}: with several processes, each needs its own GPU"
        raise InputError(text, remedy="use --device cuda")
    index = int(number) if is_numbered else _gpu_of(launch)
    count = torch.cuda.device_count()
    if index >= count and is_numbered:
        raise InputError(f"--device {device}: there are {counted(count, 'GPU')}, numbered from 0")
    if index >= count:
        processes = counted(count, "process", "processes")
        raise InputError(
            f"process {index} has no GPU of its own: start at most {processes} per host"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _gpu_of(launch: Launch) -> int:
    """The number of the GPU of this process, which need not exist."""
    if launch.world_size == 1:
        return torch.cuda.current_device()
    if torch.cuda.device_count() == 1:  # as where Slurm shows each process its own one
        return 0
    return launch.local_rank
