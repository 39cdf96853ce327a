"""A trained model as something to ask: `load` a checkpoint of any kind, `predict` on images."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from redetr.checkpoint import REQUIRED, read_safetensors, read_torch
from redetr.config import TrainConfig
from redetr.data.images import read_image
from redetr.data.loader import to_batch
from redetr.data.transforms import resizer
from redetr.distributed import pick_device
from redetr.errors import InputError
from redetr.evaluate import autocast, pick_precision
from redetr.models import build
from redetr.models.convert import coco_class_names, describe_detr, from_transformers
from redetr.postprocess import Detections, detect
from redetr.structures import DetectionModel, Target

ImageLike = str | os.PathLike | Image.Image | np.ndarray | Tensor
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Detector:
    """A model with its class names and its image size."""

    def __init__(self, model: DetectionModel, class_names: Sequence[str], category_ids: Sequence[int], image_size: int,
                 device: str = "auto", precision: str = "fp32", trained_on: str | None = None):  # fmt: skip
        self.device = pick_device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.class_names = tuple(class_names)
        self.category_ids = tuple(category_ids)
        self.image_size = image_size
        self.dtype = pick_precision(precision, self.device)
        self.trained_on = trained_on

    @property
    def classes(self) -> list[tuple[int, str]]:
        """Category id and name of each label."""
        return list(zip(self.category_ids, self.class_names, strict=True))

    @torch.inference_mode()
    def predict(self, images: ImageLike | Sequence[ImageLike], threshold: float = 0.5) -> Any:
        """`Detections` of one image, or a list of them for a list of images.

        An image is a path, a PIL image, a uint8 array `[H, W, 3]` (RGB) or a uint8 tensor `[3, H, W]`. Lists are one
        batch. Raises InputError for something else or a file that cannot be read.
        """
        if isinstance(images, (list, tuple)):
            return self._predict([as_image(image) for image in images], threshold) if images else []
        return self._predict([as_image(images)], threshold)[0]  # type: ignore[arg-type]

    def _predict(self, images: list[Tensor], threshold: float) -> list[Detections]:
        resize = resizer(self.model.resize, self.image_size, self.model.max_size)
        samples = [(resize(image), _no_target(image)) for image in images]
        for image, target in samples:
            target["size"] = (image.shape[-2], image.shape[-1])
        batch = to_batch(samples, self.device)
        with autocast(self.device, self.dtype):
            outputs = self.model(batch.images, batch.padding)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return detect(
            outputs, sizes, self.model.loss_config.scores, self.class_names, self.category_ids, threshold=threshold
        )


def _no_target(image: Tensor) -> Target:
    size = (image.shape[-2], image.shape[-1])
    none = torch.zeros(0)
    return Target(boxes=none.view(0, 4), labels=none.long(), iscrowd=none.bool(), area=none, image_id=0,
                  orig_size=size, size=size)  # fmt: skip


def as_image(image: ImageLike) -> Tensor:
    """Anything that is an image as uint8 `[3, H, W]`. Raises InputError."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"an image array must be [H, W, 3], this one is {list(image.shape)}")
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise InputError(f"cannot take a {type(image).__name__} for an image: give a path, PIL image, array or tensor")
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise InputError(f"an image tensor must be uint8 [3, H, W], this one is {image.dtype} {list(image.shape)}")
    return image


def find_images(sources: Sequence[str]) -> list[Path]:
    """The image files named by `sources`; folders are searched at all depths. Raises InputError if there are none."""
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise InputError(f"{source}: no images in this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise InputError(f"{source}: no such file or folder")
    return found


def load(
    source: str | os.PathLike, model: str | None = None, device: str = "auto", precision: str = "fp32"
) -> Detector:
    """A `Detector` from weights of any of these kinds:

    a redetr checkpoint (`last.pt`, `best.pt`: the averaged weights), `best.safetensors`, or a run folder; an official
    DETR checkpoint (`{"model": state_dict}`); a folder written by Transformers' `DetrForObjectDetection`; the hub name
    of such a folder (needs huggingface-hub).

    `model` names the form where the weights do not tell it: "detr_r50_dc5", "detr_r101_dc5". Nothing is unpickled but
    tensors and plain values. Raises InputError, naming the file, for everything that cannot be loaded.
    """
    path = Path(source)
    if path.is_dir():
        if (path / "config.json").is_file() and not (path / "best.pt").exists() and not (path / "last.pt").exists():
            return _from_transformers(path, model, device, precision)
        path = next((path / name for name in ("best.pt", "last.pt") if (path / name).exists()), path / "best.pt")
    if not path.exists():
        if str(source).count("/") == 1 and path.suffix not in (".pt", ".pth", ".safetensors"):
            return _from_transformers(_download(str(source)), model, device, precision)
        raise InputError(f"{path}: no such file; give a checkpoint, a run folder or a Transformers folder")
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path)
        if "redetr" not in metadata:
            raise InputError(f"{path}: no redetr metadata in it; give the folder with its config.json instead")
        try:
            about = json.loads(metadata["redetr"])
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: its redetr metadata is damaged ({error})") from error
        return _from_redetr(about, weights, path, device, precision)
    content = read_torch(path)
    if isinstance(content, dict) and all(key in content for key in REQUIRED):
        return _from_redetr(content, content.get("ema") or content["model"], path, device, precision)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        return _from_official(content["model"], model or _dilated_by_name(path), path, device, precision)
    raise InputError(f"{path}: neither a redetr checkpoint nor an official one (a dict with a state dict as 'model')")


