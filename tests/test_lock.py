"""Two runs in one folder: the second is refused, unless the first is dead."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from command_line import lines_of, train_arguments
from rich.console import Console

from redetr import lock, training
from redetr.cli import main
from redetr.commands.demonstration import _MARK, demo
from redetr.distributed import Dist
from redetr.errors import InputError, LostError
from redetr.lock import FolderLock, Holder

ALONE = Dist(0, 1, torch.device("cpu"))
ELSEWHERE = replace(Holder.this_process(), host="other", process=7, kernel="another", job="17")


def hold(folder: Path) -> None:
    """In a process of its own: takes the lock, and lives on with a child that inherits its
    files."""
    with FolderLock(folder, ALONE):
        if os.fork():
            (folder / "held").touch()
        time.sleep(100)


@pytest.fixture
def holding(tmp_path):
    """A process that holds the lock of the folder `tmp_path`."""
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    yield process
    process.kill()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    process.join()


def record(folder: Path, holder: Holder, age_s: float) -> Path:
    """A lock of a holder on a host whose locks of the kernel do not reach this one."""
    path = folder / "run.lock"
    path.write_text(json.dumps(asdict(holder)))
    now = time.time()
    os.utime(path, (now - age_s, now - age_s))
    return path


def test_the_lock_names_its_holder_and_ends_with_its_process(holding, tmp_path):
    """Also where a child of the dead process lives on, as a loader does for a while."""
    said = rf"process {holding.pid} on \S+.* has been training there since .*another --output"
    with pytest.raises(InputError, match=said), FolderLock(tmp_path, ALONE):
        pass
    holding.kill()
    holding.join()
    with FolderLock(tmp_path, ALONE):
        assert json.loads((tmp_path / "run.lock").read_text())["process"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == ["held"]


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path):
    with FolderLock(tmp_path / "runs" / "new", ALONE):
        assert (tmp_path / "runs" / "new" / "run.lock").exists()
    assert not (tmp_path / "runs" / "new").exists()


@pytest.mark.parametrize(
    "content",
    ["", '{"host": "a', "[1]", "[" * 5000],
    ids=["empty", "cut off", "a list", "nested"],
)
def test_a_lock_that_is_not_whole_is_taken(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    with FolderLock(tmp_path, ALONE):
        pass


def test_a_holder_on_another_host_is_dead_if_its_file_is_old(tmp_path):
    record(tmp_path, ELSEWHERE, age_s=100)
    with FolderLock(tmp_path, ALONE):
        pass


@pytest.mark.parametrize("job", [None, "17"])
def test_a_holder_on_another_host_that_renews_its_file(tmp_path, monkeypatch, job):
    """It lives, so the folder is refused: at once, or when it does not end for long, if it belongs
    to the same job, which was restarted."""
    monkeypatch.setattr(lock, "_PAUSE_S", 0.01)
    monkeypatch.setattr(lock, "_PATIENCE_S", 0.5)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    path = record(tmp_path, ELSEWHERE, age_s=0)
    looks = []

    def pause(seconds):
        looks.append(seconds)
        os.utime(path, (time.time(), time.time() - 1 / len(looks)))

    monkeypatch.setattr(lock.time, "sleep", pause)
    with pytest.raises(InputError, match=r"process 7 on other \(job 17\)"):
        FolderLock(tmp_path, ALONE).__enter__()
    assert len(looks) == 1 if job is None else len(looks) > 5
    assert path.exists()


def test_a_restarted_job_waits_for_its_dead_host(tmp_path, monkeypatch):
    """Whose file is no longer renewed."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    beat_ns = record(tmp_path, ELSEWHERE, age_s=0).stat().st_mtime_ns
    seconds_since = iter([1, 20, 50])  # the last is longer than its silence may be
    pauses: list[float] = []
    monkeypatch.setattr(lock, "_now_on", lambda folder: beat_ns + next(seconds_since) * 10**9)
    monkeypatch.setattr(lock.time, "sleep", pauses.append)
    with FolderLock(tmp_path, ALONE):
        pass
    assert len(pauses) == 2


def test_the_file_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_BEAT_S", 0.01)
    with FolderLock(tmp_path, ALONE):
        first = (tmp_path / "run.lock").stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while (tmp_path / "run.lock").stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_run_that_was_taken_over_saves_nothing_more(tmp_path):
    with FolderLock(tmp_path, ALONE) as held:
        held.require_held()
        record(tmp_path, ELSEWHERE, age_s=0)
        with pytest.raises(LostError, match=r"another run has taken over .*process 7 on other"):
            held.require_held()
    assert (tmp_path / "run.lock").exists()


def test_a_run_whose_folder_was_removed_saves_nothing_more(tmp_path):
    """Nor does it touch the lock of a run that began there since."""
    folder = tmp_path / "run"
    removed = r"run\.lock: was removed while this run held it; this run will not save anything more"
    first = FolderLock(folder, ALONE)
    first.__enter__()
    shutil.rmtree(folder)
    with pytest.raises(LostError, match=removed):
        first.require_held()
    with FolderLock(folder, ALONE) as second:
        with pytest.raises(LostError, match=removed):
            first.require_held()
        first.__exit__()
        assert second.path.exists()
        second.require_held()


def test_the_lock_of_another_run_is_not_renewed(tmp_path, monkeypatch):
    """As by a run whose folder was removed: the other may be dead, which only its file says."""
    monkeypatch.setattr(lock, "_BEAT_S", 0.01)
    folder = tmp_path / "run"
    with FolderLock(folder, ALONE) as held:
        shutil.rmtree(folder)
        folder.mkdir()
        path = record(folder, ELSEWHERE, age_s=100)
        written = path.stat().st_mtime_ns
        before = os.fstat(held._file).st_mtime_ns
        deadline = time.monotonic() + 60
        while os.fstat(held._file).st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert path.stat().st_mtime_ns == written


def test_a_demo_does_not_replace_one_that_is_going_on(holding, tmp_path):
    (tmp_path / "demo").write_text(_MARK)
    (tmp_path / "last.pt").touch()
    with pytest.raises(InputError, match="has been training there since"):
        demo("digits", tmp_path, 2, Console(quiet=True))
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "held", "last.pt", "run.lock"}


def test_a_run_that_was_taken_over_keeps_no_best_weights(shared_coco, tmp_path, monkeypatch):
    """Those in the folder are of the run that has it now."""
    measure = training.evaluate

    def taken_over_meanwhile(*arguments, **options):
        record(tmp_path / "run", ELSEWHERE, age_s=0)
        return measure(*arguments, **options)

    monkeypatch.setattr(training, "evaluate", taken_over_meanwhile)
    with pytest.raises(SystemExit):
        main(train_arguments(shared_coco, tmp_path / "run"))
    assert not (tmp_path / "run/best.pt").exists()
    assert all("AP" not in line for line in lines_of(tmp_path / "run"))


def test_a_lock_that_another_host_removed_from_an_nfs_disk(tmp_path, monkeypatch):
    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    held = FolderLock(tmp_path, ALONE)
    held.__enter__()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", stale)
        patched.setattr(os, "pread", stale)
        with pytest.raises(LostError, match="was removed while this run held it"):
            held.require_held()
        held.__exit__()
