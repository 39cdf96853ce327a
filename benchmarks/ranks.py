"""Runs a function in several processes that form a process group."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch


def in_ranks(
    ranks: int, function: Callable[..., dict[str, Any]], *arguments: Any
) -> list[dict[str, Any]]:
    """The results of `function(rank, ranks, *arguments)` in `ranks` new processes with one thread
    each, which form a process group."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = []
    for rank in range(ranks):
        work = (function, rank, ranks, port, queue, arguments)
        process = context.Process(target=_work, args=work)
        process.start()
        processes.append(process)
    results = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return results


def _work(
    function: Callable[..., dict[str, Any]],
    rank: int,
    ranks: int,
    port: int,
    queue: Any,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    queue.put(function(rank, ranks, *arguments))
