"""`redetr completion`"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from redetr.commands import COMMANDS
from redetr.commands.arguments import FLAGS
from redetr.commands.console import OUT
from redetr.recipes import RECIPES

# What may follow, by the words before: choices of flags, and of what stands after a command.
_BASH = """_redetr() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=""
  if (( COMP_CWORD == 1 )); then words="{commands}"
  elif [[ $current == -* ]]; then
    case ${{COMP_WORDS[1]}} in
{flags}
    esac
  else
    case "${{COMP_WORDS[1]}} $previous" in
{choices}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _redetr redetr
"""
_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


@dataclass(frozen=True)
class Completion:
    """Prints a script with which the shell completes commands, recipes, flags and their choices at
    the Tab key.

    bash: redetr completion bash > ~/.local/share/bash-completion/completions/redetr

    zsh: redetr completion zsh >> ~/.zshrc

    fish: redetr completion fish > ~/.config/fish/completions/redetr.fish"""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell to write for."""

    def run(self) -> None:
        text = {"bash": _bash, "zsh": lambda: _ZSH + _bash(), "fish": _fish}[self.shell]()
        OUT.out(text, end="", highlight=False)


def _words() -> dict[str, dict[str, list[str]]]:
    """Of each command its flags with their choices; the choices of what has no flag stand under the
    command itself."""
    found = {}
    for command in sorted(COMMANDS):
        module = import_module(f"redetr.commands.{command}")
        flags = dict(_flags(getattr(module, command.capitalize())))
        words = {flag or command: choices for flag, choices in flags.values() if flag or choices}
        found[command] = words | ({command: list(RECIPES)} if "model_options" in flags else {})
    return found


def _flags(settings: type) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    """Name of each setting, its flag ("" for none), and its choices; settings inside settings are
    flags as well."""
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        kind = hints[field.name]
        inner = next(
            (part for part in _parts(kind) if isinstance(part, type) and is_dataclass(part)), None
        )
        if inner:
            yield from _flags(inner)
        else:
            choices = [
                str(value)
                for part in _parts(kind)
                if get_origin(part) is Literal
                for value in get_args(part)
            ]
            positional = tyro.conf.Positional in getattr(kind, "__metadata__", ())
            flag = f"--{'no-' * (field.default is True)}{field.name.replace('_', '-')}"
            yield field.name, ("" if positional else flag, choices)


def _parts(kind: Any) -> list[Any]:
    """A type and the types that it is made of."""
    inner = () if get_origin(kind) is Literal else get_args(kind)
    return [kind, *(part for each in inner for part in _parts(each))]


def _bash() -> str:
    found = _words()
    flags = [
        f'      {command}) words="{" ".join(word for word in words if word[0] == "-")}" ;;'
        for command, words in found.items()
    ]
    choices = [
        f"      '{command} {word}') words=\"{' '.join(chosen)}\" ;;"
        for command, words in found.items()
        for word, chosen in words.items()
        if chosen
    ]
    return _BASH.format(
        commands=" ".join(found), flags="\n".join(flags), choices="\n".join(choices)
    )


def _fish() -> str:
    found = _words()
    lines = [f"complete -c redetr -n __fish_use_subcommand -f -a '{' '.join(found)}'"]
    for command, words in found.items():
        when = f"complete -c redetr -n '__fish_seen_subcommand_from {command}'"
        for word, chosen in words.items():
            flag = f" -l {word[2:]}" + (" -r" if chosen else "") if word[0] == "-" else ""
            lines.append(f"{when}{flag}" + (f" -f -a '{' '.join(chosen)}'" if chosen else ""))
    return "\n".join(lines) + "\n"


parse = partial(tyro.cli, Completion, prog="redetr completion", config=FLAGS)
