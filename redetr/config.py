"""The settings of a training run.

`TrainConfig` is what a user asks for: a recipe fills it, flags override it, and it may leave
choices open. `Settings` is what a run does, with every choice made. `TrainConfig.resolved` turns
the first into the second, once the data and the model are known.
"""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from redetr.bounds import is_of_type, plain_value, require_all_in_bounds
from redetr.choices import (
    WEIGHTS_REQUIRED,
    Augment,
    ClassNormalization,
    Compression,
    ImageSize,
    LoggerName,
    OptimizerName,
    Precision,
    Schedule,
    nearest_sizes,
    size_text,
)
from redetr.earlier import migrated
from redetr.errors import InputError
from redetr.model_options import parsed_options, require_agreement
from redetr.trial_choices import KEY as TRIALS
from redetr.wording import counted

if TYPE_CHECKING:  # these import PyTorch
    from redetr.data import Hints
    from redetr.structures import DetectionModel

MOST_QUERIES = 300  # that a run takes unless the user asks for more
_FEWEST_QUERIES = 25
_RGB = 3  # channels of most images
_STRIDE = 32  # of the coarsest feature map: sizes are multiples of it


@dataclass(frozen=True)
class ModelOptions:
    """The model, its starting weights, and its computation."""

    model: str = "redetr_n"
    """Name of the model: see `redetr models`."""
    num_queries: int | None = None
    """Number of queries, the most objects that the model can detect in an image; default of the
    fast variants: twice the most in any training image."""
    model_options: tuple[str, ...] = ()
    """Options of the model as name=value, such as num_queries=300. Options that you do not name
    keep the value of the recipe or run."""
    weights: str | None = None
    """Weights to start from: imagenet (backbone only), none, a checkpoint, run folder, Transformers
    folder or hub name (fine-tuning), or a file of backbone weights. If the default is "required",
    give one of these."""
    freeze: tuple[str, ...] = ()
    """Parts of the model to freeze, such as backbone or encoder."""
    denoising: int = 0
    """Groups of denoising queries, which start from noisy objects and learn to recover them; 0 =
    none. RT-DETR and D-FINE only; each group adds two queries per object in training."""
    masks: bool = False
    """Also train on instance masks: add a mask head to the model, and read masks from the data."""
    precision: Precision = "auto"
    """auto = bf16 (autocast) where it is faster, which a short trial decides on a CPU; fp64 is for
    proofs."""
    recompute: bool = False
    """Save memory with large images: compute the blocks of the backbone twice instead of keeping
    their results (activation checkpointing); in the faithful variants, those of the encoder too."""
    compile: bool = False
    """Compile the model with torch.compile, for GPUs: takes minutes before the first run, and
    seconds before later ones. Slower on a CPU. Dropout masks differ from those of other runs."""


