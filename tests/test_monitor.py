"""What a run shows while it goes: a bar in a terminal, lines elsewhere."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from functools import partial
from io import StringIO
from types import SimpleNamespace

import pytest
import torch
from command_line import lines_of, train_arguments
from forked import Fork, forget_redetr
from rich.console import Console
from rich.text import Text

from redetr.monitor import Monitor, SilentMonitor, StepLog
from redetr.structures import Batch
from redetr.training import _Run

LINE = {
    "loss": 8.1234,
    "loss_ce": 1.2,
    "loss_ce_0": 0.7,
    "loss_bbox": 3.2,
    "loss_giou": 1.1,
    "images_per_s": 12.3,
    "data_wait": 0.03,
}
NUMBERS = "12.3 images/s  loss 8.12 (class 1.9, box 6.2)"


def bars(output: str) -> list[str]:
    """Each state of the bar that a terminal was sent, without colours."""
    return [Text.from_ansi(part).plain for part in re.split(r"[\r\n]", output) if " left " in part]


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_only_the_numbers_are_cut_off_in_a_narrow_terminal(tmp_path, width):
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, force_interactive=True, width=width)
    monitor = Monitor(tmp_path, 300_000, 123_455, console)
    for step in (123_456, 123_457):
        monitor.advance(step)
    monitor.train_line({"step": 123_457, **LINE})
    monitor.close()
    last = bars(shown.getvalue())[-1]
    assert len(last) <= width
    assert re.match(r"step 123457/300000 +[━╸╺]* *\d+:\d\d:\d\d left ", last), last
    assert ("━" in last) == (width >= 100)
    _, numbers = last.split(" left ")
    numbers = numbers.strip()
    assert NUMBERS.startswith(numbers.removesuffix("…")) and (width < 60 or numbers)
    assert (numbers == NUMBERS) == (width >= 80)


def write_errors_to(terminal: str) -> None:
    """Makes a terminal this process's standard error, as it is for all that is imported later.

    Its size is the terminal's own.
    """
    file = os.open(terminal, os.O_WRONLY | os.O_NOCTTY)
    os.dup2(file, sys.stderr.fileno())
    os.close(file)
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
    forget_redetr()


@pytest.mark.skipif(
    sys.platform != "linux", reason="needs Linux: asks the kernel for a terminal as it does"
)
def test_a_run_in_a_terminal(shared_coco, tmp_path):
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    arguments = train_arguments(shared_coco, tmp_path / "run")
    write_there = partial(write_errors_to, os.ttyname(theirs))
    process = Fork(arguments, {"TERM": "xterm"}, prepare=[write_there])
    output = b""
    while True:
        has_ended = process.poll() is not None
        ready, _, _ = select.select([mine], [], [], 0 if has_ended else 0.05)
        if ready:
            output += os.read(mine, 4096)
        elif has_ended:
            break
    os.close(theirs)
    os.close(mine)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    last = bars(output.decode())[-1]
    assert re.match(r"step 6/6 0:00:00 left [\d.]+ images/s .*loss \d", last) and len(last) <= 80, (
        last
    )


def test_a_run_without_a_terminal_says_lines(shared_coco, tmp_path):
    process = Fork(train_arguments(shared_coco, tmp_path / "run", log_every=2))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.isascii() and not re.search(r"[\x00-\x09\x0b-\x1f]", errors), errors
    lines = re.findall(
        r"^(step (\d)/6  ([-\d:]+) left  [\d.]+ images/s  "
        r"loss [\d.]+ \(class [\d.]+, box [\d.]+\))$",
        errors,
        re.MULTILINE,
    )
    lines, steps = [(step, left) for _, step, left in lines], [line for line, *_ in lines]
    assert max(map(len, steps)) <= 80
    assert [step for step, _ in lines] == ["2", "3", "4", "6"]  # 3 as well: it is evaluated
    assert lines[-1][1] == "0:00:00"
    assert re.findall(r"^step (\d): AP ", errors, re.MULTILINE) == ["3", "6"]


def test_masks_and_panoptic_quality_are_shown_and_logged(tmp_path):
    logged = []
    logger = SimpleNamespace(log=lambda numbers, step: logged.append(numbers), close=lambda _: None)
    shown = StringIO()
    monitor = Monitor(tmp_path, 10, 0, Console(file=shown, width=1000), loggers={"mine": logger})
    line = {"step": 2, "AP": 0.5, "AP50": 0.6, "per_class": {"cup": 0.5}}
    line["masks"] = {"AP": 0.4, "APs": None, "per_class": {"cup": 0.4}}
    line["panoptic"] = {"PQ": 0.3, "things": {"PQ": 0.2}}
    monitor.eval_line(line)
    monitor.close()
    assert "step 2: AP 50.0  AP50 60.0  mask AP 40.0  PQ 30.0\n" in shown.getvalue()
    assert logged == [{"AP": 0.5, "AP50": 0.6, "masks/AP": 0.4, "panoptic/PQ": 0.3}]


def test_what_the_rest_of_the_loss_is_about(tmp_path):
    shown = StringIO()
    monitor = Monitor(tmp_path, 100, 0, Console(file=shown, width=1000))
    monitor.train_line({"step": 20, **LINE})
    monitor.train_line({"step": 40, **LINE, "loss_mask": 0.5, "loss_dice": 0.4})
    monitor.close()
    assert "(class 1.9, box 6.2)" in shown.getvalue()
    assert "(class 1.9, box and mask 6.2)" in shown.getvalue()


def test_waiting_for_data_is_said_once_with_what_to_do(tmp_path):
    shown = StringIO()
    monitor = Monitor(tmp_path, 100, 0, Console(file=shown, width=1000))
    for step, wait in ((20, 0.9), (40, 0.1), (60, 0.4), (80, 0.5)):
        monitor.train_line({"step": step, **LINE, "data_wait": wait})
    monitor.close()
    assert re.findall("(\\d+)% of the time is spent waiting for data", shown.getvalue()) == ["40"]
    assert "--num-workers" in shown.getvalue()


def test_the_parts_of_the_loss_add_up(shared_coco, tmp_path):
    """Class and box, as a run says them, are its loss; weights are those of the model."""
    process = Fork(train_arguments(shared_coco, tmp_path / "run", steps=2, log_every=1))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    said = re.findall(r"loss ([\d.]+) \(class ([\d.]+), box ([\d.]+)\)", errors)
    assert len(said) == 2
    for (loss, of_classes, of_boxes), line in zip(said, lines_of(tmp_path / "run"), strict=False):
        assert float(of_classes) + float(of_boxes) == pytest.approx(float(loss), abs=0.11)
        terms = {name: value for name, value in line.items() if name.startswith("loss_ce")}
        assert float(of_classes) == pytest.approx(sum(terms.values()), abs=0.06)
        boxes = sum(5 * value for name, value in line.items() if name.startswith("loss_bbox"))
        boxes += sum(2 * value for name, value in line.items() if name.startswith("loss_giou"))
        assert float(of_boxes) == pytest.approx(boxes, abs=0.06)


def test_the_silent_monitor_does_all_that_the_other_does():
    def public(kind):
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(SilentMonitor) == public(Monitor)


def test_what_a_crash_left_in_the_log(tmp_path):
    """Broken lines, zero bytes and a last line without its end: the run resumes, and says so."""
    log = tmp_path / "metrics.jsonl"
    sound = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "loss": 1.5}']
    broken = [b'{"step": 1, "lo', b"\xff\xfe", b"[1]", b'{"loss": 1.0}', b"", b"[" * 10**5]
    zeros = b"\0" * 4096
    log.write_bytes(b"\n".join([sound[0], *broken, zeros + sound[1], b'{"step": 2, "AP"']) + zeros)
    shown = StringIO()
    Monitor(tmp_path, 10, 2, Console(file=shown, width=1000)).close()
    assert log.read_bytes() == b"\n".join([*sound, b""])
    assert "metrics.jsonl: dropped 6 broken lines" in shown.getvalue()


def test_the_padding_of_uneven_slices_by_hand():
    """Three images on two ranks: the share in all of them, not the mean of the ranks' shares."""
    canvas = torch.zeros(2, 4, 4, dtype=torch.bool)
    two = Batch(torch.zeros(2, 3, 4, 4), canvas, sizes=[(4, 4), (2, 4)], targets=[{}, {}])
    one = Batch(torch.zeros(1, 3, 4, 4), canvas[:1], sizes=[(1, 4)], targets=[{}])
    rows = []
    for batch in (two, one):
        for target in batch.targets:
            target["image_id"] = 0
        log = StepLog(batch_size=3, world_size=2)
        log.add(1, {"loss": torch.tensor(1.0)}, torch.tensor(1.0), [batch], 0.0, 1.0)
        rows.append(log.rows[0][1].item())
    assert sum(rows) / 2 == pytest.approx((0 + 8 + 12) / 48)


