"""Your own augmentation, by Albumentations and by torchvision: boxes, masks, seeds, errors."""

import json
import pickle
import random
import re
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from command_line import SMALL, lines_of, train_arguments
from torchvision.transforms import v2

import redetr
from redetr.cli import main
from redetr.config import TrainConfig
from redetr.data.custom_augmentation import CustomAugmentation, load_augmentation
from redetr.data.formats.digits import DigitsDataset
from redetr.data.loader import Samples
from redetr.data.transforms import augmentation, final_size
from redetr.data.views import Stretch
from redetr.errors import InputError, StoppedError
from redetr.structures import RelativeBoxes, Target

FLIPS = """
import albumentations as A
from torchvision.transforms import v2
FLIP = A.Compose([A.HorizontalFlip(p=0.5)], bbox_params=A.BboxParams("yolo"))
V2 = v2.Compose([v2.RandomHorizontalFlip(p=0.5), v2.ColorJitter(0.3)])
"""


def sample(masks: bool = True):
    """An image of 40 x 80 px, dark on the left, with a box in each half; the second has label 7."""
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    image[:, :, 40:] = 200
    target = Target(
        boxes=RelativeBoxes(torch.tensor([[0.125, 0.5, 0.25, 0.5], [0.75, 0.25, 0.5, 0.5]])),
        labels=torch.tensor([3, 7]),
        image_id=12,
        orig_size=(80, 160),
        size=(40, 80),
        iscrowd=torch.zeros(2, dtype=torch.bool),
        area=torch.tensor([1600.0, 3200.0]),
    )
    if masks:
        target["masks"] = torch.zeros(2, 40, 80, dtype=torch.bool)
        target["masks"][0, 10:30, :20] = True
        target["masks"][1, :20, 40:] = True
    return image, target


def albumentations(*transforms, form: str = "pascal_voc", **params):
    return A.Compose(list(transforms), bbox_params=A.BboxParams(form, **params))


FLIPPED = [
    *(albumentations(A.HorizontalFlip(p=1), form=form) for form in ("pascal_voc", "coco", "yolo")),
    albumentations(A.HorizontalFlip(p=1), form="albumentations", label_fields=["classes", "ids"]),
    v2.Compose([v2.RandomHorizontalFlip(p=1)]),
    v2.Compose([v2.RandomHorizontalFlip(p=1), v2.ConvertBoundingBoxFormat("CXCYWH")]),
]


@pytest.mark.parametrize("compose", FLIPPED, ids=lambda compose: type(compose).__module__)
def test_a_flip_by_hand(compose):
    image, target = CustomAugmentation(compose)(5, sample())
    assert image.shape == (3, 40, 80)
    assert (image[:, :, :40] == 200).all() and (image[:, :, 40:] == 0).all()
    expected = torch.tensor([[0.875, 0.5, 0.25, 0.5], [0.25, 0.25, 0.5, 0.5]])
    torch.testing.assert_close(target["boxes"], expected)
    assert target["labels"].tolist() == [3, 7]
    assert torch.equal(target["masks"], sample()[1]["masks"].flip(2))
    assert (target["size"], target["orig_size"]) == ((40, 80), (80, 160))


CROP = albumentations(A.Crop(0, 0, 40, 40), min_visibility=0.3)


def crop(image, objects):
    cropped = {name: v2.functional.crop(objects[name], 0, 0, 40, 40) for name in ("boxes", "masks")}
    return v2.functional.crop(image, 0, 0, 40, 40), {**objects, **cropped}


@pytest.mark.parametrize("compose", [CROP, crop], ids=["albumentations", "a function"])
def test_objects_that_are_cut_away_are_gone_and_the_size_stays(compose):
    """The left half: the second object has nothing of it, the first twice the width."""
    image, target = CustomAugmentation(compose)(5, sample())
    assert image.shape == (3, 40, 80) and (image == 0).all()
    torch.testing.assert_close(target["boxes"], torch.tensor([[0.25, 0.5, 0.5, 0.5]]))
    assert target["labels"].tolist() == [3]
    assert target["area"].tolist() == [1600]
    assert target["masks"].shape == (1, 40, 80)
    assert target["masks"].sum() == 40 * 20


