"""The reports of a run in progress: losses read together, a progress bar or lines, metrics.jsonl,
TensorBoard events."""

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from torch import Tensor

from redetr.data.loader import padded_share
from redetr.distributed import Dist
from redetr.errors import DivergedError, InputError, first_line
from redetr.files import write_whole
from redetr.loggers import Logger, close_after_failure, numbers_of, open_loggers
from redetr.structures import Batch
from redetr.wording import counted

if TYPE_CHECKING:
    from redetr.state import State

Callback = Callable[[dict[str, Any]], object]  # takes each line of metrics.jsonl
_WIDTH_FOR_BAR = 100  # columns of a terminal
_LONG_WAIT = 0.25  # for the data, as a share of the time of a step


class Monitor:
    """Records lines of numbers in `folder`; shows them on `console` if there is one.

    `class_weight` is the weight of the class losses in the total. `close` must be called at the
    end. An existing metrics.jsonl is cut off at `step`, where a resumed run begins: the run repeats
    the steps after it, and its evaluation.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        step: int = 0,
        console: Console | None = None,
        class_weight: float = 1.0,
        loggers: dict[str, Logger] | None = None,
        callback: Callback | None = None,
    ):
        self._loggers = {} if loggers is None else loggers
        self._callback = callback
        self._class_weight = class_weight
        self._lines = 0  # of training
        self._said_waiting = False
        self._path = folder / "metrics.jsonl"
        broken = _keep_until(self._path, step)
        self._file = self._path.open("a", encoding="utf-8")
        self._console = console
        self._live = console is not None and console.is_interactive  # otherwise, prints lines
        self._remaining = TimeRemainingColumn(
            elapsed_when_finished=False, table_column=Column(no_wrap=True)
        )
        # All but the bar fits into 80 columns. In a narrower terminal, the numbers are cut off.
        bar = [BarColumn(12)] if console is not None and console.width >= _WIDTH_FOR_BAR else []
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            *bar,
            self._remaining,
            TextColumn("left"),
            _Numbers(),
            console=console,
            disable=not self._live,
            refresh_per_second=4,
            speed_estimate_period=600,
        )
        self._task = self._progress.add_task("train", total=steps, completed=step, numbers="")
        self._progress.start()
        if broken:
            lines = counted(broken, "broken line")
            self.say(f"warning: {self._path}: dropped {lines}")

    def advance(self, step: int) -> None:
        """Shows that `step` steps are done."""
        self._progress.update(self._task, completed=step)

    def train_line(self, line: dict[str, Any]) -> None:
        """Records a line of training numbers, and shows the most informative ones, next to the bar
        or as a line."""
        numbers = self._numbers(line)
        self._progress.update(self._task, numbers=numbers)
        if not self._live:
            task = self._progress.tasks[0]
            remaining = self._remaining.render(task)
            self.say(f"step {line['step']}/{task.total:.0f}  {remaining} left  {numbers}")
        self._say_if_waiting(line)
        self._record(line)

    def _numbers(self, line: dict[str, Any]) -> str:
        """Speed and loss in a few words.

        The parts of the loss add up to it: that of the classes, and that of the boxes and, where
        they are trained, of the masks; weighted and summed over all layers.
        """
        class_loss = 0.0
        for name, value in line.items():
            if name.startswith("loss_ce"):
                class_loss += self._class_weight * value
        rest = line["loss"] - class_loss
        name_of_rest = "box and mask" if "loss_mask" in line else "box"
        parts = f"class {class_loss:.1f}, {name_of_rest} {rest:.1f}"
        speed = f"{line['images_per_s']:.1f} images/s"
        return f"{speed}  loss {line['loss']:.2f} ({parts})"

    def _say_if_waiting(self, line: dict[str, Any]) -> None:
        """Reports once that steps wait for their data. The first line is skipped: loader processes
        start in it."""
        self._lines += 1
        if self._lines == 1 or self._said_waiting or line["data_wait"] < _LONG_WAIT:
            return
        self._said_waiting = True
        self.say(
            f"note: {100 * line['data_wait']:.0f}% of the time is spent waiting for data: try "
            "increasing --num-workers or --cache-mb, or a faster disk"
        )

    def eval_line(self, line: dict[str, Any]) -> None:
        """Records an evaluation and shows AP, and AP of masks and PQ where they were measured."""
        numbers = f"AP {in_percent(line['AP'])}  AP50 {in_percent(line['AP50'])}"
        if "masks" in line:
            numbers += f"  mask AP {in_percent(line['masks']['AP'])}"
        if "panoptic" in line:
            numbers += f"  PQ {in_percent(line['panoptic']['PQ'])}"
        self.say(f"step {line['step']}: {numbers}")
        self._record(line)

    def say(self, text: str) -> None:
        """Shows a sentence above the progress bar, or as a line."""
        if self._console:
            self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _record(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        numbers = numbers_of(line)
        for name in list(self._loggers):
            self._with_logger(name, lambda logger: logger.log(numbers, line["step"]))
        if self._callback:
            self._callback(copy.deepcopy(line))  # the run continues with these numbers

    def _with_logger(self, name: str, work: Callable[[Logger], None]) -> None:
        """Does `work` with a logger. If it fails, for example because a server is gone, it is
        reported and dropped, and the run continues."""
        try:
            work(self._loggers[name])
        except Exception as error:  # each library has its own errors
            del self._loggers[name]
            self.say(f"warning: --log {name} failed and was turned off: {first_line(error)}")

    def close(self, failed: bool = False) -> None:
        """Ends the display and closes the files; loggers learn whether the run has `failed`."""
        self._progress.stop()
        self._file.close()
        for name in list(self._loggers):
            self._with_logger(name, lambda logger: logger.close(failed))


class SilentMonitor:
    """The monitor of all ranks but the first, which shows and records nothing."""

    def advance(self, step: int) -> None:
        pass

    def train_line(self, line: dict[str, Any]) -> None:
        pass

    def eval_line(self, line: dict[str, Any]) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        pass


def open_monitor(
    folder: Path,
    state: "State",
    console: Console | None,
    dist: Dist,
    class_weight: float,
    callback: Callback | None = None,
) -> Monitor | SilentMonitor:
    """The monitor of this rank for a run that begins or resumes as `state` says. Raises InputError,
    on every rank, for a logger that cannot be opened. Communicates."""
    config, step = state.config, state.step
    loggers: dict[str, Logger] = {}
    warning = ""
    error: InputError | None = None
    try:
        opened = dist.main_only(open_loggers)(config.log, folder, config.to_dict(), step)
        if opened is not None:
            loggers, warning = opened
    except InputError as reason:
        error = reason
    try:
        dist.raise_any(error)
        monitor = dist.main_only(Monitor)(
            folder, config.steps, step, console, class_weight, loggers, callback
        )
    except BaseException:
        close_after_failure(loggers)
        raise
    if monitor is None:
        return SilentMonitor()
    if warning:
        monitor.say(warning)
    return monitor


class _Numbers(ProgressColumn):
    """The numbers of the last line, cut off where the terminal ends."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["numbers"], no_wrap=True, overflow="ellipsis")


