"""What every data set looks like from inside: uint8 images, boxes in xyxy pixels, contiguous
labels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from redetr.choices import Augment
from redetr.structures import Target


@dataclass(frozen=True)
class Hints:
    """What suits a data set when the user says nothing; None leaves the choice to the recipe."""

    image_size: int | None = None  # longer side in pixels
    native_size: int | None = (
        None  # longer side of the stored images: the fast forms do not enlarge them by default
    )
    augment: Augment | None = None
    num_queries: int | None = None  # enough for the most objects in what the model sees of an image


class DetectionDataset(ABC, Dataset[tuple[Tensor, Target]]):
    """Images with boxes. Label `i` is called `class_names[i]` and has the id `category_ids[i]` in
    the source.

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
        """The objects of one image, boxes xyxy in pixels of the stored image, which is not decoded
        for it."""

    def image_id(self, index: int) -> int:
        """The id of one image; cheaper than its target where that is computed."""
        return self.target(index)["image_id"]

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image, uint8 `[3, H, W]` RGB. Raises InputError if its file cannot be decoded."""

    def sample(self, index: int) -> tuple[Tensor, Target]:
        """Image and target together; cheaper than asking for each where both come from one
        computation."""
        return self.image(index), self.target(index)

    def require_whole_images(self) -> None:
        """Raises InputError for an image file that is cut short, so that it is not met in the
        middle of a night."""

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
