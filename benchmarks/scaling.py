"""What do two processes cost and bring, and what follows for many GPUs? Measured on two cores, one
thread each.

    python benchmarks/scaling.py

Interleaved in one pair of processes: rank 0 steps alone; both step without exchanging gradients;
both step as training does; an all-reduce of as many bytes as the gradient has; the exchange of
counts. Medians over rounds. From these the cost model of docs/scaling.md is checked: it predicts
the full step from the parts. Then it is worked out for 8, 64 and 512 GPUs. Writes
results/DATE-scaling.json.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
import torch.multiprocessing as mp
from record import record

import redetr
from redetr.distributed import Dist, process_group, replicate
from redetr.optim import build_optimizer
from redetr.step import announce, receive, train_step
from redetr.verification import Noise

ROUNDS, STEPS, LOCAL_BATCH = 7, 4, 8
_BYTES = 4  # of a number in fp32
# One-way bandwidth of the narrowest link in the ring, where a rank of each host sends to the next
# host, and latency of one message.
NETWORKS = {
    "NVLink": (300e9, 5e-6),
    "InfiniBand, 400 Gb/s": (50e9, 5e-6),
    "Ethernet, 100 Gb/s": (12.5e9, 20e-6),
    "Ethernet, 10 Gb/s": (1.25e9, 20e-6),
}


def gradient_bytes_of(name: str) -> int:
    """The gradient of a model for 80 classes: all parameters that are trained."""
    with torch.device("meta"):
        model = redetr.build(name, 80)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _BYTES * sum(parameter.numel() for parameter in trained)


MODELS = {name: gradient_bytes_of(name) for name in ("redetr_n", "detr_r50")}


def all_reduce_s(gradient_bytes: float, ranks: int, bandwidth: float, latency_s: float) -> float:
    """Seconds of a ring all-reduce: each rank sends 2 (W - 1) / W of the gradient in 2 (W - 1)
    messages."""
    return 2 * (ranks - 1) / ranks * gradient_bytes / bandwidth + 2 * (ranks - 1) * latency_s


def step_s(compute_s: float, backward_s: float, all_reduce: float) -> float:
    """Seconds of a step: what of the all-reduce the backward pass cannot hide comes on top. The
    last bucket, a twentieth or so of the gradient, can never be hidden.
    """
    return compute_s + max(all_reduce - backward_s, all_reduce / 20)


def planned() -> list[dict[str, Any]]:
    """All-reduce times and the efficiency of a step that computes 250 ms, 150 of them in
    backward."""
    rows = []
    for model, gradient_bytes in MODELS.items():
        for network, (bandwidth, latency_s) in NETWORKS.items():
            for ranks in (8,) if network == "NVLink" else (64, 512):  # hosts of 8
                seconds = all_reduce_s(gradient_bytes, ranks, bandwidth, latency_s)
                rows.append(
                    {
                        "model": model,
                        "network": network,
                        "gpus": ranks,
                        "all_reduce_ms": 1e3 * seconds,
                        "efficiency": 0.25 / step_s(0.25, 0.15, seconds),
                    }
                )
    return rows


def seconds_of(work: Callable[[], Any], repeats: int) -> float:
    torch_dist.barrier()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def measure(dist: Dist) -> dict[str, list[float]]:
    torch.manual_seed(0)
    model = redetr.build("redetr_n", 3, num_queries=25).to(memory_format=torch.channels_last)
    criterion = redetr.SetCriterion.for_model(model)
    optimizer = build_optimizer(model, 1e-4, 1e-4, 1e-2)
    noise = Noise(LOCAL_BATCH)
    samples = []
    for i in range(LOCAL_BATCH):
        image = torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)
        target = noise.target(i) | {"size": (128, 128)}
        target["boxes"] = torch.rand_like(target["boxes"]) * 0.4 + 0.2
        samples.append((image, target))
    # `accumulate=2` avoids a static graph: steps with and without an exchange take turns.
    replica = replicate(model, dist, accumulate=2)
    gradient = torch.zeros(sum(p.numel() for p in model.parameters()))

    def exchange() -> Any:
        return receive(announce([samples], criterion, dist), criterion, dist)

    batches, denominators, _ = exchange()

    def step(synchronise: bool) -> None:
        with nullcontext() if synchronise else replica.no_sync():
            train_step(
                replica, criterion, batches, denominators, optimizer, torch.float32, clip_norm=1.0
            )

    def nothing() -> None:
        time.sleep(0)

    found: dict[str, list[float]] = {
        name: [] for name in ("alone", "no_sync", "step", "all_reduce", "exchange")
    }
    for _ in range(ROUNDS + 1):
        found["alone"].append(
            seconds_of((lambda: step(False)) if dist.rank == 0 else nothing, STEPS)
        )
        found["no_sync"].append(seconds_of(lambda: step(False), STEPS))
        found["step"].append(seconds_of(lambda: step(True), STEPS))
        found["all_reduce"].append(seconds_of(lambda: torch_dist.all_reduce(gradient), 10))
        found["exchange"].append(seconds_of(exchange, 10))
    return {name: times[1:] for name, times in found.items()}  # the first round warms up


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29556",
    }
    with process_group("cpu") as dist:
        found = measure(dist)
        if rank == 0:
            torch.save(found, folder / "found.pt")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(rank_main, (Path(folder),), nprocs=2)
        times = torch.load(Path(folder) / "found.pt")
    median = {name: statistics.median(values) for name, values in times.items()}
    # Nothing is left to hide behind: on a CPU the all-reduce takes its time from the cores that
    # compute.
    predicted = median["no_sync"] + median["all_reduce"]
    record(
        "scaling",
        {
            "n": ROUNDS,
            "local_batch_size": LOCAL_BATCH,
            "median_ms": {name: 1e3 * value for name, value in median.items()},
            "spread_ms": {
                name: [1e3 * min(values), 1e3 * max(values)] for name, values in times.items()
            },
            "throughput_of_2_against_1": 2 * median["alone"] / median["step"],
            "without_communication": 2 * median["alone"] / median["no_sync"],
            "share_of_communication": 1 - median["no_sync"] / median["step"],
            "all_reduce_bytes": MODELS["redetr_n"],
            "all_reduce_GB_per_s": MODELS["redetr_n"] / median["all_reduce"] / 1e9,
            "predicted_over_measured_step": predicted / median["step"],
            "planned": planned(),
        },
    )


if __name__ == "__main__":
    main()
