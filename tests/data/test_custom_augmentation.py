"""Your own augmentation, by Albumentations and by torchvision: boxes, masks, seeds, errors."""

import json
import pickle
import re

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
from redetr.errors import InputError
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


@pytest.mark.parametrize(
    "compose",
    [
        albumentations(A.HorizontalFlip(p=0.5), A.GaussNoise(p=1)),
        v2.Compose([v2.RandomHorizontalFlip(0.5), v2.ColorJitter(0.9)]),
    ],
    ids=["albumentations", "v2"],
)
def test_draws_are_a_function_of_seed_epoch_and_image(compose):
    def shown(seed: int, order: list[int], epoch: int = 0) -> dict[int, bytes]:
        transform = augmentation("plain", Stretch(64))
        data = DigitsDataset("train", size=4)
        samples = Samples(data, transform, seed, custom=CustomAugmentation(compose))
        return {index: samples[(epoch, index)][0].numpy().tobytes() for index in order}

    state = torch.get_rng_state()
    first = shown(0, [0, 1, 2, 3])
    assert first == shown(0, [3, 1, 0, 2])
    assert first != shown(1, [0, 1, 2, 3])
    assert first != shown(0, [0, 1, 2, 3], epoch=1)
    assert torch.equal(torch.get_rng_state(), state)


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


@pytest.mark.parametrize("name", ["FLIP", "V2"])
def test_a_run(name, file, shared_coco, tmp_path, capsys):
    """With loader processes and without, the same; a run is resumed by whoever trusts the file."""
    losses = []
    for workers in (0, 2):
        folder = tmp_path / f"run-{workers}"
        chosen = {"steps": 2, "eval_every": 2, "num_workers": workers, "augment": "plain"}
        arguments = train_arguments(shared_coco, folder, "redetr_n", SMALL, **chosen)
        arguments[2:2] = ["--custom-augment", f"{file}:{name}"]
        main([str(argument) for argument in arguments])
        losses.append([line["loss"] for line in lines_of(folder) if "loss_bbox" in line][:2])
        if name == "V2":
            return
    assert losses[0] == losses[1]
    with pytest.raises(SystemExit):
        main(["train", str(folder), "--resume"])
    assert f"to allow its code to run, add --custom-augment {file}:{name}" in (
        capsys.readouterr().err
    )
    main(["train", str(folder), "--resume", "--custom-augment", f"{file}:{name}"])
    config = json.loads((folder / "config.json").read_text())
    assert config["custom_augment"] == f"{file}:{name}"


def test_in_python():
    config = TrainConfig(
        model_options=tuple(SMALL),
        steps=1,
        batch_size=2,
        image_size=64,
        num_workers=0,
        precision="fp32",
        output="run",
        device="cpu",
        custom_augment="mine.py:FLIP",
    )
    with pytest.raises(InputError, match="give augment or custom_augment"):
        redetr.train(config, augment=FLIPPED[0])


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
        (v2.Grayscale(), "makes 1 channels of 3; keep them"),
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
