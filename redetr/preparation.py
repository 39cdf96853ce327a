"""What a run is made of before its first step: the model and its optimizer, how its images are
read, and what the user should know."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from redetr.checkpoint import newest_checkpoint
from redetr.choices import AUGMENT_IN_PYTHON, size_text
from redetr.config import Settings, TrainConfig
from redetr.data import DetectionDataset
from redetr.data.annotations import Split
from redetr.data.cache import ImageCache, host, spare_bytes
from redetr.data.custom_augmentation import CustomAugmentation, load_augmentation
from redetr.data.formats.folder import AnnotatedDataset, unreadable_of
from redetr.data.loader import Samples, spare_workers
from redetr.data.sampler import SizeOf
from redetr.data.transforms import Transform, augmentation, final_size
from redetr.data.unreadable import LIST_FILE, LeaveOut, read_list, what_was_left_out
from redetr.distributed import Dist, check_norms
from redetr.earlier import with_earlier_network
from redetr.ema import ModelEma
from redetr.errors import InputError
from redetr.launch import restart_notes
from redetr.losses import SetCriterion
from redetr.micro_batches import choose_accumulation
from redetr.models import build, options_of
from redetr.models.freezing import freeze, trains_only_masks, what_is_frozen
from redetr.models.recompute import recompute_blocks
from redetr.optim import build_optimizer
from redetr.outlook import outlook
from redetr.precision import PRECISIONS, pick_precision, weights_dtype
from redetr.state import State, has_checkpoint
from redetr.structures import DetectionModel
from redetr.threads import crowding, pick_threads, use_threads
from redetr.trial_choices import TrialChoices, read_trials
from redetr.truth import mask_gaps
from redetr.weights.starting import starting_point
from redetr.wording import counted


def images_to_leave_out(config: TrainConfig) -> dict[Split, LeaveOut]:
    """Which images of each split a run leaves out: a resumed one those that it left out before."""
    if not config.skip_unreadable:
        return {}
    folder = Path(config.output)
    if config.resume and has_checkpoint(folder):
        return {**read_list(folder / LIST_FILE)}
    return {"train": "unreadable", "val": "unreadable"}


def prepare(
    config: TrainConfig, dist: Dist, data: DetectionDataset, is_training: bool = True
) -> tuple[State, SetCriterion]:
    """A new run: the model and its optimizer on the device, the settings with every choice made,
    and the criterion. If not `is_training`, a frozen detector may be random.

    Communicates. Raises InputError for a model, weights, an image size or norms that cannot be
    used.
    """
    torch.manual_seed(config.seed)
    config = config.with_queries(data.hints, int(data.max_objects()))
    is_new_run = not (config.resume and has_checkpoint(Path(config.output)))
    model, notes = _model(config, data, is_new_run, is_training)
    settings = config.resolved(model, data.hints, len(data), is_resumed=not is_new_run)
    notes += check_norms(model, dist, max(settings.accumulate, 1), settings.compile)
    trials = TrialChoices(dist.world_size)
    if not is_new_run:
        file = Path(config.output) / "config.json"
        settings, trials, kept_notes = _with_choices_of(file, settings, dist)
        notes += kept_notes
    dtype = weights_dtype(PRECISIONS.get(settings.precision, torch.float32))
    model = model.to(dist.device, dtype).to(memory_format=torch.channels_last)
    num_micro_batches = dist.world_size * max(settings.accumulate, 1)
    micro_batch = max(1, settings.batch_size // num_micro_batches)
    dist.meet()  # reading data and weights takes some ranks longer than others
    trials, thread_notes = _with_threads(trials, settings, model, dist, is_new_run, micro_batch)
    notes += thread_notes
    settings, precision_notes = _with_precision(settings, model, dist, micro_batch)
    notes += precision_notes
    if settings.recompute:
        recompute_blocks(model)
    criterion = SetCriterion.for_model(model, settings.class_normalization)
    if settings.accumulate == 0:
        samples = Samples(data, train_transform(settings, model), settings.seed)
        parts, note = choose_accumulation(settings, model, criterion, samples, dist)
        settings = replace(settings, accumulate=parts)
        trials = replace(trials, accumulate=parts)
        notes.append(note)
    return _new_state(settings, model, data, notes, trials), criterion


def _new_state(
    settings: Settings,
    model: DetectionModel,
    data: DetectionDataset,
    notes: list[str],
    trials: TrialChoices,
) -> State:
    optimizer = build_optimizer(
        model, settings.lr, settings.lr_backbone, settings.weight_decay, settings.optimizer
    )
    names, ids, _ = _classes_of(data)
    return State(
        config=settings,
        model=model,
        ema=ModelEma(model, settings.ema_decay),
        optimizer=optimizer,
        class_names=names,
        category_ids=ids,
        num_images=len(data),
        notes=notes,
        trials=trials,
    )


def _classes_of(
    data: DetectionDataset,
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[bool, ...]]:
    """The names and ids of the classes, and whether each is a thing, as plain values.

    A data set of a user's own may have NumPy's. A checkpoint with those could be written, but
    `torch.load(..., weights_only=True)` would not read it.
    """
    names = tuple(map(str, data.class_names))
    ids = tuple(map(int, data.category_ids))
    return names, ids, tuple(map(bool, data.is_thing))


def _model(
    config: TrainConfig, data: DetectionDataset, is_new_run: bool, is_training: bool
) -> tuple[DetectionModel, list[str]]:
    """The model of a new run with its initial weights, or of a resumed run, and notes for the
    user."""
    # A resumed run has its weights in its checkpoint; the file from which it started may be gone.
    start = config if is_new_run else replace(config, weights=None)
    options = start.model_kwargs()
    if not is_new_run:
        options = _options_of_run(config, options)
    model = build(config.model, len(data.class_names), **options)
    names, _, model.is_thing = _classes_of(data)
    notes = starting_point(model, config, names, is_training) if is_new_run else []
    if config.freeze:
        freeze(model, config.freeze)
        notes.append(what_is_frozen(model))
    return model, notes


def _options_of_run(config: TrainConfig, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the model of a resumed run; an earlier version may have begun it."""
    backbone = options.get("backbone", options_of(config.model)["backbone"])
    checkpoint = None
    if not isinstance(backbone, str):  # only these have another network; their files are small
        checkpoint = newest_checkpoint(Path(config.output))
    if checkpoint is None:
        return options
    _, saved, _ = checkpoint
    return with_earlier_network(config.model, options, saved["model"])


