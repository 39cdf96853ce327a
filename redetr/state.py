"""The state of a run: weights, their average, optimizer, position; how it is saved and resumed."""

import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from redetr.checkpoint import newest_checkpoint, save_checkpoint
from redetr.choices import augmentation_remedy, augmentation_text
from redetr.config import Settings, TrainConfig
from redetr.data import DetectionDataset
from redetr.data.formats.folder import unreadable_of
from redetr.data.inventory import (
    Inventory,
    copied_images,
    inventory,
    require_unchanged,
    write_inventories,
)
from redetr.data.open import absolute_source
from redetr.data.unreadable import LIST_FILE
from redetr.distributed import Dist
from redetr.earlier import with_present_names
from redetr.ema import ModelEma
from redetr.errors import InputError
from redetr.files import remove_unfinished, write_json
from redetr.judging import by_importance, in_words, is_better, judge_of
from redetr.launch import read_launch
from redetr.micro_batches import why_micro_batches_matter
from redetr.models.freezing import trains_only_masks
from redetr.optim import lr_factor
from redetr.recipes import RECIPES
from redetr.structures import DetectionModel
from redetr.trial_choices import KEY as TRIALS
from redetr.trial_choices import TrialChoices
from redetr.wording import counted

_RESULTS = ("best.pt", "best.safetensors")  # of a run that was evaluated
_NO_AP = -1.0  # in older checkpoints, before the first evaluation
# The files that a run writes to its folder. Other commands may write theirs there as well.
_FILES = frozenset(
    ("config.json", "data.json", "data-train.npz", "data-val.npz", "metrics.jsonl", LIST_FILE)
    + ("last.pt", "best.pt", "best.safetensors", "curves.png", "predictions.png")
)
# The settings that a resumed run may change; all others affect the result.
_MAY_CHANGE = {
    "output",
    "data",
    "resume",
    "device",
    "compile",
    "accumulate",  # but see `State._require_same_split`
    "num_workers",
    "threads",
    "loader_timeout_s",
    "cache_mb",
    "cache_dir",
    "log",
    "log_every",
    "eval_every",
    "save_every",
    "pictures",
    "timeout_s",
    "setup_timeout_s",
    "patience",
    "recompute",
    "eval_batch_size",
}

_MODEL_SETTINGS = ("model", "model_options")

_FEWEST_EVALUATIONS = 2  # without a better AP before a run ends early
_FALLEN_RATE = 0.26  # of the base rate: with "cosine" after two thirds of the run

UNRECORDED = "weights that the run did not record"  # of an earlier version


