"""The settings of a run: what a user may ask for, what a recipe becomes when data and model are
known, and the flags."""

import json
import math
import re
from dataclasses import MISSING, fields, replace
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

import redetr
from redetr.bounds import BOUNDS
from redetr.cli import main
from redetr.commands import COMMANDS
from redetr.commands import train as train_command
from redetr.commands import verify as verify_command
from redetr.commands.arguments import docstrings_of_fields
from redetr.config import Settings, TrainConfig
from redetr.data import Hints
from redetr.models import build
from redetr.recipes import RECIPES, get_recipe

# The config.json of a run, as the first version wrote it.
WRITTEN = {
    "model": "detr_r50",
    "denoising": 0,
    "data": "/data/cups",
    "val_fraction": 0.0,
    "output": "runs/cups",
    "epochs": 0.0,
    "steps": 1500,
    "batch_size": 16,
    "accumulate": 1,
    "optimizer": "adamw",
    "lr": 0.0001,
    "lr_backbone": 1e-05,
    "weight_decay": 0.0001,
    "clip_norm": 0.1,
    "schedule": "step",
    "warmup": 0.0,
    "drop_at": 0.6666666666666666,
    "ema_decay": 0.0,
    "class_normalization": "global",
    "image_size": 800,
    "augment": "detr",
    "mosaic_until": 0.0,
    "group_by_size": True,
    "weights": "imagenet",
    "num_queries": None,
    "model_options": ["dropout=0.0"],
    "precision": "auto",
    "recompute": False,
    "compile": False,
    "device": "auto",
    "seed": 0,
    "num_workers": None,
    "cache_mb": None,
    "cache_dir": None,
    "log_every": 20,
    "eval_every": 75,
    "eval_batch_size": 16,
    "patience": 0,
    "save_every": 75,
    "resume": False,
    "timeout_s": 600.0,
    "gradient_compression": "none",
}
# What has been added since, as a run has it that did not know it.
LATER = {name: value for name, value in TrainConfig().to_dict().items() if name not in WRITTEN}


def resolved(num_images: int, recipe: str = "redetr_n", **changes) -> Settings:
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
    with pytest.raises(redetr.InputError, match="--epochs and --steps both set"):
        TrainConfig(steps=10, epochs=1.0).check(world_size=1)
    with pytest.raises(redetr.InputError, match="would not be trained; give --masks instead"):
        TrainConfig(model_options=("masks=true",)).check(world_size=1)
    TrainConfig(model_options=("masks=true",), masks=True).check(world_size=1)


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


def may_be_none(kind: type) -> set[str]:
    hints = get_type_hints(kind)
    return {name for name, hint in hints.items() if type(None) in get_args(hint)}


@pytest.mark.parametrize(
    ("earlier", "parameters", "queries"),
    [
        # What the models of that name had; redetr_s, with the backbone of today, 1.4 M less.
        ("redetr_s", 4_561_632, 40),
        ("redetr_m", 17_910_636, 40),
        ("redetr_m", 17_977_196, None),
    ],
)
def test_the_settings_of_a_model_of_an_earlier_version_give_the_same_model(
    earlier, parameters, queries
):
    written = {"model": earlier, "model_options": ["nheads=4"], "num_queries": queries}
    config = TrainConfig.from_dict(written)
    with torch.device("meta"):
        model = build(config.model, 80, **config.model_kwargs())
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == parameters
    assert model.num_queries == (queries or 300)
    assert model.decoder[0].self_attn.nheads == 4
    assert TrainConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_leaves_nothing_open(recipe):
    """What may be None in it is what the model or each host decides, or a path."""
    settings = replace(get_recipe(recipe), weights=None).resolved(
        build("redetr_n", 1), Hints(), 100
    )
    assert isinstance(settings, Settings)
    open_fields = may_be_none(Settings)
    assert open_fields == {
        "weights",
        "num_queries",
        "num_workers",
        "threads",
        "custom_augment",
        "cache_mb",
        "cache_dir",
    }
    values = settings.to_dict()
    assert not [name for name in values.keys() - open_fields if values[name] is None]
    assert min(settings.steps, settings.image_size, settings.eval_every, settings.save_every) > 0
    required = {field.name for field in fields(Settings) if field.default is MISSING}
    assert may_be_none(TrainConfig) - open_fields < required
    assert {"steps", "epochs", "image_size", "eval_every", "save_every"} < required