class SlowDevice:
    """The ranks of a run whose device has not ended its last step when its numbers are read."""

    world_size = 1

    def __init__(self):
        self.now_s = 0.0

    def mean_(self, tensor: torch.Tensor) -> torch.Tensor:
        self.now_s += 0.2
        return tensor


def test_the_rest_of_the_last_step_on_the_device_is_time_of_the_steps(monkeypatch):
    """Which reading the numbers waits for."""
    device = SlowDevice()
    clock = SimpleNamespace(perf_counter=lambda: device.now_s)
    monkeypatch.setattr("redetr.monitor.time", clock)
    images = torch.zeros(2, 3, 4, 4)
    batch = Batch(images, images[:, 0] > 0, sizes=[(4, 4)] * 2, targets=[{"image_id": 0}] * 2)
    log = StepLog(batch_size=2, world_size=1)
    log.add(1, {"loss": torch.tensor(1.0)}, torch.tensor(1.0), [batch], 0.1, 0.1)
    lines = []
    run = SimpleNamespace(
        step_log=log,
        dist=device,
        state=SimpleNamespace(train_time_s=5.0),
        monitor=SimpleNamespace(train_line=lines.append),
        _rates=dict,
    )
    _Run._write_log(run)
    (line,) = lines
    assert line["images_per_s"] == 6.67  # 2 in 0.3 s
    assert line["data_wait"] == pytest.approx(0.1 / 0.3, abs=1e-3)
    assert line["time_s"] == 5.2
    assert run.state.train_time_s == pytest.approx(line["time_s"], abs=1e-3)
    assert log.took == 0
