"""`RECIPE [flags]` or `RUN [flags]`, as train and verify take it."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.table import Table

from redetr.commands.console import OUT
from redetr.config import (
    DataOptions,
    LoaderOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    ScheduleOptions,
    TrainConfig,
    augmentation_remedy,
    augmentation_text,
)
from redetr.errors import InputError
from redetr.recipes import RECIPES, get_recipe

HELP = ("-h", "--help")

Group = TypeVar("Group")


@dataclass(frozen=True)
class ConfigFlags:
    """The fields of a `TrainConfig` in groups: help has a heading for each.

    The flags are to be parsed without prefixes (`tyro.conf.OmitArgPrefixes`).
    """

    model: ModelOptions
    data: DataOptions
    optimizer: OptimizerOptions
    schedule: ScheduleOptions
    loader: LoaderOptions
    run: RunOptions

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """The groups of `config`, which are the defaults of the flags."""
        return cls(
            _group(ModelOptions, config),
            _group(DataOptions, config),
            _group(OptimizerOptions, config),
            _group(ScheduleOptions, config),
            _group(LoaderOptions, config),
            _group(RunOptions, config),
        )

    def joined(self, recipe: TrainConfig) -> TrainConfig:
        """The groups, flags that were parsed with those of `recipe` as defaults, as one
        `TrainConfig`."""
        groups = (self.model, self.data, self.optimizer, self.schedule, self.loader, self.run)
        values: dict[str, Any] = {}
        for group in groups:
            values |= vars(group)
        values["model_options"] = _merged(recipe.model_options, self.model.model_options)
        return TrainConfig(**values)


def _group(kind: type[Group], config: TrainConfig) -> Group:
    """The fields of `config` that belong to one group."""
    values = {setting.name: getattr(config, setting.name) for setting in fields(kind)}  # type: ignore[arg-type]
    return kind(**values)


def _merged(of_recipe: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """The model options of a recipe, overridden by name with those of the command line."""
    if given in ((), of_recipe):  # a flag without values asks for none
        return given
    by_name: dict[str, str] = {}
    for option in (*of_recipe, *given):
        name, _, _ = option.partition("=")
        by_name[name] = option
    return tuple(by_name.values())


def split_recipe(command: str, arguments: list[str]) -> tuple[TrainConfig, list[str], str]:
    """Splits the arguments of a command into recipe and flags.

    Returns the recipe's settings, which are the defaults of the flags, the flags, and the program's
    name for its help. Without a recipe, lists them and exits. Raises InputError if there is none by
    that name, or if a flag stands where the recipe should.
    """
    if not arguments or arguments[0] in HELP:
        _list_recipes(command)
        raise SystemExit(0 if arguments else 2)
    recipe_name, *flags = with_micro_batches(arguments)
    if recipe_name.startswith("-"):
        raise InputError(
            f"the name of a recipe or a run folder comes first, as in redetr {command} redetr_n "
            f"{recipe_name}: choose one of {', '.join(RECIPES)}"
        )
    path = Path(recipe_name)
    is_run = recipe_name not in RECIPES and path.exists()
    recipe = _settings_of(path) if is_run else get_recipe(recipe_name)
    given = {flag.partition("=")[0] for flag in flags}
    if given & {"--steps", "--epochs"}:  # either one replaces the recipe's length
        recipe = replace(recipe, steps=0, epochs=0.0)
    return recipe, flags, f"redetr {command} {recipe_name}"


def with_micro_batches(arguments: list[str]) -> list[str]:
    """The arguments with `--accumulate 0` instead of `--batch-size auto`: the global batch stays
    that of the recipe."""
    rewritten: list[str] = []
    for argument in arguments:
        flag = " ".join([*rewritten[-1:], argument]).replace("_", "-")
        if flag == "--batch-size auto":
            rewritten[-1:] = ["--accumulate", "0"]
        elif argument.replace("_", "-") == "--batch-size=auto":
            rewritten += ["--accumulate", "0"]
        else:
            rewritten.append(argument)
    return rewritten


def _list_recipes(command: str) -> None:
    title = (
        f"redetr {command} RECIPE [FLAGS]; a run folder repeats its run; "
        f"redetr {command} RECIPE --help lists the flags"
    )
    table = Table("recipe", "what it is", title=title)
    for name, function in RECIPES.items():
        description = function.__doc__ or ""
        table.add_row(name, description.splitlines()[0])
    OUT.print(table)


def _settings_of(path: Path) -> TrainConfig:
    """Reads the settings of a run from its folder, or from its config.json. Raises InputError if
    they cannot be read."""
    file = _settings_file(path)
    config = TrainConfig.read(file)
    # The folder may be a stranger's: code is run if the command names it.
    return replace(config, output=str(file.parent), resume=False, custom_augment=None)


def _settings_file(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path


def note_on_augmentation(recipe_name: str, config: TrainConfig) -> str:
    """What to tell a user who repeats a run as `config` says, but without the augmentation of their
    own that it had; empty for all others.

    `recipe_name` is the first argument of the command. Raises InputError if the run is to be
    resumed, because it would end with other weights.
    """
    if recipe_name in RECIPES or config.custom_augment or not Path(recipe_name).exists():
        return ""
    before = TrainConfig.read(_settings_file(Path(recipe_name))).custom_augment
    if before is None:
        return ""
    began = f"began with {augmentation_text(before)}"
    if config.resume:
        raise InputError(began, where=recipe_name, remedy=augmentation_remedy("resume", before))
    remedy = augmentation_remedy("start", before)
    return f"note: {recipe_name} {began}, which is left out now; {remedy}"