def test_what_is_resolved_stays_as_it_is():
    settings = resolved(5_000)
    assert settings.resolved(build("redetr_n", 1), Hints(image_size=64), 7) == settings


@pytest.mark.parametrize(
    ("model", "options", "kept"),
    [
        ("redetr_n", ["norm=sync_batch", "nheads=4"], ("nheads=4",)),
        ("detr_r50", ["backbone=[32, 64, 128]", "norm=sync_batch"], ("backbone=[32, 64, 128]",)),
        ("redetr_n", ["norm=sync_batch", "backbone=resnet18"], None),
        ("detr_r50", ["norm=sync_batch"], None),
    ],
)
def test_a_norm_that_earlier_runs_ignored(model, options, kept):
    """Three widths have GroupNorm, whatever the option said; it is refused today."""
    config = TrainConfig.from_dict({"model": model, "model_options": options})
    assert config.model_options == (tuple(options) if kept is None else kept)
    if kept is not None:
        build(config.model, 3, **config.model_kwargs())


def test_the_settings_of_earlier_runs_are_read():
    config = TrainConfig.from_dict(WRITTEN)
    assert config.to_dict() == WRITTEN | LATER
    settings = config.resolved(build("redetr_n", 1), Hints(), 100)
    assert settings.to_dict() == WRITTEN | LATER | {"channels": 3} and json.dumps(
        settings.to_dict()
    )
    for name, value in (("lr", True), ("resume", 1), ("augment", "much"), ("model_options", [3])):
        with pytest.raises(redetr.InputError, match=f"setting '{name}' cannot be"):
            TrainConfig.from_dict(WRITTEN | {name: value})


def test_numbers_of_numpy_and_pytorch_become_those_of_python():
    """Otherwise, they could not be written to config.json."""
    config = TrainConfig(
        steps=np.int64(7),
        lr=np.float32(0.5),
        image_size=np.int64(64),
        seed=torch.tensor(3),
        compile=np.bool_(True),
        drop_at=np.array(0.25),
        freeze=[np.str_("backbone")],
    )
    values = [config.steps, config.lr, config.image_size, config.seed, config.compile]
    assert values == [7, 0.5, 64, 3, True]
    assert [type(value) for value in values] == [int, float, int, int, bool]
    assert (config.drop_at, config.freeze) == (0.25, ("backbone",))
    assert TrainConfig(image_size=[np.int64(64), 96]).image_size == (64, 96)
    assert replace(config, image_size=[64, 96]).image_size == (64, 96)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "10"),
        ("steps", np.float64(10.5)),
        ("image_size", "64x96"),
        ("image_size", (64, 96, 3)),
        ("lr", [1e-3]),
        ("batch_size", None),
        ("freeze", "backbone"),
        ("augment", "much"),
    ],
)
def test_a_setting_of_another_type_is_named(name, value):
    with pytest.raises(redetr.InputError, match=f"setting '{name}' cannot be "):
        TrainConfig(**{name: value})
    with pytest.raises(redetr.InputError, match=f"setting '{name}' cannot be "):
        replace(resolved(100), **{name: value})


def test_paths_may_be_given_as_such(tmp_path):
    config = TrainConfig(data=tmp_path, output=tmp_path / "run")
    assert config.to_dict()["output"] == str(tmp_path / "run")
    for name in ("data", "output", "weights", "custom_augment", "cache_dir", "model"):
        assert getattr(TrainConfig(**{name: tmp_path}), name) == str(tmp_path)
    assert TrainConfig(freeze=[Path("backbone")]).freeze == ("backbone",)


def test_a_whole_number_of_python_stays_a_share():
    """Earlier versions wrote how many evaluations a run has patience for, always as a whole
    number."""
    config = TrainConfig(patience=1, lr=1, lr_backbone=0, clip_norm=0, seed=3)
    for settings in (config, replace(resolved(5_000), patience=1, ema_decay=0)):
        written = json.loads(json.dumps(settings.to_dict()))
        assert TrainConfig.from_dict(written).patience == 1
        hints = get_type_hints(type(settings))
        for name, value in written.items():
            may_be_float = float in (hints[name], *get_args(hints[name]))
            assert may_be_float or not isinstance(value, float), name
            assert type(value) is not int or not may_be_float, name
    for earlier, share in ((3, 0.25), (1, 0.25), (0, 0)):
        assert TrainConfig.from_dict({"patience": earlier}).patience == share


