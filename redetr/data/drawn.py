"""The mark in images that redetr has drawn, by which they are told from photographs."""

from pathlib import Path

from PIL import Image

from redetr.data.images import READ_REMEDY, decoder_errors
from redetr.errors import InputError
from redetr.files import open_file

MARK = "redetr"  # the program of a PNG, and the comment of a JPEG


def is_drawn(path: Path) -> bool:
    """Whether `pages.drawing.save_image` wrote the file. False for a file that cannot be read, and
    for what is not a file."""
    try:
        with (
            decoder_errors(str(path), READ_REMEDY),
            open_file(path) as file,
            Image.open(file, formats=("PNG", "JPEG")) as image,
        ):
            marks = (image.info.get("Software"), image.info.get("comment"))
    except InputError:
        return False
    return MARK in marks or MARK.encode() in marks
