"""`redetr evaluate`"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import tyro
from rich.progress import Progress

from redetr.commands.console import ERRORS, print_json, print_result, require_images
from redetr.data import open_dataset
from redetr.distributed import process_group
from redetr.errors import InputError
from redetr.evaluate import evaluate
from redetr.predict import load


@dataclass(frozen=True)
class Evaluate:
    """COCO numbers of a checkpoint: twelve of them, and AP per class."""

    checkpoint: tyro.conf.Positional[str]
    """A checkpoint, a run folder, an official DETR file, or a Transformers folder."""
    data: str | None = None
    """digits, crowns, or a folder; default: what the checkpoint was trained on."""
    val_fraction: float | None = None
    """Share held out of data without a val split; default: that of the training run."""
    batch_size: int = 16
    """Images at once."""
    device: str = "auto"
    """auto, cpu or cuda."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = bf16 where the hardware multiplies it fast."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> None:
        require_images(self.batch_size)
        detector = load(self.checkpoint, device=self.device, precision=self.precision)
        source = self.data or detector.trained_on
        if source is None:
            raise InputError(f"{self.checkpoint} does not say what it was trained on: give --data")
        held_out = detector.val_fraction if self.val_fraction is None else self.val_fraction
        dataset = open_dataset(source, "val", held_out)
        with process_group(self.device) as dist, Progress(console=ERRORS, disable=self.json) as progress:
            task = progress.add_task("evaluating", total=len(dataset))
            result = evaluate(
                detector.model, dataset, dist, image_size=detector.image_size, batch_size=self.batch_size,
                dtype=detector.dtype, classes=detector.classes,
                on_batch=lambda images: progress.advance(task, images * dist.world_size),
            )  # fmt: skip
            dist.main_only(print_json if self.json else print_result)(result.to_dict())


parse = partial(tyro.cli, Evaluate, prog="redetr evaluate")