@pytest.mark.parametrize(
    ("recipe", "hints", "max_objects", "queries"),
    [
        ("redetr_n", Hints(), 4, 25),
        ("redetr_n", Hints(), 40, 80),
        ("redetr_n", Hints(), 400, 300),
        ("redetr_n", Hints(num_queries=50), 400, 50),
        ("detr_r50", Hints(num_queries=50), 400, None),
        ("detr_tiny", Hints(num_queries=50), 400, 25),
    ],
)
def test_the_data_chooses_the_queries_of_fast_variants(recipe, hints, max_objects, queries):
    config = get_recipe(recipe)
    assert config.with_queries(hints, max_objects).num_queries == queries
    assert replace(config, num_queries=7).with_queries(hints, max_objects).num_queries == 7


CONTRADICTIONS = [
    ("num_queries", 40, "num_queries=50", "--num-queries 40 and the model option num_queries=50"),
    ("denoising", 2, "denoising=3", "--denoising 2 and the model option denoising=3"),
    ("masks", True, "masks=false", "--masks and the model option masks=false"),
    ("weights", "a.pt", "weights=imagenet", "--weights a.pt and the model option weights="),
    ("weights", "none", "weights=imagenet", "--weights none and the model option weights="),
]


@pytest.mark.parametrize(("name", "value", "option", "text"), CONTRADICTIONS)
def test_a_model_option_must_not_contradict_a_setting(name, value, option, text):
    config = TrainConfig("rtdetr_r18", model_options=(option,))
    expected = config.model_kwargs()
    assert list(expected) == [name]
    agreeing = TrainConfig("rtdetr_r18", model_options=(option,), **{name: expected[name]})
    assert agreeing.model_kwargs() == expected
    assert TrainConfig.from_dict(agreeing.to_dict()) == agreeing
    with pytest.raises(
        redetr.InputError, match=f"{text}.* contradict each other; leave the option out"
    ):
        replace(config, **{name: value}).model_kwargs()


@pytest.mark.parametrize(("name", "value", "option", "text"), CONTRADICTIONS)
def test_an_earlier_run_with_a_contradiction_has_the_model_that_it_had(name, value, option, text):
    """The option won, but for the weights of a detector, which were loaded after it."""
    written = {"model": "rtdetr_r18", "model_options": [option, "nheads=4"], name: value}
    config = TrainConfig.from_dict(written)
    kwargs = config.model_kwargs()
    if value == "a.pt":
        assert config.weights == "a.pt"
        assert kwargs == {"nheads": 4}
    else:
        assert kwargs == {**TrainConfig(model_options=(option,)).model_kwargs(), "nheads": 4}
    assert TrainConfig.from_dict(config.to_dict()) == config


def test_the_data_does_not_choose_the_queries_that_an_option_states():
    """They were written beside it, and did not count."""
    config = TrainConfig("redetr_n", model_options=("num_queries=50",))
    chosen = config.with_queries(Hints(), 4)
    assert chosen.num_queries is None
    assert chosen.model_kwargs() == {"num_queries": 50}
    earlier = TrainConfig.from_dict(config.to_dict() | {"num_queries": 25})
    assert earlier == config


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lr", 0.0, "--lr 0.0 must be above 0 and at most 1e+30"),
        ("val_fraction", 1.0, "--val-fraction 1.0 must be at least 0 and below 1"),
        ("ema_decay", 1.0, "--ema-decay 1.0 must be at least 0 and below 1"),
        ("warmup", 1.1, "--warmup 1.1 must be from 0 to 1"),
        ("log_every", 0, "--log-every 0 must be at least 1"),
        ("patience", -1, "--patience -1 must be from 0 to 1"),
        ("clip_norm", math.nan, "--clip-norm nan must be from 0 to 1e+30"),
        ("clip_norm", math.inf, "--clip-norm inf must be from 0 to 1e+30"),  # no JSON number
        ("epochs", math.inf, "--epochs inf must be from 0 to 1000000"),
        ("steps", 10**30, f"--steps {10**30} must be from 0 to 1000000000"),
        ("seed", 2**64, f"--seed {2**64} must be from 0 to {2**64 - 1}"),
        ("lr", 1e300, "--lr 1e+300 must be above 0 and at most 1e+30"),
        ("accumulate", -1, "--accumulate -1 must be at least 0"),
        ("threads", 10**6, "--threads 1000000 must be from 1 to 1024"),
        ("image_size", (32, 10**8), "--image-size 100000000 must be from 0 to 16384"),
    ],
)
def test_what_is_out_of_bounds_is_named(name, value, text):
    with pytest.raises(redetr.InputError) as error:
        replace(TrainConfig(), **{name: value}).check(world_size=1)
    assert str(error.value) == text


