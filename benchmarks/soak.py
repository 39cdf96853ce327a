"""Does a run that is stopped and killed again and again for an hour stay the same run?

    python benchmarks/soak.py                 # an hour
    python benchmarks/soak.py --minutes 1 --every-s 20

Two runs train side by side, each on two ranks with loader processes, and evaluate once a minute.
One is undisturbed. In the other, every few minutes a signal is sent, or a rank or a loader is
killed, and the run is resumed. The curves and the weights of both are compared bit for bit. Also
records the memory of a rank during the undisturbed run, and files that are left over in the run
folder and in /dev/shm. Writes results/DATE-soak.json.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kill import (
    SMALL,
    Rank,
    curve,
    finish,
    last_line,
    left_over,
    same_state,
    start_ranks,
    wait_for,
)
from record import record

DISTURBANCES = ("SIGTERM", "SIGINT", "rank killed", "loader killed")
_SAMPLE_S = 1.0
_RATE_STEPS = 60  # over which the rate of a run is measured


def arguments_of(folder: Path, steps: int, eval_every: int) -> list[str]:
    text = f"""
        train redetr_n --output {folder} --data digits --steps {steps} --eval-every {eval_every}
        --save-every {max(1, eval_every // 6)} --batch-size 8 --log-every 1 --device cpu
        --precision fp32 --num-workers 1 --image-size 64 --num-queries 10 --timeout-s 60
        --mosaic-until 0.5 --resume --model-options {SMALL}
    """
    return text.split()


def steps_per_s(folder: Path) -> float:
    """The rate of a run without its start."""
    ranks = start_ranks(arguments_of(folder, _RATE_STEPS, _RATE_STEPS))
    wait_for(folder, ranks, 10)
    started = time.monotonic()
    wait_for(folder, ranks, _RATE_STEPS)
    rate = (_RATE_STEPS - 10) / (time.monotonic() - started)
    finish(ranks)
    return rate


def memory_mb(process: Rank) -> float:
    """The memory of a process; 0 after it has ended."""
    status = Path(f"/proc/{process.pid}/status")
    try:
        lines = status.read_text().splitlines()
    except FileNotFoundError:
        return 0.0
    for line in lines:
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def undisturbed(arguments: list[str]) -> list[float]:
    """Trains; returns the memory of rank 0 over time."""
    ranks = start_ranks(arguments)
    samples = []
    while ranks[0].poll() is None:
        samples.append(memory_mb(ranks[0]))
        time.sleep(_SAMPLE_S)
    finish(ranks)
    return [sample for sample in samples if sample]


def loaders_of(process: Rank) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    loaders = []
    for child in children:
        if "redetr" in Path(f"/proc/{child}/cmdline").read_text():
            loaders.append(int(child))
    return loaders


def disturb(ranks: list[Rank], what: str, chance: random.Random) -> None:
    """Applies `what` to one rank, or to all ranks if a terminal or a batch system would do so."""
    victim = chance.choice(ranks)
    if what == "rank killed":
        victim.kill()
    elif what == "loader killed":
        for pid in loaders_of(victim)[:1]:
            os.kill(pid, signal.SIGKILL)
    else:
        for process in ranks:
            process.send_signal(signal.Signals[what])


def disturbed(arguments: list[str], every_s: float, chance: random.Random) -> list[dict[str, Any]]:
    """Trains until the run ends by itself; returns the disturbances, and how the run ended after
    each."""
    events = []
    folder = Path(arguments[arguments.index("--output") + 1])
    while True:
        ranks = start_ranks(arguments)
        what = DISTURBANCES[len(events) % len(DISTURBANCES)]
        if len(events) % 5:  # one in five also comes during set-up
            wait_for(folder, ranks, last_line(folder)["step"] + 1)
        deadline = time.monotonic() + every_s * chance.uniform(0.5, 1.5)
        while time.monotonic() < deadline and ranks[0].poll() is None:
            time.sleep(0.1)
        if ranks[0].poll() is not None:
            finish(ranks)
            return events
        disturb(ranks, what, chance)
        started = time.monotonic()
        errors = [process.end() for process in ranks]
        events.append(
            {
                "what": what,
                "step": last_line(folder)["step"],
                "exit codes": [process.returncode for process in ranks],
                "ended after s": round(time.monotonic() - started, 1),
                "tracebacks": sum(text.count("Traceback") for text in errors),
            }
        )
        print(events[-1], flush=True)


def shared_memory_of_the_dead(before: set[str]) -> list[str]:
    """New files in /dev/shm whose process, which their names state, has ended."""
    left = []
    for name in sorted(set(os.listdir("/dev/shm")) - before):
        _, _, rest = name.partition("_")
        pid, _, _ = rest.partition("_")
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            left.append(name)
    return left


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="of each run")
    parser.add_argument("--every-s", type=float, default=180, help="between disturbances")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    chance = random.Random(settings.seed)
    shared_before = set(os.listdir("/dev/shm"))
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        rate_folders = [Path(temporary) / "rate-0", Path(temporary) / "rate-1"]
        rate = min(pool.map(steps_per_s, rate_folders))
        steps = max(_RATE_STEPS, round(60 * settings.minutes * rate))
        eval_every = min(steps, max(10, round(60 * rate)))
        alone = Path(temporary) / "alone"
        folder = Path(temporary) / "disturbed"
        left_alone = pool.submit(undisturbed, arguments_of(alone, steps, eval_every))
        events = disturbed(arguments_of(folder, steps, eval_every), settings.every_s, chance)
        memory = left_alone.result()
        result = {
            "minutes": settings.minutes,
            "steps": steps,
            "evaluated every": eval_every,
            "events": events,
            "weights equal": same_state(alone, folder),
            "curve equal": curve(alone) == curve(folder),
            "left in the folder": left_over(folder),
            "left in /dev/shm": shared_memory_of_the_dead(shared_before),
            "memory of rank 0, MB": {
                "after a third": round(memory[len(memory) // 3]),
                "at the end": round(memory[-1]),
                "at most": round(max(memory)),
            },
        }
    record("soak", result)


if __name__ == "__main__":
    main()
