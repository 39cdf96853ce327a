"""What a run says while it goes: a progress bar, metrics.jsonl, TensorBoard events."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Monitor:
    """Records lines of numbers in `folder`; shows them on `console` if there is one.

    `close` must be called at the end. Steps after `step` are cut off from a metrics.jsonl that is there: a resumed
    run does them again.
    """

    def __init__(self, folder: Path, steps: int, step: int = 0, console: Console | None = None):
        self._path = folder / "metrics.jsonl"
        _keep_until(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = _tensorboard(folder)
        self._console = console
        self._progress = Progress(
            TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False), TextColumn("{task.fields[numbers]}"),
            console=console, disable=console is None, refresh_per_second=4,
        )  # fmt: skip
        self._task = self._progress.add_task("train", total=steps, completed=step, numbers="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """Shows that `step` steps are done."""
        self._progress.update(self._task, completed=step)

    def train_line(self, line: dict[str, Any]) -> None:
        """Records a line of training numbers and shows the most telling ones."""
        shown = "  ".join(f"{name} {line[name]:.3f}" for name in ("loss", "loss_ce", "loss_bbox", "loss_giou"))
        speed = f"{line['images_per_s']:.1f} images/s  waiting for data {100 * line['data_wait']:.0f}%"
        self._progress.update(self._task, numbers=f"{shown}  {speed}")
        self._record(line)

    def eval_line(self, line: dict[str, Any]) -> None:
        """Records an evaluation and shows AP."""
        self.say(f"step {line['step']}: AP {_percent(line['AP'])}  AP50 {_percent(line['AP50'])}")
        self._record(line)

    def say(self, text: str) -> None:
        """Shows a sentence above the progress bar."""
        if self._console:
            self._progress.console.print(text, highlight=False)

    def _record(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._tensorboard:
            for name, value in line.items():
                if isinstance(value, float):
                    self._tensorboard.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Ends the display and closes the files."""
        self._progress.stop()
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _tensorboard(folder: Path) -> Any:
    """A writer if the `tensorboard` extra is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a last line without its end was cut off by a crash
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
