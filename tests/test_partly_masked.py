"""Data in which some objects have a mask, and others only a box: boxes of all are learned and
measured, masks are learned where they are known, and measured only if all are."""

import json
import re
from pathlib import Path

import pytest
import torch
from app_server import serving
from command_line import train_arguments
from PIL import Image

import redetr
from redetr.cli import main
from redetr.data import open_dataset
from redetr.doctor.check import check
from redetr.errors import NoMasksError
from redetr.losses import SetCriterion
from redetr.metrics import GroundTruth, coco_metrics
from redetr.structures import DatasetDetections
from redetr.truth import TruthObjects, holds_masks, mask_gaps

GAPS = "1 of 8 objects has no mask (the first in 0.png)"
DICE_SUM = re.compile(r"<td>dice</td><td>([\d.]+)</td>")  # the loss of masks, on its page
NOT_MEASURED = f"not measured, because {GAPS}"


def write(root: Path, without: dict[str, int], classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Four images with two objects in each split; the first objects of a split are `without` an
    outline, as many as stated."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(4):
            color = (40 * number, 99 if split == "val" else 9, 9)
            Image.new("RGB", (64, 48), color).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
            for side in range(2):
                left, top = 4 + 30 * side, 6 + number
                outline = [left, top, left + 20, top, left + 20, top + 20]
                has_mask = len(annotations) >= without.get(split, 0)
                annotation = {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1 + side,
                    "bbox": [left, top, 20, 20],
                    "area": 200,
                    "iscrowd": 0,
                    "segmentation": [outline] if has_mask else [],
                }
                annotations.append(annotation)
        categories = [{"id": 1 + i, "name": name} for i, name in enumerate(classes)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """One object of train and one of val have no mask."""
    return write(tmp_path_factory.mktemp("partly") / "data", {"train": 1, "val": 1})


@pytest.fixture(scope="module")
def run(partly, tmp_path_factory):
    """Two steps with masks on it."""
    folder = tmp_path_factory.mktemp("partly") / "run"
    main([str(word) for word in [*train_arguments(partly, folder, steps=2), "--masks"]])
    return folder


def test_training_says_what_is_learned_and_measured(partly, tmp_path, capsys):
    arguments = train_arguments(partly, tmp_path / "run", steps=1, eval_every=1)
    main([str(word) for word in [*arguments, "--masks"]])
    output = capsys.readouterr()
    said = " ".join(output.err.split())
    assert "instances_train.json: annotation 0: has a box but no mask, as 1 of 8 objects; " in said
    assert f"warning: masks are not measured on val, only boxes, because {GAPS}" in said
    assert f"masks: {NOT_MEASURED}" in " ".join(output.out.split())
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["why_no_masks"] == GAPS and "masks" not in line
    assert line["val_loss_mask"] > 0


def test_the_last_evaluation_is_the_best_where_only_masks_are_trained(
    run, partly, tmp_path, capsys
):
    """Frozen boxes keep their AP, and nothing else is measured."""
    flags = {"steps": 4, "eval_every": 1, "weights": run, "patience": 0.25}
    arguments = train_arguments(partly, tmp_path / "run", schedule="constant", **flags)
    main([str(word) for word in [*arguments, "--masks", "--freeze", "detector"]])
    said = " ".join(capsys.readouterr().err.split())
    assert f"because {GAPS}; boxes cannot change, so the last evaluation counts as the best" in said
    assert "ended at step 4 of 4; best.pt is from step 4" in said
    assert torch.load(tmp_path / "run/best.pt", weights_only=True)["step"] == 4


def test_masks_are_measured_on_a_val_split_that_has_all(tmp_path):
    data = write(tmp_path / "data", {"train": 3})
    arguments = train_arguments(data, tmp_path / "run", steps=1, eval_every=1)
    main([str(word) for word in [*arguments, "--masks"]])
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "masks" in line and "why_no_masks" not in line


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_any_mask_is_refused(split, tmp_path):
    data = write(tmp_path / "data", {split: 8})
    with pytest.raises(NoMasksError, match=f"instances_{split}.json: has only boxes, no masks"):
        redetr.train(redetr.TrainConfig(data=str(data), masks=True, output=str(tmp_path / "run")))
    faults = check(str(data), masks=True).faults
    assert [fault.severity for fault in faults if fault.code == "mask-missing"] == ["error"]


def test_boxes_are_measured_in_python(run, partly):
    detector = redetr.load(run, device="cpu")
    result = detector.evaluate(partly)
    assert result.masks is None and result.why_no_masks == GAPS
    boxes = detector.evaluate(open_dataset(partly, "val"))
    assert boxes.metrics == result.metrics
    assert boxes.why_no_masks == "the data set has no masks"


def test_boxes_are_measured_on_the_command_line(run, partly, tmp_path, capsys):
    flags = ["--data", str(partly), "--device=cpu"]
    main(["evaluate", str(run), *flags, "--json"])
    output = capsys.readouterr()
    content = json.loads(output.out)
    assert content["why_no_masks"] == GAPS and "masks" not in content
    assert "instances_val.json: annotation 0: has a box but no mask" in output.err
    main(["evaluate", str(run), *flags])
    assert f"masks: {NOT_MEASURED}" in capsys.readouterr().out
    page = tmp_path / "page"
    main(["evaluate", str(run), *flags, "--compare", str(run), "--report", str(page)])
    assert f"masks 2: {NOT_MEASURED}" in capsys.readouterr().out
    assert f"Masks are {NOT_MEASURED}" in " ".join((page / "index.html").read_text().split())
    report = json.loads((page / "report.json").read_text())
    assert [one["why_no_masks"] for one in report["checkpoints"]] == [GAPS, GAPS]


def test_other_classes_are_the_reason_that_is_given(run, tmp_path):
    """It was hidden behind the missing mask."""
    other = write(tmp_path / "data", {"val": 1}, ("a", "other"))
    with pytest.raises(redetr.InputError, match=r"does not know other \(2\)"):
        redetr.load(run, device="cpu").evaluate(other)


def test_pages_and_cards_say_it(run, partly, tmp_path, capsys):
    flags = ["--data", str(partly), "--device=cpu"]
    main(["explain", str(run), "--image-id=0", *flags, "--output", str(tmp_path / "explained")])
    expected = f"note: {GAPS}; such objects add nothing to the losses of masks"
    assert expected in " ".join(capsys.readouterr().err.split())
    main(["push", "owner/name", str(run), *flags, "--to", str(tmp_path / "card")])
    expected = f"note: the card has no numbers of masks, because {GAPS}"
    assert expected in " ".join(capsys.readouterr().err.split())
    card = (tmp_path / "card" / "README.md").read_text()
    assert f"Masks were {NOT_MEASURED}." in card


@pytest.mark.parametrize("is_given", [False, True], ids=["training data", "--data"])
def test_the_app_judges_masks_and_says_which_are_missing(is_given, run, partly):
    flags = ["--data", partly] if is_given else []
    with serving(run, *flags) as server:
        status, text = server.ask("POST", "/judge?image_id=1")
        _, other_text = server.ask("POST", "/judge?image_id=0")
    assert status == 200
    page = json.loads(text)["page"]
    assert f"{GAPS}; such objects add nothing to the losses of masks" in page
    assert float(DICE_SUM.search(page)[1]) > 0
    assert float(DICE_SUM.search(other_text)[1]) > 0  # one of its two objects has a mask


@pytest.mark.long
def test_an_export_is_compared_by_its_boxes(run, partly, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    output = tmp_path / "model.onnx"
    main(["export", str(run), "--data", str(partly), "--output", str(output)])
    said = " ".join(capsys.readouterr().out.split())
    assert "mask AP is not measured, because 1 of 8 objects has no mask" in said
    assert "masks: minimum IoU" in said


def test_check_counts_objects_and_those_with_masks(tmp_path, capsys):
    data = write(tmp_path / "data", {"train": 3, "val": 1})
    report = check(str(data), masks=True)
    assert not report.errors
    figures = report.figures()["train"]
    assert figures["objects"] == 8 and figures["masks"] == 5
    assert report.classes()["a"] == {"train": 4, "val": 4}
    assert report.classes_with_masks()["a"] == {"train": 2, "val": 3}
    assert report.to_dict()["classes_with_masks"]["b"] == {"train": 3, "val": 4}
    (fault,) = [fault for fault in report.faults if fault.code == "mask-missing"][:1]
    assert (fault.severity, fault.count) == ("warning", 3)
    assert "annotation 0: has a box but no mask, as 3 of 8 objects; only its box is" in str(fault)
    main(["check", str(data), "--masks", "--report", str(tmp_path / "page")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "4", "4", "2", "3"] in rows
    assert "train, with masks" in (tmp_path / "page" / "index.html").read_text()
    complete = check(str(write(tmp_path / "complete", {})), masks=True)
    assert complete.classes_with_masks() == {}


def test_check_counts_no_crowds_among_the_masks(tmp_path):
    """As among the objects."""
    data = write(tmp_path / "data", {})
    file = data / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(document))
    figures = check(str(data), masks=True).figures()["train"]
    assert figures["objects"] == 7 and figures["masks"] == 7


def test_an_object_without_a_mask_is_no_truth_of_masks(partly):
    """Left out, a mask that is predicted for it would count as wrong; with an empty mask, it would
    count as missed."""
    dataset = open_dataset(partly, "val", masks=True)
    assert not holds_masks(dataset) and mask_gaps(dataset) == GAPS
    for objects in (
        TruthObjects.from_dataset(dataset),
        TruthObjects.from_targets([dataset.target(i) for i in range(4)], dataset.class_names),
    ):
        assert objects.masks is None and objects.why_no_masks.startswith("1 of 8 objects has no")
        detections = DatasetDetections(
            image_index=objects.image,
            labels=objects.labels,
            scores=objects.boxes[:, 0] / 100,
            boxes=objects.boxes,
            masks=[b""] * len(objects.image),
        )
        result = coco_metrics(GroundTruth.from_objects(objects), detections)
        assert result.ap == 1 and result.masks is None


def test_the_box_of_a_crowd_serves_as_its_mask():
    target = redetr.StoredTarget(
        boxes=torch.tensor([[2.0, 2.0, 6.0, 6.0], [1.0, 1.0, 4.0, 4.0]]),
        labels=torch.tensor([0, 0]),
        iscrowd=torch.tensor([True, False]),
        area=torch.tensor([16.0, 9.0]),
        image_id=0,
        orig_size=(8, 8),
        size=(8, 8),
        masks=torch.zeros(2, 8, 8, dtype=torch.bool),
    )
    target["masks"][1, 1:4, 1:4] = True
    objects = TruthObjects.from_targets([target], ["a"])
    assert objects.why_no_masks == ""
    decoded = redetr.masks.decode(objects.masks, (8, 8))
    assert decoded[0].nonzero().amin(0).tolist() == [2, 2] and decoded[0].sum() == 16


def test_a_partly_masked_image_trains_boxes_of_all_and_masks_of_some(partly):
    """From the file to the gradient: the mask of an object is judged only if it is known."""
    from redetr.data.loader import Samples, to_batch
    from redetr.data.transforms import Fit, resizer

    dataset = open_dataset(partly, "train", masks=True)
    batch = to_batch([Samples(dataset, resizer(Fit(64)), seed=0)[0, 0]], torch.device("cpu"))
    (target,) = batch.targets
    assert target["masks"].flatten(1).any(1).tolist() == [False, True]
    model = redetr.build("redetr_n", num_classes=2, masks=True)
    criterion = SetCriterion.for_model(model)
    outputs = model(batch.images, batch.padding)
    losses = criterion(outputs, [target])
    assert losses["loss_mask"] > 0 and losses["loss_bbox"] > 0
    assert criterion.counts([target])[0] == 2
    unknown = {**target, "masks": torch.zeros_like(target["masks"])}
    without = criterion(outputs, [unknown])
    assert without["loss_mask"] == 0 and without["loss_bbox"] == losses["loss_bbox"]
