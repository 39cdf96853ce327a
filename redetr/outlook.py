"""What can be said of a run before it starts: where it cannot end well, and why."""

from redetr.config import Settings, usual_steps
from redetr.data import DetectionDataset
from redetr.data.formats.folder import AnnotatedDataset
from redetr.wording import counted

# Below these a run ends poorly, and the user should know.
_FEW_STEPS = 100_000  # for a faithful variant
_FEW_IMAGES = 100  # without pretrained weights
_SHORT_SHARE = 0.5  # of the usual length
_ENOUGH_IMAGES, _ENOUGH_OBJECTS = 10, 30  # of a val split


def outlook(config: Settings, num_images: int, val: DetectionDataset) -> list[str]:
    """Warnings and notes on a run that learns from `num_images`."""
    notes = _too_little_to_learn(config, num_images)
    if isinstance(val, AnnotatedDataset):  # scenes that are drawn have no usual length
        notes += _too_short(config, num_images)
    notes += _too_small(val)
    return notes


def _too_little_to_learn(config: Settings, num_images: int) -> list[str]:
    """A warning where a run cannot end well. The faithful variant needs some 300,000 steps from a
    pretrained backbone."""
    if config.weights in (None, "none"):
        start = "no pretrained weights"
    elif config.weights == "imagenet":
        start = "a pretrained backbone only"
    else:
        return []
    images = counted(num_images, "image")
    run = f"warning: {images}, {counted(config.steps, 'step')}, {start}"
    if config.is_faithful and config.steps < _FEW_STEPS:
        return [
            f"{run}: results of {config.model} will be poor; take redetr_n, or --weights "
            "facebook/detr-resnet-50"
        ]
    if config.weights != "imagenet" and num_images < _FEW_IMAGES:
        return [
            f"{run}: results will be poor; more images help most, then pretrained weights (redetr "
            "models)"
        ]
    return []


def _too_short(config: Settings, num_images: int) -> list[str]:
    """A note where a run is far shorter than it would be by default."""
    usual = usual_steps(num_images, config.batch_size)
    if config.is_faithful or config.steps >= _SHORT_SHARE * usual:
        return []
    percent = 100 * config.steps // usual
    share = f"{percent}%" if percent else "less than 1%"
    return [
        f"note: {counted(config.steps, 'step')} are {share} of the usual "
        f"length for {counted(num_images, 'image')}; the default is --steps {usual}"
    ]


def _too_small(val: DetectionDataset) -> list[str]:
    """A warning where AP on the val split is mostly chance."""
    objects = _ENOUGH_OBJECTS
    if isinstance(val, AnnotatedDataset):
        objects = int(val.annotations.object_counts().sum())
    if len(val) >= _ENOUGH_IMAGES and objects >= _ENOUGH_OBJECTS:
        return []
    number = f" with {counted(objects, 'object')}" if isinstance(val, AnnotatedDataset) else ""
    return [
        f"warning: the val split has {counted(len(val), 'image')}{number}: too few to judge by; "
        "AP, and with it the choice of best.pt, is mostly chance; hold out more, or annotate more"
    ]
