"""`redetr explain`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.progress import Progress

from redetr.commands.arguments import Checkpoint, OneImage, parse_flags
from redetr.commands.console import (
    ERRORS,
    OUT,
    print_json,
    say_fp32,
    say_origin,
    say_threshold,
    warn_of_left_out,
)
from redetr.errors import InputError, UsageError
from redetr.garbage import quick_imports
from redetr.threads import use_threads

if TYPE_CHECKING:
    from redetr.data import DetectionDataset
    from redetr.detector.detector import Detector
    from redetr.explain import Habits


@dataclass(frozen=True)
class Explain:
    """Show what the model did with an image, on pages that open from disk.

    index.html leads from the image to the boxes; loss.html, written with --image-id, from the boxes
    to the loss."""

    checkpoint: Checkpoint
    """A checkpoint, a run folder, a published weight file, or a Transformers folder or hub name."""
    image: OneImage = None
    """An image file, or its http(s) URL. For an image of a data set, give --image-id instead."""
    output: str = "explained"
    """Folder to write the pages to."""
    data: str | None = None
    """digits, crowns, a folder, hf:NAME or the URL of archives: also show what each query looks
    for, over its images."""
    image_id: int | None = None
    """The id of an image of the data set; without --data, of the training data."""
    world_size: int = 1
    """Number of GPUs that the loss page splits the batch over: the first GPU gets this image, the
    others the images that follow it."""
    split: Literal["val", "test", "train"] = "val"
    """The split of the data set to take images from."""
    val_fraction: float | None = None
    """Share held out of data without a val split; default: that of the training run."""
    samples: int = 100
    """Images of the data set to use for statistics on the queries; 0 = none."""
    threshold: float | None = None
    """Lowest score shown at first; default: the score with the best F1 in the evaluation with which
    the checkpoint was saved, or 0.5 if there is none."""
    device: str = "auto"
    """auto, cpu, cuda, or one GPU of several, such as cuda:1."""
    threads: int | None = None
    """Compute threads; default: OMP_NUM_THREADS, else one per core."""
    json: bool = False
    """Also print the numbers."""

    def run(self) -> None:
        with quick_imports():
            from redetr.detector.detector import as_image, load
            from redetr.explain import explain, explain_loss, write_image_page, write_loss_page
            from redetr.pages.templates import require_redetr_page

        self._check()
        folder = Path(self.output)
        require_redetr_page(folder, "loss.html")
        use_threads(self.threads)
        detector = load(self.checkpoint, device=self.device)
        dataset = self._dataset(detector)
        loss = None
        if self.image is not None:
            name = Path(self.image).name
            image = as_image(self.image, detector.model.channels)
        else:
            assert dataset is not None and self.image_id is not None
            loss = explain_loss(detector, dataset, self.image_id, self.world_size)
            if loss.mask_note:
                ERRORS.print(f"note: {loss.mask_note}")
            name = f"{loss.image_name} of {dataset.name}"
            image = loss.image
        explanation = explain(detector, image)
        habits = self._habits(detector, dataset) if dataset is not None and self.samples else None
        folder.mkdir(parents=True, exist_ok=True)
        say_origin(detector)
        say_fp32(detector, "which explanations always use")
        threshold = self.threshold
        if threshold is None:
            threshold = detector.threshold
            say_threshold(detector)
        loss_link = "loss.html" if loss else ""
        write_image_page(folder / "index.html", explanation, name, threshold, habits, loss_link)
        if loss:
            write_loss_page(folder / "loss.html", loss, image_link="index.html")
        else:  # one that is there is of an earlier image
            (folder / "loss.html").unlink(missing_ok=True)
        if self.json:
            content = explanation.to_dict()
            if loss:
                content["loss"] = loss.to_dict()
            print_json(content)
        else:
            OUT.print(f"{folder}/index.html: from image to boxes", soft_wrap=True)
            if loss:
                OUT.print(f"{folder}/loss.html: from boxes to loss", soft_wrap=True)

    def _check(self) -> None:
        if self.image is None and self.image_id is None:
            raise UsageError(
                "nothing to explain: give an image file after the checkpoint, or --image-id"
            )
        if self.image is not None and self.image_id is not None:
            raise InputError("give either an image or --image-id, not both")
        if self.image_id is None and self.world_size != 1:
            raise InputError("--world-size only affects the loss page: give --image-id as well")
        if self.data is None and self.image_id is None:
            for name in ("split", "val_fraction"):
                if getattr(self, name) != getattr(Explain, name):
                    flag = name.replace("_", "-")
                    raise InputError(f"--{flag} has no effect without --data: add it")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold} is not between 0 and 1")
        if self.samples < 0:
            raise InputError(f"--samples {self.samples} must not be below 0")

    def _dataset(self, detector: "Detector") -> "DetectionDataset | None":
        if self.data is None and self.image_id is None:
            return None
        from redetr.explain import open_judged

        if self.image_id is None:  # no loss page: masks need not be read
            dataset = detector.open_data(self.split, self.data, self.val_fraction)
        else:
            dataset = open_judged(detector, self.split, self.data, self.val_fraction)
        warn_of_left_out(dataset, self.split)
        return dataset

    def _habits(self, detector: "Detector", dataset: "DetectionDataset") -> "Habits":
        from redetr.explain import query_habits

        with Progress(console=ERRORS, disable=self.json) as progress:
            task = progress.add_task(
                "looking at the data set", total=min(self.samples, len(dataset))
            )
            return query_habits(detector, dataset, self.samples, lambda: progress.advance(task))


parse = partial(parse_flags, Explain, prog="redetr explain")
