"""The page of a report: one HTML file that says what each number means and what to do about it."""

import json
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from redetr import page
from redetr.files import write_json
from redetr.report import Report
from redetr.report_scenes import scenes

_MEANINGS = {
    "AP": "the headline: precision over all recalls, mean over classes and IoU 0.50 to 0.95",
    "AP50": "an IoU of 0.5 is enough: is it found at all?",
    "AP75": "an IoU of 0.75 is asked for: is the box good?",
    "APs": "objects under 32x32 px", "APm": "32x32 to 96x96 px", "APl": "larger than 96x96 px",
    "AR1": "share of objects found by the best detection of each image", "AR10": "by the best 10",
    "AR100": "by the best 100: what a perfect score could reach",
    "ARs": "AR100 under 32x32 px", "ARm": "32x32 to 96x96 px", "ARl": "larger than 96x96 px",
}  # fmt: skip
_MISTAKES = {
    "class": (
        "right place, wrong class",
        "See which classes are confused; check that annotators agree on them; add examples of them.",
    ),
    "localization": (
        "right class, but an IoU of only 0.1 to 0.5",
        "Check that boxes are drawn tightly and alike; train longer, or with a larger --image-size.",
    ),
    "both": (
        "wrong class, and an IoU of only 0.1 to 0.5",
        "Mostly an early stage of training: train longer.",
    ),
    "duplicate": (
        "the object was found already, with a higher score",
        "DETR unlearns these late: train longer. Two annotations on one object teach them: redetr check finds those.",
    ),
    "background": (
        "there is no object",
        "See the images: are objects left unannotated? If not, add images like these, also without objects.",
    ),
    "missed": (
        "an object without any detection near it",
        "See size and crowding: small objects want a larger --image-size, many objects enough --num-queries, "
        "rare looks more examples.",
    ),
}
_MOST_CLASSES = 30  # in the matrix of confusions
_MOST_CONFUSIONS = 12


