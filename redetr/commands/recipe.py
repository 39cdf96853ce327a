"""`RECIPE [flags]`, as train and verify take it."""

from dataclasses import replace

from rich.table import Table

from redetr.commands.console import OUT
from redetr.config import TrainConfig
from redetr.recipes import RECIPES, get_recipe

HELP = ("-h", "--help")


def split_recipe(command: str, arguments: list[str]) -> tuple[TrainConfig, list[str], str]:
    """The recipe's settings, which are the defaults of the flags, the flags, and the program's name for its help.

    Without a recipe, lists them and exits.
    """
    if not arguments or arguments[0] in HELP:
        title = f"redetr {command} RECIPE FLAGS; all flags: redetr {command} RECIPE --help"
        table = Table("recipe", "what it is", title=title)
        for name, function in RECIPES.items():
            table.add_row(name, (function.__doc__ or "").splitlines()[0])
        OUT.print(table)
        raise SystemExit(0 if arguments else 2)
    recipe_name, *flags = arguments
    recipe = get_recipe(recipe_name)
    if any(flag.partition("=")[0] == "--steps" for flag in flags):
        recipe = replace(recipe, epochs=0.0)  # either flag replaces the recipe's length
    return recipe, flags, f"redetr {command} {recipe_name}"