@pytest.mark.parametrize("begin", [redetr.train, redetr.verify])
def test_numbers_are_checked_before_processes_meet(begin):
    """Waits without end overflowed where the group of processes was formed."""
    with pytest.raises(redetr.InputError, match="--timeout-s inf must be above 0 and at most"):
        begin(TrainConfig(timeout_s=math.inf))


def test_the_ends_of_bounds():
    ends = {"val_fraction": 0.0, "mosaic_until": 1.0, "warmup": 0.0, "log_every": 1, "lr": 1e-9}
    replace(TrainConfig(), **ends).check(world_size=1)


def test_every_number_has_bounds():
    """The size of a batch has those of the ranks and micro-batches."""
    hints = get_type_hints(TrainConfig)
    numbers = {name for name, hint in hints.items() if {int, float} & {hint, *get_args(hint)}}
    assert BOUNDS.keys() == numbers - {"batch_size"}


def asked(*arguments: object, command=train_command) -> TrainConfig:
    """What a command line asks for, without its program and command."""
    return command.parse([str(argument) for argument in arguments]).config


@pytest.mark.parametrize("command", [train_command, verify_command])
def test_model_options_of_the_command_line_keep_the_others_of_the_recipe(command):
    config = asked("rtdetr_r18", "--model-options", "num_queries=500", command=command)
    assert config.model_options == ("norm=sync_batch", "num_queries=500")
    config = asked("detr_tiny", "--model-options", "dropout=0.1", "nheads=4", command=command)
    tiny = get_recipe("detr_tiny")
    assert config.model_options == (*tiny.model_options[:-1], "dropout=0.1", "nheads=4")
    assert config.model_kwargs()["backbone"] == (32, 64, 128)
    assert config.model_kwargs()["dropout"] == 0.1
    assert asked("detr_tiny", command=command).model_options == tiny.model_options
    assert asked("detr_tiny", "--model-options", command=command).model_options == ()


def test_model_options_of_the_command_line_keep_the_others_of_the_run(tmp_path):
    """Of a run whose options say something twice, as `earlier` writes them, a command that gives
    none repeats every word: otherwise it could not be resumed."""
    options = ("hidden_dim=32", "nheads=2", "nheads=4")
    written = replace(resolved(100), model_options=options).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = asked(tmp_path, "--model-options", "hidden_dim=64")
    assert config.model_options == ("hidden_dim=64", "nheads=4")
    assert asked(tmp_path).model_options == options


def written_run(folder: Path, **changes) -> Path:
    """A run folder with only settings: 1,500 steps, with every choice left to the program."""
    settings = replace(resolved(500, lr=4e-3), output=str(folder), **changes)
    assert (settings.steps, settings.eval_every, settings.save_every) == (1500, 75, 75)
    (folder / "config.json").write_text(json.dumps(settings.to_dict()))
    return folder


def again(folder: Path, *flags: object) -> Settings:
    """The run that a command with a run folder and these flags does."""
    return asked(folder, *flags).resolved(build("redetr_n", 1), Hints(), 500)


@pytest.mark.parametrize("flags", [(), ("--seed", 0), ("--data", "digits"), ("--resume",)])
def test_a_run_folder_repeats_its_run(flags, tmp_path):
    folder = written_run(tmp_path)
    expected = TrainConfig.read(folder / "config.json").to_dict()
    assert again(folder, *flags).to_dict() | {"resume": False} == expected
    assert train_command.parse([str(folder), *map(str, flags)]).notes == ()


