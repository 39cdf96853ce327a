"""Your own augmentation: a `Compose` of Albumentations or of torchvision, or a function like it.

It is applied after the built-in augmentation, to an image of the size that the model sees, with its
boxes and masks, in its own format. If it returns an image of another size, that is resized, so the
size of a sample is known in advance. Random numbers are a function of (seed, epoch, image). Objects
that it does not return are removed.
"""

import copy
import importlib.util
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from redetr.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from redetr.data.transforms import Sample
from redetr.data.views import interleaved
from redetr.errors import InputError, first_line
from redetr.structures import RelativeBoxes, Target
from redetr.wording import counted

_SEEDS = 2**32  # of numpy, which Albumentations draws with
_LEAST_PX = 1.0  # sides of a box


class _Shown(NamedTuple):
    """An image with its objects, before or after the augmentation."""

    image: Tensor  # uint8 [C, h, w]
    boxes: Tensor  # [T, 4] float32, xyxy px
    rows: Tensor  # [T] int64, indices into the objects of the sample
    masks: Tensor | None  # [T, h, w] bool


class CustomAugmentation:
    """A `Compose` as a step from sample to sample."""

    def __init__(self, function: Callable[..., Any], source: str = ""):
        """`source` is its origin, `FILE.py:NAME`, from which other processes import it. Raises
        InputError if `function` cannot be used."""
        self._source = source
        self._name = source or "augment"
        if not callable(function):
            kind = type(function).__name__
            remedy = "give a Compose of Albumentations or of torchvision.transforms.v2"
            raise InputError(
                f"is a {kind}, which cannot be called", where=self._name, remedy=remedy
            )
        library = type(function).__module__.partition(".")[0]
        if library == "albumentations":
            function = _for_pixels(function, self._name)
        self._function = function
        self._apply = _albumentations if library == "albumentations" else _torchvision

    def __reduce__(self) -> Any:
        """Pickled as its source: a loader process that is not forked imports the file again."""
        if self._source:
            return load_augmentation, (self._source,)
        return super().__reduce__()

    def __call__(self, seed: int, sample: Sample) -> Sample:
        """The augmented sample. Raises InputError if the function fails, or does not return an
        8-bit image with its objects."""
        image, target = sample
        height, width = target["size"]
        sides = torch.tensor([width, height, width, height])
        boxes = (box_cxcywh_to_xyxy(target["boxes"]) * sides).clamp(min=0).minimum(sides)
        # A copy, because a function may work in place, and a data set may keep its images.
        shown = _Shown(image.clone(), boxes, torch.arange(len(boxes)), target.get("masks"))
        try:
            with _seeded(seed, self._function):
                result = self._apply(self._function, shown)
        except Exception as error:  # user code may raise anything
            reason = first_line(error)
            text = f"fails on image {target['image_id']} ({type(error).__name__}: {reason})"
            raise InputError(text, where=self._name) from error
        self._require_image(result.image, image)
        return _sample(result, target)

    def _require_image(self, image: Any, before: Tensor) -> None:
        if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.dim() != 3:
            kind = getattr(image, "dtype", type(image).__name__)
            text = f"returns an image of {kind}, not 8-bit pixels"
            remedy = "leave out normalisation and conversion: they come afterwards"
            raise InputError(text, where=self._name, remedy=remedy)
        if len(image) != len(before):
            text = f"returns {counted(len(image), 'channel')} instead of {len(before)}"
            raise InputError(text, where=self._name, remedy="keep the number of channels")


def load_augmentation(source: str) -> CustomAugmentation:
    """The augmentation NAME in the Python file of `FILE.py:NAME`, which is executed. Raises
    InputError if there is none."""
    path, colon, name = source.rpartition(":")
    if not colon or not name.isidentifier():
        text = f"--custom-augment {source}: not in the form FILE.py:NAME"
        raise InputError(text)
    file = Path(path)
    if not file.is_file():
        raise InputError("no such file", where=file, remedy="give FILE.py:NAME")
    # Otherwise, Albumentations would ask a server for its newest version.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None, "a file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # user code may raise anything
        raise InputError(f"{type(error).__name__}: {error}", where=file) from error
    if not hasattr(module, name):
        raise InputError(f"has no {name}", where=file, remedy="give the name of the Compose")
    return CustomAugmentation(getattr(module, name), source)


def _for_pixels(compose: Any, name: str) -> Any:
    """A copy of a Compose of Albumentations that takes boxes as xyxy in pixels, in whatever format
    the original takes them."""
    compose = copy.deepcopy(compose)
    processor = _box_processor(compose)
    if processor is not None:
        processor.params.format = "pascal_voc"
    elif _moves_pixels(compose):
        remedy = 'add bbox_params=A.BboxParams("pascal_voc") to the Compose'
        raise InputError("does not transform boxes", where=name, remedy=remedy)
    return compose


