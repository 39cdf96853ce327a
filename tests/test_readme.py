"""The README is true: its commands parse, its Python runs, its links hold, its numbers come from results."""

import json
import re
import shlex
from pathlib import Path

import pytest

from redetr.cli import COMMANDS, parse_command
from redetr.data import open_dataset
from redetr.demo import demo_config
from redetr.train import train
from redetr.visualize import save_image, to_pil

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0] for block in blocks("console") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("redetr ")] + [
        shlex.split(line.partition("-m redetr ")[2]) for line in lines if "-m redetr " in line
    ]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_parse(command):
    assert command[0] in COMMANDS
    parse_command(command)


def test_length():
    assert README.count("\n") < 200


def test_links_and_named_files_exist():
    named = re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`((?:tests|benchmarks|examples)/[\w./]+)`", README)
    for path in named:
        if not path.startswith("http"):
            assert (ROOT / path).exists(), path


def test_python_block_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(demo_config("digits", Path("runs/demo"), 2))
    (tmp_path / "examples").mkdir()
    save_image(to_pil(open_dataset("digits", "val").image(0)), tmp_path / "examples/digits.png")
    (code,) = blocks("python")
    exec(compile(code, "README", "exec"), {})
    assert capsys.readouterr().out.startswith("Detections: ")


def test_measured_numbers_are_recorded():
    """Every number in the table of measurements stands, rounded, in a file of results."""
    recorded = set()
    for path in (ROOT / "benchmarks/results").glob("*.json"):
        recorded |= numbers(json.loads(path.read_text()))
    table = README.split("## Measured")[1].split("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("|") and re.search(r"\d", line)]
    assert rows
    for row in rows:
        for number in re.findall(r"(?<![\w.])\d+\.\d(?![\w.])", row):
            assert float(number) in recorded, f"{number} in {row}"


def numbers(content) -> set[float]:
    """All numbers in a result, as they are, in percent, and in minutes, with one decimal."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return set().union(*(numbers(part) for part in content)) if content else set()
    if isinstance(content, (int, float)):
        return {round(content, 1), round(100 * content, 1), round(content / 60, 1)}
    return set()
