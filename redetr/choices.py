"""The values that settings and flags take, apart from the code that they steer, because help and
completion do without PyTorch."""

import math
from typing import Literal

Augment = Literal["plain", "detr", "photo", "strong", "aerial"]
ClassLoss = Literal["mal", "varifocal"]  # of variants with sigmoid scores
ClassNormalization = Literal["global", "per_rank"]
Compression = Literal["none", "bf16"]  # of gradients between ranks
OptimizerName = Literal["muon", "adamw"]
LoggerName = Literal["tensorboard", "mlflow", "wandb"]
Precision = Literal["auto", "fp32", "bf16", "fp64"]  # in which a run computes
Schedule = Literal["cosine", "step", "constant"]

LabelChoice = Literal["auto", "all", "none"]  # auto: labels of boxes where there is room
MaskChoice = Literal["rle", "polygons", "none"]  # how files write masks

ExportFormat = Literal["onnx", "openvino", "torch", "executorch", "litert", "coreml"]
ExportPrecision = Literal["fp32", "fp16", "int8"]  # of the numbers in an exported file

# The size of what a model sees, px: a side (of a square, or the shorter one), or height and width.
ImageSize = int | tuple[int, int]

MOST_BANDS = 64  # of an image


PATIENCE = 0.25  # of recipes that end early: a share of the run


def parsed_size(text: str) -> ImageSize:
    """The size that is written as `128` or, height first, as `96x128`. Raises ValueError."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.removeprefix("-").isdecimal() for side in sides):
        raise ValueError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH")
    if len(sides) == 1:
        return int(sides[0])
    return int(sides[0]), int(sides[1])


def size_text(image_size: ImageSize) -> str:
    """How `parsed_size` takes a size."""
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
    smaller = max(multiple, side // multiple * multiple)
    larger = max(multiple, math.ceil(side / multiple) * multiple)
    return smaller, larger
