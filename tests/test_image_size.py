"""Images that are not square for the variants that stretch them: 96 px high, 128 px wide."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import SMALL, train_arguments

import redetr
from redetr.choices import parsed_size, size_text
from redetr.cli import main
from redetr.commands.train import parse
from redetr.config import TrainConfig
from redetr.data import Hints
from redetr.data.transforms import augmentation, final_size
from redetr.data.views import NativeCrop, Random, Stretch
from redetr.doctor.plan import Plan
from redetr.export.export import ExportConfig, describe
from redetr.export.graph import Processed
from redetr.verification import verify

SIZE = (96, 128)
RTDETR = ["width=16", "enc_hidden_dim=32", "enc_dim_feedforward=64", *SMALL[1:]]
MODELS = {"redetr_n": ("redetr_n", SMALL), "rtdetr_r18": ("rtdetr_r18_finetune", RTDETR)}


@pytest.fixture(scope="module", params=MODELS)
def run(request, shared_coco, tmp_path_factory) -> Path:
    """The folder of a run at that size."""
    recipe, options = MODELS[request.param]
    folder = tmp_path_factory.mktemp("runs") / request.param
    chosen = {"steps": 2, "eval_every": 1, "image_size": "96x128", "weights": "none"}
    arguments = train_arguments(shared_coco, folder, recipe, options, **chosen)
    main([str(argument) for argument in arguments])
    return folder


def test_the_size_travels_with_the_checkpoint(run):
    assert json.loads((run / "config.json").read_text())["image_size"] == list(SIZE)
    for name in ("best.pt", "best.safetensors"):
        assert redetr.load(run / name, device="cpu").image_size == SIZE


def test_a_model_sees_that_size(run):
    detector = redetr.load(run, device="cpu")
    shapes = []
    detector.model.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[-2:]))
    image = torch.randint(0, 256, (3, 70, 50), dtype=torch.uint8)
    detections = detector.predict(image, threshold=0.0)
    result = detector.evaluate()
    assert set(shapes) == {SIZE} and len(shapes) > 1
    assert detections.image_size == (70, 50)
    assert result.ap is None or 0 <= result.ap <= 1


def test_evaluate_reports_it(run, capsys):
    main(["evaluate", str(run), "--device", "cpu"])
    assert "images, at 96x128 px" in capsys.readouterr().out


def test_an_exported_file_says_and_does_the_same(run):
    detector = redetr.load(run, device="cpu")
    about = json.loads(json.dumps(describe(detector, ExportConfig(), 0.5)))
    assert (about["resize"], about["image_size"]) == ("square", [96, 128])
    ramps = torch.linspace(0, 255, 120)[:, None], torch.linspace(255, 0, 200)[None]
    images = torch.stack([(ramps[0] + ramps[1]) / 2] * 3).to(torch.uint8)[None]
    seen = []
    detector.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        _, _, boxes = Processed(detector.model, detector.image_size)(images)
    detector.predict(images[0])
    in_file, in_pytorch = seen
    assert in_file.shape == (1, 3, *SIZE)
    # Both round to whole numbers of brightness, of which one is this much.
    torch.testing.assert_close(in_file, in_pytorch, rtol=0, atol=1.01 / 255 / 0.224)
    assert boxes[0][:, 2].max() > 120  # in pixels of the image, which is wider than high


@pytest.mark.slow
def test_a_file_is_exported(run):
    """The command compares it with PyTorch before it is written."""
    path = run / "model.onnx"
    main(["export", str(run), "--format", "onnx", "--with-processing", "--output", str(path)])
    assert path.stat().st_size > 0


def test_a_run_resumes(run, tmp_path):
    written = json.loads((run / "config.json").read_text())
    config = replace(TrainConfig.from_dict(written), resume=True)
    assert config.image_size == SIZE
    assert redetr.train(config)["step"] == 2


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "options"), [("redetr_n", SMALL), ("rtdetr_r18", RTDETR), ("dfine_n", SMALL[1:])]
)
def test_micro_batches_give_the_gradient_of_the_whole_batch(model, options):
    config = TrainConfig(
        model=model,
        model_options=tuple(options),
        freeze=("backbone",),
        image_size=SIZE,
        data="random",
        batch_size=0,
        accumulate=2,
        device="cpu",
        precision="fp32",
    )
    assert not verify(config).failed


@pytest.mark.parametrize("augment", ["plain", "photo", "strong", "aerial", "detr"])
def test_every_augmentation_gives_that_size(augment):
    transform = augmentation(augment, Stretch(*SIZE))
    image = torch.zeros(3, 150, 140, dtype=torch.uint8)
    target = redetr.structures.StoredTarget(
        boxes=torch.tensor([[20.0, 30.0, 60.0, 90.0]]),
        labels=torch.tensor([0]),
        image_id=1,
        orig_size=(150, 140),
        size=(150, 140),
        iscrowd=torch.tensor([False]),
        area=torch.tensor([2400.0]),
    )
    for seed in range(10):
        random = Random(seed)
        pixels, _ = transform.show(random, transform.view(random, target), image, target)
        assert pixels.shape == (3, *SIZE)


def test_crops_keep_the_shape_and_are_turned_by_halves():
    draw = NativeCrop(Stretch(*SIZE), zoom=(1.0, 1.0))
    for seed in range(20):
        view = draw(Random(seed), 300, 400, torch.zeros(0, 4).numpy())
        assert view.region_size == SIZE
        assert view.quarter_turns in (0, 2)
    small = draw(Random(0), 60, 400, torch.zeros(0, 4).numpy())
    assert small.region_size == (60, 80)


def test_the_check_of_a_data_set_plans_with_it(shared_coco, capsys):
    plan = Plan.of("rtdetr_r18_finetune", Hints(), None, SIZE)
    assert plan.config.image_size == SIZE
    main(["check", str(shared_coco), "--image-size", "96x128", "--json"])
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("text", "size"), [("128", 128), ("96x128", (96, 128)), ("-5", -5)])
def test_how_a_size_is_written(text, size):
    assert parsed_size(text) == size
    assert size_text(size) == text


@pytest.mark.parametrize("text", ["", "96x", "x96", "96x128x3", "wide", "1e3", "96 128", "9.5"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="neither a number of pixels nor HEIGHTxWIDTH"):
        parsed_size(text)


@pytest.mark.parametrize(
    ("recipe", "size", "code", "message"),
    [
        (
            *("redetr_n", "96x100", 1),
            "--image-size 96x100: height and width must be multiples of 32; use 96x96 or 96x128",
        ),
        ("redetr_n", "0x96", 1, "height and width must be multiples of 32; use 32x96"),
        ("redetr_n", "70", 1, "--image-size 70: the side must be a multiple of 32; use 64 or 96"),
        ("redetr_n", "7", 1, "--image-size 7: the side must be a multiple of 32; use 32"),
        ("redetr_n", "-32x96", 1, "--image-size -32 must be from 0 to 16384"),
        ("detr_tiny", "96x128", 1, "detr_r50 keeps the aspect ratio of images; give one number"),
        ("redetr_n", "96by128", 2, "'96by128' is neither a number of pixels nor HEIGHTxWIDTH"),
    ],
)
def test_sizes_that_cannot_be(recipe, size, code, message, shared_coco, tmp_path, capsys):
    folder = tmp_path / "run"
    arguments = train_arguments(shared_coco, folder, recipe, image_size=size)
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == code
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in said
    assert not folder.exists()


def test_a_new_run_that_may_resume_is_checked_as_well(shared_coco, tmp_path):
    """With --resume in its command, as restarts need it."""
    folder = tmp_path / "run"
    arguments = train_arguments(shared_coco, folder, image_size="70")
    config = parse([*map(str, arguments[1:]), "--resume"]).config
    with pytest.raises(redetr.InputError, match="--image-size 70: the side must be a multiple of"):
        redetr.train(config)
    assert not folder.exists()


def test_a_run_of_an_earlier_version_keeps_its_odd_size():
    with torch.device("meta"):
        model = redetr.build("redetr_n", 3)
    config = TrainConfig(image_size=70, resume=True)
    assert model.resize == "square"
    assert config.resolved(model, Hints(), 10, is_resumed=True).image_size == 70


def test_two_sides_need_a_model_that_stretches():
    with torch.device("meta"):
        model = redetr.build("detr_r50", 3)
    with pytest.raises(ValueError, match="keeps the aspect ratio cannot take"):
        final_size(model, SIZE)


def test_a_damaged_size_is_refused():
    for size in ([96], [96, 128, 3], ["96", "128"], [True, 96], "96x128"):
        with pytest.raises(redetr.InputError, match="setting 'image_size' cannot be"):
            TrainConfig.from_dict({"image_size": size})
