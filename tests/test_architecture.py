"""The shape of the package: imports go one way, modules stay short, the core neither prints nor synchronises."""

import ast
from pathlib import Path

import pytest

import redetr

ROOT = Path(redetr.__file__).parent
# Each layer may import from the same layer and the ones before it.
LAYERS = [
    ("errors", "files", "download", "page", "memory", "boxes", "structures"),
    ("models", "matcher", "losses", "visualize", "postprocess", "metrics", "data"),
    ("tiles", "video", "sources", "predictions"),
    ("muon", "optim", "ema", "inference", "checkpoint", "distributed", "config", "monitor", "weights"),
    (
        "evaluate",
        "recipes",
        "check",
        "check_boxes",
        "check_images",
        "check_sheet",
        "report",
    ),
    ("state", "train", "predict"),
    (
        "verify",
        "export",
        "export_files",
        "export_graph",
        "explain",
        "explain_loss",
        "explain_page",
        "explain_loss_page",
    ),
    ("demo", "app", "app_api", "app_guard"),
    ("commands",),
    ("cli",),
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.name not in ("__main__.py",) and p != ROOT / "__init__.py")


def imported(path: Path) -> set[str]:
    """The parts of the package that a module imports, by their first name."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            names.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("redetr"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LEVEL, f"add {own} to the layers of this test"
    late = [name for name in imported(path) if LEVEL[name] > LEVEL[own]]
    assert not late, f"{path.name} imports from a later layer: {late}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_module_is_longer_than_400_lines(path):
    assert path.read_text().count("\n") <= 400


def lines_that_are_not_blank(paths) -> int:
    return sum(line.strip() != "" for path in paths for line in path.read_text().splitlines())


def test_the_package_stays_small():
    assert lines_that_are_not_blank(ROOT.rglob("*.py")) <= 11_500


def test_the_core_can_be_read_in_an_afternoon():
    """From a batch to the next set of weights, and to the numbers of an evaluation."""
    core = ("structures", "boxes", "matcher", "losses", "muon", "optim", "ema", "config", "recipes", "state",
            "weights", "checkpoint", "distributed", "train", "monitor", "evaluate", "metrics", "postprocess",
            "inference")  # fmt: skip
    assert lines_that_are_not_blank([*(ROOT / f"{name}.py" for name in core), *ROOT.glob("models/*.py")]) <= 3_500


def calls(function: ast.AST) -> set[str]:
    """Names of the methods that are called inside."""
    return {n.func.attr for n in ast.walk(function) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}


def test_a_step_waits_for_the_device_in_the_matcher_only():
    """`.item()`, `.cpu()`, `.tolist()`, `.nonzero()` wait; only the matcher's one copy may."""
    waiting = {"item", "cpu", "tolist", "numpy", "nonzero"}
    step = [
        ROOT / "losses.py",
        ROOT / "muon.py",
        *(ROOT / "models" / name for name in ("detr.py", "fast.py", "transformer.py")),
    ]
    for path in step:
        assert not calls(ast.parse(path.read_text())) & waiting, path.name
    functions = {
        n.name: n for n in ast.walk(ast.parse((ROOT / "train.py").read_text())) if isinstance(n, ast.FunctionDef)
    }
    assert not calls(functions["train_step"]) & waiting
    matcher = ast.walk(ast.parse((ROOT / "matcher.py").read_text()))
    assert sorted(n.attr for n in matcher if isinstance(n, ast.Attribute) and n.attr in waiting) == ["cpu", "numpy"]


def test_public_names():
    assert all(hasattr(redetr, name) for name in redetr.__all__)
