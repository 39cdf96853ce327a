"""Initialises a training run from weights."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from redetr.class_names import other_spellings, same_classes
from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.models import options_of
from redetr.models.backbone import TimmBackbone
from redetr.models.channels import RGB, adapted, first_convolution
from redetr.models.efficientnet_lite import (
    PACKAGE,
    EfficientNetLite,
    EfficientNetLiteBody,
    from_package_names,
)
from redetr.models.hgnetv2 import HGNetV2
from redetr.models.panoptic import PanopticDETR
from redetr.models.resnet_vd import PResNet
from redetr.structures import DetectionModel
from redetr.weights import panoptic
from redetr.weights.dfine import lacking_activation
from redetr.weights.filling import is_for_denoising
from redetr.weights.reading import Origin, Weights, read_weights
from redetr.weights.resnet_d import from_timm, is_resnet_d
from redetr.weights.untrained import (
    notes_on_random_parts,
    require_detector_in_training,
    require_known_if_frozen,
)
from redetr.wording import counted

# Options that affect no tensor, or only tensors that are copied row by row.
_FREE = (
    "weights",
    "num_queries",
    "dropout",
    "aux_loss",
    "dilation",
    "max_size",
    "eos_coef",
    "eval_idx",
    "denoising",
    "class_loss",
    "masks",
)

# Parts of other programs' nets that turn features into classes.
_CLASSIFIERS = ("head", "classifier", "fc")

# The norms that a model may have if it starts from weights with a given norm.
_FITTING_NORMS = {
    "frozen_batch": "frozen_batch (exact) or sync_batch",
    "sync_batch": "frozen_batch (exact) or sync_batch",
    "group": "group",
}


def starting_point(
    model: DetectionModel,
    config: TrainConfig,
    class_names: Sequence[str],
    is_training: bool = True,
) -> list[str]:
    """Initialises `model`, which was just built for a new run, from `config.weights`; returns notes
    for the user.

    Raises InputError if the weights do not fit, or, for training, if they leave a detector or the
    heads of classes random that the run is to freeze.
    """
    if config.weights not in (None, "none", "imagenet"):
        weights = read_weights(config.weights)
        is_backbone = weights.origin is None
        if is_backbone and is_training:
            require_detector_in_training(config)
        model.weights_from = weights.weights_from
        notes = [start_from(weights, model, config, class_names, is_training)]
        if is_backbone:
            notes += _random_norms_outside_backbone(model)
            if is_training:
                notes += notes_on_random_parts(model, config, "backbone")
        return notes
    notes = []
    if is_training:
        require_detector_in_training(config)
        has_backbone = config.weights == "imagenet"
        notes = notes_on_random_parts(model, config, "backbone" if has_backbone else None)
    if config.weights == "imagenet":
        model.weights_from = _imagenet_origin(
            model, options_of(config.model) | config.model_kwargs()
        )
        return ["backbone: ImageNet weights", *notes]  # `build` has loaded them
    if _parts_with_frozen_norms(model):
        notes.append(
            "warning: BatchNorm is frozen, but the weights are random: give --weights, or "
            "--model-options norm=group"
        )
    return notes


def _parts_with_frozen_norms(model: DetectionModel) -> list[str]:
    """The parts of a model that have frozen BatchNorm, such as its backbone."""
    parts = []
    for name, module in model.named_modules():
        part, _, _ = name.partition(".")
        if type(module).__name__.startswith("FrozenBatchNorm") and part not in parts:
            parts.append(part)
    return parts


def _random_norms_outside_backbone(model: DetectionModel) -> list[str]:
    """A warning if frozen BatchNorm has random weights before it in a model whose backbone alone
    has been trained, as in RT-DETR and D-FINE: it then normalizes nothing."""
    others = [part for part in _parts_with_frozen_norms(model) if part != "backbone"]
    if not others:
        return []
    return [
        f"warning: BatchNorm is frozen, but the weights are random in {' and '.join(others)}: give "
        "--weights of a whole detector, or --model-options norm=sync_batch on GPUs"
    ]


def _imagenet_origin(model: DetectionModel, options: dict[str, Any]) -> str:
    """The origin and licence of the ImageNet weights that `build` loaded for the backbone."""
    for module in model.modules():
        if isinstance(module, EfficientNetLite):
            return f"ImageNet weights of Google, in the package {PACKAGE} (Apache-2.0)"
        if isinstance(module, TimmBackbone):
            return f"ImageNet weights of {options['backbone']} ({module.licence})"
    return f"ImageNet weights of torchvision's {options['backbone']} (BSD-3-Clause)"


def start_from(
    weights: Weights,
    model: DetectionModel,
    config: TrainConfig,
    class_names: Sequence[str],
    is_training: bool = True,
) -> str:
    """Copies all weights that fit into `model`, built for the run `config`; returns a line on what
    was copied.

    Weights of a detector must have the same model and options. Rows of classes are matched by name,
    that of "no object" is always copied, and so are the queries that both models have. Weights of a
    backbone fill the backbone. Raises InputError if the weights do not fit, or, for training, if
    they leave a part of a detector random that the run is to freeze.
    """
    origin = weights.origin
    if origin is None:
        return _start_backbone(weights, model, config)
    _require_same_model(weights.path, origin, config)
    classes_there = origin.class_names
    prefix = panoptic.PREFIX if isinstance(model, PanopticDETR) else ""
    weights = replace(weights, tensors=_for_prefix(weights.tensors, prefix))
    matches = same_classes(class_names, classes_there)  # here, there
    state = model.state_dict()
    num_queries = model.num_queries
    queries = prefix + "query_embed.weight"
    if queries in state:  # RT-DETR has no learned queries
        num_queries = min(num_queries, len(weights.tensors.get(queries, ())))
    by_row = _rows_to_copy(model, matches, len(class_names), len(classes_there), num_queries)
    tensors = _for_channels(weights.path, weights.tensors, model)
    left_out = _left_out(weights.path, origin, tensors.keys() - state.keys())
    filled = _copy(replace(weights, tensors=tensors), state, by_row)
    if is_training:
        unknown = [name for label, name in enumerate(class_names) if label not in matches]
        require_known_if_frozen(model, config, weights.path, filled, unknown, num_queries)
    names = {name for name in state if name in weights.tensors or not _is_counter(name)}
    notes = [f"loaded {len(filled)} of {len(names)} tensors from {weights.path}"]
    notes += _of_classes(len(matches), len(class_names), len(classes_there))
    spellings = other_spellings(class_names, classes_there)
    if spellings:
        notes.append(f"classes matched by meaning (here = there): {spellings}")
    if num_queries < model.num_queries:
        notes.append(f"query_embed: {num_queries} of {model.num_queries} loaded")
    notes += _missing(names - weights.tensors.keys())
    notes += left_out
    return "; ".join(notes)


def _rows_to_copy(
    model: DetectionModel, matches: dict[int, int], here: int, there: int, num_queries: int
) -> dict[str, list[tuple[int, int]]]:
    """The rows (here, there) to copy of tensors that are not copied as a whole, by a part of their
    name; `matches` are those of the classes, of which there are so many `here` and `there`."""
    rows_of_classes = list(matches.items())
    last_row = (here, there)  # of "no object", or of the padding of noisy queries
    if model.loss_config.scores == "softmax":
        rows_of_classes.append(last_row)
    # The last part that a name contains decides: the second of these contains the first.
    return {
        "class_embed.": rows_of_classes,
        "denoising_class_embed.": [*rows_of_classes, last_row],
        "score_head.": rows_of_classes,  # RT-DETR's name for it
        "query_embed.": [(row, row) for row in range(num_queries)],
    }


def _for_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of a detector with or without a mask head, with the names that they have in a
    model with this prefix."""
    if prefix:
        return panoptic.with_prefix(tensors)
    if panoptic.is_panoptic(tensors):
        return panoptic.without_prefix(tensors)
    return tensors


