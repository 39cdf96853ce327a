"""The page of a report: one HTML file that explains each number and what to do about it."""

from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from redetr.files import write_json
from redetr.pages.templates import environment_of, inline, write_page
from redetr.panoptic_quality import quality_rows
from redetr.report.advice import LONGER
from redetr.report.analysis import KINDS
from redetr.report.masks import POOR_IOU
from redetr.report.numbers import Report
from redetr.report.scenes import least_score, poorest_masks, scenes
from redetr.wording import counted, percent

_FOLDER = Path(__file__).parent
_MOST_CLASSES = 30  # in the matrix of confusions
_MOST_CONFUSIONS = 12
_HARDLY_LOST = 0.005  # AP50 that the costliest kind of mistake costs
# The colors of full cells of the matrix, as in report.css.
_HIT = (24, 100, 171)
_MISS = (201, 42, 42)
_MISS_OPACITY = 0.9
_EQUAL_CONTRAST = 0.179  # luminance on which black and white are equally readable

_METRICS = {
    "AP": "the main metric: mean precision over recalls, classes and IoU from 0.50 to 0.95",
    "AP50": "AP at an IoU of 0.5: are objects found at all?",
    "AP75": "AP at an IoU of 0.75: is the box accurate?",
    "AR1": "recall with the best detection of each class in each image",
    "AR10": "recall with the best 10",
    "AR100": "recall with the best 100",
}
_SIZE_METRICS = {
    "APs": "AP of objects under 32x32 px",
    "APm": "32x32 to 96x96 px",
    "APl": "larger than 96x96 px",
    "ARs": "AR100 of objects under 32x32 px",
    "ARm": "32x32 to 96x96 px",
    "ARl": "larger than 96x96 px",
}


@dataclass(frozen=True)
class Mistake:
    """A kind of mistake in words."""

    meaning: str
    remedy: str


_MISTAKES = {
    "class": Mistake(
        "right position, wrong class",
        "See which classes are confused; check that annotators agree on them; "
        "add examples of them.",
    ),
    "localization": Mistake(
        "right class, but an IoU of only 0.1 to 0.5",
        "Check that boxes are drawn tightly and consistently; try a larger --image-size; train "
        "longer.",
    ),
    "both": Mistake(
        "wrong class, and an IoU of only 0.1 to 0.5",
        "Mostly an early stage of training: train longer.",
    ),
    "duplicate": Mistake(
        "the object is already found, with a higher score",
        "DETR learns only late in training to predict one box per object: train longer. Objects "
        "that are annotated twice teach duplicates: redetr check finds them.",
    ),
    "background": Mistake(
        "there is no object",
        "See the images: are objects left unannotated? If not, add images like these, "
        "also without objects.",
    ),
    "missed": Mistake(
        "an object without any detection near it",
        "See size and crowding: small objects need a larger --image-size, crowded images need more "
        "--num-queries, and unusual objects need more examples.",
    ),
}


@dataclass(frozen=True)
class Summary:
    """The summary of a checkpoint that the page begins with."""

    threshold: float
    precision: float | None  # None if no detection reaches the threshold
    recall: float
    worst: str  # the kind of mistake that costs most
    lost: float  # its AP50
    weakest: list[tuple[float, str]]  # AP and name of the three weakest classes, if there are three


@dataclass(frozen=True)
class Cell:
    """A cell of the matrix of confusions."""

    predicted: str
    count: int
    share: float  # of its row
    correct: bool
    dark: bool


@dataclass(frozen=True)
class Confusions:
    """Which classes a checkpoint confuses."""

    matrix: list[tuple[str, list[Cell]]]  # name and row of each class; empty with too many
    most: list[tuple[str, str, int]]  # true class, predicted class, count


@dataclass(frozen=True)
class Masks:
    """The numbers of masks for all checkpoints; None for a checkpoint without masks."""

    metrics: dict[str, list[float | None]]  # by names as "mask AP"
    per_class: dict[str, list[dict[str, Any]]]  # `AP`, `iou` and `poor` of each class


@dataclass(frozen=True)
class Lean:
    """How reliable the scores of a checkpoint are."""

    error: float  # expected calibration error
    excess: float  # mean score minus the share of correct detections


def write_report(report: Report, folder: Path) -> None:
    """Writes `index.html`, which needs no other file, and `report.json` to the folder, which is
    created if it is missing."""
    document = _document(report)  # before either file is replaced, so that both are of one report
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report.numbers)
    write_page(folder / "index.html", document)


def _document(report: Report) -> str:
    numbers = report.numbers
    runs = numbers["checkpoints"]
    class_names = numbers["data"]["classes"]
    per_class = {name: [run["per_class"][name] for run in runs] for name in class_names}
    poorest = [poorest_masks(report, run) for run in range(len(runs))]
    has_masks = any(run["masks"] for run in runs)
    return (
        _environment()
        .get_template("report.html")
        .render(
            numbers=_numbers_of_script(numbers),
            data=numbers["data"],
            runs=runs,
            differences=numbers.get("differences", {}),
            today=date.today(),
            per_class=per_class,
            metrics=_METRICS,
            size_metrics=_SIZE_METRICS,
            mistakes=_mistakes(runs),
            longer=[_longer(run) for run in runs],
            summaries=[_summary(run) for run in runs],
            confusions=[_confusions(np.array(run["confusion"]), class_names) for run in runs],
            leans=[_lean(run["calibration"]) for run in runs],
            scenes=scenes(report),
            least_score=least_score(report),
            masks=_masks(runs, class_names) if has_masks else None,
            poor_below=POOR_IOU,
            poorest_masks=poorest,
            quality_rows=quality_rows,
            counted=counted,
            kinds=KINDS,
            hardly_lost=_HARDLY_LOST,
            style=inline("pages/page.css") + inline("report/report.css"),
            script=inline("report/report.js") + inline("pages/scrolling.js"),
        )
    )


