"""Do evaluation, check, loader and criterion cost more than they did at an earlier commit?

    python benchmarks/pieces_before.py COMMIT

For each piece, a process with the package of COMMIT and one with that of this checkout take turns
with the same work, `pieces.py`, several times within a minute: other load of the machine changes
more slowly than that. Which of them begins alternates between rounds. After some rounds, both
start anew, as where a process gets its memory changes its speed as well. Both keep freed memory, as
the command line does, and compute in one thread; a cost is processor time. The ratio is the median
over rounds of the ratio within a round, and half of the rounds lie in its range: above 1, this
checkout is faster. Writes results/DATE-pieces-before.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from check import write_photographs
from pieces import PIECES
from record import record

ROOT = Path(__file__).parent.parent
_ROUNDS_OF_A_START = 4
# Makes glibc keep freed memory from the start, also at commits that had no `keep_memory`.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


class Side:
    """A process that does the work of a piece, with the package of a checkout."""

    def __init__(self, checkout: Path, piece: str, images: Path):
        path = f"{checkout}{os.pathsep}{checkout / 'benchmarks'}"
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks/pieces.py"), piece, str(images)],
            env=os.environ | KEEP_MEMORY | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.works = self._answer()  # it is ready

    def seconds(self) -> dict[str, float]:
        """Processor seconds of each work, done once."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate()


def ratios(before: Path, piece: str, images: Path, rounds: int) -> dict[str, list[float]]:
    """How many times as fast this checkout does each work, in each round."""
    of_works: dict[str, list[float]] = {}
    for first in range(0, rounds, _ROUNDS_OF_A_START):
        sides = [Side(before, piece, images), Side(ROOT, piece, images)]
        for number in range(first, min(first + _ROUNDS_OF_A_START, rounds)):
            order = [0, 1] if number % 2 else [1, 0]
            seconds = {index: sides[index].seconds() for index in order}
            for work in sides[1].works:
                ratio = seconds[0][work] / seconds[1][work]
                of_works.setdefault(work, []).append(ratio)
        for side in sides:
            side.close()
    return of_works


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    content: dict[str, Any] = {"setting": vars(arguments)}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        images = Path(folder) / "images"
        images.mkdir()
        write_photographs(images, 500)
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(before), arguments.commit], check=True)
        try:
            for piece in PIECES:
                for work, values in ratios(before, piece, images, arguments.rounds).items():
                    quarter, _, three_quarters = quantiles(values, n=4)
                    content[work] = {
                        "times faster": round(median(values), 3),
                        "spread": [round(quarter, 3), round(three_quarters, 3)],
                        "n": len(values),
                    }
                    print(work, content[work], flush=True)
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    record("pieces-before", content)


if __name__ == "__main__":
    main()
