"""The demo: train for minutes, then show what was learned."""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from redetr.commands.run_pictures import CURVES, PREDICTIONS, draw_run
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.distributed import process_group
from redetr.errors import InputError
from redetr.files import first_bytes
from redetr.lock import FolderLock
from redetr.models import build
from redetr.monitor import in_percent
from redetr.recipes import get_recipe
from redetr.training import train

_MARK_NAME = "demo"  # a file in the folder of a demo, by which the next one may replace it
_MARK = "This folder was written by redetr demo, which may delete it.\n"
# Three to five minutes on two cores.
_STEPS = {
    ("digits", "redetr_n"): 1500,
    ("crowns", "redetr_n"): 1200,
    ("crowns", "redetr_mobile"): 600,
}
_OTHER_STEPS = 600


def demo(data: str, folder: Path, steps: int, console: Console, recipe: str = "redetr_n") -> None:
    """Trains a recipe on `data` into `folder` (replacing an earlier demo there), draws curves and
    predictions, and prints the next steps on `console`.

    Raises InputError if `folder` exists and was not written by a demo, or if a run is in
    progress there.
    """
    if folder.exists() and not _is_earlier_demo(folder):
        text = "exists and is not an earlier demo"
        raise InputError(text, where=folder, remedy="give another --output")
    config = demo_config(data, folder, steps, recipe)
    # Before an earlier demo is removed.
    config.check(world_size=1)
    build(config.model, 1, **config.model_kwargs())
    open_dataset(data, "val")
    with process_group("cpu") as dist, FolderLock(folder, dist) as lock:
        dist.main_only(_clear)(folder, keep=(lock.path.name, _MARK_NAME))
        dist.main_only((folder / _MARK_NAME).write_text)(_MARK)
    result = train(config, console, after_evaluation=draw_run)
    console.print(_next_steps(result, folder, recipe), soft_wrap=True, markup=False)


def _clear(folder: Path, keep: tuple[str, ...]) -> None:
    """Deletes what is in the folder of an earlier demo, but for the names to `keep`."""
    for path in list(folder.iterdir()):
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_earlier_demo(folder: Path) -> bool:
    return first_bytes(folder / _MARK_NAME, len(_MARK) + 1) == _MARK.encode()


def _next_steps(result: dict[str, Any], folder: Path, recipe: str) -> str:
    """The results of the demo, and the next steps."""
    ap = in_percent(result["AP"])
    ap50 = in_percent(result["AP50"])
    minutes = result["time_s"] / 60
    predictions = folder / PREDICTIONS
    curves = folder / CURVES
    checkpoint = shlex.quote(str(folder / "best.pt"))
    return (
        f"\nAP {ap}, AP50 {ap50} after {minutes:.1f} minutes of training. Next:\n"
        "  look at    "
        f"{predictions} (left: ground truth, right: predictions) and {curves}\n"
        "  predict    "
        f"redetr predict {checkpoint} IMAGE_OR_FOLDER\n"
        "  your data  "
        f"redetr train {recipe} --data FOLDER --output runs/mine   "
        "(COCO, YOLO, VOC, LabelMe, ...)"
    )


def demo_config(data: str, folder: Path, steps: int, recipe: str = "redetr_n") -> TrainConfig:
    """The recipe, shortened to a demo."""
    length = steps or _STEPS.get((data, recipe), _OTHER_STEPS)
    settings = get_recipe(recipe)
    return replace(settings, data=data, output=str(folder), steps=length, epochs=0.0, patience=0)
