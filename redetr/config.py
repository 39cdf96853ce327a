"""The settings of a training run: one frozen dataclass, filled by a recipe and overridden by
flags."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from redetr.choices import (
    Augment,
    ClassNormalization,
    Compression,
    OptimizerName,
    Precision,
    Schedule,
)
from redetr.errors import InputError

if TYPE_CHECKING:  # these import PyTorch
    from redetr.data import DetectionDataset, Hints
    from redetr.structures import DetectionModel

MOST_QUERIES = 300  # that a run takes without being told to
_STRIDE = 32  # of the coarsest feature map: sizes are multiples of it


@dataclass(frozen=True)
class TrainConfig:
    """What `redetr train` does; every field is a flag."""

    model: str = "redetr_n"
    """Name of the model, see `redetr models`."""
    data: str = "digits"
    """digits, crowns, a folder in COCO, YOLO or Pascal VOC form, or hf:NAME for what Hugging Face
    `datasets` reads."""
    val_fraction: float = 0.0
    """Share of the images to hold out for validation if the data has no val split; an image stays
    where it is."""
    output: str = "runs/last"
    """The run folder: checkpoints, metrics.jsonl, config.json."""
    epochs: float = 0.0
    """Length of the run in passes over the data (or give --steps)."""
    steps: int = 0
    """Length of the run in optimizer steps (or give --epochs; without either, the data's size
    decides)."""
    batch_size: int = 16
    """Images per optimizer step, over all ranks and accumulated micro-batches."""
    accumulate: int = 1
    """Micro-batches per optimizer step and rank."""
    optimizer: OptimizerName = "muon"
    """muon: AdamW with orthogonal steps for matrices; adamw: as the original, at half the rate or
    less."""
    lr: float = 4e-3
    """Learning rate."""
    lr_backbone: float | None = None
    """Learning rate of the backbone (default: lr)."""
    weight_decay: float = 1e-2
    """Decoupled decay, not applied to norms, biases and embeddings."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 = no clipping."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after warm-up."""
    warmup: float = 0.04
    """Share of the steps in which the learning rate rises."""
    drop_at: float = 0.67
    """Share of the steps after which the "step" schedule drops to a tenth."""
    ema_decay: float | None = None
    """Decay of the moving average of the weights; 0 = none; default: by the length of the run."""
    class_normalization: ClassNormalization = "global"
    """Class loss divided by the whole step's count, or by each rank's as in the original."""
    image_size: int = 0
    """Side (fast forms) or shorter side (faithful forms), px; default: the data set's, else the
    model's; for the fast forms no more than the images have."""
    augment: Augment | None = None
    """Augmentation; default: the data set's, else the model's."""
    mosaic_until: float = 0.0
    """Share of the run, in whole epochs, in which samples may be mosaics of four images or two
    images mixed; costs AP in short runs."""
    group_by_size: bool = True
    """Images of like size in a batch, so that less is padded, for the forms that keep the aspect
    ratio."""
    weights: str | None = None
    """Where to start: imagenet (the backbone alone), none, or a checkpoint, run folder,
    Transformers folder or hub name (fine-tuning), or a file of a backbone's weights."""
    num_queries: int | None = None
    """Most objects the model can find in an image; default of the fast forms: twice the most in a
    training image."""
    model_options: tuple[str, ...] = ()
    """Options of the model as name=value, such as num_queries=300."""
    precision: Precision = "auto"
    """auto = bf16 (autocast) where the hardware multiplies it fast; fp64 is for proofs."""
    recompute: bool = False
    """Less memory for large images: blocks of the backbone and the encoder are computed twice."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at first, then faster steps; dropout draws
    otherwise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Seed of weights, data order, augmentation and dropout."""
    num_workers: int | None = None
    """Loader processes per rank; default: cores per rank minus one, at most 8."""
    cache_mb: int | None = None
    """Decoded images kept in memory, MB per host; default: a quarter of what is free; 0 = none."""
    cache_dir: str | None = None
    """Folder of a local disk to keep them on instead, while the run lasts."""
    log_every: int = 20
    """Steps between lines in metrics.jsonl, and on the screen where that is no terminal."""
    eval_every: int = 0
    """Steps between evaluations; default: once an epoch, but 5 to 20 times a run."""
    eval_batch_size: int = 16
    """Images that each rank looks at together in an evaluation."""
    patience: int = 0
    """Evaluations in a row without a better AP after which the run ends; 0 = never."""
    save_every: int = 0
    """Steps between checkpoints; default: as eval_every. A run that is killed loses at most so
    much."""
    resume: bool = False
    """Continue from the output folder's newest whole checkpoint if there is one."""
    timeout_s: float = 600.0
    """Seconds after which a rank that does not answer is given up, and with it the run."""
    gradient_compression: Compression = "none"
    """bf16 halves what travels between ranks; gradients are then no longer exact."""

    def model_kwargs(self) -> dict[str, Any]:
        """The arguments of `models.build`. Raises InputError for a malformed option."""
        weights = (
            self.weights if self.weights == "imagenet" else None
        )  # others are loaded into what was built
        chosen = {"weights": weights, "num_queries": self.num_queries}
        kwargs: dict[str, Any] = {
            name: value for name, value in chosen.items() if value is not None
        }
        for option in self.model_options:
            name, equals, value = option.partition("=")
            if not equals:
                raise InputError(f"model option {option!r} is not of the form name=value")
            try:
                parsed = json.loads(value)
            except json.JSONDecodeError:
                parsed = value
            kwargs[name] = tuple(parsed) if isinstance(parsed, list) else parsed
        return kwargs

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(asdict(self), default=os.fspath))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """The settings that `to_dict` wrote. Raises InputError for one that this version does not
        know, or of another type."""
        kinds = get_type_hints(cls)
        values = {**values, "model_options": tuple(values.get("model_options", ()))}
        for name, value in values.items():
            if name not in kinds:
                raise InputError(
                    f"setting {name!r} is not known to this version of redetr: a newer one wrote it"
                )
            if not _is_a(value, kinds[name]):
                raise InputError(f"setting {name!r} cannot be {value!r}")
        return cls(**values)

    def with_queries_for(self, data: "DetectionDataset") -> "TrainConfig":
        """The same run with `num_queries` chosen by the data, for the forms whose queries are
        picked from the image."""
        if self.num_queries or self.model.startswith("detr_"):
            return self
        return replace(
            self,
            num_queries=data.hints.num_queries
            or min(MOST_QUERIES, max(25, 2 * data.max_objects())),
        )

    def resolved(self, model: "DetectionModel", hints: "Hints", num_images: int) -> "TrainConfig":
        """The same run with every default that depends on the data or the model filled in."""
        if self.steps > 0 and self.epochs > 0:
            raise InputError("give the length of the run as --epochs or as --steps, one of them")
        epochs = self.epochs or _suitable_epochs(num_images)
        steps = self.steps or max(1, -(-int(epochs * num_images) // self.batch_size))
        ema_decay = (
            min(0.9998, max(0.99, 1 - 8 / steps)) if self.ema_decay is None else self.ema_decay
        )
        per_epoch = max(1, num_images // self.batch_size)
        eval_every = self.eval_every or min(max(per_epoch, -(-steps // 20)), -(-steps // 5))
        default_augment: Augment = "detr" if model.resize == "aspect" else "photo"
        return replace(
            self,
            steps=steps,
            epochs=0.0,
            ema_decay=ema_decay,
            image_size=self.image_size
            or hints.image_size
            or _suitable_size(model, hints.native_size),
            augment=self.augment or hints.augment or default_augment,
            lr_backbone=self.lr if self.lr_backbone is None else self.lr_backbone,
            eval_every=eval_every,
            save_every=self.save_every or eval_every,
        )

    def check(self, world_size: int) -> None:
        """Raises InputError for settings that cannot work, naming the flag."""
        parts = world_size * self.accumulate
        if self.accumulate < 1 or self.batch_size < parts:
            raise InputError(
                f"--batch-size {self.batch_size} cannot be divided over {world_size} ranks x "
                f"{self.accumulate} "
                f"accumulated micro-batches: choose at least {max(parts, 1)}"
            )
        if not 0 <= self.val_fraction < 1:
            raise InputError(f"--val-fraction {self.val_fraction} must be at least 0 and below 1")
        for name in ("mosaic_until", "warmup", "drop_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} must be from 0 to 1"
                )
        if self.cache_dir and not Path(self.cache_dir).is_dir():
            raise InputError(
                f"--cache-dir {self.cache_dir}: no such folder; create it, or leave the flag out"
            )
        for name in ("log_every", "eval_batch_size"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1"
                )
        if not self.lr > 0:
            raise InputError(f"--lr {self.lr} must be above 0")
        if not self.timeout_s > 0:
            raise InputError(f"--timeout-s {self.timeout_s} must be above 0")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"--ema-decay {self.ema_decay} must be at least 0 and below 1")
        for name in (
            "image_size",
            "num_workers",
            "cache_mb",
            "num_queries",
            "eval_every",
            "save_every",
            "patience",
            "clip_norm",
            "steps",
            "epochs",
            "seed",
            "weight_decay",
        ):
            if (getattr(self, name) or 0) < 0:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} must not be below 0"
                )


def _suitable_size(model: "DetectionModel", native_size: int | None) -> int:
    """The model's own size; a "square" form does not enlarge small images: time goes with the
    square of the size."""
    if model.resize == "aspect" or native_size is None:
        return model.image_size
    return min(model.image_size, -(-native_size // _STRIDE) * _STRIDE)


def _suitable_epochs(num_images: int) -> float:
    """Passes over a data set of this size: many over a small one, so that there are some 1,500
    steps of 16 images at least, and no more than the usual 36 over a large one.
    """
    return max(36.0, 24_000 / max(num_images, 1))


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a setting."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(
            isinstance(item, get_args(kind)[0]) for item in value
        )
    if get_args(kind):  # a union
        return any(_is_a(value, each) for each in get_args(kind))
    wanted = (int, float) if kind is float else kind
    return isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