def _from_redetr(
    about: dict[str, Any], weights: dict[str, Tensor], path: Path, device: str, precision: str
) -> Detector:
    config = TrainConfig.from_dict(about["config"])
    options = {name: value for name, value in config.model_kwargs().items() if name != "weights"}
    model = build(config.model, len(about["class_names"]), **options)
    _load_strictly(model, weights, path)
    return Detector(model, about["class_names"], about["category_ids"], config.image_size or model.image_size, device,
                    precision, config.data)  # fmt: skip


def _from_official(weights: dict[str, Tensor], name: str | None, path: Path, device: str, precision: str,
                   class_names: Sequence[str] | None = None, **options: Any) -> Detector:  # fmt: skip
    guessed, num_classes, described = describe_detr(weights)
    model = build(name or guessed, num_classes, **{**described, **options})
    _load_strictly(model, weights, path)
    if class_names is None:
        class_names = coco_class_names() if num_classes == 91 else [f"class {i}" for i in range(num_classes)]
    return Detector(model, class_names, range(num_classes), model.image_size, device, precision)


def _dilated_by_name(path: Path) -> str | None:
    """Official DC5 files say so in their names only: detr-r50-dc5-f0fb7ef5.pth."""
    if "dc5" not in path.name.lower():
        return None
    return "detr_r101_dc5" if "r101" in path.name.lower() else "detr_r50_dc5"


def _from_transformers(folder: Path, name: str | None, device: str, precision: str) -> Detector:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'config.json'}: cannot be read ({error})") from error
    if config.get("model_type") != "detr":
        raise InputError(f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}, not 'detr'")
    backbone = config.get("backbone_config") or {}
    if config.get("activation_function", "relu") != "relu" or backbone.get("downsample_in_bottleneck"):
        raise InputError(f"{folder / 'config.json'}: not the function of the original DETR: only ReLU and ResNet v1.5")
    if (folder / "model.safetensors").exists():
        weights, _ = read_safetensors(folder / "model.safetensors")
    else:
        weights = read_torch(folder / "pytorch_model.bin")
    labels = config.get("id2label") or {}
    weights = from_transformers(weights)
    num_classes = weights["class_embed.weight"].shape[0] - 1 if "class_embed.weight" in weights else 0
    names = [labels.get(str(i), f"class {i}") for i in range(num_classes)]
    options: dict[str, Any] = {"nheads": config.get("encoder_attention_heads", 8)}
    if config.get("dilation") or backbone.get("output_stride") == 16:
        options["dilation"] = True
    return _from_official(weights, name, folder, device, precision, names, **options)


def _load_strictly(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing, surplus = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    wrong = [n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape]
    if missing or surplus or wrong:
        example = min([*missing, *surplus, *wrong])
        raise InputError(
            f"{path}: the weights do not fit the model: {len(missing)} missing, {len(surplus)} unknown, {len(wrong)} "
            f"of another shape, such as {example}"
        )
    model.load_state_dict(weights)


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"{name}: no such file, and hub names need: pip install huggingface-hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "*.safetensors", "pytorch_model.bin"]))
    except Exception as error:  # the hub client raises many kinds: offline, unknown name, no permission
        reason = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"{name}: no such file, and the hub did not give it ({reason}); download the folder (config.json, "
            "model.safetensors) elsewhere and pass its path"
        ) from error
