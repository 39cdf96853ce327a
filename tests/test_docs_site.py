"""The documentation as a site: it builds without warnings, and knows every fault and message."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import redetr
from tests.test_architecture import TOOLS

ROOT = Path(__file__).parent.parent
TROUBLES = (ROOT / "docs/troubleshooting.md").read_text()
SOURCE = "\n".join(path.read_text() for path in Path(redetr.__file__).parent.rglob("*.py"))


def test_the_site_builds_without_warnings_and_holds_every_page(tmp_path):
    build = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--site-dir",
        str(tmp_path),
    ]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's word on another program
    run = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=quiet
    )
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr + run.stdout
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages <= {path.stem for path in tmp_path.glob("*.html")}
    for page in (
        path for path in tmp_path.glob("*.html") if path.stem != "404"
    ):  # that one is for a server
        for link in re.findall(
            r'(?:href|src)="(?!https?:|data:|mailto:)([^"#?]+)', page.read_text()
        ):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
        assert not re.findall(
            r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)', page.read_text()
        ), page.name


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("nav:")[1]
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(
        re.findall(r"[\w-]+\.md", navigation)
    )


def test_the_page_on_architecture_names_every_room_and_every_module():
    """Rooms and modules of the core with their path, those of tools in the row of their room."""
    page = (ROOT / "docs/architecture.md").read_text()
    package = Path(redetr.__file__).parent
    rooms = {path.parent.relative_to(package) for path in package.rglob("*.py")} - {Path()}
    for room in rooms:
        assert f"`{room}/`" in page, room
    for path in package.rglob("[!_]*.py"):
        module = path.relative_to(package)
        room = module.parts[0]
        if room == "commands":
            continue  # one for each command
        if room in TOOLS:
            (row,) = re.findall(rf"^\| `{room}/` \|.*$", page, re.MULTILINE)
            assert f"`{module.name}`" in row, module
        elif room == "data" and len(module.parts) == 3:
            assert f"`{module.name}`" in page, module
        else:
            assert f"`{module}`" in page, module
    for name in re.findall(r"`([\w/]+\.py)`", page):
        known = [*package.rglob(name), *ROOT.glob(name)]
        assert known, f"{name} is gone"
    for files, _, names in re.findall(r"^\| (`\w[\w/]*\.py`.*?) \| (.*?) \| (.*) \|$", page, re.M):
        source = "".join(
            (package / file).read_text() for file in re.findall(r"`([\w/]+\.py)`", files)
        )
        for name in re.findall(r"`(?:\w+\.)?(\w+)`", names):
            assert re.search(rf"(?:def|class) {name}\b", source), f"{files} has no {name}"


def test_every_fault_of_the_check_is_explained():
    codes = set(re.findall(r'"(?:error|warning|note)", "([a-z-]+)"|tell\(\s*"([a-z-]+)"', SOURCE))
    found = {code for pair in codes for code in pair if code and code != "warning"}
    explained = set(
        re.findall(r"`([a-z]+(?:-[a-z]+)*)`", TROUBLES.split("## What `redetr check` finds")[1])
    )
    assert found <= explained, found - explained
    assert all(f'"{code}"' in SOURCE for code in explained), [
        c for c in explained if f'"{c}"' not in SOURCE
    ]


@pytest.mark.parametrize(
    "message", re.findall(r"^\| `([^`]+)`", TROUBLES.split("## What `redetr check`")[0], re.M)
)
def test_every_message_explained_is_one_that_is_said(message):
    assert message in re.sub(
        r'"\s*\n\s*f?"', "", SOURCE
    )  # as one string, however it is broken into lines


def test_the_plan_for_many_gpus_is_what_the_cost_model_gives(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling

    page = (ROOT / "docs/scaling.md").read_text()
    for row in scaling.planned():
        shown = f"{row['gpus']} | {row['all_reduce_ms']:.1f} | {100 * row['efficiency']:.0f}% |"
        assert f"| `{row['model']}` | {row['network']} | {shown}\n" in page
