"""Training: set-up, the loop, one step. The same code for one process and for many."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from redetr.checkpoint import read_checkpoint, save_checkpoint, save_weights
from redetr.config import TrainConfig
from redetr.data import DetectionDataset, open_dataset, require_same_classes
from redetr.data.loader import Sample, Samples, canvas_of, load_batches, to_batch
from redetr.data.sampler import TrainSampler
from redetr.data.transforms import augmentation, drawn_from
from redetr.distributed import Dist, accumulating, process_group, replicate
from redetr.ema import ModelEma
from redetr.errors import DivergedError, InputError, StoppedError
from redetr.evaluate import autocast, evaluate, pick_precision
from redetr.files import write_json
from redetr.losses import SetCriterion
from redetr.models import build
from redetr.monitor import Monitor
from redetr.optim import build_optimizer, clip_gradients, lr_factor, set_lr
from redetr.structures import Batch, DetectionModel

# A resumed run may say these anew; all else decides what is computed.
_MAY_CHANGE = {"output", "data", "resume", "device", "accumulate", "num_workers", "log_every", "eval_every"}


@dataclass
class State:
    """All that a checkpoint holds and a resumed run needs."""

    config: TrainConfig
    model: DetectionModel
    ema: ModelEma
    optimizer: torch.optim.Optimizer
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    num_images: int
    step: int = 0
    train_time_s: float = 0.0  # without evaluation
    best: dict[str, float] = field(default_factory=lambda: {"AP": -1.0, "step": 0})

    def about(self) -> dict[str, Any]:
        """What is needed to use the weights without the run."""
        return {"config": self.config.to_dict(), "class_names": list(self.class_names),
                "category_ids": list(self.category_ids), "step": self.step, "best": self.best}  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.step * self.config.batch_size // self.num_images,
            "train_time_s": self.train_time_s,
            "num_images": self.num_images,
            **self.about(),
        }

    def restore(self, path: Path) -> None:
        """Continues from a checkpoint. Raises InputError if it is of another run."""
        saved = read_checkpoint(path)
        before, now = TrainConfig.from_dict(saved["config"]), self.config
        for name in sorted(asdict(now).keys() - _MAY_CHANGE):
            if getattr(before, name) != getattr(now, name):
                raise InputError(
                    f"{path}: saved with {name}={getattr(before, name)}, resumed with {getattr(now, name)}: "
                    "give the same flags, or another --output"
                )
        if saved["category_ids"] != list(self.category_ids) or saved["num_images"] != self.num_images:
            raise InputError(f"{path}: saved with other data ({saved['num_images']} images): give another --output")
        self.model.load_state_dict(saved["model"])
        self.ema.model.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.best, self.train_time_s = saved["step"], saved["best"], saved["train_time_s"]


def train(config: TrainConfig, console: Console | None = None) -> dict[str, Any]:
    """Trains as `config` says and returns the last evaluation: the COCO numbers, "step" and "time_s".

    Under torchrun, every process calls this. Progress is shown on `console`, by default nowhere. Raises InputError
    for settings or data that cannot work, before anything is written; DivergedError for a loss that is not finite;
    StoppedError after a signal, when the state is saved.
    """
    with process_group(config.device) as dist, _stop_signals() as stop:
        config.check(dist.world_size)
        data, val = open_dataset(config.data, "train"), open_dataset(config.data, "val")
        require_same_classes(data, val)
        for split in (data, val):
            split.require_whole_images()
        state, criterion = _prepare(config, dist, data)
        folder = Path(config.output)
        resumed = _start_folder(folder, state, dist)
        monitor = dist.main_only(Monitor)(folder, state.config.steps, state.step, console) or _Silent()
        try:
            for note in (*_notes(data, state, dist), *resumed):
                monitor.say(note)
            return _run(state, criterion, dist, data, val, folder, monitor, stop)
        finally:
            monitor.close()


class _Silent:
    """The monitor of the ranks that say nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def _prepare(config: TrainConfig, dist: Dist, data: DetectionDataset) -> tuple[State, SetCriterion]:
    torch.manual_seed(config.seed)
    config = config.with_queries_for(data)
    model = build(config.model, len(data.class_names), **config.model_kwargs())
    config = config.resolved(model, data.hints, len(data))
    model = model.to(dist.device).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.lr, config.lr_backbone or 0.0, config.weight_decay)
    ema = ModelEma(model, config.ema_decay)
    state = State(config, model, ema, optimizer, data.class_names, data.category_ids, len(data))
    return state, SetCriterion.for_model(model, config.class_normalization)


