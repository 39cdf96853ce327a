"""The page of a check: samples with their boxes, and histograms."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.data import DetectionDataset, open_dataset
from redetr.data.annotations import Split
from redetr.data.loader import Samples
from redetr.data.transforms import augmentation, final_size
from redetr.doctor.check import Report
from redetr.doctor.plan import Plan
from redetr.doctor.samples import augmented_samples
from redetr.errors import InputError
from redetr.pages.drawing import class_color, draw_objects, grid, save_image
from redetr.pages.images import data_uri, figure_image, figure_text
from redetr.pages.templates import render, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_PX = 400
_FEW_PANELS_PX = 800  # if a row is not full
_COLUMNS = 4
_BINS = 31
_HISTOGRAM_PX = 600, 350
_HISTOGRAM_DPI = 100
_FEW_OCTAVES = 8  # of a scale: below this, there are numbers between the powers of 2
_MOST_CLASSES = 30  # in the histogram, the most common ones
_MOST_LEVEL_NAMES = 8  # the names of more classes are rotated


def write_report(report: Report, folder: Path, augmented: bool = False) -> None:
    """Writes `index.html`, which needs no other file, and `sheet.png` to the folder.

    With `augmented`, also writes `augmented.png`, and raises InputError if the data set has errors.
    Pictures of an earlier report that this one does not have are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    sheet = sample_sheet(report)
    _write_sheet(sheet, folder / "sheet.png")
    if sheet is not None:
        images["Samples with their boxes"] = sheet
    training_sheet = augmented_sheet(report) if augmented else None
    _write_sheet(training_sheet, folder / "augmented.png")
    if training_sheet is not None:
        images["Samples as training sees them"] = training_sheet
    write_page(folder / "index.html", _page(report, images))


def _write_sheet(sheet: Image.Image | None, file: Path) -> None:
    """Replaces the picture of an earlier report; without a sheet, removes it."""
    if sheet is None:
        file.unlink(missing_ok=True)
    else:
        save_image(sheet, file)


def sample_sheet(report: Report) -> Image.Image | None:
    """Samples of each split with their boxes, without those that cannot be decoded; None if there
    are none."""
    within_px = _PANEL_PX if len(report.samples) >= _COLUMNS else _FEW_PANELS_PX
    panels = []
    for split, index in report.samples:
        try:
            panel = _stored_panel(report, split, index, within_px)
        except InputError:  # a fault of the report if the samples were decoded for it
            continue
        file_name = report.splits[split].path(index).name
        panels.append((panel, f"{split}: {file_name}"))
    if not panels:
        return None
    return grid(panels, _COLUMNS)


def augmented_sheet(report: Report) -> Image.Image:
    """Training images in successive epochs, as the model sees them with this recipe."""
    dataset = open_dataset(report.source, "train", report.val_fraction)
    samples = _training_samples(report.plan, dataset)
    panels = []
    for index in augmented_samples(len(dataset)):
        for epoch in range(_COLUMNS):
            image, target = samples[(epoch, index)]
            height, width = image.shape[1:]
            scale = torch.tensor([width, height, width, height])
            boxes = box_cxcywh_to_xyxy(target["boxes"]) * scale
            labels = target["labels"].tolist()
            panel = draw_objects(image, boxes, labels, dataset.class_names, _PANEL_PX)
            caption = f"image {target['image_id']}, epoch {epoch}: {width}x{height} px"
            panels.append((panel, caption))
    return grid(panels, _COLUMNS)


def _training_samples(plan: Plan, dataset: DetectionDataset) -> Samples:
    config = plan.config
    final = final_size(plan, config.image_size)
    transform = augmentation(config.augment, final)
    return Samples(dataset, transform, config.seed)


def _stored_panel(report: Report, split: Split, index: int, within_px: int) -> Image.Image:
    """The image with its boxes in the data set."""
    annotations = report.splits[split]
    start, stop = annotations.first[index : index + 2]
    objects = slice(start, stop)
    boxes = torch.from_numpy(annotations.boxes[objects])
    labels = annotations.labels[objects].tolist()
    image = report.pixels(split, index)
    return draw_objects(image, boxes, labels, annotations.class_names, within_px)


def _histograms(report: Report) -> dict[str, Image.Image]:
    """Histograms of sizes, shapes, and objects per image and per class, by title. Each split is
    shown as shares of its total."""
    areas_px: dict[Split, np.ndarray] = {}  # as the side of a square
    shapes: dict[Split, np.ndarray] = {}
    counts: dict[Split, np.ndarray] = {}
    for split, annotations in report.splits.items():
        is_object = ~annotations.iscrowd
        objects = annotations.boxes[is_object]
        left, top, right, bottom = objects.T
        widths = right - left
        heights = bottom - top
        areas_px[split] = np.sqrt(widths * heights)
        shapes[split] = widths / heights
        counts[split] = annotations.object_counts()

    classes = report.classes()
    class_title = "Objects per class"
    if len(classes) > _MOST_CLASSES:
        class_title += f", the {_MOST_CLASSES} most common"
    plots: dict[str, Callable[[Axes], None]] = {
        "Size of objects: root of the area, px": partial(_plot_ratios, values=areas_px),
        "Shape of objects: width / height": partial(_plot_ratios, values=shapes),
        "Objects per image": partial(_plot_counts, values=counts),
        class_title: partial(_plot_classes, classes=classes),
    }
    return {title: _histogram(title, plot) for title, plot in plots.items()}


