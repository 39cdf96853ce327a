"""How a training run starts from weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.models import options_of
from redetr.models.presnet import PResNet
from redetr.structures import DetectionModel
from redetr.weights.reading import Origin, Weights, read_weights

# Options on which no tensor depends, or only one that is taken row by row.
_FREE = ("weights", "num_queries", "dropout", "aux_loss", "dilation", "eval_idx")


def starting_point(
    model: DetectionModel, config: TrainConfig, class_names: Sequence[str]
) -> list[str]:
    """Fills `model`, just built for a new run, as `config.weights` says; returns what to tell the
    user about it."""
    if config.weights == "imagenet":
        return ["backbone: ImageNet weights"]  # `build` has loaded them
    if config.weights not in (None, "none"):
        return [start_from(read_weights(config.weights), model, config, class_names)]
    if any(type(module).__name__.startswith("FrozenBatchNorm") for module in model.modules()):
        return [
            "warning: BatchNorm is frozen over random weights: give --weights, or --model-options "
            "norm=group"
        ]
    return []


def start_from(
    weights: Weights, model: DetectionModel, config: TrainConfig, class_names: Sequence[str]
) -> str:
    """Fills `model`, built for the run `config`, with what serves it; returns a line that says what
    that was.

    Weights of a detector must be of the same model and options. What belongs to a class is taken by
    the class's name, and "no object" always; of the queries as many as both have. Weights of a
    backbone fill the backbone. Raises InputError for weights that cannot serve this model.
    """
    if weights.origin is None:
        return _start_backbone(weights, model, config)
    _require_same_model(weights.path, weights.origin, config)
    others, head = weights.origin.class_names, len(class_names)
    classes = [
        (class_names.index(name), others.index(name)) for name in class_names if name in others
    ]
    background = [(head, len(others))] if model.loss_config.scores == "softmax" else []
    own = model.state_dict()
    queries = model.num_queries
    if "query_embed.weight" in own:  # or queries hold nothing that was learned
        queries = min(queries, len(weights.tensors.get("query_embed.weight", ())))
    by_row = {
        "class_embed.": [*classes, *background],
        "score_head.": classes,  # RT-DETR's name for it
        "query_embed.": [(row, row) for row in range(queries)],
    }
    said = [f"loaded {_copy(weights, own, by_row)} of {len(own)} tensors from {weights.path}"]
    if not classes:
        said.append(
            f"class_embed re-initialised (classes: {len(others)} there, {head} others here)"
        )
    elif len(classes) < head:
        said.append(
            f"class_embed: {len(classes)} of {head} classes taken by name, the rest re-initialised"
        )
    if queries < model.num_queries:
        said.append(f"query_embed: {queries} of {model.num_queries} were there")
    return "; ".join(said)


def _copy(
    weights: Weights, own: dict[str, Tensor], by_row: dict[str, list[tuple[int, int]]]
) -> int:
    """Copies weights into `own` and returns how many tensors are filled; `by_row` has, by part of
    the name, the rows (here, there) of tensors that are not taken whole.
    """
    given, filled, wrong = weights.tensors, 0, []
    for name, tensor in own.items():
        rows = next((rows for part, rows in by_row.items() if part in name), None)
        first = 0 if rows is None else 1  # the dimension from which on shapes must be equal
        if name not in given or given[name].shape[first:] != tensor.shape[first:]:
            wrong.append(name)
        elif rows is None:
            tensor.copy_(given[name])
        else:
            for here, there in rows:
                tensor[here] = given[name][there]
        filled += rows is None or len(rows) == len(tensor)
    if wrong:
        raise InputError(
            f"{weights.path}: {len(wrong)} tensors of this model are missing there, such as "
            f"{wrong[0]}"
        )
    return filled


def _require_same_model(path: Path, origin: Origin, config: TrainConfig) -> None:
    here, there = (
        options_of(config.model) | config.model_kwargs(),
        options_of(origin.model) | origin.options,
    )
    if here.keys() != there.keys():
        raise InputError(
            f"{path}: holds a {origin.model}, which is of another form than {config.model}"
        )
    different = [
        f"{name} is {there[name]} there and {here[name]} here"
        for name in here
        if name not in _FREE and there[name] != here[name]
    ]
    if different:
        raise InputError(
            f"{path}: holds a {origin.model} that does not fit this {config.model}: "
            f"{', '.join(different)}; see --model-options"
        )


def _start_backbone(weights: Weights, model: DetectionModel, config: TrainConfig) -> str:
    options = options_of(config.model) | config.model_kwargs()
    backbone: Any = model.get_submodule("backbone")
    body = backbone if isinstance(backbone, PResNet) else getattr(backbone[0], "body", None)
    if body is None:
        raise InputError(
            f"{weights.path}: weights of a backbone, but that of {config.model} is trained from "
            "scratch"
        )
    given = weights.tensors
    own = {
        name: tensor
        for name, tensor in body.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    wrong = [
        name
        for name, tensor in own.items()
        if name not in given or given[name].shape != tensor.shape
    ]
    if wrong:
        raise InputError(
            f"{weights.path}: neither a DETR nor a {options['backbone']}: {len(wrong)} of its "
            f"{len(own)} tensors are "
            f"missing there or of another shape, such as {wrong[0]}"
        )
    if options["norm"] == "group" and any(name.endswith("running_mean") for name in given):
        raise InputError(
            f"{weights.path}: trained with BatchNorm: it needs norm=frozen_batch or sync_batch"
        )
    body.load_state_dict(own | {name: given[name] for name in own}, strict=False)
    return (
        f"loaded {len(own)} of {len(own)} tensors of the backbone {options['backbone']} from "
        f"{weights.path}"
    )
