"""`python -m redetr`, and a record of the images that each optimizer step used. torchrun starts it
in `test_hosts.py`.

Each process writes `$TRACE/<pid>.jsonl`: a line per optimizer step, with the step as the optimizer
counted it (its count lies in the checkpoint, beside the weights), and the (epoch, index) pairs of
the images that were loaded for it. `$HOLD`, as in "1:3,2:7", stops a process of a world of 1 after
step 3 and one of a world of 2 after step 7, until a signal comes: a test knows where it is.
"""

import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from redetr.cli import main
from redetr.data.loader import Samples
from redetr.data.sampler import Key, TrainSampler

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class TrainKeys(list[Key]):
    """The keys of a training micro-batch; those of an evaluation are plain lists."""


def trace(file: Path, hold: list[str]) -> None:
    """Wraps the sampler, the loading of images (which runs ahead of the steps) and the end of each
    step."""
    loaded: deque[list[Key]] = deque()
    draw, load = TrainSampler.__iter__, Samples.__getitems__

    def marked(sampler: TrainSampler) -> Iterator[list[Key]]:
        return map(TrainKeys, draw(sampler))

    def recorded(samples: Samples, keys: list[Key]) -> Any:
        if isinstance(keys, TrainKeys):
            loaded.append(list(keys))
        return load(samples, keys)

    def stepped(optimizer: Any, *_: Any) -> None:
        step = int(max(state["step"] for state in optimizer.state.values() if "step" in state))
        line = {
            "at": time.monotonic(),
            "step": step,
            "rank": RANK,
            "world": WORLD,
            "images": loaded.popleft(),
        }
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        if f"{WORLD}:{step}" in hold:
            signal.pause()

    TrainSampler.__iter__, Samples.__getitems__ = marked, recorded  # type: ignore[method-assign,assignment]
    register_optimizer_step_post_hook(stepped)


if __name__ == "__main__":
    trace(Path(os.environ["TRACE"]) / f"{os.getpid()}.jsonl", os.environ.get("HOLD", "").split(","))
    main(sys.argv[1:])