@pytest.mark.parametrize("compose", [FLIPPED[0], FLIPPED[-1]], ids=["albumentations", "v2"])
def test_an_object_whose_mask_is_not_known_is_kept(compose):
    """Only those whose mask has left the image are dropped."""
    image, target = sample()
    target["masks"][1] = False
    _, shown = CustomAugmentation(compose)(5, (image, target))
    assert shown["masks"].flatten(1).any(1).tolist() == [True, False]
    assert len(shown["boxes"]) == 2


@pytest.mark.parametrize("compose", [FLIPPED[0], FLIPPED[-1]], ids=["albumentations", "v2"])
@pytest.mark.parametrize("masks", [False, True])
def test_an_image_without_objects(compose, masks):
    image, target = sample(masks)
    nothing = Target(
        **target
        | {name: target[name][:0] for name in ("boxes", "labels", "iscrowd", "area")}
        | ({"masks": target["masks"][:0]} if masks else {})
    )
    _, shown = CustomAugmentation(compose)(5, (image, nothing))
    assert shown["boxes"].shape == (0, 4)
    if masks:
        assert shown["masks"].shape == (0, 40, 80)


def with_python(image, objects):
    return image + random.randrange(256), objects


def with_numpy(image, objects):
    return image + np.random.randint(256), objects  # noqa: NPY002


def with_numpy_in_albumentations(pixels, **_):
    return with_numpy(pixels, None)[0].astype(np.uint8)


@pytest.mark.parametrize(
    "compose",
    [
        albumentations(A.HorizontalFlip(p=0.5), A.GaussNoise(p=1)),
        albumentations(A.Lambda(image=with_numpy_in_albumentations, p=1)),
        v2.Compose([v2.RandomHorizontalFlip(0.5), v2.ColorJitter(0.9)]),
        with_python,
        with_numpy,
    ],
    ids=["albumentations", "lambda", "v2", "python", "numpy"],
)
def test_draws_are_a_function_of_seed_epoch_and_image(compose):
    def shown(seed: int, order: list[int], epoch: int = 0) -> dict[int, bytes]:
        transform = augmentation("plain", Stretch(64))
        data = DigitsDataset("train", size=4)
        samples = Samples(data, transform, seed, custom=CustomAugmentation(compose))
        return {index: samples[(epoch, index)][0].numpy().tobytes() for index in order}

    state = torch.get_rng_state()
    of_python, of_numpy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = shown(0, [0, 1, 2, 3])
    assert first == shown(0, [3, 1, 0, 2])
    assert first != shown(1, [0, 1, 2, 3])
    assert first != shown(0, [0, 1, 2, 3], epoch=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == of_python
    assert np.random.get_state()[1].tolist() == of_numpy  # noqa: NPY002


def test_sizes_are_known_beforehand():
    with torch.device("meta"):
        model = redetr.build("detr_r50", 3)
    transform = augmentation("detr", final_size(model, 64))
    custom = CustomAugmentation(albumentations(A.Rotate(p=1), A.RandomScale(p=1)))
    samples = Samples(DigitsDataset("train", size=3), transform, 0, custom=custom)
    for index in range(3):
        image, target = samples[(0, index)]
        assert image.shape[1:] == target["size"] == samples.size((0, index))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FLIPS)
    return path


def arguments_of(data: Path, folder: Path, source: str = "", **flags) -> list[str]:
    """The command of a run of two steps with the augmentation `source`, or without one."""
    chosen = {"steps": 2, "eval_every": 2, "augment": "plain"} | flags
    arguments = train_arguments(data, folder, "redetr_n", SMALL, **chosen)
    if source:
        arguments[2:2] = ["--custom-augment", source]
    return [str(argument) for argument in arguments]


def losses_of(folder: Path) -> list[float]:
    """The loss of each step."""
    return [line["loss"] for line in lines_of(folder) if "loss" in line]


@pytest.fixture(scope="module")
def without(shared_coco, tmp_path_factory) -> list[float]:
    """The losses of a run without an augmentation of one's own."""
    folder = tmp_path_factory.mktemp("without") / "run"
    main(arguments_of(shared_coco, folder))
    return losses_of(folder)


