"""Threads that compute, and how they wait where other programs want the cores as well."""

import json
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import redetr
from redetr import cli, threads, trial
from redetr.cli import main
from redetr.config import TrainConfig
from redetr.data import Hints
from redetr.distributed import Dist
from redetr.errors import InputError
from redetr.preparation import _with_choices_of
from redetr.threads import (
    cores,
    crowding,
    free_threads,
    pick_threads,
    use_threads,
    wait_politely,
)
from redetr.trial_choices import TrialChoices, read_trials
from redetr.verification import verify


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """Sets the load and the cores of this machine, which has no limit but in files of `tmp_path`."""

    def set_load(load: float, cores: int = 2) -> None:
        monkeypatch.setattr(threads.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
        monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)
        affinity = set(range(cores))
        monkeypatch.setattr(
            threads.os, "sched_getaffinity", lambda process: affinity, raising=False
        )
        monkeypatch.setattr(threads, "_CGROUP", tmp_path)
        monkeypatch.setattr(threads, "_PROCESSOR_TIMES", tmp_path / "no counters")

    return set_load


@pytest.mark.parametrize(
    ("load", "given", "expected"),
    [
        (0.2, {}, {}),
        (1.0, {}, {"GOMP_SPINCOUNT": "1000"}),
        (1.0, {"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        (1.0, {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_sleep_early_beside_other_programs_unless_the_user_says_how(
    load, given, expected, loaded
):
    loaded(load)
    wait_politely(given)
    assert given == expected


# What the environment is when PyTorch is imported, which reads it once.
COMMAND = """
import os, sys
from pathlib import Path
from redetr import threads
threads._PROCESSOR_TIMES = Path("no counters")
os.getloadavg = lambda: (3.0, 0.0, 0.0)
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            raise SystemExit(0)
sys.meta_path.insert(0, Watch())
from redetr.cli import main
main(["evaluate", "nothing"])
"""


def test_it_is_set_before_pytorch_is_imported(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True)
    assert done.stdout == "1000\n", done.stderr


def test_a_system_without_a_load(monkeypatch):
    monkeypatch.delattr(threads.os, "getloadavg")
    assert threads.load() == 0


@pytest.fixture
def processor_time(monkeypatch, tmp_path):
    """Sets the processor time that passes on a machine of two cores, in ticks, while a sample of
    its load is taken. This process is at rest."""
    file = tmp_path / "stat"
    monkeypatch.setattr(threads.time, "process_time", lambda: 0.0)

    def set_ticks(user: int, idle: int) -> None:
        monkeypatch.setattr(threads, "_PROCESSOR_TIMES", file)
        total = {"user": 70, "idle": 500}

        def write() -> None:
            file.write_text(f"cpu  {total['user']} 0 30 {total['idle']} 0 0 0 0 0 0\ncpu0 1 2\n")

        def sleep(seconds: float) -> None:
            total["user"] += user
            total["idle"] += idle
            write()

        write()
        monkeypatch.setattr(threads.time, "sleep", sleep)

    return set_ticks


@pytest.mark.parametrize(
    ("load", "user", "idle", "expected"),
    [
        (1.8, 0, 40, 0.0),  # a program that has just ended
        (1.8, 20, 20, 1.0),
        (0.9, 40, 0, 0.9),  # two programs that have just started
        (0.4, 40, 0, 0.4),
        (1.8, 0, 0, 1.8),  # no ticks are counted here
    ],
)
def test_a_program_that_has_ended_keeps_no_core_busy(
    load, user, idle, expected, loaded, processor_time
):
    loaded(load)
    processor_time(user, idle)
    assert threads.busy_cores() == pytest.approx(expected)


def test_this_process_does_not_count_as_another_program(loaded, processor_time, monkeypatch):
    loaded(2.0)
    processor_time(user=30, idle=10)
    ours = iter([5.0, 5.2])
    monkeypatch.setattr(threads.time, "process_time", lambda: next(ours))
    assert threads.busy_cores() == pytest.approx(2 * (0.3 - 0.2) / 0.4)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("cpu  100 20 30 4000 500 6 7 80 0 0\ncpu0 1 2\n", (1.63, 45.0)),
        ("cpu  1 2 3\n", None),
        ("", None),
        (None, None),  # no such file
    ],
)
def test_the_counters_of_linux_are_read(content, expected, tmp_path, monkeypatch):
    """Stolen time, the eighth number, is neither busy nor idle."""
    file = tmp_path / "stat"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(threads, "_PROCESSOR_TIMES", file)
    monkeypatch.setattr(threads.os, "sysconf", lambda name: 100, raising=False)
    assert threads._processor_time() == expected


def test_a_system_without_counters_is_not_waited_for(loaded, monkeypatch):
    loaded(1.8)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: pytest.fail("waited"))
    assert threads.busy_cores() == 1.8


