"""Errors of one line whose parts can be read, whatever a path is called."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from redetr import cli
from redetr.data.faults import Fault
from redetr.data.images import decoder_errors
from redetr.errors import DivergedError, InputError, exhausted_memory, explained, first_line

FOLDER = Path("a: b; c")  # a name that no message can be split at


@pytest.mark.parametrize(
    ("parts", "line"),
    [
        ({}, "is odd"),
        ({"where": FOLDER}, "a: b; c: is odd"),
        ({"where": "hf:name", "remedy": "mend it"}, "hf:name: is odd; mend it"),
        ({"where": FOLDER, "item": "line 3"}, "a: b; c: line 3: is odd"),
        ({"remedy": "mend it"}, "is odd; mend it"),
    ],
)
def test_the_line_has_the_parts_that_are_given(parts, line):
    assert str(InputError("is odd", **parts)) == line


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://me:p@ss:w?rd@cam:554/a@b", "rtsp://***@cam:554/a@b"),
        ("https://token@host", "https://***@host"),
        ("http://host:80/a@b", "http://host:80/a@b"),
    ],
)
def test_passwords_of_urls_are_not_shown(url, shown):
    assert str(InputError(f"is not '{url}'", where=url)) == f"{shown}: is not '{shown}'"
    assert InputError("is odd", where=url).where == url


def test_parts_survive_the_way_to_another_process():
    error = InputError("is odd", where=FOLDER, item="line 3", remedy="mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def test_other_errors_have_the_same_parts():
    error = DivergedError("loss is nan", where="step 3", remedy="lower --lr")
    assert str(error) == "step 3: loss is nan; lower --lr"
    assert error.exit_code == 3


def test_a_fault_becomes_an_error_and_back():
    fault = Fault("error", "box-outside", FOLDER / "x.json", "annotation 1", "is odd", "mend it")
    assert Fault.from_error("box-outside", fault.to_error(), Path()) == fault
    assert str(fault.to_error()) == str(fault) == "a: b; c/x.json: annotation 1: is odd; mend it"


def test_an_error_without_a_file_is_a_fault_of_the_source():
    fault = Fault.from_error("split-unreadable", InputError("no room"), FOLDER)
    assert (fault.file, fault.where, fault.text, fault.remedy) == (FOLDER, "", "no room", "")
    assert str(fault) == "a: b; c: no room"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("is odd\nand more"), "is odd"),
        (ValueError("\n  is odd\n"), "is odd"),
        (AssertionError(), "AssertionError"),
        (ValueError(" \n"), "ValueError"),
    ],
)
def test_the_first_line_of_any_error(error, line):
    assert first_line(error) == line


def test_a_decoder_that_gives_no_reason():
    with (
        pytest.raises(InputError, match=r"cannot decode the image \(ValueError\)"),
        decoder_errors("a.png", "replace it"),
    ):
        raise ValueError("\n")


def test_repetitions_are_counted_at_the_end():
    fault = Fault("note", "outline", FOLDER, "", "is odd", "mend it", 3)
    assert str(fault) == "a: b; c: is odd; mend it (and 2 more like it)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space", "a/b"), "a/b: No space; free some space"),
        (OSError(28, "No space"), "cannot read or write: No space; free some space"),
        (PermissionError(13, "Denied", "a"), "a: Denied; change its permissions, or give another"),
        (OSError("odd"), "cannot read or write: odd"),
    ],
)
def test_errors_of_the_system_say_what_to_do(error, line):
    assert str(explained(error)).startswith(line)


TOO_MUCH = 2**60  # bytes


def allocate_in_numpy() -> None:
    np.empty(TOO_MUCH, np.uint8)


def allocate_in_torch() -> None:
    torch.empty(TOO_MUCH, dtype=torch.uint8)


def allocate_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def create_a_cublas_handle() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def launch_on_a_full_gpu() -> None:
    raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous")


def multiply_other_sizes() -> None:
    torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (allocate_in_numpy, "out of host memory"),
        (allocate_in_torch, "out of host memory"),
        (allocate_on_a_gpu, "out of GPU memory"),
        (create_a_cublas_handle, "out of GPU memory"),
        (launch_on_a_full_gpu, "out of GPU memory"),
        (multiply_other_sizes, None),
    ],
)
def test_exhausted_memory_is_told_apart(work, message):
    with pytest.raises((MemoryError, RuntimeError)) as raised:
        work()
    assert exhausted_memory(raised.value) == message


def test_exhausted_memory_is_one_line_of_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_command", lambda arguments: allocate_in_torch())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", "best.pt"])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("redetr: out of host memory: use smaller images")


def test_another_error_of_the_program_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "run_command", lambda arguments: multiply_other_sizes())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        cli.main(["evaluate", "best.pt"])
