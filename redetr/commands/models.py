"""`redetr models`"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

import redetr
from redetr.commands.arguments import parse_flags
from redetr.commands.console import OUT, print_json
from redetr.garbage import quick_imports
from redetr.wording import counted, percent

# `gflops`: by `gflops` below, because counting takes seconds; `results`: from benchmarks/results.
# Nothing is a guess.
MEASURED = Path(redetr.__file__).parent / "models" / "measured.json"


@dataclass(frozen=True)
class Models:
    """List the models: published weights with their licence, size and cost, and measured
    results."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        with quick_imports():
            from redetr.models import MODELS

        measured = json.loads(MEASURED.read_text(encoding="utf-8"))
        rows = [_row(name, measured) for name in MODELS]
        if self.json:
            print_json(rows)
        else:
            _print_models(rows)


def gflops(name: str) -> float:
    """The cost of a model in 1e9 operations, for one square image of its default size.

    A multiplication with its addition is two operations. As usual, convolutions, matrix products
    and attention count. Nothing is computed: the model is on the meta device.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from redetr.models import MODELS

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = MODELS[name](80).eval().requires_grad_(False)
        model(torch.empty(1, 3, model.image_size, model.image_size))
    return round(counter.get_total_flops() / 1e9, 1)


def _row(name: str, measured: dict[str, Any]) -> dict[str, Any]:
    import torch

    from redetr.models import MODELS
    from redetr.models.detr import DETR
    from redetr.models.dfine import DFINE
    from redetr.models.panoptic import PanopticDETR
    from redetr.models.rtdetr import RTDETR
    from redetr.weights.published import PUBLISHED

    function = MODELS[name]
    with torch.device("meta"):
        model = function(80)
    first_line = (function.__doc__ or "").splitlines()[0]
    published = PUBLISHED.get(name)
    form = "fast"
    if isinstance(model, DETR):
        form = "faithful"
    elif isinstance(model, PanopticDETR):
        form = "panoptic"
    elif isinstance(model, DFINE):
        form = "D-FINE"
    elif isinstance(model, RTDETR):
        form = "RT-DETR"
    return {
        "model": name,
        "form": form,
        "published_AP": published.ap if published else None,
        "published_mask_AP": published.mask_ap if published else None,
        "published_PQ": published.pq if published else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": measured["gflops"].get(name),
        "image_size": model.image_size,
        "queries": model.num_queries,
        "licence": published.licence if published else None,
        "origin": published.origin if published else None,
        "about": first_line,
        "measured": [result for result in measured["results"] if result["model"] == name],
    }


def _print_models(rows: list[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "AP", "PQ", "size", "GFLOPs", "px", "queries", "licence"):
        is_number = column not in ("model", "licence")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    # In a separate table, because a name that is broken over lines cannot be copied.
    origins = Table("model", "origin", box=box.SIMPLE_HEAD, pad_edge=False)
    results = Table("measured", "AP", "AP50", "trained", "on", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        size = f"{row['parameters'] / 1e6:.1f} M"
        cells = [row["model"], _shown(row["published_AP"]), _shown(row["published_PQ"])]
        cells += [size, _shown(row["gflops"])]
        cells += [str(row["image_size"]), str(row["queries"])]
        cells += [_shown(row["licence"])]
        table.add_row(*cells)
        if row["origin"]:
            origins.add_row(row["model"], row["origin"])
        for result in row["measured"]:
            trained = f"{counted(result['steps'], 'step')}, {result['train_minutes']} min"
            results.add_row(
                f"{row['model']}, {result['data']}",
                percent(result["AP"]),
                percent(result["AP50"]),
                trained,
                f"{result['hardware']}, {result['date']}",
            )
    table.columns[0].no_wrap = results.columns[0].no_wrap = True
    OUT.print(table)
    OUT.print(
        "AP: of boxes on COCO val 2017, as the authors of the weights report it; PQ: panoptic "
        "quality, from the same source; size: parameters with 80 classes; GFLOPs: for one image "
        "of px x px, a multiplication and its addition are 2\n"
    )
    OUT.print(origins)
    OUT.print("origin: what redetr train --weights and redetr.load take, and download\n")
    OUT.print(results)


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


parse = partial(parse_flags, Models, prog="redetr models")
