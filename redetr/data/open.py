"""Opens a data set by name, path or hub address."""

from collections.abc import Callable, Mapping
from pathlib import Path

from redetr.bounds import require_in_bounds
from redetr.choices import DATA_IN_PYTHON
from redetr.data.annotations import SPLITS, Split, data_folder
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.faults import Fault
from redetr.data.formats.digits import DigitsDataset
from redetr.data.formats.folder import open_folder, unreadable_of
from redetr.data.formats.holdout import fraction_unused
from redetr.data.formats.hub import Address, open_hub
from redetr.data.formats.layouts import splits_of
from redetr.data.remote import is_address, mirror
from redetr.data.store import stamp_of
from redetr.data.unreadable import LeaveOut
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.files import require_no_url, user_path
from redetr.launch import read_launch

_EMBEDDED = ("digits", "crowns")
_CROWNS = Path(__file__).parent / "formats" / "crowns"


def folder_of(source: str | Path) -> Path:
    """The folder (or YAML file in YOLO format) of a data set that is given by its path, or of
    crowns. For a URL (http or https), a folder in the user's cache, see `redetr.data.remote`.

    Raises InputError for other URLs."""
    if source == "crowns":
        return _CROWNS
    if is_address(source):
        return mirror(str(source))
    require_no_url(source, "give the http or https URL of archives, or a folder on this machine")
    return user_path(source)


def absolute_source(source: str) -> str:
    """The argument of `open_dataset` for the same data set from any working directory."""
    if source in (*_EMBEDDED, DATA_IN_PYTHON) or is_address(source):
        return source
    if not source.startswith("hf:"):
        return str(user_path(source).absolute())
    return Address.of(source).absolute()


def open_dataset(
    source: str | Path,
    split: Split,
    val_fraction: float = 0.0,
    stamp: str | None = None,
    masks: bool = False,
    leave_out: LeaveOut = None,
) -> DetectionDataset:
    """The data set that `source` names: `digits` or `crowns`; a folder (`./digits` for a folder of
    that name); tar archives at an address, such as `https://host/shards`; or one that Hugging Face
    `datasets` reads: `hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER`, followed by `,boxes=xyxy` if its
    boxes are not xywh.

    Folders are in any format of docs/your-data.md (COCO, COCO panoptic, YOLO, Pascal VOC, CVAT,
    VIA, Datumaro, LabelMe, label images, WebDataset), which have modules in `redetr.data.formats`.
    The path of a YAML file in YOLO format stands for its folder, which is read as this file says.
    Without a val split, a `val_fraction` of the training images is held out as one. Large folders
    are read once, see `redetr.data.store`; `stamp` is what `stamp_of` says of one, if it is known.
    With `masks`, targets hold masks. `leave_out` images that cannot be read: see
    `redetr.data.unreadable`. Raises InputError if there is no such folder, format or split, if the
    annotations have errors, or if no object has a mask although `masks` are requested.
    """
    if split not in SPLITS:
        raise InputError(f"split={split!r} is not train, val or test")
    require_in_bounds("val_fraction", val_fraction)
    if not isinstance(source, str | Path):
        remedy = "give digits, crowns, a folder or hf:NAME"
        raise InputError(f"source={source!r} is not the name of a data set", remedy=remedy)
    if source == DATA_IN_PYTHON:
        remedy = "give --data, or resume the run from Python with the same datasets"
        raise InputError("the run's data sets were given in Python", remedy=remedy)
    if split == "test" and source in _EMBEDDED:
        raise InputError("has no test split", where=source, remedy="use val")
    if source == "digits":
        scenes = DigitsDataset(split, masks=masks)
        if val_fraction:
            scenes.notes = (fraction_unused(source),)
        return scenes
    if str(source).startswith("hf:"):
        if leave_out is not None:
            remedy = "write it as a folder (redetr convert), or leave out the flag"
            raise InputError(
                "--skip-unreadable applies to image files", where=source, remedy=remedy
            )
        return open_hub(str(source), split, val_fraction, "train" if masks else "none")
    hints = Hints()
    if source == "crowns":
        hints = Hints(image_size=128, augment="aerial", num_queries=25)
    return open_folder(folder_of(source), split, hints, val_fraction, stamp, masks, leave_out)


Check = Callable[[DetectionDataset, DetectionDataset], list[Fault]]


def open_on_ranks(
    source: str,
    val_fraction: float,
    dist: Dist,
    check: Check,
    masks: bool = False,
    leave_out: Mapping[Split, LeaveOut] | None = None,
) -> tuple[DetectionDataset, DetectionDataset, list[Fault]]:
    """The train and val split on every rank, and what `check` says of them. The first rank of each
    host reads and checks; the others open what it has stored. `masks` and `leave_out`, of each
    split, are as in `open_dataset`. Communicates.

    Raises the InputError of any rank on all of them.
    """

    def opened(stamp: str | None, without: Mapping[Split, LeaveOut]) -> list[DetectionDataset]:
        splits: tuple[Split, ...] = ("train", "val")
        return [
            open_dataset(source, split, val_fraction, stamp, masks, without.get(split))
            for split in splits
        ]

    local_rank = read_launch().local_rank
    stamp: str | None = None
    faults: list[Fault] = []
    error: InputError | None = None
    without: Mapping[Split, LeaveOut] = leave_out or {}
    if local_rank == 0:
        try:
            stamp = _stamp(source)
            train, val = opened(stamp, without)
            faults = check(train, val)
            if leave_out:
                without = {"train": unreadable_of(train), "val": unreadable_of(val)}
        except InputError as reason:
            error = reason
    dist.meet()
    replies = dist.gather([(stamp, faults, without, error)])
    errors = [error for *_, error in replies if error is not None]
    if errors:
        raise errors[0]
    if local_rank > 0:
        stamp, faults, without, _ = replies[dist.rank - local_rank]
        train, val = opened(stamp, without)
    return train, val, faults


def _stamp(source: str) -> str | None:
    """The stamp of a folder; None for other data sets. Raises InputError if the folder has no data
    set."""
    folder = folder_of(source)
    if source in _EMBEDDED or source.startswith("hf:") or not folder.exists():
        return None
    try:
        splits_of(folder)  # raises first: without a data set, a folder may be far too large
        return stamp_of(data_folder(folder))
    except OSError:  # reported by its reader
        return None
