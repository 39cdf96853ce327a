"""The objects of a data set, which detections are compared with, and whether all of them have
masks.

Shapes: N images, A objects, C classes. Boxes are xyxy in pixels of the original image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redetr.data import DetectionDataset
from redetr.data.formats.digits import DigitsDataset
from redetr.data.formats.folder import AnnotatedDataset
from redetr.data.own_data import sampled_indices
from redetr.masks import areas, box_rle, encode
from redetr.structures import StoredTarget
from redetr.wording import counted

_NO_MASKS = "the data set has no masks"


def holds_masks(dataset: DetectionDataset) -> bool:
    """Whether the targets of a data set hold masks that can be measured: its source states those of
    all objects, and it was opened for them. Of a user's own data set, only the first target with an
    object is looked at; `TruthObjects` knows all of them."""
    if isinstance(dataset, AnnotatedDataset):
        masks = dataset.annotations.masks
        return masks is not None and len(dataset) > 0 and not dataset.without_mask().any()
    for index in range(len(dataset)):
        target = dataset.target(index)
        if len(target["labels"]):
            return "masks" in target
    return False


def mask_gaps(dataset: DetectionDataset) -> str:
    """Which objects have no mask, in a sentence; empty if all have one. Of a user's own data set,
    up to 1,000 targets are looked at."""
    if isinstance(dataset, AnnotatedDataset):
        annotations = dataset.annotations
        if annotations.masks is None:
            return _NO_MASKS
        missing = dataset.without_mask()
        if not missing.any():
            return ""
        first = int(annotations.image_of()[missing.argmax()])
        return _without_masks(int(missing.sum()), len(missing), dataset.image_name(first))
    if isinstance(dataset, DigitsDataset):  # 20,000 scenes, of which each digit has a mask
        return "" if dataset.masks else _NO_MASKS
    masks = _TruthMasks()
    for index in sampled_indices(dataset):
        masks.add(dataset.target(index), dataset.image_name(index))
    return masks.why_none()


@dataclass(frozen=True, eq=False)
class TruthObjects:
    """The objects of N images, A of them, as a data set states them."""

    image_ids: NDArray[np.int64]  # [N], in the order of the data set
    class_names: tuple[str, ...]
    image: NDArray[np.int64]  # [A], counts the images from 0
    labels: NDArray[np.int64]  # [A]
    boxes: NDArray[np.floating]  # [A, 4]
    area: NDArray[np.floating]  # [A]
    iscrowd: NDArray[np.bool_]  # [A]
    # both are None where the data set does not state the masks of all objects
    masks: list[bytes] | None = None  # A, compressed as in `DatasetDetections`
    image_sizes: NDArray[np.int64] | None = None  # [N, 2] height and width of the stored images
    why_no_masks: str = ""  # a sentence on the objects without a mask; empty if there are masks

    @classmethod
    def from_dataset(cls, dataset: DetectionDataset) -> "TruthObjects":
        """The objects of a data set, with masks if its targets hold them; reads no image."""
        if holds_masks(dataset) or not isinstance(dataset, AnnotatedDataset):
            # Masks that are stored compressed stay so.
            targets = (dataset.compact_target(i) for i in range(len(dataset)))
            return cls.from_targets(targets, dataset.class_names)
        source = dataset.annotations
        return cls(
            image_ids=source.ids,
            class_names=source.class_names,
            image=source.image_of(),
            labels=source.labels,
            boxes=source.boxes,
            area=source.area,
            iscrowd=source.iscrowd,
            why_no_masks=mask_gaps(dataset),
        )

    @classmethod
    def from_targets(
        cls, targets: Iterable[StoredTarget], class_names: Sequence[str]
    ) -> "TruthObjects":
        """The objects in `targets`, with masks if all objects have them.

        An object without a mask cannot be matched by one, and would count as missed; without it, a
        mask that is predicted for it would count as wrong.
        """
        ids, counts, sizes = [], [], []
        boxes, labels, area, iscrowd = [], [], [], []
        masks = _TruthMasks()
        for target in targets:
            ids.append(target["image_id"])
            counts.append(len(target["labels"]))
            sizes.append(target["orig_size"])
            boxes.append(target["boxes"])
            labels.append(target["labels"])
            area.append(target["area"])
            iscrowd.append(target["iscrowd"])
            masks.add(target, f"image {target['image_id']}")
        why_no_masks = masks.why_none()
        return cls(
            image_ids=np.array(ids, np.int64),
            class_names=tuple(class_names),
            image=np.arange(len(ids)).repeat(counts),
            labels=_joined(labels).astype(np.int64),
            boxes=_joined(boxes).reshape(-1, 4),
            area=_joined(area),
            iscrowd=_joined(iscrowd).astype(bool),
            masks=None if why_no_masks else masks.counts,
            image_sizes=None if why_no_masks else np.array(sizes, np.int64),
            why_no_masks=why_no_masks,
        )

    def counts(self) -> NDArray[np.int64]:
        """Objects of each class, crowds not counted, `[C]`."""
        return np.bincount(self.labels[~self.iscrowd], minlength=len(self.class_names))


class _TruthMasks:
    """Collects the masks of objects, target by target, and counts the objects without one."""

    def __init__(self) -> None:
        self.counts: list[bytes] = []  # of each object, compressed; empty for a missing one
        self._num_objects = 0
        self._num_missing = 0
        self._first = ""  # the image of the first object without a mask
        self._any_masks = False

    def add(self, target: StoredTarget, image_name: str) -> None:
        """Adds a target. The box of a crowd without a mask serves as one."""
        num_objects = len(target["labels"])
        is_crowd = target["iscrowd"]
        is_known = torch.zeros(num_objects, dtype=torch.bool)
        counts = [b""] * num_objects
        if "masks" in target:
            counts = encode(target["masks"])
        elif "mask_counts" in target:
            counts = list(target["mask_counts"])
        if "masks" in target or "mask_counts" in target:
            self._any_masks = True
            is_known = torch.from_numpy(areas(counts, target["orig_size"]) > 0)
        for row in torch.nonzero(~is_known & is_crowd).flatten().tolist():
            counts[row] = box_rle(target["boxes"][row].tolist(), target["orig_size"])
        self.counts += counts
        num_missing = int((~is_known & ~is_crowd).sum())
        if num_missing and not self._num_missing:
            self._first = image_name
        self._num_objects += num_objects
        self._num_missing += num_missing

    def why_none(self) -> str:
        """Why there are not masks of all objects; empty if there are."""
        if not self._any_masks:
            return _NO_MASKS
        if not self._num_missing:
            return ""
        return _without_masks(self._num_missing, self._num_objects, self._first)


def _without_masks(num_missing: int, num_objects: int, first: str) -> str:
    """A sentence on objects without a mask, of which `first` is the image of the first one."""
    verb = "has" if num_missing == 1 else "have"
    objects = f"{num_missing:,} of {counted(num_objects, 'object')}"
    return f"{objects} {verb} no mask (the first in {first})"


def _joined(parts: list[Tensor]) -> NDArray[np.float64]:
    """All parts one after the other; float64 holds their values exactly."""
    if not parts:
        return np.zeros(0)
    return torch.cat(parts).double().numpy()