@dataclass(frozen=True)
class DataOptions:
    """The images and their augmentation."""

    data: str = "digits"
    """digits, crowns, a folder (COCO, YOLO, Pascal VOC, LabelMe, CVAT, VIA or Datumaro format,
    label images, or tar archives), an https:// address of archives, or hf:NAME for a data set of
    Hugging Face `datasets`."""
    channels: int | None = None
    """Bands of the images; default: all bands of .npy files and of TIFF files that need the extra
    tiff, otherwise three (RGB)."""
    skip_unreadable: bool = False
    """Decode all images first and leave out those that cannot be read; unreadable.json in the run
    folder lists them."""
    val_fraction: float = 0.0
    """If the data has no val split, hold out this share of the images for validation, the same
    images in every run; 0 = none."""
    image_size: ImageSize = 0
    """Size in px, a side or HEIGHTxWIDTH (multiples of 32), to which images are stretched; for the
    faithful variants, the shorter side; default: that of the data set, else 800 for the faithful
    variants, and for others the usual longer side of the images, at most 640."""
    augment: Augment | None = None
    """Augmentation; default: the data set's, else the model's."""
    custom_augment: str | None = None
    """Your own augmentation, applied after --augment: NAME in FILE.py, a Compose of Albumentations
    or torchvision.transforms.v2. The file is executed. With --augment plain, it is the only one."""
    mosaic_until: float = 0.0
    """Share of the run, in whole epochs, in which samples may be mosaics of four images or mixes of
    two. Lowers AP in short runs; not measured in long ones."""
    group_by_size: bool = True
    """--no-group-by-size: Fill batches regardless of image size. By default, variants that keep the
    aspect ratio get batches of similar sizes, which need less padding."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How a step changes the weights."""

    batch_size: int = 16
    """Images per optimizer step, over all ranks and accumulated micro-batches. auto = the recipe's,
    in as few micro-batches as fit in memory (--accumulate 0)."""
    accumulate: int = 1
    """Micro-batches per optimizer step and rank; the gradient stays the same, except with trained
    BatchNorm or --class-normalization per_rank. 0 = as few as fit in memory, found by a trial
    before the first step."""
    optimizer: OptimizerName = "muon"
    """muon = Muon for weight matrices and AdamW for the rest; adamw = AdamW for everything, as in
    the original, with half the learning rate or less."""
    lr: float = 4e-3
    """Learning rate."""
    lr_backbone: float | None = None
    """Learning rate of the backbone; default: that of --lr."""
    weight_decay: float = 1e-2
    """Decoupled weight decay, not applied to norms, biases and embeddings."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient; 0 = no clipping."""
    ema_decay: float | None = None
    """Decay of the moving average of the weights; 0 = none; default: depends on the length of the
    run."""
    class_normalization: ClassNormalization = "global"
    """Divide the class loss by the count of the whole step (global), or by that of each rank
    (per_rank), for each of its micro-batches, as the original does."""


@dataclass(frozen=True)
class ScheduleOptions:
    """How long the run is, how the learning rate falls, and when it is evaluated."""

    epochs: float = 0.0
    """Length of the run in passes over the data, instead of --steps; default: depends on the number
    of images."""
    steps: int = 0
    """Length of the run in optimizer steps, instead of --epochs; default: see --epochs."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after warm-up."""
    warmup: float = 0.04
    """Share of the steps over which the learning rate rises."""
    drop_at: float = 0.67
    """Share of the steps after which the "step" schedule drops to a tenth."""
    eval_every: int = 0
    """Steps between evaluations; default: once per epoch, but 5 to 20 times per run."""
    eval_batch_size: int = 16
    """Images per rank and batch in evaluation."""
    patience: float = 0.0
    """Stop early if AP (PQ for panoptic models; mask AP if only masks are trained and can be
    measured) has not improved for this share of the steps, but not before the learning rate has
    fallen to a quarter; 0 = never."""


@dataclass(frozen=True)
class LoaderOptions:
    """How a host reads its images. None of this changes the results."""

    num_workers: int | None = None
    """Loader processes per rank; 0 = load in the rank itself; default: cores per rank minus one, at
    most 8; on a CPU with two cores or fewer, the cores on which nothing computes."""
    loader_timeout_s: float = 120.0
    """The run fails if a loader process does not respond for this many seconds."""
    cache_mb: int | None = None
    """Cache of decoded images in memory, MB per host; 0 = none; default: a quarter of the free
    memory."""
    cache_dir: str | None = None
    """Folder on a local disk in which to cache decoded images instead, for the duration of the
    run."""