@dataclass
class State:
    """Everything that a checkpoint holds and a resumed run needs.

    The data order, augmentation and the learning rate are functions of the config and `step`;
    dropout is one of the rank as well.
    """

    config: Settings
    model: DetectionModel
    ema: ModelEma
    optimizer: torch.optim.Optimizer
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_images: int
    notes: list[str] = field(default_factory=list)  # shown to the user at the start
    step: int = 0
    train_time_s: float = 0.0  # without evaluation
    # AP is None before the first evaluation, and where it is undefined
    best: dict[str, Any] = field(default_factory=lambda: {"AP": None, "step": 0})
    evaluations_since_best: int = 0
    last_evaluated_step: int = 0
    repeats_evaluation: bool = False  # of the step at which the run was resumed
    threshold: float | None = None  # the smallest score to show, by the last evaluation
    trials: TrialChoices = field(default_factory=lambda: TrialChoices(world_size=1))

    def metadata(self) -> dict[str, Any]:
        """Everything needed to use the weights without the run, from any directory."""
        return {
            "config": self.config.to_dict(),
            "class_names": list(self.class_names),
            "category_ids": list(self.category_ids),
            "step": self.step,
            "best": self.best,
            "threshold": self.threshold,
            "data": absolute_source(self.config.data),
            "weights_from": self.model.weights_from,
            "is_thing": list(self.model.is_thing),
        }

    def to_dict(self) -> dict[str, Any]:
        """The content of a checkpoint: tensors and plain values, which `torch.load` reads with
        `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.step * self.config.batch_size // self.num_images,
            "train_time_s": self.train_time_s,
            "since_best": self.evaluations_since_best,
            "evaluated": self.last_evaluated_step,
            "num_images": self.num_images,
            "world_size": self.trials.world_size,
            **self.metadata(),
        }

    def record(
        self,
        ap: float | None,
        threshold: float | None = None,
        pq: float | None = None,
        mask_ap: float | None = None,
    ) -> bool:
        """Notes the numbers of an evaluation and the threshold that it measured, and returns
        whether it is the best. An evaluation that is repeated counts once.

        An `ap` of None is undefined: there was no object. Then the last evaluation is the best,
        since nothing can be compared. So it is where only masks are trained, but not measured.
        `pq` and `mask_ap` are None where they were not measured. `by_importance` says which number
        decides.
        """
        if self.step > self.last_evaluated_step:
            self.evaluations_since_best += 1
        self.last_evaluated_step = self.step
        self.threshold = threshold
        numbers = {"AP": ap, "mask_AP": mask_ap, "PQ": pq}
        names = by_importance(numbers, boxes_are_fixed=trains_only_masks(self.model))
        better = is_better(numbers, self.best, names)
        if better:
            self.evaluations_since_best = 0
            self.best = {"AP": ap, "step": self.step}
            if len(names) > 1:
                self.best |= {name: numbers[name] for name in names}
                self.best["by"] = names[0]
        return better

    def end_reason(self) -> str:
        """Why the run has ended; empty while it has not."""
        steps, patience = self.config.steps, self.config.patience
        if self.step == steps:
            return f"ended at step {steps} of {steps}"
        waited = self.last_evaluated_step - self.best["step"]
        is_patient = not patience or waited < patience * steps
        if is_patient or self.evaluations_since_best < _FEWEST_EVALUATIONS:
            return ""
        if not self._rate_has_fallen():
            return ""
        judge = in_words(judge_of(self.best))
        return (
            f"ended early at step {self.step} of {steps}: {judge} has not improved for {waited} "
            f"steps ({self.evaluations_since_best} evaluations, --patience {patience:g})"
        )

    def _rate_has_fallen(self) -> bool:
        """Whether the learning rate has fallen far enough for an early end: AP rises most after it
        does. A constant rate never falls, so it counts as fallen after warm-up."""
        config = self.config
        if self.last_evaluated_step < config.warmup_steps:
            return False
        if config.schedule == "constant":
            return True
        return lr_factor(config, self.last_evaluated_step) < _FALLEN_RATE

    def save(self, folder: Path) -> None:
        """Writes `last.pt`; the previous checkpoint is kept as `previous.pt`."""
        save_checkpoint(folder / "last.pt", self.to_dict(), folder / "previous.pt")

    def restore(self, path: Path, saved: dict[str, Any]) -> None:
        """Continues from the checkpoint `saved` in `path`. Raises InputError if it is of another
        run."""
        settings = {"channels": 3} | saved["config"]  # earlier versions had RGB alone
        before = TrainConfig.from_dict(settings)
        # The model and the data decide what other settings follow, so they are named first.
        self._require_same_settings(path, before, _MODEL_SETTINGS)
        self._require_same_data(path, saved)
        self._require_same_settings(path, before, sorted(asdict(before).keys() - _MAY_CHANGE))
        self._require_same_split(path, before, saved.get("world_size"))
        self.model.load_state_dict(with_present_names(saved["model"]))
        self.ema.model.load_state_dict(with_present_names(saved["ema"]))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        self.best = saved["best"]
        if self.best["AP"] == _NO_AP:
            self.best["AP"] = None
        self.train_time_s = saved["train_time_s"]
        self.evaluations_since_best = saved.get("since_best", 0)  # older checkpoints have none
        self.model.weights_from = saved.get("weights_from", UNRECORDED)
        self.last_evaluated_step = saved.get("evaluated", 0)
        self.threshold = saved.get("threshold")
        self.repeats_evaluation = self._was_evaluated(before)

    def _was_evaluated(self, before: TrainConfig) -> bool:
        """Whether the step of a checkpoint was due for evaluation by its settings, or evaluated.

        Evaluation comes after saving, so its result may be missing in the checkpoint, and its line
        is cut off in metrics.jsonl. --eval-every may be another one now.
        """
        was_due = before.eval_every > 0 and self.step % before.eval_every == 0
        return was_due or self.last_evaluated_step == self.step

    def _require_same_data(self, path: Path, saved: dict[str, Any]) -> None:
        num_images = saved["num_images"]
        if saved["category_ids"] == list(self.category_ids) and num_images == self.num_images:
            return
        difference = "other classes"
        if num_images != self.num_images:
            difference = f"{counted(num_images, 'image')}, now {self.num_images:,}"
        text = f"saved with different data ({difference})"
        raise InputError(text, where=path, remedy="give that --data, or another --output")

    def _require_same_split(self, path: Path, before: TrainConfig, ranks: int | None) -> None:
        """Raises InputError if a run is resumed with other micro-batches, or another number of
        ranks, where these are part of the loss. Of earlier versions, `ranks` is unknown."""
        normalization = self.config.class_normalization
        reason = why_micro_batches_matter(self.model, normalization)
        saved, now = before.accumulate, self.config.accumulate
        if reason and saved != now:
            text = f"saved with accumulate={saved}, resumed with {now}, but {reason}"
            raise InputError(text, where=path, remedy=f"give --accumulate {saved}")
        ranks_now = self.trials.world_size
        if normalization == "per_rank" and ranks not in (None, ranks_now):
            text = (
                f"saved by {counted(ranks, 'rank')}, resumed by {ranks_now}, but "
                "--class-normalization per_rank divides by the count of each rank"
            )
            raise InputError(text, where=path, remedy=f"resume it with {counted(ranks, 'rank')}")

    def _require_same_settings(self, path: Path, before: TrainConfig, names: Iterable[str]) -> None:
        # As they would be saved: Python may have given lists and paths, which are saved as others.
        present = TrainConfig.from_dict(self.config.to_dict())
        for name in names:
            saved, now = getattr(before, name), getattr(present, name)
            if name == "precision" and saved == "auto":
                continue  # earlier versions chose anew at each start
            if name == "custom_augment":
                _require_same_augmentation(path, saved, now)
            elif saved != now:
                command = resume_command(path.parent)
                raise InputError(
                    f"saved with {name}={saved}, resumed with {now}",
                    where=path,
                    remedy=f"{command} takes all settings from the run; give another --output for "
                    "a new run",
                )


def _require_same_augmentation(path: Path, saved: str | None, now: str | None) -> None:
    """Raises InputError unless a run is resumed with the user's own augmentation that it began
    with, or without one if it had none. Functions from Python are not compared."""
    if saved == now:
        return
    remedy = augmentation_remedy("resume", saved) if saved else "leave it out"
    text = f"saved with {augmentation_text(saved)}, resumed with {augmentation_text(now)}"
    raise InputError(text, where=path, remedy=remedy)


def resume_command(folder: Path, custom_augment: str | None = None) -> str:
    """The command that resumes the run in a folder on as many processes as now, with the user's own
    augmentation FILE.py:NAME if it has one.

    On several hosts, this process knows neither the launcher nor the address at which ranks meet,
    so the command is that of each process, with a note.
    """
    program = "redetr"
    launch = read_launch()
    on_several_hosts = launch.world_size > launch.local_world_size
    if launch.world_size > 1 and not on_several_hosts:
        program = f"torchrun --nproc-per-node {launch.local_world_size} -m redetr"
    # A name without a folder is that of a recipe first.
    name = f"./{folder}" if str(folder) in RECIPES else str(folder)
    command = f"{program} train {shlex.quote(name)} --resume"
    if custom_augment is not None:
        command += f" --custom-augment {shlex.quote(custom_augment)}"
    if on_several_hosts:
        command += " (started on all hosts as before)"
    return command


def _data_changes(file: Path, inventories: dict[str, Inventory], dist: Dist) -> list[str]:
    """What rank 0, which has the hashes of all images, reports on changed data. Raises its
    InputError on every rank. Communicates."""
    notes: list[str] = []
    error: InputError | None = None
    if dist.rank == 0:
        try:
            notes = require_unchanged(file, inventories)
        except InputError as reason:
            error = reason
    dist.raise_any(error)
    return notes


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has been saved there."""
    return (folder / "last.pt").exists() or (folder / "previous.pt").exists()


