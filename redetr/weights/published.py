"""Weights that others have published: the model, where they are, and their licence.

AP and PQ are those that the authors report for COCO val 2017, and were not measured here. Licences
come from the cards on the Hugging Face hub, or from the repository if there is no card.
"""

import hashlib
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """Published weights of a model in `MODELS`."""

    origin: str | None  # a hub name, which --weights and `load` take; None: not on the hub
    licence: str
    ap: float | None = None  # of boxes, in percent; None: its data is not COCO
    mask_ap: float | None = None  # in percent; None: it has no masks
    pq: float | None = None  # panoptic quality in percent, where it is panoptic


def _detr(name: str, ap: float) -> Published:
    return Published(f"facebook/detr-{name}", "Apache-2.0", ap)


def _panoptic(name: str, pq: float, ap: float, mask_ap: float) -> Published:
    return Published(f"facebook/detr-{name}-panoptic", "Apache-2.0", ap, mask_ap, pq)


def _dfine(name: str, ap: float) -> Published:
    return Published(f"ustc-community/dfine-{name}-coco", "Apache-2.0", ap)


def _rtdetr(name: str, ap: float) -> Published:
    return Published(f"PekingU/rtdetr_{name}", "Apache-2.0", ap)


# By the name of the model.
PUBLISHED = {
    "detr_r50": _detr("resnet-50", 42.0),
    "detr_r50_dc5": _detr("resnet-50-dc5", 43.3),
    "detr_r101": _detr("resnet-101", 43.5),
    "detr_r101_dc5": _detr("resnet-101-dc5", 44.9),
    "detr_table": Published("microsoft/table-transformer-detection", "MIT"),
    "detr_r50_panoptic": _panoptic("resnet-50", 43.4, 38.8, 31.1),
    "detr_r50_dc5_panoptic": _panoptic("resnet-50-dc5", 44.6, 40.2, 31.9),
    "detr_r101_panoptic": _panoptic("resnet-101", 45.1, 40.1, 33.0),
    "rtdetr_r18": _rtdetr("r18vd", 46.4),
    "rtdetr_r34": _rtdetr("r34vd", 48.9),
    "rtdetr_r50m": Published(None, "Apache-2.0", 51.3),
    "rtdetr_r50": _rtdetr("r50vd", 53.1),
    "rtdetr_r101": _rtdetr("r101vd", 54.3),
    "rtdetrv2_r18": _rtdetr("v2_r18vd", 48.1),
    "rtdetrv2_r34": _rtdetr("v2_r34vd", 49.9),
    "rtdetrv2_r50m": Published(None, "Apache-2.0", 51.9),
    "rtdetrv2_r50": _rtdetr("v2_r50vd", 53.4),
    "rtdetrv2_r101": _rtdetr("v2_r101vd", 54.3),
    "dfine_n": _dfine("nano", 42.8),
    "dfine_s": _dfine("small", 48.5),
    "dfine_m": _dfine("medium", 52.3),
    "dfine_l": _dfine("large", 54.0),
    "dfine_x": _dfine("xlarge", 55.8),
}

# Licences by hub name. The first pattern that matches decides.
_HUB_LICENCES = (
    ("facebook/detr-*", "Apache-2.0"),
    ("microsoft/table-transformer-*", "MIT"),
    ("PekingU/rtdetr_*", "Apache-2.0"),
    # As their maintainer states, who makes no statement on those from Objects365 (obj2coco).
    ("ustc-community/dfine-*-coco", "Apache-2.0"),
)


def licence_of_hub_name(name: str) -> str | None:
    """Returns the licence of weights on the hub, or None if it is unknown."""
    for pattern, licence in _HUB_LICENCES:
        if fnmatchcase(name, pattern):
            return licence
    return None


# The owner and licence of files, by their name, which ends with a hash of their content.
_FILES = {
    "detr-r50-e632da11.pth": ("facebookresearch/detr", "Apache-2.0"),
    "detr-r50-dc5-f0fb7ef5.pth": ("facebookresearch/detr", "Apache-2.0"),
    "detr-r101-2c7b67e5.pth": ("facebookresearch/detr", "Apache-2.0"),
    "detr-r101-dc5-a2e86def.pth": ("facebookresearch/detr", "Apache-2.0"),
    "detr-r50-panoptic-00ce5173.pth": ("facebookresearch/detr", "Apache-2.0"),
    "detr-r50-dc5-panoptic-da08f1b1.pth": ("facebookresearch/detr", "Apache-2.0"),
    "detr-r101-panoptic-40021d53.pth": ("facebookresearch/detr", "Apache-2.0"),
    "efficientnet-lite0-57934424.pth": ("Google, ImageNet", "Apache-2.0"),
    "resnet18d_ra2-48a79e06.pth": ("timm, ImageNet", "Apache-2.0"),
    "resnet34d_ra2-f8dcfcaf.pth": ("timm, ImageNet", "Apache-2.0"),
    "resnet50d_ra2-464e36ba.pth": ("timm, ImageNet", "Apache-2.0"),
    "resnet101d_ra2-2803ffab.pth": ("timm, ImageNet", "Apache-2.0"),
}
UNKNOWN = "of unknown origin and licence"


def origin_of(source: str | os.PathLike, path: Path) -> str:
    """Returns the origin and licence of the weights at `path`, in words.

    `source` is the argument that the user gave. A file is identified by its name and content;
    statements that a local file or folder makes about itself are ignored.
    """
    import torchvision  # takes a second, which listing the weights should not need

    from redetr.models.backbone import MOBILENETS, RESNETS

    if not Path(source).exists():  # a hub name, whose folder is in a cache
        licence = licence_of_hub_name(str(source)) or "for the licence see its card"
        return f"{source} on the Hugging Face hub ({licence})"
    if path.is_dir():
        return f"a local folder {UNKNOWN}"
    for name in (*RESNETS, *MOBILENETS):
        url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        if path.name == url.rpartition("/")[2] and _has_hash_of_name(path):
            return f"{path.name} of torchvision, ImageNet (BSD-3-Clause)"
    if path.name in _FILES and _has_hash_of_name(path):
        owner, licence = _FILES[path.name]
        return f"{path.name} of {owner} ({licence})"
    return f"a local file {UNKNOWN}"


def _has_hash_of_name(path: Path) -> bool:
    with path.open("rb") as file:
        content_hash = hashlib.file_digest(file, "sha256").hexdigest()
    return content_hash.startswith(path.stem.rpartition("-")[2])
