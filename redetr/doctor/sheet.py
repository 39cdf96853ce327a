"""What a data set looks like: samples with their boxes, histograms, and the page of a check."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.data import DetectionDataset, open_dataset
from redetr.data.annotations import Annotations, Split
from redetr.data.loader import Samples
from redetr.data.transforms import augmentation, final_size
from redetr.doctor.check import Report
from redetr.doctor.plan import Plan
from redetr.pages.drawing import class_color, draw_boxes, grid, save_image
from redetr.pages.images import data_uri, figure_image
from redetr.pages.templates import render, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL_PX = 400
_COLUMNS = 4
_SAMPLES: dict[Split, int] = {"train": 8, "val": 4, "test": 4}
_AUGMENTED_SAMPLES = 3
_BINS = 31
_MOST_CLASSES = 30  # in the histogram, the most common ones
_MOST_LEVEL_NAMES = 8  # names of more classes are turned upright


def write_report(report: Report, folder: Path, augmented: bool = False) -> None:
    """Writes `index.html`, which needs no other file, and `sheet.png` into the folder.

    With `augmented`, it also writes `augmented.png`. Raises InputError if that is wanted of a data
    set that has errors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = {"Histograms": _histograms(report)}
    sheet = sample_sheet(report)
    if sheet is not None:
        save_image(sheet, folder / "sheet.png")
        images["Samples with their boxes"] = sheet
    if augmented:
        training_sheet = augmented_sheet(report)
        save_image(training_sheet, folder / "augmented.png")
        images["Samples as training sees them"] = training_sheet
    write_page(folder / "index.html", _page(report, images))


def sample_sheet(report: Report) -> Image.Image | None:
    """Readable images of each split with their boxes; None if there are none with objects."""
    panels = []
    for split, annotations in report.splits.items():
        usable = annotations.object_counts() > 0
        for index, header in enumerate(report.headers.get(split, [])):
            if header.problem:
                usable[index] = False
        for index in _spread(np.flatnonzero(usable), _SAMPLES[split]):
            panel = _stored_panel(report, split, annotations, index)
            file_name = annotations.path(index).name
            panels.append((panel, f"{split}: {file_name}"))
    if not panels:
        return None
    return grid(panels, _COLUMNS)


def augmented_sheet(report: Report) -> Image.Image:
    """Training images in successive epochs, as the recipe shows them to the model."""
    dataset = open_dataset(report.source, "train", report.val_fraction)
    samples = _training_samples(report.plan, dataset)
    panels = []
    for index in _spread(np.arange(len(dataset)), _AUGMENTED_SAMPLES):
        for epoch in range(_COLUMNS):
            image, target = samples[(epoch, index)]
            height, width = image.shape[1:]
            scale = torch.tensor([width, height, width, height])
            boxes = box_cxcywh_to_xyxy(target["boxes"]) * scale
            labels = target["labels"].tolist()
            panel = _panel(image, boxes, labels, dataset.class_names)
            caption = f"image {target['image_id']}, epoch {epoch}: {width}x{height} px"
            panels.append((panel, caption))
    return grid(panels, _COLUMNS)


def _training_samples(plan: Plan, dataset: DetectionDataset) -> Samples:
    config = plan.config
    final = final_size(plan, config.image_size)
    transform = augmentation(config.augment, final)
    return Samples(dataset, transform, config.seed)


def _spread(indices: np.ndarray, count: int) -> list[int]:
    """At most `count` of the indices, evenly."""
    if len(indices) <= count:
        return indices.tolist()
    steps = np.arange(count)
    chosen = steps * len(indices) // count
    return indices[chosen].tolist()


def _stored_panel(
    report: Report, split: Split, annotations: Annotations, index: int
) -> Image.Image:
    """The image with the boxes that the data set has for it."""
    start, stop = annotations.first[index : index + 2]
    objects = slice(start, stop)
    boxes = torch.from_numpy(annotations.boxes[objects])
    labels = annotations.labels[objects].tolist()
    image = report.pixels(split, index)
    return _panel(image, boxes, labels, annotations.class_names)


