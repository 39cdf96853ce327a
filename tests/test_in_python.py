"""What a program gives to the functions of the package: each mistake is one line."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import redetr
from redetr.data import open_dataset
from redetr.errors import InputError
from redetr.evaluation import detect_share

SMALL = {"hidden_dim": 32, "nheads": 4, "dec_layers": 2, "dim_feedforward": 64, "num_queries": 12}
IMAGE = np.zeros((64, 64, 3), np.uint8)
CONFIG = redetr.TrainConfig(device="cpu", steps=1, image_size=64)


@pytest.fixture(scope="module")
def digits(few_digits):
    return open_dataset("digits", "val")


@pytest.fixture(scope="module")
def detector(digits):
    torch.manual_seed(0)
    model = redetr.build("redetr_n", len(digits.class_names), backbone=(8, 16, 24), **SMALL)
    return redetr.Detector(model, digits.class_names, digits.category_ids, 64, "cpu")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"threshold": "0.5"}, "threshold='0.5' is not a number between 0 and 1"),
        ({"threshold": [0.5]}, r"threshold=\[0.5\] is not a number"),
        ({"threshold": True}, "threshold=True is not a number"),
        ({"tile": "640"}, "tile='640' with overlap=0.2: tile must be a whole number"),
        ({"tile": 32.5}, "tile=32.5 with overlap=0.2: tile must be a whole number"),
        ({"tile": 32, "overlap": "0.2"}, "tile=32 with overlap='0.2': .* overlap a number"),
    ],
)
def test_predict(detector, arguments, expected):
    with pytest.raises(InputError, match=f"^{expected}"):
        detector.predict(IMAGE, **arguments)


def test_numbers_of_libraries_are_numbers(detector):
    for threshold in (np.float32(0.5), torch.tensor(0.5), 0, 1):
        detector.predict(IMAGE, threshold=threshold, tile=np.int64(64))


def test_predict_panoptic(digits):
    model = redetr.build("detr_r50_panoptic", 3)
    detector = redetr.Detector(model, "abc", (1, 2, 3), 64, "cpu")
    with pytest.raises(InputError, match=r"^threshold='0.85' is not a number between 0 and 1"):
        detector.predict_panoptic(IMAGE, threshold="0.85")


def test_a_detector_and_its_detections(detector):
    with pytest.raises(InputError, match=r"^threshold='0.5' is not"):
        redetr.Detector(detector.model, ("a",), (1,), 64, "cpu", threshold="0.5")
    detections = detector.predict(IMAGE, threshold=0)
    with pytest.raises(InputError, match="no class is called 5"):
        detections.of_classes(5)


def test_a_threshold_is_checked_before_the_model_moves(detector):
    model = detector.model
    with pytest.raises(InputError):
        redetr.Detector(model, ("a",), (1,), 96, "cpu", threshold=2)
    assert model.trained_size == 64


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 0}, "batch_size=0 is not a whole number of at least 1"),
        ({"batch_size": "4"}, "batch_size='4' is not"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not"),
        ({"num_workers": -1}, "num_workers=-1 is not a whole number of at least 0"),
        ({"image_size": "64"}, "image_size='64' is not a whole number"),
        ({"image_size": (64, 64, 64)}, r"image_size=\(64, 64, 64\) is neither a side nor"),
        ({"dtype": "fp32"}, "dtype='fp32' is not a type of PyTorch"),
        ({"classes": ["a", "b"]}, r"classes holds 'a', not \(category id, name\)"),
        ({"on_batch": 5}, "on_batch is of type int, which cannot be called"),
    ],
)
def test_evaluate(detector, digits, options, expected):
    with pytest.raises(InputError, match=f"^{expected}"):
        redetr.evaluate(detector.model, digits, **options)


def test_evaluate_needs_a_network_and_a_data_set(detector, digits):
    with pytest.raises(InputError, match=r"model is of type Detector, .* give detector\.model"):
        redetr.evaluate(detector, digits)
    with pytest.raises(InputError, match="dataset is of type str, not a data set; open it with"):
        redetr.evaluate(detector.model, "digits")
    with pytest.raises(InputError, match="dataset is of type int, not a data set"):
        detector.evaluate(5)
    with pytest.raises(InputError, match="batch_size='4' is not"):
        detector.evaluate(digits, batch_size="4")
    with pytest.raises(InputError, match="split='vall' is not train, val or test"):
        detector.evaluate("digits", split="vall")
    faithful = redetr.build("detr_r50", len(digits.class_names))
    with pytest.raises(InputError, match="keeps the aspect ratio of images; give one number"):
        redetr.evaluate(faithful, digits, image_size=(64, 96))


def test_evaluate_takes_the_image_size_of_the_model(detector, digits, monkeypatch):
    """That with which the weights were trained, if it is known."""
    sizes = []

    def seen(model, image_size):
        sizes.append(image_size)
        raise KeyError

    monkeypatch.setattr("redetr.evaluation.final_size", seen)
    fresh = redetr.build("redetr_n", len(digits.class_names))
    for model, options in ((detector.model, {}), (fresh, {}), (fresh, {"image_size": 96})):
        with pytest.raises(KeyError):
            redetr.evaluate(model, digits, **options)
        with pytest.raises(KeyError):
            detect_share(model, digits, **options)
    assert sizes == [64, 64, 640, 640, 96, 96]


def test_evaluate_of_the_model_equals_that_of_its_detector(detector, digits):
    assert redetr.evaluate(detector.model, digits).metrics == detector.evaluate(digits).metrics


@pytest.mark.parametrize("number", [1, 3])
def test_training_needs_two_data_sets(digits, number):
    with pytest.raises(InputError, match=rf"^datasets holds {number} data sets?, not two; give"):
        redetr.train(CONFIG, datasets=(digits,) * number)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"datasets": ("a", "b")}, r"datasets\[0\] is of type str, not a data set"),
        ({"datasets": {"train": 1, "val": 2}}, "datasets is of type dict, not a pair"),
        ({"callback": 5}, "callback is of type int, which cannot be called"),
        ({"after_evaluation": "x"}, "after_evaluation is of type str, which cannot be called"),
        ({"augment": 5}, "augment: is a int, which cannot be called"),
        ({"console": True}, "console is of type bool, not a rich.console.Console"),
    ],
)
def test_training(arguments, expected, tmp_path):
    config = replace(CONFIG, output=str(tmp_path / "run"))
    with pytest.raises(InputError, match=f"^{expected}"):
        redetr.train(config, **arguments)
    assert not (tmp_path / "run").exists()


def test_a_data_set_alone_is_not_a_pair(digits):
    with pytest.raises(InputError, match=r"^datasets is of type DigitsDataset, not a pair"):
        redetr.train(CONFIG, datasets=digits)


@pytest.mark.parametrize("function", [redetr.train, redetr.verify])
@pytest.mark.parametrize("config", ["redetr_n", None, {"model": "redetr_n"}])
def test_settings_are_a_config(function, config):
    with pytest.raises(InputError, match=r"^config is of type \w+, not a TrainConfig; give"):
        function(config)


def test_a_recipe_that_fine_tunes_a_run_needs_its_weights(tmp_path, few_digits):
    output = str(tmp_path / "run")
    quick = {"steps": 1, "image_size": 64, "device": "cpu", "num_workers": 0}
    config = replace(redetr.get_recipe("redetr_n_finetune"), output=output, **quick)
    with pytest.raises(InputError, match=r"fine-tunes a run: .*; give --weights RUN"):
        redetr.train(config)
    assert not (tmp_path / "run").exists()
    replace(config, weights="none").check(world_size=1)  # the user asks for it


@pytest.mark.parametrize("source", [5, None])
def test_load(source):
    with pytest.raises(InputError, match=f"^{source} is not the path or the hub name of weights"):
        redetr.load(source)


def test_open_dataset():
    with pytest.raises(InputError, match=r"^source=5 is not the name of a data set"):
        open_dataset(5, "val")
    with pytest.raises(InputError, match=r"^--val-fraction '0.2' is not a number"):
        open_dataset("digits", "val", val_fraction="0.2")


def test_build():
    with pytest.raises(InputError, match=r"^num_classes='5' is not a whole number"):
        redetr.build("redetr_n", "5")