@pytest.mark.parametrize("flags", [("--steps", 200), ("--epochs=6.4",)])
def test_what_follows_from_the_length_of_a_run_follows_from_the_new_one(flags, tmp_path):
    """One evaluation per epoch, and an average over the last hundred steps."""
    folder = written_run(tmp_path)
    settings = again(folder, *flags)
    assert (settings.steps, settings.eval_every, settings.save_every) == (200, 31, 31)
    assert settings.ema_decay == 0.99
    given = again(folder, *flags, "--eval_every", 50, "--ema-decay", 0.5)
    assert (given.eval_every, given.save_every, given.ema_decay) == (50, 50, 0.5)
    notes = train_command.parse([str(folder), *map(str, flags), "--save-every=10"]).notes
    assert notes == ("note: chosen again, because you changed flags that they depend on: "
                     "--ema-decay (was 0.994667), --eval-every (was 75)",)  # fmt: skip


@pytest.mark.parametrize("ema_decay", [0.0, 0.9999])
def test_what_a_run_was_given_does_not_follow_from_its_length(ema_decay, tmp_path):
    """As far as it can be told from what would have followed."""
    settings = replace(resolved(500), output=str(tmp_path), ema_decay=ema_decay, save_every=20)
    (tmp_path / "config.json").write_text(json.dumps(settings.to_dict()))
    shorter = again(tmp_path, "--steps", 200)
    assert (shorter.eval_every, shorter.save_every, shorter.ema_decay) == (31, 20, ema_decay)


def test_the_steps_between_checkpoints_follow_from_those_between_evaluations(tmp_path):
    settings = again(written_run(tmp_path), "--eval-every", 30)
    assert (settings.eval_every, settings.save_every) == (30, 30)
    assert settings.ema_decay == pytest.approx(0.994667, abs=1e-6)


def test_the_rate_of_the_backbone_of_a_run_follows_from_the_new_rate(tmp_path):
    folder = written_run(tmp_path)
    settings = again(folder, "--lr", 1e-3)
    assert (settings.lr, settings.lr_backbone) == (1e-3, 1e-3)
    (note,) = train_command.parse([str(folder), "--lr", "1e-3"]).notes
    assert note.endswith(": --lr-backbone (was 0.004)")
    settings = again(folder, "--lr=1e-3", "--lr-backbone", 1e-4)
    assert settings.lr_backbone == 1e-4
    settings = again(written_run(tmp_path, lr_backbone=1e-5), "--lr", 1e-3)
    assert (settings.lr, settings.lr_backbone) == (1e-3, 1e-5)


def test_a_new_run_with_the_settings_of_another_is_not_a_resumed_one(tmp_path):
    """Scripts that restart a run give --resume at every start."""
    folder = written_run(tmp_path)
    flags = ("--steps", 3000, "--output", tmp_path / "longer", "--resume")
    config = asked(folder, *flags)
    assert (config.eval_every, config.save_every, config.ema_decay) == (0, 0, None)
    settings = again(folder, *flags)
    assert (settings.eval_every, settings.save_every) == (150, 150)
    assert settings.ema_decay == pytest.approx(1 - 8 / 3000)
    (tmp_path / "longer").mkdir()
    (tmp_path / "longer" / "config.json").write_text(json.dumps(settings.to_dict()))
    assert again(folder, *flags) == settings  # as restarted


@pytest.mark.parametrize(
    "flags",
    [("--resume",), ("--resume", "--output={}/"), ("--resume", "--output", "{}")],
)
def test_a_resumed_run_keeps_what_it_had(flags, tmp_path):
    """Also where --output names its folder once more."""
    folder = written_run(tmp_path)
    written = [flag.format(folder) for flag in flags]
    config = asked(folder, *written, "--eval-every", 30)
    assert (config.eval_every, config.save_every) == (30, 75)


def test_only_a_run_that_is_resumed_needs_its_augmentation(tmp_path):
    folder = written_run(tmp_path, custom_augment="mine.py:FLIP")
    with pytest.raises(
        redetr.InputError, match=r"began with your own augmentation mine\.py:FLIP; "
    ):
        train_command.parse([str(folder), "--resume"])
    new = ["--output", str(tmp_path / "new"), "--resume"]
    (note,) = train_command.parse([str(folder), *new]).notes
    assert note.startswith(f"note: {folder} began with your own augmentation mine.py:FLIP, which ")