def write_report(report: Report, folder: Path) -> None:
    """Writes `index.html`, which needs no other file, and `report.json` into the folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report.numbers)
    script, style = (
        Path(__file__).with_name(f"report.{kind}").read_text(encoding="utf-8")
        for kind in ("js", "css")
    )
    page.write_page(
        folder / "index.html",
        f"Report on {report.numbers['data']['name']}",
        _parts(report),
        script,
        style,
    )


def _parts(report: Report) -> list[str]:
    numbers = report.numbers
    runs = numbers["checkpoints"]
    inside = json.dumps(numbers, separators=(",", ":")).replace("</", "<\\/")
    trained = any(run["training"] for run in runs)
    return [
        _head(numbers),
        _section("metrics", "Average precision", _metrics(runs)),
        _section("mistakes", "What average precision is lost to", _mistakes(runs)),
        _section("classes", "Classes and the threshold", _classes(numbers)),
        _section("curves", "Curves", _CURVES),
        _section("confusions", "Which classes are taken for which", _confusions(numbers)),
        _section("groups", "Size and crowding", _groups(runs)),
        _section("calibration", "What a score is worth", _calibration(runs)),
        _section("training", "Training", "<figure data-chart='loss'></figure><figure data-chart='ap'></figure>")
        if trained else "",
        _section("images", _images_title(runs), scenes(report)),
        f"<script type='application/json' id='numbers'>{inside}</script>",
    ]  # fmt: skip


def _section(name: str, title: str, content: str) -> str:
    return f"<section id='{name}'><h2>{title}</h2>{content}</section>"


def _head(numbers: dict[str, Any]) -> str:
    data, runs = numbers["data"], numbers["checkpoints"]
    classes = "one class" if len(data["classes"]) == 1 else f"{len(data['classes']):,} classes"
    size = f"{data['images']:,} images, {data['objects']:,} objects, {classes}"
    if data["crowds"]:
        size += f". {data['crowds']:,} crowds are no objects: what is found in them counts neither for nor against"
    names = "".join(
        f"<li>{_who(k, runs)} {escape(run['checkpoint'])}</li>" for k, run in enumerate(runs)
    )
    cards = "".join(
        f"<div class='card'><span>{name}</span>{_values(runs, lambda run, name=name: run['metrics'][name])}</div>"
        for name in ("AP", "AP50", "AP75", "AR100")
    )
    return (
        f"<header><h1>Report on {escape(data['name'])}</h1><p>{size}. {date.today()}, all numbers in percent.</p>"
        f"<ul class='names'>{names}</ul><div class='cards'>{cards}</div><ul class='short'>{_short(runs)}</ul></header>"
        f"<nav id='threshold'><label>threshold <input type='range' min='0' max='1' step='0.01' "
        f"value='{runs[0]['threshold']}'></label><output></output>"
        "<button data-mode='all'>best for all</button><button data-mode='each'>best for each class</button>"
        "<span></span></nav>"
    )


def _short(runs: list[dict[str, Any]]) -> str:
    """What a reader should know first, in sentences."""
    lines = []
    for k, run in enumerate(runs):
        if run["all"]["best"] is None:
            lines.append(
                f"{_who(k, runs)} No detection is right: train longer, and look at the data (redetr check)."
            )
            continue
        worst = max(run["mistakes"], key=lambda kind: run["mistakes"][kind]["ap50"])
        weak = sorted(
            (c["AP"], name) for name, c in run["per_class"].items() if c["AP"] is not None
        )[:3]
        precision, recall = (
            run["all"]["curves"][name][round(100 * run["threshold"])]
            for name in ("precision", "recall")
        )
        lines.append(
            f"{_who(k, runs)} With <code>--threshold {run['threshold']}</code>, {_percent(precision)}% of the "
            f"detections are right and {_percent(recall)}% of the objects are found. Most is lost to "
            f"<b>{worst}</b> ({_MISTAKES[worst][0]}): {_percent(run['mistakes'][worst]['ap50'])} points of AP50. "
            f"{_MISTAKES[worst][1]}"
            + (
                f" Weakest classes: {', '.join(f'{escape(n)} ({_percent(ap)})' for ap, n in weak)}."
                * (len(weak) > 2)
            )
        )
    return "".join(f"<li>{line}</li>" for line in lines)


def _metrics(runs: list[dict[str, Any]]) -> str:
    rows = [
        [
            f"<th>{name}</th>",
            *_compared([run["metrics"][name] for run in runs]),
            f"<td>{meaning}</td>",
        ]
        for name, meaning in _MEANINGS.items()
    ]
    return _grid(["", *_compared_heads("", runs), "what it says"], rows)


def _mistakes(runs: list[dict[str, Any]]) -> str:
    rows = []
    for kind, (meaning, remedy) in _MISTAKES.items():
        counts = "".join(f"<td class='n'>{run['mistakes'][kind]['count']:,}</td>" for run in runs)
        won = [run["mistakes"][kind]["ap50"] for run in runs]
        rows.append([f"<th><i class='{kind}'></i>{kind}</th><td>{meaning}</td>", counts,
                     *_compared(won, scale=200, more_is="worse"), f"<td>{remedy}</td>"])  # fmt: skip
    heads = [
        "",
        "what it is",
        *_heads("how many", runs),
        *_compared_heads("AP50 to win", runs),
        "what to do",
    ]
    return (
        "<p>How much AP50 would rise if all mistakes of one kind were gone, after "
        "<a href='https://arxiv.org/abs/2008.08115'>TIDE</a>. The gains do not add up. All detections are counted, "
        "also those with low scores: their number matters less than the AP50.</p>"
        + _grid(heads, rows)
    )


def _classes(numbers: dict[str, Any]) -> str:
    runs = numbers["checkpoints"]
    rows = []
    for name in numbers["data"]["classes"]:
        entries = [run["per_class"][name] for run in runs]
        best = [entry["best"]["threshold"] if entry["best"] else None for entry in entries]
        live = "".join(
            f"<td class='n' data-class='{escape(name)}' data-run='{k}' data-what='{what}'></td>"
            for what in ("precision", "recall", "f1") for k in range(len(runs))
        )  # fmt: skip
        rows.append([
            f"<th>{escape(name)}</th><td class='n'>{entries[0]['objects']:,}</td>",
            *_compared([entry["AP"] for entry in entries], scale=100),
            "".join(f"<td class='n'>{_percent(entry['AP50'])}</td>" for entry in entries),
            "".join(f"<td class='n'>{'-' if value is None else f'{value:.2f}'}</td>" for value in best), live,
        ])  # fmt: skip
    heads = ["class", "objects", *_compared_heads("AP", runs), *_heads("AP50", runs), *_heads("best threshold", runs),
             *(head for what in ("precision", "recall", "F1") for head in _heads(what, runs))]  # fmt: skip
    return (
        "<p>Click a heading to sort. Precision (how many detections are right), recall (how many objects are found) "
        "and F1 (their balance) are those at the threshold chosen at the top of the window. A class whose best "
        "threshold is far from the others' wants a threshold of its own; with few objects numbers are chance.</p>"
        + _grid(heads, rows, "sortable")
    )


_CURVES = (
    "<p>Of <select id='class'></select>. Left: precision over recall, at an IoU of 0.5; the area below is AP50. Right: "
    "what each threshold gives; where F1 has a broad top the threshold hardly matters, a narrow one must be chosen "
    "on data like these.</p><figure data-chart='pr'></figure><figure data-chart='confidence'></figure>"
)


def _confusions(numbers: dict[str, Any]) -> str:
    runs, classes = numbers["checkpoints"], [*numbers["data"]["classes"], "background"]
    parts = []
    for k, run in enumerate(runs):
        counts = np.array(run["confusion"])
        parts.append(f"<div><h3>{_who(k, runs)} threshold {run['threshold']}</h3>")
        if len(classes) <= _MOST_CLASSES + 1:
            parts.append(_matrix(counts, classes))
        parts.append(_most_confused(counts, classes) + "</div>")
    return (
        "<p>Rows are what is there, columns what it was taken for, at an IoU of 0.5 or more. The last row holds "
        "detections where nothing is, the last column objects that were not found.</p>"
        f"<div class='beside'>{''.join(parts)}</div>"
    )


def _matrix(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Counts, shaded by their share of the row."""
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    rows = []
    for i, name in enumerate(classes):
        cells = "".join(
            f"<td style='--v:{share:.3f}' class='{'hit' if i == j else ''}{' dark' if share > 0.55 else ''}' "
            f"title='{escape(name)} taken for {escape(classes[j])}: {count}'>{count or ''}</td>"
            for j, (count, share) in enumerate(
                zip(counts[i].tolist(), shares[i].tolist(), strict=True)
            )
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    heads = "".join(f"<th><span>{escape(name)}</span></th>" for name in classes)
    return f"<table class='matrix'><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def _most_confused(counts: np.ndarray, classes: Sequence[str]) -> str:
    wrong = counts[:-1, :-1] * (1 - np.eye(len(classes) - 1, dtype=int))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSIONS]
    pairs = [
        (*divmod(place, len(wrong)), int(wrong.flat[place]))
        for place in order.tolist()
        if wrong.flat[place]
    ]
    texts = [f"{escape(classes[i])} taken for {escape(classes[j])}: {n}" for i, j, n in pairs]
    return (
        f"<p>Most often {'; '.join(texts)}.</p>"
        if texts
        else "<p>No class is taken for another.</p>"
    )


