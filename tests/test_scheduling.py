"""How `make test` hands out files to its processes."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest


class Process:
    """A worker of xdist, as far as its scheduler asks; `indices` are of the tests it was given."""

    def __init__(self, number: int):
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.shutting_down = False
        self.indices: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.indices += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def given(nodeids: list[str], processes: int) -> list[list[str]]:
    """Which tests each of the processes is given at first."""
    values = {"dist": "loadfile", "tx": [f"{processes}*popen"]}
    config: Any = SimpleNamespace(getoption=values.get, getvalue=values.get)
    config.option = SimpleNamespace(loadscopereorder=True)
    scheduler = conftest.pytest_xdist_make_scheduler(config, log=None)
    nodes = [Process(number) for number in range(processes)]
    for node in nodes:
        scheduler.add_node(node)
        scheduler.add_node_collection(node, nodeids)
    scheduler.schedule()
    return [[nodeids[index] for index in node.indices] for node in nodes]


def test_files_are_handed_out_in_their_order():
    """The first file has the fewest tests, and is the longest."""
    long, short, other = (f"tests/test_{name}.py" for name in ("long", "short", "other"))
    nodeids = [f"{long}::a", f"{short}::a", f"{short}::b", f"{other}::a", f"{other}::b"]
    first, second = given(nodeids, 2)
    assert first[:1] == nodeids[:1] and second == nodeids[1:3]


def test_one_process_takes_all_that_need_a_browser():
    nodeids = []
    for name in ("app", "long", "explain_page", "short"):
        nodeids += [f"tests/test_{name}.py::{letter}" for letter in "abc"]
    first, second = given(nodeids, 2)
    assert first == nodeids[:3] + nodeids[6:9]
    assert second == nodeids[3:6]


def test_files_with_a_browser_are_known():
    names = set()
    for path in Path(conftest.__file__).parent.rglob("test_*.py"):
        text = path.read_text()
        if "browser" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            arguments = [argument.arg for argument in node.args.args]
            if "browser" in arguments:
                names.add(path.stem)
    assert names == set(conftest._IN_A_BROWSER)


@pytest.mark.parametrize("dist", ["load", "worksteal", "no"])
def test_other_ways_to_share_tests_are_left_alone(dist):
    config: Any = SimpleNamespace(getoption={"dist": dist}.get)
    assert conftest.pytest_xdist_make_scheduler(config, log=None) is None
