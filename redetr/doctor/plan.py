"""The plan of a recipe for a data set."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
import torch

from redetr.choices import WEIGHTS_REQUIRED, ImageSize, size_text
from redetr.config import MOST_QUERIES, Settings, TrainConfig
from redetr.data import Hints
from redetr.data.annotations import Annotations
from redetr.data.views import Stretch
from redetr.models import build
from redetr.recipes import get_recipe
from redetr.weights.untrained import freezes_detector


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe for a data set, as far as it concerns boxes."""

    recipe: str
    config: Settings
    resize: Literal["aspect", "square"]
    max_size: int | None
    num_queries: int
    flags: str = ""  # for training as planned, each after a space

    @classmethod
    @cache  # a model is built for it
    def of(
        cls,
        recipe: str,
        hints: Hints,
        num_queries: int | None,
        image_size: ImageSize = 0,
        masks: bool = False,
        max_objects: int = MOST_QUERIES,
    ) -> "Plan":
        """The plan for training with a recipe on data with these hints.

        `num_queries` None and `image_size` 0 stand for the choice of training, in whose images
        there are at most `max_objects` objects; `masks` are trained as well, whatever the recipe
        says.

        Raises InputError for an unknown recipe, or for a size or masks that the model does not
        support.
        """
        asked = get_recipe(recipe)
        config = replace(asked, weights=None, masks=masks or asked.masks)
        if image_size:
            config = replace(config, image_size=image_size)
        config.check(world_size=1)
        config = config.with_queries(hints, max_objects)
        with torch.device("meta"):
            model = build(config.model, 1, **config.model_kwargs())
        settings = config.resolved(model, hints, num_images=1)
        queries = num_queries or model.num_queries
        flags = ""
        if _demands_weights(asked):
            flags += " --weights RUN"
        if num_queries:
            flags += f" --num-queries {num_queries}"
        if image_size:
            flags += f" --image-size {size_text(image_size)}"
        if masks and not asked.masks:
            flags += " --masks"
        return cls(recipe, settings, model.resize, model.max_size, queries, flags)

    def shorter_sides(self, annotations: Annotations, image_size: ImageSize) -> np.ndarray:
        """The shorter side of each box, float `[A]`, in pixels of the model's input in training at
        this size."""
        boxes = annotations.boxes
        sizes = annotations.sizes[annotations.image_of(), ::-1]  # width, height, [A, 2]
        if self.config.augment == "aerial":  # crops at native scale, regardless of the image size
            scale = np.ones((1, 2))
        elif self.resize == "square":
            height, width = Stretch(*sides_of(image_size)).size
            scale = np.array([width, height]) / sizes
        else:
            (shorter,) = sides_of(image_size)
            (nominal_shorter,) = sides_of(self.config.image_size)
            longest = (self.max_size or np.inf) * shorter / nominal_shorter
            by_shorter = shorter / sizes.min(1)
            by_longer = longest / sizes.max(1)
            scale = np.minimum(by_shorter, by_longer)[:, None]
        sides = (boxes[:, 2:] - boxes[:, :2]) * scale  # [A, 2]
        return sides.min(1)


def _demands_weights(config: TrainConfig) -> bool:
    """Whether training refuses a recipe without --weights."""
    if config.weights == WEIGHTS_REQUIRED:
        return True
    has_detector = config.weights not in (None, "imagenet")
    return freezes_detector(config) and not has_detector


def sides_of(image_size: ImageSize) -> tuple[int, ...]:
    """The sides in a size: one, or height and width."""
    return (image_size,) if isinstance(image_size, int) else image_size
