"""The numbers of a run in MLflow's local store, in an offline run of Weights & Biases, in TensorBoard
and in a callback, read back from there."""

import io
import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import SMALL
from conftest import write_tiny_coco
from rich.console import Console

import redetr
from redetr import loggers
from redetr.distributed import process_group
from redetr.errors import InputError
from redetr.loggers import TensorBoard, open_loggers
from redetr.monitor import Monitor, open_monitor

SETTINGS = {
    "steps": 4, "batch_size": 2, "image_size": 64, "device": "cpu", "precision": "fp32",
    "num_workers": 0, "log_every": 1, "eval_every": 2, "model_options": tuple(SMALL),
    "lr": 1e-3, "lr_backbone": 1e-5, "warmup": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> tuple[Path, list[dict]]:
    """A run of four steps that is resumed after two, told to all three; and what the callback
    got."""
    root = tmp_path_factory.mktemp("logged")
    data = write_tiny_coco(root / "data")
    lines: list[dict] = []

    class Stop(Exception):
        pass

    def callback(line: dict) -> None:
        lines.append(line)
        if "AP" in line and line["step"] == 2 and len(lines) < 4:
            raise Stop

    config = redetr.TrainConfig(
        **SETTINGS, data=str(data), output=str(root / "run"), log=("tensorboard", "mlflow", "wandb")
    )
    environment = pytest.MonkeyPatch()
    environment.setenv("WANDB_MODE", "offline")
    environment.delenv("MLFLOW_TRACKING_URI", raising=False)
    with environment.context():
        with pytest.raises(Stop):
            redetr.train(config, callback=callback)
        redetr.train(redetr.TrainConfig(**config.to_dict() | {
            "resume": True, "log": config.log, "model_options": config.model_options, "freeze": ()
        }), callback=callback)  # fmt: skip
    environment.undo()
    return root / "run", lines


def losses(run: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "AP" not in row}


def test_the_callback_gets_each_line(logged):
    run, lines = logged
    steps = [(line["step"], "AP" in line) for line in lines]
    first, resumed = steps[:3], steps[3:]
    assert first == [(1, False), (2, False), (2, True)]
    assert resumed == [(2, True), (3, False), (4, False), (4, True)]
    assert {line["step"]: line["loss"] for line in lines if "AP" not in line} == losses(run)


def test_the_learning_rate_is_that_of_the_model_and_not_of_its_backbone(logged):
    """Two steps of warm-up, then half a cosine; resumed after the second step."""
    _, lines = logged
    of_training = [line for line in lines if "AP" not in line]
    assert [line["step"] for line in of_training] == [1, 2, 3, 4]
    rates = [line["lr"] for line in of_training]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])
    of_backbone = [line["lr_backbone"] for line in of_training]
    assert of_backbone == pytest.approx([0.5e-5, 1e-5, 1e-5, 0.5e-5])


def test_a_callback_may_change_its_line(tmp_path, shared_coco):
    """The result and the best checkpoint come from the same numbers."""

    def callback(line: dict) -> None:
        for value in line.values():
            if isinstance(value, dict):
                value.clear()
        line.clear()

    config = redetr.TrainConfig(
        **SETTINGS, data=str(shared_coco), output=str(tmp_path / "run"), log=()
    )
    result = redetr.train(config, callback=callback)
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert result["AP"] == last["AP"] and result["per_class"] == last["per_class"] != {}
    assert result["best"]["step"] in (2, 4)


