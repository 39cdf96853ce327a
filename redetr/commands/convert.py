"""`redetr convert`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from redetr.commands.arguments import DataPath, NewFolder, parse_flags
from redetr.commands.console import OUT, print_json


@dataclass(frozen=True)
class Convert:
    """Writes a data set in another format, boxes only; reports what the format cannot hold."""

    source: DataPath
    """A folder in COCO, YOLO, Pascal VOC or LabelMe format, hf:NAME or crowns; stays as it is."""
    destination: NewFolder
    """The folder to write, which must not be there yet."""
    to: Literal["coco", "yolo", "voc"]
    """The format to write."""
    copy: bool = False
    """Copy images; default: hard links, which take no space, where the disk allows them."""
    follow_links: bool = False
    """Also take images that are symbolic links out of the data folder."""
    json: bool = False
    """Print JSON instead of sentences."""

    def run(self) -> None:
        from redetr.data.formats.writing import convert

        notes = convert(self.source, Path(self.destination), self.to, self.copy, self.follow_links)
        if self.json:
            print_json({"destination": self.destination, "told": notes})
        else:
            for line in notes:
                OUT.print(line, soft_wrap=True)


parse = partial(parse_flags, Convert, prog="redetr convert")