def _require_no_results(folder: Path) -> None:
    """Raises InputError if a run ended in the folder whose checkpoints are gone: a new run would
    overwrite what it left."""
    results = [name for name in _RESULTS if (folder / name).exists()]
    if results:
        text = f"already holds {results[0]}, but no checkpoint from which a run could be resumed"
        remedy = "give another --output, or move the files of the earlier run"
        raise InputError(text, where=folder, remedy=remedy)


def start_folder(
    folder: Path, state: State, datasets: dict[str, DetectionDataset], dist: Dist
) -> list[str]:
    """Begins a run in a folder that is locked for it, or restores `state` from there; returns notes
    for the user. Communicates.

    Raises InputError if the folder already holds a run, if that cannot be resumed, if its
    `datasets` have changed, or if ranks see different folders. Nothing is written then.
    """
    newest = newest_checkpoint(folder)
    notes: list[str] = []
    if newest is None:
        _require_no_results(folder)
        if state.config.resume:
            notes.append(f"nothing to resume in {folder}, starting a new run")
    elif not state.config.resume:
        raise InputError(
            f"{folder}: already holds a run: {resume_command(folder)} resumes it; or give "
            "another --output"
        )
    else:
        path, saved, notes = newest
        state.restore(path, saved)
        notes.append(f"resumed from {path} at step {state.step}")
    dist.meet()
    # Also a barrier: no rank writes to the folder before all ranks have examined it.
    steps = dist.gather_rows([state.step])()[:, 0].long().tolist()
    if len(set(steps)) > 1:
        steps_of_ranks = ", ".join(map(str, steps))
        raise InputError(
            f"{folder}: ranks found checkpoints of different steps there ({steps_of_ranks}): "
            "--output must be a folder that all hosts share"
        )
    inventories = {split: inventory(data, dist) for split, data in datasets.items()}
    if newest:
        notes += _data_changes(folder / "data.json", inventories, dist)
    notes += copied_images(inventories)
    dist.main_only(remove_unfinished)(folder, _FILES)
    settings = state.config.to_dict() | {TRIALS: asdict(state.trials)}
    dist.main_only(write_json)(folder / "config.json", settings)
    dist.main_only(write_inventories)(folder / "data.json", inventories)
    if state.config.skip_unreadable:
        lists = {split: unreadable_of(data) for split, data in datasets.items()}
        dist.main_only(write_json)(folder / LIST_FILE, lists)
    return notes
