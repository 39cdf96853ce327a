"""Crowds and difficult objects are not objects, and an AP without an object is undefined, not 0."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import SMALL, lines_of
from rich.console import Console
from sound_data import write_coco, write_voc
from torch import Tensor

from redetr.cli import main
from redetr.config import TrainConfig
from redetr.data import open_dataset
from redetr.data.dataset import DetectionDataset
from redetr.data.formats.flags import flag_of
from redetr.detector.detector import load
from redetr.doctor.check import check, essential_faults
from redetr.errors import InputError
from redetr.export.comparison import Comparison
from redetr.export.export import ExportConfig, export
from redetr.models import build
from redetr.state import State
from redetr.structures import StoredTarget
from redetr.training import train

QUICK = TrainConfig(
    model_options=tuple(SMALL),
    batch_size=4,
    image_size=64,
    augment="plain",
    device="cpu",
    precision="fp32",
    num_workers=0,
    steps=2,
    eval_every=1,
)


class Ignored(DetectionDataset):
    """A data set all of whose objects are crowds."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        self.name = dataset.name
        self.class_names = dataset.class_names
        self.category_ids = dataset.category_ids

    def __len__(self) -> int:
        return len(self.dataset)

    def target(self, index: int) -> StoredTarget:
        target = self.dataset.target(index)
        target["iscrowd"] = torch.ones_like(target["iscrowd"])
        return target

    def image(self, index: int) -> Tensor:
        return self.dataset.image(index)


def ignored_coco(source: Path, root: Path, share: float = 1.0) -> Path:
    """A copy of a data set in COCO format in which this share of the objects of val are crowds."""
    for path in source.rglob("*.*"):
        copy = root / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    file = root / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    rows = document["annotations"]
    for number, row in enumerate(rows):
        row["iscrowd"] = int(number < int(share * len(rows)))
    file.write_text(json.dumps(document))
    return root


@pytest.fixture(scope="module")
def run(shared_coco, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a run whose val split has nothing but crowds, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "ignored"
    said = io.StringIO()
    config = replace(QUICK, data=str(shared_coco), output=str(folder))
    datasets = (open_dataset(shared_coco, "train"), Ignored(open_dataset(shared_coco, "val")))
    result = train(config, Console(file=said, width=400), datasets)
    assert result["AP"] is None
    return folder, said.getvalue()


def test_training_calls_ap_undefined(run):
    folder, said = run
    assert "step 1: AP undefined (no objects to find)" in said
    assert "best.pt is from step 2: AP undefined" in said
    evaluations = [line for line in lines_of(folder) if "AP" in line]
    assert [line["AP"] for line in evaluations] == [None, None]
    saved = torch.load(folder / "best.pt", weights_only=True)
    assert saved["best"] == {"AP": None, "step": 2}  # the last: nothing can be compared


def test_evaluate_and_report_call_it_undefined(run, shared_coco, tmp_path, capsys):
    folder, _ = run
    data = tmp_path / "data"
    ignored_coco(shared_coco, data)
    (data / "annotations/instances_val.json").rename(data / "annotations/instances_test.json")
    (data / "val").rename(data / "test")
    arguments = ["evaluate", str(folder), "--data", str(data), "--split", "test", "--device=cpu"]
    page = tmp_path / "page"
    last = str(folder / "last.pt")
    main([*arguments, "--report", str(page), "--compare", last])
    said = " ".join(capsys.readouterr().out.split())
    assert "AP is undefined (-): there are no objects to find" in said
    assert "no confidence intervals: they need" in said
    html = " ".join((page / "index.html").read_text().split())
    assert "AP is undefined, because there are no objects." in html
    assert "No detection is correct" not in html
    main([*arguments, "--json"])
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["AP"] is None
    assert set(numbers["per_class"].values()) == {None}


def test_an_export_is_not_compared_without_objects(run, shared_coco, tmp_path, monkeypatch):
    monkeypatch.setattr("redetr.export.export._build", lambda *_: None)
    monkeypatch.setattr("redetr.export.export.open_file", lambda file: file)
    undefined = Comparison(5, 0.5, 0, 0, 0, {}, (float("nan"), float("nan")))
    monkeypatch.setattr("redetr.export.export.Trial.compare", lambda *_: undefined)
    held_out = Ignored(open_dataset(shared_coco, "val"))
    detector = load(run[0], device="cpu")
    with pytest.raises(InputError, match="AP is undefined on 5 images without objects to find"):
        export(detector, tmp_path / "a.onnx", ExportConfig(), held_out)
    assert not list(tmp_path.iterdir())


def test_the_best_evaluation(tmp_path):
    state = object.__new__(State)
    state.model = build("redetr_n", 2)
    state.best = {"AP": None, "step": 0}
    state.last_evaluated_step = state.evaluations_since_best = state.step = 0
    expected = [(None, True), (None, True), (0.0, True), (None, False), (0.2, True), (0.1, False)]
    for ap, is_best in expected:
        state.step += 1
        assert state.record(ap) is is_best
    assert state.best == {"AP": 0.2, "step": 5}
    assert state.evaluations_since_best == 1


def test_a_split_of_crowds_is_an_error(shared_coco, tmp_path):
    root = ignored_coco(shared_coco, tmp_path / "data")
    report = check(str(root))
    [fault] = [fault for fault in report.faults if fault.code == "no-objects"]
    count = report.figures()["val"]["ignored"]
    assert fault.severity == "error"
    assert fault.text.startswith(f"{count} objects, all of them crowds or difficult")
    assert "iscrowd" in fault.remedy
    assert report.figures()["val"]["objects"] == 0
    with pytest.raises(InputError, match=f"{count} objects, all of them crowds"):
        essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))


MARKS = [(1, 1), (True, 1), (1.0, 1), ("1", 1), ("true", 1), (" Yes ", 1), (0, 0), (None, 0)]
MARKS += [("False", 0), ("", 0), (float("nan"), 0), ("Unspecified", 0), (2, None), ("maybe", None)]


@pytest.mark.parametrize(("mark", "expected"), MARKS)
def test_spellings_of_marks(mark, expected, tmp_path):
    """The same in every format; what is not clear is reported."""
    assert flag_of(mark) == expected
    coco = write_coco(tmp_path / "coco")
    file = coco / "annotations/instances_train.json"
    document = json.loads(file.read_text())
    document["annotations"][4]["iscrowd"] = mark
    file.write_text(json.dumps(document))
    voc = write_voc(tmp_path / "voc")
    annotation = voc / "Annotations/train-01.xml"
    marked = f"<difficult>{'' if mark is None else mark}</difficult><bndbox>"
    annotation.write_text(annotation.read_text().replace("<bndbox>", marked, 1))
    roots = [coco] if isinstance(mark, float) else [coco, voc]
    for root in roots:
        report = check(str(root))
        assert report.figures()["train"]["ignored"] == bool(expected)
        codes = [fault.code for fault in report.faults]
        assert codes == {1: ["object-ignored"], 0: [], None: ["flag-invalid"]}[expected]


@pytest.mark.parametrize(("share", "severity"), [(0.3, "note"), (0.9, "warning")])
def test_the_share_that_is_ignored(share, severity, shared_coco, tmp_path):
    root = ignored_coco(shared_coco, tmp_path / "data", share)
    faults = essential_faults(open_dataset(root, "train"), open_dataset(root, "val"))
    [fault] = [fault for fault in faults if fault.code == "object-ignored"]
    assert fault.severity == severity
    ignored = check(str(root)).figures()["val"]["ignored"]
    assert fault.text.startswith(f"{ignored} of ") and "%) are marked as crowds" in fault.text
