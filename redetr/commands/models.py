"""`redetr models`"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from rich.table import Table

from redetr.commands.console import OUT, print_json
from redetr.models import MODELS


@dataclass(frozen=True)
class Models:
    """The models one can build, with their size."""

    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        rows: list[dict[str, Any]] = []
        with torch.device("meta"):
            for name, function in MODELS.items():
                model = function(80)
                rows.append({
                    "model": name, "parameters": sum(p.numel() for p in model.parameters()),
                    "queries": model.num_queries, "image_size": model.image_size,
                    "about": (function.__doc__ or "").splitlines()[0],
                })  # fmt: skip
        if self.json:
            print_json(rows)
            return
        table = Table("model", "parameters", "queries", "image size", "about")
        for row in rows:
            size = f"{row['parameters'] / 1e6:.1f} M"
            table.add_row(row["model"], size, str(row["queries"]), str(row["image_size"]), row["about"])
        OUT.print(table)


parse = partial(tyro.cli, Models, prog="redetr models")
