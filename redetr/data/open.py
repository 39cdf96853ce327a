"""The data set that a name, a path or a hub address stands for."""

from pathlib import Path

from redetr.data.annotations import SPLITS, Split
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.formats.digits import DigitsDataset
from redetr.data.formats.folder import open_folder
from redetr.data.formats.hub import Address, open_hub
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


def open_dataset(source: str | Path, split: Split, val_fraction: float = 0.0) -> DetectionDataset:
    """The data set called `digits` or `crowns`, that in a folder (`./digits` is a folder of that
    name), or that which Hugging Face `datasets` reads: `hf:NAME`, `hf:NAME@REVISION` or
    `hf:FOLDER`, and `,boxes=xyxy` behind it if it does not hold xywh.

    Folders are in COCO, YOLO, Pascal VOC or LabelMe format: see `redetr.data.formats.coco`, `yolo`,
    `voc` and `labelme`. The path of a YAML file in YOLO format stands for its folder, which is read
    as this file says. Without a val split, a `val_fraction` of the training images is held out as
    one. Raises InputError if there is no such folder, layout or split, or the annotations are
    faulty.
    """
    if split not in SPLITS:
        raise ValueError(f"split is train, val or test, not {split!r}")
    if split == "test" and source in _EMBEDDED:
        raise InputError("has no test split", where=source, remedy="use val")
    if source == "digits":
        return DigitsDataset(split)
    if str(source).startswith("hf:"):
        return open_hub(str(source), split, val_fraction)
    hints = Hints()
    if source == "crowns":
        hints = Hints(image_size=128, augment="aerial", num_queries=25)
    return open_folder(folder_of(source), split, hints, val_fraction)
