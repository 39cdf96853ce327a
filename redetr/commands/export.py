"""`redetr export`"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from redetr.choices import ExportFormat, ExportPrecision, ImageSize
from redetr.commands.arguments import Checkpoint, NewFile, parse_flags
from redetr.commands.console import (
    ERRORS,
    OUT,
    require_batch_size,
    say_fp32,
    say_origin,
    warn_of_leakage,
    warn_of_left_out,
)
from redetr.errors import InputError
from redetr.files import require_folder
from redetr.garbage import quick_imports
from redetr.threads import use_threads
from redetr.wording import counted

if TYPE_CHECKING:
    from redetr.data import DetectionDataset
    from redetr.data.annotations import Split
    from redetr.detector.detector import Detector
    from redetr.export.comparison import Comparison
    from redetr.structures import Size

# How far AP may drop, in points: through rounding and ties; through 16-bit weights; through 8-bit
# weights and values of 8 bits.
_MAX_AP_DROP: dict[ExportPrecision, float] = {"fp32": 0.1, "fp16": 0.3, "int8": 1.0}


@dataclass(frozen=True)
class Export:
    """Write a file that runs without redetr, and compare it with PyTorch on held-out images."""

    checkpoint: Checkpoint
    """A checkpoint, a run folder, a published weight file, or a Transformers folder or hub name."""
    format: ExportFormat = "onnx"
    """onnx, openvino (.xml and .bin), torch (a torch.export program, .pt2), executorch (.pte),
    litert (.tflite) or coreml (.mlpackage)."""
    output: NewFile = None
    """The file; default: the name of the checkpoint, or of its run folder if that is given, with
    the suffix of the format, in the current folder."""
    precision: ExportPrecision = "fp32"
    """fp16 (openvino, coreml) halves the file size; int8 (onnx, openvino) is calibrated on training
    images."""
    with_processing: bool = False
    """Include pre- and postprocessing: the file takes uint8 images of any size, and returns scores,
    labels, and boxes in pixels of these images."""
    mask: bool = False
    """Give the file a second input, the padding mask of the batch."""
    fixed_size: ImageSize = 0
    """Fixed height and width of the input, as TensorRT and devices need; default: any size, but the
    model's own size for executorch, litert and coreml, which take a single image."""
    one_image: bool = False
    """The file takes a single image instead of any number; with --fixed-size, some runtimes are
    then a few percent faster."""
    data: str | None = None
    """digits, crowns, a folder, hf:NAME or the URL of archives, with the images to compare on;
    default: the training data."""
    val_fraction: float | None = None
    """Share to hold out of data without a val split; default: that of the training run."""
    images: int = 200
    """Maximum number of held-out images for the comparison, and of training images for int8."""
    batch_size: int = 1
    """Images per batch in the comparison."""
    threads: int | None = None
    """Compute threads; default: OMP_NUM_THREADS, else one per core."""
    max_ap_drop: float | None = None
    """Points of AP that the file may lose against PyTorch; default: 0.1, for fp16 0.3, for int8
    1.0. A larger drop is accepted if there are too few images to distinguish it from chance."""
    check: bool = True
    """--no-check: Write the file without comparing it; its metadata has the checkpoint's
    threshold."""

    def run(self) -> None:
        with quick_imports():
            from redetr.detector.detector import load
            from redetr.export.export import export
            from redetr.export.files import SUFFIXES
            from redetr.export.settings import NOT_RUN, ExportConfig

        require_batch_size(self.batch_size)
        if self.images < 1:
            raise InputError(f"--images {self.images} must be at least 1")
        config = ExportConfig(
            self.format,
            self.precision,
            self.with_processing,
            self.mask,
            size=self._size(),
            single=self.one_image,
        )
        config.check()
        path = self._path(SUFFIXES[self.format])
        existed = path.exists()
        use_threads(self.threads)
        detector = load(self.checkpoint, device="cpu")
        held_out = self._images_of(detector, "val") if self.check else None
        train = self._images_of(detector, "train") if self.precision == "int8" else None
        limit = _MAX_AP_DROP[self.precision] if self.max_ap_drop is None else self.max_ap_drop
        comparison = export(
            detector,
            path,
            config,
            held_out,
            train,
            images=self.images,
            batch_size=self.batch_size,
            max_ap_drop=limit,
        )
        say_origin(detector)
        if self.precision == "fp32":
            say_fp32(detector, "in PyTorch as in the file")
        if comparison:
            print_comparison(comparison, limit)
        else:
            why = ": Core ML runs only on Apple's systems" if self.format in NOT_RUN else ""
            ERRORS.print(f"warning: {path} was not compared with PyTorch{why}", soft_wrap=True)
        replaced = ", in place of the earlier one" if existed else ""
        OUT.print(f"{path} ({_megabytes(path):.1f} MB{replaced})", soft_wrap=True)

    def _path(self, suffix: str) -> Path:
        """The file to write. Raises InputError if it cannot be written."""
        path = Path(self.output or f"{_name(Path(self.checkpoint))}{suffix}")
        if path.suffix != suffix:
            raise InputError(
                f"--output {path}: a file for --format {self.format} must end in {suffix}"
            )
        if not path.parent.is_dir():
            raise InputError(f"--output {path}: there is no folder {path.parent}; create it")
        require_folder(path.parent)
        return path

    def _size(self) -> "Size | None":
        """The size of --fixed-size, if it is given."""
        if not self.fixed_size:
            return None
        if isinstance(self.fixed_size, int):
            return self.fixed_size, self.fixed_size
        return self.fixed_size

    def _images_of(self, detector: "Detector", split: "Split") -> "DetectionDataset":
        """The images of the flags, or of the training run. Raises InputError if there are none."""
        try:
            masks = detector.model.has_masks
            dataset = detector.open_data(split, self.data, self.val_fraction, masks)
        except InputError as error:
            if self.data or split == "train":
                raise
            raise InputError(f"{error}, or --no-check to export without a comparison") from error
        if split == "val":
            checkpoint = Path(self.checkpoint)
            warn_of_leakage(checkpoint, detector, dataset, self.data or detector.trained_on)
        warn_of_left_out(dataset, split)
        return dataset


