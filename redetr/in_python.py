"""What a program gives to `train`, `evaluate` and `verify`: checked before it is used, so that a
mistake is one line instead of a traceback from within."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console
from torch import nn

from redetr.choices import AUGMENT_IN_PYTHON, DATA_IN_PYTHON
from redetr.config import TrainConfig
from redetr.data.dataset import DetectionDataset
from redetr.data.formats.folder import AnnotatedDataset, require_masks
from redetr.data.own_data import require_alike, require_valid
from redetr.errors import InputError
from redetr.wording import counted

_OPEN = "open it with redetr.data.open_dataset, or derive it from redetr.data.DetectionDataset"


def require_config(config: Any) -> None:
    """Raises InputError unless `config` holds the settings of a run."""
    if not isinstance(config, TrainConfig):
        remedy = "give the settings of a run, such as redetr.get_recipe('redetr_n')"
        kind = type(config).__name__
        raise InputError(f"config is of type {kind}, not a TrainConfig", remedy=remedy)


def name_what_is_given(config: TrainConfig, datasets: bool, augment: bool) -> TrainConfig:
    """The settings of a run which says that its data sets, or its augmentation, are from Python:
    otherwise it would name the defaults instead of them."""
    if datasets:
        config = replace(config, data=DATA_IN_PYTHON)
    if augment:
        config = replace(config, custom_augment=AUGMENT_IN_PYTHON)
    return config


def require_callable(**functions: Callable[..., Any] | None) -> None:
    """Raises InputError, naming the argument, for one of these functions that cannot be called."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            kind = type(function).__name__
            text = f"{name} is of type {kind}, which cannot be called"
            raise InputError(text, remedy="give a function, or leave it out")


def require_console(console: Any) -> None:
    """Raises InputError unless progress can be shown on `console`."""
    if console is not None and not isinstance(console, Console):
        text = f"console is of type {type(console).__name__}, not a rich.console.Console"
        raise InputError(text, remedy="give rich.console.Console(), or leave it out")


def require_dataset(dataset: Any, name: str) -> None:
    """Raises InputError, naming the argument, unless it is a data set."""
    if not isinstance(dataset, DetectionDataset):
        kind = type(dataset).__name__
        raise InputError(f"{name} is of type {kind}, not a data set", remedy=_OPEN)


def require_model(model: Any) -> None:
    """Raises InputError unless `model` is a network."""
    if not isinstance(model, nn.Module):
        remedy = "give detector.model, or call detector.evaluate(data)"
        raise InputError(
            f"model is of type {type(model).__name__}, not a torch.nn.Module", remedy=remedy
        )


def require_pair(datasets: Any) -> None:
    """Raises InputError unless `datasets` are two data sets, to train on and to evaluate on."""
    if not isinstance(datasets, tuple | list):
        kind = type(datasets).__name__
        remedy = "give datasets=(train, val), two data sets"
        raise InputError(f"datasets is of type {kind}, not a pair", remedy=remedy)
    if len(datasets) != 2:
        count = counted(len(datasets), "data set")
        remedy = "give datasets=(train, val): a run is evaluated on the second"
        raise InputError(f"datasets holds {count}, not two", remedy=remedy)
    for position, dataset in enumerate(datasets):
        require_dataset(dataset, f"datasets[{position}]")


def require_usable(
    config: TrainConfig, datasets: tuple[DetectionDataset, DetectionDataset]
) -> None:
    """Raises InputError unless a run with these settings can train on the first of the `datasets`
    and be evaluated on the second."""
    _require_used(config, datasets)
    train, val = datasets
    for dataset in datasets:
        if not isinstance(dataset, AnnotatedDataset):
            require_valid(dataset, config.masks, is_val=dataset is not train)
        elif config.masks:  # its readers have checked everything else
            require_masks(dataset.annotations)
    if not len(train):
        raise InputError("the training data holds no images", where=train.name)
    require_alike(train, val)


def _require_used(config: TrainConfig, datasets: tuple[DetectionDataset, DetectionDataset]) -> None:
    """Raises InputError for settings that have no effect on data sets given in Python."""
    if config.skip_unreadable:
        raise InputError(
            "skip_unreadable applies to image files, which a data set of your own does not have"
        )
    if config.val_fraction:
        remedy = "give val_fraction to redetr.data.open_dataset, or divide your own data"
        raise InputError("val_fraction has no effect on datasets", remedy=remedy)
    if config.cache_dir and not isinstance(datasets[0], AnnotatedDataset):
        text = "cache_dir has no effect on a data set of your own, whose images are not cached"
        raise InputError(text, remedy="leave it out, or cache them in image()")
