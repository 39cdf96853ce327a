"""What a data set looks like: sheets of samples with their boxes, histograms, and a page of all
that a check found."""

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.data import open_dataset
from redetr.data.annotations import Split
from redetr.data.loader import Samples
from redetr.data.transforms import augmentation
from redetr.doctor.check import Report
from redetr.page import drawn, picture, table, write_page
from redetr.pages.drawing import class_color, draw_boxes, grid, save_image, to_pil

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_PX, _COLUMNS = 400, 4
_SAMPLES: dict[Split, int] = {"train": 8, "val": 4, "test": 4}
_MOST_TAGS = 12  # of a picture with more boxes, classes are told by color alone
_BINS = 31
_MOST_CLASSES = 30  # in the histogram, the most common ones


def write_report(report: Report, folder: Path, augmented: bool = False) -> None:
    """Writes `index.html`, which needs no other file, and `sheet.png` into the folder, with
    `augmented` also `augmented.png`. Raises InputError if training samples are wanted of a data set
    that has errors."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"Histograms": _histograms(report)}
    sheets = {
        "sheet": sample_sheet(report),
        "augmented": augmented_sheet(report) if augmented else None,
    }
    for name, title in (
        ("sheet", "Samples with their boxes"),
        ("augmented", "Samples as training sees them"),
    ):
        sheet = sheets[name]
        if sheet is not None:
            save_image(sheet, folder / f"{name}.png")
            pictures[title] = sheet
    write_page(folder / "index.html", report.source, _parts(report, pictures))


def sample_sheet(report: Report) -> Image.Image | None:
    """Images of each split with their boxes, spread over those that can be read and show objects;
    None for none."""
    panels = []
    for split, annotations in report.splits.items():
        usable = annotations.object_counts() > 0
        for i, header in enumerate(report.headers.get(split, [])):
            usable[i] &= not header.problem
        for i in _spread(np.flatnonzero(usable), _SAMPLES[split]):
            own = slice(annotations.first[i], annotations.first[i + 1])
            boxes, labels = (
                torch.from_numpy(annotations.boxes[own]),
                annotations.labels[own].tolist(),
            )
            panel = _panel(report.pixels(split, i), boxes, labels, annotations.class_names)
            panels.append((panel, f"{split}: {annotations.path(i).name}"))
    return grid(panels, _COLUMNS) if panels else None


def augmented_sheet(report: Report) -> Image.Image:
    """Training images in successive epochs, as the recipe shows them to the model."""
    plan, dataset = report.plan, open_dataset(report.source, "train", report.val_fraction)
    config = plan.config
    transform = augmentation(
        config.augment or "plain", plan.resize, config.image_size, plan.max_size
    )
    samples = Samples(dataset, transform, config.seed)
    panels = []
    for i in _spread(np.arange(len(dataset)), 3):
        for epoch in range(_COLUMNS):
            image, target = samples[(epoch, i)]
            height, width = image.shape[1:]
            boxes = box_cxcywh_to_xyxy(target["boxes"]) * torch.tensor(
                [width, height, width, height]
            )
            panel = _panel(image, boxes, target["labels"].tolist(), dataset.class_names)
            panels.append(
                (panel, f"image {target['image_id']}, epoch {epoch}: {width}x{height} px")
            )
    return grid(panels, _COLUMNS)


def _spread(places: np.ndarray, count: int) -> list[int]:
    """At most `count` of them, evenly."""
    return (
        [int(places[k * len(places) // count]) for k in range(count)]
        if len(places) > count
        else places.tolist()
    )


def _panel(
    image: Tensor, boxes: Tensor, labels: list[int], class_names: tuple[str, ...]
) -> Image.Image:
    """The image with its boxes (xyxy pixels), at most `_PANEL_PX` large unless it has to be
    enlarged to be seen."""
    picture = to_pil(image)
    scale = min(1.0, _PANEL_PX / max(picture.size))
    picture.thumbnail((_PANEL_PX, _PANEL_PX))
    names = [class_names[label] if len(labels) <= _MOST_TAGS else "" for label in labels]
    return draw_boxes(picture, boxes * scale, names, None, labels)


def _histograms(report: Report) -> Image.Image:
    """Sizes, shapes, objects per image and per class; of each split as a share of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    sides = {s: (a.boxes[:, 2:] - a.boxes[:, :2])[~a.iscrowd] for s, a in report.splits.items()}
    areas = {split: np.sqrt(side.prod(1)) for split, side in sides.items()}
    shapes = {split: side[:, 0] / side[:, 1] for split, side in sides.items()}
    counts = {split: annotations.object_counts() for split, annotations in report.splits.items()}
    _plot_shares(axes[0], areas, _octaves(areas), "Size of objects: root of the area, px")
    axes[0].set_xscale("log")
    _plot_shares(axes[1], shapes, _octaves(shapes), "Shape of objects: width / height")
    axes[1].set_xscale("log")
    most = max((count.max(initial=0) for count in counts.values()), default=0)
    _plot_shares(
        axes[2], counts, np.linspace(0, most + 1, min(most + 2, _BINS)) - 0.5, "Objects per image"
    )
    _plot_classes(axes[3], report.classes())
    return drawn(figure)


