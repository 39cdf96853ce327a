"""The data structures that the parts exchange: targets, batches, model outputs.

Shape letters, used everywhere: B images, Q queries, C classes (channels where H and W follow),
L decoder layers, T boxes of an image, D width of the model, H W height and width, S flattened
positions of all feature levels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType, NotRequired, Self, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from redetr.choices import ClassLoss, ImageSize

Size = tuple[int, int]  # height, width in px
ScoreFunction = Literal["softmax", "sigmoid"]  # how logits become scores
# Boxes as a model sees them. A type that `Tensor` does not pass for: otherwise a type checker would
# take a `StoredTarget` for a `Target`, which has the same keys.
RelativeBoxes = NewType("RelativeBoxes", Tensor)  # cxcywh, fractions of the unpadded image


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on `device`. Those of the host are pinned first, so that their copy to a GPU queues
    behind its work: from memory that is not pinned, the host would wait for that."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class StoredTarget(TypedDict):
    """The objects of one image as a data set returns them; transforms turn it into a `Target`."""

    boxes: Tensor  # [T, 4] float32, xyxy in pixels of the stored image
    labels: Tensor  # [T] int64 in [0, C)
    image_id: int
    orig_size: Size  # of the stored image
    size: Size  # the same
    iscrowd: Tensor  # [T] bool; evaluation ignores detections in crowds, training drops crowds
    area: Tensor  # [T] float32, pixels of the stored image
    # [T, H, W] bool, pixels of the stored image; an empty mask means that it is not known
    masks: NotRequired[Tensor]
    # the same, compressed (see `masks.py`): what `DetectionDataset.compact_target` has instead
    mask_counts: NotRequired[list[bytes]]


class Target(TypedDict):
    """The objects of one image, as criteria and matchers expect them."""

    boxes: RelativeBoxes  # [T, 4] float32
    labels: Tensor  # [T] int64 in [0, C)
    image_id: int
    orig_size: Size  # of the stored image
    size: Size  # that the model sees, without padding
    iscrowd: Tensor  # [T] bool, all False
    area: Tensor  # [T] float32, pixels of the stored image
    seed: NotRequired[int]  # of random numbers that belong to this sample, such as denoising's
    masks: NotRequired[Tensor]  # [T, h, w] bool, of `size`; an empty one is not known


class Outputs(TypedDict):
    """The result of `model(images, mask)`.

    The last decoder layer is on top, the earlier ones are in `aux_outputs`.
    """

    # [B, Q, C] (sigmoid variants), or [B, Q, C + 1] (softmax variants, "no object" last)
    pred_logits: Tensor
    pred_boxes: Tensor  # [B, Q, 4] cxcywh, fractions of the unpadded image
    aux_outputs: NotRequired[list["Outputs"]]  # L - 1 entries, first layer first
    pre_outputs: NotRequired["Outputs"]  # D-FINE: what the first layer proposes, before its edges
    # two-stage variants: proposals of the encoder, one at every position (fast variants) or the Q
    # best (RT-DETR, D-FINE)
    enc_outputs: NotRequired["Outputs"]
    pred_masks: NotRequired[Tensor]  # [B, Q, H / 4, W / 4] logits, over the padded canvas
    # masks_of(images, queries): the logits [N, H / 4, W / 4] of chosen queries; both arguments [N]
    # are indices, of the image in the batch and of the query in the image
    masks_of: NotRequired[Callable[[Tensor, Tensor], Tensor]]
    # what masks are products of, for losses that need those of matched queries only: [B, Q, E] and
    # [B, E, H / 4, W / 4]
    mask_embed: NotRequired[Tensor]
    pixel_embed: NotRequired[Tensor]
    states: NotRequired[Tensor]  # [B, Q, D] of the last layer, within a model that makes masks
    canvas: NotRequired[Size]  # of the padded images, which masks cover
    # D-FINE, see `edges.py`: logits of the bins of each edge, [B, Q, 4 * N], and the boxes from
    # which edges move, [B, Q, 4]
    edge_logits: NotRequired[Tensor]
    first_boxes: NotRequired[Tensor]
    # in training with denoising: the same of the noisy queries, see `denoising.py`
    denoising: NotRequired["Outputs"]


@dataclass(frozen=True)
class LossConfig:
    """The matching costs and loss weights of a model variant; the defaults are the original
    DETR's."""

    # "softmax": cross-entropy with a "no object" class; "sigmoid": binary cross-entropy towards the
    # IoU of the matched box
    scores: ScoreFunction = "softmax"
    # costs of matching
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    # weights of the losses, by their names in `SetCriterion`
    loss_ce: float = 1.0
    loss_bbox: float = 5.0
    loss_giou: float = 2.0
    eos_coef: float = 0.1  # softmax: weight of "no object"
    # whether outputs hold the encoder's proposals (`enc_outputs`), which are matched and judged
    # like a layer of the decoder
    proposals: bool = False
    denoising: int = 0  # groups of noisy queries in training, see `denoising.py`
    class_loss: ClassLoss = "mal"  # sigmoid: see `losses.py`
    # edges of D-FINE, see `edges.py`
    loss_fgl: float = 0.0  # fine-grained localisation
    loss_ddf: float = 0.0  # distillation of queries with an object
    loss_ddn: float = 0.0  # and of those with none
    reg_scale: float = 4.0  # that of the model
    # masks, see `mask_losses.py`
    loss_mask: float = 0.0
    loss_dice: float = 0.0
    mask_region: Literal["canvas", "crops"] = "crops"  # the whole canvas, or crops around objects

    @property
    def has_masks(self) -> bool:
        """Whether the losses of masks are part of the loss."""
        return self.loss_mask + self.loss_dice > 0

    @property
    def has_edges(self) -> bool:
        """Whether the losses of edges are part of the loss."""
        return self.loss_fgl + self.loss_ddf + self.loss_ddn > 0


