"""The values of settings and flags, separate from the code that they control, so that help and
completion need no PyTorch."""

import math
import shlex
from typing import Literal

Augment = Literal["plain", "detr", "photo", "strong", "aerial"]
ClassLoss = Literal["mal", "varifocal"]  # of variants with sigmoid scores
ClassNormalization = Literal["global", "per_rank"]
Compression = Literal["none", "bf16"]  # of gradients between ranks
OptimizerName = Literal["muon", "adamw"]
LoggerName = Literal["tensorboard", "mlflow", "wandb"]
Precision = Literal["auto", "fp32", "bf16", "fp64"]  # the number format of a run
Schedule = Literal["cosine", "step", "constant"]

LabelChoice = Literal["auto", "all", "none"]  # auto: boxes have labels where there is room
MaskChoice = Literal["rle", "polygons", "none"]  # how files write masks

ExportFormat = Literal["onnx", "openvino", "torch", "executorch", "litert", "coreml"]
ExportPrecision = Literal["fp32", "fp16", "int8"]  # of the numbers in an exported file

# The size of images as a model sees them, px: a side (of a square, or the shorter side), or height
# and width.
ImageSize = int | tuple[int, int]

MOST_BANDS = 64  # of an image

# What `custom_augment` says in a run whose augmentation `redetr.train` was given as a function.
AUGMENT_IN_PYTHON = "an augmentation given in Python"

# What `data` says in a run whose data sets `redetr.train` was given.
DATA_IN_PYTHON = "data sets given in Python"

# What `weights` says in a recipe that has no weights of its own and cannot do without.
WEIGHTS_REQUIRED = "required"

PATIENCE = 0.25  # share of the run without a better AP after which fine-tuning recipes end


def parsed_size(text: str) -> ImageSize:
    """The size in a text such as `128` or, height first, `96x128`. Raises ValueError."""
    sides = text.split("x")
    are_numbers = all(side.removeprefix("-").isdecimal() for side in sides)
    if len(sides) > 2 or not are_numbers:
        raise ValueError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    if len(sides) == 1:
        return int(text)
    height, width = sides
    return int(height), int(width)


def size_text(image_size: ImageSize) -> str:
    """The text from which `parsed_size` reads this size."""
    if isinstance(image_size, int):
        return str(image_size)
    height, width = image_size
    return f"{height}x{width}"


def nearest_sizes(image_size: ImageSize, multiple: int) -> list[ImageSize]:
    """The next smaller and the next larger size whose sides are multiples of a number; the size
    itself if its sides are."""
    nearest: list[ImageSize] = []
    if isinstance(image_size, int):
        nearest += _next_multiples(image_size, multiple)
    else:
        height, width = image_size
        heights = _next_multiples(height, multiple)
        widths = _next_multiples(width, multiple)
        nearest += zip(heights, widths, strict=True)
    return list(dict.fromkeys(nearest))


def _next_multiples(side: int, multiple: int) -> tuple[int, int]:
    below = side // multiple
    above = math.ceil(side / multiple)
    return max(1, below) * multiple, max(1, above) * multiple


# Before the widths, in the name of a backbone of `models/basic_resnet.py`.
BASIC_RESNET = "basic:"


def augmentation_text(source: str | None) -> str:
    """A `custom_augment` in words."""
    if source is None:
        return "no augmentation of your own"
    return source if source == AUGMENT_IN_PYTHON else f"your own augmentation {source}"


def augmentation_remedy(verb: str, source: str) -> str:
    """How to resume or start, the `verb`, a run with the `custom_augment` that it had before."""
    if source == AUGMENT_IN_PYTHON:
        return f"{verb} from Python: redetr.train with the same augment"
    return f"to allow its code to run, add --custom-augment {shlex.quote(source)}"
