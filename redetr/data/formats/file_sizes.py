"""Compares the image files of a data set with its annotations before `convert` copies them: their
sizes, and the tags by which viewers rotate them."""

import numpy as np

from redetr.data.annotations import Annotations
from redetr.data.formats.paths import read_frames
from redetr.data.formats.writers import Orientations, Splits, names_of
from redetr.data.images import SIZE_REMEDY, TURNED_REMEDY
from redetr.errors import InputError
from redetr.wording import counted


def require_sizes(splits: Splits) -> Orientations:
    """The orientations of the image files. Raises InputError if a file has another size than
    annotated; files that cannot be read are not judged."""
    orientations: Orientations = {}
    for split, annotations in splits.items():
        sizes, orientations[split] = read_frames(annotations.folder, names_of(annotations))
        is_read = sizes[:, 0] > 0
        differs = (sizes != annotations.sizes).any(1) & is_read
        if differs.any():
            raise _other_size(annotations, sizes, orientations[split], differs)
    return orientations


def _other_size(
    a: Annotations, sizes: np.ndarray, orientations: np.ndarray, differs: np.ndarray
) -> InputError:
    i = int(differs.argmax())
    height, width = sizes[i].tolist()
    stated_height, stated_width = a.sizes[i].tolist()
    is_turned = (height, width) == (stated_width, stated_height) and orientations[i] != 1
    remedy = TURNED_REMEDY if is_turned else SIZE_REMEDY
    count = int(differs.sum())
    if count > 1:
        remedy += f" (and {count - 1} more like it)"
    return InputError(
        f"is {width}x{height} px, but annotated as {stated_width}x{stated_height}",
        where=a.source,
        item=f"image {a.ids[i]} ({names_of(a)[i]!r})",
        remedy=remedy,
    )


def tags_note(splits: Splits, orientations: Orientations, form: str) -> list[str]:
    """A sentence on the images that keep a tag by which viewers rotate them."""
    tagged = []
    for split, annotations in splits.items():
        names = names_of(annotations)
        tagged += [names[i] for i in np.flatnonzero(orientations[split] != 1).tolist()]
    if not tagged:
        return []
    images = counted(len(tagged), "image keeps", "images keep")
    text = f"note: {images} an EXIF tag by which viewers rotate it, such as {tagged[0]}: "
    if len(tagged) > 1:
        text = f"note: {images} EXIF tags by which viewers rotate them, such as {tagged[0]}: "
    if form == "yolo":
        return [text + "labels are fractions of the rotated image, as YOLO tools read them"]
    stored = f"boxes in {form.upper()} are those of the stored pixels, and some tools rotate first"
    return [text + stored]
