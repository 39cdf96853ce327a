"""A trained model that is ready to use: `load` a checkpoint of any kind, `predict` on images."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from redetr import memory, panoptic
from redetr.bounds import require_share
from redetr.choices import DATA_IN_PYTHON, ImageSize, Precision
from redetr.data import DetectionDataset, open_dataset
from redetr.data.annotations import Split
from redetr.data.loader import images_to_batch
from redetr.data.transforms import final_size, resizer
from redetr.data.unreadable import LeaveOut
from redetr.data.windows import tile_windows
from redetr.detector.detections import Detections, detections_of
from redetr.detector.images import ImageLike, ImageList, as_image
from redetr.detector.inference import for_inference
from redetr.detector.segments import PanopticDetections, segments_of
from redetr.detector.tiles import merge_tiles
from redetr.distributed import Dist
from redetr.errors import InputError, NoMasksError
from redetr.evaluation import evaluate, outputs_of
from redetr.launch import pick_device
from redetr.metrics import DEFAULT_THRESHOLD, CocoResult
from redetr.models import build
from redetr.models.panoptic import PanopticDETR
from redetr.precision import autocast, exact_products, pick_precision, weights_dtype
from redetr.structures import Batch, DetectionModel, Outputs, Size
from redetr.weights.dfine import lacking_activation
from redetr.weights.filling import load_strictly, require_fitting
from redetr.weights.reading import Origin, Weights, other_model, read_weights

_TILES_AT_ONCE = 8


class Detector:
    """A model with its class names and its image size, ready for prediction.

    `threshold` is the lowest score that `predict` returns by default: the score with the best F1 in
    the evaluation with which the checkpoint was saved, or 0.5 if that was not measured.
    `run_precision` is the precision of the training run, or None if it is unknown; `precision` is
    the precision of this detector, and the reason for it.
    """

    def __init__(
        self,
        model: DetectionModel,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        image_size: ImageSize,
        device: str = "auto",
        precision: Precision = "fp32",
        trained_on: str | None = None,
        val_fraction: float = 0.0,
        threshold: float | None = None,
        run_precision: Precision | None = None,
    ):
        if threshold is not None:
            require_share("threshold", threshold)
        self.device = pick_device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.run_precision = run_precision
        self.image_size = self.model.trained_size = image_size
        self.compute_in(precision)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.trained_on = trained_on
        self.val_fraction = val_fraction
        self.has_measured_threshold = threshold is not None
        self.held_out_otherwise = False  # see `Origin`
        self.skip_unreadable = False  # see `Origin`
        self.threshold = DEFAULT_THRESHOLD if threshold is None else threshold

    @property
    def classes(self) -> list[tuple[int, str]]:
        """The category id and name of each label, in the order of labels."""
        return list(zip(self.category_ids, self.class_names, strict=True))

    def open_data(
        self,
        split: Split,
        source: str | None = None,
        val_fraction: float | None = None,
        masks: bool = False,
        skip_unreadable: bool = False,
    ) -> DetectionDataset:
        """The data set at `source`; by default, the one that the model was trained on.

        With `masks`, targets have masks if the data set has some. With `skip_unreadable`, images
        that cannot be read are left out, as they are of the training data if its run left them out.

        Raises InputError if the data set cannot be opened, or if no `source` is given and the
        checkpoint does not name one.
        """
        is_as_in_run = source is None and self.skip_unreadable
        leave_out: LeaveOut = "unreadable" if skip_unreadable or is_as_in_run else None
        held_out = self.val_fraction if val_fraction is None else val_fraction
        channels = self.model.channels
        if source is not None:
            return _opened(source, split, held_out, masks, leave_out).with_channels(channels)
        if self.trained_on is None:
            raise InputError("the checkpoint does not state its training data: give --data")
        if self.trained_on == DATA_IN_PYTHON:
            raise InputError("its training data was given in Python: give --data")
        try:
            dataset = _opened(self.trained_on, split, held_out, masks, leave_out)
            return dataset.with_channels(channels)
        except InputError as error:
            raise InputError(
                f"{error}; the checkpoint stores this path of its training data: give --data"
            ) from error

    def compute_in(self, precision: Precision, dist: Dist | None = None) -> "Detector":
        """Switches to `precision` (see `pick_precision`), and returns the detector.

        The weights are converted to fp64 for fp64, and to fp32 otherwise. With `dist`, all ranks
        adopt the choice of rank 0, because their trials may differ; this communicates.
        """
        if precision == "auto":  # never fp64, and the trial needs weights in fp32
            self.model.to(torch.float32)
        choice = pick_precision(
            precision, self.device, self.model, self.image_size, run_precision=self.run_precision
        )
        if dist is not None:
            choice = dist.gather([choice])[0]
        self.precision = choice
        self.dtype = choice.dtype
        self.model.to(weights_dtype(self.dtype))
        return self

    def optimize(
        self, compile: bool = False, precision: Precision = "auto", dist: Dist | None = None
    ) -> "Detector":
        """Speeds up this detector's model (see `for_inference`) and returns the detector.

        It computes in `precision` from now on. "auto" keeps bf16 and fp64, and replaces fp32 by
        bf16 where that is faster, unless the training run computed in fp32 (see `pick_precision`).
        With `compile`, the model is compiled, which takes a minute at the first image. Scores and
        boxes change by rounding: by less than 1e-4 in fp32, by more in bf16. The model no longer
        returns `aux_outputs`. With `dist`, all ranks adopt the choice of rank 0; this communicates.
        """
        self.model = for_inference(self.model)
        keeps = precision == "auto" and self.dtype in (torch.bfloat16, torch.float64)
        if not keeps:
            self.compute_in(precision, dist)
        if compile:
            self.model.compile(dynamic=True)
        return self

    def evaluate(
        self,
        data: str | os.PathLike | DetectionDataset | None = None,
        split: Split = "val",
        batch_size: int = 16,
    ) -> CocoResult:
        """The twelve COCO numbers and the AP of each class on `data`; those of masks as well, if
        the model and all objects have masks. If only the model has, `why_no_masks` says why not.

        `data` is a data set or an argument of `open_dataset`; by default, it is the data that the
        model was trained on. Raises InputError if the data cannot be opened or has other classes.
        """
        if data is None or isinstance(data, str | os.PathLike):
            source = None if data is None else os.fspath(data)
            data = self.open_data(split, source, masks=self.model.has_masks)
        return evaluate(
            self.model,
            data,
            classes=self.classes,
            image_size=self.image_size,
            dtype=self.dtype,
            batch_size=batch_size,
        )

    @overload
    def predict(
        self,
        images: ImageLike,
        threshold: float | None = ...,
        tile: int | None = ...,
        overlap: float = ...,
        masks: bool = ...,
    ) -> Detections: ...

    @overload
    def predict(
        self,
        images: ImageList,
        threshold: float | None = ...,
        tile: int | None = ...,
        overlap: float = ...,
        masks: bool = ...,
    ) -> list[Detections]: ...

    @torch.no_grad()  # inference mode would give tensors that cannot be changed in place
    def predict(
        self,
        images: ImageLike | ImageList,
        threshold: float | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        masks: bool = True,
    ) -> Detections | list[Detections]:
        """`Detections` of one image, or a list of them for a list of images.

        An image is a path, a URL (http, https), a PIL image, a uint8 array `[H, W, 3]` (RGB), `[H,
        W]` (grey) or `[H, W, 4]` (RGBA), or a uint8 tensor `[3, H, W]`. A model that does not take
        RGB needs arrays `[H, W, channels]` or tensors `[channels, H, W]`. Files and PIL images are
        rotated as their EXIF tag says. A list is processed as one batch. The detections of a single
        image keep the image, so that they can be drawn. Those of a list do not, because all images
        would have to stay in memory.

        `threshold` is the lowest score of a detection; by default, that of the detector. Masks, if
        the model has them, have the size of the original image. Large images can be divided into
        tiles with a side of `tile` px, which `overlap` by this share of their side (see `tiles`).
        Their masks are `CroppedMasks`, because each would otherwise take as much memory as the
        image. `masks=False` leaves masks out.

        Raises InputError for something that is not an image, a file that cannot be read, or a
        threshold that is not between 0 and 1.
        """
        if threshold is None:
            threshold = self.threshold
        require_share("threshold", threshold)
        if not isinstance(images, (list, tuple)):
            image = as_image(images, self.model.channels)
            (detections,) = self._predict_all([image], threshold, tile, overlap, masks)
            return replace(detections, image=image)
        tensors = [as_image(image, self.model.channels) for image in images]
        return self._predict_all(tensors, threshold, tile, overlap, masks)

    def _predict_all(
        self,
        images: list[Tensor],
        threshold: float,
        tile: int | None,
        overlap: float,
        masks: bool,
    ) -> list[Detections]:
        if tile is None:
            return self._predict(images, threshold, masks) if images else []
        detections = []
        for image in images:
            detections.append(self._predict_tiled(image, threshold, tile, overlap, masks))
        return detections

    def _predict_tiled(
        self, image: Tensor, threshold: float, tile: int, overlap: float, masks: bool
    ) -> Detections:
        height, width = image.shape[1:]
        windows = tile_windows(height, width, tile, overlap)
        tiles = [image[:, top:bottom, left:right] for left, top, right, bottom in windows]
        in_tiles: list[Detections] = []
        for start in range(0, len(tiles), _TILES_AT_ONCE):
            some_tiles = tiles[start : start + _TILES_AT_ONCE]
            in_tiles += self._predict(some_tiles, threshold, masks, crop_masks=True)
        return merge_tiles(in_tiles, windows, (height, width))

    @torch.no_grad()  # see `predict`
    def predict_at_size(self, image: Tensor, size: Size, threshold: float) -> Detections:
        """The `Detections` of an image as in `predict`, but with boxes and masks in pixels of a
        smaller copy of it, of this height and width: masks of a photograph would take gigabytes.
        The model is given the image itself."""
        (detections,) = self._predict([image], threshold, sizes=[size])
        return detections

    @exact_products()
    def _predict(
        self,
        images: list[Tensor],
        threshold: float,
        masks: bool = True,
        crop_masks: bool = False,
        sizes: list[Size] | None = None,
    ) -> list[Detections]:
        """The detections in each image, in pixels of an image of these `sizes`; by default, of the
        image itself."""
        batch, outputs = self._outputs(images)
        if sizes is None:
            sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return detections_of(
            outputs,
            sizes,
            self.model.loss_config.scores,
            self.class_names,
            self.category_ids,
            top_k=self.model.max_detections,
            threshold=threshold,
            batch=batch if masks else None,
            is_panoptic=self.model.is_panoptic,
            crop_masks=crop_masks,
        )

    @torch.inference_mode()
    def _outputs(self, images: list[Tensor]) -> tuple[Batch, Outputs]:
        resize = resizer(final_size(self.model, self.image_size))
        resized = [resize(image) for image in images]
        batch = images_to_batch(resized, self.device, dtype=weights_dtype(self.dtype))
        with autocast(self.device, self.dtype):
            return batch, outputs_of(self.model, batch)

    @overload
    def predict_panoptic(
        self, images: ImageLike, threshold: float = ..., masks: bool = ...
    ) -> PanopticDetections: ...

    @overload
    def predict_panoptic(
        self, images: ImageList, threshold: float = ..., masks: bool = ...
    ) -> list[PanopticDetections]: ...

    @torch.no_grad()  # inference mode would give tensors that cannot be changed in place
    def predict_panoptic(
        self,
        images: ImageLike | ImageList,
        threshold: float = panoptic.THRESHOLD,
        masks: bool = True,
    ) -> PanopticDetections | list[PanopticDetections]:
        """`PanopticDetections` of one image, or a list of them for a list of images, given as to
        `predict`. Every pixel belongs to at most one segment.

        `threshold` is the score above which a query becomes a segment; published results use the
        default. `masks=False` leaves out the masks of single segments, which `ids` hold as well.
        Raises InputError if the model is not panoptic, and for the same reasons as `predict`.
        """
        if not isinstance(self.model, PanopticDETR):
            remedy = "load detr_r50_panoptic, detr_r50_dc5_panoptic or detr_r101_panoptic"
            raise InputError("this model has no panoptic segmentation", remedy=remedy)
        require_share("threshold", threshold)
        if not isinstance(images, (list, tuple)):
            image = as_image(images, self.model.channels)
            (single,) = self._segments([image], threshold, masks)
            return replace(single, detections=replace(single.detections, image=image))
        tensors = [as_image(image, self.model.channels) for image in images]
        return self._segments(tensors, threshold, masks)

    @exact_products()
    def _segments(
        self, images: list[Tensor], threshold: float, masks: bool
    ) -> list[PanopticDetections]:
        if not images:
            return []
        batch, outputs = self._outputs(images)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        is_thing = self.model.is_thing or (True,) * len(self.class_names)
        panoptics = panoptic.panoptic_of_batch(outputs, batch.sizes, sizes, is_thing, threshold)
        predictions = []
        for image_segments in panoptics:
            prediction = segments_of(image_segments, self.class_names, self.category_ids, masks)
            predictions.append(prediction)
        return predictions


def _opened(
    source: str, split: Split, val_fraction: float, masks: bool, leave_out: LeaveOut
) -> DetectionDataset:
    try:
        return open_dataset(source, split, val_fraction, masks=masks, leave_out=leave_out)
    except NoMasksError:  # it is measured by its boxes
        return open_dataset(source, split, val_fraction, leave_out=leave_out)


def load(
    source: str | os.PathLike,
    model: str | None = None,
    device: str = "auto",
    precision: Precision | None = None,
    keep_memory: bool = True,
) -> Detector:
    """A `Detector` from weights of any of these kinds:

    a redetr checkpoint (`last.pt`, `best.pt`: the averaged weights), `best.safetensors`, or a run
    folder; an official checkpoint of DETR (`{"model": state_dict}`), also a panoptic one, of the
    Table Transformer, of RT-DETR, RT-DETRv2 or D-FINE (the averaged weights), or of DEIM or
    RT-DETRv4 on the architecture of D-FINE or RT-DETRv2 (on that of D-FINE, the name of the file or
    of its folder has to say so); a folder that Transformers wrote for `DetrForObjectDetection`,
    `DetrForSegmentation`, `TableTransformerForObjectDetection`, `RTDetrForObjectDetection`,
    `RTDetrV2ForObjectDetection` or `DFineForObjectDetection`; a folder of `redetr push`; the hub
    name of any of these folders (needs huggingface-hub).

    `model` names the variant if the weights do not: "detr_r50_dc5", "detr_r101_dc5",
    "detr_r50_dc5_panoptic"; it is an error if they name another. `precision` is by default that of
    the training run (see `pick_precision`), and fp32 for weights from elsewhere. With
    `keep_memory`, a process on a CPU keeps the memory that it frees (see `redetr.memory`), which
    is up to twice as fast at 800 px. Only tensors and plain values are unpickled. Raises
    InputError, naming the file.
    """
    weights = read_weights(source, model)
    origin = _origin_of(weights, model)
    net = _model_of(weights, origin)
    detector = Detector(
        net,
        origin.class_names,
        origin.category_ids,
        origin.image_size or net.image_size,
        device,
        precision or ("fp32" if origin.precision is None else "auto"),
        origin.trained_on,
        origin.val_fraction,
        origin.threshold,
        origin.precision,
    )
    detector.held_out_otherwise = origin.held_out_otherwise
    detector.skip_unreadable = origin.skip_unreadable
    if keep_memory and detector.device.type == "cpu":
        memory.keep_memory()
    return detector


def _origin_of(weights: Weights, model: str | None) -> Origin:
    """What a file states about its detector. Raises InputError if it has none, or another than the
    user says."""
    origin = weights.origin
    if origin is None:
        raise InputError(
            f"{weights.path}: neither a redetr checkpoint nor an official one: there is no DETR in "
            "it; if it is a backbone, train with --weights"
        )
    if origin.lacks_activation:
        raise lacking_activation(weights.path)
    if model is not None and model != origin.model:
        raise other_model(weights.path, origin.model, model)
    return origin


def _model_of(weights: Weights, origin: Origin) -> DetectionModel:
    """The model that a file describes, with its weights.

    Raises InputError if these do not fit.
    """
    most_layers = 0
    for name, value in origin.options.items():
        # `build` refuses values of other types, which cannot be compared.
        if name.endswith("_layers") and isinstance(value, int):
            most_layers = max(most_layers, value)
    if most_layers > len(weights.tensors):
        raise InputError(
            f"{weights.path}: the weights do not fit the model: the file is too small for "
            f"{most_layers} layers"
        )
    num_classes = len(origin.class_names)
    # Built without memory or random values: all values come from the file, whose description of
    # itself may be wrong.
    with torch.device("meta"):
        net = build(origin.model, num_classes, **origin.options)
    require_fitting(net, weights)
    if _has_computed_buffers(net):
        net = build(origin.model, num_classes, **origin.options)
    load_strictly(net, weights)
    net.weights_from = weights.weights_from
    net.is_thing = origin.is_thing
    return net


def _has_computed_buffers(net: DetectionModel) -> bool:
    """Whether a model on the device "meta" has buffers that no file holds, such as RT-DETR's mean
    colour."""
    saved = net.state_dict()
    return any(buffer.is_meta for name, buffer in net.named_buffers() if name not in saved)
