"""The command line, and functions, in forks of one process that has imported everything.

To signals, files, loader processes and other ranks, a fork is a process like any other, but it
starts at once: importing PyTorch takes seconds of processor time. `command_line.start` is for tests
of how the command line itself starts.
"""

import atexit
import ctypes
import gc
import itertools
import json
import multiprocessing
import os
import pickle
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = [
    "redetr.cli",
    "redetr.training",
    "redetr.commands.run_pictures",
    "torch.utils.tensorboard",
]
FORK_PYTHON = Path(__file__).with_name("fork_python.py")


def preload() -> None:
    """Has the server, which each process of the tests starts once, import what trains."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # read when PyTorch is imported
    _CONTEXT.set_forkserver_preload(_PRELOADED)


def spawn_ranks(function: Any, arguments: tuple[Any, ...], world_size: int) -> None:
    """`mp.spawn` with forks: `function(rank, *arguments)` in each of `world_size` processes."""
    preload()
    task = (function, arguments)
    mp.start_processes(_rank, task, nprocs=world_size, start_method="forkserver")


def _begin() -> None:
    """Prepares a fork: the threads that the tests compute on, and no search for garbage in what the
    server has imported, a tenth of the time."""
    gc.freeze()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _rank(rank: int, function: Any, arguments: tuple[Any, ...]) -> None:
    _begin()
    function(rank, *arguments)


def forget_redetr() -> None:
    """Leaves imported only what redetr depends on, for tests of its own imports."""
    for name in list(sys.modules):
        if name.partition(".")[0] == "redetr":
            del sys.modules[name]


def _write_to(output: Path, errors: Path) -> None:
    """Appends what this process writes to these files, or pipes."""
    for path, number in ((output, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)


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
    os.environ |= environment
    _begin()
    _write_to(folder / "output", folder / "errors")
    signal.signal(signal.SIGINT, signal.default_int_handler)
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


def _enter_network(of_process: Path) -> None:
    """Enters the network of another process, which may be that of a host of `hosts.py`."""
    namespace = of_process / "ns" / "net"
    if namespace.stat().st_ino == Path("/proc/self/ns/net").stat().st_ino:
        return
    with namespace.open() as file:
        if ctypes.CDLL(None).setns(file.fileno(), 0):
            raise OSError(f"cannot enter {namespace}")


def _as_python(request: dict[str, Any]) -> None:
    """`python` with the arguments, environment, folder, network and output of another process."""
    of_process = Path(f"/proc/{request['pid']}")
    _write_to(of_process / "fd" / "1", of_process / "fd" / "2")
    _enter_network(of_process)
    os.environ.clear()
    os.environ |= request["environment"]
    os.chdir(request["cwd"])
    multiprocessing.set_start_method("fork", force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = [word for word in request["arguments"] if word != "-u"]
    is_module = words[0] == "-m"
    sys.argv = words[is_module:]
    try:
        if is_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _answer(connection: socket.socket) -> None:
    """Starts the fork that a `fork_python.py` asks for; it does not outlive the one that asked."""
    with connection, connection.makefile("r") as file:
        request = json.loads(file.readline())
        process = _CONTEXT.Process(target=_as_python, args=(request,))
        process.start()
        with suppress(BrokenPipeError):  # the one that asked was killed
            connection.sendall(f"{process.pid}\n".encode())
            wait([process.sentinel, connection])
        process.kill()
        process.join()
        with suppress(BrokenPipeError):
            connection.sendall(f"{process.exitcode}\n".encode())


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


@cache
def launcher_environment() -> dict[str, str]:
    """Environment in which `fork_python.py` is given forks, and torchrun takes it for Python."""
    preload()
    folder = tempfile.mkdtemp(prefix="redetr-server-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    python = Path(folder) / "python"
    program, client = shlex.quote(sys.executable), shlex.quote(str(FORK_PYTHON))
    python.write_text(f'#!/bin/sh\nexec {program} -S -E {client} "$@"\n')
    python.chmod(0o755)
    return {"FORK_SERVER": f"{folder}/socket", "PYTHON_EXEC": str(python)}


_NEXT_PORT = itertools.count()


def free_ports(count: int) -> list[int]:
    """Different ports of this machine on which nothing listens.

    None of them is among those that the system gives to sockets that ask for any: another process
    could have it before it is used. Each process of the tests has numbers of its own.
    """
    first = 10_000 + 100 * os.getpid() % 20_000
    ports: list[int] = []
    while len(ports) < count:
        port = first + next(_NEXT_PORT) % 100
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            ports.append(port)
    return ports


def start_ranks(
    world_size: int,
    arguments: list[Any],
    cwds: list[Path] | None = None,
    prepare: Sequence[Callable[[], Any]] = (),
    **environment: Any,
) -> list[Fork]:
    """The processes that torchrun would start on one host; `cwds` gives the folder of each, and
    each calls `prepare` first."""
    (port,) = free_ports(1)
    ranks = []
    for rank in range(world_size):
        launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size}
        launch |= {"LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        cwd = cwds[rank] if cwds else None
        ranks.append(Fork(arguments, launch | environment, cwd, prepare))
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
