"""The command line in forks of one process that has imported everything.

To signals, files and other ranks, a fork is a process like any other, but it starts at once:
importing PyTorch takes seconds of processor time. `command_line.start` is for tests of how the
command line itself starts and ends, and for runs with loader processes, which end slowly in a fork.
"""

import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

_CONTEXT = multiprocessing.get_context("forkserver")


def preload() -> None:
    """Has the server, which each process of the tests starts once, import what trains."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # read when PyTorch is imported
    _CONTEXT.set_forkserver_preload(
        ["redetr.cli", "redetr.training", "redetr.commands.run_pictures"]
    )


def spawn_ranks(function: Any, arguments: tuple[Any, ...], world_size: int) -> None:
    """`mp.spawn` with forks: `function(rank, *arguments)` in each of `world_size` processes."""
    preload()
    mp.start_processes(function, arguments, nprocs=world_size, start_method="forkserver")


def _run(arguments: list[str], environment: dict[str, str], folder: Path, cwd: Path) -> None:
    """`python -m redetr`, with its output in files of `folder`."""
    for stream, name in ((sys.stdout, "output"), (sys.stderr, "errors")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= environment
    os.chdir(cwd)
    sys.argv[1:] = arguments
    runpy.run_module("redetr", run_name="__main__", alter_sys=True)


class Fork:
    """What the tests need of `subprocess.Popen`."""

    def __init__(
        self,
        arguments: list[Any],
        environment: dict[str, Any] | None = None,
        cwd: Path | None = None,
    ) -> None:
        preload()
        folder = Path(tempfile.mkdtemp(prefix="redetr-fork-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._files = [folder / "output", folder / "errors"]
        for file in self._files:
            file.touch()
        words = [str(argument) for argument in arguments]
        variables = {name: str(value) for name, value in (environment or {}).items()}
        task = (words, variables, folder, cwd or Path.cwd())
        self._process = _CONTEXT.Process(target=_run, args=task)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.pid is not None and self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("redetr", timeout or 0)
        output, errors = (file.read_text() for file in self._files)
        return output, errors


def start_ranks(
    world_size: int, arguments: list[Any], cwds: list[Path] | None = None, **environment: Any
) -> list[Fork]:
    """The processes that torchrun would start on one host; `cwds` gives the folder of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        launch |= {"LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        cwd = cwds[rank] if cwds else None
        ranks.append(Fork(arguments, launch | environment, cwd))
    return ranks


def run_ranks(world_size: int, arguments: list[Any]) -> list[tuple[int | None, str, str]]:
    """Exit code, standard output and standard error of each rank."""
    ranks = start_ranks(world_size, arguments)
    try:
        texts = [rank.communicate(timeout=120) for rank in ranks]
        return [(rank.returncode, *text) for rank, text in zip(ranks, texts, strict=True)]
    finally:
        for rank in ranks:
            rank.kill()
