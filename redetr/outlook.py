"""Warnings, before a run starts, that it cannot end well, and why."""

from redetr.config import Settings, default_steps
from redetr.data import DetectionDataset
from redetr.data.formats.folder import AnnotatedDataset
from redetr.model_options import parsed_options
from redetr.weights.published import PUBLISHED
from redetr.wording import counted

# Below these a run ends poorly, and the user should know.
_FEW_STEPS = 100_000  # for a faithful variant
_FEW_IMAGES, _FEW_OBJECTS = 100, 300  # without pretrained weights
_SHORT_SHARE = 0.5  # of the usual length
_ENOUGH_IMAGES, _ENOUGH_OBJECTS = 10, 30  # of a val split
_MANY_OBJECTS = 100  # of a val split of few images
# Options of the model with which its published weights can be loaded.
_SAME_NETWORK = {"num_queries", "dropout", "aux_loss", "eos_coef", "max_size"}


def outlook(config: Settings, train: DetectionDataset, val: DetectionDataset) -> list[str]:
    """Warnings and notes on a run that learns from `train` and is measured on `val`."""
    notes = _too_little_to_learn(config, train)
    if isinstance(val, AnnotatedDataset):  # scenes that are drawn have no usual length
        notes += _too_short(config, len(train))
    notes += _too_small(val)
    return notes


def _too_little_to_learn(config: Settings, train: DetectionDataset) -> list[str]:
    """A warning if a run cannot end well. The faithful variant needs some 300,000 steps from a
    pretrained backbone."""
    if config.weights in (None, "none"):
        start = "no pretrained weights"
    elif config.weights == "imagenet":
        start = "only a pretrained backbone"
    else:
        return []
    images = counted(len(train), "image")
    has_few_objects = True
    if isinstance(train, AnnotatedDataset):
        objects = _num_objects(train)
        images += f" with {counted(objects, 'object')}"
        has_few_objects = objects < _FEW_OBJECTS
    run = f"warning: {images}, {counted(config.steps, 'step')}, {start}"
    if config.is_faithful and config.steps < _FEW_STEPS:
        weights = _published_weights(config)
        or_weights = f", or --weights {weights}" if weights else ""
        return [f"{run}: results of {config.model} will be poor; use redetr_n{or_weights}"]
    has_few_images = len(train) < _FEW_IMAGES
    if config.weights != "imagenet" and has_few_images and has_few_objects:
        return [
            f"{run}: little to learn from; more images help most, then pretrained weights (redetr "
            "models)"
        ]
    return []


def _published_weights(config: Settings) -> str:
    """The published weights that fit the network of a run; empty if there are none."""
    for name in parsed_options(config.model_options):
        if name not in _SAME_NETWORK:
            return ""
    published = PUBLISHED.get(config.model)
    origin = published.origin if published else None
    return origin or ""


def _too_short(config: Settings, num_images: int) -> list[str]:
    """A note where a run is far shorter than it would be by default."""
    usual = default_steps(num_images, config.batch_size)
    if config.is_faithful or config.steps >= _SHORT_SHARE * usual:
        return []
    percent = 100 * config.steps // usual
    share = f"{percent}%" if percent else "less than 1%"
    verb = "is" if config.steps == 1 else "are"
    return [
        f"note: {counted(config.steps, 'step')} {verb} {share} of the usual length for "
        f"{counted(num_images, 'image')}; the default is --steps {usual}"
    ]


def _too_small(val: DetectionDataset) -> list[str]:
    """A warning where AP on the val split is mostly chance."""
    if not isinstance(val, AnnotatedDataset):
        return []
    objects = _num_objects(val)
    has_enough = len(val) >= _ENOUGH_IMAGES and objects >= _ENOUGH_OBJECTS
    if has_enough or objects >= _MANY_OBJECTS:
        return []
    images = counted(len(val), "image")
    number = counted(objects, "object")
    return [
        f"warning: the val split has only {images} with {number}, so AP and the choice of best.pt "
        "are mostly chance; hold out more images, or annotate more"
    ]


def _num_objects(dataset: AnnotatedDataset) -> int:
    return int(dataset.annotations.object_counts().sum())
