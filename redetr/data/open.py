"""The data set that a name, a path or a hub address stands for."""

from collections.abc import Callable
from pathlib import Path

from redetr.data.annotations import SPLITS, Fault, Split, data_folder
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.formats.digits import DigitsDataset
from redetr.data.formats.folder import open_folder
from redetr.data.formats.hub import Address, open_hub
from redetr.data.store import stamp_of
from redetr.distributed import Dist, read_launch
from redetr.errors import InputError

_EMBEDDED = ("digits", "crowns")
_CROWNS = Path(__file__).parent / "formats" / "crowns"


def folder_of(source: str | Path) -> Path:
    """The folder (or the YAML file of YOLO format) of a data set that is given by its path, or
    called crowns."""
    if source == "crowns":
        return _CROWNS
    return Path(source).expanduser()


def absolute_source(source: str) -> str:
    """The same data set for `open_dataset` from any working directory."""
    if source in _EMBEDDED:
        return source
    if not source.startswith("hf:"):
        return str(Path(source).expanduser().absolute())
    return Address.of(source).absolute()


def open_dataset(
    source: str | Path,
    split: Split,
    val_fraction: float = 0.0,
    stamp: str | None = None,
    masks: bool = False,
) -> DetectionDataset:
    """The data set called `digits` or `crowns`, that in a folder (`./digits` is a folder of that
    name), or that which Hugging Face `datasets` reads: `hf:NAME`, `hf:NAME@REVISION` or
    `hf:FOLDER`, and `,boxes=xyxy` behind it if it does not hold xywh.

    Folders are in COCO, YOLO, Pascal VOC or LabelMe format or have label images: see
    `redetr.data.formats.coco`, `yolo`, `voc`, `labelme` and `label_images`. The path of a YAML file
    in YOLO format stands for its folder, which is read as this file says. Without a val split, a
    `val_fraction` of the training images is held out as one. Large folders are read once, see
    `redetr.data.store`; `stamp` is what `stamp_of` says of one, if it is known. With `masks`,
    targets hold masks. Raises InputError if there is no such folder, layout or split, the
    annotations are faulty, or no object has a mask where they are asked for.
    """
    if split not in SPLITS:
        raise ValueError(f"split is train, val or test, not {split!r}")
    if split == "test" and source in _EMBEDDED:
        raise InputError("has no test split", where=source, remedy="use val")
    if source == "digits":
        return DigitsDataset(split, masks=masks)
    if str(source).startswith("hf:"):
        return open_hub(str(source), split, val_fraction, "train" if masks else "none")
    hints = Hints()
    if source == "crowns":
        hints = Hints(image_size=128, augment="aerial", num_queries=25)
    return open_folder(folder_of(source), split, hints, val_fraction, stamp, masks)


Check = Callable[[DetectionDataset, DetectionDataset], list[Fault]]


def open_on_ranks(
    source: str, val_fraction: float, dist: Dist, check: Check, masks: bool = False
) -> tuple[DetectionDataset, DetectionDataset, list[Fault]]:
    """The train and val split on every rank, and what `check` says of them. The first rank of each
    host reads and checks; the others open what it has stored. `masks` is as in `open_dataset`.
    Communicates.

    Raises the InputError of any rank on all of them.
    """
    local_rank = read_launch().local_rank
    stamp: str | None = None
    faults: list[Fault] = []
    error: InputError | None = None
    if local_rank == 0:
        try:
            stamp = _stamp(source)
            train = open_dataset(source, "train", val_fraction, stamp, masks)
            val = open_dataset(source, "val", val_fraction, stamp, masks)
            faults = check(train, val)
        except InputError as reason:
            error = reason
    dist.meet()
    said = dist.gather([(stamp, faults, error)])
    errors = [error for _, _, error in said if error is not None]
    if errors:
        raise errors[0]
    if local_rank > 0:
        stamp, faults, _ = said[dist.rank - local_rank]
        train = open_dataset(source, "train", val_fraction, stamp, masks)
        val = open_dataset(source, "val", val_fraction, stamp, masks)
    return train, val, faults


def _stamp(source: str) -> str | None:
    """The stamp of a folder; None of other data sets."""
    folder = folder_of(source)
    if source in _EMBEDDED or source.startswith("hf:") or not folder.exists():
        return None
    try:
        return stamp_of(data_folder(folder))
    except OSError:  # whoever reads it says why
        return None
