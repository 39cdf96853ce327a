"""Do evaluation, check, loader and criterion cost more than they did at an earlier commit?

    python benchmarks/pieces_before.py COMMIT

Their benchmarks at COMMIT and in this checkout take turns, each with the package of its commit, but
both with the `interleaved.py` of this one, so that both wait as long between measurements. Which of
them begins alternates between rounds, and both keep freed memory, as the command line does. A cost
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
# Makes glibc keep freed memory from the start, also at commits that had no `keep_memory`.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def costs(piece: str, result: dict[str, Any]) -> dict[str, float]:
    """What each kind of work costs redetr, by the piece's own result: less is better."""
    if piece == "evaluation":
        sides = result["evaluation"]
        whole = sides["redetr"]
        # Earlier commits do not look for a threshold.
        same_work = sides.get("redetr, without the threshold", whole)
        return {"evaluation": same_work["ms"], "evaluation, with the threshold": whole["ms"]}
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
        variables = {"PYTHONPATH": str(checkout), "REDETR_RESULTS": results, **KEEP_MEMORY}
        environment = os.environ | variables
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
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    rounds: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(before), arguments.commit], check=True)
        try:
            shutil.copy(ROOT / "benchmarks/interleaved.py", before / "benchmarks")
            for number in range(arguments.rounds):
                for piece in SCRIPTS:
                    order = [before, ROOT] if number % 2 else [ROOT, before]
                    costs_of = {checkout: run(checkout, piece) for checkout in order}
                    for name, now in costs_of[ROOT].items():
                        rounds.setdefault(name, []).append((costs_of[before][name], now))
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
