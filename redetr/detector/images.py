"""Images of any kind that Python programs have, as tensors."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from redetr.data.images import decoder_errors, upright
from redetr.detector.sources import read_source
from redetr.errors import InputError
from redetr.models.channels import RGB
from redetr.wording import counted

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor
ImageList = list[Any] | tuple[Any, ...]  # of `ImageLike`


def as_image(image: ImageLike, channels: int = 3) -> Tensor:
    """An image of any kind as uint8 `[channels, H, W]`. Raises InputError."""
    if isinstance(image, (str, os.PathLike)):
        return read_source(os.fspath(image), channels)
    if channels == 1 and isinstance(image, Image.Image):
        return upright(image, channels)
    if channels != RGB:
        return _of_bands(image, channels)
    if isinstance(image, Image.Image):
        return upright(image)
    if isinstance(image, np.ndarray):
        channels_of_array = image.shape[2:]
        if (
            image.dtype != np.uint8
            or not image.size
            or image.ndim < 2
            or channels_of_array not in ((), (3,), (4,))
        ):
            raise InputError(
                "an image array must be uint8 [H, W, 3] (RGB), [H, W] (grey) or [H, W, 4] (RGBA), "
                f"this one is {image.dtype} {list(image.shape)}"
            )
        return upright(Image.fromarray(image))
    if not isinstance(image, Tensor):
        raise _not_an_image(image)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise InputError(
            f"an image tensor must be uint8 [3, H, W], this one is {image.dtype} "
            f"{list(image.shape)}"
        )
    return image.cpu()


def _of_bands(image: Image.Image | np.ndarray | Tensor, channels: int) -> Tensor:
    """An image for a model that does not take RGB, as uint8 `[channels, H, W]`. Raises InputError
    for something that is not an image, or has another number of channels."""
    if isinstance(image, Image.Image):
        with decoder_errors("this image", "open another one"):
            image = np.array(ImageOps.exif_transpose(image))
    if not isinstance(image, np.ndarray | Tensor):
        raise _not_an_image(image)
    given = f"{image.dtype} {list(image.shape)}"
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        bands_last = np.atleast_3d(image).copy()  # [H, W, channels]
        image = torch.from_numpy(bands_last).permute(2, 0, 1)
    if (
        not isinstance(image, Tensor)
        or image.dtype != torch.uint8
        or image.ndim != 3
        or len(image) != channels
        or not image.numel()
    ):
        raise InputError(
            f"this model takes uint8 images of {counted(channels, 'channel')} (arrays "
            f"[H, W, {channels}], tensors [{channels}, H, W]), this one is {given}"
        )
    return image.cpu()


def _not_an_image(image: object) -> InputError:
    return InputError(
        f"an image cannot be of type {type(image).__name__}: give a path, PIL image, array or "
        "tensor, or a list of these"
    )


def as_picture(image: ImageLike) -> Tensor:
    """An image that `predict` was given, to be drawn on, as uint8 `[C, H, W]`. It may have any
    number of channels, whatever the model takes. Raises InputError."""
    if isinstance(image, Tensor):
        is_picture = image.dtype == torch.uint8 and image.ndim == 3 and image.numel() > 0
        if is_picture:
            return image.cpu()
    if isinstance(image, np.ndarray) and image.ndim == 3:
        has_bands = image.dtype == np.uint8 and image.size > 0 and image.shape[2] not in (3, 4)
        if has_bands:
            return torch.from_numpy(image.copy()).permute(2, 0, 1)
    return as_image(image)