def _histogram(title: str, plot: "Callable[[Axes], None]") -> Image.Image:
    from matplotlib.figure import Figure

    width, height = _HISTOGRAM_PX
    size = width / _HISTOGRAM_DPI, height / _HISTOGRAM_DPI
    figure = Figure(figsize=size, dpi=_HISTOGRAM_DPI, layout="constrained")
    axes = figure.subplots()
    plot(axes)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    return figure_image(figure)


def _plot_ratios(axes: "Axes", values: dict[Split, np.ndarray]) -> None:
    """Plots values on a logarithmic scale that is labelled with plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    edges = _octaves(values)
    _plot_shares(axes, values, edges)
    axes.set_xscale("log", base=2)
    few_octaves = edges[-1] < _FEW_OCTAVES * edges[0]
    subs = (1.0, 1.5) if few_octaves else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(2, subs))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plot_counts(axes: "Axes", values: dict[Split, np.ndarray]) -> None:
    from matplotlib.ticker import MaxNLocator

    _plot_shares(axes, values, _whole_numbers(values))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _octaves(values: dict[Split, np.ndarray]) -> np.ndarray:
    """Edges of logarithmic bins, from a power of 2 below all values to one above; from 1/2 to 2 if
    there are no values."""
    everything = np.concatenate([*values.values()]) if values else np.ones(1)
    if not len(everything):
        everything = np.ones(1)
    lowest = np.floor(np.log2(everything.min()))
    highest = np.ceil(np.log2(everything.max()))
    if lowest == highest:
        lowest -= 1
        highest += 1
    return np.logspace(lowest, highest, _BINS, base=2)


def _whole_numbers(counts: dict[Split, np.ndarray]) -> np.ndarray:
    """Edges of bins that cover all counts, with equally many whole numbers each."""
    most = 0
    for split_values in counts.values():
        most = max(most, int(split_values.max(initial=0)))
    per_bin = most // _BINS + 1
    bins = most // per_bin + 1
    return np.arange(bins + 1) * per_bin - 0.5


def _plot_shares(axes: "Axes", values: dict[Split, np.ndarray], bins: np.ndarray) -> None:
    """A histogram of each split, in percent."""
    edges = bins.tolist()
    for number, split in enumerate(values):
        split_values = values[split]
        count = len(split_values)
        percent = 100 / max(1, count)
        axes.hist(
            split_values,
            edges,
            weights=np.full(count, percent),
            alpha=0.5,
            color=_color(number),
            label=split,
        )
    axes.set_ylabel("%")
    if values:
        axes.legend(frameon=False)


def _plot_classes(axes: "Axes", classes: dict[str, dict[str, int]]) -> None:
    """Bars for the most common classes, the splits stacked."""

    def objects(name: str) -> int:
        return sum(classes[name].values())

    common = sorted(classes, key=objects, reverse=True)[:_MOST_CLASSES]
    positions = range(len(common))
    splits = classes[common[0]] if common else {}
    bottom = np.zeros(len(common))
    for number, split in enumerate(splits):
        counts = np.array([classes[name][split] for name in common])
        axes.bar(
            positions,
            counts,
            bottom=bottom,
            alpha=0.5,
            color=_color(number),
            label=split,
        )
        bottom += counts
    names = [figure_text(name[:20]) for name in common]
    upright = len(names) > _MOST_LEVEL_NAMES
    axes.set_xticks(positions, names, rotation=90 if upright else 0)
    axes.set_xlim(-1, max(len(names), 2))  # keeps bars narrow if there are few classes
    axes.set_ylabel("objects")
    if splits:
        axes.legend(frameon=False)


def _color(number: int) -> str:
    red, green, blue = class_color(number + 1)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _page(report: Report, images: dict[str, Image.Image]) -> str:
    histograms = {title: data_uri(image) for title, image in _histograms(report).items()}
    pictures = {title: data_uri(image) for title, image in images.items()}
    return render(
        "doctor/sheet.html",
        source=report.source,
        errors=report.errors,
        verdict=report.verdict,
        figures=_table("split", report.figures()),
        faults=report.faults,
        histograms=histograms,
        pictures=pictures,
        classes=_table("class", report.class_columns()),
    )


def _table(title: str, values_of_rows: dict[str, dict[str, Any]]) -> dict[str, list]:
    """The heads and rows of a table, whose first column has this title and the names of the
    rows."""
    heads = [title]
    rows = []
    for name, values in values_of_rows.items():
        heads = [title, *values]
        cells = [f"{value:,}" if isinstance(value, int) else value for value in values.values()]
        rows.append([name, *cells])
    return {"heads": heads, "rows": rows}