def print_comparison(comparison: "Comparison", max_ap_drop: float) -> None:
    """Prints how far the file's detections are from PyTorch's, and AP of both."""
    shown = counted(comparison.paired + comparison.unpaired, "detection")
    images = counted(comparison.images, "image")
    title = f"{shown} with a score of {comparison.threshold:g} or more, in {images}"
    OUT.print(title, soft_wrap=True)
    if comparison.unpaired:
        OUT.print(f"{comparison.unpaired:,} of them come from only one of PyTorch and the file")
    if comparison.paired:
        table = Table("file and PyTorch", "largest difference", "median", box=box.SIMPLE)
        for name, unit, form in (("boxes", " px", ".2g"), ("scores", "", ".1e")):
            largest, middle = comparison.differences[name]
            table.add_row(name, f"{largest:{form}}{unit}", f"{middle:{form}}{unit}")
        OUT.print(table)
    pytorch_ap, file_ap = comparison.ap
    OUT.print(f"AP {pytorch_ap:.2f} with PyTorch, {file_ap:.2f} with the file")
    if comparison.mask_ap:
        pytorch_ap, file_ap = comparison.mask_ap
        OUT.print(f"mask AP {pytorch_ap:.2f} with PyTorch, {file_ap:.2f} with the file")
    if comparison.why_no_masks:
        OUT.print(f"mask AP is not measured, because {comparison.why_no_masks}", soft_wrap=True)
    if comparison.mask_iou:
        smallest, middle = comparison.mask_iou
        OUT.print(f"masks: minimum IoU {smallest:.4f}, median {middle:.4f}")
    for drop in comparison.drops():
        if drop.points > max_ap_drop:
            ERRORS.print(
                f"warning: {drop.name} drops by {drop.points:.2f}, more than {max_ap_drop:g}, but "
                f"{images} cannot tell that from chance{drop.interval_text}: more held-out images "
                "(--data, --images) would"
            )


def _name(checkpoint: Path) -> str:
    """The name of the exported file, without its suffix."""
    from redetr.weights.locating import is_weight_file

    if checkpoint.is_dir():
        return checkpoint.resolve().name
    if checkpoint.is_file() or is_weight_file(checkpoint):
        return checkpoint.stem
    return checkpoint.name  # of a model on the hub: it may have dots


def _megabytes(path: Path) -> float:
    """The size of a file and what belongs to it, or of a folder."""
    parts = [path]
    if path.suffix == ".xml":
        parts.append(path.with_suffix(".bin"))
    if path.is_dir():
        parts = [part for part in path.rglob("*") if part.is_file()]
    return sum(part.stat().st_size for part in parts) / 1e6


parse = partial(parse_flags, Export, prog="redetr export")