def _start_folder(folder: Path, state: State, dist: Dist) -> list[str]:
    """Creates the run folder, or restores `state` from it; returns what to tell the user."""
    last = folder / "last.pt"
    if state.config.resume and last.exists():
        state.restore(last)
        notes = [f"resumed from {last} at step {state.step}"]
    elif last.exists():
        raise InputError(f"{folder}: holds a run already: use --resume to continue it, or another --output")
    else:
        notes = [f"nothing to resume in {folder}, starting anew"] if state.config.resume else []
    dist.barrier()  # nobody creates the folder before everybody has looked into it
    folder.mkdir(parents=True, exist_ok=True)
    dist.main_only(write_json)(folder / "config.json", state.config.to_dict())
    return notes


def _notes(data: DetectionDataset, state: State, dist: Dist) -> list[str]:
    config, queries = state.config, state.model.num_queries
    parameters = sum(p.numel() for p in state.model.parameters())
    precision = str(pick_precision(config.precision, dist.device)).removeprefix("torch.")
    notes = [
        f"{config.model}: {parameters / 1e6:.1f} M parameters, {len(data)} training images, {config.steps} steps of "
        f"{config.batch_size}, {dist.world_size} x {dist.device.type}, {precision}"
    ]
    if data.max_objects() > queries:
        notes.append(
            f"warning: an image holds {data.max_objects()} objects, the model has {queries} queries: the rest stays "
            "unmatched; raise --num-queries"
        )
    return [*notes, *data.notes]


def _run(state: State, criterion: SetCriterion, dist: Dist, data: DetectionDataset, val: DetectionDataset,
         folder: Path, monitor: Any, stop: list[int]) -> dict[str, Any]:  # fmt: skip
    config, model = state.config, replicate(state.model, dist)
    dtype = pick_precision(config.precision, dist.device)
    save = dist.main_only(save_checkpoint)
    log = StepLog(config.log_every, config.batch_size)
    windows = _windows(state, dist, data)
    result: dict[str, Any] = {}
    while state.step < config.steps:
        started = time.perf_counter()
        set_lr(state.optimizer, learning_rate_factor(config, state.step))
        samples = next(windows)
        waited = time.perf_counter() - started
        # Dropout is a function of the step. Not before `next`: the first one draws a seed for the workers.
        torch.manual_seed(drawn_from(config.seed, state.step, dist.rank))
        batches, denominators, stopped = exchange(samples, criterion, dist, stopping=bool(stop))
        losses, norm = train_step(model, criterion, batches, denominators, state.optimizer, dtype, config.clip_norm)
        state.ema.update(state.step)
        state.step += 1
        log.add(state.step, losses, norm, batches, waited, time.perf_counter() - started)
        state.train_time_s += time.perf_counter() - started
        monitor.advance(state.step)
        evaluating = state.step % config.eval_every == 0 or state.step == config.steps
        if state.step % config.log_every == 0 or evaluating or stopped:
            monitor.train_line(log.flush(dist) | {"lr": _lr(state), "time_s": round(state.train_time_s, 3)})
        if evaluating:
            result = _evaluate(state, val, dist, dtype, folder, monitor)
        if evaluating or stopped:
            save(folder / "last.pt", state.to_dict())
        if stopped and state.step < config.steps:
            raise StoppedError(f"stopped by a signal after step {state.step}; {folder}/last.pt is saved, use --resume")
    return result or _evaluate(state, val, dist, dtype, folder, monitor)  # a finished run, resumed


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """The schedule of a resolved config at optimizer step `step`."""
    warmup_steps = round(config.warmup * config.steps)
    return lr_factor(step, config.steps, config.schedule, warmup_steps, config.drop_at)


def _lr(state: State) -> float:
    return state.optimizer.param_groups[0]["lr"]


