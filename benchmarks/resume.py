"""Does a run that was stopped by a signal and resumed end like one that was left alone, on this
device?

    python benchmarks/resume.py --device cuda

Each case trains three times: uninterrupted, uninterrupted again, and stopped half-way and resumed.
Each part is a process. If all kernels are deterministic, all three runs end with the same bits.
Some CUDA kernels add with atomics, among them the gradient of `grid_sample` in the fast variant.
Then the two uninterrupted runs differ as well, and the resumed run may differ from them by no more
than that. The "repeatable" cases ask PyTorch for deterministic kernels, and record where it has
none. Writes results/DATE-resume-DEVICE.json.
"""

import argparse
import json
import os
import signal
import tempfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from record import record

import redetr
from redetr.errors import StoppedError
from redetr.recipes import get_recipe
from redetr.state import State

# Recipe, optimizer, and whether deterministic kernels are requested.
CASES = (
    ("redetr_n", "muon", False),
    ("redetr_n", "adamw", False),
    ("detr_tiny", "muon", True),
    ("detr_tiny", "adamw", True),
    ("redetr_n", "muon", True),
)
_TIMES = ("time_s", "images_per_s", "data_wait")


def stop_at_first_save() -> None:
    """From now on, this process gets a signal to stop, as from Ctrl-C, once its state is saved."""
    save = State.save

    def saving(state: State, folder: Path) -> None:
        save(state, folder)
        signal.raise_signal(signal.SIGTERM)

    State.save = saving  # type: ignore[method-assign]


def repeat_kernels() -> None:
    """Requests deterministic kernels; PyTorch warns where there are none."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)


def train(
    case: tuple[str, str, bool], arguments: argparse.Namespace, folder: Path, part: str
) -> list[str]:
    """Trains a part of a run ("whole", "first" or "rest"); returns the warnings about kernels."""
    recipe, optimizer, repeatable = case
    if repeatable:
        repeat_kernels()
    if part == "first":
        stop_at_first_save()
    config = replace(
        get_recipe(recipe),
        optimizer=optimizer,
        data="digits",
        steps=arguments.steps,
        epochs=0.0,
        batch_size=8,
        image_size=arguments.image_size,
        precision=arguments.precision,
        device=arguments.device,
        num_workers=1,
        log_every=1,
        save_every=arguments.steps // 2,
        eval_every=arguments.steps,
        resume=part == "rest",
        output=str(folder),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            redetr.train(config)
        except StoppedError:
            if part != "first":
                raise
    texts = {str(warning.message).split(". ")[0] for warning in caught}
    return sorted(text for text in texts if "determinis" in text)


def losses(folder: Path) -> list[dict[str, float]]:
    """The logged losses, without times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in lines]


def difference(first: Path, second: Path) -> dict[str, Any]:
    """Whether two runs ended with the same bits, the largest difference between weights, and the
    first step whose numbers differ."""
    saved, other = (torch.load(folder / "last.pt", weights_only=True) for folder in (first, second))
    weights, other_weights = (
        torch.cat([w.double().flatten() for w in s["model"].values()]) for s in (saved, other)
    )
    steps = [
        line["step"]
        for line, other_line in zip(losses(first), losses(second), strict=True)
        if line != other_line
    ]
    return {
        "same bits": all(same(saved[part], other[part]) for part in ("model", "ema", "optimizer")),
        "weights differ by": ((weights - other_weights).norm() / weights.norm()).item(),
        "first step that differs": min(steps, default=None),
    }


def same(saved: Any, other: Any) -> bool:
    try:
        torch.testing.assert_close(saved, other, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many")
    parser.add_argument("--processes", type=int, default=5, help="runs side by side")
    arguments = parser.parse_args()
    cases = CASES[: arguments.cases]
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {case: Path(temporary) / f"{case[0]}-{case[1]}-{case[2]}" for case in cases}
        context = get_context("spawn")
        with ProcessPoolExecutor(
            arguments.processes, mp_context=context, max_tasks_per_child=1
        ) as processes:

            def start(case: tuple[str, str, bool], run: str, part: str) -> Any:
                return processes.submit(train, case, arguments, folders[case] / run, part)

            first = {case: start(case, "resumed", "first") for case in cases}
            straight = {case: start(case, "straight", "whole") for case in cases}
            again = {case: start(case, "again", "whole") for case in cases}
            for case in cases:
                first[case].result()
            rest = {case: start(case, "resumed", "rest") for case in cases}
            for case, folder in folders.items():
                without = straight[case].result()
                again[case].result()
                rest[case].result()
                recipe, optimizer, repeatable = case
                name = f"{recipe}, {optimizer}{', repeatable' if repeatable else ''}"
                results[name] = {
                    "straight against straight": difference(folder / "straight", folder / "again"),
                    "resumed against straight": difference(folder / "straight", folder / "resumed"),
                    "kernels without a repeatable form": without,
                }
                print(name, json.dumps(results[name]), flush=True)
    record(f"resume-{arguments.device}", {"setting": vars(arguments), "cases": results})


if __name__ == "__main__":
    main()
