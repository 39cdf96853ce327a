"""The panoptic segmentation of an image, which can be drawn and written to files."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from redetr.choices import MaskChoice
from redetr.class_names import chosen_classes
from redetr.detector.detections import Detections
from redetr.detector.images import ImageLike
from redetr.masks import boxes_of_masks
from redetr.panoptic import Panoptic


@dataclass(frozen=True, eq=False)
class PanopticDetections:
    """The segments of one image, things and stuff, which do not overlap. All tensors are on the
    host."""

    panoptic: Panoptic  # the id of the segment of each pixel, and what the segments are
    detections: Detections  # a row for each segment, in that order; boxes are around their pixels

    def __len__(self) -> int:
        return len(self.panoptic.segments)

    def __repr__(self) -> str:
        height, width = self.detections.image_size
        lines = [f"PanopticDetections: {len(self)} segments in an image of {width}x{height} px"]
        pairs = zip(self.detections.names, self.panoptic.segments, strict=True)
        for name, segment in pairs:
            kind = "thing" if segment.is_thing else "stuff"
            lines.append(f"  {name} ({kind}) {segment.score:.2f}, {segment.area} px")
        return "\n".join(lines)

    @property
    def ids(self) -> Tensor:
        """The id of the segment of each pixel, int32 `[H, W]`: `id` - 1 is the row in `detections`,
        and 0 is no segment."""
        return self.panoptic.ids

    def to_png(self) -> Image.Image:
        """The map in COCO's panoptic format: the colour of a pixel is the id of its segment."""
        return self.panoptic.to_png()

    def to_coco(self, image_id: int | str, file_name: str) -> dict[str, Any]:
        """An entry of the `annotations` of a panoptic JSON file; `file_name` is that of the PNG."""
        segments_info = self.panoptic.segments_info(self.detections.category_ids)
        return {"image_id": image_id, "file_name": file_name, "segments_info": segments_info}

    def to_dict(self, masks: MaskChoice = "rle") -> dict[str, Any]:
        """The dict of `Detections.to_dict`, with the `area` (px) and `isthing` (1 or 0) of each
        segment."""
        content = self.detections.to_dict(masks)
        for row, segment in zip(content["detections"], self.panoptic.segments, strict=True):
            row["area"] = segment.area
            row["isthing"] = int(segment.is_thing)
        return content

    def of_classes(self, names: str | Collection[str]) -> "PanopticDetections":
        """Only the segments of these classes, or of the class with this name, renumbered from 1;
        pixels of other segments get id 0. Raises InputError for a name that the model does not
        have."""
        chosen = chosen_classes(names, self.detections.class_names)
        kept = [row for row, name in enumerate(self.detections.names) if name in chosen]
        new_ids = torch.zeros(len(self) + 1, dtype=self.ids.dtype)
        segments = []
        for new_id, row in enumerate(kept, start=1):
            new_ids[row + 1] = new_id
            segments.append(replace(self.panoptic.segments[row], id=new_id))
        panoptic = Panoptic(new_ids[self.ids.long()], tuple(segments))
        return PanopticDetections(panoptic, self.detections[kept])

    def mask_image(self) -> Image.Image:
        """The ids of the segments as one grey image; 0 is no segment."""
        return self.detections.mask_image()

    def draw(
        self, image: ImageLike | None = None, scale: int | None = None, **options: Any
    ) -> Image.Image:
        """The image with its segments drawn. Arguments and errors are those of
        `Detections.draw`."""
        return self.detections.draw(image, scale, **options)


def segments_of(
    panoptic: Panoptic, class_names: Sequence[str], category_ids: Sequence[int], masks: bool = True
) -> PanopticDetections:
    """The segments of an image with the names and ids of their classes, and with their masks."""
    boxes = torch.zeros(len(panoptic.segments), 4)
    for row, segment in enumerate(panoptic.segments):
        mask = panoptic.ids == segment.id
        boxes[row] = boxes_of_masks(mask[None])[0]
    scores = [segment.score for segment in panoptic.segments]
    labels = [segment.label for segment in panoptic.segments]
    height, width = panoptic.ids.shape
    detections = Detections(
        scores=torch.tensor(scores, dtype=torch.float32),
        labels=torch.tensor(labels, dtype=torch.int64),
        boxes=boxes,
        class_names=tuple(class_names),
        category_ids=tuple(category_ids),
        image_size=(height, width),
        masks=panoptic.masks() if masks else None,
    )
    return PanopticDetections(panoptic, detections)
