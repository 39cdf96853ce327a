"""What does another busy process cost a training run on the same cores?

    python benchmarks/busy.py

Training steps of `redetr_n` on 16 images of 128x128, on one thread and on all threads. They are
measured on the machine as it is, whose load is recorded, and with one more process that computes
all the time. Threads wait for each other at the end of each operation. By default, libgomp lets
them spin for a long time, which takes the core away from the very thread for which the others wait;
`GOMP_SPINCOUNT` sets the number of spins. "auto" is what `redetr train` does next to another
program, whose load is assumed here: it spins 1000 times, and lets a trial choose the number of
threads. Each side is a process; sides take turns; results are medians. Writes
results/DATE-busy.json.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import stand_ins  # noqa: F401 (before anything of redetr)
import torch
from record import record

import redetr
from redetr import threads
from redetr.memory import keep_memory

IMAGES, SIDE_PX, OBJECTS = 16, 128, 5
WAITS = {"libgomp's default": None, "GOMP_SPINCOUNT 0": "0"}
for count in (1000, 10_000):
    WAITS[f"GOMP_SPINCOUNT {count}"] = str(count)


def images_per_second(seconds: float, auto: bool) -> float:
    """The rate of training steps in this process, after two warm-up steps. With `auto`, a trial
    chooses the number of threads."""
    keep_memory()
    torch.manual_seed(0)
    model = redetr.build("redetr_n", 10).to(memory_format=torch.channels_last).train()
    if auto:
        threads.busy_cores = lambda: 1.0  # what a minute beside another program shows
        choice = threads.pick_threads(model, SIDE_PX, gradient=True, batch_size=IMAGES)
        print(choice, file=sys.stderr)
    criterion = redetr.SetCriterion.for_model(model)
    shape = (IMAGES, 3, SIDE_PX, SIDE_PX)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    targets = []
    for _ in range(IMAGES):
        boxes = torch.rand(OBJECTS, 4) * 0.3 + 0.2
        targets.append({"labels": torch.randint(10, (OBJECTS,)), "boxes": boxes})
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        started = time.perf_counter()
        model.zero_grad()
        criterion(model(images), targets)["loss"].backward()
        times.append(time.perf_counter() - started)
    return IMAGES / median(times[2:])


@contextmanager
def neighbour() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def side(count: int | None, spin_count: str | None, seconds: float) -> float:
    """Images per second of a process on `count` threads, or on as many as a trial chooses."""
    environment = dict(os.environ)
    environment.pop("GOMP_SPINCOUNT", None)
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, __file__, "--seconds", str(seconds), "--here"]
    if count is None:
        command.append("--auto")
    else:
        environment["OMP_NUM_THREADS"] = str(count)
    if spin_count is not None:
        environment["GOMP_SPINCOUNT"] = spin_count
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def table(rounds: int, seconds: float) -> dict[str, Any]:
    """Images per second by the state of the machine, the threads and how these wait."""
    cores = threads.cores()
    rows: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for state, beside in (("as it is", nullcontext), ("beside one more", neighbour)):
            with beside():
                measured = rows.setdefault(state, {})
                measured.setdefault("1 thread", []).append(side(1, None, seconds))
                for name, spin_count in WAITS.items():
                    speed = side(cores, spin_count, seconds)
                    measured.setdefault(f"{cores} threads, {name}", []).append(speed)
                measured.setdefault("auto", []).append(side(None, threads.SPIN_COUNT, seconds))
    return {
        state: {name: {"images/s": round(median(v), 1), "n": len(v)} for name, v in values.items()}
        for state, values in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="of each side in each round")
    parser.add_argument("--here", action="store_true", help="measure one side in this process")
    parser.add_argument("--auto", action="store_true", help="on as many threads as a trial chooses")
    arguments = parser.parse_args()
    if arguments.here:
        print(images_per_second(arguments.seconds, arguments.auto))
        return
    setting = {"rounds": arguments.rounds, "seconds": arguments.seconds}
    content = {"setting": setting, "load at the start": os.getloadavg()}
    record("busy", content | table(arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
