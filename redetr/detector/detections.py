"""The objects of an image, to be selected, drawn, and converted to other formats."""

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redetr.choices import LabelChoice, MaskChoice
from redetr.class_names import chosen_classes
from redetr.detector.images import ImageLike, as_picture
from redetr.errors import DivergedError, InputError, import_failure
from redetr.masks import CroppedMasks, MaskCrop, crops_of, encode
from redetr.outlines import polygons_without_holes
from redetr.pages.drawing import NO_COLOR, Color, class_color, draw_boxes, score_color
from redetr.postprocess import decode, decode_masks
from redetr.structures import Batch, Outputs, ScoreFunction, Size

if TYPE_CHECKING:
    import supervision

_SHOWN_PX = 1024  # at most, in a notebook
_LISTED = 5  # detections, in a text


class Detection(NamedTuple):
    """One object, in plain values."""

    name: str  # of its class
    score: float
    box: tuple[float, float, float, float]  # left, top, right, bottom, pixels of the original image
    label: int  # in [0, C)


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best score first. All tensors are on the host.

    Iterating yields a `Detection` for each object. Indexing with a number, a slice, a sequence of
    numbers or a bool mask `[N]` returns `Detections` of the selected objects.
    """

    scores: Tensor  # [N] float32
    labels: Tensor  # [N] int64 in [0, C)
    boxes: Tensor  # [N, 4] xyxy, pixels of the original image, inside it
    class_names: tuple[str, ...]  # C names
    category_ids: tuple[int, ...]  # C ids, as the annotation files number the classes
    image_size: tuple[int, int]  # height, width of the original image
    # uint8 [channels, H, W], kept if `predict` was given a single image; notebooks show it
    image: Tensor | None = None
    # [N, H, W] bool, pixels of the original image; `CroppedMasks` if it was divided into tiles;
    # None = boxes only
    masks: Tensor | CroppedMasks | None = None
    # [N] int64, identities in a video, from 1 on, 0 = none yet; None = without tracking
    track_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for name, score, box, label in zip(
            self.names, self.scores.tolist(), self.boxes.tolist(), self.labels.tolist(), strict=True
        ):
            yield Detection(name, score, tuple(box), label)

    def __getitem__(
        self, selection: int | slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor
    ) -> "Detections":
        """The selected detections, always as `Detections`. Raises IndexError for a number out of
        range."""
        if isinstance(selection, Tensor):  # NumPy would read a mask of one detection as a number
            selection = selection.numpy()
        # NumPy accepts all of these, and slices with negative steps.
        rows = np.arange(len(self))[selection]
        keep = torch.from_numpy(np.ascontiguousarray(rows))  # [N], also for a single number
        return replace(
            self,
            scores=self.scores[keep],
            labels=self.labels[keep],
            boxes=self.boxes[keep],
            masks=None if self.masks is None else self.masks[keep],
            track_ids=None if self.track_ids is None else self.track_ids[keep],
        )

    def __repr__(self) -> str:
        height, width = self.image_size
        kind = "" if self.masks is None else " with masks"
        lines = [f"Detections: {len(self)}{kind} in an image of {width}x{height} px"]
        for name, score, box, _ in self[:_LISTED]:
            rounded = [round(round(value, 3)) for value in box]
            lines.append(f"  {name} {round(score, 6):.2f} {rounded}")
        if len(self) > _LISTED:
            lines.append(f"  and {len(self) - _LISTED} more")
        return "\n".join(lines)

    def _repr_png_(self) -> bytes | None:
        """The annotated image as PNG, for notebooks. None if there is no image; a notebook then
        shows the text."""
        if self.image is None:
            return None
        picture = self.draw()
        picture.thumbnail((_SHOWN_PX, _SHOWN_PX))
        with io.BytesIO() as file:
            picture.save(file, "PNG")
            return file.getvalue()

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def with_track_ids(self, track_ids: Tensor) -> "Detections":
        """The same detections with these identities, [N] int64."""
        return replace(self, track_ids=track_ids)

    def above(self, threshold: float) -> "Detections":
        """Only the detections whose score is `threshold` or more."""
        return self[self.scores >= threshold]

    def of_classes(self, names: str | Collection[str]) -> "Detections":
        """Only the detections of these classes, or of the class with this name. Raises InputError
        for a name that the model does not have."""
        kept = chosen_classes(names, self.class_names)
        return self[[name in kept for name in self.names]]

    def to_dict(self, masks: MaskChoice = "rle") -> dict[str, Any]:
        """A dict for JSON, with `image_size` (height, width) and `detections`.

        Each detection has `label` (the name of its class), `category_id`, `score` and `box` (xyxy,
        pixels of the original image). With masks, it also has `segmentation` (see `segmentations`).
        With tracking, it also has `track_id`, which is None as long as the object has no identity.
        """
        segmentations = self.segmentations(masks)
        rows = []
        for (name, score, box, label), segmentation in zip(self, segmentations, strict=True):
            row = {
                "label": name,
                "category_id": self.category_ids[label],
                "score": round(score, 6),
                "box": [round(value, 3) for value in box],
            }
            if segmentation is not None:
                row["segmentation"] = segmentation
            rows.append(row)
        if self.track_ids is not None:
            for row, track_id in zip(rows, self.track_ids.tolist(), strict=True):
                row["track_id"] = track_id or None
        return {"image_size": list(self.image_size), "detections": rows}

    def segmentations(self, masks: MaskChoice = "rle") -> list[Any]:
        """The mask of each detection in COCO's format; None for each if there are no masks, or for
        "none".

        "rle" gives compressed RLE, `{"size": [height, width], "counts": text}`. "polygons" gives
        lists of x1, y1, x2, y2, ... in pixels, which together cover exactly the pixels of the mask.
        """
        if self.masks is None or masks == "none":
            return [None] * len(self)
        if masks == "rle":
            size = list(self.image_size)
            counts = [text.decode("ascii") for text in encode(self.masks)]
            return [{"size": size, "counts": text} for text in counts]
        all_polygons = []
        for pixels, top, left in crops_of(self.masks):
            polygons = polygons_without_holes(pixels.numpy())
            shift = np.array([left, top])
            all_polygons.append([(polygon + shift).ravel().tolist() for polygon in polygons])
        return all_polygons

    def mask_image(self) -> Image.Image:
        """The masks as one grey image: 0 is background, i + 1 belongs to detection i.

        Where masks overlap, the one with the better score is on top. The image has 8 bits, or 16
        from 256 detections on. Raises InputError if there are no masks.
        """
        if self.masks is None:
            raise InputError("the detections have no masks: the model predicts only boxes")
        numbers = torch.zeros(self.image_size, dtype=torch.int32)
        crops = list(crops_of(self.masks))
        for i in reversed(range(len(self))):
            crops[i].paint(numbers, i + 1)
        depth = np.uint8 if len(self) < 256 else np.uint16
        return Image.fromarray(numbers.numpy().astype(depth))

    def to_coco(self, image_id: int, masks: MaskChoice = "rle") -> list[dict[str, Any]]:
        """Entries of a COCO results file: `category_id` as in the annotation files, `bbox` as xywh
        in pixels of the original image, and `segmentation` if there are masks."""
        entries = []
        segmentations = self.segmentations(masks)
        for (_, score, corners, label), segmentation in zip(self, segmentations, strict=True):
            left, top, right, bottom = corners
            xywh = (left, top, right - left, bottom - top)
            entry = {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": [round(value, 3) for value in xywh],
                "score": round(score, 6),
            }
            if segmentation is not None:
                entry["segmentation"] = segmentation
            entries.append(entry)
        return entries

    def to_supervision(self) -> "supervision.Detections":
        """The same detections as `supervision.Detections`, with class names in `data["class_name"]`
        and identities in `tracker_id`.

        Raises InputError if supervision cannot be imported.
        """
        try:
            import supervision
        except ImportError as error:
            text = f"supervision {import_failure(error, 'supervision')}"
            raise InputError(text, remedy='pip install "redetr[supervision]"') from error
        masks = self.masks.dense() if isinstance(self.masks, CroppedMasks) else self.masks
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            mask=None if masks is None else masks.numpy(),
            tracker_id=None if self.track_ids is None else self.track_ids.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(
        self,
        image: ImageLike | None = None,
        scale: int | None = None,
        *,
        labels: LabelChoice = "auto",
        line_width: int | None = None,
        within_px: int | None = None,
    ) -> Image.Image:
        """The image with its boxes and masks; small images are enlarged.

        `image` is the original image, as `predict` takes it, and rotated as there; by default, the
        one kept in `image`. `labels` ("auto": where there is room), `line_width` (px), `within_px`
        and `scale` are described in `draw_boxes`. With masks, each object has its own color. If the
        model has a single class, labels are scores, and colors show them, from dark blue for 0 to
        yellow for 1. Objects that are tracked in a video have their number in the label and keep
        their color; those without a number are grey.

        Raises InputError if there is no image, if what is given is none, or if it has another size.
        """
        image = self.image if image is None else image
        if image is None:
            raise InputError(
                "the detections of a list of images do not keep them: give draw the image"
            )
        picture = as_picture(image)
        self._require_size(picture)
        return draw_boxes(
            picture,
            self.boxes,
            self._tags(),
            self.scores.tolist(),
            self._colors(),
            scale,
            tags=labels,
            line_width=line_width,
            within_px=within_px,
            masks=self.masks,
        )

    def _tags(self) -> list[str]:
        """The label of each detection in an annotated image."""
        names = self.names
        if len(self.class_names) == 1:
            names = [""] * len(self)
        if self.track_ids is None:
            return names
        tags = []
        for name, track_id in zip(names, self.track_ids.tolist(), strict=True):
            number = f"#{track_id}" if track_id else ""
            tags.append(f"{name} {number}".strip())
        return tags

    def _colors(self) -> list[Color]:
        """The color of each detection in an annotated image."""
        if self.track_ids is not None:
            ids = self.track_ids.tolist()
            return [class_color(track_id) if track_id else NO_COLOR for track_id in ids]
        if self.masks is not None:  # neighbours of one class must differ
            return [class_color(i) for i in range(len(self))]
        if len(self.class_names) == 1:
            return [score_color(score) for score in self.scores.tolist()]
        return [class_color(label) for label in self.labels.tolist()]

    def _require_size(self, image: Tensor) -> None:
        """Raises InputError if the image `[C, H, W]` does not have the size `image_size`."""
        _, height, width = image.shape
        if (height, width) == self.image_size:
            return
        known_height, known_width = self.image_size
        raise InputError(
            f"detections of an image of {known_width}x{known_height} px cannot be drawn on one "
            f"of {width}x{height} px"
        )


def detections_of(
    outputs: Outputs,
    orig_sizes: Sequence[Size],
    score_function: ScoreFunction,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    top_k: int,
    threshold: float = 0.0,
    batch: Batch | None = None,
    is_panoptic: bool = False,
    crop_masks: bool = False,
) -> list[Detections]:
    """The `Detections` of each image with a score of `threshold` or more.

    `orig_sizes` are (height, width); `score_function` and `top_k` are described in `decode`. Boxes
    are xyxy in pixels of the original image, clipped to it. If the outputs have masks and `batch`
    is the batch that they belong to, detections have masks, as `CroppedMasks` with `crop_masks`;
    with `is_panoptic`, they are decided as in the original panoptic DETR. Synchronises once.
    Raises DivergedError for a score or box that is not finite.
    """
    has_masks = "pred_masks" in outputs or "masks_of" in outputs
    sizes = torch.tensor(orig_sizes, device=outputs["pred_logits"].device).reshape(-1, 2)
    scores, labels, boxes, queries = decode(outputs, sizes, score_function, top_k)
    # One tensor, so one copy to the host. fp32 represents every label below 2^24 exactly.
    columns = [boxes, scores[..., None], labels[..., None].float()]
    rows_of_images = torch.cat(columns, dim=-1).cpu()
    if not rows_of_images.isfinite().all():  # NaN is above no threshold, so it would find nothing
        raise DivergedError("a score or box is not finite: the model has diverged")
    detections = []
    gather = _cropped if crop_masks else _dense
    for i, (all_rows, orig_size) in enumerate(zip(rows_of_images, orig_sizes, strict=True)):
        rows = all_rows[all_rows[:, 4] >= threshold]
        masks: Tensor | CroppedMasks | None = None
        if batch is not None and has_masks:
            best_queries = queries[i, : len(rows)]  # rows are sorted by score
            groups = decode_masks(
                outputs, i, best_queries, batch.sizes[i], batch.canvas, orig_size, is_panoptic
            )
            masks = gather(groups, len(best_queries), orig_size)
        in_image = Detections(
            scores=rows[:, 4],
            labels=rows[:, 5].long(),
            boxes=rows[:, :4],
            class_names=tuple(class_names),
            category_ids=tuple(category_ids),
            image_size=orig_size,
            masks=masks,
        )
        detections.append(in_image)
    return detections


def _dense(groups: Iterator[Tensor], count: int, size: Size) -> Tensor:
    """The masks of all `groups`, bool `[n, H, W]`, of an image of this size: `[count, H, W]`.
    Joining the groups at the end would take twice the memory."""
    masks = torch.empty((count, *size), dtype=torch.bool)
    start = 0
    for group in groups:
        stop = start + len(group)
        masks[start:stop] = group
        start = stop
    return masks


def _cropped(groups: Iterator[Tensor], count: int, size: Size) -> CroppedMasks:
    """The same masks as their crops."""
    crops: list[MaskCrop] = []
    for group in groups:
        crops += crops_of(group)
    return CroppedMasks(tuple(crops), size)
