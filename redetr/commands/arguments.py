"""How arguments look in the help of all commands."""

from typing import Annotated

import tyro

FLAGS = (tyro.conf.FlagCreatePairsOff,)  # --json, without a --no-json beside it

Checkpoint = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
DataPath = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
NewFolder = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NEW")]
