"""The page from boxes to loss: `loss.html` and the data that `loss.js` draws."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redetr.boxes import box_cxcywh_to_xyxy, iou_and_giou
from redetr.explain.loss import LossExplanation, Share
from redetr.explain.packing import packed, picture_data
from redetr.losses import DENOMINATOR_OF
from redetr.pages.templates import render, write_page

# Titles of the terms of a layer's loss.
_TERMS = {"loss_ce": "class", "loss_bbox": "L1", "loss_giou": "1 − GIoU"}
_TERMS_OF_MASKS = {"loss_mask": "mask", "loss_dice": "dice"}
_TERMS_OF_EDGES = {"loss_fgl": "edges (FGL)", "loss_ddf": "DDF", "loss_ddn": "DDN"}


def write_loss_page(path: Path, explanation: LossExplanation, image_link: str = "") -> None:
    """Writes the page as a single file."""
    name = explanation.image_name
    heading = f"From boxes to loss: {name}"
    page = loss_page(explanation, f"loss of {name}", heading, image_link)
    write_page(path, page)


def loss_page(
    explanation: LossExplanation, title: str, heading: str = "", image_link: str = ""
) -> str:
    """The page as HTML. `image_link` is a link to the page from image to boxes, if there is one."""
    first = explanation.shares[0]
    queries = explanation.predicted.shape[1]
    class_divisor = first.single_divisors[DENOMINATOR_OF["loss_ce"]]
    return render(
        "explain/loss.html",
        title=title,
        heading=heading,
        image_link=image_link,
        number=format_number,
        config=explanation.config,
        softmax=explanation.config.scores == "softmax",
        queries=queries,
        objects=len(explanation.labels),
        world_size=len(explanation.shares),
        assignment=_assignment(explanation),
        worked_lines=_worked_lines(explanation),
        spread=_Spread.of(explanation),
        matched=min(queries, first.objects),
        class_divisor=class_divisor,
        terms=_terms(explanation),
        mask_note=explanation.mask_note,
        totals=_totals(explanation),
        groups=0 if explanation.noisy is None else explanation.noisy.groups,
        noisy=_noisy_table(explanation),
        data=loss_data(explanation),
    )


def loss_data(explanation: LossExplanation) -> dict[str, Any]:
    """The argument of `explainLoss`, for JSON."""
    num_queries = explanation.predicted.shape[1]
    queries = explanation.queries.clamp(max=num_queries - 1)
    queries_of_boxes = queries[..., None].expand(-1, -1, 4)
    predicted_of_objects = explanation.predicted.gather(1, queries_of_boxes)
    distances = (predicted_of_objects - explanation.targets).abs()
    names = _object_names(explanation)
    data = {
        **picture_data(explanation.image, explanation.class_names),
        "names": names,
        "layers": _layer_names(explanation),
        "letters": letters(len(names)),
        "objects": box_cxcywh_to_xyxy(explanation.targets).tolist(),
        "boxes": packed(box_cxcywh_to_xyxy(explanation.predicted), np.float32),
        "costs": packed(explanation.costs, np.float32),
        "queries": explanation.queries.tolist(),
        "terms": packed(explanation.terms, np.float32),
        "unmatched": packed(explanation.unmatched, np.float32),
        "distances": packed(distances, np.float32),
    }
    noisy = explanation.noisy
    if noisy is not None:
        data["noisy_starts"] = packed(box_cxcywh_to_xyxy(noisy.starts), np.float32)
        data["noisy_boxes"] = packed(box_cxcywh_to_xyxy(noisy.boxes), np.float32)
    return data


def letters(count: int) -> list[str]:
    """Labels that distinguish objects: A to Z, then A1 to Z1, and so on."""
    labels = []
    for index in range(count):
        round_, letter = divmod(index, 26)
        label = chr(ord("A") + letter)
        if round_:
            label += str(round_)
        labels.append(label)
    return labels


def format_number(value: float) -> str:
    """Five digits at most: 0.275, 0.18333, 11.8."""
    return f"{value:.5g}"


@dataclass(frozen=True)
class _Table:
    heads: list[str]
    rows: list[list[str]]


def _object_names(explanation: LossExplanation) -> list[str]:
    """The class name of each object."""
    labels = explanation.labels.tolist()
    return [explanation.class_names[label] for label in labels]


_FIRST_BOXES = "first boxes"  # of D-FINE, proposed within its first layer


def _layer_names(explanation: LossExplanation) -> list[str]:
    """The names of the decoder's layers; D-FINE has one more output, within the first layer."""
    count = len(explanation.predicted)
    if explanation.config.has_edges:
        return [_FIRST_BOXES, *(f"layer {i}" for i in range(1, count))]
    return [f"layer {i}" for i in range(1, count + 1)]


