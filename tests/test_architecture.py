"""The shape of the package: a core that can be read on its own, and rooms for the tools around
it."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import redetr

ROOT = Path(redetr.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__main__.py")

# What is not in a room below is the core: the modules that lie flat in the package, `models`,
# `data` and `weights`.
CORE = {"models", "data", "weights"}
# Each room of tools, with the rooms that it may use beside the core.
TOOLS = {
    "pages": set(),
    "detector": {"pages"},
    "doctor": {"pages"},
    "report": {"pages", "detector"},
    "explain": {"pages", "detector"},
    "export": {"pages", "detector", "report"},
    "app": {"pages", "detector", "explain"},
}
ENTRANCE = {"commands", "cli", "__init__"}  # they use everything, and nothing uses them
# A run checks its data before it starts, which is the doctor's work.
EXCEPTIONS = {("redetr.training", "redetr.doctor.check")}

# Functions of more than 50 lines, and files of more than 500, each with its reason.
LONG_FUNCTIONS: dict[str, str] = {
    "redetr.models.detr.detr": "its options, one a line",
    "redetr.models.rtdetr.rtdetr": "its options, one a line",
    "redetr.models.dfine.dfine": "its options, one a line",
}
LONG_FILES: dict[str, str] = {}


def name_of(path: Path) -> str:
    """`redetr/data/open.py` is `redetr.data.open`, a package is its `__init__.py`."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def room_of(module: str) -> str:
    """The room that a module is in: `core`, `entrance`, or the name of a tool."""
    first = module.split(".")[1] if "." in module else "__init__"
    if first in TOOLS:
        return first
    return "entrance" if first in ENTRANCE else "core"


def imports_of(path: Path, at_start_only: bool = False) -> set[str]:
    """The modules of the package that a module imports: anywhere, or only those that its own import
    needs."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    if at_start_only:
        nodes = [node for statement in tree.body for node in needed_at_once(statement)]
    modules = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            modules |= {node.module or ""}
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules & NAMES - {name_of(path)}


def needed_at_once(statement: ast.stmt) -> list[ast.AST]:
    """A statement and what is in it, but for types that only a type checker imports, and bodies of
    functions."""
    if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
        return []
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    inner = [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
    return [statement, *(node for child in inner for node in needed_at_once(child))]


def test_every_room_is_known():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == CORE | TOOLS.keys() | {"commands"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_are_used_in_one_direction(path):
    module = name_of(path)
    room = room_of(module)
    if room == "entrance":
        return
    allowed = {"core", room} | TOOLS.get(room, set())
    for used in imports_of(path) - {"redetr"}:
        if (module, used) not in EXCEPTIONS:
            assert room_of(used) in allowed, f"{module} is in {room} and imports {used}"


def test_no_import_goes_in_a_circle():
    graph = {name_of(path): imports_of(path, at_start_only=True) - {"redetr"} for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_data_set_is_defined_without_its_formats():
    for name in ("dataset", "annotations", "transforms", "views", "sampler", "loader"):
        formats = {
            used
            for used in imports_of(ROOT / "data" / f"{name}.py")
            if used.startswith("redetr.data.formats")
        }
        assert not formats, name


def test_what_is_long_has_a_reason():
    long_files = {name_of(path) for path in MODULES if path.read_text().count("\n") > 500}
    assert long_files == LONG_FILES.keys()
    functions = {
        f"{name_of(path)}.{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= 50
    }
    assert functions == LONG_FUNCTIONS.keys()


def calls(function: ast.AST) -> set[str]:
    """Names of the methods that are called inside."""
    return {
        n.func.attr
        for n in ast.walk(function)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
    }


def test_a_step_waits_for_the_device_in_the_matcher_only():
    """`.item()`, `.cpu()`, `.tolist()`, `.nonzero()` wait, and `.prod()` does when its gradient is
    taken; only the matcher's one copy may."""
    waiting = {"item", "cpu", "tolist", "numpy", "nonzero", "prod"}
    step = (
        "boxes.py",
        "edges.py",
        "losses.py",
        "muon.py",
        "models/detr.py",
        "models/deformable.py",
        "models/dfine.py",
        "models/fast.py",
        "models/hgnetv2.py",
        "models/hybrid.py",
        "models/linear.py",
        "models/resnet_vd.py",
        "models/rtdetr.py",
        "models/transformer.py",
        "models/two_stage.py",
    )
    for name in step:
        assert not calls(ast.parse((ROOT / name).read_text())) & waiting, name
    functions = {
        node.name: node
        for node in ast.walk(ast.parse((ROOT / "step.py").read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert not calls(functions["train_step"]) & waiting
    matcher = ast.walk(ast.parse((ROOT / "matcher.py").read_text()))
    assert sorted(
        n.attr for n in matcher if isinstance(n, ast.Attribute) and n.attr in waiting
    ) == ["cpu", "numpy"]
