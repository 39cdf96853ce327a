"""`redetr predict`"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.progress import Progress

from redetr.choices import LabelChoice, MaskChoice
from redetr.commands.arguments import Checkpoint, Sources, parse_flags
from redetr.commands.console import (
    ERRORS,
    OUT,
    print_file,
    require_batch_size,
    say_detector,
    say_threshold,
)
from redetr.commands.outcome import Outcome
from redetr.commands.videos import require_fitting_sources, say_images_only
from redetr.detector.record_formats import (
    require_no_foreign_files,
    write_formats,
    written_formats,
)
from redetr.detector.record_lines import RECORD
from redetr.detector.records import (
    LOCK,
    LOCKED_FOR,
    Record,
    Summary,
    join,
    require_no_cut_stream,
    require_no_predictions,
    require_record,
    summary,
)
from redetr.detector.resuming import require_kept, require_same_files, start_of
from redetr.errors import InputError, StoppedError, UsageError
from redetr.files import require_folder
from redetr.garbage import quick_imports
from redetr.threads import use_threads
from redetr.wording import counted

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from redetr.data.faults import Fault
    from redetr.detector.detections import Detections
    from redetr.detector.detector import Detector
    from redetr.detector.segments import PanopticDetections
    from redetr.detector.sources import Frame
    from redetr.detector.tracking import Tracker
    from redetr.distributed import Dist

    Prediction = Detections | PanopticDetections

Format = Literal["png", "jpg", "masks", "json", "coco", "csv", "html"]
_IMAGES = ("png", "jpg", "masks")  # of these formats

_STOPPED = "stopped; to continue, run the same command with --resume"
_LONGEST_WAIT_S = 7 * 86400.0  # for other ranks: one may have a long video left


@dataclass(frozen=True)
class Predict:
    """Detect objects in images, folders, videos, URLs and cameras; write the detections and
    annotated images. Under torchrun, the processes share the images."""

    checkpoint: Checkpoint
    """A checkpoint, a run folder, a published weight file, or a Transformers folder or hub name."""
    source: Sources
    """Images, folders, tar archives, patterns such as 'a/**/*.jpg', videos, http(s) and rtsp URLs;
    0 is the first camera."""
    output: str = "predictions"
    """Folder for predictions.jsonl (a line per image, written as soon as it is processed) and the
    outputs of --save."""
    threshold: float | None = None
    """Lowest score to report; default: the score with the best F1 in the evaluation with which the
    checkpoint was saved, or 0.5 if there is none; 0.85 with --panoptic."""
    classes: tuple[str, ...] = ()
    """Report only these classes, by name; default: all."""
    tile: int | None = None
    """Cut large images into tiles of this size in px; about the size of the training images is
    best."""
    overlap: float = 0.2
    """Smallest overlap of neighbouring tiles, as a share of their side; objects no larger than the
    overlap are whole in some tile."""
    panoptic: bool = False
    """Write panoptic segments instead of objects: each pixel belongs to at most one segment. For
    models such as detr_r50_panoptic; writes a PNG per image and predictions.panoptic.json."""
    stuff: tuple[str, ...] = ()
    """Classes such as sky, whose segments --panoptic merges; default: the stuff classes of the
    weights."""
    track: bool = False
    """Track objects through videos: each keeps its number, in the video and in the files. Needs:
    pip install "redetr[track]"."""
    reconnect: int = 10
    """Consecutive attempts to reopen a live stream that has dropped; 0 = do not reopen it."""
    labels: LabelChoice = "auto"
    """Labels on annotated images: all, none, or auto = where there is room."""
    line_width: int | None = None
    """Line width of boxes in px; default: depends on the size of the image and of the boxes."""
    save: tuple[Format, ...] = ("png", "json", "html")
    """Further outputs: png or jpg = annotated images (and videos as mp4), masks = a PNG of the
    masks of each image, json = predictions.json, coco = predictions.coco.json, csv =
    predictions.csv, html = index.html, a page of the annotated images."""
    masks: MaskChoice = "rle"
    """Masks in JSON files: as compressed RLE, as polygons, or none."""
    resume: bool = False
    """Resume in --output: skip the images that its predictions.jsonl already lists."""
    overwrite: bool = False
    """Delete what an earlier predict wrote to --output and start again; other files there stay."""
    batch_size: int = 4
    """Images per batch."""
    device: str = "auto"
    """auto, cpu, cuda, or one GPU of several, such as cuda:1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = that of the training run; for weights from elsewhere, bf16 where it is faster."""
    threads: int | None = None
    """Compute threads of each process; default: OMP_NUM_THREADS, else one per core."""
    json: bool = False
    """Also print predictions.json."""

    def run(self) -> None:
        with quick_imports():
            from redetr.detector.detector import load
            from redetr.detector.sources import find_sources
            from redetr.distributed import process_group
            from redetr.lock import FolderLock

        self._check()
        use_threads(self.threads)
        folder = Path(self.output)
        self._require_free(folder)
        # PIL warns of damaged EXIF, and of images half as large as those that it refuses as bombs.
        warnings.filterwarnings("ignore", module="PIL")
        faults: list[Fault] = []
        sources = find_sources(self.source, faults)
        self._require_kept(folder, sources)
        require_fitting_sources(
            sources, track=self.track, masks="masks" in self.save, draws=self._draws
        )
        detector = load(self.checkpoint, device=self.device)
        self._require_fitting(detector)
        with (
            process_group(self.device, _LONGEST_WAIT_S) as dist,
            FolderLock(folder, dist, LOCK, LOCKED_FOR) as lock,
        ):
            detector.optimize(precision=self.precision, dist=dist)
            dist.main_only(say_detector)(detector)
            if self.panoptic:
                dist.main_only(ERRORS.print)(self._settle_stuff(detector))
            elif self.threshold is None:
                dist.main_only(say_threshold)(detector)
            dist.main_only(self._report)(faults)
            dist.main_only(say_images_only)(sources, self._further_images)
            file_names, done = self._begin(folder, sources, dist)
            remaining = [source for source in sources if source not in done]
            rank_sources = remaining[dist.rank :: dist.world_size]
            start = time.perf_counter()
            results = dist.gather([self._process(rank_sources, file_names, detector, dist)])
            seconds = time.perf_counter() - start
            total = Outcome.of_all(results)
            dist.main_only(total.say_oddities)()
            threshold = self._threshold(detector)
            lock.require_held()
            rate = total.images / seconds
            dist.main_only(self._finish)(sources, len(done), total.errors, rate, threshold)

    def _check(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold {self.threshold} is not between 0 and 1")
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite cannot be combined: give only one")
        if self.tile is not None and self.tile < 1:
            raise InputError(f"--tile {self.tile} must be at least 1")
        if self.panoptic and (self.tile or self.track):
            flag = "--tile" if self.tile else "--track"
            raise InputError(f"{flag} cannot be combined with --panoptic: leave one of them out")
        if self.stuff and not self.panoptic:
            raise InputError("--stuff has no effect without --panoptic: add it")
        if not 0 <= self.overlap < 1:
            raise InputError(f"--overlap {self.overlap} must be at least 0 and below 1")
        if self.line_width is not None and self.line_width < 1:
            raise InputError(f"--line-width {self.line_width} must be at least 1")
        if "html" in self.save and not self._draws:
            raise InputError("--save html shows annotated images: add png or jpg")
        if self.reconnect < 0:
            raise InputError(f"--reconnect {self.reconnect} must be at least 0")
        require_batch_size(self.batch_size)
        if not self.source:
            raise UsageError("no input: give images or folders after the checkpoint")

    def _require_free(self, folder: Path) -> None:
        """Raises InputError if the folder cannot be written to, or holds files that this run would
        mix with or replace."""
        require_folder(folder)
        if self.resume:
            require_record(folder)
            require_no_cut_stream(folder)
        elif not self.overwrite:
            require_no_predictions(folder)
        require_no_foreign_files(folder, self._file_formats)

    def _require_fitting(self, detector: "Detector") -> None:
        """Raises InputError for classes or masks that the model does not know."""
        for flag, names in (("--classes", self.classes), ("--stuff", self.stuff)):
            unknown = [name for name in names if name not in detector.class_names]
            if unknown:
                known = ", ".join(detector.class_names)
                raise InputError(f"{flag} {unknown[0]}: the model knows {known}")
        if self.panoptic and not detector.model.is_panoptic:
            remedy = "leave out --panoptic, or give a panoptic model such as detr_r50_panoptic"
            raise InputError("this model has no panoptic segmentation", remedy=remedy)
        if "masks" in self.save and not detector.model.has_masks:
            raise InputError("--save masks: the model predicts only boxes; leave out masks")

    def _settle_stuff(self, detector: "Detector") -> str:
        """Applies --stuff, and describes in words which classes count as stuff."""
        if self.stuff:
            detector.model.is_thing = tuple(name not in self.stuff for name in detector.class_names)
        settled = f"threshold: {self._threshold(detector)}"
        if not detector.model.is_thing:
            settled += (
                "; the weights do not say which classes are stuff, so no segments are merged: name "
                "those classes with --stuff"
            )
        return settled

    def _require_kept(self, folder: Path, sources: Sequence[str]) -> None:
        """Raises InputError if --overwrite or --resume would delete a source, or --resume would
        take it for another file."""
        if self.overwrite or self.resume:
            require_kept(folder, sources, self.resume)
        if self.resume:
            require_same_files(folder, sources)

    def _begin(
        self, folder: Path, sources: Sequence[str], dist: "Dist"
    ) -> tuple[dict[str, Path], set[str]]:
        """See `begin_run`. Raises InputError if another predict has just ended in the folder."""
        from redetr.detector.output_folder import begin_run

        if not (self.resume or self.overwrite):
            require_no_predictions(folder)
        image_suffix = "jpg" if "jpg" in self.save else "png"
        return begin_run(
            folder,
            sources,
            image_suffix,
            self._further_images,
            dist,
            resume=self.resume,
            overwrite=self.overwrite,
        )

    def _report(self, faults: "list[Fault]") -> None:
        """Reports which sources were skipped."""
        for fault in faults:
            ERRORS.print(f"{fault.severity}: {fault}")

    def _process(
        self, sources: list[str], file_names: dict[str, Path], detector: "Detector", dist: "Dist"
    ) -> Outcome:
        """Detects in all sources; other threads than that of the model read and draw images."""
        from redetr.detector.sources import Frame, frames, read_ahead
        from redetr.detector.streams import Reconnection
        from redetr.detector.tracking import Tracker
        from redetr.detector.video import VideoWriter
        from redetr.signals import deferred_ctrl_c, sigterm_as_ctrl_c

        result = Outcome()
        recorded = Frame("")  # the last one that is in the record
        ahead = 1 if self.tile else self.batch_size
        reconnection = Reconnection(self.reconnect, say=ERRORS.print)
        read = frames(sources, ahead, detector.model.channels, reconnection)
        tracker = Tracker(self._threshold(detector)) if self.track else None
        detected = self._detect(detector, read, ahead, tracker)
        jobs = (partial(self._drawn, file_names, *pair) for pair in detected)
        silent = self.json or dist.rank > 0
        with (
            sigterm_as_ctrl_c(),
            closing(Record(Path(self.output), dist.rank, dist.world_size)) as record,
            VideoWriter(ERRORS.print) as video,
            Progress(console=ERRORS, disable=silent) as progress,
        ):
            bar = progress.add_task("predicting", total=len(sources))
            try:
                for frame, detections, picture in read_ahead(jobs, ahead):
                    is_last = frame.number is None or detections is None  # of its source
                    with deferred_ctrl_c():
                        if picture:
                            video.add(picture, file_names[frame.source], frame.rate, frame.time_s)
                        if is_last:
                            video.close()  # before the record says that it is finished
                        result.add(frame, has_detections=detections is not None)
                        self._record(record, file_names, frame, detections)
                        recorded = frame
                    if is_last:
                        progress.advance(bar)
            except KeyboardInterrupt:
                if not recorded.is_live or recorded.number is None:
                    raise StoppedError(_STOPPED) from None
                # Ctrl-C is how a live stream ends.
                video.close()
                end = Frame(recorded.source, number=recorded.number + 1)
                self._record(record, file_names, end, None)
                if recorded.source != sources[-1]:
                    raise StoppedError(_STOPPED) from None
        return result

    def _detect(
        self,
        detector: "Detector",
        frames: Iterator["Frame"],
        at_once: int,
        tracker: "Tracker | None",
    ) -> Iterator[tuple["Frame", "Prediction | None"]]:
        """Each frame with its detections of the wanted classes; None if it has no image."""
        threshold = tracker.lowest_score if tracker else self._threshold(detector)
        while batch := list(islice(frames, at_once)):
            images = [frame.image for frame in batch if frame.image is not None]
            if self.panoptic:
                predictions: Iterator[Any] = iter(detector.predict_panoptic(images, threshold))
            else:
                predictions = iter(detector.predict(images, threshold, self.tile, self.overlap))
            for frame in batch:
                if frame.image is None:
                    yield frame, None
                    continue
                detections: Any = next(predictions)
                if self.classes:
                    detections = detections.of_classes(self.classes)
                if tracker:
                    detections = tracker.follow(frame, detections)
                yield frame, detections

    def _threshold(self, detector: "Detector") -> float:
        from redetr.panoptic import THRESHOLD

        if self.threshold is not None:
            return self.threshold
        return THRESHOLD if self.panoptic else detector.threshold

    def _drawn(
        self, file_names: dict[str, Path], frame: "Frame", detections: "Prediction | None"
    ) -> tuple["Frame", "Prediction | None", "Image.Image | None"]:
        """A frame, its detections, and its annotated version if it is of a video.

        An annotated image is saved instead of returned.
        """
        from redetr.detector.output_names import beside
        from redetr.pages.drawing import save_image

        if detections is None or frame.image is None:
            return frame, None, None
        if frame.number is None:
            for kind in self._further_images:
                save_image(_further_image(detections, kind), beside(file_names[frame.source], kind))
        if not self._draws:
            return frame, detections, None
        if frame.number is not None:
            return frame, detections, self._draw(frame.image, detections, scale=1)
        save_image(self._draw(frame.image, detections), file_names[frame.source])
        return frame, detections, None

    def _draw(
        self, image: "Tensor", detections: "Prediction", scale: int | None = None
    ) -> "Image.Image":
        return detections.draw(image, scale, labels=self.labels, line_width=self.line_width)

    def _record(
        self,
        record: Record,
        file_names: dict[str, Path],
        frame: "Frame",
        detections: "Prediction | None",
    ) -> None:
        for line in self._lines(file_names, frame, detections):
            record.add(line)

    def _lines(
        self, file_names: dict[str, Path], frame: "Frame", detections: "Prediction | None"
    ) -> Iterator[dict[str, Any]]:
        """The record of a frame: see `records`."""
        from redetr.detector.output_names import beside

        start = start_of(frame.source, Path(self.output))
        about: dict[str, Any] = {"image": frame.source, **start}
        if self._draws and (detections is not None or frame.number):
            about["picture"] = file_names[frame.source].name
        if detections is not None:
            if frame.number is None:
                for kind in self._further_images:
                    key = "mask_picture" if kind == "masks" else "panoptic_picture"
                    about[key] = beside(file_names[frame.source], kind).name
            yield {**about, **frame.position, **detections.to_dict(self.masks)}
        if frame.error:
            yield {**about, "error": frame.error}
        if frame.is_end:
            yield {**about, "frames": frame.number}

    @property
    def _draws(self) -> bool:
        return "png" in self.save or "jpg" in self.save

    @property
    def _further_images(self) -> list[str]:
        """The kinds of images that are written beside an annotated one."""
        kinds = ["masks"] if "masks" in self.save else []
        return [*kinds, "panoptic"] if self.panoptic else kinds

    @property
    def _file_formats(self) -> list[str]:
        """The formats of the files of detections that this run writes at the end."""
        formats: list[str] = [format for format in self.save if format not in _IMAGES]
        if self.panoptic:
            formats.append("panoptic")
        if self.json:
            formats.append("json")
        return formats

    def _finish(
        self,
        sources: Sequence[str],
        resumed: int,
        errors: list[str],
        rate: float,
        threshold: float,
    ) -> None:
        folder = Path(self.output)
        join(folder, sources)
        # Those of the run that this one resumes would lack what is new.
        formats = dict.fromkeys([*self._file_formats, *written_formats(folder)])
        write_formats(folder, list(formats))
        if self.json:
            print_file(folder / "predictions.json")
        else:
            self._print_summary(summary(folder), rate, threshold)
            from_earlier_run = f", {resumed} of them in an earlier run" if resumed else ""
            processed = f"{len(sources) - len(errors)} of {len(sources)} sources"
            OUT.print(
                f"processed {processed}{from_earlier_run}: {folder}/{RECORD}",
                soft_wrap=True,
            )
        if len(errors) == 1:
            raise InputError(errors[0])
        if errors:
            raise InputError(
                f"{len(errors)} sources could not be read (see {folder / RECORD}); the first: "
                f"{errors[0]}"
            )

    def _without_objects(self, images: int, threshold: float) -> str:
        """A sentence on images in which nothing of what the flags ask for was detected."""
        wanted = " or ".join(self.classes)
        subject = f"no {wanted}" if wanted else "nothing"
        sentence = f"{subject} found in {counted(images, 'image')}"
        if threshold > 0:
            sentence += f" with a score of {threshold} or more: lower --threshold"
        return sentence

    def _print_summary(self, total: Summary, rate: float, threshold: float) -> None:
        if not total.images:
            return
        if total.classes:
            kind = "segments" if self.panoptic else "objects"
            sentence = f"{kind} found: {total.in_words()}"
        else:
            sentence = self._without_objects(total.images, threshold)
        if total.tracks:
            sentence += f"; {counted(total.tracks, 'object')} tracked"
        if rate:
            sentence += f"; {rate:.1f} images/s"
        OUT.print(sentence, soft_wrap=True)


def _further_image(prediction: "Prediction", kind: str) -> "Image.Image":
    """The image of one of `_further_images`."""
    from redetr.detector.segments import PanopticDetections

    if kind == "panoptic" and isinstance(prediction, PanopticDetections):
        return prediction.to_png()
    return prediction.mask_image()


parse = partial(parse_flags, Predict, prog="redetr predict")
