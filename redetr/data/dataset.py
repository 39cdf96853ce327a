"""What every data set looks like from inside: uint8 images, boxes in xyxy pixels, contiguous labels."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from redetr.choices import Augment
from redetr.data.annotations import SPLITS, Annotations, Split
from redetr.data.coco import coco_sought, coco_splits, read_coco
from redetr.data.voc import read_voc, voc_sought, voc_splits
from redetr.data.yolo import read_yolo, yolo_sought, yolo_splits
from redetr.errors import InputError
from redetr.structures import Target

_CROWNS = Path(__file__).parent / "crowns"
_REMEDIES = {
    "train": "add it: a model learns from it",
    "val": "add it: hold out 10-20% of the images to measure on, or let --val-fraction 0.1 do it",
    "test": "add it, or measure on val",
}


@dataclass(frozen=True)
class Hints:
    """What suits a data set when the user says nothing; None leaves the choice to the recipe."""

    image_size: int | None = None  # longer side in pixels
    native_size: int | None = None  # longer side of the stored images: the fast forms do not enlarge them by default
    augment: Augment | None = None
    num_queries: int | None = None  # enough for the most objects in what the model sees of an image


class DetectionDataset(ABC, Dataset[tuple[Tensor, Target]]):
    """Images with boxes. Label `i` is called `class_names[i]` and has the id `category_ids[i]` in the source.

    `notes` are sentences that a user should read once, such as how many boxes were left out.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    hints: Hints = Hints()
    notes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def target(self, index: int) -> Target:
        """The objects of one image, boxes xyxy in pixels of the stored image, which is not decoded for it."""

    def image_id(self, index: int) -> int:
        """The id of one image; cheaper than its target where that is computed."""
        return self.target(index)["image_id"]

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image, uint8 `[3, H, W]` RGB. Raises InputError if its file cannot be decoded."""

    def sample(self, index: int) -> tuple[Tensor, Target]:
        """Image and target together; cheaper than asking for each where both come from one computation."""
        return self.image(index), self.target(index)

    def require_whole_images(self) -> None:
        """Raises InputError for an image file that is cut short, so that it is not met in the middle of a night."""

    def max_objects(self) -> int:
        """The most objects in one image, crowds not counted."""
        return max((int((~self.target(i)["iscrowd"]).sum()) for i in range(len(self))), default=0)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.sample(index)

    def _position(self, index: int) -> int:
        """`index` counted from the front. Raises IndexError outside of the data set."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.name}")
        return index % len(self)


class _Layout(NamedTuple):
    """A form of data set: the splits that are in a folder, where one is looked for (in words), how it is read."""

    splits: Callable[[Path], list[Split]]
    sought: Callable[[Split], str]
    read: Callable[[Path, Split], Annotations]


_LAYOUTS = {
    "COCO": _Layout(coco_splits, coco_sought, read_coco),
    "YOLO": _Layout(yolo_splits, yolo_sought, read_yolo),
    "Pascal VOC": _Layout(voc_splits, voc_sought, read_voc),
}


def splits_of(root: Path) -> list[Split]:
    """The splits of the data set in a folder, or of a YAML file. Raises InputError if it has none, or they cannot be
    told."""
    return _layout_of(root)[1]


def read_annotations(root: Path, split: Split) -> Annotations:
    """One split of the data set in a folder, or of a YAML file, with all that is wrong with it.

    Raises InputError if there is no such data set or split, or nothing of it can be read.
    """
    layout, splits = _layout_of(root)
    if split not in splits:
        raise InputError(f"{root}: no {split} split (looked for {layout.sought(split)}); {_REMEDIES[split]}")
    return layout.read(root, split)


def _layout_of(root: Path) -> tuple[_Layout, list[Split]]:
    if root.suffix in (".yaml", ".yml") and root.is_file():
        if not (splits := yolo_splits(root)):
            raise InputError(f"{root}: names no images; write train and val into it")
        return _LAYOUTS["YOLO"]._replace(sought=lambda split: yolo_sought(split, root.name)), splits
    if not root.is_dir():
        what = "is a file" if root.is_file() else "no such folder"
        raise InputError(f"{root}: {what}; give the folder of a data set, its data.yaml, or digits or crowns")
    if not any(root.iterdir()):
        raise InputError(f"{root}: the folder is empty; put a data set in {', '.join(_LAYOUTS)} form into it")
    for layout in _LAYOUTS.values():
        if splits := layout.splits(root):
            return layout, splits
    sought = "; ".join(f"{name}: {layout.sought('train')}" for name, layout in _LAYOUTS.items())
    raise InputError(f"{root}: no data set found; give the folder that holds one of these ({sought})")


def folder_of(source: str | Path) -> Path:
    """The folder (or the YAML file of YOLO form) of a data set that is given by its path, or called crowns."""
    return _CROWNS if source == "crowns" else Path(source).expanduser()


def absolute_source(source: str) -> str:
    """The same data set for `open_dataset` from any working directory."""
    scheme, place = ("hf:", source[3:]) if source.startswith("hf:") else ("", source)
    if source in ("digits", "crowns") or (scheme and not Path(place).expanduser().is_dir()):
        return source
    return f"{scheme}{Path(place).expanduser().absolute()}"


def open_dataset(source: str | Path, split: Split, val_fraction: float = 0.0) -> DetectionDataset:
    """The data set called `digits` or `crowns`, that in a folder (`./digits` is a folder of that name), or that which
    Hugging Face `datasets` reads: `hf:NAME`, `hf:NAME@REVISION` or `hf:FOLDER`.

    Folders are in COCO, YOLO or Pascal VOC form: see `redetr.data.coco`, `yolo` and `voc`. The path of a YAML file in
    YOLO form stands for the folder it is in, which is read as this file says. Without a val split, a `val_fraction` of
    the training images is held out as one. Raises InputError if there is no such folder, layout or split, or the
    annotations are faulty.
    """
    from redetr.data.digits import DigitsDataset
    from redetr.data.folder import open_folder
    from redetr.data.hub import open_hub

    if split not in SPLITS:
        raise ValueError(f"split is train, val or test, not {split!r}")
    if split == "test" and source in ("digits", "crowns"):
        raise InputError(f"{source}: has no test split; measure on val")
    if source == "digits":
        return DigitsDataset(split)
    if str(source).startswith("hf:"):
        return open_hub(str(source), split, val_fraction)
    hints = Hints(image_size=128, augment="aerial", num_queries=25) if source == "crowns" else Hints()
    return open_folder(folder_of(source), split, hints, val_fraction)