def _environment() -> Environment:
    """The templates of this folder, with the filters of the page."""
    environment = environment_of(_FOLDER)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["percent"] = percent
    environment.filters["points"] = _points
    environment.filters["change"] = _change
    environment.filters["isolated"] = _isolated
    return environment


def _numbers_of_script(numbers: dict[str, Any]) -> dict[str, Any]:
    """The numbers for report.js, without the confusions, which grow with the square of the classes
    and are drawn here."""
    runs = []
    for run in numbers["checkpoints"]:
        runs.append({key: value for key, value in run.items() if key != "confusion"})
    return {**numbers, "checkpoints": runs}


def _masks(runs: list[dict[str, Any]], class_names: list[str]) -> Masks:
    metrics: dict[str, list[float | None]] = {}
    for name in ("AP", "AP50", "AP75", "AR100"):
        values = [run["masks"]["metrics"][name] if run["masks"] else None for run in runs]
        metrics[f"mask {name}"] = values
    per_class = {}
    for name in class_names:
        entries = []
        for run in runs:
            unknown = {"AP": None, "iou": None, "poor": None}
            entries.append(run["masks"]["per_class"][name] if run["masks"] else unknown)
        per_class[name] = entries
    return Masks(metrics, per_class)


def _mistakes(runs: list[dict[str, Any]]) -> dict[str, Mistake]:
    """The kinds of mistakes. If the report is on a single run, its length is taken into account."""
    if len(runs) > 1:
        return _MISTAKES
    longer = _longer(runs[0])
    mistakes = {}
    for kind, mistake in _MISTAKES.items():
        remedy = mistake.remedy.replace(LONGER, longer)
        mistakes[kind] = replace(mistake, remedy=remedy)
    return mistakes


def _longer(run: dict[str, Any]) -> str:
    """The advice to train longer, for the length of the run if that is known."""
    training = run["training"]
    return training["longer"] if training else LONGER


def _summary(run: dict[str, Any]) -> Summary | None:
    """None if no detection is correct."""
    if run["all"]["best"] is None:
        return None
    mistakes = run["mistakes"]
    worst = max(mistakes, key=lambda kind: mistakes[kind]["ap50"])
    per_class = run["per_class"].items()
    measured = [(entry["AP"], name) for name, entry in per_class if entry["AP"] is not None]
    weakest = sorted(measured)[:3]
    curves = run["all"]["curves"]
    point = round(100 * run["threshold"])
    return Summary(
        threshold=run["threshold"],
        precision=curves["precision"][point],
        recall=curves["recall"][point],
        worst=worst,
        lost=mistakes[worst]["ap50"],
        weakest=weakest if len(weakest) > 2 else [],
    )


def _confusions(counts: np.ndarray, class_names: list[str]) -> Confusions:
    matrix = []
    if len(class_names) <= _MOST_CLASSES:
        matrix = _matrix(counts, [*class_names, "background"])
    return Confusions(matrix, _most_confused(counts, class_names))


def _matrix(counts: np.ndarray, names: list[str]) -> list[tuple[str, list[Cell]]]:
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    matrix = []
    for i, name in enumerate(names):
        row = []
        for j, predicted in enumerate(names):
            count, share = int(counts[i, j]), float(shares[i, j])
            row.append(Cell(predicted, count, share, i == j, _is_dark(share, correct=i == j)))
        matrix.append((name, row))
    return matrix


def _is_dark(share: float, correct: bool) -> bool:
    """Whether white text has more contrast than black on a cell of the matrix, by the formula of
    WCAG."""
    color = _HIT if correct else _MISS
    opacity = share if correct else share * _MISS_OPACITY
    luminance = 0.0
    for weight, channel in zip((0.2126, 0.7152, 0.0722), color, strict=True):
        value = 1 - opacity * (1 - channel / 255)
        linear = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        luminance += weight * linear
    return luminance < _EQUAL_CONTRAST


def _most_confused(counts: np.ndarray, class_names: list[str]) -> list[tuple[str, str, int]]:
    wrong = counts[:-1, :-1].copy()  # without background
    np.fill_diagonal(wrong, 0)
    most_first = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    confused = []
    for index in most_first.tolist():
        row, column = divmod(index, len(wrong))
        count = int(wrong[row, column])
        if count:
            confused.append((class_names[row], class_names[column], count))
    return confused


def _lean(calibration: dict[str, Any]) -> Lean | None:
    """None without detections."""
    if calibration["error"] is None:
        return None
    detections = 0
    excess = 0.0
    for row in calibration["bins"]:
        detections += row["count"]
        excess += row["count"] * (row["score"] - row["correct"])
    return Lean(calibration["error"], excess / detections)


def _points(difference: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return "-" if difference is None else f"{100 * difference:+.1f}"


def _change(values: list[float | None]) -> float | None:
    """The second value minus the first, if both were measured."""
    first, second = values
    if first is None or second is None:
        return None
    return second - first


def _isolated(name: str) -> str:
    """A name for an attribute, in the characters that do there what `<bdi>` does in text: a name
    that is written from right to left does not move what stands beside it."""
    return f"\u2068{name}\u2069"