@dataclass
class StepLog:
    """Losses of the last steps, kept on the device until they are read together."""

    batch_size: int  # over all ranks
    world_size: int
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
        # All canvases of a step are equal, so the share in all images is the mean of the ranks'
        # shares, by their numbers of images.
        images = sum(len(batch.targets) for batch in batches)
        weight = images * self.world_size / self.batch_size
        share = weight * padded_share(batches)
        padding = norm.new_full((), share)  # a fill, not a copy: nothing waits
        self.names = [*losses, "padding", "grad_norm"]
        self.steps.append(step)
        self.rows.append(torch.stack([*losses.values(), padding, norm]))
        self.images.append([target["image_id"] for batch in batches for target in batch.targets])
        self.waited += waited
        self.took += took

    def flush(self, dist: Dist) -> tuple[dict[str, Any], float]:
        """The means over the steps since the last flush and over ranks, and the seconds for which
        reading them waited: the device's rest of the last step, which is part of the steps' time.
        Communicates; waits for the device.

        Raises DivergedError on every rank if a loss or the gradient was not finite, naming step,
        losses and images.
        """
        started = time.perf_counter()
        mine = torch.stack(self.rows)
        values = dist.mean_(mine.clone())
        finite = values.isfinite().all(1).tolist()
        read_s = time.perf_counter() - started
        self.took += read_s
        if not all(finite):
            first = finite.index(False)
            not_finite = ~mine[first].isfinite().cpu().numpy()
            raise self._diverged(dist, self.steps[first], not_finite, self.images[first])
        means = [round(value, 6) for value in values.mean(0).tolist()]
        images = len(self.steps) * self.batch_size
        line = {
            "step": self.steps[-1],
            **dict(zip(self.names, means, strict=True)),
            "images_per_s": round(images / self.took, 2),
            "data_wait": round(self.waited / self.took, 4),
        }
        self._clear()
        return line, read_s

    def _clear(self) -> None:
        self.steps, self.rows, self.images = [], [], []
        self.waited, self.took = 0.0, 0.0

    def _diverged(
        self, dist: Dist, step: int, not_finite: np.ndarray, images: list[int]
    ) -> DivergedError:
        """The error that all ranks raise; `not_finite` and `images` are those of this rank.

        The gradient, the last column, is the same everywhere: it is named if no loss is to blame.
        """
        is_blamed = not_finite[:-1].any()
        gathered = dist.gather_arrays(
            {
                "not_finite": not_finite[None],
                "images": np.array(images),
                "blamed": np.full(len(images), is_blamed),
            }
        )
        losses = gathered["not_finite"][:, :-1].any(0)
        names = [self.names[i] for i in np.flatnonzero(losses)]
        suspects = gathered["images"]
        if names:
            suspects = suspects[gathered["blamed"]]
        else:
            names = ["the gradient"]
        return DivergedError(
            f"step {step}: not finite: {', '.join(names)}; images {suspects.tolist()}; lower "
            "--lr, check these images, or use --precision fp32"
        )


def in_percent(ap: float | None) -> str:
    """An AP in words; None is that of a data set without objects."""
    return "undefined (no objects to find)" if ap is None else f"{100 * ap:.1f}"


def _keep_until(path: Path, step: int) -> int:
    """Cuts off the lines of metrics.jsonl that a run resumed at `step` writes again, and what a
    crash has left; returns how many lines before the last were broken."""
    if not path.exists():
        return 0
    # A last line without its end was cut off by a crash, which may also leave zero bytes.
    *whole_lines, _ = path.read_bytes().split(b"\n")
    kept = []
    broken = 0
    for line in whole_lines:
        entry = _entry(line)
        if entry is None:
            broken += 1
            continue
        is_training = "AP" not in entry
        if entry["step"] < step or (entry["step"] == step and is_training):
            kept.append(json.dumps(entry) + "\n")
    text = "".join(kept)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return broken


def _entry(line: bytes) -> dict[str, Any] | None:
    """The content of a line of metrics.jsonl; None if the line is broken."""
    try:
        entry = json.loads(line.strip(b"\0"))
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(entry, dict) and isinstance(entry.get("step"), int)
    return entry if is_whole else None