def _box_processor(compose: Any) -> Any:
    return getattr(compose, "processors", {}).get("bboxes")


def _moves_pixels(transform: Any) -> bool:
    """Whether a transform of Albumentations, or one inside it, moves pixels, and therefore
    boxes."""
    from albumentations import DualTransform

    inner = getattr(transform, "transforms", ())
    return isinstance(transform, DualTransform) or any(map(_moves_pixels, inner))


def _albumentations(compose: Any, shown: _Shown) -> _Shown:
    pixels = np.ascontiguousarray(shown.image.permute(1, 2, 0).numpy())
    processor = _box_processor(compose)
    if processor is None:
        result = compose(image=pixels)
        return shown._replace(image=_channels_first(result["image"]))
    rows = shown.rows.numpy()
    # An additional column identifies each box.
    inputs: dict[str, Any] = {
        "image": pixels,
        "bboxes": np.column_stack([shown.boxes.numpy(), rows]),
    }
    for field in processor.params.label_fields or ():
        inputs[field] = rows
    if shown.masks is not None and len(shown.masks):
        inputs["masks"] = shown.masks.numpy().astype(np.uint8)
    results = compose(**inputs)
    table = torch.from_numpy(np.asarray(results["bboxes"], np.float32).reshape(-1, 5))
    kept = table[:, 4].long()
    masks = shown.masks
    if "masks" in inputs:
        masks = torch.from_numpy(np.stack(results["masks"]))[kept].bool()
    return _Shown(_channels_first(results["image"]), table[:, :4], kept, masks)


def _channels_first(image: Any) -> Any:
    """An array `[h, w, C]` as a tensor `[C, h, w]`; a tensor from `ToTensorV2` is returned
    unchanged."""
    if not isinstance(image, np.ndarray):
        return image
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


@contextmanager
def _seeded(seed: int, function: Callable[..., Any]) -> Iterator[None]:
    """A context in which the random numbers of `function` begin at `seed`: its own, if it has some,
    and the global ones of PyTorch, NumPy and Python, which then continue where they were."""
    if hasattr(function, "set_random_seed"):  # that of Albumentations
        function.set_random_seed(seed % _SEEDS)
    numpy_state = np.random.get_state()  # noqa: NPY002 - functions of users draw from it
    python_state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed % _SEEDS)  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


def _torchvision(function: Callable[..., Any], shown: _Shown) -> _Shown:
    height, width = shown.image.shape[-2:]
    objects: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(
            shown.boxes,
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        ),
        "labels": shown.rows,
    }
    if shown.masks is not None:
        objects["masks"] = tv_tensors.Mask(shown.masks)
    image, objects = function(tv_tensors.Image(shown.image), objects)
    boxes = F.convert_bounding_box_format(
        objects["boxes"], new_format=tv_tensors.BoundingBoxFormat.XYXY
    )
    masks = objects["masks"].as_subclass(Tensor) if "masks" in objects else None
    if isinstance(image, Tensor):
        image = image.as_subclass(Tensor)
    return _Shown(image, boxes.as_subclass(Tensor), objects["labels"], masks)


def _sample(shown: _Shown, before: Target) -> Sample:
    """The sample from a result, resized to the size of the original sample."""
    height, width = shown.image.shape[-2:]
    size = before["size"]
    final_height, final_width = size
    limits = torch.tensor([width, height, width, height])
    corners = shown.boxes.clamp(min=0).minimum(limits)  # [T, 4] xyxy px
    scale = torch.tensor([final_width / width, final_height / height])
    sides = (corners[:, 2:] - corners[:, :2]) * scale
    is_kept = (sides >= _LEAST_PX).all(1)
    masks = shown.masks
    if masks is not None:
        was_unknown = ~before["masks"].flatten(1).any(1)
        is_kept &= masks.flatten(1).any(1) | was_unknown[shown.rows]
    rows = shown.rows[is_kept]
    fractions = corners[is_kept] / limits
    target = copy.copy(before)
    target["boxes"] = RelativeBoxes(box_xyxy_to_cxcywh(fractions))
    target["labels"] = before["labels"][rows]
    target["iscrowd"] = before["iscrowd"][rows]
    target["area"] = before["area"][rows]
    image = shown.image
    if (height, width) != size:
        image = F.resize(interleaved(image), list(size), antialias=True)
    if masks is not None:
        masks = masks[is_kept]
        if (height, width) != size and len(masks):
            resized = F.resize(masks.float(), list(size), antialias=True)
            masks = resized >= 0.5
        target["masks"] = masks.reshape(len(masks), *size)
    return image, target
