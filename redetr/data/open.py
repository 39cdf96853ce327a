"""The data set that a name, a path or a hub address stands for."""

from pathlib import Path

from redetr.data.annotations import SPLITS, Split
from redetr.data.dataset import DetectionDataset, Hints
from redetr.data.forms.digits import DigitsDataset
from redetr.data.forms.folder import open_folder
from redetr.data.forms.hub import open_hub
from redetr.errors import InputError

_CROWNS = Path(__file__).parent / "forms" / "crowns"


def folder_of(source: str | Path) -> Path:
    """The folder (or the YAML file of YOLO form) of a data set that is given by its path, or called
    crowns."""
    return _CROWNS if source == "crowns" else Path(source).expanduser()


def absolute_source(source: str) -> str:
    """The same data set for `open_dataset` from any working directory."""
    scheme, place = ("hf:", source[3:]) if source.startswith("hf:") else ("", source)
    if source in ("digits", "crowns") or (scheme and not Path(place).expanduser().is_dir()):
        return source
    return f"{scheme}{Path(place).expanduser().absolute()}"


def open_dataset(source: str | Path, split: Split, val_fraction: float = 0.0) -> DetectionDataset:
    """The data set called `digits` or `crowns`, that in a folder (`./digits` is a folder of that
    name), or that which Hugging Face `datasets` reads: `hf:NAME`, `hf:NAME@REVISION` or
    `hf:FOLDER`.

    Folders are in COCO, YOLO or Pascal VOC form: see `redetr.data.coco`, `yolo` and `voc`. The path
    of a YAML file in YOLO form stands for the folder it is in, which is read as this file says.
    Without a val split, a `val_fraction` of the training images is held out as one. Raises
    InputError if there is no such folder, layout or split, or the annotations are faulty.
    """
    if split not in SPLITS:
        raise ValueError(f"split is train, val or test, not {split!r}")
    if split == "test" and source in ("digits", "crowns"):
        raise InputError(f"{source}: has no test split; measure on val")
    if source == "digits":
        return DigitsDataset(split)
    if str(source).startswith("hf:"):
        return open_hub(str(source), split, val_fraction)
    hints = (
        Hints(image_size=128, augment="aerial", num_queries=25) if source == "crowns" else Hints()
    )
    return open_folder(folder_of(source), split, hints, val_fraction)
