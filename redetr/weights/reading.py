"""Weights from files, and what they say about their detector."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from redetr.checkpoint import REQUIRED, read_safetensors, read_torch
from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.structures import DetectionModel
from redetr.weights import rtdetr
from redetr.weights.official import coco_class_names, describe_detr, from_transformers

_LARGEST_PX = 1 << 14  # of an image that a model is said to take


@dataclass(frozen=True)
class Origin:
    """The detector that weights belong to."""

    model: str  # a name in `MODELS`
    options: dict[str, Any]  # of `build`
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_size: int = 0  # 0 = the model's
    trained_on: str | None = None
    val_fraction: float = 0.0  # held out of it


@dataclass(frozen=True)
class Weights:
    """Tensors by name; `origin` is None for those of a backbone alone, or of an unknown program."""

    path: Path
    tensors: dict[str, Tensor]
    origin: Origin | None


def read_weights(source: str | os.PathLike, model: str | None = None) -> Weights:
    """The weights in a file or folder, or under a hub name, of any kind that `load` and `--weights`
    take.

    `model` names the form of official weights that do not tell it (DC5). Nothing is unpickled but
    tensors and plain values. Raises InputError, naming the file, for everything that cannot be
    read.
    """
    path = locate(source)
    try:
        weights = _read(path, model)
        odd = [name for name, tensor in weights.tensors.items() if not _is_whole(tensor)]
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise InputError(f"{path}: its metadata is damaged ({reason})") from error
    if odd:
        raise InputError(f"{path}: damaged, {odd[0]} is no tensor with all of its values")
    return weights


def _is_whole(tensor: Any) -> bool:
    """Whether it is a tensor in memory whose shape is no larger than what is stored."""
    return (
        isinstance(tensor, Tensor)
        and tensor.device.type == "cpu"
        and tensor.numel() > 0
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _read(path: Path, model: str | None) -> Weights:
    if path.is_dir():
        return _from_transformers(path, model)
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        if "redetr" not in metadata:
            return _from_official(path, tensors, model)
        return Weights(path, tensors, _origin_of_run(json.loads(metadata["redetr"])))
    content = read_torch(path)
    if isinstance(content, dict) and all(key in content for key in REQUIRED):
        return Weights(path, content.get("ema") or content["model"], _origin_of_run(content))
    content = rtdetr.unwrapped(content)
    for key in ("model", "state_dict"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise InputError(
            f"{path}: neither a redetr checkpoint nor tensors by name, alone or as 'model' of a "
            "dict"
        )
    return _from_official(path, content, model)


def locate(source: str | os.PathLike) -> Path:
    """The file, or Transformers folder, that `source` stands for: of a run folder `best.pt`, or
    else `last.pt`; a hub name is downloaded. Raises InputError if there is nothing.
    """
    path = Path(source)
    if path.is_dir():
        found = [path / name for name in ("best.pt", "last.pt") if (path / name).exists()]
        if found or not (path / "config.json").is_file():
            path = (found or [path / "best.pt"])[0]
    if path.exists():
        return path
    if str(source).count("/") == 1 and path.suffix not in (".pt", ".pth", ".safetensors"):
        return _download(str(source))
    raise InputError(
        f"{path}: no such file; give a checkpoint, a run folder or a Transformers folder"
    )


def _origin_of_run(about: dict[str, Any]) -> Origin:
    config = TrainConfig.from_dict(about["config"])
    options = {name: value for name, value in config.model_kwargs().items() if name != "weights"}
    classes = tuple(map(str, about["class_names"])), tuple(map(int, about["category_ids"]))
    if len(classes[0]) != len(classes[1]):
        raise ValueError(f"{len(classes[0])} class names and {len(classes[1])} category ids")
    if not isinstance(config.model, str) or config.image_size not in range(_LARGEST_PX):
        raise ValueError(f"a model {config.model!r} for images of {config.image_size!r} px")
    data = str(about.get("data", config.data))  # older checkpoints have the path as it was given
    return Origin(config.model, options, *classes, config.image_size, data, config.val_fraction)


def _from_official(
    path: Path,
    tensors: dict[str, Tensor],
    model: str | None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Weights:
    """Weights under the official names of DETR, or under any others."""
    if rtdetr.is_rtdetr(tensors):
        return _original_rtdetr(path, tensors, model)
    if not {"query_embed.weight", "class_embed.weight"} <= tensors.keys():
        return Weights(path, tensors, None)
    if not _is_whole(tensors["class_embed.weight"]):  # or names are made for classes by the billion
        raise ValueError("class_embed.weight has not all of its values")
    name, num_classes, described = describe_detr(tensors)
    if "dc5" in path.name.lower():  # detr-r50-dc5-f0fb7ef5.pth: nothing else tells it
        name = f"{name}_dc5"
    if class_names is None:
        class_names = (
            coco_class_names() if num_classes == 91 else [f"class {i}" for i in range(num_classes)]
        )
    options = {**described, **options}
    return Weights(
        path, tensors, Origin(model or name, options, tuple(class_names), tuple(range(num_classes)))
    )


def _from_transformers(folder: Path, model: str | None) -> Weights:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'config.json'}: cannot be read ({error})") from error
    if config.get("model_type") in rtdetr.MODEL_TYPES:
        return _rtdetr_from_transformers(folder, config, model)
    if config.get("model_type") != "detr":
        raise InputError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not one that "
            f"can be loaded: {', '.join(['detr', *rtdetr.MODEL_TYPES])}"
        )
    backbone = config.get("backbone_config") or {}
    if config.get("activation_function", "relu") != "relu" or backbone.get(
        "downsample_in_bottleneck"
    ):
        raise InputError(
            f"{folder / 'config.json'}: not the function of the original DETR: only ReLU and "
            "ResNet v1.5"
        )
    labels = config.get("id2label") or {}
    tensors = from_transformers(_tensors_of_folder(folder))
    num_classes = (
        tensors["class_embed.weight"].shape[0] - 1 if "class_embed.weight" in tensors else 0
    )
    names = [labels.get(str(i), f"class {i}") for i in range(num_classes)]
    options: dict[str, Any] = {"nheads": config.get("encoder_attention_heads", 8)}
    if config.get("dilation") or backbone.get("output_stride") == 16:
        options["dilation"] = True
    return _from_official(folder, tensors, model, names, **options)


def _tensors_of_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").exists():
        tensors, _ = read_safetensors(folder / "model.safetensors")
        return tensors
    return read_torch(folder / "pytorch_model.bin")


def _rtdetr_from_transformers(folder: Path, config: dict[str, Any], model: str | None) -> Weights:
    try:
        options = rtdetr.options_from_config(config)
    except InputError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from error
    tensors = rtdetr.from_transformers(_tensors_of_folder(folder))
    version = rtdetr.MODEL_TYPES[config["model_type"]]
    name, num_classes, described = rtdetr.describe(version, tensors)
    labels = config.get("id2label") or {}
    names = [labels.get(str(i), f"class {i}") for i in range(num_classes)]
    class_names, category_ids = rtdetr.classes(names)
    origin = Origin(model or name, {**described, **options}, class_names, category_ids)
    return Weights(folder, tensors, origin)


def _original_rtdetr(path: Path, tensors: dict[str, Tensor], model: str | None) -> Weights:
    version = rtdetr.version_of(tensors)
    points = rtdetr.points_of(tensors)
    tensors = rtdetr.from_original(tensors)
    if not _is_whole(tensors["decoder.enc_score_head.weight"]):
        raise ValueError("decoder.enc_score_head.weight has not all of its values")
    name, num_classes, options = rtdetr.describe(version, tensors)
    if points is not None:
        options["points"] = points
    if "_dsp_" in path.name.lower():  # rtdetrv2_r18vd_dsp_...pth: nothing else tells it
        options["sampling"] = "discrete"
    names = rtdetr.names_without_config(num_classes)
    class_names, category_ids = rtdetr.classes(names)
    return Weights(path, tensors, Origin(model or name, options, class_names, category_ids))


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name}: no such file, and hub names need: pip install huggingface-hub"
        ) from None
    try:
        return Path(
            snapshot_download(
                name, allow_patterns=["config.json", "*.safetensors", "pytorch_model.bin"]
            )
        )
    except (
        Exception
    ) as error:  # the hub client raises many kinds: offline, unknown name, no permission
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"{name}: no such file, and the hub did not give it ({reason}); download the folder "
            "(config.json, "
            "model.safetensors) elsewhere and pass its path"
        ) from error


def load_strictly(model: DetectionModel, weights: Weights) -> None:
    """Fills all of `model`. Raises InputError if a tensor is missing, unknown, of another shape, or
    not finite."""
    require_fitting(model, weights)
    for name, tensor in weights.tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{weights.path}: {name} has values that are not finite: the run has diverged"
            )
    model.load_state_dict(weights.tensors)


def require_fitting(model: DetectionModel, weights: Weights) -> None:
    """Raises InputError if a tensor of `model` is missing, unknown, or of another shape; `model`
    may be on "meta"."""
    expected, given = model.state_dict(), weights.tensors
    missing, surplus = expected.keys() - given.keys(), given.keys() - expected.keys()
    wrong = [n for n in expected.keys() & given.keys() if expected[n].shape != given[n].shape]
    if missing or surplus or wrong:
        example = min([*missing, *surplus, *wrong])
        raise InputError(
            f"{weights.path}: the weights do not fit the model: {len(missing)} missing, "
            f"{len(surplus)} unknown, "
            f"{len(wrong)} of another shape, such as {example}"
        )
