"""What a run must not freeze: parts of the model whose weights are random, which would stay so."""

from collections.abc import Collection, Sequence
from pathlib import Path

from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.models.freezing import paths_of
from redetr.structures import DetectionModel
from redetr.weights import panoptic
from redetr.weights.filling import is_for_denoising
from redetr.wording import counted

_CLASS_HEADS = ("class_embed.", "score_head.")  # in the names of their tensors
_CLASSES_NAMED = 3  # in an error


def freezes_detector(config: TrainConfig) -> bool:
    """Whether only the mask head is to be trained, so that the detector needs weights."""
    if config.model.endswith("_panoptic"):
        names = {"detector", panoptic.PREFIX.rstrip(".")}
    elif config.masks:
        names = {"detector"}
    else:  # then `freeze` says that nothing is left to train
        return False
    return not names.isdisjoint(config.freeze)


def require_detector_in_training(config: TrainConfig) -> None:
    """Raises InputError if only the mask head is to be trained, for weights without a detector."""
    if not freezes_detector(config):
        return
    of_boxes = config.model
    if of_boxes.endswith("_panoptic"):
        of_boxes = f"redetr train {of_boxes.removesuffix('_panoptic')}"
    raise InputError(
        f"{config.model} with a frozen detector needs the weights of a trained detector",
        remedy=f"give --weights RUN, a run of {of_boxes} on the same classes, or leave --freeze "
        "out",
    )


def require_known_if_frozen(
    model: DetectionModel,
    config: TrainConfig,
    path: Path,
    filled: Collection[str],
    unknown_classes: Sequence[str],
    queries_there: int,
) -> None:
    """Raises InputError if a tensor that is to be frozen was not `filled` from the detector in the
    file at `path`, so that it would keep random values.

    The file lacks the `unknown_classes` and has `queries_there` queries that the model can use.
    """
    frozen = _frozen(model, config, filled)
    if not frozen:
        return
    heads = [name for name in frozen if _is_class_head(name)]
    others = [name for name in frozen if not _is_class_head(name)]
    names = heads or others
    tensors = counted(len(names), "tensor")
    flag = f"--freeze {' '.join(config.freeze)}"
    consequence = f"{flag} would keep {tensors} at random values, such as {names[0]}"
    if heads:
        raise InputError(
            f"does not know {_list_of(unknown_classes)}, and {consequence}",
            where=path,
            remedy="first train a run on these classes and give it as --weights, or leave the "
            "parts with classes out of --freeze",
        )
    if all("query_embed." in name for name in others):
        raise InputError(
            f"has {queries_there} of {model.num_queries} queries, and {consequence}",
            where=path,
            remedy=f"give --num-queries {queries_there}",
        )
    raise InputError(
        f"does not have all that is to be frozen: {consequence}",
        where=path,
        remedy="leave these parts out of --freeze",
    )


def notes_on_random_parts(
    model: DetectionModel, config: TrainConfig, trained: str | None = None
) -> list[str]:
    """A warning if parts are to be frozen in a model with random weights, except for the part
    called `trained`. Raises InputError if the heads of classes are among them."""
    filled = [name for name, _ in model.named_parameters() if _part(name) == trained]
    frozen = _frozen(model, config, filled)
    if not frozen:
        return []
    flag = f"--freeze {' '.join(config.freeze)}"
    heads = [name for name in frozen if _is_class_head(name)]
    if heads:
        tensors = counted(len(heads), "tensor")
        raise InputError(
            f"{flag} would keep the heads of all classes at random values: {tensors}, such as "
            f"{heads[0]}",
            remedy="give --weights of a trained detector, or leave them out of --freeze",
        )
    parts = " and ".join(dict.fromkeys(_part(name) for name in frozen))
    return [
        f"warning: {flag} keeps {parts} at random values: give --weights of a trained detector, or "
        "leave it out of --freeze"
    ]


def _frozen(model: DetectionModel, config: TrainConfig, filled: Collection[str]) -> list[str]:
    """The tensors that are to be frozen and are not `filled`. Those for denoising do not count:
    no prediction depends on them."""
    if not config.freeze:
        return []
    paths = paths_of(model, config.freeze)
    names = []
    for name, _ in model.named_parameters():
        is_frozen = any(name.startswith(f"{path}.") for path in paths)
        if is_frozen and name not in filled and not is_for_denoising(name):
            names.append(name)
    return names


def _is_class_head(name: str) -> bool:
    return any(part in name for part in _CLASS_HEADS)


def _part(name: str) -> str:
    """The part of a model that a tensor belongs to, such as its backbone."""
    part, _, _ = name.removeprefix(panoptic.PREFIX).partition(".")
    return part


def _list_of(classes: Sequence[str]) -> str:
    """Names the first of these classes."""
    names = ", ".join(map(repr, classes[:_CLASSES_NAMED]))
    further = len(classes) - _CLASSES_NAMED
    more = f" and {further} more" if further > 0 else ""
    noun = "class" if len(classes) == 1 else "classes"
    return f"the {noun} {names}{more}"