class DetectionModel(nn.Module):
    """The interface that the rest of the library expects of a model.

    `forward(images, mask=None)` returns `Outputs`. `images` are float `[B, C, H, W]`, normalised as
    by `data.transforms.normalize`; `mask` is bool `[B, H, W]`, True at padding. A model that can be
    trained with denoising takes `NoisyQueries` as a third argument.
    """

    num_classes: int
    num_queries: int
    loss_config: LossConfig
    # whether outputs hold what only the loss needs: earlier layers, all of the encoder's proposals
    aux_loss: bool
    # images keep their aspect ratio, or are stretched to a square
    resize: Literal["aspect", "square"]
    image_size: int  # default of the shorter side ("aspect") or of the side ("square"), px
    # the size with which the weights were trained, where it is known
    trained_size: ImageSize | None = None
    max_size: int | None  # longer side at most ("aspect"), px
    frozen: tuple[str, ...] = ()  # paths of the modules that are not trained
    # where the weights, or those that training began with, come from, and their licence, in words
    weights_from: str = "random weights"
    has_masks: bool = False  # whether outputs hold `pred_masks`
    channels: int = 3  # of the images it takes; 3 = RGB
    # whether `forward` takes `all_masks`: False leaves masks to `masks_of`, which the loss and
    # prediction ask for those of the queries that need one
    masks_on_demand: bool = False
    # whether it is a panoptic DETR: masks are decided as in the original, see `panoptic.py`
    is_panoptic: bool = False
    # of each class, whether it counts single objects or is stuff such as sky; empty: all are things
    is_thing: tuple[bool, ...] = ()

    def train(self, mode: bool = True) -> Self:
        """Sets training mode, in which the BatchNorm of frozen parts keeps its statistics."""
        super().train(mode)
        for path in self.frozen:
            for module in self.get_submodule(path).modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    @property
    def max_detections(self) -> int:
        """The most detections of an image that are kept: COCO's 100, or the number of queries if
        that is larger."""
        return max(100, self.num_queries)


@dataclass
class Batch:
    """Images padded on the right and at the bottom to one canvas, and the objects in them."""

    images: Tensor  # [B, channels, H, W] float, 3 channels for RGB
    mask: Tensor  # [B, H, W] bool, True = padding
    targets: list[Target] = field(default_factory=list)  # empty in prediction
    sizes: list[Size] = field(default_factory=list)  # of the images without padding

    def __len__(self) -> int:
        return len(self.images)

    @property
    def canvas(self) -> Size:
        """Height and width of the padded images."""
        height, width = self.images.shape[-2:]
        return height, width

    @property
    def padding(self) -> Tensor | None:
        """The mask, or None if every image fills the canvas.

        It is decided from the sizes, because reading the mask would wait for the device.
        """
        if self.sizes and all(size == self.canvas for size in self.sizes):
            return None
        return self.mask


