"""`RECIPE [flags]` or `RUN [flags]`, as train and verify take it."""

import json
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from redetr.commands.console import OUT
from redetr.config import TrainConfig
from redetr.errors import InputError
from redetr.recipes import RECIPES, get_recipe

HELP = ("-h", "--help")


def split_recipe(command: str, arguments: list[str]) -> tuple[TrainConfig, list[str], str]:
    """The recipe's settings, which are the defaults of the flags, the flags, and the program's name
    for its help.

    Without a recipe, lists them and exits. Raises InputError if there is none by that name, or a
    flag in its place.
    """
    if not arguments or arguments[0] in HELP:
        title = (
            f"redetr {command} RECIPE FLAGS, or the folder of a run; all flags: redetr "
            f"{command} RECIPE --help"
        )
        table = Table("recipe", "what it is", title=title)
        for name, function in RECIPES.items():
            table.add_row(name, (function.__doc__ or "").splitlines()[0])
        OUT.print(table)
        raise SystemExit(0 if arguments else 2)
    recipe_name, *flags = arguments
    if recipe_name.startswith("-"):
        raise InputError(
            f"the name of a recipe, or the folder of a run, comes first, as in redetr {command} "
            "redetr_n "
            f"{recipe_name}: choose one of {', '.join(RECIPES)}"
        )
    path = Path(recipe_name)
    known = recipe_name in RECIPES or not path.exists()
    recipe = get_recipe(recipe_name) if known else _settings_of(path)
    given = {flag.partition("=")[0] for flag in flags}
    if given & {"--steps", "--epochs"}:  # either one replaces the recipe's length
        recipe = replace(recipe, steps=0, epochs=0.0)
    return recipe, flags, f"redetr {command} {recipe_name}"


def _settings_of(path: Path) -> TrainConfig:
    """What the folder of a run, or its config.json, says. Raises InputError if that cannot be
    read."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config = TrainConfig.from_dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{file}: not the settings of a run ({error}); give a recipe's name or the folder of a "
            "run"
        ) from None
    return replace(config, output=str(file.parent), resume=False)
