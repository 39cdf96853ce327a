"""What travels between the parts: targets, batches, model outputs.

Shape letters, used everywhere: B images, Q queries, C classes, L decoder layers, T boxes of an
image, D width of the model, H W height and width, S flattened positions of all feature levels.
"""

from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn


class Target(TypedDict):
    """The objects of one image.

    A data set yields `boxes` as xyxy in pixels of the original image; transforms turn them into
    cxcywh as fractions of the (unpadded) image that the model sees, which is what criteria and
    matchers take.
    """

    boxes: Tensor  # [T, 4] float32
    labels: Tensor  # [T] int64 in [0, C)
    image_id: int
    orig_size: tuple[int, int]  # height, width of the image file
    size: tuple[int, int]  # height, width that the model sees, without padding
    iscrowd: Tensor  # [T] bool; crowd boxes are ignored in evaluation and dropped before training
    area: Tensor  # [T] float32, pixels of the original image


class Outputs(TypedDict):
    """What `model(images, mask)` returns; the last decoder layer on top, the earlier ones in
    `aux_outputs`."""

    pred_logits: (
        Tensor  # [B, Q, C] (sigmoid forms) or [B, Q, C + 1] (softmax forms, "no object" last)
    )
    pred_boxes: Tensor  # [B, Q, 4] cxcywh, fractions of the unpadded image
    aux_outputs: NotRequired[list["Outputs"]]  # L - 1 entries, first layer first
    enc_outputs: NotRequired[
        "Outputs"
    ]  # two-stage forms: every position of the encoder as a proposal


@dataclass(frozen=True)
class LossConfig:
    """The costs and loss weights that belong to a form of the model. The defaults are the original
    DETR's.

    `scores="softmax"`: cross-entropy with a "no object" class of weight `eos_coef`.
    `scores="sigmoid"`: binary cross-entropy towards the IoU of the matched box. `proposals`:
    whether the outputs hold those of the encoder (`enc_outputs`), which are matched and judged like
    a layer of the decoder.
    """

    scores: Literal["softmax", "sigmoid"] = "softmax"
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    loss_ce: float = 1.0
    loss_bbox: float = 5.0
    loss_giou: float = 2.0
    eos_coef: float = 0.1
    proposals: bool = False


class DetectionModel(nn.Module):
    """What the rest of the library asks of a model; `forward(images, mask=None)` returns
    `Outputs`."""

    num_classes: int
    num_queries: int
    loss_config: LossConfig
    # whether outputs hold what only the loss needs: earlier layers, all of the encoder's proposals
    aux_loss: bool
    resize: Literal[
        "aspect", "square"
    ]  # images keep their aspect ratio, or are stretched to a square
    image_size: int  # default of the shorter side ("aspect") or of the side ("square"), px
    max_size: int | None  # longer side at most ("aspect"), px

    @property
    def most_detections(self) -> int:
        """How many are kept of an image: COCO's 100, or as many as there are queries."""
        return max(100, self.num_queries)


@dataclass
class Batch:
    """Images padded at the right and bottom to one canvas, and what is in them."""

    images: Tensor  # [B, 3, H, W] float
    mask: Tensor  # [B, H, W] bool, True = padding
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def padding(self) -> Tensor | None:
        """The mask, or None if the targets tell that no image is smaller: known without asking the
        device."""
        canvas = tuple(self.images.shape[-2:])
        full = self.targets and all(target["size"] == canvas for target in self.targets)
        return None if full else self.mask


def collate(images: list[Tensor], canvas: tuple[int, int] | None = None) -> Batch:
    """A `Batch` of `[3, h, w]` tensors padded with zeros to the largest height and width, or to
    `canvas` (H, W).

    Raises ValueError for an empty list or an image larger than the canvas.
    """
    if not images:
        raise ValueError("collate needs at least one image")
    height = max(image.shape[-2] for image in images)
    width = max(image.shape[-1] for image in images)
    if canvas is not None:
        if canvas[0] < height or canvas[1] < width:
            raise ValueError(
                f"an image of {height}x{width} does not fit the canvas {canvas[0]}x{canvas[1]}"
            )
        height, width = canvas
    padded = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
    for i, image in enumerate(images):
        h, w = image.shape[-2:]
        padded[i, :, :h, :w] = image
        mask[i, :h, :w] = False
    return Batch(padded, mask, [])
