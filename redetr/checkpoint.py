"""Files of a run: written whole or not at all, read without running code."""

import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from redetr.errors import InputError
from redetr.files import write_whole

REQUIRED = ("model", "optimizer", "step", "config", "class_names", "category_ids")
_EXPORTED = (".onnx", ".xml", ".pt2")
_WANTED = "give best.pt, best.safetensors or the run folder"


def save_checkpoint(path: Path, state: dict[str, Any], previous: Path | None = None) -> None:
    """`state` (tensors and plain values) as a file that `torch.load(..., weights_only=True)` reads.

    The file that was there is kept as `previous`. Raises InputError if it cannot be written, as on
    a full disk; what was there stays.
    """
    with _full_disk_told(path):
        write_whole(path, lambda temporary: torch.save(state, temporary), previous)


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest whole checkpoint of a run folder, its content, and a warning for each damaged one;
    None if the folder has no checkpoint. Raises InputError if all are damaged.
    """
    warnings: list[str] = []
    for path in (folder / "last.pt", folder / "previous.pt"):
        if not path.exists():
            continue
        try:
            return path, read_checkpoint(path), warnings
        except InputError as error:
            warnings.append(f"warning: {error}")
    if warnings:
        raise InputError(
            f"{folder}: no whole checkpoint to resume from: {'; '.join(warnings)}".replace(
                "warning: ", ""
            )
        )
    return None


def save_weights(path: Path, weights: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """`weights` as safetensors, with `about` as JSON in its metadata. Raises InputError if it
    cannot be written."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {"redetr": json.dumps(about)}
    with _full_disk_told(path):
        write_whole(
            path, lambda temporary: safetensors.torch.save_file(weights, temporary, metadata)
        )


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        RuntimeError,
        safetensors.SafetensorError,
    ) as error:  # these writers say neither which file nor why
        free = shutil.disk_usage(path.parent).free / 1e6
        raise InputError(
            f"{path}: cannot be written ({free:.0f} MB are free there); what was there before is "
            "kept"
        ) from error


def read_torch(path: Path) -> Any:
    """The content of a `.pt` or `.pth` file, tensors and plain values only. Raises InputError
    naming the file."""
    try:
        if zipfile.is_zipfile(path):  # torch.load does not look at the checksums that it wrote
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError(
                        "it is packed, which torch.save does not do, and may be far larger than it "
                        "seems"
                    )
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"the checksum of {damaged} is wrong")
        with warnings.catch_warnings():  # about foreign pickles, of which the error says enough
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        if path.suffix in _EXPORTED:
            what = "an exported file, which the scripts in examples/export run"
            raise InputError(f"{path}: {what}; {_WANTED}") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's advice here is to load it unsafely
            reason = "torch.save has not written it, or it holds more than tensors and plain values"
        remedy = f"; {_WANTED}" if isinstance(error, pickle.UnpicklingError) else ""
        raise InputError(
            f"{path}: not a checkpoint that can be read safely ({reason[:160]}){remedy}"
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint written by `save_checkpoint`. Raises InputError if it is damaged or something is
    missing."""
    state = read_torch(path)
    missing = [key for key in REQUIRED if not isinstance(state, dict) or key not in state]
    if missing:
        raise InputError(f"{path}: not a redetr checkpoint, {', '.join(missing)} missing")
    return state


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Weights and metadata of a safetensors file. Raises InputError naming the file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # safetensors raises its own kinds for a damaged file
        raise InputError(
            f"{path}: not a safetensors file that can be read ({str(error)[:160]})"
        ) from error
