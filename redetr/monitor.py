"""What a run says while it goes: losses read together, a progress bar or lines, metrics.jsonl,
TensorBoard events."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from torch import Tensor

from redetr.data.loader import padded_share
from redetr.distributed import Dist
from redetr.errors import DivergedError
from redetr.files import write_whole
from redetr.structures import Batch


class Monitor:
    """Records lines of numbers in `folder`; shows them on `console` if there is one.

    `close` must be called at the end. What a run resumed at `step` does again is cut off from a
    metrics.jsonl that is there: the steps after it, and its evaluation.
    """

    def __init__(self, folder: Path, steps: int, step: int = 0, console: Console | None = None):
        self._path = folder / "metrics.jsonl"
        _keep_until(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._tensorboard = _tensorboard(folder, step)
        self._console = console
        self._live = console is not None and console.is_interactive  # else lines, as in a file
        self._left = TimeRemainingColumn(
            elapsed_when_finished=False, table_column=Column(no_wrap=True)
        )
        # In a narrow terminal, columns that may wrap give way, the widest first: the numbers, then
        # the bar.
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(12),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            self._left,
            _Numbers(),
            console=console,
            disable=not self._live,
            refresh_per_second=4,
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("train", total=steps, completed=step, numbers="")
        self._progress.start()

    def advance(self, step: int) -> None:
        """Shows that `step` steps are done."""
        self._progress.update(self._task, completed=step)

    def train_line(self, line: dict[str, Any]) -> None:
        """Records a line of training numbers and shows the most telling ones: beside the bar, or as
        a line."""
        shown = "  ".join(
            f"{name} {line[name]:.3f}" for name in ("loss", "loss_ce", "loss_bbox", "loss_giou")
        )
        speed = (
            f"{line['images_per_s']:.1f} images/s  waiting for data {100 * line['data_wait']:.0f}%"
        )
        self._progress.update(self._task, numbers=f"{shown}  {speed}")
        if not self._live:
            task = self._progress.tasks[0]
            self.say(
                f"step {line['step']}/{task.total:.0f}  left {self._left.render(task)}  {shown}  "
                f"{speed}"
            )
        self._record(line)

    def eval_line(self, line: dict[str, Any]) -> None:
        """Records an evaluation and shows AP."""
        self.say(f"step {line['step']}: AP {_percent(line['AP'])}  AP50 {_percent(line['AP50'])}")
        self._record(line)

    def say(self, text: str) -> None:
        """Shows a sentence above the progress bar, or as a line."""
        if self._console:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

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


class _Numbers(ProgressColumn):
    """The numbers of the last line, cut off where the terminal ends."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["numbers"], no_wrap=True, overflow="ellipsis")


@dataclass
class StepLog:
    """Losses of the last steps, kept on the device until they are read together."""

    batch_size: int
    steps: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    images: list[list[int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    waited: float = 0.0
    took: float = 0.0

    def add(
        self,
        step: int,
        losses: dict[str, Tensor],
        norm: Tensor,
        batches: list[Batch],
        waited: float,
        took: float,
    ) -> None:
        padding = norm.new_full((), padded_share(batches))  # a fill, not a copy: nothing waits
        self.names = [*losses, "padding", "grad_norm"]
        self.steps.append(step)
        self.rows.append(torch.stack([*losses.values(), padding, norm]))
        self.images.append([target["image_id"] for batch in batches for target in batch.targets])
        self.waited += waited
        self.took += took

    def flush(self, dist: Dist) -> dict[str, Any]:
        """The means over the steps since the last flush and over ranks. Communicates; waits for the
        device.

        Raises DivergedError on every rank if a loss or the gradient was not finite, naming step,
        losses and images.
        """
        mine = torch.stack(self.rows)
        values = dist.mean_(mine.clone())
        finite = values.isfinite().all(1).tolist()
        if not all(finite):
            first = finite.index(False)
            raise self._diverged(
                dist, self.steps[first], ~mine[first].isfinite().cpu().numpy(), self.images[first]
            )
        means = dict(zip(self.names, [round(v, 6) for v in values.mean(0).tolist()], strict=True))
        speed = {
            "images_per_s": round(len(self.steps) * self.batch_size / self.took, 2),
            "data_wait": round(self.waited / self.took, 4),
        }
        line = {"step": self.steps[-1], **means, **speed}
        self.__init__(self.batch_size)  # type: ignore[misc]
        return line

    def _diverged(
        self, dist: Dist, step: int, wrong: np.ndarray, images: list[int]
    ) -> DivergedError:
        """The error that all ranks raise. The gradient is the same everywhere: it is named if no
        loss is to blame."""
        blamed = wrong[:-1].any()
        found = dist.gather_arrays(
            {
                "wrong": wrong[None],
                "images": np.array(images),
                "blamed": np.full(len(images), blamed),
            }
        )
        names = [self.names[i] for i in np.flatnonzero(found["wrong"][:, :-1].any(0))]
        named = found["images"][found["blamed"]] if names else found["images"]
        return DivergedError(
            f"step {step}: not finite: {', '.join(names) or 'the gradient'}; images "
            f"{named.tolist()}; lower --lr, "
            "check these images, or use --precision fp32"
        )


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer of what follows `step`, if the `tensorboard` extra is installed, else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")[
        :-1
    ]  # a last line without its end was cut off by a crash
    entries = [json.loads(line) for line in lines]
    kept = [
        entry
        for entry in entries
        if entry["step"] < step or (entry["step"] == step and "AP" not in entry)
    ]
    text = "".join(json.dumps(entry) + "\n" for entry in kept)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
