"""The converters and runtimes of devices, each where its package is installed: `make exits`."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from redetr import InputError
from redetr.detector.inference import for_inference
from redetr.export.export import ExportConfig, describe
from redetr.export.files import ABOUT, SUFFIXES, open_file, write_file
from redetr.export.graph import Plain, trace
from tests.test_export import FAST, FAST_DFINE, FAST_RTDETR, averages, exported, middle
from tests.test_fixed_size import spread

__all__ = ["middle"]  # a fixture

pytestmark = [pytest.mark.exits, pytest.mark.timeout(1800)]  # XNNPACK is slow to convert
SIZE = (64, 96)
FORMATS = ("executorch", "litert", "coreml")
FAMILIES = {
    "redetr_n": FAST,
    "rtdetrv2_r18": FAST_RTDETR,
    "dfine_n": FAST_DFINE,
    "detr_r50": FAST | {"enc_layers": 1, "num_queries": 10},
}
PACKAGES = {"executorch": "executorch", "litert": "litert_torch", "coreml": "coremltools"}


@pytest.fixture(params=FORMATS)
def form(request) -> str:
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def inputs(with_mask: bool) -> list[np.ndarray]:
    images = np.random.default_rng(0).standard_normal((2, 3, *SIZE), dtype=np.float32)
    if not with_mask:
        return [images]
    mask = np.zeros((2, *SIZE), bool)
    mask[1, 50:] = True
    mask[1, :, 60:] = True
    return [images, mask]


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, form, tmp_path):
    """Two images, one after the other; of the faithful variant, one of them padded."""
    of = spread(name, **FAMILIES[name])
    if form == "litert" and name == "detr_r50":
        with pytest.raises(InputError, match="wrong for padded images"):
            ExportConfig(form, size=SIZE).of_model(of)
        return
    config = ExportConfig(form, size=SIZE).of_model(of)
    path = tmp_path / f"model{SUFFIXES[form]}"
    about = json.dumps(describe(of, config, 0.25))
    program = trace(Plain(for_inference(of.model)), config.mask, config.size, one_image=True)
    write_file(program, path, about, config.inputs, config.outputs, form)
    if form == "coreml":
        assert_described(path, config)
        return
    arrays = inputs(config.mask)
    with torch.no_grad():
        expected = Plain(of.model)(*map(torch.from_numpy, arrays))
    for output, wanted in zip(open_file(path)(arrays), expected, strict=True):
        np.testing.assert_allclose(output, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["threshold"] == 0.25


def assert_described(path: Path, config: ExportConfig) -> None:
    """Inputs, outputs and metadata of a Core ML package, which does not run here."""
    import coremltools

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    assert json.loads(model.user_defined_metadata[ABOUT])["threshold"] == 0.25
    description = model.get_spec().description
    assert [value.name for value in description.input] == list(config.inputs)
    assert [value.name for value in description.output] == list(config.outputs)
    images = description.input[0].type.multiArrayType
    assert list(images.shape) == [1, 3, *SIZE]


def test_the_command(form, middle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exported(monkeypatch, averages(middle, blind=True), "best.pt", "--format", form)
    output = capsys.readouterr().out
    assert ("AP 100.00 with PyTorch, 100.00 with the file" in output) == (form != "coreml")
    assert (tmp_path / f"best{SUFFIXES[form]}").exists()
