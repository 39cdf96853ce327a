"""`redetr predict`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from rich.progress import track

from redetr.commands.console import ERRORS, OUT, print_json, require_images
from redetr.errors import InputError
from redetr.files import write_json
from redetr.predict import as_image, find_images, load
from redetr.visualize import save_image


@dataclass(frozen=True)
class Predict:
    """Finds objects in images and folders of images; writes annotated PNGs and predictions.json."""

    checkpoint: tyro.conf.Positional[str]
    """A checkpoint, a run folder, an official DETR file, or a Transformers folder."""
    source: tyro.conf.Positional[tuple[str, ...]]
    """Images, and folders of images."""
    output: str = "predictions"
    """Folder for the pictures and predictions.json."""
    threshold: float = 0.5
    """Smallest score shown."""
    batch_size: int = 4
    """Images at once."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: bool = False
    """Also print predictions.json."""

    def run(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold} is not between 0 and 1")
        require_images(self.batch_size)
        if not self.source:
            raise InputError("nothing to look at: name images or folders after the checkpoint")
        files = find_images(self.source)
        detector = load(self.checkpoint, device=self.device)
        folder, names = Path(self.output), _distinct_names(files)
        folder.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {}
        for start in track(range(0, len(files), self.batch_size), "predicting", console=ERRORS, disable=self.json):
            paths = files[start : start + self.batch_size]
            images = [as_image(path) for path in paths]
            for path, image, detections in zip(paths, images, detector.predict(images, self.threshold), strict=True):
                save_image(detections.draw(image), folder / names[path])
                found[str(path)] = detections.to_dict()
        write_json(folder / "predictions.json", found)
        if self.json:
            print_json(found)
        else:
            objects = sum(len(entry["detections"]) for entry in found.values())
            OUT.print(f"{objects} objects in {len(files)} images: {folder}/predictions.json, pictures beside it")


def _distinct_names(files: list[Path]) -> dict[Path, str]:
    """A PNG name for each file; equal stems from several folders get a number."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.stem}.png", 1
        while name in taken:
            number += 1
            name = f"{file.stem}-{number}.png"
        taken.add(name)
        names[file] = name
    return names


parse = partial(tyro.cli, Predict, prog="redetr predict")