@pytest.mark.parametrize("name", ["FLIP", "V2"])
def test_a_run(name, file, shared_coco, tmp_path, without):
    """It learns from what the file makes of the images, the same with loader processes and
    without."""
    losses = []
    for workers in (0, 2):
        folder = tmp_path / f"run-{workers}"
        main(arguments_of(shared_coco, folder, f"{file}:{name}", num_workers=workers))
        losses.append(losses_of(folder))
    assert losses[0] == losses[1]
    assert len(losses[0]) == len(without) == 2
    assert losses[0][0] != without[0] and losses[0][1] != without[1]


@pytest.mark.long
def test_a_run_is_resumed_by_whoever_trusts_the_file(file, shared_coco, tmp_path, capsys):
    """Without it, it is neither resumed, not even before its first checkpoint, nor repeated without
    a note."""
    source, folder = f"{file}:FLIP", tmp_path / "run"
    main(arguments_of(shared_coco, folder, source))
    began = f"began with your own augmentation {source}"
    allowing = f"to allow its code to run, add --custom-augment {source}"
    only_begun = tmp_path / "only begun"
    only_begun.mkdir()
    shutil.copy(folder / "config.json", only_begun)
    capsys.readouterr()
    for run in (folder, only_begun):
        with pytest.raises(SystemExit):
            main(["train", str(run), "--resume"])
        assert capsys.readouterr().err == f"redetr: {run}: {began}; {allowing}\n"
    with pytest.raises(SystemExit):
        main([*arguments_of(shared_coco, folder), "--resume"])
    saved = f"last.pt: saved with your own augmentation {source}, resumed with no augmentation of"
    assert f"{saved} your own; {allowing}\n" in capsys.readouterr().err
    main(["train", str(folder), "--resume", "--custom-augment", source])
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_augment"] == source
    capsys.readouterr()
    main(["train", str(folder), "--steps=1", f"--output={tmp_path / 'again'}"])
    note = f"note: {folder} {began}, which is left out now; {allowing}\n"
    assert capsys.readouterr().err.startswith(note)


def config_of(data: Path, folder: Path) -> TrainConfig:
    """A run of four steps, as Python starts it."""
    return TrainConfig(
        data=str(data),
        model_options=tuple(SMALL),
        steps=4,
        batch_size=4,
        image_size=64,
        augment="plain",
        pictures=False,
        log_every=1,
        eval_every=2,
        num_workers=0,
        precision="fp32",
        output=str(folder),
        device="cpu",
    )


