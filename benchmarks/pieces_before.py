"""Do evaluation, check, loader and criterion cost more than they did at an earlier commit?

    python benchmarks/pieces_before.py COMMIT

Their benchmarks at COMMIT and in this checkout take turns, each with the package of its commit, but
both with the `interleaved.py` of this one, so that both wait as long between measurements. A cost
is the time of redetr's own side for the same work; of check and loader the processor time. The
ratio is the median over rounds of the ratio within a round: above 1, this checkout is faster.
Writes results/DATE-pieces-before.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from record import record

ROOT = Path(__file__).parent.parent
# The script of each piece, with flags that keep it short.
SCRIPTS = {
    "evaluation": ["evaluation.py", "--images", "1000", "--rounds", "3"],
    "criterion-cpu": ["criterion.py"],
    "loader": ["loader.py"],
    "check": ["check.py"],
}


def costs(piece: str, result: dict[str, Any]) -> dict[str, float]:
    """What each kind of work costs redetr, by the piece's own result: less is better."""
    if piece == "evaluation":
        return {"evaluation": result["evaluation"]["redetr"]["ms"]}
    if piece == "criterion-cpu":
        return {"criterion": result["forward and backward"]["redetr"]["ms"]}
    if piece == "check":
        kinds = ("headers", "headers_and_content", "thorough", "remembered")
        return {f"check, {kind}": result["cpu_us_per_image"][kind] for kind in kinds}
    rates = {
        "loader": result["in process"]["redetr"],
        "loader, whole images": result["in process"]["redetr, whole"],
        "loader, in a loader process": result["in a loader process"]["redetr"],
    }
    return {name: 1000 / rate["images_per_s"] for name, rate in rates.items()}


def run(checkout: Path, piece: str) -> dict[str, float]:
    """Runs the benchmark of a piece in a checkout, and returns its costs."""
    script, *flags = SCRIPTS[piece]
    with tempfile.TemporaryDirectory() as results:
        environment = os.environ | {"PYTHONPATH": str(checkout), "REDETR_RESULTS": results}
        command = [sys.executable, f"benchmarks/{script}", *flags]
        subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
        # Earlier ones write to the folder of results whatever the environment says.
        written = [*Path(results).iterdir(), *(checkout / "benchmarks/results").iterdir()]
        files = [file for file in written if file.name.endswith(f"-{piece}.json")]
        newest = max(files, key=lambda file: file.stat().st_mtime)
        return costs(piece, json.loads(newest.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(before), arguments.commit], check=True)
        try:
            shutil.copy(ROOT / "benchmarks/interleaved.py", before / "benchmarks")
            for _ in range(arguments.rounds):
                for piece in SCRIPTS:
                    then, now = run(before, piece), run(ROOT, piece)
                    for name, cost in now.items():
                        rounds.setdefault(name, []).append((then[name], cost))
        finally:
            subprocess.run([*git, "remove", "--force", str(before)], check=True)
    content: dict[str, Any] = {"setting": vars(arguments)}
    for name, pairs in rounds.items():
        ratios = [then / now for then, now in pairs]
        content[name] = {
            "times faster": round(median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "n": len(ratios),
        }
    record("pieces-before", content)


if __name__ == "__main__":
    main()