def test_an_ended_program_changes_nothing(loaded, processor_time):
    loaded(1.8)
    processor_time(user=0, idle=40)
    environment: dict[str, str] = {}
    wait_politely(environment)
    assert environment == {}
    torch.set_num_threads(2)
    assert crowding() == []


def test_the_limit_of_a_container_is_no_other_program(loaded, tmp_path):
    loaded(0.0, cores=4)
    (tmp_path / "cpu.max").write_text("200000 100000")
    torch.set_num_threads(4)
    assert crowding() == ["note: 4 threads compute on 2 usable cores: try --threads 2"]


@pytest.mark.parametrize(
    ("load", "cores", "computing", "fewer"),
    [(1.0, 2, 2, 1), (2.9, 2, 2, 1), (5.0, 16, 16, 11), (20.0, 16, 4, 1)],
)
def test_a_run_says_that_cores_are_taken(load, cores, computing, fewer, loaded):
    loaded(load, cores)
    torch.set_num_threads(computing)
    (note,) = crowding()
    assert f"{computing} threads compute" in note
    assert note.endswith(f"try --threads {fewer}")


@pytest.mark.parametrize(("load", "cores", "computing"), [(3.0, 2, 1), (0.3, 2, 2), (5.0, 16, 8)])
def test_nothing_is_said_where_cores_are_free(load, cores, computing, loaded):
    loaded(load, cores)
    torch.set_num_threads(computing)
    assert crowding() == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("cpu.max", "400000 100000", 4),
        ("cpu.max", "50000 100000", 1),
        ("cpu.max", "max 100000", 16),
        ("cpu/cpu.cfs_quota_us", "250000", 2),
        ("cpu/cpu.cfs_quota_us", "-1", 16),
    ],
)
def test_the_limit_of_a_container_counts(file, text, expected, loaded, tmp_path):
    loaded(0.0, cores=16)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / file).write_text(f"{text}\n")
    torch.set_num_threads(16)
    assert cores() == expected
    assert free_threads(busy=0.0) == (expected if expected < 16 else None)


def test_cores_that_this_process_may_not_run_on_do_not_count(loaded, monkeypatch):
    loaded(3.0, cores=16)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert cores() == 2
    torch.set_num_threads(2)
    assert free_threads(busy=3.0) is None  # 13 of 16 are free, of which these may be two


