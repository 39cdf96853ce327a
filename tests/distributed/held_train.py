"""`redetr`, of which rank 1 stops once after step `$HELD_AT`, until a signal comes: a test knows
where it is. It then creates the file `$HELD`. Slurm starts it in `test_slurm.py`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from redetr.cli import main


def hold(optimizer: Any, *_: Any) -> None:
    step = max(state["step"] for state in optimizer.state.values() if "step" in state)
    held = Path(os.environ["HELD"])
    if step == int(os.environ["HELD_AT"]) and not held.exists():
        held.touch()
        signal.pause()


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        register_optimizer_step_post_hook(hold)
    main(sys.argv[1:])
