"""Which image files the rows of a Hugging Face data set may name.

A row holds an image, or the path of one. In data from strangers, a path may lead to any file of
this machine, which a converted data set would then contain. `datasets` itself writes paths into its
caches, or into the folder that it reads.
"""

import os
from pathlib import Path

from redetr.data.formats.hub_rows import Row
from redetr.errors import InputError


class RowFiles:
    """The files that the rows of a split may name."""

    def __init__(self, source: str, name: str, split: str, follow_links: bool):
        """`name` is that on the hub, or the path of a folder; `split` is the name in the data set.
        `follow_links`: whether rows of a folder may name any file."""
        from datasets import config
        from huggingface_hub.constants import HF_HUB_CACHE

        self._source = source
        self._split = split
        self._is_local = os.path.isdir(name)
        self._is_any_allowed = self._is_local and follow_links
        folders: list[str | Path] = [config.DOWNLOADED_DATASETS_PATH]  # with unpacked archives
        folders += [name] if self._is_local else [config.HF_DATASETS_CACHE, HF_HUB_CACHE]
        self._folders = [os.path.realpath(folder) for folder in folders]

    def require_inside(self, image: Row | None, number: int) -> None:
        """Raises InputError if the image of row `number` is only a path, to an existing file that
        rows may not name."""
        if self._is_any_allowed or image is None or image["bytes"] is not None:
            return
        path = image["path"] or ""
        if "\0" in path or not os.path.lexists(path):  # reported by the reader of images
            return
        file = os.path.realpath(path)
        if any(Path(file).is_relative_to(folder) for folder in self._folders):
            return
        remedy = "do not use this data: on the hub, rows hold their images"
        if self._is_local:
            remedy = (
                "save it with save_to_disk, which stores the images, or use --follow-links if you "
                "trust the data"
            )
        text = f"names the file {file}, outside the data"
        item = f"row {number} of {self._split}"
        raise InputError(text, where=self._source, item=item, remedy=remedy)
