"""The documentation as a site: it builds without warnings, links work, and pages know every fault,
every message and every module."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import redetr
from tests.test_architecture import TOOLS

ROOT = Path(__file__).parent.parent
PACKAGE = Path(redetr.__file__).parent
TROUBLES = (ROOT / "docs/troubleshooting.md").read_text()
MESSAGES, FAULTS = TROUBLES.split("## What `redetr check` finds")
PASSED_OVER = re.split("### Skipped files|### Rotated", (ROOT / "docs/your-data.md").read_text())[1]
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()
SOURCE = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
# A string that is broken into lines is one string again.
SOURCE_WITH_WHOLE_STRINGS = re.sub(r'"\s*\n\s*f?"', "", SOURCE)


def test_the_site_builds_without_warnings_and_holds_every_page(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # the theme's word on another program
    run = subprocess.run(
        [*build, "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=quiet,
    )
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr + run.stdout

    sources = {path.stem for path in (ROOT / "docs").glob("*.md")}
    pages = {path.stem: path for path in tmp_path.glob("*.html")}
    assert sources <= pages.keys()
    del pages["404"]  # is for a server, so its links begin at the root
    for page in pages.values():
        text = page.read_text()
        for link in re.findall(r'(?:href|src)="(?!https?:|data:|mailto:)([^"#?]+)', text):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
        fetched = re.findall(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)', text)
        assert not fetched, page.name


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("nav:")[1]
    linked = re.findall(r"[\w-]+\.md", navigation)
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(linked) == sorted(pages)


def test_the_page_on_architecture_names_every_room():
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    rooms = folders - {Path()}
    for room in rooms:
        assert f"`{room}/`" in ARCHITECTURE, room


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("[!_]*.py")), ids=lambda path: path.stem)
def test_the_page_on_architecture_names_every_module(path):
    """A module of the core with its path, one of a tool in the row of the tool."""
    module = path.relative_to(PACKAGE)
    room = module.parts[0]
    if room in TOOLS:
        (row,) = re.findall(rf"^\| `{room}/` \|.*$", ARCHITECTURE, re.MULTILINE)
        assert f"`{module.name}`" in row
    elif module.is_relative_to("data/formats"):
        assert f"`{module.name}`" in ARCHITECTURE
    elif room != "commands":  # one for each command
        assert f"`{module}`" in ARCHITECTURE


def test_the_page_on_architecture_names_nothing_that_is_gone():
    for name in re.findall(r"`([\w/]+\.py)`", ARCHITECTURE):
        in_package = list(PACKAGE.rglob(name))
        outside = list(ROOT.glob(name))
        assert in_package or outside, name

    rows = re.findall(r"^\| (`\w[\w/]*\.py`.*?) \| .*? \| (.*) \|$", ARCHITECTURE, re.MULTILINE)
    assert rows
    for files, names in rows:
        paths = re.findall(r"`([\w/]+\.py)`", files)
        source = "".join((PACKAGE / path).read_text() for path in paths)
        last_parts = re.findall(r"`(?:\w+\.)?(\w+)`", names)
        for name in last_parts:
            assert re.search(rf"(?:def|class) {name}\b|^{name} = ", source, re.M), (
                f"{files} has no {name}"
            )


def test_every_fault_of_the_check_is_explained():
    after_severity = re.findall(r'"(?:error|warning|note)",\s*"([a-z-]+)"', SOURCE)
    of_a_reader = re.findall(r'\b(?:report|fault)\(\s*"([a-z-]+)"', SOURCE)
    assert "box-invalid" in of_a_reader
    of_a_scene = re.findall(r'\bcode="([a-z-]+)"', SOURCE)
    assert "xml-encoding" in of_a_scene
    codes = {*after_severity, *of_a_reader, *of_a_scene} - {"warning"}
    assert "class-rare" in codes
    explained = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", FAULTS + PASSED_OVER))
    assert codes <= explained, codes - explained
    for code in explained:
        assert f'"{code}"' in SOURCE, f"{code} is gone"


@pytest.mark.parametrize("message", re.findall(r"^\| `([^`]+)`", MESSAGES, re.MULTILINE))
def test_every_message_explained_is_one_that_is_said(message):
    assert message in SOURCE_WITH_WHOLE_STRINGS


def test_the_plan_for_many_gpus_is_what_the_cost_model_gives(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling

    page = (ROOT / "docs/scaling.md").read_text()
    for row in scaling.planned():
        percent = 100 * row["efficiency"]
        setting = f"`{row['model']}` | {row['network']} | {row['gpus']}"
        assert f"| {setting} | {row['all_reduce_ms']:.1f} | {percent:.0f}% |\n" in page


def test_a_damaged_inventory_is_found_among_the_messages():
    assert "`whether the data has changed`" in MESSAGES