@dataclass(frozen=True)
class RunOptions:
    """The device and the outputs of a run."""

    output: str = "runs/last"
    """The run folder: checkpoints, metrics.jsonl, config.json."""
    resume: bool = False
    """Resume from the newest intact checkpoint in the output folder, if there is one."""
    seed: int = 0
    """Seed of weights, data order, augmentation and dropout."""
    device: str = "auto"
    """auto, cpu, cuda, or one GPU of several, such as cuda:1."""
    threads: int | None = None
    """Compute threads of each rank; default: OMP_NUM_THREADS, else one per core, or fewer if other
    programs keep the cores busy and a trial at the start shows that fewer are faster."""
    log: tuple[LoggerName, ...] = ()
    """Loggers besides metrics.jsonl; default: tensorboard, if it is installed."""
    log_every: int = 20
    """Steps between lines in metrics.jsonl, and on the screen when the output is not a terminal."""
    save_every: int = 0
    """Steps between checkpoints, the most that a killed run loses; default: that of
    --eval-every."""
    pictures: bool = True
    """--no-pictures: Do not draw curves.png and predictions.png (ground truth beside
    predictions) at each evaluation."""
    timeout_s: float = 600.0
    """The run fails if a rank does not respond for this many seconds."""
    setup_timeout_s: float = 3600.0
    """The run fails if a rank is not ready for the first step after this many seconds: longer than
    --timeout-s, because a rank may have to read data that others have cached."""
    gradient_compression: Compression = "none"
    """bf16 halves the traffic between ranks; gradients are then no longer exact."""


