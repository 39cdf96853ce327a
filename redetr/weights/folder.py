"""Reads a folder of Transformers: its settings, tensors, class names, and how images are
prepared."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from redetr.checkpoint import read_safetensors, read_torch
from redetr.choices import ImageSize
from redetr.data.transforms import MEAN, STD
from redetr.errors import InputError
from redetr.files import RUN_FILES, holds_run
from redetr.weights.tensors import require_tensors

CONFIG = "config.json"
IMAGES = "preprocessor_config.json"
# Weights in one file. If there are several, a file with this name and ".index.json" states which
# file has which tensor.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LARGEST_PX = 1 << 14  # of an image that a file may claim its model takes
_LONGER_SIDE = 1333  # px, if a folder of an older version gives the shorter side only
_BILINEAR = 2  # number of the filter in PIL
# How images are prepared, apart from their size.
_PREPARATION: dict[str, Any] = {"do_resize": True, "do_rescale": True, "resample": _BILINEAR}
_TOLERANCE = 1e-3  # of numbers that are rounded in some folders


def is_of_transformers(folder: Path) -> bool:
    """Whether a folder has the settings of a Transformers model, rather than those of a backbone of
    timm, which name an `architecture`. Raises InputError if the settings are damaged."""
    file = folder / CONFIG
    if not file.is_file() or is_of_run(folder):
        return False
    config = read_config(file)
    return "model_type" in config or "architecture" not in config


def is_of_run(folder: Path) -> bool:
    """Whether a folder is that of a run, which writes a config.json of its own."""
    return holds_run({name for name in RUN_FILES if (folder / name).exists()})


def read_config(file: Path) -> dict[str, Any]:
    """The settings in a file of a Transformers folder. Raises InputError if it cannot be read or
    holds no table."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not JSON
        raise InputError(f"cannot be read ({error})", where=file) from error
    if not isinstance(config, dict):
        raise InputError("not the config.json of a model: no table of settings", where=file)
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors in the weight files of a folder. Raises InputError if there is none, or if one is
    damaged."""
    for name in WEIGHTS:
        if (folder / name).exists():
            return _tensors_of(folder / name)
        index = folder / f"{name}.index.json"
        if index.exists():
            tensors: dict[str, Tensor] = {}
            for file in _shards(index):
                tensors |= _tensors_of(file)
            return tensors
    raise InputError(
        f"has no weights: neither {' nor '.join(WEIGHTS)}, whole or in several files",
        where=folder,
    )


def _tensors_of(file: Path) -> dict[str, Tensor]:
    content = read_safetensors(file)[0] if file.suffix == ".safetensors" else read_torch(file)
    return require_tensors(file, content)


def _shards(index: Path) -> list[Path]:
    """The files that an index names. Raises InputError if one is not a file of its folder."""
    file_of_tensor = read_config(index).get("weight_map")
    if not isinstance(file_of_tensor, dict) or not file_of_tensor:
        raise InputError("has no weight_map, a table of tensors and their files", where=index)
    shards: list[Path] = []
    for name in file_of_tensor.values():
        is_plain = isinstance(name, str) and Path(name).name == name
        if not is_plain or not name.endswith((".safetensors", ".bin")):
            shown = repr(name)[:100]
            raise InputError(f"weight_map has {shown}, no file of this folder", where=index)
        if index.parent / name not in shards:
            shards.append(index.parent / name)
    return shards


def class_names(folder: Path, config: dict[str, Any], num_classes: int) -> list[str]:
    """The names in `id2label`, or "class i" for a class without one.

    Raises InputError if `id2label` is not a table, or if it names a class that the weights do not
    have.
    """
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict):
        raise InputError("id2label has to be a table of settings", where=folder / CONFIG)
    known = [str(i) for i in range(num_classes)]
    for label in labels:
        if label not in known:
            text = f"id2label has class {label!r:.100}, and the weights have 0 to {num_classes - 1}"
            raise InputError(text, where=folder / CONFIG)
    return [str(labels.get(label, f"class {label}")) for label in known]


def sizes_keeping_aspect(folder: Path) -> tuple[int, int] | None:
    """The shorter side and the maximum of the longer side, in pixels, to which images are resized.

    If only a longer side is given, as in some Table Transformers, every image is resized to it.
    None if the folder does not state a size. Raises InputError if images are not prepared as for
    DETR.
    """
    file = folder / IMAGES
    if not file.is_file():
        return None
    processor = read_config(file)
    _require(file, processor, _PREPARATION | {"do_normalize": True})
    _require_numbers(file, processor, {"image_mean": MEAN, "image_std": STD})
    size = processor.get("size")
    if size is None:
        return None
    by_name = size if isinstance(size, dict) else {}
    longest = by_name.get("longest_edge")
    shorter = by_name.get("shortest_edge", longest)
    if by_name.keys() == {"max_height", "max_width"}:
        longest = by_name["max_width"]
        shorter = longest if longest == by_name["max_height"] else None
    if not isinstance(size, dict):  # written by older versions
        shorter = size
        longest = processor.get("max_size", _LONGER_SIDE)
    known = "a shortest_edge and a longest_edge, or a max_height and an equal max_width"
    for side in (shorter, longest):
        _require_pixels(file, size, side, known)
    return shorter, longest  # type: ignore[return-value]


def size_when_stretched(folder: Path) -> ImageSize:
    """The size in pixels to which images are stretched; 0 if the folder does not state it.

    Raises InputError if images are not prepared as for RT-DETR and D-FINE.
    """
    file = folder / IMAGES
    if not file.is_file():
        return 0
    processor = read_config(file)
    _require(file, processor, _PREPARATION)
    _require_numbers(file, processor, {})
    _require_no_normalization(file, processor)
    size = processor.get("size")
    if size is None:
        return 0
    by_name = size if isinstance(size, dict) else {}
    height = by_name.get("height")
    width = by_name.get("width")
    for side in (height, width):
        _require_pixels(file, size, side, "a height and a width")
    return height if height == width else (height, width)  # type: ignore[return-value]


def _require_pixels(file: Path, size: Any, side: Any, known: str) -> None:
    """Raises InputError if `side`, one of the sides in `size`, is not a valid length in pixels."""
    is_length = isinstance(side, int) and not isinstance(side, bool) and side > 0
    if not is_length:
        raise InputError(f"size is {size!r:.100}: this model needs {known}", where=file)
    if side >= LARGEST_PX:
        raise InputError(f"images of {side} px: at most {LARGEST_PX - 1}", where=file)


def _require(file: Path, processor: dict[str, Any], supported: dict[str, Any]) -> None:
    for name, value in supported.items():
        given = processor.get(name)
        if given is not None and given != value:
            raise _refused(file, name, given, value)
    if processor.get("pad_size") is not None:
        raise _refused(file, "pad_size", processor["pad_size"], None)


def _require_numbers(file: Path, processor: dict[str, Any], supported: dict[str, Any]) -> None:
    for name, value in {"rescale_factor": 1 / 255, **supported}.items():
        given = processor.get(name)
        if given is not None and not _is_close(given, value):
            raise _refused(file, name, given, value)


def _require_no_normalization(file: Path, processor: dict[str, Any]) -> None:
    """Raises InputError if pixels are normalised instead of left in [0, 1]. A mean of 0 and a
    deviation of 1, which PaddleDetection writes, leave them unchanged."""
    if not processor.get("do_normalize"):
        return
    for name, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
        if not _is_close(processor.get(name), (neutral,) * 3):
            raise _refused(file, "do_normalize", True, False)


def _is_close(given: Any, value: Any) -> bool:
    """Whether a number, or each number of a list, equals `value` up to rounding."""
    if isinstance(value, float):
        is_number = isinstance(given, int | float) and not isinstance(given, bool)
        # Compared, not subtracted: whole numbers may be too large to become floats.
        tolerance = _TOLERANCE * value
        return is_number and value - tolerance <= given <= value + tolerance
    if not isinstance(given, list) or len(given) != len(value):
        return False
    return all(_is_close(a, b) for a, b in zip(given, value, strict=True))


def _refused(file: Path, name: str, given: Any, value: Any) -> InputError:
    return InputError(
        f"{name} is {given!r:.100}: this model needs {value!r}",
        where=file,
        remedy=f"to load it with {value!r} nevertheless, remove {name} from the file",
    )