@pytest.fixture
def trial_says(monkeypatch):
    """Sets how many times as fast fewer threads are, each of which runs once in the trial."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    computing = []

    def set_gain(gain: float | None) -> list[int]:
        def times_faster(candidate, reference):
            assert gain is not None, "no trial was expected"
            for run in (candidate, reference):
                run()
                computing.append(torch.get_num_threads())
            return gain

        monkeypatch.setattr(trial, "times_faster", times_faster)
        return computing

    return set_gain


@pytest.fixture(scope="module")
def model():
    options = {"hidden_dim": 32, "dim_feedforward": 32, "num_queries": 5, "backbone": [8, 16, 16]}
    return redetr.build("redetr_n", 2, **options)


@pytest.mark.parametrize(
    ("gain", "count", "reason"),
    [
        (1.5, 1, "threads: 1 (1.50 times as fast as 2), because other programs "),
        (1.04, 2, "threads: 2 (1 is only 1.04 times as fast), because other programs "),
        (0.5, 2, "threads: 2 (2.00 times as fast as 1), because other programs "),
    ],
)
def test_a_trial_chooses_the_threads(gain, count, reason, model, loaded, trial_says):
    loaded(1.0)
    torch.set_num_threads(2)
    computing = trial_says(gain)
    choice = pick_threads(model, 64, gradient=True)
    assert computing == [1, 2]
    assert torch.get_num_threads() == choice.threads == count
    assert choice.reason.startswith(reason)
    assert choice.reason.endswith("(override with --threads)")


def test_there_is_no_trial_on_free_cores(model, loaded, trial_says):
    """So runs on a machine at rest compute on as many threads each time."""
    loaded(0.3)
    torch.set_num_threads(2)
    trial_says(None)
    assert pick_threads(model, 64) is None
    assert torch.get_num_threads() == 2


def test_the_environment_decides_before_a_trial(model, loaded, trial_says, monkeypatch):
    loaded(1.0)
    torch.set_num_threads(2)
    trial_says(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert pick_threads(model, 64) is None


def trained(folder: Path, **settings) -> list[str]:
    """What a run of one step says."""
    said = StringIO()
    options = ("hidden_dim=32", "dim_feedforward=32", "num_queries=5", "backbone=[8, 16, 16]")
    config = TrainConfig(
        data="digits",
        model="redetr_n",
        model_options=options,
        batch_size=2,
        steps=1,
        image_size=64,
        device="cpu",
        precision="fp32",
        num_workers=0,
        output=str(folder),
    )
    config = replace(config, **settings)
    redetr.train(config, Console(file=said, width=300))
    return said.getvalue().splitlines()


@pytest.mark.usefixtures("few_digits")
def test_a_resumed_run_keeps_its_threads(loaded, trial_says, tmp_path):
    loaded(1.0)
    torch.set_num_threads(2)
    trial_says(1.5)
    run = tmp_path / "run"
    assert any("threads: 1 (1.50 times as fast" in line for line in trained(run))
    assert read_trials(run / "config.json") == TrialChoices(1, threads=1)
    assert TrainConfig.read(run / "config.json").threads is None
    trial_says(None)
    for _ in range(2):
        said = trained(run, resume=True)
        assert "1 x cpu with 1 thread, fp32" in said[0]
        assert read_trials(run / "config.json") == TrialChoices(1, threads=1)


@pytest.mark.usefixtures("few_digits")
def test_a_resumed_run_of_an_earlier_version_keeps_its_threads(tmp_path):
    """Its settings have them, as if the user had chosen them."""
    run = tmp_path / "run"
    trained(run, threads=1)
    settings = json.loads((run / "config.json").read_text())
    del settings["trials"]
    (run / "config.json").write_text(json.dumps(settings))
    torch.set_num_threads(2)
    assert "1 x cpu with 1 thread, fp32" in trained(run, resume=True)[0]


@pytest.mark.parametrize(
    ("world_size", "recorded", "threads"),
    [
        (1, {"world_size": 1, "threads": 1}, 1),
        (2, {"world_size": 1, "threads": 1}, 2),
        (2, {"world_size": 2}, 2),
        (1, None, 3),
        (2, None, 2),  # it may be that of a trial with one process
    ],
)
def test_the_threads_of_one_process_are_not_those_of_each_rank(
    world_size, recorded, threads, model, tmp_path
):
    config = TrainConfig(threads=None if recorded else 3)
    values = config.to_dict() | ({"trials": recorded} if recorded else {})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(values))
    torch.set_num_threads(2)
    settings = TrainConfig().resolved(model, Hints(), 10)
    _with_choices_of(file, settings, Dist(0, world_size, torch.device("cpu")))
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("few_digits")
def test_a_run_and_a_verification_leave_the_threads_of_the_process(loaded, trial_says, tmp_path):
    """Later runs would have them as well."""
    loaded(1.0)
    trial_says(1.5)
    torch.set_num_threads(2)
    assert "1 x cpu with 1 thread, fp32" in trained(tmp_path / "given", threads=1)[0]
    assert torch.get_num_threads() == 2
    assert "1 x cpu with 1 thread, fp32" in trained(tmp_path / "tried")[0]
    assert torch.get_num_threads() == 2
    with pytest.raises(InputError):
        trained(tmp_path / "given", threads=1)
    assert torch.get_num_threads() == 2
    tiny = TrainConfig.read(tmp_path / "given/config.json")
    verify(replace(tiny, data="random", threads=1))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("few_digits")
def test_a_run_with_threads_of_the_user_has_no_trial(loaded, trial_says, tmp_path):
    loaded(1.0)
    trial_says(None)
    said = trained(tmp_path / "run", threads=2)
    assert any(line.endswith("try --threads 1") for line in said)


@pytest.mark.parametrize(
    "command",
    [
        "train redetr_n --device cpu --data",
        "verify redetr_n --device cpu --data",
        "evaluate",
        "predict --output none picture.png",
        "export",
        "explain --image-id 1",
        "app",
        "push owner/name --to copy",
    ],
)
def test_threads_of_a_command(command, monkeypatch, tmp_path):
    """They are set before anything is read, which ends these commands."""
    given = []
    monkeypatch.setattr(cli, "wait_politely", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    with pytest.raises(SystemExit):
        main([*command.split(), str(tmp_path / "nothing"), "--threads", "3"])
    assert given == [3]


def test_fewer_than_one_thread(monkeypatch, capsys):
    monkeypatch.setattr(cli, "wait_politely", lambda: None)
    with pytest.raises(SystemExit):
        main(["train", "redetr_n", "--device", "cpu", "--threads", "0"])
    assert "--threads 0 must be from 1 to 1024" in capsys.readouterr().err
    with pytest.raises(InputError, match="--threads 0 must be at least 1"):
        use_threads(0)
