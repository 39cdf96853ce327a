"""Training: set-up and the loop around `step.py`. The same code for one process and for many."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from redetr.checkpoint import save_checkpoint, save_weights
from redetr.config import TrainConfig
from redetr.data import DetectionDataset, open_dataset
from redetr.data.cache import ImageCache, host, spare_bytes
from redetr.data.forms.folder import AnnotatedDataset
from redetr.data.loader import Sample, Samples, load_batches, watching_workers
from redetr.data.sampler import TrainSampler
from redetr.data.transforms import augmentation, drawn_from, final_size
from redetr.distributed import (
    Dist,
    check_norms,
    process_group,
    rank_cores,
    replicate,
    restart_notes,
)
from redetr.doctor.check import essential_faults
from redetr.ema import ModelEma
from redetr.errors import InputError, StoppedError
from redetr.evaluation import evaluate
from redetr.losses import SetCriterion
from redetr.models import build
from redetr.models.recompute import recompute_blocks
from redetr.monitor import Monitor, StepLog
from redetr.optim import build_optimizer, lr_factor, set_lr
from redetr.precision import pick_precision, weights_dtype
from redetr.state import State, start_folder
from redetr.step import Window, announce, receive, train_step
from redetr.weights.starting import starting_point


def train(
    config: TrainConfig,
    console: Console | None = None,
    datasets: tuple[DetectionDataset, DetectionDataset] | None = None,
) -> dict[str, Any]:
    """Trains as `config` says and returns the last evaluation: the COCO numbers, "step" and
    "time_s"; and of the "best" one its "AP" and "step".

    `datasets` are (train, val) of one's own, in place of what `config.data` names. Under torchrun,
    every process calls this. Progress is shown on `console`, by default nowhere. Raises InputError
    for settings or data that cannot work, before anything is written, and when a GPU's memory is
    full; DivergedError for a loss that is not finite; LostError for a rank or loader process that
    died; StoppedError after a signal, when the state is saved.
    """
    with (
        process_group(config.device, config.timeout_s) as dist,
        _stop_signals() as stop,
        watching_workers(),
    ):
        config.check(dist.world_size)
        data, val = datasets or (
            open_dataset(config.data, split, config.val_fraction) for split in ("train", "val")
        )
        faults = essential_faults(data, val)
        state, criterion = prepare(config, dist, data)
        folder = Path(config.output)
        resumed = start_folder(folder, state, {"train": data, "val": val}, dist)
        monitor = (
            dist.main_only(Monitor)(folder, state.config.steps, state.step, console) or _Silent()
        )
        try:
            for note in (
                *_notes(data, state, dist),
                *(f"{fault.severity}: {fault}" for fault in faults),
                *resumed,
            ):
                monitor.say(note)
            return _run(state, criterion, dist, data, val, folder, monitor, stop)
        except torch.OutOfMemoryError as error:
            raise InputError(
                "the GPU's memory does not hold a step: raise --accumulate (the gradient stays the "
                "same), or lower "
                "--eval-batch-size if it was an evaluation; if one image is too large, take "
                "--recompute or a smaller "
                "--image-size"
            ) from error
        finally:
            monitor.close()


class _Silent:
    """The monitor of the ranks that say nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def prepare(config: TrainConfig, dist: Dist, data: DetectionDataset) -> tuple[State, SetCriterion]:
    """A new run: model and optimizer on the device, settings with all defaults filled in, the
    criterion."""
    torch.manual_seed(config.seed)
    config = config.with_queries_for(data)
    # A resumed run has its weights in its checkpoint; the file that it once started from may be
    # gone.
    saved = (Path(config.output) / name for name in ("last.pt", "previous.pt"))
    fresh = not (config.resume and any(path.exists() for path in saved))
    start = config if fresh else replace(config, weights=None)
    model = build(config.model, len(data.class_names), **start.model_kwargs())
    notes = starting_point(model, config, data.class_names) if fresh else []
    config = config.resolved(model, data.hints, len(data))
    notes += check_norms(model, dist, config.accumulate)
    dtype = weights_dtype(pick_precision(config.precision, dist.device))
    model = model.to(dist.device, dtype).to(memory_format=torch.channels_last)
    if config.recompute:
        recompute_blocks(model)
    optimizer = build_optimizer(
        model, config.lr, config.lr_backbone or 0.0, config.weight_decay, config.optimizer
    )
    ema = ModelEma(model, config.ema_decay or 0.0)
    state = State(
        config, model, ema, optimizer, data.class_names, data.category_ids, len(data), notes=notes
    )
    return state, SetCriterion.for_model(model, config.class_normalization)


