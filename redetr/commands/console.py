"""The output of commands: consoles, tables of results, and lines about a detector."""

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Column, Table

from redetr.class_names import other_spellings
from redetr.errors import InputError
from redetr.wording import counted, percent

if TYPE_CHECKING:
    from redetr.data import DetectionDataset
    from redetr.data.annotations import Split
    from redetr.detector.detector import Detector

# A file or a pipe has no width: Rich would take 80 characters, and break the rows of wide tables.
_WIDTH_OF_FILES = 200
_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # all but the end of a line


def _width_of_output() -> int | None:
    """Characters in a line of standard output; None: as wide as the terminal, or COLUMNS.

    `sys.stdout` is None if the process was started with it closed.
    """
    if sys.stdout is None or sys.stdout.isatty() or "COLUMNS" in os.environ:
        return None
    return _WIDTH_OF_FILES


class _Escaped:
    """What Rich prints, with control characters as escape sequences: names of classes and files
    come from strangers, and could rewrite what a terminal shows."""

    def __init__(self, content: ConsoleRenderable):
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._content, options):
            if segment.control:  # by Rich itself, such as a move of the cursor
                yield segment
                continue
            text = _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", segment.text)
            yield Segment(text, segment.style)


class _Escaping(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Escaped(content) for content in renderables]


def _console(**options: Any) -> Console:
    # Without markup, because names of classes and paths may have brackets.
    console = Console(highlight=False, markup=False, **options)
    console.push_render_hook(_Escaping())
    return console


ERRORS = _console(stderr=True, soft_wrap=True)
OUT = _console(width=_width_of_output())


def print_results(results: list[dict[str, Any]]) -> None:
    """Prints the COCO numbers as a table, in percent, and a table of the classes.

    Several results are numbered from 1. Numbers of masks stand below those of boxes.
    """
    from redetr.metrics import METRIC_NAMES

    numbers = [""]
    if len(results) > 1:
        numbers = [str(number) for number in range(1, len(results) + 1)]
    # Without padding, twelve numbers of 100.0 fit a terminal of 80 characters.
    table = Table("", *METRIC_NAMES, box=box.SIMPLE, padding=0, pad_edge=False)
    for number, result in zip(numbers, results, strict=True):
        title = number
        if "masks" in result:
            title = number or "boxes"
        table.add_row(title, *(percent(result[name]) for name in METRIC_NAMES))
        if "masks" in result:
            mask_result = result["masks"]
            table.add_row("masks", *(percent(mask_result[name]) for name in METRIC_NAMES))
    OUT.print(table)
    for number, result in zip(numbers, results, strict=True):
        if "panoptic" in result:
            OUT.print(_panoptic_table(f"panoptic {number}".strip(), result["panoptic"]))
    OUT.print(_class_table(results, numbers))
    for number, result in zip(numbers, results, strict=True):
        if "why_no_masks" in result:
            title = f"masks {number}".strip()
            OUT.print(f"{title}: not measured, because {result['why_no_masks']}", soft_wrap=True)
    if results[0]["AP"] is None:
        OUT.print(
            "AP is undefined (-): there are no objects to find (crowds and difficult objects "
            "do not count)"
        )


def _panoptic_table(title: str, panoptic: dict[str, Any]) -> Table:
    """PQ, SQ and RQ of all classes, of things, of stuff, and of each class."""
    from redetr.panoptic_quality import quality_rows

    table = Table(title, box=box.SIMPLE, padding=0, pad_edge=False)
    for name in ("PQ", "SQ", "RQ"):
        table.add_column(name, justify="right")
    for row, quality in quality_rows(panoptic):
        table.add_row(row, *(percent(quality[name]) for name in ("PQ", "SQ", "RQ")))
    return table


