"""`redetr completion`"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from redetr.commands import COMMANDS
from redetr.commands.arguments import parse_flags
from redetr.commands.console import OUT
from redetr.recipes import RECIPES

# What may follow the words before: the flags of a command, or the choices of a flag or a command.
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
    """Print a shell script that completes commands, recipes, flags and their choices on Tab.

    bash: mkdir -p ~/.local/share/bash-completion/completions; redetr completion bash >
    ~/.local/share/bash-completion/completions/redetr

    zsh: redetr completion zsh >> ~/.zshrc

    fish: mkdir -p ~/.config/fish/completions; redetr completion fish >
    ~/.config/fish/completions/redetr.fish"""

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """The shell to print it for."""

    def run(self) -> None:
        if self.shell == "fish":
            text = _fish()
        elif self.shell == "zsh":
            text = _ZSH + _bash()
        else:
            text = _bash()
        OUT.out(text, end="", highlight=False)


@dataclass(frozen=True)
class _Argument:
    """A field of a command, as shells complete it."""

    name: str
    flag: str  # "" for a positional argument
    choices: list[str]
    takes_value: bool = True
    may_be_path: bool = False  # as well as one of the choices


def _words() -> dict[str, dict[str, _Argument]]:
    """The flags of each command; a positional argument with choices is under the name of the
    command itself."""
    words = {}
    for command in sorted(COMMANDS):
        module = import_module(f"redetr.commands.{command}")
        arguments = list(_arguments(getattr(module, command.capitalize())))
        by_word = {}
        for argument in arguments:
            word = argument.flag or command
            if argument.flag or argument.choices:
                by_word[word] = argument
        takes_recipe = any(argument.name == "model_options" for argument in arguments)
        if takes_recipe:  # or a run folder
            by_word[command] = _Argument("recipe", "", list(RECIPES), may_be_path=True)
        words[command] = by_word
    return words


def _arguments(settings: type) -> Iterator[_Argument]:
    """The arguments of a command; the fields of a dataclass inside it are arguments as well."""
    hints = get_type_hints(settings, include_extras=True)
    for field in fields(settings):
        if not field.metadata.get("is_flag", True):
            continue
        kind = hints[field.name]
        parts = _parts(kind)
        inner = [part for part in parts if isinstance(part, type) and is_dataclass(part)]
        if inner:
            yield from _arguments(inner[0])
            continue
        choices = []
        for part in parts:
            if get_origin(part) is Literal:
                choices += [str(value) for value in get_args(part)]
        if tyro.conf.Positional in getattr(kind, "__metadata__", ()):
            flag = ""
        else:
            flag = "--" + field.name.replace("_", "-")
            if field.default is True:  # the flag switches it off
                flag = flag.replace("--", "--no-", 1)
        yield _Argument(field.name, flag, choices, takes_value=bool not in parts)


def _parts(kind: Any) -> list[Any]:
    """A type and the types that it is made of."""
    parts = [kind]
    if get_origin(kind) is not Literal:
        for inner in get_args(kind):
            parts += _parts(inner)
    return parts


def _bash() -> str:
    words = _words()
    flag_cases, choice_cases = [], []
    for command, by_word in words.items():
        flags = " ".join(word for word in by_word if word.startswith("-"))
        flag_cases.append(f'      {command}) words="{flags}" ;;')
        for word, argument in by_word.items():
            if argument.choices:
                line = f"      '{command} {word}') words=\"{' '.join(argument.choices)}\" ;;"
                choice_cases.append(line)
    return _BASH.format(
        commands=" ".join(words), flags="\n".join(flag_cases), choices="\n".join(choice_cases)
    )


def _fish() -> str:
    words = _words()
    lines = [f"complete -c redetr -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
    for command, by_word in words.items():
        for word, argument in by_word.items():
            line = f"complete -c redetr -n '__fish_seen_subcommand_from {command}'"
            if argument.flag:
                line += f" -l {word.removeprefix('--')}"
                if argument.takes_value:  # otherwise, the next word would be positional
                    line += " -r"
            if argument.choices and not argument.may_be_path:
                line += " -f"
            if argument.choices:
                line += f" -a '{' '.join(argument.choices)}'"
            lines.append(line)
    return "\n".join(lines) + "\n"


parse = partial(parse_flags, Completion, prog="redetr completion")
