"""Files of a run: written whole or not at all, read without running code."""

import json
import pickle
import shutil
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from redetr.errors import InputError, first_line
from redetr.files import open_file, write_whole

REQUIRED = ("model", "optimizer", "step", "config", "class_names", "category_ids")
_EXPORTED = (".onnx", ".xml", ".pt2")
_REMEDY = "give best.pt, best.safetensors or the run folder"


def save_checkpoint(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """`state` (tensors and plain values) as a file that `torch.load(..., weights_only=True)` reads.

    The file that was there is kept as `previous`. Raises InputError if it cannot be written, as on
    a full disk; then the old file stays.
    """
    with _explaining_full_disk(path):
        write_whole(path, lambda temporary: torch.save(state, temporary), previous)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest whole checkpoint of a run folder, its content, and a warning for each damaged one;
    None if the folder has no checkpoint. Raises InputError if all are damaged.
    """
    notes: list[str] = []
    for path in (folder / "last.pt", folder / "previous.pt"):
        if not path.exists():
            continue
        try:
            return path, read_checkpoint(path), [f"warning: {note}" for note in notes]
        except InputError as error:
            notes.append(str(error))
    if notes:
        text = f"no intact checkpoint to resume from: {'; '.join(notes)}"
        raise InputError(text, where=folder)
    return None


def save_weights(path: Path, weights: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """`weights` as safetensors, with `about` as JSON in its metadata. Raises InputError if it
    cannot be written."""
    tensors = {}
    for name, tensor in weights.items():
        tensors[name] = tensor.detach().cpu().contiguous()
    metadata = {"redetr": json.dumps(about)}

    def write(temporary: Path) -> None:
        safetensors.torch.save_file(tensors, temporary, metadata)

    with _explaining_full_disk(path):
        write_whole(path, write)


@contextmanager
def _explaining_full_disk(path: Path) -> Iterator[None]:
    """Names the file and the likely cause, which errors of PyTorch's and safetensors' writers do
    not."""
    try:
        yield
    except (RuntimeError, safetensors.SafetensorError) as error:
        free = shutil.disk_usage(path.parent).free / 1e6
        text = f"cannot be written ({free:.0f} MB are free there); the previous file is kept"
        raise InputError(text, where=path) from error


def read_torch(path: Path) -> Any:
    """The content of a `.pt` or `.pth` file, tensors and plain values only.

    Plain is also the table of arguments (`Namespace`) that the original DETR writes beside its
    weights. Raises InputError naming the file.
    """
    if not path.exists():
        raise InputError("no such file", where=path)
    try:
        with open_file(path):  # refuses pipes, of which reading may never end
            _require_zip_whole(path)
        # The warnings are about foreign pickles, of which the error says enough.
        with warnings.catch_warnings(), torch.serialization.safe_globals([Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # Any exception, because only library calls can raise here: a damaged or foreign pickle makes
    # the unpickler raise whatever its instructions lead to, and a damaged zip file is little
    # better.
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    """Why `torch.load` has refused a file."""
    if path.suffix in _EXPORTED:
        text = "an exported file: run it with the scripts in examples/export"
        return InputError(text, where=path, remedy=_REMEDY)
    if isinstance(error, pickle.UnpicklingError):  # PyTorch's advice here is to load it unsafely
        reason = "torch.save did not write it, or it holds more than tensors and plain values"
        text = f"not a checkpoint that can be read safely ({reason})"
        return InputError(text, where=path, remedy=_REMEDY)
    first_sentence = first_line(error).split(". ")[0]
    text = f"not a checkpoint that can be read safely ({first_sentence[:160]})"
    return InputError(text, where=path, remedy=_REMEDY)


def _require_zip_whole(path: Path) -> None:
    """Raises ValueError for a zip file with a wrong checksum, which `torch.load` does not check,
    and for a compressed one, which may be far larger than it seems."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError(
                "it is compressed, which torch.save never does, and may be far larger than it seems"
            )
        damaged = archive.testzip()
    if damaged:
        raise ValueError(f"the checksum of {damaged} is wrong")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint written by `save_checkpoint`. Raises InputError if it is damaged or something is
    missing."""
    state = read_torch(path)
    missing = list(REQUIRED)
    if isinstance(state, dict):
        missing = [key for key in REQUIRED if key not in state]
    if missing:
        raise InputError(f"not a redetr checkpoint, {', '.join(missing)} missing", where=path)
    return state


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights and metadata of a safetensors file. Raises InputError naming the file."""
    if not path.exists():
        raise InputError("no such file", where=path)
    tensors = {}
    try:
        open_file(path).close()  # refuses pipes, of which reading may never end
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensors[name] = file.get_tensor(name)
            metadata = file.metadata() or {}
    # AttributeError: numbers of a kind that this version of PyTorch does not have.
    except (OSError, AttributeError, safetensors.SafetensorError) as error:
        text = f"not a safetensors file that can be read ({str(error)[:160]})"
        raise InputError(text, where=path) from error
    return tensors, metadata