def _with_threads(
    trials: TrialChoices,
    settings: Settings,
    model: DetectionModel,
    dist: Dist,
    is_new_run: bool,
    batch_size: int,
) -> tuple[TrialChoices, list[str]]:
    """The choices with the number of threads that a trial with `batch_size` images chose, if there
    was one, and notes for the user.

    A resumed run uses as many threads as before, so that it ends with the same weights.
    """
    choice = None
    is_single_cpu_process = dist.world_size == 1 and dist.device.type == "cpu"
    if is_new_run and settings.threads is None and is_single_cpu_process:
        choice = pick_threads(model, settings.image_size, gradient=True, batch_size=batch_size)
    if choice is None:
        return trials, crowding()
    return replace(trials, threads=choice.threads), [choice.reason]


def _with_precision(
    settings: Settings, model: DetectionModel, dist: Dist, batch_size: int
) -> tuple[Settings, list[str]]:
    """The settings with the precision that they mean here, and notes for the user. Communicates."""
    choice = pick_precision(
        settings.precision,
        dist.device,
        model,
        settings.image_size,
        gradient=True,
        batch_size=batch_size,
    )
    choice = dist.gather([choice])[0]  # the trials of other ranks may end otherwise
    notes = [choice.reason] if choice.reason else []
    return replace(settings, precision=choice.name), notes


def _with_choices_of(
    file: Path, settings: Settings, dist: Dist
) -> tuple[Settings, TrialChoices, list[str]]:
    """The settings of a resumed run with what trials chose at its start, as its `config.json`
    records it; those of the choices that still hold; and notes for the user. Sets the number of
    compute threads."""
    trials = TrialChoices(dist.world_size)
    if not file.exists():
        return settings, trials, []
    run = TrainConfig.read(file)
    recorded = read_trials(file)
    if recorded is not None and recorded.world_size == dist.world_size:
        trials = recorded
    if settings.precision == "auto":
        settings = replace(settings, precision=run.precision)
    if settings.threads is not None:
        trials = replace(trials, threads=None)
    elif trials.threads is not None:
        use_threads(trials.threads)
    elif recorded is not None or dist.world_size == 1:
        # Earlier versions did not tell the choice of a trial, which is that of a single process,
        # from the user's.
        use_threads(run.threads)
        settings = replace(settings, threads=run.threads)
    return _with_micro_batches_of(run, settings, trials)


def _with_micro_batches_of(
    run: TrainConfig, settings: Settings, trials: TrialChoices
) -> tuple[Settings, TrialChoices, list[str]]:
    """The settings of a resumed run with the micro-batches that a trial on as many ranks chose for
    it, if there was one, instead of a new trial, which may choose others; the choices that still
    hold; and notes for the user."""
    if trials.accumulate is not None and settings.accumulate in (0, trials.accumulate):
        return replace(settings, accumulate=trials.accumulate), trials, []
    trials = replace(trials, accumulate=None)
    if settings.accumulate > 0:
        return settings, trials, []
    ranks = counted(trials.world_size, "rank")
    note = (
        f"note: the number of micro-batches is chosen anew: the run had {run.accumulate} per rank, "
        f"and it records no trial with {ranks}"
    )
    return settings, trials, [note]