def _groups(runs: list[dict[str, Any]]) -> str:
    size = _grid(
        ["size, px", "objects", *_compared_heads("AP", runs)],
        [[f"<th>{group['from_px']:.0f} to {group['to_px']:.0f}</th><td class='n'>{group['objects']:,}</td>",
          *_compared([run["by_size"][i]["AP"] for run in runs], scale=100)]
         for i, group in enumerate(runs[0]["by_size"])],
    )  # fmt: skip
    crowding = _grid(
        ["objects in the image", "images", *_compared_heads("AP", runs)],
        [[f"<th>{_span(group['from'], group['to'])}</th><td class='n'>{group['images']:,}</td>",
          *_compared([run["by_objects_in_image"][i]["AP"] for run in runs], scale=100)]
         for i, group in enumerate(runs[0]["by_objects_in_image"])],
    )  # fmt: skip
    return (
        "<p>Size is the root of the area; each group holds about as many objects. If small objects are far behind, a "
        "larger --image-size helps most; if full images are, more --num-queries or smaller pieces of the image may.</p>"
        f"<div class='beside'><div>{size}</div><div>{crowding}</div></div>"
    )


def _calibration(runs: list[dict[str, Any]]) -> str:
    verdicts = []
    for k, run in enumerate(runs):
        found = run["calibration"]
        if found["error"] is None:
            continue
        total = sum(row["count"] for row in found["bins"])
        lean = sum(row["count"] * (row["score"] - row["correct"]) for row in found["bins"]) / total
        side = "promise too much" if lean > 0 else "are too modest"
        verdicts.append(f"{_who(k, runs)} Expected calibration error: <b>{_percent(found['error'])}</b> points. Scores "
                        f"{side}, by {_percent(abs(lean))} points in the mean.")  # fmt: skip
    return (
        "<p>Of the detections with a score of 70%, are 70% right? On the dotted line they are. Below it scores promise "
        "too much, above it too little. Order, and so AP, does not depend on it; a threshold and whoever reads a score "
        f"as a chance do. Detections below {runs[0]['calibration']['least_score']} are left out; the size of a point "
        f"tells how many there are.</p><p>{'<br>'.join(verdicts)}</p><figure data-chart='calibration'></figure>"
    )