def _notes(data: DetectionDataset, state: State, dist: Dist) -> list[str]:
    config, queries = state.config, state.model.num_queries
    parameters = sum(p.numel() for p in state.model.parameters())
    precision = str(pick_precision(config.precision, dist.device)).removeprefix("torch.")
    notes = [
        f"{config.model}: {parameters / 1e6:.1f} M parameters, {len(data)} training images at "
        f"{config.image_size} px, "
        f"{config.steps} steps of {config.batch_size}, {dist.world_size} x {dist.device.type}, "
        f"{precision}"
    ]
    most = data.max_objects()
    if most > queries and not data.hints.num_queries:
        notes.append(
            f"warning: an image holds {most} objects, the model has {queries} queries: the rest "
            "stays "
            "unmatched; raise --num-queries"
        )
    return [
        *notes,
        *state.notes,
        *_outlook(config, len(data)),
        *restart_notes(),
        *data.notes,
    ]


def _outlook(config: TrainConfig, num_images: int) -> list[str]:
    """A warning where a run cannot end well. The faithful form needs some 300,000 steps from a
    pretrained backbone."""
    weights = None if config.weights == "none" else config.weights
    start = {None: "no pretrained weights", "imagenet": "a pretrained backbone only"}.get(weights)
    if start is None:
        return []
    run = f"warning: {num_images:,} images, {config.steps:,} steps, {start}"
    if config.model.startswith("detr_") and config.steps < 100_000:
        return [
            f"{run}: expect little of {config.model}; take redetr_n, or --weights "
            "facebook/detr-resnet-50"
        ]
    if weights is None and num_images < 100:
        return [
            f"{run}: expect little; more images help most, then pretrained weights (redetr models)"
        ]
    return []


def _run(
    state: State,
    criterion: SetCriterion,
    dist: Dist,
    data: DetectionDataset,
    val: DetectionDataset,
    folder: Path,
    monitor: Any,
    stop: list[int],
) -> dict[str, Any]:
    """The loop. Evaluation comes after saving, so a run stopped or killed in it begins with it when
    resumed."""
    config, dtype = state.config, pick_precision(state.config.precision, dist.device)
    if config.compile:  # in place; one graph for all sizes of images, where these differ
        state.model.compile(fullgraph=True, dynamic=state.model.resize == "aspect")
    model = replicate(state.model, dist, config.accumulate, config.gradient_compression)
    save = dist.main_only(state.save)
    log = StepLog(config.batch_size)
    windows = _windows(state, dist, data)
    ahead: Window | None = None
    if reason := state.ending():
        further = (
            "begin another --output with --weights"
            if state.step == config.steps
            else "give a larger --patience, or 0"
        )
        monitor.say(
            f"nothing to train: {reason}; what follows is its last evaluation; to train on, "
            f"{further}"
        )
    while True:
        if state.step and (state.ending() or _due(state, config.eval_every)):
            result = _evaluate(state, criterion, val, dist, dtype, folder, monitor)
            if reason := state.ending():
                monitor.say(
                    f"{reason}; best.pt is of step {state.best['step']}: AP "
                    f"{100 * state.best['AP']:.1f}"
                )
                save(folder)
                return result | {"best": state.best}
        started = time.perf_counter()
        window = ahead or announce(next(windows), criterion, dist, bool(stop))
        # What ranks tell each other about the next window travels while this one is computed.
        ahead = (
            announce(next(windows), criterion, dist, bool(stop))
            if state.step + 1 < config.steps
            else None
        )
        waited = time.perf_counter() - started
        batches, denominators, stopped = receive(window, criterion, dist, weights_dtype(dtype))
        if not stopped:
            set_lr(state.optimizer, learning_rate_factor(config, state.step))
            torch.manual_seed(
                drawn_from(config.seed, state.step, dist.rank)
            )  # dropout is a function of the step
            losses, norm = train_step(
                model, criterion, batches, denominators, state.optimizer, dtype, config.clip_norm
            )
            state.ema.update(state.step)
            state.step += 1
            took = time.perf_counter() - started
            state.train_time_s += took
            log.add(state.step, losses, norm, batches, waited, took)
            monitor.advance(state.step)
        saving = stopped or _due(state, config.save_every) or _due(state, config.eval_every)
        if log.steps and (saving or state.step % config.log_every == 0):
            monitor.train_line(
                log.flush(dist) | {"lr": _lr(state), "time_s": round(state.train_time_s, 3)}
            )
        if saving:
            save(folder)
        if stopped:
            raise StoppedError(
                f"stopped by a signal after step {state.step}; {folder}/last.pt is saved, use "
                "--resume"
            )