def _panel(
    image: Tensor, boxes: Tensor, labels: list[int], class_names: tuple[str, ...]
) -> Image.Image:
    """The image with its boxes (xyxy pixels), at most `_PANEL_PX` large."""
    # A single class needs no names, which would hide more than they say.
    names = [class_names[label] if len(class_names) > 1 else "" for label in labels]
    colors = [class_color(label) for label in labels]
    return draw_boxes(image, boxes, names, None, colors, within_px=_PANEL_PX)


def _histograms(report: Report) -> Image.Image:
    """Sizes, shapes, objects per image and per class; each split as shares of its own total."""
    from matplotlib.figure import Figure

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

    figure = Figure(figsize=(12, 7), dpi=100, layout="constrained")
    all_axes = figure.subplots(2, 2)
    size_axes, shape_axes, count_axes, class_axes = all_axes.ravel()

    bins = _octaves(areas_px)
    _plot_shares(size_axes, areas_px, bins)
    _title(size_axes, "Size of objects: root of the area, px")
    size_axes.set_xscale("log")

    bins = _octaves(shapes)
    _plot_shares(shape_axes, shapes, bins)
    _title(shape_axes, "Shape of objects: width / height")
    shape_axes.set_xscale("log")

    bins = _whole_numbers(counts)
    _plot_shares(count_axes, counts, bins)
    _title(count_axes, "Objects per image")

    _plot_classes(class_axes, report.classes())
    return figure_image(figure)


def _octaves(values: dict[Split, np.ndarray]) -> np.ndarray:
    """Edges of bins that grow by a factor, around 1 and all values."""
    everything = np.concatenate([*values.values(), [1]])
    lowest = everything.min()
    highest = everything.max() * 1.01
    return np.geomspace(lowest, highest, _BINS)


def _whole_numbers(counts: dict[Split, np.ndarray]) -> np.ndarray:
    """Edges of bins around all counts, one for each if they are few."""
    most = 0
    for count in counts.values():
        most = max(most, count.max(initial=0))
    edges = min(most + 2, _BINS)
    return np.linspace(0, most + 1, edges) - 0.5


def _plot_shares(axes: "Axes", values: dict[Split, np.ndarray], bins: np.ndarray) -> None:
    """A histogram of each split, in percent."""
    edges = bins.tolist()
    for number, split in enumerate(values):
        of_split = values[split]
        count = len(of_split)
        percent = 100 / max(1, count)
        axes.hist(
            of_split,
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
    names = [name[:20] for name in common]
    upright = len(names) > _MOST_LEVEL_NAMES
    axes.set_xticks(positions, names, rotation=90 if upright else 0)
    title = "Objects per class"
    if len(classes) > _MOST_CLASSES:
        title += f", the {_MOST_CLASSES} most common"
    _title(axes, title)


def _color(number: int) -> str:
    red, green, blue = class_color(number + 1)
    return f"#{red:02x}{green:02x}{blue:02x}"


def _title(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def _page(report: Report, images: dict[str, Image.Image]) -> str:
    pictures = {}
    for title, image in images.items():
        pictures[title] = data_uri(image)
    return render(
        "doctor/sheet.html",
        source=report.source,
        errors=report.errors,
        verdict=report.verdict,
        figures=_table("split", report.figures()),
        faults=report.faults,
        pictures=pictures,
        classes=_table("class", report.classes()),
    )


def _table(title: str, values_of_rows: dict[str, dict[str, Any]]) -> dict[str, list]:
    """Heads and rows of a table, with the name of each row in a first column of that title."""
    heads = [title]
    rows = []
    for name, values in values_of_rows.items():
        heads = [title, *values]
        rows.append([name, *values.values()])
    return {"heads": heads, "rows": rows}
