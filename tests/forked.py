"""The command line, and functions, in forks of one process that has imported everything.

To signals, files, loader processes and other ranks, a fork is a process like any other, but it
starts at once: importing PyTorch takes seconds of processor time. `command_line.start` is for tests
of how the command line itself starts.
"""

import atexit
import multiprocessing
import os
import pickle
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["redetr.cli", "redetr.training", "redetr.commands.run_pictures"]


def preload() -> None:
    """Has the server, which each process of the tests starts once, import what trains."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # read when PyTorch is imported
    _CONTEXT.set_forkserver_preload(_PRELOADED)


def spawn_ranks(function: Any, arguments: tuple[Any, ...], world_size: int) -> None:
    """`mp.spawn` with forks: `function(rank, *arguments)` in each of `world_size` processes."""
    preload()
    mp.start_processes(function, arguments, nprocs=world_size, start_method="forkserver")


def forget_redetr() -> None:
    """Leaves imported only what redetr depends on, for tests of its own imports."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "redetr":
            del sys.modules[name]


def _command_line(arguments: list[str]) -> None:
    """`python -m redetr`."""
    sys.argv[1:] = arguments
    runpy.run_module("redetr", run_name="__main__", alter_sys=True)


def _write_result(path: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    path.write_bytes(pickle.dumps(function(*arguments)))


def _run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    environment: dict[str, str],
    folder: Path,
    cwd: Path,
    prepare: Sequence[Callable[[], Any]],
) -> None:
    """Calls `function` as a new process would, with its output in files of `folder`."""
    for stream, name in ((sys.stdout, "output"), (sys.stderr, "errors")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= environment
    os.chdir(cwd)
    tempfile.tempdir = None  # the environment may name another
    # Loader processes are forks of this one, as they are of any other process.
    multiprocessing.set_start_method("fork", force=True)
    for change in prepare:
        change()
    try:
        function(*arguments)
    finally:
        # As an interpreter ends: without it, PyTorch waits for loader processes.
        atexit._run_exitfuncs()


class Fork:
    """What the tests need of `subprocess.Popen`, for `python -m redetr`.

    `prepare` are functions that the new process calls first.
    """

    def __init__(
        self,
        arguments: Sequence[Any],
        environment: dict[str, Any] | None = None,
        cwd: Path | None = None,
        prepare: Sequence[Callable[[], Any]] = (),
    ) -> None:
        words = [str(argument) for argument in arguments]
        self._start(_command_line, (words,), environment, cwd, prepare)

    def _start(
        self,
        function: Callable[..., None],
        arguments: tuple[Any, ...],
        environment: dict[str, Any] | None = None,
        cwd: Path | None = None,
        prepare: Sequence[Callable[[], Any]] = (),
    ) -> None:
        preload()
        self.folder = Path(tempfile.mkdtemp(prefix="redetr-fork-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._output, self._errors = self.folder / "output", self.folder / "errors"
        for file in (self._output, self._errors):
            file.touch()
        variables = {name: str(value) for name, value in (environment or {}).items()}
        task = (function, arguments, variables, self.folder, cwd or Path.cwd(), prepare)
        self._process = _CONTEXT.Process(target=_run, args=task)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @classmethod
    def calling(cls, function: Callable[..., None], *arguments: Any) -> "Fork":
        """A fork that calls a function of a module."""
        fork = cls.__new__(cls)
        fork._start(function, arguments)
        return fork

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def first_line(self, timeout: float = 300) -> str:
        """The first line of standard output; an empty one if the process ends without it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            has_ended = self.poll() is not None
            line, newline, _ = self._output.read_text().partition("\n")
            if newline or has_ended:
                return line
            time.sleep(0.02)
        raise subprocess.TimeoutExpired("redetr", timeout)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired("redetr", timeout or 0)
        return self._output.read_text(), self._errors.read_text()


def run(arguments: Sequence[Any]) -> tuple[int | None, str, str]:
    """Exit code, standard output and standard error of `python -m redetr ...`."""
    process = Fork(arguments)
    texts = process.communicate(timeout=120)
    return process.returncode, *texts


def in_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="redetr-result-") as folder:
        path = Path(folder) / "result"
        process = Fork.calling(_write_result, path, function, arguments)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        return pickle.loads(path.read_bytes())


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
