"""The interface of data sets: uint8 images, boxes in xyxy pixels, contiguous labels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor
from torch.utils.data import Dataset

from redetr.choices import Augment
from redetr.errors import InputError
from redetr.masks import encode
from redetr.structures import Size, StoredTarget


@dataclass(frozen=True)
class Hints:
    """The default settings for a data set; None leaves the choice to the recipe."""

    image_size: int | None = None  # px: the side of a square, or the shorter side
    # longer side of the stored images: the fast variants do not enlarge them by default
    native_size: int | None = None
    augment: Augment | None = None
    num_queries: int | None = None  # enough for the most objects in what the model sees of an image


class DetectionDataset(ABC, Dataset[tuple[Tensor, StoredTarget]]):
    """Images with boxes. Label `i` is called `class_names[i]` and has the id `category_ids[i]` in
    the source.

    `notes` are sentences that a user should read once, such as how many boxes were left out.
    `has_masks`: whether the source is known to have masks. Targets have them if the data set was
    opened with masks; otherwise, most sources are not searched for them. `is_thing`: whether each
    class is a thing, not stuff; empty if unknown. `channels`: the number of bands of the images,
    three for RGB.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    hints: Hints = Hints()
    notes: tuple[str, ...] = ()
    has_masks: bool = False
    channels: int = 3
    is_thing: tuple[bool, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def target(self, index: int) -> StoredTarget:
        """The objects of an image, without decoding the image: boxes are xyxy in pixels of the
        stored image, see `StoredTarget`."""

    def objects(self, index: int) -> StoredTarget:
        """The target without masks; override it if masks take time to decode."""
        target = self.target(index).copy()  # a data set may keep what it returned
        target.pop("masks", None)
        return target

    def compact_target(self, index: int) -> StoredTarget:
        """The target with compressed masks, `mask_counts`, for callers that need masks one by one,
        and not the memory of all, `[T, H, W]`."""
        return _compact(self.target(index))

    def stored_size(self, index: int) -> Size:
        """Height and width of an image; cheaper than its target if that is computed."""
        return self.target(index)["orig_size"]

    def image_id(self, index: int) -> int:
        """The id of an image; cheaper than its target if that is computed."""
        return self.target(index)["image_id"]

    def image_name(self, index: int) -> str:
        """The name of an image for users: its file name, or its id if it has no file."""
        return f"image {self.image_id(index)}"

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image, uint8 `[channels, H, W]`, three for RGB.

        Raises InputError if its file cannot be decoded.
        """

    def file_to_decode(self, index: int) -> Path | None:
        """The file whose pixels are those of `image(index)`, as stored. Training may decode it at a
        smaller size instead of calling `image`, which is faster. None: `image` is always called."""
        return None

    def with_channels(self, channels: int) -> Self:
        """The same data set, whose images are read with `channels` bands.

        Raises InputError if they have others.
        """
        if channels == self.channels:
            return self
        text = f"its images have {self.channels} channels, but the model takes {channels}"
        remedy = f"train a model with --channels {self.channels}"
        raise InputError(text, where=self.name, remedy=remedy)

    def sample(self, index: int) -> tuple[Tensor, StoredTarget]:
        """Image and target together; cheaper if both come from one computation."""
        return self.image(index), self.target(index)

    def max_objects(self) -> int:
        """The maximum number of objects in an image, without crowds."""
        most = 0
        for index in range(len(self)):
            is_object = ~self.objects(index)["iscrowd"]
            most = max(most, int(is_object.sum()))
        return most

    def compact_sample(self, index: int) -> tuple[Tensor, StoredTarget]:
        """Image and compact target together."""
        image, target = self.sample(index)
        return image, _compact(target)

    def __getitem__(self, index: int) -> tuple[Tensor, StoredTarget]:
        return self.sample(index)

    def _position(self, index: int) -> int:
        """`index` as a non-negative index. Raises IndexError if it is out of range."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)} in {self.name}")
        return index % len(self)


def _compact(target: StoredTarget) -> StoredTarget:
    """The target with compressed masks, if it has masks."""
    if "masks" not in target:
        return target
    compact = target.copy()  # a data set may keep what it returned
    compact["mask_counts"] = encode(target["masks"])
    del compact["masks"]
    return compact


def spread_indices(count: int, size: int) -> list[int]:
    """At most `count` of the indices below `size`, evenly spread."""
    shown = min(count, size)
    return [number * size // shown for number in range(shown)]
