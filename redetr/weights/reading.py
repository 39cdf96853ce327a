"""Reads weight files, and the description of the detector in them."""

import json
import os
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from redetr.checkpoint import REQUIRED, read_safetensors, read_torch
from redetr.choices import ImageSize, Precision, size_text
from redetr.config import TrainConfig
from redetr.earlier import with_earlier_network, with_present_names
from redetr.errors import InputError
from redetr.files import without_folders
from redetr.models import options_of
from redetr.weights import detr_config, dfine, folder, panoptic, rtdetr
from redetr.weights.locating import locate
from redetr.weights.official import coco_class_names, describe_detr, from_transformers
from redetr.weights.published import UNKNOWN, origin_of
from redetr.weights.tensors import require_tensors, unwrapped, without_wrappers

T = TypeVar("T")

_LONGEST_OPTION = 500  # characters: a longer one may be built to exhaust the JSON parser
_LONGEST_ORIGIN = 1000  # characters
_RUN = "a run of redetr from "
_COCO_CLASSES = 91  # outputs of official checkpoints, one for each category id
_COCO_PANOPTIC_CLASSES = 250  # of panoptic ones
# DC5 by the model with the same tensors.
_DILATED = {
    "detr_r50": "detr_r50_dc5",
    "detr_r101": "detr_r101_dc5",
    "detr_r50_panoptic": "detr_r50_dc5_panoptic",
}
# The Table Transformer that finds rows and columns does not state its image size.
_QUERIES_OF_STRUCTURE = 125
# As a word or after the depth, as in r50dc5, but not within a hash.
_DC5 = re.compile(r"((?<![a-z0-9])|r50|r101|net50|net101)dc5(?![a-z0-9])")
_PX_OF_STRUCTURE = 1000  # of the longer side


@dataclass(frozen=True)
class Origin:
    """The detector that weights belong to."""

    model: str  # a name in `MODELS`
    options: dict[str, Any]  # of `build`
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_size: ImageSize = 0  # 0 = the model's
    trained_on: str | None = None
    val_fraction: float = 0.0  # held out of it
    is_thing: tuple[bool, ...] = ()  # as in `DetectionModel`
    threshold: float | None = None  # with the best F1 when it was evaluated in its run
    precision: Precision | None = None  # what its run computed in
    held_out_otherwise: bool = False  # by an earlier version: other images for the same share
    skip_unreadable: bool = False  # whether its run left out images that cannot be read
    # whether the activation in the decoder is unknown, see `dfine.lacking_activation`
    lacks_activation: bool = False


@dataclass(frozen=True)
class Weights:
    """Tensors by name. `origin` is None for the weights of a backbone or of an unknown program."""

    path: Path
    tensors: dict[str, Tensor]
    origin: Origin | None
    weights_from: str = ""  # as in `DetectionModel`


def read_weights(source: str | os.PathLike, model: str | None = None) -> Weights:
    """The weights in a file or folder, or under a hub name, of any kind that `load` and `--weights`
    accept.

    `model` names the variant of weights that do not identify it themselves, such as DC5. Only
    tensors and plain values are unpickled. Raises InputError, which names the file, if it cannot be
    read, or if weights of another program are those of another model.
    """
    path = locate(source)
    try:
        weights = _read(path, model)
    except InputError as error:
        if error.where is None:  # what describes the tensors does not know their file
            error.where = path
        raise
    if weights.weights_from:  # stated by a run of this library
        return weights
    return replace(weights, weights_from=origin_of(source, path))


def _read(path: Path, model: str | None) -> Weights:
    if path.is_dir():
        return _read_transformers(path, model)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, model)
    return _read_torch(path, model)


def _read_torch(path: Path, model: str | None) -> Weights:
    content = read_torch(path)
    if isinstance(content, dict) and all(key in content for key in REQUIRED):
        averaged = content.get("ema")
        if averaged is None or averaged == {}:
            averaged = content["model"]
        tensors = with_present_names(require_tensors(path, averaged))
        return Weights(
            path, tensors, _origin_of_run(path, content, tensors), _start_of_run(path, content)
        )
    arguments = content.get("args") if isinstance(content, dict) else None
    content = unwrapped(content)
    values = content.values() if isinstance(content, dict) else []
    if not any(isinstance(value, Tensor) for value in values):
        text = (
            "neither a redetr checkpoint nor a dict of named tensors (or one under the key 'model')"
        )
        raise InputError(text, where=path)
    tensors = require_tensors(path, content)
    return _from_official(path, tensors, model, **_options_of_arguments(arguments))