def _assignment(explanation: LossExplanation) -> _Table:
    """The query of every object in every layer."""
    num_queries = explanation.predicted.shape[1]
    heads = ["object", *_layer_names(explanation)]
    names = _object_names(explanation)
    rows = []
    for index, letter in enumerate(letters(len(names))):
        row = [f"{letter}: {names[index]}"]
        for query in explanation.queries[:, index].tolist():
            row.append(f"query {query}" if query < num_queries else "none")
        rows.append(row)
    return _Table(heads, rows)


def _worked_lines(explanation: LossExplanation) -> list[str]:
    """How the L1 loss of the last layer is computed, step by step."""
    shares = explanation.shares
    first = shares[0]
    world_size = len(shares)
    l1_sum = format_number(first.sums["loss_bbox"])
    distances = [format_number(distance) for distance in explanation.terms[-1, :, 1].tolist()]
    if len(distances) > 1:
        lines = [f"L1 distances: {' + '.join(distances)} = {l1_sum}"]
    else:
        lines = [f"L1 distance: {l1_sum}"]

    single_divisor = format_number(first.single_divisors[0])
    single_loss = format_number(first.single_losses["loss_bbox"])
    lines.append(f"one GPU alone: {l1_sum} / {single_divisor} = {single_loss}")
    if world_size == 1:
        return lines

    counts = [share.objects for share in shares]
    total = sum(counts)
    added = " + ".join(map(str, counts))
    average = format_number(total / world_size)
    divisor = format_number(first.divisors[0])
    loss = format_number(first.losses["loss_bbox"])
    lines.append(f"boxes per GPU, on average: ({added}) / {world_size} = {average}")
    lines.append(f"GPU 0 of {world_size}: {l1_sum} / {divisor} = {loss}")
    if not total:
        lines.append("(no object in the whole batch: it is divided as if there were one)")
    return lines


@dataclass(frozen=True)
class _Spread:
    """The L1 loss of a batch that is spread over several GPUs."""

    height: int  # of the padded images, px
    width: int
    rows: list[list[str]]  # one for each GPU
    objects: int
    l1_sum: float  # over all objects of the batch
    mean: float  # over the GPUs
    together: float  # what one GPU with all images computes
    naive: float  # the mean if each GPU divided by its own number of objects

    @property
    def percent_off(self) -> float:
        """The error of the naive mean in percent."""
        return 100 * abs(self.naive - self.mean) / self.mean

    @classmethod
    def of(cls, explanation: LossExplanation) -> "_Spread | None":
        """None for one GPU, or a batch without objects."""
        shares = explanation.shares
        world_size = len(shares)
        objects = sum(share.objects for share in shares)
        if world_size == 1 or not objects:
            return None
        height, width = explanation.canvas
        rows = []
        for gpu, share in enumerate(shares):
            rows.append(_gpu_row(gpu, share, world_size))
        losses = [share.losses["loss_bbox"] for share in shares]
        single_losses = [share.single_losses["loss_bbox"] for share in shares]
        return cls(
            height=height,
            width=width,
            rows=rows,
            objects=objects,
            l1_sum=sum(share.sums["loss_bbox"] for share in shares),
            mean=sum(losses) / world_size,
            together=explanation.together["loss_bbox"],
            naive=sum(single_losses) / world_size,
        )


