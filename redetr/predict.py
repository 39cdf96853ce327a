"""A trained model as something to ask: `load` a checkpoint of any kind, `predict` on images."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redetr.data.images import read_image
from redetr.data.loader import to_batch
from redetr.data.transforms import resizer
from redetr.distributed import pick_device
from redetr.errors import InputError
from redetr.evaluate import autocast, pick_precision
from redetr.models import build
from redetr.postprocess import Detections, detect
from redetr.structures import DetectionModel, Target
from redetr.weights import load_strictly, read_weights

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Detector:
    """A model with its class names and its image size."""

    def __init__(self, model: DetectionModel, class_names: Sequence[str], category_ids: Sequence[int], image_size: int,
                 device: str = "auto", precision: str = "fp32", trained_on: str | None = None,
                 val_fraction: float = 0.0):  # fmt: skip
        self.device = pick_device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.image_size = image_size
        self.dtype = pick_precision(precision, self.device)
        self.trained_on, self.val_fraction = trained_on, val_fraction

    @property
    def classes(self) -> list[tuple[int, str]]:
        """Category id and name of each label."""
        return list(zip(self.category_ids, self.class_names, strict=True))

    @torch.inference_mode()
    def predict(self, images: ImageLike | Sequence[ImageLike], threshold: float = 0.5) -> Any:
        """`Detections` of one image, or a list of them for a list of images.

        An image is a path, a PIL image, a uint8 array `[H, W, 3]` (RGB) or a uint8 tensor `[3, H, W]`. Lists are one
        batch. Raises InputError for something else or a file that cannot be read.
        """
        if isinstance(images, (list, tuple)):
            return self._predict([as_image(image) for image in images], threshold) if images else []
        return self._predict([as_image(images)], threshold)[0]  # type: ignore[arg-type]

    def _predict(self, images: list[Tensor], threshold: float) -> list[Detections]:
        resize = resizer(self.model.resize, self.image_size, self.model.max_size)
        samples = [(resize(image), _no_target(image)) for image in images]
        for image, target in samples:
            target["size"] = (image.shape[-2], image.shape[-1])
        batch = to_batch(samples, self.device)
        with autocast(self.device, self.dtype):
            outputs = self.model(batch.images, batch.padding)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return detect(
            outputs, sizes, self.model.loss_config.scores, self.class_names, self.category_ids, threshold=threshold
        )


def _no_target(image: Tensor) -> Target:
    size = (image.shape[-2], image.shape[-1])
    none = torch.zeros(0)
    return Target(boxes=none.view(0, 4), labels=none.long(), iscrowd=none.bool(), area=none, image_id=0,
                  orig_size=size, size=size)  # fmt: skip


def as_image(image: ImageLike) -> Tensor:
    """Anything that is an image as uint8 `[3, H, W]`. Raises InputError."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"an image array must be [H, W, 3], this one is {list(image.shape)}")
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise InputError(f"cannot take a {type(image).__name__} for an image: give a path, PIL image, array or tensor")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise InputError(f"an image tensor must be uint8 [3, H, W], this one is {image.dtype} {list(image.shape)}")
    return image


def find_images(sources: Sequence[str]) -> list[Path]:
    """The image files named by `sources`; folders are searched at all depths. Raises InputError if there are none."""
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"{source}: no images in this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise InputError(f"{source}: no such file or folder")
    return found


def load(
    source: str | os.PathLike, model: str | None = None, device: str = "auto", precision: str = "fp32"
) -> Detector:
    """A `Detector` from weights of any of these kinds:

    a redetr checkpoint (`last.pt`, `best.pt`: the averaged weights), `best.safetensors`, or a run folder; an official
    DETR checkpoint (`{"model": state_dict}`); a folder written by Transformers' `DetrForObjectDetection`; the hub name
    of such a folder (needs huggingface-hub).

    `model` names the form where the weights do not tell it: "detr_r50_dc5", "detr_r101_dc5". Nothing is unpickled but
    tensors and plain values. Raises InputError, naming the file, for everything that cannot be loaded.
    """
    weights = read_weights(source, model)
    origin = weights.origin
    if origin is None:
        raise InputError(f"{weights.path}: neither a redetr checkpoint nor an official one, there is no DETR in it; "
                         "if it is a backbone, train with --weights")  # fmt: skip
    net = build(origin.model, len(origin.class_names), **origin.options)
    load_strictly(net, weights)
    return Detector(net, origin.class_names, origin.category_ids, origin.image_size or net.image_size, device,
                    precision, origin.trained_on, origin.val_fraction)  # fmt: skip
