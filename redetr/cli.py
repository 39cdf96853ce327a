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
from redetr.errors import INTERRUPTED, InputError, RedetrError, exhausted_memory, explained
from redetr.memory import keep_memory
from redetr.threads import wait_politely

USAGE = """redetr: DETR with a readable core and identical gradients on any number of GPUs

  redetr demo                                   train on handwritten digits for a few minutes
  redetr check PATH [--report DIR]              find faults in a data set before training does
  redetr train RECIPE --data PATH --output DIR  train on your own images, or on digits or crowns
  redetr evaluate CHECKPOINT [--report DIR]     measure AP; write a report on the mistakes
  redetr predict CHECKPOINT SOURCE...           detect objects in images, folders, videos, URLs
  redetr explain CHECKPOINT IMAGE               show where models look and how the loss is computed
  redetr app CHECKPOINT                         serve a web page for your images, and an HTTP API
  redetr convert FOLDER NEW --to FORMAT         write a data set as coco, yolo or voc
  redetr export CHECKPOINT --format FORMAT      export to ONNX, OpenVINO and others; check the AP
  redetr push OWNER/NAME CHECKPOINT             share a model on the Hugging Face hub
  redetr models                                 list the models with their size, cost and results
  redetr verify [RECIPE] [flags of train]       prove that many GPUs give the same gradient as one
  redetr completion SHELL                       print tab completion for bash, zsh or fish

redetr COMMAND --help lists the flags of a command, redetr train lists the recipes.
--json prints JSON where supported; redetr --version prints the version.
Several GPUs: torchrun --nproc-per-node 8 -m redetr train RECIPE ...
"""


def parse_command(arguments: list[str]) -> Any:
    """The command with its settings, ready to `run()`. Exits with 2 if it cannot be parsed."""
    command, *rest = arguments
    if command not in COMMANDS:
        ERRORS.print(f"redetr: unknown command {command!r}: choose from {', '.join(COMMANDS)}")
        raise SystemExit(2)
    return import_module(f"redetr.commands.{command}").parse(args=rest)


def quiet_dependencies() -> None:
    """Keeps messages for developers off the user's terminal: deprecation warnings of dependencies,
    and PyTorch's C++ log, whose stack traces would bury the line with the error.

    Call it before PyTorch is imported. TORCH_CPP_LOG_LEVEL in the environment wins.
    """
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def drop_output() -> None:
    """Discards buffered standard output that cannot be written. Otherwise, Python would try again
    when it exits, and print a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def run_command(arguments: list[str]) -> None:
    """Runs the command that the arguments name. Exits after printing help, or if they are
    invalid."""
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
    command = parse_command(arguments)
    keep_memory()
    command.run()


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. If there is an error, ends the process with its exit code."""
    try:
        try:
            run_command(sys.argv[1:] if arguments is None else arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, an error is reported; at exit, Python would print it
    except RedetrError as error:
        line = str(error).replace("\n", "\\n")  # in a name: an error is one line
        ERRORS.print(f"redetr: {line}")
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except (MemoryError, RuntimeError) as error:
        exhausted = exhausted_memory(error)
        if exhausted is None:
            raise
        ERRORS.print(
            f"redetr: {exhausted}: use smaller images or, where the command has it, a smaller "
            "--batch-size"
        )
        raise SystemExit(InputError.exit_code) from None
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        drop_output()
        raise SystemExit(InputError.exit_code) from None
    except OSError as error:  # a folder that cannot be written, a full disk
        ERRORS.print(f"redetr: {explained(error)}")
        drop_output()
        raise SystemExit(InputError.exit_code) from None
