"""The objects of an image: selected, drawn, and turned into other formats."""

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from redetr.errors import InputError
from redetr.pages.drawing import draw_boxes
from redetr.postprocess import Kind, decode
from redetr.structures import Outputs

if TYPE_CHECKING:
    import supervision


_SHOWN_PX = 1024  # at most, in a notebook


class Detection(NamedTuple):
    """One object, in plain values."""

    name: str  # of its class
    score: float
    box: tuple[
        float, float, float, float
    ]  # left, top, right, bottom in pixels of the original image
    label: int  # in [0, C)


@dataclass(frozen=True, eq=False)
class Detections:
    """The objects found in one image, best score first. All tensors are on the host.

    Iterated, they give a `Detection` each; indexed by a number, a slice, numbers or a bool mask
    `[N]`, the `Detections` that this selects.
    """

    scores: Tensor  # [N] float32
    labels: Tensor  # [N] int64 in [0, C)
    boxes: Tensor  # [N, 4] xyxy, pixels of the original image, inside it
    class_names: tuple[str, ...]  # C names
    category_ids: tuple[int, ...]  # C ids, as the annotation files number the classes
    image_size: tuple[int, int]  # height, width of the original image
    image: Tensor | None = (
        None  # uint8 [3, H, W], of a single `predict`: a notebook then shows the picture
    )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        for name, score, box, label in zip(
            self.names, self.scores.tolist(), self.boxes.tolist(), self.labels.tolist(), strict=True
        ):
            yield Detection(name, score, tuple(box), label)

    def __getitem__(
        self, which: int | slice | Sequence[int] | Sequence[bool] | np.ndarray | Tensor
    ) -> "Detections":
        """Raises IndexError for what is not there."""
        # NumPy takes all of these, slices backwards too.
        keep = torch.from_numpy(np.ascontiguousarray(np.arange(len(self))[which]))
        return replace(
            self, scores=self.scores[keep], labels=self.labels[keep], boxes=self.boxes[keep]
        )

    def __repr__(self) -> str:
        height, width = self.image_size
        rows = self.to_dict()["detections"]
        lines = [
            f"  {row['label']} {row['score']:.2f} {[round(x) for x in row['box']]}"
            for row in rows[:5]
        ]
        more = [f"  and {len(rows) - 5} more"] if len(rows) > 5 else []
        return "\n".join(
            [f"Detections: {len(rows)} in an image of {width}x{height} px", *lines, *more]
        )

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the picture, if the image is known, else it takes the text."""
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

    def above(self, threshold: float) -> "Detections":
        """Only the detections whose score is `threshold` or more."""
        return self[self.scores >= threshold]

    def of_classes(self, names: Collection[str]) -> "Detections":
        """Only the detections of these classes."""
        return self[[name in names for name in self.names]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `image_size` (height, width), and `label` (name), `category_id`, `score`,
        `box` of each detection."""
        rows = [
            {
                "label": found.name,
                "category_id": self.category_ids[found.label],
                "score": round(found.score, 6),
                "box": [round(value, 3) for value in found.box],
            }
            for found in self
        ]
        return {"image_size": list(self.image_size), "detections": rows}

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Entries of a COCO results file: `category_id` as in the annotation files, `bbox` xywh in
        pixels."""
        entries = []
        for _, score, (x1, y1, x2, y2), label in self:
            bbox = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            category_id = self.category_ids[label]
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": bbox,
                    "score": round(score, 6),
                }
            )
        return entries

    def to_supervision(self) -> "supervision.Detections":
        """The same as `supervision.Detections`, class names in `data["class_name"]`.

        Raises InputError when supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            message = "supervision is not installed; it comes with: pip install redetr[supervision]"
            raise InputError(message) from error
        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(
        self, image: Image.Image | Tensor | None = None, scale: int | None = None
    ) -> Image.Image:
        """The original image (PIL, or uint8 `[3, H, W]`; by default the one these know) with
        labelled boxes, small images enlarged.

        `scale` is described at `visualize.draw_boxes`. Raises InputError for an image of another
        size, or if none is known.
        """
        image = self.image if image is None else image
        if image is None:
            raise InputError(
                "the detections of a list of images do not keep them: give draw the image"
            )
        width, height = (
            image.size if isinstance(image, Image.Image) else (image.shape[-1], image.shape[-2])
        )
        if (height, width) != self.image_size:
            known = "{1}x{0}".format(*self.image_size)
            raise InputError(
                f"detections of an image of {known} px cannot be drawn on one of {width}x{height} "
                "px"
            )
        return draw_boxes(
            image, self.boxes, self.names, self.scores.tolist(), self.labels.tolist(), scale
        )


def detect(
    outputs: Outputs,
    orig_sizes: Sequence[tuple[int, int]],
    kind: Kind,
    class_names: Sequence[str],
    category_ids: Sequence[int],
    top_k: int,
    threshold: float = 0.0,
) -> list[Detections]:
    """The `Detections` of each image with a score of `threshold` or more; one device-to-host copy.

    What `decode` says holds here; `orig_sizes` are (height, width), boxes are clipped to the image.
    """
    sizes = torch.tensor(orig_sizes, device=outputs["pred_logits"].device).reshape(-1, 2)
    scores, labels, boxes = decode(outputs, sizes, kind, top_k)
    # One tensor, one copy; fp32 holds every label below 2^24 exactly.
    packed = torch.cat([boxes, scores[..., None], labels[..., None].float()], dim=-1).cpu()
    found = []
    for rows, (height, width) in zip(packed, orig_sizes, strict=True):
        rows = rows[rows[:, 4] >= threshold]
        rows = rows[rows[:, 4].argsort(descending=True, stable=True)]
        inside = rows[:, :4].clamp(torch.zeros(4), torch.tensor([width, height, width, height]))
        about = tuple(class_names), tuple(category_ids), (height, width)
        found.append(Detections(rows[:, 4], rows[:, 5].long(), inside, *about))
    return found
