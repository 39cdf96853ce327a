"""`RECIPE [flags]` or `RUN [flags]`, as train and verify take it."""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

from rich.table import Table

from redetr.choices import augmentation_remedy, augmentation_text
from redetr.commands.console import OUT
from redetr.config import (
    DataOptions,
    LoaderOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    ScheduleOptions,
    TrainConfig,
    default_ema_decay,
)
from redetr.errors import InputError, UsageError
from redetr.recipes import RECIPES, get_recipe
from redetr.trial_choices import read_trials

HELP = ("-h", "--help")

_LENGTH = {"--steps", "--epochs"}

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
    that name, and UsageError if a flag stands where the recipe should.
    """
    if not arguments or arguments[0] in HELP:
        _list_recipes(command)
        raise SystemExit(0 if arguments else 2)
    recipe_name, *flags = with_micro_batches(arguments)
    if recipe_name.startswith("-"):
        raise UsageError(
            f"the name of a recipe or a run folder comes first, as in redetr {command} redetr_n "
            f"{recipe_name}: choose one of {', '.join(RECIPES)}"
        )
    path = Path(recipe_name)
    is_run = recipe_name not in RECIPES and path.exists()
    recipe = _settings_of(path) if is_run else get_recipe(recipe_name)
    given = {flag.partition("=")[0].replace("_", "-") for flag in flags}
    output = _last_value("--output", flags) or recipe.output
    is_resumed = is_run and "--resume" in given and _is_folder_of(path, output)
    if is_resumed and command == "train":
        recipe = _without_choice_of_trial(recipe, _settings_file(path))
    elif is_run and not is_resumed:
        recipe = replace(recipe, **_open_again(recipe, given))
    if given & _LENGTH:  # either one replaces the recipe's length
        recipe = replace(recipe, steps=0, epochs=0.0)
    return recipe, flags, f"redetr {command} {recipe_name}"


def with_micro_batches(arguments: list[str]) -> list[str]:
    """The arguments with `--accumulate 0` instead of `--batch-size auto`: the global batch stays
    that of the recipe. Raises InputError if they also say how many micro-batches."""
    rewritten: list[str] = []
    is_auto = False
    previous = ""
    for argument in arguments:
        word = argument.replace("_", "-")
        is_value = previous == "--batch-size" and word == "auto"
        if is_value:
            rewritten.pop()  # the flag before it
        if is_value or word == "--batch-size=auto":
            rewritten += ["--accumulate", "0"]
            is_auto = True
        else:
            rewritten.append(argument)
        previous = word
    if is_auto:
        _require_open_accumulation(arguments)
    return rewritten


def _require_open_accumulation(arguments: list[str]) -> None:
    """Raises InputError if the arguments say how many micro-batches there are."""
    for number in _values("--accumulate", arguments):
        if number != "0":
            raise InputError(
                f"--batch-size auto and --accumulate {number} contradict each other",
                remedy="give one of them",
            )


def _last_value(name: str, flags: list[str]) -> str | None:
    """The last value that the flags give to the flag `name`, which counts; None if they give
    none."""
    values = _values(name, flags)
    return values[-1] if values else None


def _values(name: str, arguments: list[str]) -> list[str]:
    """All values that the arguments give to the flag `name`, in their order."""
    values = []
    for argument, following in pairwise([*arguments, ""]):
        flag, equals, after_equals = argument.partition("=")
        if flag.replace("_", "-") == name:
            values.append(after_equals if equals else following)
    return values


def _list_recipes(command: str) -> None:
    title = (
        f"redetr {command} RECIPE [FLAGS]; give a run folder instead of RECIPE to repeat that run; "
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


def _is_folder_of(path: Path, output: str) -> bool:
    """Whether `output` is the folder of the run whose folder or config.json is `path`. If so,
    --resume resumes that run; if not, it is for a new run with its settings, which a restart of the
    same command resumes."""
    return Path(output).resolve() == _settings_file(path).parent.resolve()


def _without_choice_of_trial(run: TrainConfig, file: Path) -> TrainConfig:
    """The settings of a run that is to be resumed, read from `file`, in which the number of
    micro-batches is open if a trial chose it: it is kept on as many ranks, and chosen anew on
    others."""
    trials = read_trials(file)
    if trials is None or trials.accumulate != run.accumulate:
        return run
    return replace(run, accumulate=0)


def _open_again(run: TrainConfig, given: set[str]) -> dict[str, Any]:
    """The settings that a run may have derived from others, which flags now `given` replace: by
    name, with the value by which `TrainConfig` leaves them open.

    What the user of the run chose is not told apart from what was derived, except where it differs
    from what would have been. How often it evaluates depends on its data, too: it is always open.
    """
    values: dict[str, Any] = {}
    if given & _LENGTH:
        values["eval_every"] = 0
        if run.steps and run.ema_decay == default_ema_decay(run.steps):
            values["ema_decay"] = None
    if given & {*_LENGTH, "--eval-every"} and run.save_every == run.eval_every:
        values["save_every"] = 0
    if "--lr" in given and run.lr_backbone == run.lr:
        values["lr_backbone"] = None
    return values


def notes_on_run(recipe_name: str, config: TrainConfig) -> list[str]:
    """What to tell a user who starts or resumes a run as `config` says; nothing if it is that of a
    recipe.

    `recipe_name` is the first argument of the command. Raises InputError if a run is to be resumed
    without an augmentation that it had.
    """
    path = Path(recipe_name)
    if recipe_name in RECIPES or not path.exists():
        return []
    before = TrainConfig.read(_settings_file(path))
    notes = [_note_on_augmentation(recipe_name, before, config), _note_on_choices(before, config)]
    return [note for note in notes if note]


def _note_on_choices(before: TrainConfig, config: TrainConfig) -> str:
    """What is open in `config`, but was not in the run `before`; empty if nothing is."""
    were = []
    for name in ("lr_backbone", "ema_decay", "eval_every", "save_every"):
        earlier = getattr(before, name)
        is_open = getattr(config, name) == getattr(TrainConfig(), name)
        if is_open and earlier != getattr(config, name):
            were.append(f"--{name.replace('_', '-')} (was {earlier:g})")
    if not were:
        return ""
    return "note: chosen again, because you changed flags that they depend on: " + ", ".join(were)


def _note_on_augmentation(recipe_name: str, run: TrainConfig, config: TrainConfig) -> str:
    """A note if `config` leaves out the augmentation of its user's own that the run had; empty
    otherwise. Raises InputError if the run is to be resumed: it would end with other weights."""
    before = run.custom_augment
    if before is None or config.custom_augment:
        return ""
    began = f"began with {augmentation_text(before)}"
    if config.resume and _is_folder_of(Path(recipe_name), config.output):
        raise InputError(began, where=recipe_name, remedy=augmentation_remedy("resume", before))
    remedy = augmentation_remedy("start", before)
    return f"note: {recipe_name} {began}, which is left out now; {remedy}"