def first_notes(
    data: DetectionDataset, val: DetectionDataset, state: State, dist: Dist
) -> list[str]:
    """Messages to the user before the run starts."""
    config = state.config
    parameters = sum(p.numel() for p in state.model.parameters())
    images = counted(len(data), "training image")
    steps = counted(config.steps, "step")
    device = f"{dist.world_size} x {dist.device.type}"
    if dist.device.type == "cpu":
        device += f" with {counted(torch.get_num_threads(), 'thread')}"
    notes = [
        f"{config.model}: {parameters / 1e6:.1f} M parameters, {images} at "
        f"{size_text(config.image_size)} px, {steps} of {config.batch_size}, "
        f"{device}, {config.precision}"
    ]
    notes += _about_queries(data, val, state)
    if config.compile and dist.device.type == "cpu":
        notes.append("note: --compile made steps of redetr_n slower on a CPU (docs/speed.md)")
    notes.append(f"weights: {state.model.weights_from}")
    notes += state.notes
    notes += outlook(config, data, val)
    notes += restart_notes()
    notes += dict.fromkeys([*data.notes, *val.notes])  # both may have the same
    notes += what_was_left_out(unreadable_of(data), "train")
    notes += what_was_left_out(unreadable_of(val), "val")
    if state.model.has_masks:
        notes += _about_missing_masks(data, val, trains_only_masks(state.model))
    return notes


def _about_queries(data: DetectionDataset, val: DetectionDataset, state: State) -> list[str]:
    """Warnings if images hold more objects than the model can detect."""
    queries = state.model.num_queries
    model = f"but the model has only {counted(queries, 'query', 'queries')}"
    remedy = "raise --num-queries"
    if state.step:  # a resumed run keeps its model
        remedy = "a new run may take a larger --num-queries"
    notes = []
    most = data.max_objects()
    if most > queries and not data.hints.num_queries:  # which suits what the model sees of an image
        objects = counted(most, "object")
        notes.append(
            f"warning: an image holds {objects}, {model}: the rest stay unmatched; {remedy}"
        )
    most = val.max_objects()
    if most > queries:
        objects = counted(most, "object")
        notes.append(
            f"warning: an image of val holds {objects}, {model}: the rest are never detected; "
            f"{remedy}"
        )
    return notes


def _about_missing_masks(
    data: DetectionDataset, val: DetectionDataset, boxes_are_fixed: bool
) -> list[str]:
    """What a user should know of objects without a mask, before masks are trained."""
    notes = []
    gaps = "" if isinstance(data, AnnotatedDataset) else mask_gaps(data)  # its notes say it
    if gaps:
        notes.append(f"warning: {data.name}: {gaps}; only the boxes of such objects are learned")
    gaps = mask_gaps(val)
    if gaps:
        warning = f"warning: masks are not measured on val, only boxes, because {gaps}"
        if boxes_are_fixed:
            warning += "; boxes cannot change, so the last evaluation counts as the best"
        notes.append(warning)
    return notes


def train_transform(config: Settings, model: DetectionModel) -> Transform:
    """What training does to an image."""
    return augmentation(config.augment, final_size(model, config.image_size))


def train_samples(
    config: Settings,
    model: DetectionModel,
    data: DetectionDataset,
    custom: CustomAugmentation | None = None,
    cache: ImageCache | None = None,
) -> Samples:
    """The training data as the model sees it."""
    mosaic_steps = config.mosaic_until * config.steps
    mosaic_epochs = int(mosaic_steps * config.batch_size / len(data))
    transform = train_transform(config, model)
    return Samples(data, transform, config.seed, cache, mosaic_epochs, custom)


def grouping(config: Settings, model: DetectionModel, samples: Samples) -> SizeOf | None:
    """The sizes by which samples are grouped into batches; None if they are not."""
    # Images of one size need no grouping.
    sizes_differ = model.resize == "aspect"
    return samples.size if config.group_by_size and sizes_differ else None


def custom_augmentation(
    config: TrainConfig, augment: Callable[..., Any] | None = None
) -> CustomAugmentation | None:
    """The user's own augmentation: `augment`, or what the config names. Raises InputError if it
    cannot be used, or if the config is that of a run with an `augment` that is not given now."""
    source = config.custom_augment
    if augment is not None:
        if source not in (None, AUGMENT_IN_PYTHON):
            raise InputError("give augment or custom_augment, not both")
        return CustomAugmentation(augment)
    if source == AUGMENT_IN_PYTHON:
        text = f"these settings are those of a run with {source}"
        raise InputError(text, remedy="give the same augment, or set custom_augment to None")
    return load_augmentation(source) if source else None


def num_workers_of(config: Settings, device: torch.device) -> int:
    """Loader processes of this rank: as the user says, or by the cores of the host."""
    if config.num_workers is not None:
        return config.num_workers
    return spare_workers(device)


def image_cache(config: Settings, dist: Dist, data: DetectionDataset) -> ImageCache | None:
    """The cache of decoded images for all ranks of a host. Communicates."""
    if config.cache_mb == 0 or sys.platform != "linux" or not isinstance(data, AnnotatedDataset):
        return None
    limit = spare_bytes(config.cache_dir) if config.cache_mb is None else config.cache_mb * 10**6
    cache = ImageCache(len(data), limit, config.cache_dir)
    this_host = host()
    for other_host, path in dist.gather([(this_host, cache.path)]):
        if other_host == this_host:  # all ranks of a host use the file of its first
            cache.path = path
            break
    return cache
