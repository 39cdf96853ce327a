"""`redetr models`"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.table import Table

import redetr
from redetr.commands.arguments import FLAGS
from redetr.commands.console import OUT, percent, print_json

# `gflops`: by `gflops` below, because counting takes seconds; `speed`: by benchmarks/speed.py;
# `results`: from benchmarks/results. Nothing is a guess.
MEASURED = Path(redetr.__file__).parent / "models" / "measured.json"


@dataclass(frozen=True)
class Models:
    """Lists the models that can be built: variant, size, cost, and measured results."""

    json: bool = False
    """Print JSON instead of tables."""

    def run(self) -> None:
        from redetr.models import MODELS

        measured = json.loads(MEASURED.read_text(encoding="utf-8"))
        rows = [_row(name, measured) for name in MODELS]
        if self.json:
            print_json(rows)
        else:
            _print_models(rows, measured["speed"])


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

    function = MODELS[name]
    with torch.device("meta"):
        model = function(80)
    first_line = (function.__doc__ or "").splitlines()[0]
    speed = measured["speed"]
    return {
        "model": name,
        "form": "faithful" if isinstance(model, DETR) else "fast",
        "parameters": sum(p.numel() for p in model.parameters()),
        "gflops": measured["gflops"].get(name),
        "images_per_s": speed["images_per_s"].get(name),
        "images_per_s_on": speed["hardware"],
        "image_size": model.image_size,
        "queries": model.num_queries,
        "about": first_line,
        "measured": [result for result in measured["results"] if result["model"] == name],
    }


def _print_models(rows: list[dict[str, Any]], speed: dict[str, Any]) -> None:
    columns = ("model", "variant", "size", "GFLOPs", "images/s", "px", "queries")
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    about = Table("model", "about", box=box.SIMPLE_HEAD, pad_edge=False)
    results = Table("measured", "AP", "AP50", "trained", "on", box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        size = f"{row['parameters'] / 1e6:.1f} M"
        numbers = []
        for name in ("gflops", "images_per_s", "image_size", "queries"):
            numbers.append(str(row[name] or "-"))
        table.add_row(row["model"], row["form"], size, *numbers)
        about.add_row(row["model"], row["about"])
        for result in row["measured"]:
            trained = f"{result['steps']} steps, {result['train_minutes']} min"
            results.add_row(
                f"{row['model']}, {result['data']}",
                percent(result["AP"]),
                percent(result["AP50"]),
                trained,
                f"{result['hardware']}, {result['date']}",
            )
    about.columns[0].no_wrap = results.columns[0].no_wrap = True
    OUT.print(table)
    OUT.print(
        "size: parameters with 80 classes; GFLOPs: for one image of px x px, a multiplication and "
        "its addition are 2;\n"
        f"images/s: the model alone, one such image at a time, fp32, on {speed['hardware']}, "
        f"{speed['date']}\n"
    )
    OUT.print(about, results)


parse = partial(tyro.cli, Models, prog="redetr models", config=FLAGS)