def _for_channels(
    path: Path, tensors: dict[str, Tensor], model: DetectionModel
) -> dict[str, Tensor]:
    """The tensors, with the first convolution converted from RGB to the channels of this model.
    Raises InputError if it takes neither."""
    convolution, _ = first_convolution(model)
    name = f"{convolution}.weight"
    kernel = tensors.get(name)
    if kernel is None or kernel.dim() != 4:
        return tensors
    channels = kernel.shape[1]
    if channels == model.channels:
        return tensors
    if channels != RGB:
        raise InputError(
            f"takes images of {counted(channels, 'channel')}, but this model of {model.channels}",
            where=path,
            remedy=f"give --channels {channels}",
        )
    return tensors | {name: adapted(kernel, model.channels)}


def _of_classes(num_shared: int, here: int, there: int) -> list[str]:
    """A note on how many of the classes match by name; empty if all do."""
    if num_shared == 0:
        return [f"class_embed re-initialised ({there} classes there, {here} other classes here)"]
    if num_shared < here:
        share = f"{num_shared} of {counted(here, 'class', 'classes')}"
        return [f"class_embed: {share} matched by name, the rest re-initialised"]
    return []


def _left_out(path: Path, origin: Origin, names: set[str]) -> list[str]:
    """A note on the mask head, if it is among these tensors, which the model does not have. Raises
    InputError if there are any other learned tensors."""
    has_masks = False
    unknown = []
    for name in names:
        if name.startswith(panoptic.HEADS):
            has_masks = True
        elif not is_for_denoising(name) and not _is_counter(name):
            unknown.append(name)
    if unknown:
        tensors = counted(len(unknown), "tensor")
        text = f"has {tensors} that this model does not have, such as {min(unknown)}"
        raise InputError(text, where=path)
    if not has_masks:
        return []
    flag = "--masks" if "masks" in options_of(origin.model) else f"--model {origin.model}"
    return [f"the mask head is left out: {flag} takes it"]


