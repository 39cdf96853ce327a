"""What a recipe becomes when data and model are known."""

from dataclasses import replace

import pytest

import redetr
from redetr.data import Hints
from redetr.models import build
from redetr.recipes import RECIPES, get_recipe


def resolved(num_images: int, recipe: str = "redetr_n", **changes) -> redetr.TrainConfig:
    return replace(get_recipe(recipe), **changes).resolved(
        build("redetr_n", 1), Hints(), num_images
    )


@pytest.mark.parametrize(
    ("num_images", "steps", "decay"),
    [
        (50, 1500, 0.99467),
        (412, 1500, 0.99467),
        (5_000, 11_250, 0.99929),
        (118_287, 266_146, 0.9998),
    ],
)
def test_the_length_of_a_run_follows_the_data(num_images, steps, decay):
    """At least 1,500 steps, at most 36 passes; the average of the weights reaches back an eighth of
    the run."""
    config = resolved(num_images)
    assert config.steps == pytest.approx(steps, rel=1e-3)
    assert config.ema_decay == pytest.approx(decay, abs=1e-5)


def test_what_the_user_says_wins():
    assert resolved(5_000, steps=77).steps == 77
    assert resolved(100, epochs=0.001).steps == 1
    assert resolved(1_000, epochs=3.0).steps == 188
    assert resolved(5_000, ema_decay=0.5).ema_decay == 0.5
    assert resolved(5_000, steps=200).ema_decay == 0.99  # never shorter than a hundred steps
    with pytest.raises(redetr.InputError, match="one of them"):
        resolved(5_000, steps=10, epochs=1.0)


@pytest.mark.parametrize(
    ("model", "native_size", "image_size"),
    [
        ("redetr_n", 320, 320),
        ("redetr_n", 301, 320),
        ("redetr_n", 4000, 640),
        ("redetr_n", None, 640),
        ("detr_r50", 320, 800),
    ],
)
def test_small_images_are_not_enlarged_for_the_fast_forms(model, native_size, image_size):
    built = build(model, 1, backbone=(32, 64, 128))
    hints = Hints(native_size=native_size)
    assert (
        replace(get_recipe(model), weights=None).resolved(built, hints, 100).image_size
        == image_size
    )
    assert replace(get_recipe(model), image_size=96).resolved(built, hints, 100).image_size == 96


def test_evaluations_are_spread_over_the_run():
    for steps in (10, 1_000, 100_000):
        assert 5 <= steps / resolved(2_000, steps=steps).eval_every <= 20


def test_recipes_keep_the_published_length():
    config = replace(get_recipe("detr_r50"), weights=None).resolved(
        build("redetr_n", 1), Hints(), 118_287
    )
    assert config.steps == 300 * 118_287 // 16 + 1
    assert config.ema_decay == 0.0


def test_every_recipe_names_a_model():
    assert {recipe().model for recipe in RECIPES.values()} <= redetr.MODELS.keys()
