"""Curves of training runs."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from redetr.errors import InputError
from redetr.files import write_whole
from redetr.pages.drawing import PathLike, class_color
from redetr.pages.fonts import use_fonts
from redetr.pages.images import figure_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Metrics = list[dict[str, Any]]  # the lines of a metrics.jsonl


def plot_curves(
    runs: Sequence[PathLike | Metrics], path: PathLike, names: Sequence[str] = ()
) -> None:
    """Writes a PNG: the loss over steps, AP (solid) and AP50 (dashed) over minutes, one color for
    each run.

    A run is a run folder, a `metrics.jsonl`, or its lines as dicts. `names` default to the folders'
    names. Raises InputError for a file that is missing or not JSON lines, ValueError for no runs or
    too few names.
    """
    from matplotlib.figure import Figure

    if not runs:
        raise ValueError("plot_curves needs at least one run")
    if not names:
        names = [_run_name(run, number) for number, run in enumerate(runs, 1)]
    several = len(runs) > 1
    figure = Figure(figsize=(12, 4.5), dpi=110, layout="constrained")
    loss_axes, ap_axes = figure.subplots(1, 2)
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        metrics = run if isinstance(run, list) else read_metrics(run)
        steps = [line for line in metrics if line.get("loss") is not None]
        evaluations = [line for line in metrics if line.get("AP") is not None]
        red, green, blue = class_color(index if several else 1)
        color = f"#{red:02x}{green:02x}{blue:02x}"
        label = figure_text(name)
        _plot_loss(loss_axes, steps, color, label)
        _plot_ap(ap_axes, evaluations, color, label if several else "")
    _label_axes(loss_axes, "Training loss", "step", legend=several)
    _label_axes(ap_axes, "Average precision (validation), %", "minutes", legend=True)
    use_fonts(figure)
    write_whole(Path(path), figure.savefig)


def read_metrics(run: PathLike) -> Metrics:
    """The lines of a run folder's `metrics.jsonl` (or of the file itself) as dicts.

    An unfinished last line is left out: the run is writing it, or was killed while it did. Raises
    InputError for a file that is missing or not JSON lines.
    """
    path = Path(run)
    if path.is_dir():
        path = path / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        entries = [json.loads(line) for line in lines if line.strip()]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise InputError(f"{path} is not JSON Lines: {error}") from error
    if not all(isinstance(entry, dict) and "step" in entry for entry in entries):
        raise InputError("a line has no step, so this is not the log of a run", where=path)
    return entries


def _run_name(run: PathLike | Metrics, number: int) -> str:
    if isinstance(run, list):
        return f"run {number}"
    path = Path(run).absolute()
    return path.parent.name if path.suffix == ".jsonl" else path.name


def _plot_loss(axes: "Axes", lines: Metrics, color: str, name: str) -> None:
    """Draws the loss of each logged step, faint, and its moving mean over a twentieth of them."""
    steps = [line["step"] for line in lines]
    losses = np.array([line["loss"] for line in lines])
    reach = len(lines) // 40  # to either side
    means = []
    for index in range(len(lines)):
        start = max(0, index - reach)
        means.append(losses[start : index + reach + 1].mean())
    axes.plot(steps, losses, color=color, alpha=0.3, linewidth=0.8)
    axes.plot(steps, means, color=color, linewidth=2, label=name)


def _plot_ap(axes: "Axes", lines: Metrics, color: str, name: str) -> None:
    """Draws AP solid and AP50 dashed, in percent, with a mark for each evaluation."""
    minutes = [line["time_s"] / 60 for line in lines]
    for key, style in (("AP", "-"), ("AP50", "--")):
        percent = [100 * line.get(key, math.nan) for line in lines]
        label = f"{name} {key}".strip()
        axes.plot(
            minutes,
            percent,
            linestyle=style,
            color=color,
            marker="o",
            markersize=3,
            label=label,
        )


def _label_axes(axes: "Axes", title: str, x_label: str, legend: bool) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set(xlabel=x_label, xlim=(0, None), ylim=(0, None))
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False)