def _missing(names: set[str]) -> list[str]:
    """Notes on the tensors that the weights lack."""
    notes = []
    for name in names:
        part = "the mask head" if name.startswith(panoptic.HEADS) else name
        note = f"{part} starts at random"
        if note not in notes:
            notes.append(note)
    return notes


def _copy(
    weights: Weights, state: dict[str, Tensor], by_row: dict[str, list[tuple[int, int]]]
) -> set[str]:
    """Copies weights into `state`, and returns the names of the tensors that were wholly filled.

    For tensors that are not copied as a whole, `by_row` has the rows (here, there), by a part of
    their name, of which the last counts. Tensors for denoising may be missing, and so may the mask
    head as a whole; both keep their values.
    """
    given = weights.tensors
    has_masks = any(name.startswith(panoptic.HEADS) for name in given)
    filled = set()
    missing = []
    misshapen = []
    for name, tensor in state.items():
        rows = None
        for part, rows_of_part in by_row.items():
            if part in name:
                rows = rows_of_part
        if name not in given:
            is_head = name.startswith(panoptic.HEADS) and not has_masks
            if not is_head and not is_for_denoising(name) and not _is_counter(name):
                missing.append(name)
        elif not _fits(given[name], tensor, rows):
            misshapen.append(name)
        elif rows is None:
            tensor.copy_(given[name])
            filled.add(name)
        else:
            for here, there in rows:
                tensor[here] = given[name][there]
            if len(rows) == len(tensor):
                filled.add(name)
    if missing:
        text = f"lacks {counted(len(missing), 'tensor')} of this model, such as {missing[0]}"
        raise InputError(text, where=weights.path)
    if misshapen:
        tensors = counted(len(misshapen), "tensor")
        text = f"has {tensors} of another shape than this model, such as {misshapen[0]}"
        raise InputError(text, where=weights.path)
    return filled


def _is_counter(name: str) -> bool:
    """Whether the tensor counts the batches of a trained BatchNorm, which a frozen one lacks."""
    return name.endswith(".num_batches_tracked")


def _fits(given: Tensor, tensor: Tensor, rows: list[tuple[int, int]] | None) -> bool:
    """Whether `tensor` can be filled from `given`, as a whole or with these rows (here, there)."""
    if rows is None:
        return given.shape == tensor.shape
    if given.dim() != tensor.dim():
        return False
    if given.shape[1:] != tensor.shape[1:]:
        return False
    return all(there < len(given) for _, there in rows)


def _require_same_model(path: Path, origin: Origin, config: TrainConfig) -> None:
    given = config.model_kwargs()
    here = options_of(config.model) | given
    there = options_of(origin.model) | origin.options
    for options in (here, there):  # the first convolution is adapted to other channels
        options.pop("channels", None)
    if here.keys() != there.keys():
        text = f"holds a {origin.model}, a different model from {config.model}"
        raise InputError(text, where=path, remedy=f"use --model {origin.model}")
    norms = {here["norm"], there["norm"]}
    # Backbones of three widths have GroupNorm, whatever the option says.
    have_choice = isinstance(here["backbone"], str) and isinstance(there["backbone"], str)
    if have_choice and len(norms) == 2 and "group" in norms:
        raise InputError(
            f"its norm is {there['norm']}, which norm={here['norm']} cannot use",
            where=path,
            remedy="use --model-options norm=" + _FITTING_NORMS[there["norm"]],
        )
    if origin.lacks_activation:
        if "activation" not in given:
            or_flag = ", or give --model-options activation=relu or activation=silu"
            raise lacking_activation(path, or_flag)
        there["activation"] = here["activation"]
    different = []
    for name in here:
        if name == "norm":  # BatchNorm has the same tensors, frozen or trained
            continue
        if name not in _FREE and there[name] != here[name]:
            different.append(f"{name} is {there[name]} there and {here[name]} here")
    if different:
        text = (
            f"holds a {origin.model} that does not fit this {config.model}: {', '.join(different)}"
        )
        raise InputError(text, where=path, remedy=_fitting_flags(origin, there, config))