def _options_of_arguments(arguments: Any) -> dict[str, Any]:
    """The options that the training arguments of the original DETR state, but no tensor shows."""
    options = {}
    if isinstance(arguments, Namespace):
        for name in ("dilation", "nheads"):
            if hasattr(arguments, name):
                options[name] = getattr(arguments, name)
    return options


def _read_safetensors(path: Path, model: str | None) -> Weights:
    tensors, metadata = read_safetensors(path)
    require_tensors(path, tensors)
    if "redetr" not in metadata:
        return _from_official(path, tensors, model)
    try:
        about = json.loads(metadata["redetr"])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    tensors = with_present_names(tensors)
    return Weights(path, tensors, _origin_of_run(path, about, tensors), _start_of_run(path, about))


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"its metadata is damaged ({reason[:160]})", where=path)


def _origin_of_run(path: Path, about: Any, tensors: dict[str, Tensor]) -> Origin:
    """The description that a run wrote about its weights. Raises InputError if it is damaged, or
    written by a newer version."""
    if not isinstance(about, dict):
        raise _damaged(path, "not a JSON object")
    class_names = _list_in(path, about, "class_names", str)
    category_ids = _list_in(path, about, "category_ids", int)
    if len(class_names) != len(category_ids):
        reason = f"{len(class_names)} class names and {len(category_ids)} category ids"
        raise _damaged(path, reason)
    config = _config_of_run(path, about.get("config"))
    options = with_earlier_network(config.model, config.model_kwargs(), tensors)
    options.pop("weights", None)
    return Origin(
        model=config.model,
        options=options,
        class_names=tuple(class_names),
        category_ids=tuple(category_ids),
        image_size=config.image_size,
        # Older checkpoints hold the path as the user gave it.
        trained_on=str(about.get("data", config.data)),
        val_fraction=config.val_fraction,
        is_thing=_is_thing(path, about, len(class_names)),
        threshold=_threshold_of_run(path, about.get("threshold")),
        precision=None if config.precision == "auto" else config.precision,
        held_out_otherwise=config.val_fraction > 0 and "threshold" not in about,
        skip_unreadable=config.skip_unreadable,
    )


def _threshold_of_run(path: Path, threshold: Any) -> float | None:
    """The threshold that a run measured; None for older runs. Raises InputError if it is
    damaged."""
    if threshold is None:
        return None
    if not isinstance(threshold, float) or not 0 <= threshold <= 1:
        raise _damaged(path, f"a threshold of {threshold!r:.20}")
    return threshold


def _is_thing(path: Path, about: dict[str, Any], num_classes: int) -> tuple[bool, ...]:
    """Which classes are things; empty if the run did not state it. Raises InputError if it is
    damaged."""
    flags = _list_in(path, {"is_thing": ()} | about, "is_thing", bool)
    if flags and len(flags) != num_classes:
        raise _damaged(path, f"{num_classes} class names, and is_thing of {len(flags)}")
    return tuple(flags)


def _start_of_run(path: Path, about: dict[str, Any]) -> str:
    """The weights that a run started from, in words. Raises InputError if the text is not a short
    line."""
    began = about.get("weights_from")
    if began is None:  # written by an older version
        weights = _config_of_run(path, about.get("config")).weights
        if weights in (None, "none"):
            began = "random weights"
        else:
            began = f"{without_folders(weights)} {UNKNOWN}"
    if not isinstance(began, str) or len(began) > _LONGEST_ORIGIN or not began.isprintable():
        raise _damaged(path, "weights_from is not a short line")
    return began if began.startswith(_RUN) else _RUN + began


def _config_of_run(path: Path, values: Any) -> TrainConfig:
    if not isinstance(values, dict):
        raise _damaged(path, "config is not a JSON object")
    options = _list_in(path, {"model_options": ()} | values, "model_options", str)
    if any(len(option) > _LONGEST_OPTION for option in options):
        raise _damaged(path, f"an option of more than {_LONGEST_OPTION} characters")
    config = TrainConfig.from_dict(values)
    size = config.image_size
    sides = size if isinstance(size, tuple) else (size,)
    if any(side not in range(folder.LARGEST_PX) for side in sides):
        raise _damaged(path, f"images of {size_text(size)} px")
    return config


