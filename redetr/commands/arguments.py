"""The appearance of arguments in the help of all commands."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from redetr.bounds import require_all_in_bounds
from redetr.choices import ImageSize, parsed_size, size_text
from redetr.errors import UsageError

Command = TypeVar("Command")

_PAIRS_OFF = (tyro.conf.FlagCreatePairsOff,)  # --json, without a --no-json beside it

Checkpoint = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
DataPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
Sources = Annotated[
    tuple[str, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="SOURCE...", help_behavior_hint="(required)"),
]
OneImage = Annotated[
    str | None,
    tyro.conf.Positional,
    tyro.conf.arg(metavar="[IMAGE]", help_behavior_hint=""),
]
NewFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NEW")]
NewFile = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]

# The placeholders of text values in the help, by the field of the flag.
_TEXT_PLACEHOLDERS = {
    "allow_host": "HOST...",
    "cache_dir": "DIR",
    "classes": "NAME...",
    "compare": "CHECKPOINT",
    "custom_augment": "FILE.py:NAME",
    "data": "PATH",
    "device": "DEVICE",
    "freeze": "PART...",
    "host": "ADDRESS",
    "licence": "NAME",
    "model": "NAME",
    "model_options": "NAME=VALUE...",
    "output": "DIR",
    "recipe": "NAME",
    "report": "DIR",
    "shards": "SIZE",
    "stuff": "NAME...",
    "to": "DIR",
    "weights": "WEIGHTS",
}

_RULES = ConstructorRegistry()


def parse_flags(
    command: Callable[..., Command],
    args: list[str],
    *,
    prog: str,
    default: Any = tyro.MISSING_NONPROP,
    description: str | None = None,
) -> Command:
    """The command, a dataclass, with the values in `args`.

    Like `tyro.cli`, prints help or an error and exits if `args` ask for help or are not valid.
    Raises UsageError for an empty value, and InputError for a number that is out of its bounds.
    """
    parsed = tyro.cli(
        command,
        args=args,
        default=default,
        prog=prog,
        description=description,
        config=_PAIRS_OFF,
        registry=_RULES,
    )
    _require_no_empty(parsed)
    require_all_in_bounds(parsed)
    return parsed


def _require_no_empty(flags: Any) -> None:
    """Raises UsageError if a value in a dataclass is an empty text: usually from a shell variable
    that is not set, and as a path the current folder."""
    for setting in dataclasses.fields(flags):
        value = getattr(flags, setting.name)
        if dataclasses.is_dataclass(value):
            _require_no_empty(value)
            continue
        values = value if isinstance(value, tuple) else (value,)
        if "" in values:
            name = setting.name.replace("_", "-")
            raise UsageError(f"the value of {name} is empty", remedy="is a shell variable not set?")


@_RULES.primitive_rule
def _image_size(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """The syntax of a flag of type `ImageSize`."""
    if info.type != ImageSize:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PX|HxW",
        instance_from_str=lambda words: parsed_size(words[0]),
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [size_text(value)],
    )


@_RULES.struct_rule
def _flags(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The flags of a dataclass.

    Like tyro's own rule, but sentences are wrapped at the width of the terminal instead of that of
    the source, and defaults are shown only if the sentence does not state them.
    """
    if not dataclasses.is_dataclass(info.type):
        return None
    texts = docstrings_of_fields(info.type)
    hints = get_type_hints(info.type, include_extras=True)
    flags = []
    for setting in dataclasses.fields(info.type):
        default = getattr(info.default, setting.name, setting.default)
        if default is dataclasses.MISSING:
            default = tyro.MISSING_NONPROP
        text = _help_text(setting.name, texts.get(setting.name, ""), default)
        kind = _shown(setting.name, hints[setting.name], text, default)
        flags.append(StructFieldSpec(setting.name, kind, default, text or None))
    return StructConstructorSpec(info.type, tuple(flags))


def _help_text(name: str, documented: str, default: Any) -> str:
    """The help of the flag of a field, from the text that is `documented` below it in the source.

    If a field is True by default, its text describes the flag that turns it off, such as
    --no-pictures. A run may have turned it off: the flag then turns it on again.
    """
    off_flag = _off_flag(name)
    if not documented.startswith(f"{off_flag}: "):
        return documented
    if default is False:
        return f"Undo the run's {off_flag}. {documented}"
    return documented.removeprefix(f"{off_flag}: ")


def _off_flag(name: str) -> str:
    """The flag that turns off a field which is True by default."""
    return "--no-" + name.replace("_", "-")


@cache  # tyro asks for the same texts many times
def docstrings_of_fields(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass and of its bases, on one line."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(base))
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        name = ""
        for statement in definition.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                name = statement.target.id
                continue
            if name and isinstance(statement, ast.Expr):
                texts[name] = " ".join(ast.literal_eval(statement.value).split())
            name = ""
    return texts


def _shown(name: str, kind: Any, text: str, default: Any) -> Any:
    """The type of a flag, annotated for its help: a placeholder that names its values, and no
    "(default: 0)" if the sentence states what happens without the flag."""
    if get_origin(kind) is Annotated or dataclasses.is_dataclass(kind):
        return kind
    options: dict[str, Any] = {}
    is_open = default is None or default == () or (not default and "default" in text)
    if is_open or isinstance(default, bool):
        options["help_behavior_hint"] = ""
    members = [member for member in get_args(kind) if member is not type(None)]
    if kind in (str, str | None, tuple[str, ...]):
        options["metavar"] = _TEXT_PLACEHOLDERS.get(name, "TEXT")
    elif len(members) == 1 and type(None) in get_args(kind):
        options["metavar"] = _placeholder(members[0])  # without "{None}|"
    return Annotated[kind, tyro.conf.arg(**options)] if options else kind


def _placeholder(kind: Any) -> str:
    """The placeholder for a value of a type, as in `--lr FLOAT`."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return kind.__name__.upper()
