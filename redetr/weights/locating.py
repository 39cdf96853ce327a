"""Finds the file of weights that the user means: a file, a folder, or a name on the hub."""

import os
from pathlib import Path

from redetr.download import quiet_hub
from redetr.errors import InputError, first_line
from redetr.files import require_no_url
from redetr.weights import folder

_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin")  # of files of weights
_OF_RUN = ("best.pt", "last.pt", "best.safetensors")
_OF_TIMM = "model.safetensors"
# Patterns of files. The second is tried only if no file matches the first.
_WEIGHTS_ON_HUB = (
    ["model*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
)


def locate(source: str | os.PathLike) -> Path:
    """The file or Transformers folder that `source` refers to.

    A run folder refers to its `best.pt`, or else to its `last.pt`, or else to its
    `best.safetensors`; a hub name is downloaded. Raises InputError if there is no such file or
    folder, if a folder has no weights under a known name, or if a run has no checkpoint yet.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"{source!r:.80} is not the path or the hub name of weights")
    path = Path(source)
    if path.is_dir():
        return _weights_of_folder(path)
    if path.name in folder.WEIGHTS and folder.is_of_transformers(path.parent):
        return path.parent  # the folder describes the tensors
    if path.exists():
        return path
    require_no_url(source, "download the file and give its path, or give a name on the hub")
    if str(source).count("/") == 1 and path.suffix not in (".pt", ".pth", ".safetensors"):
        return _weights_on_hub(str(source))
    remedy = "give a checkpoint, a run folder or a Transformers folder"
    raise InputError("no such file", where=path, remedy=remedy)


def is_weight_file(path: Path) -> bool:
    """Whether the name of a path, which need not exist, is that of a file of weights."""
    return path.suffix in _SUFFIXES


def _weights_of_folder(path: Path) -> Path:
    """As `_known_weights`. Raises InputError if there are none."""
    weights = _known_weights(path)
    if weights is not None:
        return weights
    if folder.is_of_run(path):
        remedy = "wait for the run's first checkpoint, or give another run"
        raise InputError("this run has no checkpoint yet", where=path, remedy=remedy)
    remedy = "give a weight file, a run folder or a Transformers folder"
    others = sorted(file.name for file in path.iterdir() if is_weight_file(file))
    if others:
        remedy = f"give the weight file itself, such as {path / others[0]}"
    names = ", ".join((*_OF_RUN, _OF_TIMM))
    text = f"has no weights under a known name ({names}), and is not a Transformers folder"
    raise InputError(text, where=path, remedy=remedy)


def _known_weights(path: Path) -> Path | None:
    """The weights in a run folder, a folder of timm or a folder that `redetr push` wrote; or the
    folder itself, if it is a Transformers folder; None for other folders."""
    for name in _OF_RUN:
        if (path / name).exists():
            return path / name
    if folder.is_of_transformers(path):
        return path
    if (path / _OF_TIMM).is_file():
        return path / _OF_TIMM
    return None


def _weights_on_hub(name: str) -> Path:
    """The downloaded weights of a hub name. Raises InputError if they cannot be downloaded."""
    weights = _known_weights(_download(name))
    if weights is None:
        text = f"has no {_OF_TIMM} on the hub, and no config.json of Transformers"
        remedy = "download its weight file and give the path"
        raise InputError(text, where=name, remedy=remedy)
    return weights


def _download(name: str) -> Path:
    """The downloaded folder of a hub name. Raises InputError if it cannot be downloaded."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        text = "no such file, and names on the Hugging Face hub need huggingface-hub"
        remedy = 'pip install "redetr[hub]"'
        raise InputError(text, where=name, remedy=remedy) from None
    settings = [folder.CONFIG, folder.IMAGES]
    # OSError includes LocalEntryNotFoundError, which a machine without a network raises for files
    # that are not in its cache. A broken connection raises an error of the client's HTTP library,
    # whichever that is, so its base class is caught.
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    causes = (OSError, errors.HfHubHTTPError, errors.HFValidationError, transport)
    try:
        for weights in _WEIGHTS_ON_HUB:
            with quiet_hub():
                path = Path(snapshot_download(name, allow_patterns=[*settings, *weights]))
            if any(path.glob(weights[0])):
                break
        return path
    except causes as error:
        reason = first_line(error)[:160]
        raise InputError(
            f"no such file, and it cannot be downloaded from the hub ({reason})",
            where=name,
            remedy="download the folder (config.json, model.safetensors) on another machine, and "
            "give its path",
        ) from error
