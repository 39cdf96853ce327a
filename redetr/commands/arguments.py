"""How arguments look in the help of all commands."""

from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from redetr.choices import ImageSize, parsed_size, size_text

FLAGS = (tyro.conf.FlagCreatePairsOff,)  # --json, without a --no-json beside it

Checkpoint = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
DataPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
NewFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NEW")]

SIZES = ConstructorRegistry()


@SIZES.primitive_rule
def _image_size(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """How a flag of type `ImageSize` is written."""
    if info.type != ImageSize:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PX|HxW",
        instance_from_str=lambda words: parsed_size(words[0]),
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [size_text(value)],
    )
