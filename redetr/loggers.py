"""Sends the numbers of a run to TensorBoard, MLflow, Weights & Biases, and your own functions.

A logger is chosen by `--log NAME`, needs the extra of its name, and receives each line that
metrics.jsonl gets. MLFLOW_TRACKING_URI sets MLflow's server; by default, it is a folder `mlruns`
next to the run folder. With WANDB_MODE=offline, the data for Weights & Biases stays in the run
folder. A resumed run continues with its id, which is stored in `loggers.json` in the run folder.
"""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from redetr.choices import LoggerName
from redetr.errors import InputError, first_line, import_failure, is_not_installed
from redetr.files import write_json

Line = dict[str, Any]  # as in metrics.jsonl: "step", and numbers by name
_IDS = "loggers.json"
_PROJECT = "redetr"  # unless MLFLOW_EXPERIMENT_NAME or WANDB_PROJECT name another
_LONGEST_PARAMETER = 500  # of MLflow


class Logger(Protocol):
    """Receives the numbers of a run."""

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Takes the numbers of a step."""

    def close(self, failed: bool) -> None:
        """Ends the run, which has `failed` or not."""


def open_loggers(
    names: tuple[LoggerName, ...], folder: Path, settings: dict[str, Any], step: int
) -> tuple[dict[str, Logger], str]:
    """The loggers of these names for a run in `folder` that begins or resumes at `step`, and a
    warning, which is empty if there is none. Without names, TensorBoard if it is installed; a
    broken one gives a warning. Raises InputError for a name whose logger cannot be opened."""
    if not names:
        return _by_default(folder, settings, step)
    loggers: dict[str, Logger] = {}
    try:
        for name in names:
            loggers[name] = _opened(name, folder, settings, step)
    except BaseException:
        close_after_failure(loggers)
        raise
    return loggers, ""


def _by_default(folder: Path, settings: dict[str, Any], step: int) -> tuple[dict[str, Logger], str]:
    """TensorBoard if it is installed, and a warning if it is but cannot be used: the user did not
    ask for it, so training continues."""
    try:
        return {"tensorboard": TensorBoard(folder, settings, step)}, ""
    except Exception as error:  # of TensorBoard or protobuf, or for a path that is not UTF-8
        if is_not_installed(error, "tensorboard"):
            return {}, ""
        warning = f"warning: TensorBoard is installed but cannot be used: {first_line(error)}"
        return {}, warning


def _opened(name: LoggerName, folder: Path, settings: dict[str, Any], step: int) -> Logger:
    try:
        return _LOGGERS[name](folder, settings, step)
    except ImportError as error:
        text = f"--log {name}: the package {import_failure(error, name)}"
        raise InputError(text, remedy=f'pip install "redetr[{name}]"') from None
    except UnicodeEncodeError:
        text = f"--log {name} supports only paths in UTF-8"
        raise InputError(text, where=folder, remedy="rename it, or use a UTF-8 locale") from None
    except InputError:
        raise
    except Exception as error:  # of a package that is broken
        raise InputError(f"--log {name} cannot be used: {first_line(error)}") from error


def close_after_failure(loggers: dict[str, Logger]) -> None:
    """Closes loggers of a run that cannot begin, which servers would show as running for ever."""
    for logger in loggers.values():
        with suppress(Exception):  # each library has its own errors; the first one is reported
            logger.close(failed=True)


def numbers_of(line: Line) -> dict[str, float]:
    """The numbers of a line by name, without its step: those of masks as "masks/AP", panoptic ones
    as "panoptic/PQ"."""
    numbers = {}
    for name, value in line.items():
        if isinstance(value, float):
            numbers[name] = value
    for group in ("masks", "panoptic"):
        for name, value in line.get(group, {}).items():
            if isinstance(value, float):
                numbers[f"{group}/{name}"] = value
    return numbers


class TensorBoard:
    """Events in the folder `tensorboard` of the run."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `redetr`."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int):
        import mlflow
        from mlflow import entities

        self._entities = entities
        address = os.environ.get("MLFLOW_TRACKING_URI")
        if not address:
            # MLflow wants to be asked for folders explicitly; databases need more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = (folder.absolute().parent / "mlruns").as_uri()
        try:
            self._client = mlflow.MlflowClient(tracking_uri=address)
            self._run = _id_of_run(folder, "mlflow", step) or self._begin(folder, settings)
            self._client.update_run(self._run, status="RUNNING")
        except mlflow.exceptions.MlflowException as error:
            raise InputError(f"--log mlflow: {first_line(error)}", where=address) from error
        _keep_id(folder, "mlflow", self._run)

    def _begin(self, folder: Path, settings: dict[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(number, run_name=folder.absolute().name).info.run_id
        parameters = []
        for key, value in settings.items():
            text = str(value)[:_LONGEST_PARAMETER]
            parameters.append(self._entities.Param(key, text))
        self._client.log_batch(run, params=parameters)
        return run

    def log(self, numbers: dict[str, float], step: int) -> None:
        now_ms = int(1000 * time.time())
        metrics = []
        for name, value in numbers.items():
            metrics.append(self._entities.Metric(name, value, now_ms, step))
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class WeightsAndBiases:
    """A run of the project `redetr`; its files are in the folder `wandb` of the run."""

    def __init__(self, folder: Path, settings: dict[str, Any], step: int):
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=folder.absolute().name,
                id=_id_of_run(folder, "wandb", step) or None,
                resume="allow",
                dir=str(folder),
                config=settings,
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            remedy = "or keep it here with WANDB_MODE=offline"
            raise InputError(f"--log wandb: {first_line(error)}", remedy=remedy) from error
        _keep_id(folder, "wandb", self._run.id)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


_LOGGERS: dict[LoggerName, Callable[[Path, dict[str, Any], int], Logger]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _ids(folder: Path) -> dict[str, str]:
    try:
        ids = json.loads((folder / _IDS).read_bytes())
    except (OSError, ValueError):  # none yet, or cut short: a new run begins there
        return {}
    return ids if isinstance(ids, dict) else {}


def _id_of_run(folder: Path, name: str, step: int) -> str:
    """The id of the run that resumes; empty for a new one."""
    return str(_ids(folder).get(name, "")) if step else ""


def _keep_id(folder: Path, name: str, number: str) -> None:
    write_json(folder / _IDS, _ids(folder) | {name: number})
