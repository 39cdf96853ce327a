"""What a run or a detector computes in when nobody says."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import redetr
from redetr import precision
from redetr.cli import main
from redetr.config import TrainConfig
from redetr.distributed import Dist
from redetr.precision import PrecisionChoice, exact_products, pick_precision

pytestmark = pytest.mark.usefixtures("few_digits")

IMAGE = str(Path(__file__).parent.parent / "examples/digits.png")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = ("hidden_dim=32", "dim_feedforward=32", "num_queries=5", "backbone=[8, 16, 16]")
QUICK = TrainConfig(
    data="digits",
    model="redetr_n",
    model_options=SMALL,
    batch_size=2,
    steps=1,
    image_size=64,
    device="cpu",
    num_workers=0,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    options = {"hidden_dim": 32, "dim_feedforward": 32, "num_queries": 5, "backbone": [8, 16, 16]}
    return redetr.build("redetr_n", 2, **options).train()


@pytest.fixture
def bf16_gain(monkeypatch):
    """Makes this a processor with bf16 units of which a trial says that."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})

    def set_gain(gain: float) -> None:
        monkeypatch.setattr(precision, "times_faster", lambda ours, other: gain)

    return set_gain


@pytest.mark.parametrize("units", [{}, {"avx512_bf16": False, "amx_bf16": False}], ids=str)
def test_without_bf16_units_there_is_no_trial(units, model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert pick_precision("auto", CPU, model, 64) == PrecisionChoice("fp32")


@pytest.mark.parametrize("units", ["avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize(("gain", "expected"), [(0.6, "fp32"), (1.04, "fp32"), (1.06, "bf16")])
def test_units_that_are_slow_are_left_alone(units, gain, expected, model, bf16_gain, monkeypatch):
    bf16_gain(gain)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {units: True})
    choice = pick_precision("auto", CPU, model, 64)
    assert (choice.name, choice.bf16_gain) == (expected, gain)
    assert f"precision: {expected}, because bf16 runs at {gain:.2f} times" in choice.reason
    assert pick_precision("fp32", CPU, model, 64) == PrecisionChoice("fp32")


def test_emulated_bf16_is_not_taken_for_fast(model, monkeypatch):
    """As a T4 says of itself."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert pick_precision("auto", GPU, model, 64) == PrecisionChoice("fp32")


def test_a_detector_is_optimized_to_what_is_faster(model, bf16_gain):
    bf16_gain(1.5)
    detector = redetr.Detector(model, ["a", "b"], [1, 2], 64, device="cpu")
    assert detector.dtype == torch.float32
    assert detector.optimize(precision="fp32").dtype == torch.float32
    assert detector.optimize().dtype == torch.bfloat16
    assert redetr.Detector(model, ["a"], [1], 64, "cpu", "auto").dtype == torch.bfloat16


def test_a_detector_switches_to_fp64_and_back(model, bf16_gain):
    """Weights and images had different types: a crash in PyTorch."""
    bf16_gain(0.5)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    detector = redetr.Detector(copy.deepcopy(model), ["a", "b"], [1, 2], 64, device="cpu")
    in_fp32 = detector.predict(image, threshold=0.0).scores
    for name in ("fp64", "fp32", "fp64", "auto", "fp64", "bf16"):
        scores = detector.compute_in(name).predict(image, threshold=0.0).scores
        assert (scores - in_fp32).abs().max() < (0.05 if name == "bf16" else 1e-5)
    detector.compute_in("fp64")
    for name, dtype in (("auto", "float64"), ("fp32", "float32"), ("fp64", "float64")):
        assert detector.optimize(precision=name).dtype == getattr(torch, dtype)
        scores = detector.predict(image, threshold=0.0).scores
        assert (scores - in_fp32).abs().max() < 1e-5


@pytest.mark.parametrize("run_precision", ["fp32", "bf16"])
def test_a_model_answers_in_what_its_run_computed_in(run_precision, model, bf16_gain):
    bf16_gain(0.5 if run_precision == "bf16" else 1.5)  # the trial would choose the other one
    choice = pick_precision("auto", CPU, model, 64, run_precision=run_precision)
    assert choice == PrecisionChoice(run_precision, run_precision=run_precision)
    assert (
        choice.reason
        == f"precision: {run_precision}, as in its training run (override with --precision)"
    )
    other = "fp32" if run_precision == "bf16" else "bf16"
    assert pick_precision(other, CPU, model, 64, run_precision=run_precision) == PrecisionChoice(
        other
    )


def test_without_units_for_bf16_a_model_answers_in_fp32(model, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    choice = pick_precision("auto", CPU, model, 64, run_precision="bf16")
    assert choice.name == "fp32"
    assert "its training run computed in bf16, which is slow on this device" in choice.reason


def test_a_model_that_was_trained_in_fp64_answers_in_fp32(model):
    choice = pick_precision("auto", CPU, model, 64, run_precision="fp64")
    assert choice.name == "fp32"
    expected = "precision: fp32; its training run computed in fp64, which is for proofs"
    assert choice.reason == expected


@pytest.fixture(scope="module")
def run_in_bf16(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bf16") / "run"
    redetr.train(replace(QUICK, precision="bf16", output=str(folder)))
    return folder


def test_evaluate_measures_the_ap_of_the_run(run_in_bf16, bf16_gain, capsys):
    """In training and afterwards the same weights have the same AP, to the last digit."""
    bf16_gain(0.5)
    main(["evaluate", str(run_in_bf16), "--json", "--device=cpu", "--num-workers=0"])
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    lines = (run_in_bf16 / "metrics.jsonl").read_text().splitlines()
    in_training = [json.loads(line) for line in lines if "AR100" in line][-1]
    assert result["precision"] == "bf16"
    assert result["AR100"] == in_training["AR100"] > 0
    assert result["AP"] == in_training["AP"]
    assert "precision: bf16, as in its training run (override with --precision)" in printed.err


def test_a_flag_overrides_the_precision_of_the_run(run_in_bf16, bf16_gain, tmp_path, capsys):
    bf16_gain(0.5)
    predict = ["predict", str(run_in_bf16), IMAGE, "--device=cpu", "--threshold=0"]
    main([*predict, "--output", str(tmp_path / "auto")])
    assert "precision: bf16, as in its training run" in capsys.readouterr().err
    main([*predict, "--output", str(tmp_path / "fp32"), "--precision=fp32"])
    assert "precision:" not in capsys.readouterr().err
    in_bf16 = (tmp_path / "auto" / "predictions.json").read_text()
    assert in_bf16 != (tmp_path / "fp32" / "predictions.json").read_text()


def test_python_answers_as_the_command_line_does(run_in_bf16, bf16_gain):
    bf16_gain(0.5)
    detector = redetr.load(run_in_bf16, device="cpu")
    assert detector.dtype == torch.bfloat16
    assert detector.optimize(precision="fp32").dtype == torch.float32
    assert detector.optimize().dtype == torch.bfloat16
    assert redetr.load(run_in_bf16, device="cpu", precision="fp32").dtype == torch.float32


def test_explain_says_that_it_computes_in_fp32(run_in_bf16, tmp_path, capsys):
    main(["explain", str(run_in_bf16), IMAGE, "--output", str(tmp_path / "pages")])
    assert "precision: fp32, which explanations always use; the training run computed in bf16" in (
        capsys.readouterr().err
    )


def test_a_resumed_run_keeps_its_choice(bf16_gain, tmp_path):
    bf16_gain(1.5)
    config = replace(QUICK, output=str(tmp_path))
    redetr.train(config)
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "bf16"
    bf16_gain(0.5)
    # The same steps: `steps` decides the schedule, and may not change.
    redetr.train(replace(config, resume=True))
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "bf16"


def test_a_run_of_an_earlier_version_is_resumed(bf16_gain, tmp_path):
    """It chose anew at each start."""
    bf16_gain(0.5)
    config = replace(QUICK, output=str(tmp_path))
    redetr.train(config)
    _write_auto(tmp_path)
    redetr.train(replace(config, resume=True))
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "fp32"


def _write_auto(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"precision": "auto"}))
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    checkpoint["config"]["precision"] = "auto"
    torch.save(checkpoint, folder / "last.pt")


def test_all_ranks_take_the_choice_of_the_first(bf16_gain, tmp_path, monkeypatch):
    bf16_gain(0.5)
    gather = Dist.gather

    def with_another_rank(dist, items):
        is_choice = isinstance(items[0], PrecisionChoice)
        return [PrecisionChoice("bf16", 1.5)] if is_choice else gather(dist, items)

    monkeypatch.setattr(Dist, "gather", with_another_rank)
    redetr.train(replace(QUICK, output=str(tmp_path)))
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "bf16"


def test_ranks_of_a_detector_take_the_choice_of_the_first(model, bf16_gain, monkeypatch):
    bf16_gain(0.5)
    monkeypatch.setattr(Dist, "gather", lambda dist, items: [PrecisionChoice("bf16", 1.5), *items])
    detector = redetr.Detector(model, ["a", "b"], [1, 2], 64, device="cpu")
    second = Dist(1, 2, CPU)
    assert detector.compute_in("auto", second).dtype == torch.bfloat16
    assert detector.optimize(precision="auto", dist=second).dtype == torch.bfloat16
    assert detector.compute_in("auto").dtype == torch.float32


def _tf32() -> tuple[str, str, bool]:
    """How convolutions and matrix products of GPUs round fp32, and what compilers read of it."""
    convolutions = torch.backends.cudnn
    return (
        convolutions.conv.fp32_precision,
        torch.backends.cuda.matmul.fp32_precision,
        convolutions.allow_tf32,
    )


@pytest.mark.parametrize("matrices", ["highest", "high", "medium"])
def test_fp32_is_not_rounded_to_tf32_and_settings_return(matrices):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(matrices)
    try:
        settings = _tf32()
        with exact_products():
            assert _tf32() == ("ieee", "ieee", False)
        assert _tf32() == settings
        assert torch.get_float32_matmul_precision() == matrices
    finally:
        torch.set_float32_matmul_precision(before)


def test_overlapping_threads_restore_the_rounding():
    settings = _tf32()
    first, second = exact_products(), exact_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _tf32() == ("ieee", "ieee", False)  # the second one is still open
    second.__exit__(None, None, None)
    assert _tf32() == settings


def test_fp32_is_exact_where_all_of_pytorch_rounds():
    convolutions = torch.backends.cudnn.conv
    matrices = torch.backends.cuda.matmul
    before = convolutions.fp32_precision, matrices.fp32_precision
    torch.backends.fp32_precision = "tf32"
    try:
        with exact_products():
            assert convolutions.fp32_precision == "ieee"
            assert matrices.fp32_precision == "ieee"
        assert convolutions.fp32_precision == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
        # The settings that were inherited are now their own, and would disagree with the older API.
        convolutions.fp32_precision, matrices.fp32_precision = before
    assert torch.get_float32_matmul_precision() == "highest"


def test_training_evaluation_and_prediction_multiply_exactly(tmp_path, monkeypatch):
    seen = []

    def spied(forward):
        def spy(self, *arguments, **options):
            seen.append(_tf32())
            return forward(self, *arguments, **options)

        return spy

    network = type(redetr.build("redetr_n", 2))
    monkeypatch.setattr(network, "forward", spied(network.forward))
    settings = _tf32()
    redetr.train(replace(QUICK, output=str(tmp_path / "run"), precision="fp32"))
    assert len(seen) >= 2  # a step and an evaluation
    detector = redetr.load(tmp_path / "run")
    detector.predict(torch.zeros(3, 64, 64, dtype=torch.uint8))
    detector.evaluate()
    assert set(seen) == {("ieee", "ieee", False)}
    assert _tf32() == settings