def _due(state: State, every: int) -> bool:
    return state.step % every == 0 or state.step == state.config.steps


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """The schedule of a resolved config at optimizer step `step`."""
    warmup_steps = round(config.warmup * config.steps)
    return lr_factor(step, config.steps, config.schedule, warmup_steps, config.drop_at)


def _lr(state: State) -> float:
    return state.optimizer.param_groups[0]["lr"]


def _windows(state: State, dist: Dist, data: DetectionDataset) -> Iterator[list[list[Sample]]]:
    """This rank's micro-batches of each optimizer step still to do."""
    config, model = state.config, state.model
    transform = augmentation(config.augment, final_size(model, config.image_size))  # type: ignore[arg-type]
    mosaic_epochs = int(config.mosaic_until * config.steps * config.batch_size / len(data))
    samples = Samples(data, transform, config.seed, _image_cache(config, dist, data), mosaic_epochs)
    size_of = samples.size if config.group_by_size and model.resize == "aspect" else None
    sampler = TrainSampler(
        len(data),
        config.batch_size,
        config.seed,
        state.step,
        config.steps,
        dist.rank,
        dist.world_size,
        config.accumulate,
        size_of,
    )
    batches = load_batches(samples, sampler, _num_workers(config), dist.device.type == "cuda")
    while True:
        yield [next(batches) for _ in range(config.accumulate)]


def _num_workers(config: TrainConfig) -> int:
    if config.num_workers is not None:
        return config.num_workers
    return min(8, max(1, rank_cores() - 1))


def _image_cache(config: TrainConfig, dist: Dist, data: DetectionDataset) -> ImageCache | None:
    """What keeps decoded images for all ranks of a host. Communicates."""
    if config.cache_mb == 0 or sys.platform != "linux" or not isinstance(data, AnnotatedDataset):
        return None
    limit = spare_bytes(config.cache_dir) if config.cache_mb is None else config.cache_mb * 10**6
    cache = ImageCache(len(data), limit, config.cache_dir)
    cache.path = dict(reversed(dist.gather([(host(), cache.path)])))[
        host()
    ]  # that of the first rank of this host
    return cache


def _evaluate(
    state: State,
    criterion: SetCriterion,
    val: DetectionDataset,
    dist: Dist,
    dtype: torch.dtype,
    folder: Path,
    monitor: Any,
) -> dict[str, Any]:
    """Evaluates the averaged weights, records the result, and keeps them if they are the best."""
    config = state.config
    result = evaluate(
        state.ema.model,
        val,
        dist,
        image_size=config.image_size,
        dtype=dtype,
        criterion=criterion,
        batch_size=config.eval_batch_size,
        num_workers=_num_workers(config),
    )
    line = {"step": state.step, "time_s": round(state.train_time_s, 3), **result.to_dict()}
    monitor.eval_line(line)
    if state.record(line["AP"]):
        dist.main_only(save_checkpoint)(folder / "best.pt", state.to_dict())
        dist.main_only(save_weights)(
            folder / "best.safetensors", state.ema.model.state_dict(), state.about()
        )
    return line


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT arrives; the loop ends after its step. A second
    SIGINT ends at once."""
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():  # signals cannot be caught there
        yield received
        return
    previous = {
        number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