def _images_title(runs: list[dict[str, Any]]) -> str:
    return "Images with the most mistakes" if len(runs) == 1 else "Images where the two differ most"


def _who(run: int, runs: Sequence[Any]) -> str:
    """The mark of a checkpoint, where there are two."""
    return f"<b class='who who{run}'>{'AB'[run]}</b>" if len(runs) > 1 else ""


def _values(runs: list[dict[str, Any]], number: Any) -> str:
    return "".join(
        f"<strong>{_who(k, runs)}{_percent(number(run))}</strong>" for k, run in enumerate(runs)
    )


def _heads(text: str, runs: Sequence[Any]) -> list[str]:
    return [f"{text} {_who(k, runs)}" for k in range(len(runs))]


def _compared_heads(text: str, runs: Sequence[Any]) -> list[str]:
    return _heads(text, runs) + ["B - A"] * (len(runs) > 1)


def _compared(values: list[float | None], scale: float = 0, more_is: str = "better") -> list[str]:
    """Cells with the numbers of one or two checkpoints, and their difference; with a `scale` also as bars."""
    less_is = "worse" if more_is == "better" else "better"
    bar = "class='n bar' style='--v:{:.1f}'" if scale else "class='n'"
    cells = [
        f"<td {bar.format(min(100, scale * (value or 0)))}>{_percent(value)}</td>"
        for value in values
    ]
    if len(values) > 1:
        a, b = values
        change = None if a is None or b is None else b - a
        text = "-" if change is None else f"{100 * change:+.1f}"
        cells.append(
            f"<td class='n {'' if not change else more_is if change > 0 else less_is}'>{text}</td>"
        )
    return cells


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table; heads and rows of cells are HTML already."""
    lines = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    heading = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table class='{kind}'><thead><tr>{heading}</tr></thead><tbody>{lines}</tbody></table>"


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