class Redden:
    """A function with the interface of torchvision; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, image, objects):
        self.calls += 1
        image[0] = 255
        return image, objects


class Killed(Exception):
    pass


def kill_at_step_3(line) -> None:
    if line["step"] == 3:
        raise Killed


@pytest.mark.long
def test_in_python(shared_coco, tmp_path, capsys):
    """Every sample passes through it, and a run is resumed with it alone, bit for bit."""
    redden, folder = Redden(), tmp_path / "run"
    config = config_of(shared_coco, folder)
    with pytest.raises(Killed):
        redetr.train(config, callback=kill_at_step_3, augment=redden)
    assert redden.calls == 4 * 4  # a step ahead
    text = "an augmentation given in Python"
    remedy = "resume from Python: redetr.train with the same augment"
    with pytest.raises(SystemExit):
        main(["train", str(folder), "--resume"])
    assert capsys.readouterr().err == f"redetr: {folder}: began with {text}; {remedy}\n"
    resumed = replace(config, resume=True)
    with pytest.raises(InputError, match=f"last.pt: saved with {text}, .*; {remedy}"):
        redetr.train(resumed)
    with pytest.raises(InputError, match=f"of a run with {text}; give the same augment, or"):
        redetr.train(TrainConfig.read(folder / "config.json"))
    redetr.train(resumed, augment=redden)
    assert redden.calls == 4 * 4 + 2 * 4
    redetr.train(replace(config, output=str(tmp_path / "whole")), augment=redden)
    redetr.train(replace(config, output=str(tmp_path / "without")))
    assert losses_of(folder) == losses_of(tmp_path / "whole")
    assert losses_of(folder)[0] != losses_of(tmp_path / "without")[0]
    again = replace(config, output=str(tmp_path / "without"), resume=True)
    with pytest.raises(InputError, match=f"saved with no .*, resumed with {text}; leave it out"):
        redetr.train(again, augment=redden)


def test_it_is_given_in_one_way(shared_coco, tmp_path):
    config = replace(config_of(shared_coco, tmp_path / "run"), custom_augment="mine.py:FLIP")
    with pytest.raises(InputError, match="give augment or custom_augment"):
        redetr.train(config, augment=FLIPPED[0])


@pytest.mark.long
def test_a_stopped_run_says_how_it_is_resumed_with_it(file, shared_coco, tmp_path):
    def stop(line) -> None:
        if line["step"] == 1:
            signal.raise_signal(signal.SIGTERM)

    config = config_of(shared_coco, tmp_path / "a run")
    with pytest.raises(StoppedError, match=r"to continue: the same call with resume=True$"):
        redetr.train(replace(config, output=str(tmp_path / "x")), callback=stop, augment=Redden())
    named = replace(config, custom_augment=f"{file}:FLIP")
    with pytest.raises(StoppedError) as stopped:
        redetr.train(named, callback=stop)
    _, command = str(stopped.value).split("to continue: redetr ")
    main(shlex.split(command))
    assert len(losses_of(tmp_path / "a run")) == 4


def test_what_works_in_place_leaves_the_images_of_the_data_set():
    """Which may keep them, as those of a user's own do."""
    image, target = sample()
    before = image.clone()
    reddened, _ = CustomAugmentation(Redden())(5, (image, target))
    assert (reddened[0] == 255).all()
    assert torch.equal(image, before)


def test_a_file_travels_by_its_name(file):
    custom = pickle.loads(pickle.dumps(load_augmentation(f"{file}:FLIP")))
    assert custom(5, sample())[0].shape == (3, 40, 80)


@pytest.mark.parametrize(
    ("text", "source", "says"),
    [
        ("", "mine.py", "--custom-augment .*mine.py: not in the form FILE.py:NAME"),
        ("", "none.py:FLIP", "none.py: no such file; give FILE.py:NAME"),
        ("x = 1 / 0", "mine.py:x", "mine.py: ZeroDivisionError: division by zero"),
        ("y = 1", "mine.py:x", "mine.py: has no x; give the name"),
        ("x = 1", "mine.py:x", "mine.py:x: is a int, which cannot be called; give a Compose"),
        (
            "import albumentations as A\nx = A.Compose([A.HorizontalFlip()])",
            "mine.py:x",
            r'mine.py:x: does not transform boxes; add bbox_params=A.BboxParams\("pascal_voc"\)',
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(text, source, says, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=says):
        load_augmentation(str(tmp_path / source))


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (v2.ToDtype(torch.float32, scale=True), "returns an image of torch.float32, not 8-bit"),
        (A.Compose([A.Normalize()]), "returns an image of torch.float32, not 8-bit pixels"),
        (v2.Grayscale(), "returns 1 channel instead of 3; keep the number of channels"),
        (v2.ToPILImage(), "returns an image of Image"),
        (lambda image: image, "fails on image 12 (TypeError: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_fails_names_the_image(function, says):
    with pytest.raises(InputError, match=re.escape(says)):
        CustomAugmentation(function)(5, sample())


def test_colours_alone_need_no_boxes():
    """Albumentations warns of a Compose that takes boxes and has nothing to do with them."""
    invert = CustomAugmentation(A.Compose([A.InvertImg(p=1)]))
    image, target = sample()
    shown, same = invert(5, (image, target))
    assert torch.equal(shown, 255 - image)
    torch.testing.assert_close(same["boxes"], target["boxes"])
    assert torch.equal(same["masks"], target["masks"])


def test_more_bands_than_three():
    image, target = sample(masks=False)
    bands = torch.cat([image, image])[:5]
    shown, _ = CustomAugmentation(FLIPPED[0])(5, (bands, target))
    assert np.array_equal(shown.numpy(), bands.flip(2).numpy())
