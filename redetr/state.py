"""What a run is at one moment: weights, their average, optimizer, position; how it is saved and
resumed."""

import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from redetr.checkpoint import newest_checkpoint, save_checkpoint
from redetr.config import TrainConfig
from redetr.data import DetectionDataset
from redetr.data.inventory import inventory, require_unchanged
from redetr.data.open import absolute_source
from redetr.distributed import Dist
from redetr.ema import ModelEma
from redetr.errors import InputError
from redetr.files import remove_unfinished, write_json
from redetr.structures import DetectionModel

# A resumed run may say these anew; all else decides what is computed.
_MAY_CHANGE = {
    "output",
    "data",
    "resume",
    "device",
    "compile",
    "accumulate",
    "num_workers",
    "cache_mb",
    "cache_dir",
    "log_every",
    "eval_every",
    "save_every",
    "timeout_s",
    "patience",
    "recompute",
    "eval_batch_size",
}


@dataclass
class State:
    """All that a checkpoint holds and a resumed run needs.

    The data order, augmentation, dropout and the learning rate are functions of the config and
    `step`.
    """

    config: TrainConfig
    model: DetectionModel
    ema: ModelEma
    optimizer: torch.optim.Optimizer
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_images: int
    notes: list[str] = field(default_factory=list)  # what the user is told about the start
    step: int = 0
    train_time_s: float = 0.0  # without evaluation
    best: dict[str, float] = field(default_factory=lambda: {"AP": -1.0, "step": 0})
    since_best: int = 0  # evaluations
    evaluated: int = 0  # the step of the last one

    def about(self) -> dict[str, Any]:
        """What is needed to use the weights without the run, from any directory."""
        return {
            "config": self.config.to_dict(),
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "step": self.step,
            "best": self.best,
            "data": absolute_source(self.config.data),
        }

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.step * self.config.batch_size // self.num_images,
            "train_time_s": self.train_time_s,
            "since_best": self.since_best,
            "evaluated": self.evaluated,
            "num_images": self.num_images,
            **self.about(),
        }

    def record(self, ap: float | None) -> bool:
        """Notes the AP of an evaluation, counted once if it is repeated; whether it is the best."""
        self.since_best += self.step > self.evaluated
        self.evaluated = self.step
        better = (ap or 0.0) > self.best["AP"]
        if better:
            self.since_best, self.best = 0, {"AP": ap or 0.0, "step": self.step}
        return better

    def ending(self) -> str:
        """Why the run goes no further; empty if it does."""
        steps, patience = self.config.steps, self.config.patience
        if self.step == steps:
            return f"all {steps} steps are done"
        if 0 < patience <= self.since_best:
            without = (
                f"{self.since_best} evaluations in a row without a better AP (--patience "
                f"{patience})"
            )
            return f"ended early at step {self.step} of {steps}, after {without}"
        return ""

    def save(self, folder: Path) -> None:
        """Writes `last.pt`; the one before it stays as `previous.pt`."""
        save_checkpoint(folder / "last.pt", self.to_dict(), folder / "previous.pt")

    def restore(self, path: Path, saved: dict[str, Any]) -> None:
        """Continues from the checkpoint `saved` in `path`. Raises InputError if it is of another
        run."""
        before, now = TrainConfig.from_dict(saved["config"]), self.config
        for name in sorted(asdict(now).keys() - _MAY_CHANGE):
            if getattr(before, name) != getattr(now, name):
                raise InputError(
                    f"{path}: saved with {name}={getattr(before, name)}, resumed with "
                    f"{getattr(now, name)}: "
                    f"redetr train {shlex.quote(str(path.parent))} --resume takes all settings "
                    "from the run"
                )
        if (
            saved["category_ids"] != list(self.category_ids)
            or saved["num_images"] != self.num_images
        ):
            raise InputError(
                f"{path}: saved with other data ({saved['num_images']} images): give another "
                "--output"
            )
        self.model.load_state_dict(saved["model"])
        self.ema.model.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best, self.train_time_s = (
            saved["step"],
            saved["best"],
            saved["train_time_s"],
        )
        self.since_best, self.evaluated = (
            saved.get("since_best", 0),
            saved.get("evaluated", 0),
        )  # older ones have none


def start_folder(
    folder: Path, state: State, datasets: dict[str, DetectionDataset], dist: Dist
) -> list[str]:
    """Creates the run folder, or restores `state` from it; returns what to tell the user.
    Communicates.

    Raises InputError if a run is there already, if it cannot be resumed, if its `datasets` have
    changed, or if ranks see different folders. Nothing is written then.
    """
    newest = newest_checkpoint(folder)
    if newest and not state.config.resume:
        raise InputError(
            f"{folder}: holds a run already: use --resume to continue it, or another --output"
        )
    if newest:
        path, saved, notes = newest
        state.restore(path, saved)
        notes.append(f"resumed from {path} at step {state.step}")
    else:
        notes = [f"nothing to resume in {folder}, starting anew"] if state.config.resume else []
    # Also a barrier: nobody creates the folder before everybody has looked into it.
    steps = dist.gather_rows([state.step])()[:, 0].tolist()
    if len(set(steps)) > 1:
        raise InputError(
            f"{folder}: ranks found different checkpoints there, of steps {steps}: --output must "
            "be a "
            "folder that all hosts share"
        )
    inventories = {split: inventory(data, dist) for split, data in datasets.items()}
    if newest:
        require_unchanged(folder / "data.json", inventories)
    folder.mkdir(parents=True, exist_ok=True)
    dist.main_only(remove_unfinished)(folder)
    dist.main_only(write_json)(folder / "config.json", state.config.to_dict())
    dist.main_only(write_json)(folder / "data.json", inventories)
    return notes