def _class_table(results: list[dict[str, Any]], numbers: list[str]) -> Table:
    """AP, AP50 and mask AP of each class; the best class of the first result comes first."""
    objects = Column("objects", justify="right")
    table = Table("class", objects, box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for number, result in zip(numbers, results, strict=True):
        titles = ["AP", "AP50"]
        if "masks" in result:
            titles += ["mask AP"]
        for title in titles:
            table.add_column(f"{title} {number}".strip(), justify="right")
    first = results[0]
    ap_by_class = first["per_class"]
    best_first = sorted(ap_by_class, key=lambda name: ap_by_class[name] or 0, reverse=True)
    for name in best_first:
        values = []
        for result in results:
            values.append(percent(result["per_class"][name]))
            values.append(percent(result["per_class_AP50"][name]))
            if "masks" in result:
                values.append(percent(result["masks"]["per_class"][name]))
        table.add_row(name, str(first["objects"][name]), *values)
    return table


def require_batch_size(batch_size: int) -> None:
    """Raises InputError for a --batch-size below 1."""
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} must be at least 1")


def say_origin(detector: "Detector") -> None:
    """Prints the origin and the licence of the weights on standard error."""
    ERRORS.print(f"weights: {detector.model.weights_from}")


def warn_of_plain(names: list[str]) -> None:
    """Warns of images that are nearly of one colour."""
    if names:
        if len(names) == 1:
            said = f"1 image is almost a single colour, {names[0]}: it"
        else:
            images = counted(len(names), "image")
            said = f"{images} are almost a single colour, such as {names[0]}: they"
        ERRORS.print(f"{said} may be damaged, or a few extreme values may hide the rest")


def say_threshold(detector: "Detector") -> None:
    """Prints the default threshold and its reason on standard error."""
    if detector.has_measured_threshold:
        origin = "best F1 when this checkpoint was evaluated"
    else:
        origin = "not measured in training; redetr evaluate reports the best one"
    ERRORS.print(f"threshold: {detector.threshold} ({origin})")


def say_detector(detector: "Detector") -> None:
    """Prints the origin and the precision of the weights on standard error."""
    say_origin(detector)
    say_precision(detector)


def say_precision(detector: "Detector") -> None:
    """Prints the precision of a command and its reason, if there is one, on standard error."""
    if detector.precision.reason:
        ERRORS.print(detector.precision.reason)


def say_spellings(detector: "Detector", dataset: "DetectionDataset") -> None:
    """Prints on standard error which classes have other names in the data than in the model."""
    spellings = other_spellings(dataset.class_names, detector.class_names)
    if spellings:
        ERRORS.print(f"classes matched by meaning (data = model): {spellings}")


def warn_of_left_out(dataset: "DetectionDataset", split: "Split") -> None:
    """Prints a warning on standard error if images of a split were left out, because they cannot be
    read."""
    from redetr.data.formats.folder import unreadable_of
    from redetr.data.unreadable import what_was_left_out

    for warning in what_was_left_out(unreadable_of(dataset), split):
        ERRORS.print(warning, soft_wrap=True, markup=False)


def warn_of_leakage(
    checkpoint: Path, detector: "Detector", dataset: "DetectionDataset", source: str | None
) -> None:
    """Prints a warning on standard error if the run of a checkpoint was trained on images of
    `dataset`, the val split of `source`. Checked only where `source` is the training data, a part
    of which the run held out: in other data, the same name is that of another image."""
    from redetr.data.inventory import was_trained_on
    from redetr.data.open import absolute_source

    trained_on = detector.trained_on
    if source is None or trained_on is None or not detector.val_fraction:
        return
    if absolute_source(source) != absolute_source(trained_on):
        return
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if detector.held_out_otherwise or was_trained_on(run / "data.json", dataset):
        ERRORS.print(
            f"warning: the run of {checkpoint} was trained on some of these images (images were "
            "added since, --val-fraction differs, or an earlier version of redetr divided the "
            "data), so AP is too high; for a reliable AP, give --data with a val split",
            soft_wrap=True,
        )


def say_fp32(detector: "Detector", why: str) -> None:
    """Prints on standard error why a command computes in fp32, if the training run did not."""
    if detector.run_precision not in (None, "fp32"):
        ERRORS.print(
            f"precision: fp32, {why}; the training run computed in {detector.run_precision}, so "
            "scores differ by rounding"
        )


def print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def print_file(path: Path) -> None:
    """Prints a text file line by line, however large it is."""
    with open(path, encoding="utf-8") as text:
        for line in text:
            print(line, end="")