def _windows(state: State, dist: Dist, data: DetectionDataset) -> Iterator[list[list[Sample]]]:
    """This rank's micro-batches of each optimizer step still to do."""
    config, model = state.config, state.model
    transform = augmentation(config.augment, model.resize, config.image_size, model.max_size)  # type: ignore[arg-type]
    sampler = TrainSampler(len(data), config.batch_size, config.seed, state.step, config.steps, dist.rank,
                           dist.world_size, config.accumulate)  # fmt: skip
    workers = config.num_workers
    if workers is None:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        workers = min(8, max(1, len(os.sched_getaffinity(0)) // local_ranks - 1))
    samples = Samples(data, transform, config.seed)
    batches = load_batches(samples, sampler, workers, dist.device.type == "cuda")
    while True:
        yield [next(batches) for _ in range(config.accumulate)]


def exchange(
    window: list[list[Sample]], criterion: SetCriterion, dist: Dist, stopping: bool = False
) -> tuple[list[Batch], list[Tensor], bool]:
    """The batches of this rank for one optimizer step, what each one's loss sums are divided by, and whether any rank
    wants to stop.

    One small message per step, on the host: the counts of all micro-batches of all ranks, and the canvas that all
    images are padded to. Both are functions of the global batch, so the gradient does not depend on how the batch is
    split.
    """
    counts = [criterion.counts([target for _, target in samples]) for samples in window]
    canvases = [canvas_of(samples) for samples in window]
    mine = [*sum(counts).tolist(), max(h for h, _ in canvases), max(w for _, w in canvases), stopping]  # type: ignore[union-attr]
    everyone = dist.gather_rows(mine)
    total, (height, width) = everyone[:, :2].sum(0), everyone[:, 2:4].amax(0).int().tolist()
    batches = [to_batch(samples, dist.device, (height, width)) for samples in window]
    divisors = [criterion.denominators(c, total, dist.world_size, len(window)) for c in counts]
    return batches, divisors, bool(everyone[:, 4].any())


def train_step(
    model: DistributedDataParallel,
    criterion: SetCriterion,
    batches: list[Batch],
    denominators: list[Tensor],
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    clip_norm: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimizer step over a window of micro-batches; returns this rank's losses and the norm of the gradient.

    The only synchronisation with the device is the matcher's copy of the costs.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    total: dict[str, Tensor] = {}
    for i, (batch, divisors) in enumerate(zip(batches, denominators, strict=True)):
        with accumulating(model, last=i == len(batches) - 1):
            with autocast(batch.images.device, dtype):
                outputs = model(batch.images, batch.padding)
            losses = criterion(outputs, batch.targets, divisors)
            losses["loss"].backward()
        for name, value in losses.items():
            total[name] = total.get(name, 0) + value.detach()
    norm = clip_gradients(model, clip_norm)
    optimizer.step()
    return total, norm


@dataclass
class StepLog:
    """Losses of the last steps, kept on the device until they are read together."""

    log_every: int
    batch_size: int
    steps: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    images: list[list[int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    waited: float = 0.0
    took: float = 0.0

    def add(
        self,
        step: int,
        losses: dict[str, Tensor],
        norm: Tensor,
        batches: list[Batch],
        waited: float,
        took: float,
    ) -> None:
        self.names = [*losses, "grad_norm"]
        self.steps.append(step)
        self.rows.append(torch.stack([*losses.values(), norm]))
        self.images.append([target["image_id"] for batch in batches for target in batch.targets])
        self.waited += waited
        self.took += took

    def flush(self, dist: Dist) -> dict[str, Any]:
        """The means over the steps since the last flush and over ranks. Communicates; waits for the device.

        Raises DivergedError on every rank if a loss or the gradient was not finite, naming what this rank saw.
        """
        mine = torch.stack(self.rows)
        values = dist.mean_(mine.clone())
        finite = values.isfinite().all(1).tolist()
        if not all(finite):
            first = finite.index(False)
            wrong = [n for n, ok in zip(self.names, mine[first].isfinite().tolist(), strict=True) if not ok]
            raise DivergedError(
                f"step {self.steps[first]}: not finite: {', '.join(wrong) or 'the gradient of another rank'}; images "
                f"{self.images[first]}; lower --lr, check these images, or use --precision fp32"
            )
        means = dict(zip(self.names, [round(v, 6) for v in values.mean(0).tolist()], strict=True))
        speed = {
            "images_per_s": round(len(self.steps) * self.batch_size / self.took, 2),
            "data_wait": round(self.waited / self.took, 4),
        }
        line = {"step": self.steps[-1], **means, **speed}
        self.__init__(self.log_every, self.batch_size)  # type: ignore[misc]
        return line


def _evaluate(state: State, val: DetectionDataset, dist: Dist, dtype: torch.dtype, folder: Path, monitor: Any) -> dict:
    """Evaluates the averaged weights, records the result, and keeps them if they are the best."""
    config = state.config
    result = evaluate(state.ema.model, val, dist, image_size=config.image_size, dtype=dtype)
    line = {"step": state.step, "time_s": round(state.train_time_s, 3), **result.to_dict()}
    monitor.eval_line(line)
    if (line["AP"] or 0.0) > state.best["AP"]:
        state.best = {"AP": line["AP"] or 0.0, "step": state.step}
        dist.main_only(save_checkpoint)(folder / "best.pt", state.to_dict())
        dist.main_only(save_weights)(folder / "best.safetensors", state.ema.model.state_dict(), state.about())
    return line


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT arrives; the loop ends after its step. A second SIGINT ends at once."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals cannot be caught there
        yield received
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