def _octaves(values: dict[Split, np.ndarray]) -> np.ndarray:
    """Edges of bins that grow by a factor, around 1 and all values."""
    everything = np.concatenate([*values.values(), [1]])
    return np.geomspace(everything.min(), everything.max() * 1.01, _BINS)


def _plot_shares(
    axes: "Axes", values: dict[Split, np.ndarray], bins: np.ndarray, title: str
) -> None:
    """A histogram of each split, in percent."""
    for i, (split, found) in enumerate(values.items()):
        weights = np.full(len(found), 100 / max(1, len(found)))
        axes.hist(found, bins.tolist(), weights=weights, alpha=0.5, color=_color(i), label=split)
    axes.set_ylabel("%")
    if values:
        axes.legend(frameon=False)
    _title(axes, title)


def _plot_classes(axes: "Axes", classes: dict[str, dict[str, int]]) -> None:
    """Bars for the most common classes."""
    common = sorted(classes.items(), key=lambda item: -sum(item[1].values()))[:_MOST_CLASSES]
    start = np.zeros(len(common))
    for i, split in enumerate(common[0][1] if common else ()):
        counts = np.array([count[split] for _, count in common])
        axes.bar(range(len(common)), counts, bottom=start, alpha=0.5, color=_color(i), label=split)
        start += counts
    axes.set_xticks(
        range(len(common)), [name[:20] for name, _ in common], rotation=90 if len(common) > 8 else 0
    )
    _title(
        axes,
        "Objects per class" + f", the {_MOST_CLASSES} most common" * (len(classes) > _MOST_CLASSES),
    )


def _color(number: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_color(number + 1))


def _title(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def _parts(report: Report, pictures: dict[str, Image.Image]) -> list[str]:
    """What the page holds."""
    figures = report.figures()
    faults = [
        [f.severity, f.code, f"{f.file} {f.where}", f.text, f.remedy, f"{f.count:,}"]
        for f in report.faults
    ]
    return [
        f"<h1>{escape(report.source)}</h1>",
        f"<p class='{'error' if report.errors else 'ready'}'>{escape(report.verdict)}</p>",
        table(
            ["split", *next(iter(figures.values()), ())],
            [[split, *row.values()] for split, row in figures.items()],
        ),
        "<h2>What is wrong, and what to do</h2>" if faults else "",
        table(["", "", "where", "what", "what to do", "times"], faults),
        *(f"<h2>{title}</h2>{picture(image, title)}" for title, image in pictures.items()),
        "<h2>Classes</h2>",
        table(
            ["class", *report.splits],
            [[name, *counts.values()] for name, counts in report.classes().items()],
        ),
    ]
