"""Advice on longer training, based on the length of a run and its AP over time."""

import json
from pathlib import Path
from typing import Any

from redetr.config import TrainConfig, default_steps
from redetr.errors import InputError
from redetr.pages.curves import Metrics

LONGER = "train longer"  # in remedies; replaced if a run is known

_SHORT = 0.5  # of the usual length
_LAST_PART = 0.8  # of a run; AP is compared with what it was there
_RISE = 0.01  # of AP
_FLAT = 0.34  # share of a run without a better AP from which on more steps do not help


def longer_training(folder: Path, metrics: Metrics) -> str:
    """The advice that replaces `LONGER` for the run in `folder`, whose evaluations are in
    `metrics`.

    A run that is much shorter than usual should have the usual length. If the AP was still rising
    at the end, the run should be twice as long. If the AP stopped rising long before the end, a
    longer run does not help, unless it has hardly risen at all.
    """
    evaluations = [line for line in metrics if line.get("AP") is not None]
    if not evaluations:
        return LONGER
    last = evaluations[-1]
    steps = last["step"]
    usual = _usual_length(folder)
    if usual is not None and steps < _SHORT * usual:
        percent = 100 * steps // usual
        return f"{LONGER} (--steps {usual} is the usual length; this run has {percent}% of it)"
    best = max(evaluations, key=lambda line: line["AP"])
    if best["AP"] < _RISE:  # it has not begun to learn
        return LONGER
    if best["step"] <= (1 - _FLAT) * steps:
        return f"more steps alone will not help (no better AP since step {best['step']})"
    before = [line["AP"] for line in evaluations if line["step"] <= _LAST_PART * steps]
    if before and last["AP"] - max(before) >= _RISE:
        return f"{LONGER} (AP was still rising at the end: --steps {2 * steps})"
    return f"{LONGER} (AP hardly rose at the end, so expect little improvement)"


def _usual_length(folder: Path) -> int | None:
    """The default number of steps for the run; None if its folder does not have the settings.

    Data that is not stored (drawn scenes such as digits, and data sets from Python) has no usual
    length, and neither do the faithful variants, which need far more steps.
    """
    try:
        config = TrainConfig.from_dict(json.loads((folder / "config.json").read_text()))
        data: dict[str, Any] = json.loads((folder / "data.json").read_text())
        num_images = data["train"]["count"]
        is_stored = data["train"].get("annotations") != {}  # `inventory` has no hashes of others
    except (OSError, ValueError, KeyError, TypeError, InputError):  # of another version, or gone
        return None
    if config.is_faithful or not is_stored:
        return None
    return default_steps(num_images, config.batch_size)
