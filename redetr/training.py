"""Training: the loop around `step.py`. The same code for one process and for many."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from redetr import memory
from redetr.bounds import require_all_in_bounds
from redetr.checkpoint import save_checkpoint, save_weights
from redetr.choices import AUGMENT_IN_PYTHON
from redetr.config import TrainConfig
from redetr.data import DetectionDataset
from redetr.data.custom_augmentation import CustomAugmentation
from redetr.data.faults import Fault
from redetr.data.loader import Sample, load_batches, pools_ahead, watching_workers
from redetr.data.open import open_on_ranks
from redetr.data.sampler import TrainSampler
from redetr.data.transforms import derived_seed
from redetr.distributed import Dist, process_group, replicate
from redetr.doctor.check import essential_faults
from redetr.errors import StoppedError
from redetr.evaluation import evaluate
from redetr.in_python import (
    name_what_is_given,
    require_callable,
    require_config,
    require_console,
    require_pair,
    require_usable,
)
from redetr.judging import in_words, measured_in
from redetr.lock import FolderLock
from redetr.losses import SetCriterion
from redetr.micro_batches import memory_errors
from redetr.monitor import Callback, Monitor, SilentMonitor, StepLog, in_percent, open_monitor
from redetr.optim import lr_factor, set_lr
from redetr.precision import PRECISIONS, exact_products, weights_dtype
from redetr.preparation import (
    custom_augmentation,
    first_notes,
    grouping,
    image_cache,
    images_to_leave_out,
    num_workers_of,
    prepare,
    train_samples,
)
from redetr.settling import settle_buckets
from redetr.signals import EvaluationStop, StopSignals, stop_signals
from redetr.state import State, resume_command, start_folder
from redetr.step import StepWindow, announce, receive, train_step
from redetr.threads import restored_threads, use_threads
from redetr.wording import counted, duration

# Presents a run after an evaluation, given its state, the data that it was evaluated on, and its
# folder. Returns what the user should know.
AfterEvaluation = Callable[[State, DetectionDataset, Path], list[str]]

_TIMED_STEPS = 5  # by which the time of a run is estimated, after the first step


def train(
    config: TrainConfig,
    console: Console | None = None,
    datasets: tuple[DetectionDataset, DetectionDataset] | None = None,
    after_evaluation: AfterEvaluation | None = None,
    callback: Callback | None = None,
    augment: Callable[..., Any] | None = None,
    keep_memory: bool = True,
) -> dict[str, Any]:
    """Trains as `config` says. Returns the last evaluation: the COCO numbers, "step" and "time_s".
    Its "best" has the "AP" and "step" of the best evaluation and, where masks were measured,
    "mask_AP", "PQ" (panoptic models) and "by", the name of the number that decided.

    `datasets` are your own (train, val), instead of what `config.data` names. `augment` is your
    own augmentation, a `Compose` of Albumentations or torchvision: see
    `redetr.data.custom_augmentation`; a run with it is resumed with it. Under torchrun, every
    process calls this. Progress is shown on `console`, by default nowhere. After each evaluation,
    the first process calls `after_evaluation` while the others wait; `callback` is given each line
    of metrics.jsonl there, a dictionary. With `keep_memory`, a process on a CPU keeps the memory
    that it frees (see `redetr.memory`), which is up to a tenth faster.

    Raises InputError for settings or data that cannot work, before anything is written, and when
    memory is exhausted; DivergedError for a loss that is not finite; LostError for a rank or loader
    process that died; StoppedError after a signal, when the state is saved.
    """
    require_config(config)
    require_all_in_bounds(config)  # the group of processes needs some of them
    require_console(console)
    require_callable(after_evaluation=after_evaluation, callback=callback)
    if datasets is not None:
        require_pair(datasets)
    with stop_signals() as signals:
        try:
            with (
                process_group(config.device, config.timeout_s, config.setup_timeout_s) as dist,
                watching_workers(),
            ):
                if keep_memory and dist.device.type == "cpu":
                    memory.keep_memory()
                custom = custom_augmentation(config, augment)
                config = name_what_is_given(config, datasets is not None, augment is not None)
                return _train(
                    config, console, datasets, after_evaluation, callback, custom, dist, signals
                )
        except KeyboardInterrupt:
            if signals.steps_begun:
                raise
            text = "stopped by a signal before the first step: run the same command again"
            raise StoppedError(text) from None


@restored_threads()
@exact_products()
def _train(
    config: TrainConfig,
    console: Console | None,
    datasets: tuple[DetectionDataset, DetectionDataset] | None,
    after_evaluation: AfterEvaluation | None,
    callback: Callback | None,
    custom: CustomAugmentation | None,
    dist: Dist,
    signals: StopSignals,
) -> dict[str, Any]:
    """Trains, as one of the processes of a run."""
    config.check(dist.world_size)
    use_threads(config.threads)
    dist.doing("reading and checking annotations and images")
    data, val, faults = _open(config, datasets, dist)
    config = replace(config, channels=data.channels)
    dist.doing("building the model")
    state, criterion = prepare(config, dist, data)
    folder = Path(config.output)
    with FolderLock(folder, dist) as lock:
        resumed = start_folder(folder, state, {"train": data, "val": val}, dist)
        notes = first_notes(data, val, state, dist)
        notes += [f"{fault.severity}: {fault}" for fault in faults]
        notes += resumed
        monitor = open_monitor(folder, state, console, dist, criterion.config.loss_ce, callback)
        continuation = _continuation(config, datasets is not None)
        run = _Run(
            state=state,
            criterion=criterion,
            dist=dist,
            data=data,
            val=val,
            folder=folder,
            lock=lock,
            monitor=monitor,
            signals=signals,
            continuation=continuation,
            after_evaluation=after_evaluation,
            custom=custom,
        )
        failed = True
        try:
            for note in notes:
                monitor.say(note)
            with memory_errors(state.model, criterion.class_normalization):
                result = run.train()
            failed = False
            return result
        finally:
            monitor.close(failed)


def _continuation(config: TrainConfig, has_datasets: bool) -> str:
    """How a user resumes the run. A command cannot bring what Python has given."""
    if has_datasets or config.custom_augment == AUGMENT_IN_PYTHON:
        return "the same call with resume=True"
    # This user has allowed the code of the augmentation to run.
    return resume_command(Path(config.output), config.custom_augment)


def _open(
    config: TrainConfig, datasets: tuple[DetectionDataset, DetectionDataset] | None, dist: Dist
) -> tuple[DetectionDataset, DetectionDataset, list[Fault]]:
    """The train and val split, and the faults to report. Communicates."""
    if datasets is None:
        data, val, faults = open_on_ranks(
            config.data,
            config.val_fraction,
            dist,
            essential_faults,
            config.masks,
            images_to_leave_out(config),
        )
    else:
        require_usable(config, datasets)
        data, val = datasets
        faults = essential_faults(data, val)
    channels = config.channels or data.channels
    return data.with_channels(channels), _in_channels(val, channels), faults


def _in_channels(val: DetectionDataset, channels: int) -> DetectionDataset:
    """The val split with the channels of the model. Raises InputError if it has others: otherwise,
    only the first evaluation would."""
    converted = val.with_channels(channels)
    if len(val) and val.channels != channels:
        converted.image(0)  # raises InputError: files are not opened before they are read
    return converted


@dataclass
class _StepInput:
    """The input of an optimizer step: its window, and when it was fetched."""

    window: StepWindow
    started: float  # when the loop began to fetch, s
    waited: float  # for the data, s


@dataclass
class _Run:
    """A run in progress: the model, the data, and the monitor."""

    state: State
    criterion: SetCriterion
    dist: Dist
    data: DetectionDataset
    val: DetectionDataset
    folder: Path
    lock: FolderLock
    monitor: Monitor | SilentMonitor
    signals: StopSignals
    continuation: str  # how a user resumes it
    after_evaluation: AfterEvaluation | None = None
    custom: CustomAugmentation | None = None

    def __post_init__(self) -> None:
        config = self.state.config
        self.dtype = PRECISIONS[config.precision]
        self.first_steps_s: list[float] = []  # the time of each, of this process
        self.step_log = StepLog(config.batch_size, self.dist.world_size)

    def train(self) -> dict[str, Any]:
        """The loop. Evaluation comes after saving, so a run that is stopped or killed during an
        evaluation, or before the next checkpoint, begins with it when resumed."""
        state, config = self.state, self.state.config
        model = self._replica()
        self._say_if_ended()
        if not state.end_reason():
            settle_buckets(model, self.criterion, config, self.dist)
        self.signals.steps_begun = True
        result: dict[str, Any] = {}
        if state.step and (state.end_reason() or state.repeats_evaluation):
            result = self._evaluate()
        for step_input in self._step_inputs():
            stopped = self._step(model, step_input)
            evaluating = self._due(config.eval_every)
            saving = stopped or evaluating or self._due(config.save_every)
            if saving or state.step % config.log_every == 0:
                self._write_log()
            if saving:
                self._save()
            if stopped:
                raise StoppedError(self._stop_message("after"))
            if evaluating:
                result = self._evaluate()
        return self._finish(result)

    def _replica(self) -> DistributedDataParallel:
        """The model as this rank trains it."""
        config, model = self.state.config, self.state.model
        if config.compile:  # in place
            model.compile(fullgraph=True, dynamic=self._sizes_vary())
        return replicate(model, self.dist, config.accumulate, config.gradient_compression)

    def _sizes_vary(self) -> bool | None:
        """Whether a compiled model sees inputs of many sizes; None leaves it to the compiler to
        find out, where only the number of noisy queries varies."""
        model = self.state.model
        if model.resize == "aspect":
            return True
        if model.loss_config.denoising:
            return None
        return False

    def _say_if_ended(self) -> None:
        """Says what to do if a resumed run has nothing left to train."""
        reason = self.state.end_reason()
        if not reason:
            return
        if self.state.step == self.state.config.steps:
            remedy = "start a run in another --output with --weights"
        else:
            remedy = "give a larger --patience, or 0"
        self.monitor.say(
            f"nothing to train: {reason}; repeating the last evaluation; to train further, {remedy}"
        )

    def _step_inputs(self) -> Iterator[_StepInput]:
        """The remaining steps, until the run ends. Each window is announced a step ahead, so that
        the ranks' messages about it travel while the previous one is computed."""
        state = self.state
        micro_batches = self._micro_batches()
        ahead: StepWindow | None = None
        while not state.end_reason():
            started = time.perf_counter()
            window = self._announce(next(micro_batches)) if ahead is None else ahead
            is_last = state.step + 1 == state.config.steps
            ahead = None if is_last else self._announce(next(micro_batches))
            waited = time.perf_counter() - started
            yield _StepInput(window, started, waited)

    def _announce(self, samples: list[list[Sample]]) -> StepWindow:
        return announce(samples, self.criterion, self.dist, self.signals.received)

    def _micro_batches(self) -> Iterator[list[list[Sample]]]:
        """The samples of this rank's micro-batches, for each optimizer step still to do."""
        state, config, data, dist = self.state, self.state.config, self.data, self.dist
        cache = image_cache(config, dist, data)
        samples = train_samples(config, state.model, data, self.custom, cache)
        sampler = TrainSampler(
            num_images=len(data),
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=state.step,
            last_step=config.steps,
            rank=dist.rank,
            world_size=dist.world_size,
            accumulate=config.accumulate,
            size_of=grouping(config, state.model, samples),
        )
        num_workers = num_workers_of(config, dist.device)
        if sampler.size_of and num_workers:
            sampler.pools = pools_ahead(sampler)
        pin_memory = dist.device.type == "cuda"
        batches = load_batches(samples, sampler, num_workers, pin_memory, config.loader_timeout_s)
        while True:
            yield [next(batches) for _ in range(config.accumulate)]

    def _step(self, model: DistributedDataParallel, step_input: _StepInput) -> bool:
        """Takes an optimizer step, unless a rank has to stop; returns whether any rank has to."""
        state, config = self.state, self.state.config
        batches, denominators, stopped = receive(
            step_input.window, self.criterion, self.dist, weights_dtype(self.dtype)
        )
        if stopped:
            return True
        set_lr(state.optimizer, lr_factor(config, state.step))
        # Dropout is a function of the step and the rank.
        torch.manual_seed(derived_seed(config.seed, state.step, self.dist.rank))
        losses, norm = train_step(
            model,
            self.criterion,
            batches,
            denominators,
            state.optimizer,
            self.dtype,
            config.clip_norm,
        )
        state.ema.update(state.step)
        state.step += 1
        step_s = time.perf_counter() - step_input.started
        state.train_time_s += step_s
        self.step_log.add(state.step, losses, norm, batches, step_input.waited, step_s)
        self.monitor.advance(state.step)
        self._say_estimate(step_s)
        return False

    def _say_estimate(self, step_s: float) -> None:
        """Reports once how long the rest will take, judging by the first steps except the very
        first."""
        if len(self.first_steps_s) > _TIMED_STEPS:
            return
        self.first_steps_s.append(step_s)
        if len(self.first_steps_s) <= _TIMED_STEPS:
            return
        remaining = self.state.config.steps - self.state.step
        seconds = remaining * median(self.first_steps_s[1:])
        if remaining > 0:
            self.monitor.say(
                f"the remaining {counted(remaining, 'step')} will take about {duration(seconds)}, "
                "plus evaluations"
            )

    def _due(self, every: int) -> bool:
        """Whether something is due that happens every `every` steps and at the end."""
        step = self.state.step
        return step % every == 0 or step == self.state.config.steps

    def _write_log(self) -> None:
        """Reads and records the numbers of the steps since the last line, if there are any.
        Communicates."""
        if not self.step_log.steps:
            return
        line, read_s = self.step_log.flush(self.dist)
        self.state.train_time_s += read_s
        line |= self._rates()
        line["time_s"] = round(self.state.train_time_s, 3)
        self.monitor.train_line(line)

    def _rates(self) -> dict[str, float]:
        """The learning rate of the last step, and that of the backbone if it has its own.

        Not those of the optimizer's groups, whose order and number depend on the model and on what
        is frozen.
        """
        config = self.state.config
        factor = lr_factor(config, self.state.step - 1)
        rates = {"lr": config.lr * factor}
        if config.lr_backbone != config.lr:
            rates["lr_backbone"] = config.lr_backbone * factor
        return rates

    def _stop_message(self, when: str) -> str:
        """The message of a run that is saved and stopped by a signal: `when` is "after" or "in the
        evaluation of" the present step."""
        return (
            f"stopped by a signal {when} step {self.state.step}; the state is saved in "
            f"{self.folder}/last.pt; to continue: {self.continuation}"
        )

    def _save(self) -> None:
        self.lock.require_held()
        self.dist.main_only(self.state.save)(self.folder)

    def _evaluate(self) -> dict[str, Any]:
        """Evaluates the averaged weights, records the result, and keeps them if they are the
        best."""
        state, config = self.state, self.state.config
        averaged = state.ema.model
        num_batches = math.ceil(len(self.val) / config.eval_batch_size)
        message = self._stop_message("in the evaluation of")
        result = evaluate(
            averaged,
            self.val,
            self.dist,
            image_size=config.image_size,
            dtype=self.dtype,
            criterion=self.criterion,
            batch_size=config.eval_batch_size,
            num_workers=num_workers_of(config, self.dist.device),
            loader_timeout_s=config.loader_timeout_s,
            on_batch=EvaluationStop(self.signals, self.dist, num_batches, message),
        )
        self.lock.require_held()  # before anything is written
        line = {"step": state.step, "time_s": round(state.train_time_s, 3), **result.to_dict()}
        self.monitor.eval_line(line)
        quality = line["panoptic"]["PQ"] if "panoptic" in line else None
        mask_ap = line["masks"]["AP"] if "masks" in line else None
        is_best = state.record(line["AP"], line["threshold"], quality, mask_ap)
        if is_best:
            save = self.dist.main_only(save_checkpoint)
            save(self.folder / "best.pt", state.to_dict())
            export = self.dist.main_only(save_weights)
            export(self.folder / "best.safetensors", averaged.state_dict(), state.metadata())
        if self.after_evaluation:
            self.dist.main_only(self._show)(self.after_evaluation)
        return line

    def _show(self, after_evaluation: AfterEvaluation) -> None:
        for note in after_evaluation(self.state, self.val, self.folder):
            self.monitor.say(note)

    def _finish(self, result: dict[str, Any]) -> dict[str, Any]:
        """Reports how the run ended, and saves it with its last evaluation; returns the last and
        the best results."""
        best = self.state.best
        names = measured_in(best)
        numbers = ", ".join(f"{in_words(name)} {in_percent(best[name])}" for name in names)
        rule = f", with the highest {in_words(names[0])}" if len(names) > 1 else ""
        self.monitor.say(
            f"{self.state.end_reason()}; best.pt is from step {best['step']}{rule}: {numbers}"
        )
        self._save()
        return result | {"best": best}