def _gpu_row(gpu: int, share: Share, world_size: int) -> list[str]:
    weight = f"1/{share.objects * world_size}" if share.objects else "-"
    return [
        f"GPU {gpu}",
        str(share.image_id),
        str(share.objects),
        format_number(share.sums["loss_bbox"]),
        format_number(share.divisors[0]),
        format_number(share.losses["loss_bbox"]),
        weight,
    ]


def _terms(explanation: LossExplanation) -> _Table:
    """Sum, divisor and loss of each term of the last layer."""
    first = explanation.shares[0]
    spread = len(explanation.shares) > 1
    heads = ["term", "sum", "alone: divided by", "loss"]
    if spread:
        heads += ["here: divided by", "loss"]
    rows = []
    titles = dict(_TERMS)
    if explanation.config.has_edges:
        titles["loss_fgl"] = _TERMS_OF_EDGES["loss_fgl"]
    if explanation.config.has_masks:
        titles |= _TERMS_OF_MASKS
    for name, title in titles.items():
        divisor = DENOMINATOR_OF[name]
        values = [first.sums[name], first.single_divisors[divisor], first.single_losses[name]]
        if spread:
            values += [first.divisors[divisor], first.losses[name]]
        rows.append([title, *map(format_number, values)])
    return _Table(heads, rows)


def _noisy_table(explanation: LossExplanation) -> _Table:
    """The start of each noisy query of the first group, and its output in the last layer."""
    heads = ["object", "query", "starts as", "IoU at the start", "IoU at the end", "score"]
    noisy = explanation.noisy
    if noisy is None:
        return _Table(heads, [])
    objects = box_cxcywh_to_xyxy(explanation.targets)
    iou_at_start, _ = iou_and_giou(box_cxcywh_to_xyxy(noisy.starts), objects)  # [2, T]
    iou_at_end, _ = iou_and_giou(box_cxcywh_to_xyxy(noisy.boxes[-1]), objects)
    names = _object_names(explanation)
    rows = []
    for index, letter in enumerate(letters(len(names))):
        for sign, kind in enumerate(("positive", "negative")):
            row = [
                f"{letter}: {names[index]}",
                kind,
                explanation.class_names[noisy.labels[sign, index]],
                f"{iou_at_start[sign, index]:.2f}",
                f"{iou_at_end[sign, index]:.2f}",
                f"{noisy.scores[-1, sign, index]:.3f}",
            ]
            rows.append(row)
    return _Table(heads, rows)


def _suffixes_of_layers(names: list[str]) -> dict[str, str]:
    """What the names of the losses of each layer end with."""
    suffixes = {}
    layers = list(names)
    if layers[0] == _FIRST_BOXES:
        suffixes[_FIRST_BOXES] = "_pre"
        del layers[0]
    for i, name in enumerate(layers):
        suffixes[name] = f"_{i}"
    suffixes[layers[-1]] = ""
    return suffixes


def _totals(explanation: LossExplanation) -> _Table:
    """The terms of every layer and their weighted sum, and the whole loss."""
    config = explanation.config
    losses = explanation.shares[0].losses
    layers = _layer_names(explanation)
    suffixes = _suffixes_of_layers(layers)
    if config.proposals:
        suffixes["proposals of the encoder"] = "_enc"
    if explanation.noisy is not None:
        for name in layers:
            suffixes[f"denoising, {name}"] = f"_dn{suffixes[name]}"

    titles = dict(_TERMS)
    if config.has_edges:  # of some layers
        titles |= _TERMS_OF_EDGES
    if config.has_masks:  # of the last layer
        titles |= _TERMS_OF_MASKS
    rows = []
    for title, suffix in suffixes.items():
        row = [title]
        weighted = 0.0
        for term in titles:
            value = losses.get(term + suffix)
            row.append("-" if value is None else format_number(value))
            weighted += getattr(config, term) * (value or 0.0)
        rows.append([*row, format_number(weighted)])
    blanks = [""] * len(titles)
    rows.append(["total", *blanks, format_number(losses["loss"])])
    return _Table(["", *titles.values(), "weighted sum"], rows)