# The fields of the last base come first.
@dataclass(frozen=True)
class TrainConfig(
    RunOptions, LoaderOptions, ScheduleOptions, OptimizerOptions, DataOptions, ModelOptions
):
    """What a user asks of `redetr train`. Every field is a flag, grouped as in its help.

    Where a default depends on the data, the model or the machine, None or 0 leaves the choice open.
    """

    def __post_init__(self) -> None:
        """Replaces numbers of NumPy and PyTorch by Python's, lists by tuples, and paths by text.
        Raises InputError, naming the setting, for a value of another type."""
        for name, kind in get_type_hints(type(self)).items():
            value = plain_value(getattr(self, name))
            if not is_of_type(value, kind):
                raise InputError(f"setting {name!r} cannot be {value!r}")
            object.__setattr__(self, name, value)  # of a frozen dataclass

    @property
    def is_faithful(self) -> bool:
        """Whether the model is a faithful variant, DETR as published."""
        return self.model.startswith("detr_")

    @property
    def is_fast(self) -> bool:
        """Whether the model is a fast variant, whose number of queries follows the data."""
        return self.model.startswith("redetr_")

    def model_kwargs(self) -> dict[str, Any]:
        """The arguments of `models.build`. Raises InputError for a malformed option, or one that
        contradicts the setting of its name."""
        options = parsed_options(self.model_options)
        stated: dict[str, Any] = {}
        if self.weights is not None:
            stated["weights"] = self.weights
        if self.num_queries is not None:
            stated["num_queries"] = self.num_queries
        if self.denoising:
            stated["denoising"] = self.denoising
        if self.masks and not self.model.endswith("_panoptic"):  # which has them in any case
            stated["masks"] = True
        require_agreement(stated, options)
        if self.weights != "imagenet":  # others are loaded into what was built
            stated.pop("weights", None)
        if self.channels not in (None, _RGB):
            stated["channels"] = self.channels
        return stated | options

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values. What may be a fraction is a float, even where Python was given a whole
        number: by that, `from_dict` tells a patience of 1 from that of an earlier version."""
        values = json.loads(json.dumps(asdict(self)))
        for name, kind in get_type_hints(type(self)).items():
            is_number = float in (kind, *get_args(kind))
            if is_number and type(values[name]) is int:
                values[name] = float(values[name])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The settings that `to_dict` wrote. Raises InputError for one that this version does not
        know, or of another type."""
        values = migrated({**values})
        values.pop(TRIALS, None)  # which are no settings
        kinds = get_type_hints(cls)
        for name in values:
            if name not in kinds:
                raise InputError(
                    f"setting {name!r} is not known to this version of redetr: a newer version "
                    "wrote it"
                )
        return cls(**values)

    @classmethod
    def read(cls, file: Path) -> "TrainConfig":
        """The settings in the `config.json` of a run. Raises InputError if they cannot be read."""
        try:
            settings = json.loads(file.read_text())
            for name in ("model", "data"):  # which every run has written
                if name not in settings:
                    raise ValueError(f"no {name!r}")
            return cls.from_dict(settings)
        except InputError as error:  # of a setting, which does not know the file
            error.where = file
            raise
        except (OSError, ValueError, TypeError) as error:
            reason = str(error)
            if isinstance(error, OSError):  # the path is named already
                reason = error.strerror or reason
            raise InputError(
                f"not the settings of a run ({reason})",
                where=file,
                remedy="give the name of a recipe or a run folder",
            ) from None

    def check(self, world_size: int) -> None:
        """Raises InputError for settings that cannot work, naming the flag."""
        require_all_in_bounds(self)
        if self.weights == WEIGHTS_REQUIRED:
            text = "this recipe fine-tunes a run: its learning rate is too low for random weights"
            remedy = "give --weights RUN, the folder of that run, or use redetr_n, which needs none"
            raise InputError(text, remedy=remedy)
        self._check_batch_size(world_size)
        if parsed_options(self.model_options).get("masks") and not self.masks:
            text = "the model option masks=true adds a mask head, which would not be trained"
            raise InputError(text, remedy="give --masks instead")
        if self.steps and self.epochs:
            raise InputError("--epochs and --steps both set the length of the run: give only one")
        if self.cache_dir and not Path(self.cache_dir).is_dir():
            # A resumed run may have it from its config.json: no flag could be left out.
            text = f"--cache-dir {self.cache_dir}: no such folder"
            remedy = "create it, give another folder, or use --cache-dir None to cache in memory"
            raise InputError(text, remedy=remedy)

    def _check_batch_size(self, world_size: int) -> None:
        """Raises InputError unless each micro-batch of each rank has an image. A resumed run keeps
        its batch size, so the remedy names what it may change, if that suffices."""
        per_rank = max(self.accumulate, 1)
        least = world_size * per_rank
        if self.batch_size >= least:
            return
        ranks = counted(world_size, "rank")
        micro_batches = counted(per_rank, "micro-batch", "micro-batches")
        remedy = f"use at least {least}"
        if self.batch_size >= world_size:
            most = self.batch_size // world_size
            remedy = f"use --accumulate {most} or less, or --batch-size {least} or more"
        elif self.batch_size >= per_rank:
            most = self.batch_size // per_rank
            remedy += f", or at most {counted(most, 'rank')}"
        raise InputError(
            f"--batch-size {self.batch_size} is too small for {ranks} with {micro_batches} each",
            remedy=remedy,
        )

    def _check_sides(self, model: "DetectionModel", is_resumed: bool) -> None:
        """Raises InputError for an image size that the model cannot take."""
        asked = f"--image-size {size_text(self.image_size)}"
        if model.resize == "aspect":
            if isinstance(self.image_size, tuple):
                text = f"{asked}: {self.model} keeps the aspect ratio of images"
                raise InputError(text, remedy="give one number, the shorter side")
            return
        nearest = nearest_sizes(self.image_size, _STRIDE)
        is_chosen = self.image_size != 0 and not is_resumed  # earlier versions took any side
        if is_chosen and nearest != [self.image_size]:
            rule = "the side must be a multiple of"
            if isinstance(self.image_size, tuple):
                rule = "height and width must be multiples of"
            remedy = f"use {' or '.join(map(size_text, nearest))}"
            raise InputError(f"{asked}: {rule} {_STRIDE}", remedy=remedy)

    def with_queries(self, hints: "Hints", max_objects: int) -> "TrainConfig":
        """The same run with `num_queries` chosen by the data, whose images hold at most
        `max_objects` objects.

        The faithful variants learn each query by itself, and the weights that RT-DETR starts from
        were trained with a number of queries, so theirs belongs to the model: None stays. The fast
        ones pick queries from the image.
        """
        is_stated = self.num_queries or "num_queries" in parsed_options(self.model_options)
        if is_stated or not self.is_fast:
            return self
        if hints.num_queries:
            return replace(self, num_queries=hints.num_queries)
        twice = max(_FEWEST_QUERIES, 2 * max_objects)
        return replace(self, num_queries=min(MOST_QUERIES, twice))

    def resolved(
        self,
        model: "DetectionModel",
        hints: "Hints",
        num_images: int,
        is_resumed: bool = False,
    ) -> "Settings":
        """The run with every choice made that depends on the data or the model. It `is_resumed` if
        it has a checkpoint; `resume` alone may also begin it.

        Raises InputError for an image size that the model cannot take.
        """
        steps = self.steps or self._steps_for(num_images)
        eval_every = self.eval_every or _default_eval_every(steps, num_images, self.batch_size)
        image_size = self.image_size or hints.image_size
        self._check_sides(model, is_resumed)
        augment = self.augment or hints.augment
        if augment is None:
            augment = "detr" if model.resize == "aspect" else "photo"
        choices = {
            "steps": steps,
            "epochs": 0.0,
            "ema_decay": default_ema_decay(steps) if self.ema_decay is None else self.ema_decay,
            "image_size": image_size or _default_image_size(model, hints.native_size),
            "augment": augment,
            "channels": self.channels or _RGB,
            "lr_backbone": self.lr if self.lr_backbone is None else self.lr_backbone,
            "eval_every": eval_every,
            "save_every": self.save_every or eval_every,
        }
        values = {setting.name: getattr(self, setting.name) for setting in fields(self)}
        return Settings(**values | choices)

    def _steps_for(self, num_images: int) -> int:
        if not self.epochs:
            return default_steps(num_images, self.batch_size)
        return _steps_of_epochs(self.epochs, num_images, self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Settings(TrainConfig):
    """What a run does: a `TrainConfig` with every choice made. config.json and checkpoints hold it.

    None still has a meaning in some fields. `weights`, `custom_augment` and `cache_dir`: not used.
    `num_queries`: as many as the model has. `num_workers`, `threads` and `cache_mb`: each host
    chooses for itself, by its cores and memory.
    """

    steps: int = field()
    epochs: float = field()  # 0: the length is in `steps`
    ema_decay: float = field()
    image_size: ImageSize = field()
    channels: int = field()
    augment: Augment = field()
    lr_backbone: float = field()
    eval_every: int = field()
    save_every: int = field()

    @property
    def warmup_steps(self) -> int:
        """The number of steps in which the learning rate rises."""
        return round(self.warmup * self.steps)


def _default_image_size(model: "DetectionModel", native_size: int | None) -> int:
    """The model's own size, px. A "square" variant does not enlarge small images: time goes with
    the square of the size."""
    if model.resize == "aspect" or native_size is None:
        return model.image_size
    multiple = math.ceil(native_size / _STRIDE) * _STRIDE
    return min(model.image_size, multiple)


def default_steps(num_images: int, batch_size: int) -> int:
    """Steps of a run that is not given a length.

    Many passes over a small data set, so that there are some 1,500 steps of 16 images, but not more
    than 500; 36 over a large one.
    """
    for_24_000_images = 24_000 / max(num_images, 1)
    epochs = max(36.0, min(500.0, for_24_000_images))
    return _steps_of_epochs(epochs, num_images, batch_size)


def _steps_of_epochs(epochs: float, num_images: int, batch_size: int) -> int:
    images = int(epochs * num_images)
    return max(1, math.ceil(images / batch_size))


def default_ema_decay(steps: int) -> float:
    """The decay of a moving average over about the last eighth of the run, but over at least 100
    and at most 5,000 steps."""
    return min(0.9998, max(0.99, 1 - 8 / steps))


def _default_eval_every(steps: int, num_images: int, batch_size: int) -> int:
    """Once an epoch, but 5 to 20 times a run."""
    per_epoch = max(1, num_images // batch_size)
    for_20_times = math.ceil(steps / 20)
    for_5_times = math.ceil(steps / 5)
    return min(max(per_epoch, for_20_times), for_5_times)
