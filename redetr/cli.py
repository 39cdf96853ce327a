"""The command line: finds the command, runs it, and turns an error into one line and an exit
code."""

import io
import os
import sys
import warnings
from importlib import import_module
from typing import Any

import redetr
from redetr.commands import COMMANDS
from redetr.commands.console import ERRORS
from redetr.commands.recipe import HELP
from redetr.detector.memory import keep_memory
from redetr.errors import INTERRUPTED, InputError, RedetrError
from redetr.threads import wait_politely

USAGE = """redetr: DETR you can read in an afternoon and trust on any number of GPUs

  redetr demo                                   train on handwritten digits for a few minutes
  redetr train RECIPE --data PATH --output DIR  train on digits, crowns or your own folder of images
  redetr evaluate CHECKPOINT [--report DIR]     COCO numbers, AP per class; a page of errors
  redetr predict CHECKPOINT SOURCE...           detect in images, folders, videos, URLs
  redetr explain CHECKPOINT IMAGE               pages that show where the model looked, and its loss
  redetr app CHECKPOINT                         a page to drop images on, and an HTTP endpoint
  redetr check PATH [--report DIR]              what would spoil training, before it does
  redetr convert FOLDER NEW --to FORMAT         write the same data set as coco, yolo or voc
  redetr export CHECKPOINT --format FORMAT      ONNX, OpenVINO, torch.export; compared with PyTorch
  redetr push OWNER/NAME CHECKPOINT             share it on the Hugging Face hub, with a model card
  redetr models                                 list the models: size, cost, measured results
  redetr verify [RECIPE] [flags of train]       prove that many GPUs give the gradients of one
  redetr completion SHELL                       tab completion for bash, zsh and fish

redetr COMMAND --help lists the flags, redetr train the recipes; --json prints JSON where
supported; redetr --version prints the version.
Several GPUs: torchrun --nproc-per-node 8 -m redetr train RECIPE ...
"""


def parse_command(arguments: list[str]) -> Any:
    """The command with its settings, ready to `run()`. Exits with 2 for what cannot be
    understood."""
    command, *rest = arguments
    if command not in COMMANDS:
        ERRORS.print(f"redetr: unknown command {command!r}: choose {', '.join(COMMANDS)}")
        raise SystemExit(2)
    return import_module(f"redetr.commands.{command}").parse(args=rest)


def quiet_dependencies() -> None:
    """Keeps messages for developers off the terminal of users: the deprecations of dependencies,
    and the C++ log of PyTorch, whose stack traces would bury the one line on what is wrong.

    Call it before PyTorch is imported. TORCH_CPP_LOG_LEVEL in the environment wins.
    """
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; ends the process with the exit code of the error, if there is one."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in HELP:
        print(USAGE, end="")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(f"redetr {redetr.__version__}")
        raise SystemExit(0)
    quiet_dependencies()
    wait_politely()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command = parse_command(arguments)
        keep_memory()
        command.run()
    except RedetrError as error:
        ERRORS.print(f"redetr: {error}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:  # a folder that cannot be written, a full disk
        where = error.filename or "cannot read or write"
        reason = error.strerror or error
        ERRORS.print(f"redetr: {where}: {reason}")
        raise SystemExit(InputError.exit_code) from None