def collate(
    images: Sequence[Tensor],
    canvas: Size | None = None,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    convert: Callable[[Tensor], Tensor] | None = None,
) -> Batch:
    """A `Batch` of `[C, h, w]` tensors padded with zeros to the largest size, or to `canvas`.

    `device` and `dtype` are by default those of the first image. `convert` is applied to each image
    on the device, before padding; the copy to the device does not wait if the image is pinned.

    Raises ValueError for an empty list, an image of another shape than `[C, h, w]` with the same C
    for all, or one larger than the canvas.
    """
    if not len(images):
        raise ValueError("collate needs at least one image")
    channels = len(images[0])
    for i, image in enumerate(images):
        if image.ndim != 3 or len(image) != channels:
            raise ValueError(f"image {i} is {list(image.shape)}, expected [{channels}, h, w]")
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    height, width = _fitting_canvas(sizes, canvas)
    first = images[0]
    device = first.device if device is None else device
    dtype = first.dtype if dtype is None else dtype

    shape = (len(images), channels, height, width)
    padded = torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format).zero_()
    mask = torch.ones(len(images), height, width, dtype=torch.bool, device=device)
    for i, image in enumerate(images):
        on_device = image.to(device, non_blocking=True)
        if convert is not None:
            on_device = convert(on_device)
        h, w = sizes[i]
        padded[i, :, :h, :w] = on_device
        mask[i, :h, :w] = False
    return Batch(padded, mask, sizes=sizes)


def _fitting_canvas(sizes: list[Size], canvas: Size | None) -> Size:
    """The smallest canvas that holds all sizes, or the given one if it does."""
    height = max(h for h, _ in sizes)
    width = max(w for _, w in sizes)
    if canvas is None:
        return height, width
    if canvas[0] < height or canvas[1] < width:
        raise ValueError(
            f"an image of {height}x{width} does not fit the canvas {canvas[0]}x{canvas[1]}"
        )
    return canvas


@dataclass(frozen=True, eq=False)
class DatasetDetections:
    """All detections on a data set, one after the other.

    Raises ValueError for arrays that do not fit together.
    """

    image_index: NDArray[np.int64]  # [N] counts the images of the data set from 0
    labels: NDArray[np.int64]  # [N] in [0, C)
    scores: NDArray[np.floating]  # [N]
    boxes: NDArray[np.floating]  # [N, 4] xyxy in pixels of the stored image
    # N, of the stored image: run lengths as COCO compresses them; None if the model has no masks
    masks: list[bytes] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.masks is not None and len(self.masks) != count:
            raise ValueError(f"{len(self.masks)} masks for {count} detections")
        arrays = (self.image_index, self.labels, self.scores, self.boxes)
        shapes = [array.shape for array in arrays]
        if shapes != [(count,), (count,), (count,), (count, 4)]:
            listed = ", ".join(str(shape) for shape in shapes)
            raise ValueError(
                f"the shapes of image_index, labels, scores and boxes do not fit together: {listed}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def concatenate(cls, parts: Sequence["DatasetDetections"]) -> "DatasetDetections":
        """All detections of the parts; none if there are no parts.

        Raises ValueError where some have masks and others, with detections, have none: then there
        are fewer masks than detections.
        """
        image_index = [np.zeros(0, np.int64)]
        labels = [np.zeros(0, np.int64)]
        scores = [np.zeros(0, np.float32)]
        boxes = [np.zeros((0, 4), np.float32)]
        masks: list[bytes] = []
        has_masks = [part.masks is not None for part in parts]
        for part in parts:
            image_index.append(part.image_index)
            labels.append(part.labels)
            scores.append(part.scores)
            boxes.append(part.boxes)
            masks += part.masks or []
        return cls(
            image_index=np.concatenate(image_index),
            labels=np.concatenate(labels),
            scores=np.concatenate(scores),
            boxes=np.concatenate(boxes),
            masks=masks if any(has_masks) else None,
        )

    def keep(self, which: NDArray) -> "DatasetDetections":
        """The detections where this mask is True, or at these indices."""
        masks = None
        if self.masks is not None:
            kept = np.arange(len(self))[which]
            masks = [self.masks[row] for row in kept.tolist()]
        return DatasetDetections(
            image_index=self.image_index[which],
            labels=self.labels[which],
            scores=self.scores[which],
            boxes=self.boxes[which],
            masks=masks,
        )