def test_what_another_machine_had_can_be_turned_off_in_a_resumed_run(tmp_path):
    folder = written_run(tmp_path, cache_dir=str(tmp_path / "gone"), compile=True)
    config = asked(folder, "--resume")
    assert config.compile
    with pytest.raises(
        redetr.InputError, match=r"gone: no such folder; .* or use --cache-dir None"
    ):
        config.check(world_size=1)
    config = asked(folder, "--resume", "--cache-dir", "None", "--no-compile")
    assert config.cache_dir is None
    assert not config.compile
    config.check(world_size=1)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "text"),
    [
        (16, 4, "4 micro-batches each; use --accumulate 2 or less, or --batch-size 32 or more"),
        (4, 1, "1 micro-batch each; use at least 8, or at most 4 ranks"),
        (4, 2, "2 micro-batches each; use at least 16, or at most 2 ranks"),
        (2, 4, "4 micro-batches each; use at least 32"),
        (0, 1, "1 micro-batch each; use at least 8"),
    ],
)
def test_what_a_resumed_run_may_change_helps_a_batch_that_is_too_small(
    batch_size, accumulate, text
):
    with pytest.raises(redetr.InputError) as error:
        TrainConfig(batch_size=batch_size, accumulate=accumulate).check(world_size=8)
    assert str(error.value) == f"--batch-size {batch_size} is too small for 8 ranks with {text}"


@pytest.mark.parametrize("command", ["train", "verify"])
def test_help_lists_every_setting_once_and_in_its_group(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "redetr_n", "--help"])
    text = capsys.readouterr().out
    # Framed by lines where the output can show them, else indented.
    flags = re.findall(r"^(?:│ |  )(?:-h, )?--([a-z][a-z-]+)", text, re.MULTILINE)
    expected = {name.replace("_", "-") for name in WRITTEN | LATER}
    expected -= {"group-by-size", "pictures"}
    others = {"help", "no-group-by-size", "no-pictures"} | (
        {"json"} if command == "verify" else set()
    )
    assert sorted(flags) == sorted(expected | others)
    assert re.search(r"--no-pictures\s+Do not draw curves.png", text)  # no negation of its own help
    headings = re.findall(r"^(?:╭─)? (\w+) options ", text, re.MULTILINE)
    assert headings == ["model", "data", "optimizer", "schedule", "loader", "run"]
    data_options = text.partition("data options")[2].partition("optimizer options")[0]
    assert "--augment" in data_options and "--lr" not in data_options


def test_the_help_of_a_flag_that_the_run_turned_off(tmp_path, capsys):
    """Of `train RUN`, where the flag turns it on again."""
    folder = written_run(tmp_path, pictures=False)
    with pytest.raises(SystemExit):
        main(["train", str(folder), "--help"])
    text = capsys.readouterr().out
    assert re.search(r"--pictures\s+Undo the run's --no-pictures\.", text)
    assert re.search(r"--no-group-by-size\s+Fill batches", text)


@pytest.mark.parametrize(
    "command",
    [
        "train redetr_n",
        "verify redetr_n",
        *(name for name in COMMANDS if name not in ("train", "verify")),
    ],
)
def test_help_breaks_sentences_where_the_terminal_ends(command, capsys, monkeypatch):
    """Joined again, each sentence of the source is there, and no line ends early."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("│ ") for line in lines if line.startswith(("│ ", "  "))]
    text = " ".join(" ".join(rows).split())
    module = import_module(f"redetr.commands.{command.split()[0]}")
    has_recipe = command.startswith(("train", "verify"))
    kind = TrainConfig if has_recipe else getattr(module, command.capitalize())
    sentences = docstrings_of_fields(kind)
    assert sentences
    for sentence in sentences.values():
        assert re.sub("^--no-[a-z-]+: ", "", sentence) in text
    assert "{None}" not in text and "(default: )" not in text
    assert "--no-check: " not in text, "it said --no-check twice"
    assert not re.search(r"--[a-z-]+ \[?(STR|TEXT)\b", text), "a placeholder names the value"


def test_help_says_zero_only_where_it_is_a_value(capsys):
    with pytest.raises(SystemExit):
        main(["train", "redetr_n", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "see --epochs. --schedule" in text, "a default of 0 steps"
    assert "per object in training. (default: 0)" in text
    with pytest.raises(SystemExit):
        main(["train", "detr_r50", "--help"])
    assert "(default: 300)" in " ".join(capsys.readouterr().out.replace("│", " ").split())