def _list_in(path: Path, table: dict[str, Any], key: str, kind: type[T]) -> list[T]:
    """The list under a key. Raises InputError if it is not a list of values of this type."""
    values = table.get(key)
    problem = _damaged(path, f"{key} is not a list of {kind.__name__}")
    if not isinstance(values, list | tuple):
        raise problem
    for value in values:
        if not isinstance(value, kind):
            raise problem
    return list(values)


def _from_official(
    path: Path,
    tensors: dict[str, Tensor],
    model: str | None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Weights:
    """The weights in a file with the official names of DETR, or any other names."""
    tensors = without_wrappers(tensors)
    if rtdetr.is_rtdetr(tensors):
        return _original_rtdetr(path, tensors, model)
    if dfine.is_dfine(tensors):
        return _original_dfine(path, tensors, model)
    if panoptic.is_panoptic(tensors):
        name, num_classes, described = panoptic.describe(tensors)
    elif {"query_embed.weight", "class_embed.weight"} <= tensors.keys():
        name, num_classes, described = describe_detr(tensors)
    else:
        return Weights(path, tensors, None)
    if _DC5.search(path.name.lower()):  # detr-r50-dc5-f0fb7ef5.pth: only the file name shows it
        described["dilation"] = True
    described |= options
    name = _detr_chosen(path, model, name, described.get("dilation"))
    image_size = 0
    if name == "detr_table" and described["num_queries"] == _QUERIES_OF_STRUCTURE:
        image_size = _PX_OF_STRUCTURE
        described["max_size"] = _PX_OF_STRUCTURE
    if class_names is None:
        class_names = _official_class_names(num_classes)
    category_ids = tuple(range(num_classes))
    is_thing: tuple[bool, ...] = ()
    if num_classes == _COCO_PANOPTIC_CLASSES:
        is_thing = tuple(category_id <= panoptic.LAST_THING for category_id in category_ids)
    origin = Origin(
        name,
        described,
        tuple(class_names),
        category_ids,
        image_size,
        is_thing=is_thing,
    )
    return Weights(path, tensors, origin)


def _official_class_names(num_classes: int) -> list[str]:
    """The class names for a file of the original DETR, which has none."""
    if num_classes == _COCO_CLASSES:
        return coco_class_names()
    if num_classes == _COCO_PANOPTIC_CLASSES:
        return panoptic.coco_class_names(num_classes)
    return [f"class {i}" for i in range(num_classes)]


def _chosen(path: Path, model: str | None, name: str, siblings: Sequence[str]) -> str:
    """The model of these weights: `name`, or that of `siblings`, which have the same tensors, that
    the user calls `model`. Raises InputError if that is another one."""
    if model is None or model == name:
        return name
    if model not in siblings:
        raise other_model(path, name, model)
    return model


def _detr_chosen(path: Path, model: str | None, name: str, dilation: bool | None) -> str:
    """The same of a DETR. `dilation` is what the name of the file, the arguments in it or its
    config.json say; None if they say nothing. Raises InputError if they contradict the user."""
    if name not in _DILATED:
        return _chosen(path, model, name, [])
    chosen = _chosen(path, model, name, [_DILATED[name]])
    if model is not None and dilation not in (None, options_of(model)["dilation"]):
        text = f"states that its backbone is {'' if dilation else 'not '}dilated, unlike that of "
        raise InputError(text + model, where=path, remedy="leave out the model")
    return chosen


def other_model(path: Path, name: str, model: str) -> InputError:
    """The error for weights of the model `name` that the user calls `model`."""
    return InputError(f"holds a {name}, not a {model}", where=path, remedy="leave out the model")


def _read_transformers(path: Path, model: str | None) -> Weights:
    file = path / folder.CONFIG
    config = folder.read_config(file)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _READERS:
        known = ", ".join(_READERS)
        raise InputError(f"model_type is {model_type!r}: only {known} can be loaded", where=file)
    return _READERS[model_type](path, config, model)


def _detr_from_transformers(path: Path, config: dict[str, Any], model: str | None) -> Weights:
    tensors = folder.read_tensors(path)
    classifier = "class_embed.weight"
    if panoptic.is_panoptic(tensors):
        tensors = panoptic.from_transformers(tensors)
        classifier = panoptic.PREFIX + classifier
    elif detr_config.has_masks(config):
        text = "says that the model has masks, but the weights have no mask head"
        raise InputError(text, where=path / folder.CONFIG)
    else:
        tensors = from_transformers(tensors)
    try:
        options = detr_config.options_from_config(config)
    except InputError as error:
        raise InputError(str(error), where=path / folder.CONFIG) from error
    names = None
    if classifier in tensors:
        num_classes = tensors[classifier].shape[0] - 1
        names = folder.class_names(path, config, num_classes)
    weights = _from_official(path, tensors, model, names, **options)
    sizes = folder.sizes_keeping_aspect(path)
    if weights.origin is None or sizes is None:
        return weights
    image_size, max_size = sizes
    options = weights.origin.options | {"max_size": max_size}
    origin = replace(weights.origin, options=options, image_size=image_size)
    return replace(weights, origin=origin)


def _rtdetr_from_transformers(path: Path, config: dict[str, Any], model: str | None) -> Weights:
    options = rtdetr.options_from_config(path / folder.CONFIG, config)
    tensors = rtdetr.from_transformers(folder.read_tensors(path))
    version = rtdetr.MODEL_TYPES[config["model_type"]]
    name, num_classes, described = rtdetr.describe(version, tensors)
    name = _chosen(path, model, name, [])
    names = folder.class_names(path, config, num_classes)
    image_size = folder.size_when_stretched(path)
    origin = Origin(name, described | options, *rtdetr.classes(names), image_size)
    return Weights(path, tensors, origin)


def _dfine_from_transformers(path: Path, config: dict[str, Any], model: str | None) -> Weights:
    options = dfine.options_from_config(path / folder.CONFIG, config)
    tensors = dfine.from_transformers(folder.read_tensors(path))
    name, num_classes, described = dfine.describe(tensors)
    name = _chosen(path, model, name, [])
    names = folder.class_names(path, config, num_classes)
    image_size = folder.size_when_stretched(path)
    origin = Origin(name, described | options, *rtdetr.classes(names), image_size)
    return Weights(path, tensors, origin)


# The functions that read a Transformers folder, by the `model_type` in its config.json. They take
# its path, its config and the name of a model or None.
_READERS: dict[str, Callable[[Path, dict[str, Any], str | None], Weights]] = {
    "detr": _detr_from_transformers,
    "table-transformer": _detr_from_transformers,
    "rt_detr": _rtdetr_from_transformers,
    "rt_detr_v2": _rtdetr_from_transformers,
    "d_fine": _dfine_from_transformers,
}


def _original_rtdetr(path: Path, tensors: dict[str, Tensor], model: str | None) -> Weights:
    version = rtdetr.version_of(tensors)
    points = rtdetr.points_of(tensors)
    tensors = rtdetr.from_original(tensors)
    name, num_classes, options = rtdetr.describe(version, tensors)
    siblings = []
    if version == "rtdetrv2" and points is None:  # as this library names and stores both versions
        siblings.append(name.replace("rtdetrv2", "rtdetr"))
    name = _chosen(path, model, name, siblings)
    if points is not None:
        options["points"] = points
    if "_dsp_" in path.name.lower():  # rtdetrv2_r18vd_dsp_...pth: only the file name shows it
        options["sampling"] = "discrete"
    names = rtdetr.names_without_config(num_classes)
    class_names, category_ids = rtdetr.classes(names)
    return Weights(path, tensors, Origin(name, options, class_names, category_ids))


def _original_dfine(path: Path, tensors: dict[str, Tensor], model: str | None) -> Weights:
    points = rtdetr.points_of(tensors)
    activation = dfine.activation_of(path, tensors)
    tensors = dfine.from_original(tensors)
    name, num_classes, options = dfine.describe(tensors, points)
    name = _chosen(path, model, name, [])
    if activation is not None:
        options["activation"] = activation
    names = rtdetr.names_without_config(num_classes)
    class_names, category_ids = rtdetr.classes(names)
    origin = Origin(name, options, class_names, category_ids, lacks_activation=activation is None)
    return Weights(path, tensors, origin)