def test_mlflows_local_store_read_back(logged, monkeypatch):
    run, _ = logged
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=(run.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("redetr")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["steps"] == "4"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert {entry.step for entry in history} >= {1, 2, 3, 4}
    of_training = losses(run)
    assert all(
        any(entry.step == step and entry.value == loss for entry in history)
        for step, loss in of_training.items()
    )
    assert "AP" in found.data.metrics


def records(file: Path) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, behind the 7 bytes by which Weights & Biases marks
    it: blocks of 32 KiB with pieces of (checksum, length, whether it is first, middle or last)."""
    content = file.read_bytes()
    position, parts = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield parts
            parts = b""


def test_weights_and_biases_offline_read_back(logged):
    """Two files, before and after the run was resumed, of one id."""
    run, _ = logged
    from wandb.proto.wandb_internal_pb2 import Record

    number = json.loads((run / "loggers.json").read_text())["wandb"]
    files = sorted((run / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert files
    logged_losses = {}
    for content in (content for file in files for content in records(file)):
        record = Record()
        record.ParseFromString(content)
        items = {}
        for item in record.history.item:
            items[item.key or "/".join(item.nested_key)] = item.value_json
        if "loss" in items and "AP" not in items:
            logged_losses[int(items["_step"])] = float(items["loss"])
    of_training = losses(run)
    shared = of_training.keys() & logged_losses.keys()
    assert {1, 3} <= shared  # the lines of steps 2 and 4 hold those of their evaluation as well
    assert all(logged_losses[step] == of_training[step] for step in shared)


def test_tensorboard_read_back(logged):
    run, _ = logged
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {event.step for event in events.Scalars("loss")} == {1, 2, 3, 4}


def test_a_logger_that_is_not_installed_is_named_with_its_cure(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    said = r'--log mlflow: the package is not installed; pip install "redetr\[mlflow\]"'
    with pytest.raises(InputError, match=said):
        open_loggers(("mlflow",), tmp_path, {}, 0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_loggers((), tmp_path, {}, 0) == ({}, "")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("cannot import name 'Run' from 'wandb'"),
        ModuleNotFoundError("No module named 'yaml'", name="yaml"),
    ],
    ids=["a name is missing", "a package that it needs is missing"],
)
def test_a_package_that_is_broken_is_not_called_missing(error, tmp_path, monkeypatch):
    def broken(*arguments):
        raise error

    monkeypatch.setitem(loggers._LOGGERS, "wandb", broken)
    said = re.escape(f'--log wandb: the package cannot be imported ({error}); pip install "redetr')
    with pytest.raises(InputError, match=said):
        open_loggers(("wandb",), tmp_path, {}, 0)
    monkeypatch.setattr(loggers, "TensorBoard", broken)
    _, warning = open_loggers((), tmp_path, {}, 0)
    assert warning == f"warning: TensorBoard is installed but cannot be used: {error}"


def test_a_broken_tensorboard_stops_only_a_run_that_asks_for_it(tmp_path, monkeypatch):
    def broken(*arguments):
        raise TypeError("Descriptors cannot be created directly.\nIf this call came from")

    monkeypatch.setattr(loggers, "TensorBoard", broken)
    opened, warning = open_loggers((), tmp_path, {}, 0)
    assert opened == {}
    assert warning == (
        "warning: TensorBoard is installed but cannot be used: Descriptors cannot be created "
        "directly."
    )
    monkeypatch.setitem(loggers._LOGGERS, "tensorboard", broken)
    with pytest.raises(InputError, match="--log tensorboard cannot be used: Descriptors"):
        open_loggers(("tensorboard",), tmp_path, {}, 0)


def test_a_run_says_that_tensorboard_is_broken(tmp_path, monkeypatch):
    def broken(*arguments):
        raise TypeError("Descriptors cannot be created directly.")

    monkeypatch.setattr(loggers, "TensorBoard", broken)
    shown = io.StringIO()
    data = write_tiny_coco(tmp_path / "data")
    config = redetr.TrainConfig(**SETTINGS | {"steps": 1}, data=str(data), output=str(tmp_path))
    redetr.train(config, Console(file=shown, width=1000))
    assert "warning: TensorBoard is installed but cannot be used" in shown.getvalue()
    assert (tmp_path / "best.pt").exists()


def test_without_a_key_offline_is_offered(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    import wandb

    wandb.teardown()  # it remembers the environment of its first run
    with pytest.raises(InputError, match=r"--log wandb: .*WANDB_MODE=offline"):
        open_loggers(("wandb",), tmp_path, {}, 0)


class Opened:
    """A logger that notes how it was closed."""

    def __init__(self, *arguments):
        self.closed: list[bool] = []
        OPENED.append(self)

    def log(self, numbers, step):
        pass

    def close(self, failed):
        self.closed.append(failed)
        raise ConnectionError("which is not the first error")


OPENED: list[Opened] = []


def not_opened(*arguments):
    raise InputError("no such server")


@pytest.fixture
def fake_loggers(monkeypatch) -> list[Opened]:
    OPENED.clear()
    monkeypatch.setitem(loggers._LOGGERS, "mlflow", Opened)
    monkeypatch.setitem(loggers._LOGGERS, "wandb", not_opened)
    return OPENED


def test_loggers_are_closed_if_a_later_one_cannot_be_opened(fake_loggers, tmp_path):
    """Otherwise, a run would be shown as running for ever."""
    with pytest.raises(InputError, match="no such server"):
        open_loggers(("mlflow", "wandb"), tmp_path, {}, 0)
    assert [logger.closed for logger in fake_loggers] == [[True]]


def test_loggers_are_closed_if_the_log_cannot_be_opened(fake_loggers, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    config = redetr.TrainConfig(**SETTINGS, log=("mlflow",))
    state = SimpleNamespace(config=config, step=0)
    with process_group("cpu") as alone, pytest.raises(OSError):
        open_monitor(tmp_path, state, None, alone, 1.0)
    assert [logger.closed for logger in fake_loggers] == [[True]]


def test_a_run_within_the_handling_of_an_error_has_not_failed(monkeypatch, shared_coco, tmp_path):
    closed = []

    def close(monitor, failed=False):
        closed.append(failed)
        before(monitor, failed)

    before = Monitor.close
    monkeypatch.setattr(Monitor, "close", close)
    settings = SETTINGS | {"steps": 1, "eval_every": 1, "data": str(shared_coco)}
    try:
        raise ValueError("of the program around it")
    except ValueError:
        redetr.train(redetr.TrainConfig(**settings, output=str(tmp_path / "sound")))

    def failing(line):
        raise KeyError

    with pytest.raises(KeyError):
        config = redetr.TrainConfig(**settings, output=str(tmp_path / "failed"))
        redetr.train(config, callback=failing)
    assert closed == [False, True]


def test_a_logger_that_fails_does_not_end_the_run(tmp_path):
    class Failing(TensorBoard):
        def __init__(self):
            self.closed = False

        def log(self, numbers, step):
            raise ConnectionError("no route to host\nand more")

    from io import StringIO

    from rich.console import Console

    shown = StringIO()
    console = Console(file=shown, width=1000)
    monitor = Monitor(tmp_path, 10, 0, console, loggers={"mlflow": Failing()})
    for step in (1, 2):
        monitor.eval_line({"step": step, "AP": 0.5, "AP50": 0.6})
    monitor.close()
    assert shown.getvalue().count("warning: --log mlflow failed") == 1
    assert "no route to host" in shown.getvalue()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_path_that_is_not_utf8(tmp_path):
    """As of another encoding, or in the locale C."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    opened, warning = open_loggers((), folder, {}, 0)
    assert opened == {}
    assert warning.startswith("warning: TensorBoard is installed but cannot be used: ")
    with pytest.raises(InputError, match="--log tensorboard supports only paths in UTF-8"):
        open_loggers(("tensorboard",), folder, {}, 0)
