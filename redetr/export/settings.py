"""The settings of an exported file, and which formats and models allow them."""

from dataclasses import dataclass, replace
from importlib.util import find_spec

from redetr.choices import ExportFormat, ExportPrecision, ImageSize, size_text
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.export.mobile import MOBILE
from redetr.structures import Size

_NEEDED: dict[ExportFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch": (),
    "executorch": ("executorch",),
    "litert": ("litert_torch",),
    "coreml": ("coremltools",),
}
# The commands that install the packages. For LiteRT, pip finds no versions that are compatible with
# redetr.
_INSTALL: dict[ExportFormat, str] = {
    "onnx": 'pip install "redetr[export]"',
    "openvino": 'pip install "redetr[export]"',
    "executorch": 'pip install "redetr[executorch]"',
    "litert": "pip install litert-torch, in a separate environment (docs/export.md says why)",
    "coreml": 'pip install "redetr[coreml]"',
}
NOT_RUN: tuple[ExportFormat, ...] = ("coreml",)  # only Apple's systems have the runtime
_STRIDE = 32  # divides the sides of images that are stretched


@dataclass(frozen=True)
class ExportConfig:
    """The contents of an exported file."""

    format: ExportFormat = "onnx"
    precision: ExportPrecision = "fp32"
    processing: bool = False  # takes stored images, and returns detections
    mask: bool = False  # a second input marks the padding
    masks: bool = False  # also returns mask logits; `export` sets it for a model with masks
    size: Size | None = None  # height and width of the input; None = any
    single: bool = False  # takes a single image, also in formats that could take any number

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("images", "mask") if self.mask else ("images",)

    @property
    def one_image(self) -> bool:
        """Whether the file takes a single image only."""
        return self.single or self.for_devices

    @property
    def for_devices(self) -> bool:
        """Whether the file is for the runtime of a device, which needs one size and one image."""
        return self.format in MOBILE

    @property
    def outputs(self) -> tuple[str, ...]:
        names = ("scores", "labels", "boxes") if self.processing else ("logits", "boxes")
        return (*names, "masks") if self.masks else names

    def check(self) -> None:
        """Raises InputError for options that exclude each other, or a missing package."""
        if self.precision == "fp16" and self.format not in ("openvino", "coreml"):
            raise InputError(
                "--precision fp16 needs --format openvino or coreml: use one of them, or fp32"
            )
        if self.precision == "int8" and self.format not in ("onnx", "openvino"):
            raise InputError(
                "--precision int8 needs --format onnx or openvino: use one of them, or fp32"
            )
        if self.processing and self.mask:
            raise InputError(
                "with --with-processing, all images of a batch have one size and need no padding: "
                "leave out --mask"
            )
        if self.processing and (self.size or self.for_devices):
            raise InputError(
                "--with-processing takes images of any size: leave it out for a file of one size, "
                "and prepare images as its metadata states"
            )
        missing = [name for name in _NEEDED[self.format] if find_spec(name) is None]
        if missing:
            raise InputError(
                f"--format {self.format} needs {' and '.join(missing)}: {_INSTALL[self.format]}"
            )

    def of_model(self, detector: Detector) -> "ExportConfig":
        """These settings, completed for a model: with its masks and, for files of one size, with
        that size and whether padding is an input.

        Raises InputError for a size that the model does not support, or if a size is required.
        """
        model = detector.model
        size = self.size
        mask = self.mask
        if self.format == "litert" and model.resize == "aspect":
            raise InputError(
                "--format litert: its converter is wrong for padded images, which this model "
                "needs; use --format executorch"
            )
        if self.for_devices and size is None:
            if model.resize == "aspect":
                raise InputError(
                    f"--format {self.format} takes images of one size, but this model keeps their "
                    "aspect ratio: give --fixed-size HEIGHTxWIDTH, to which images are scaled and "
                    "padded"
                )
            size = _pair(detector.image_size)
        if size and min(size) < 1:
            raise InputError(f"--fixed-size {size_text(size)}: height and width must be positive")
        if size and model.resize == "aspect":
            mask = True
        elif size and any(side % _STRIDE for side in size):
            raise InputError(
                f"--fixed-size {size_text(size)}: height and width must be multiples of {_STRIDE}"
            )
        return replace(self, masks=model.has_masks, size=size, mask=mask)


def _pair(image_size: ImageSize) -> Size:
    return (image_size, image_size) if isinstance(image_size, int) else image_size
