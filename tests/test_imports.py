"""What is imported when: help and usage errors need no PyTorch, and public names are there in any
order of imports."""

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from forked import forget_redetr, in_fork

import redetr
from redetr.cli import COMMANDS

HEAVY = {
    "torch",
    "torchvision",
    "scipy",
    "hotcoco",
    "matplotlib",
    "numpy",
    "PIL",
    "safetensors",
    "sklearn",
    "yaml",
}
SUBMODULES = {path.stem for path in Path(redetr.__file__).parent.iterdir()}

WITH_A_RECIPE = ("train", "verify")
INCOMPLETE = (
    "evaluate",
    "predict",
    "explain",
    "app",
    "check",
    "convert",
    "export",
    "push",
    "completion",
)
INVOCATIONS = [
    ("", 2),
    ("--help", 0),
    ("--version", 0),
    *((f"{command} --help", 0) for command in COMMANDS),
    ("train", 2),
    ("train redetr_n --help", 0),
    ("train detr_r50 --help", 0),
    ("verify redetr_n --help", 0),
    *((f"completion {shell}", 0) for shell in ("bash", "zsh", "fish")),
    ("nonsense", 2),
    ("train redetr_n --nonsense", 2),
    ("train redetr_n --steps many", 2),
    ("train nonsense", 1),
    *((f"{command} --nonsense", 2) for command in COMMANDS if command not in WITH_A_RECIPE),
    ("verify redetr_n --nonsense", 2),
    *((command, 2) for command in INCOMPLETE),
]


def python(*arguments: str) -> tuple[int, str, set[str]]:
    """Exit code, standard output, and the packages that a new Python process tried to import."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    modules = [line.rpartition("|")[2].strip() for line in lines]
    return done.returncode, done.stdout, {module.partition(".")[0] for module in modules}


# Reads command lines, one a line; writes the exit code of each, and what is imported by then.
ONE_PROCESS = """
import contextlib, io, json, sys
from redetr.cli import main
for line in sys.stdin.read().splitlines():
    code = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            main(line.split())
        except SystemExit as ended:
            code = ended.code or 0
    packages = {module.partition(".")[0] for module in sys.modules}
    print(json.dumps([code, sorted(packages)]))
"""


@pytest.fixture(scope="module")
def invoked() -> list[tuple[int, set[str]]]:
    """Exit code of each of `INVOCATIONS`, run in one new process, and the packages imported by then."""
    lines = "\n".join(arguments for arguments, _ in INVOCATIONS) + "\n"
    command = [sys.executable, "-c", ONE_PROCESS]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return [(code, set(packages)) for code, packages in results]


@pytest.mark.parametrize("number", range(len(INVOCATIONS)), ids=[words for words, _ in INVOCATIONS])
def test_commands_that_compute_nothing_import_nothing_heavy(number, invoked):
    """What an earlier one imported counts as well: the first that fails is to blame."""
    _, exit_code = INVOCATIONS[number]
    code, packages = invoked[number]
    assert code == exit_code
    assert "redetr" in packages
    assert not packages & HEAVY


def test_version():
    code, output, _ = python("-m", "redetr", "--version")
    assert (code, output) == (0, f"redetr {redetr.__version__}\n")


def test_settings_and_recipes_need_no_pytorch():
    code, _, packages = python(
        "-c", "import redetr; redetr.TrainConfig(), redetr.get_recipe('redetr_n'), dir(redetr)"
    )
    assert code == 0
    assert not packages & HEAVY


# In a new process, which imports PyTorch on the way.
NAMES_THEN_MODULES = """
from importlib import import_module
import sys
import redetr
assert "torch" not in sys.modules
def public():
    return {name: getattr(redetr, name) for name in redetr.__all__}
before = public()
assert "torch" in sys.modules
redetr.data.open_dataset, redetr.boxes.box_iou
for name, value in before.items():
    import_module(getattr(value, "__module__", "redetr"))
for command in ("train", "evaluate", "verify"):
    import_module(f"redetr.commands.{command}").parse
assert all(public()[name] is value for name, value in before.items())
"""


@pytest.mark.long
def test_a_public_name_is_imported_when_it_is_used():
    command = [sys.executable, "-c", NAMES_THEN_MODULES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def modules_then_names() -> None:
    """For a process of its own."""
    forget_redetr()
    modules = ("verification", "training", "evaluation", "detector.detector")
    verification, training, evaluation, detector = (
        import_module(f"redetr.{module}") for module in modules
    )
    public = import_module("redetr")
    assert public.train is training.train
    assert public.verify is verification.verify
    assert public.evaluate is evaluation.evaluate
    assert public.load is detector.load


def test_public_names_are_the_same_after_their_modules():
    in_fork(modules_then_names)


def test_no_public_name_is_a_module_as_well():
    assert not SUBMODULES & set(redetr.__all__)
    assert redetr.models.detr.DETR.__module__ == "redetr.models.detr"


def test_public_names_are_listed_alike_in_all_lists():
    tree = ast.parse(Path(redetr.__file__).read_text())
    [for_type_checkers] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    listed = {alias.name: node.module for node in for_type_checkers.body for alias in node.names}
    assert sorted(listed) == sorted(redetr.__all__)
    assert set(dir(redetr)) == {*redetr.__all__, "__version__"}
    for name, module in listed.items():
        assert getattr(redetr, name) is getattr(import_module(module), name)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'redetr' has no attribute 'nonsense'"):
        _ = redetr.nonsense
    assert not hasattr(redetr, "__main__")  # importing it would run the command line
