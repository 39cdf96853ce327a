"""`redetr convert`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from redetr.commands.arguments import DataPath, NewFolder, parse_flags
from redetr.commands.console import OUT, print_json
from redetr.errors import InputError
from redetr.garbage import quick_imports


@dataclass(frozen=True)
class Convert:
    """Write a data set in another format, with its masks, or cut its images into tiles; report what
    the format cannot hold."""

    source: DataPath
    """A folder in any format that redetr reads, hf:NAME or crowns; it is not changed."""
    destination: NewFolder
    """The folder to write; it must be new or empty."""
    to: Literal["coco", "yolo", "voc"] = "coco"
    """The format to write."""
    tile: int | None = None
    """Cut larger images into tiles of this size in px, with their boxes."""
    overlap: float = 0.2
    """Smallest overlap of neighbouring tiles, as a share of their side."""
    min_visible: float = 0.4
    """A tile gets an object if it shows at least this share of the object's area; the tile that
    shows most of an object always gets it."""
    empty_tiles: float = 1.0
    """Share of the empty training tiles to keep; val and test keep all."""
    channels: int | None = None
    """Bands of the tiles; default: all bands of .npy files and of TIFF files that need the extra
    tiff, otherwise three (RGB)."""
    val_fraction: float = 0.0
    """If there is no val split, write this share of the images as one, chosen before cutting."""
    copy: bool = False
    """Copy images; default: hard links, which take no space, where the disk supports them."""
    shards: str | None = None
    """Pack images into tar archives of this size, such as 1GB: disks and servers read these faster
    than single files. With --to coco only."""
    follow_links: bool = False
    """Also accept images that are symbolic links to files outside the data folder, or that rows of
    hf:FOLDER name there."""
    json: bool = False
    """Print JSON instead of sentences."""

    def run(self) -> None:
        with quick_imports():
            from redetr.data.formats.cutting import Cut
            from redetr.data.formats.shard_writing import parse_bytes
            from redetr.data.formats.writing import convert

        cut = None
        if self.tile is not None:
            cut = Cut(self.tile, self.overlap, self.min_visible, self.empty_tiles, self.channels)
        else:
            self._require_no_tile_flags()
        notes = convert(
            self.source,
            Path(self.destination),
            self.to,
            copy=self.copy,
            follow_links=self.follow_links,
            cut=cut,
            val_fraction=self.val_fraction,
            shard_bytes=None if self.shards is None else parse_bytes(self.shards),
        )
        if self.tile is not None:
            notes.append(
                "predict on whole images in tiles of this size as well: redetr predict CHECKPOINT "
                f"IMAGE --tile {self.tile}"
            )
        if self.json:
            print_json({"destination": self.destination, "notes": notes})
        else:
            for line in notes:
                OUT.print(line, soft_wrap=True)

    def _require_no_tile_flags(self) -> None:
        """Raises InputError for a flag that changes nothing without --tile."""
        for name in ("overlap", "min_visible", "empty_tiles", "channels"):
            if getattr(self, name) != getattr(Convert, name):
                flag = name.replace("_", "-")
                text = f"--{flag} has no effect without --tile"
                raise InputError(text, remedy="add --tile SIZE, or leave it out")


parse = partial(parse_flags, Convert, prog="redetr convert")
