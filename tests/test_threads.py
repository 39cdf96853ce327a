"""Threads that compute, and how they wait where other programs want the cores as well."""

import subprocess
import sys

import pytest
import torch

from redetr import cli, threads
from redetr.cli import main
from redetr.errors import InputError
from redetr.threads import crowding, use_threads, wait_politely


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loaded(monkeypatch):
    """Sets the load and the cores of this machine."""

    def set_load(load: float, cores: int = 2) -> None:
        monkeypatch.setattr(threads.os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
        monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)

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
    assert "--threads 0 must be at least 1" in capsys.readouterr().err
    with pytest.raises(InputError, match="--threads 0 must be at least 1"):
        use_threads(0)