def _fitting_flags(origin: Origin, there: dict[str, Any], config: TrainConfig) -> str:
    """The flags that give the model of `config` the options `there`, as a shell takes them.

    Those that the model has already are left out: a command keeps them.
    """
    flags = []
    if origin.model != config.model:
        flags.append(f"--model {origin.model}")
    with_model = options_of(origin.model) | config.model_kwargs()
    options = []
    for name, value in there.items():
        if name not in (*_FREE, "norm") and with_model.get(name) != value:
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            options.append(shlex.quote(f"{name}={text}"))
    if options:
        flags.append("--model-options " + " ".join(options))
    return "use " + " ".join(flags)


def _start_backbone(weights: Weights, model: DetectionModel, config: TrainConfig) -> str:
    options = options_of(config.model) | config.model_kwargs()
    net: Any = model.get_submodule("backbone")
    body = net if isinstance(net, PResNet | HGNetV2) else getattr(net[0], "body", None)
    if body is None:
        text = f"backbone weights, but the backbone of {config.model} is trained from scratch"
        raise InputError(text, where=weights.path)
    given = _for_body(weights, body, model)
    state = {}
    wrong = []
    for name, tensor in body.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        state[name] = tensor
        if name not in given or given[name].shape != tensor.shape:
            wrong.append(name)
    backbone = options["backbone"]
    if wrong:
        raise InputError(
            f"neither a DETR nor a {backbone}: {len(wrong)} of its {len(state)} tensors are "
            f"missing or have another shape, such as {wrong[0]}",
            where=weights.path,
            remedy="choose the matching backbone with --model-options backbone=NAME",
        )
    if options["norm"] == "group" and any(name.endswith("running_mean") for name in given):
        text = "trained with BatchNorm: it needs norm=frozen_batch or sync_batch"
        raise InputError(text, where=weights.path)
    unknown = _of_another_net(body, given)
    if unknown:
        has_affine = unknown[0].endswith((".lab.scale", ".lab.bias"))
        option = "affine=true" if has_affine else "backbone=NAME"
        raise InputError(
            f"not a {backbone}, but a net with more: {backbone} lacks "
            f"{counted(len(unknown), 'tensor')} of it, such as {unknown[0]}",
            where=weights.path,
            remedy=f"choose the matching backbone with --model-options {option}",
        )
    body.load_state_dict({name: given[name] for name in state}, strict=False)
    return (
        f"loaded {len(state)} of {len(state)} tensors of the backbone {backbone} from "
        f"{weights.path}"
    )


def _for_body(weights: Weights, body: nn.Module, model: DetectionModel) -> dict[str, Tensor]:
    """The tensors of a backbone's file, with the names in `body`, the backbone of `model`, and for
    its channels. Raises InputError if they are for others."""
    given = weights.tensors
    prefix = next(path for path, module in model.named_modules() if module is body) + "."
    if isinstance(body, EfficientNetLiteBody):
        given = from_package_names(given)
    elif isinstance(body, PResNet) and is_resnet_d(given):
        channels = given["conv1.0.weight"].shape[1]
        if channels != RGB:  # ImageNet's mean and deviation become part of the weights
            text = f"takes images of {counted(channels, 'channel')}: weights of timm must be for 3"
            raise InputError(text, where=weights.path)
        given = from_timm(given)
    in_model = {prefix + name: tensor for name, tensor in given.items()}
    adapted_tensors = _for_channels(weights.path, in_model, model)
    return {name.removeprefix(prefix): tensor for name, tensor in adapted_tensors.items()}


def _of_another_net(body: nn.Module, given: dict[str, Tensor]) -> list[str]:
    """The tensors of a file that belong to a part which `body` has, but not to `body`.

    A file may have more than a body: a classifier, and the stages after the last one that is used.
    """
    names_in_body = body.state_dict().keys()
    modules = dict(body.named_modules())
    known_parts = {name.partition(".")[0] for name in names_in_body}
    unknown = []
    for name in given:
        part, _, rest = name.partition(".")
        if name in names_in_body or _is_counter(name):
            continue
        if part not in known_parts or part in _CLASSIFIERS:
            continue
        # A part without a number is the list of all stages; layer3 is one stage, and its first
        # unknown member a block too many.
        is_list = isinstance(modules.get(part), nn.Sequential | nn.ModuleList)
        has_all_stages = is_list and not part[-1].isdigit()
        stage, _, _ = rest.partition(".")
        if has_all_stages and f"{part}.{stage}" not in modules:
            continue
        unknown.append(name)
    return unknown
