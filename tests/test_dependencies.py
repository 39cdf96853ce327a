"""Which versions are installed: constraints.txt, the lower bounds, and what `make` does with
them."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.lower_bounds import lower_bounds

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
VERSIONS = dict(line.split("==") for line in CONSTRAINTS)


def stated_requirements() -> list[Requirement]:
    """What pyproject.toml requires, all extras included."""
    project = tomllib.loads(PYPROJECT)["project"]
    lines = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        lines += extra
    requirements = [Requirement(line) for line in lines]
    return [requirement for requirement in requirements if requirement.name != "redetr"]


# ---------------------------------------------------------------------------------- constraints.txt


def test_constraints_are_names_with_exact_versions():
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==\d[\w.]*", line)
    assert sorted(VERSIONS) == [line.split("==")[0] for line in CONSTRAINTS]


@pytest.mark.parametrize("requirement", stated_requirements(), ids=str)
def test_the_tested_version_is_one_that_pyproject_allows(requirement):
    version = VERSIONS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def is_tested_environment() -> bool:
    for requirement in stated_requirements():
        name = canonicalize_name(requirement.name)
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that no test needs
        if installed.partition("+")[0] != VERSIONS[name]:
            return False
    return True


def requirements_of(*names: str) -> list[Requirement]:
    """Each requirement that leads to a package of this environment, from `names` down."""
    pending, seen, requirements = [Requirement(name) for name in names], set(), []
    while pending:
        requirement = pending.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        requirements.append(requirement)
        try:
            lines = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that no test needs
        extras = requirement.extras or {""}
        for line in lines:
            child = Requirement(line)
            marker = child.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                pending.append(child)
    return requirements


@pytest.fixture
def tested_environment() -> None:
    if not is_tested_environment():
        pytest.skip("other versions than those of constraints.txt are installed")


@pytest.mark.usefixtures("tested_environment")
def test_no_version_is_open():
    """constraints.txt fixes it, or a package does that requires another, as torch for CUDA."""
    requirements = requirements_of("redetr[dev]")
    fixed = {"redetr", *VERSIONS}
    for requirement in requirements:
        if any(specifier.operator == "==" for specifier in requirement.specifier):
            fixed.add(canonicalize_name(requirement.name))
    names = {canonicalize_name(requirement.name) for requirement in requirements}
    assert len(names) > 100
    assert names - fixed == set()


@pytest.mark.usefixtures("tested_environment")
def test_no_constraint_is_left_over():
    stated = [
        f"{requirement.name}[{','.join(requirement.extras)}]"
        for requirement in stated_requirements()
    ]
    names = {canonicalize_name(requirement.name) for requirement in requirements_of(*stated)}
    # A torch without CUDA requires none of its libraries.
    cuda = {name for name in VERSIONS if name.startswith(("cuda-", "nvidia-", "triton"))}
    assert set(VERSIONS) - names - cuda == set()


# --------------------------------------------------------------------------------- the lower bounds


def test_lower_bounds_by_hand():
    pyproject = """
        [project]
        name = "redetr"
        dependencies = ["numpy>=1.26", "Pillow >= 10.3, <13"]
        [project.optional-dependencies]
        app = ["gradio[mcp]>=6.31; python_version > '3.8'"]
        dev = ["redetr[app]", "scikit-learn~=1.4.2", "numpy>=1.26", "ruff!=0.9,>=0.8", "mypy==1.13"]
    """
    assert lower_bounds(pyproject) == [
        "gradio==6.31",
        "mypy==1.13",
        "numpy==1.26",
        "pillow==10.3",
        "ruff==0.8",
        "scikit-learn==1.4.2",
    ]


@pytest.mark.parametrize("requirement, message", [
    ('"numpy"', "numpy: has no lower bound"),
    ('"numpy<3"', "numpy<3: has no lower bound"),
    ('"numpy>=1.26", "numpy>=2"', "numpy: has two lower bounds, 1.26 and 2"),
])  # fmt: skip
def test_requirements_without_a_lower_bound_are_refused(requirement, message):
    pyproject = (
        "[project]\nname = 'redetr'\ndependencies = "
        f"[{requirement}]\n[project.optional-dependencies]\n"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        lower_bounds(pyproject)


def test_every_stated_requirement_has_a_lower_bound():
    bounds = dict(line.split("==") for line in lower_bounds(PYPROJECT))
    assert set(bounds) == {
        canonicalize_name(requirement.name) for requirement in stated_requirements()
    }
    for requirement in stated_requirements():
        assert requirement.specifier.contains(bounds[canonicalize_name(requirement.name)])


# ------------------------------------------------------------------------------------- the Makefile


@pytest.fixture
def clone(tmp_path) -> Path:
    """The files that the Makefile reads; nothing is installed."""
    (tmp_path / "tests").mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tests/lower_bounds.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    # Under `make test DEPS=newest`, the environment says so to every make.
    return subprocess.run(
        ["make", "--dry-run", *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )


def steps(folder: Path, *arguments: str) -> list[str]:
    done = make(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


INSTALLATIONS = {
    "tested": (".venv", "--constraint constraints.txt"),
    "newest": (".venv-newest", "--upgrade --upgrade-strategy eager"),
    "oldest": (".venv-oldest", "--constraint .venv-oldest/constraints.txt"),
}


@pytest.mark.parametrize("deps", INSTALLATIONS)
def test_each_choice_of_versions_has_its_environment(deps, clone):
    venv, flags = INSTALLATIONS[deps]
    lines = steps(clone, "test", f"DEPS={deps}")
    assert f"python3 -m venv {venv}" in lines
    assert f"{venv}/bin/python -m pip install --quiet {flags} --editable '.[dev]'" in lines
    assert any(line.startswith(f"{venv}/bin/python -m pip check ") for line in lines)
    assert lines[-1].startswith(f"{venv}/bin/pytest ")
    programs = {word for line in lines for word in line.split() if "/bin/" in word}
    assert {program.partition("/")[0] for program in programs} == {venv}


@pytest.mark.parametrize("deps", INSTALLATIONS)
def test_only_the_tested_linters_judge(deps, clone):
    """The others say that they do not."""
    lines = steps(clone, "test", f"DEPS={deps}")
    remark = f'echo "DEPS={deps}: format, lint and types are checked with the tested versions only"'
    assert (".venv/bin/mypy" in lines) == (deps == "tested")
    assert (remark in lines) == (deps != "tested")


def test_tested_versions_unless_another_choice_is_made(clone):
    assert steps(clone, "test") == steps(clone, "test", "DEPS=tested")
    assert (
        ".venv/bin/python -m pip install --quiet --constraint constraints.txt --editable ."
        in steps(clone, "demo")
    )
    for name in ("DEPS=latest", "DEPS="):
        done = make(clone, "test", name)
        assert done.returncode != 0
        assert f"{name}: choose tested, newest or oldest" in done.stderr


def test_the_lower_bounds_are_written_before_they_are_installed(clone):
    lines = steps(clone, "test", "DEPS=oldest")
    write = (
        ".venv-oldest/bin/python tests/lower_bounds.py pyproject.toml > "
        ".venv-oldest/constraints.txt"
    )
    (install,) = (line for line in lines if " pip install " in line)
    assert lines.index(write) < lines.index(install)


@pytest.mark.parametrize("deps, changed", [
    ("tested", "pyproject.toml"), ("tested", "constraints.txt"),
    ("oldest", "pyproject.toml"), ("oldest", "tests/lower_bounds.py"),
])  # fmt: skip
def test_versions_that_change_are_installed(deps, changed, clone):
    venv = INSTALLATIONS[deps][0]
    arguments = (f"{venv}/installed-dev", f"DEPS={deps}")
    (clone / venv / "bin").mkdir(parents=True)
    for time, name in enumerate(("bin/python", "constraints.txt", "installed", "installed-dev")):
        (clone / venv / name).touch()
        os.utime(clone / venv / name, (2_000_000_000 + time,) * 2)
    assert not any("pip install" in line for line in steps(clone, *arguments))
    os.utime(clone / changed, (2_000_000_100,) * 2)
    assert any("pip install" in line for line in steps(clone, *arguments))


def test_newest_looks_for_newer_versions_every_time(clone):
    (clone / ".venv-newest/bin").mkdir(parents=True)
    for name in ("bin/python", "installed", "installed-dev"):
        (clone / ".venv-newest" / name).touch()
        os.utime(clone / ".venv-newest" / name, (2_000_000_000,) * 2)
    assert any("pip install" in line for line in steps(clone, "test", "DEPS=newest"))


def test_continuous_integration_is_strict_about_skips(tmp_path):
    """`.ci/run` with a `make` that prints what it is asked for."""
    stub = tmp_path / "make"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", ROOT / ".ci/run"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "test TIER=long PYTEST_FLAGS=--strict-skips\n"
    assert steps(ROOT, *done.stdout.split())[-1].endswith(" --strict-skips")


def test_long_tests_are_run_where_they_are_asked_for():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    by_default = shlex.split(settings["ini_options"]["addopts"])[1]
    assert by_default.split(" and ")[0] == "not long"
    without_long = by_default.removeprefix("not long and ")
    assert " -m " not in steps(ROOT, "test")[-1]
    assert f" -m '{without_long}'" in steps(ROOT, "test", "TIER=long")[-1]
    assert steps(ROOT, "slow")[-1].endswith(" -m 'long or slow'")
    done = make(ROOT, "test", "TIER=all")
    assert done.returncode != 0
    assert "TIER=all: choose default or long" in done.stderr


# -------------------------------------------------------------------------------- pytest's settings

INI = "[pytest]\nfilterwarnings = error\n"


def run_pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Without the plugins that are not used here: finding and importing them takes most of the
    time."""
    (folder / "pytest.ini").write_text(INI)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-p", "xdist", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


WARNERS = """
import warnings

def test_deprecated():
    warnings.warn("the old way", DeprecationWarning)

def test_deprecated_soon():
    warnings.warn("the way that will be old", PendingDeprecationWarning)

def test_deprecated_for_users():
    warnings.warn("the way of yesterday", FutureWarning)

def test_another_warning():
    warnings.warn("numbers are lost", RuntimeWarning)
"""


def pytest_arguments(deps: str) -> list[str]:
    """Those of the Makefile."""
    words = steps(ROOT, "test", f"DEPS={deps}")[-1].split()
    return words[1:]


@pytest.fixture(scope="module")
def warned(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """What `WARNERS` come to with these arguments; `newest` and `oldest` have the same."""

    @cache
    def run(*arguments: str) -> subprocess.CompletedProcess:
        folder = tmp_path_factory.mktemp("warners")
        (folder / "test_warners.py").write_text(WARNERS)
        return run_pytest(folder, *arguments)

    return run


@pytest.mark.long
@pytest.mark.parametrize("deps", INSTALLATIONS)
def test_deprecations_fail_nothing_but_with_the_tested_versions(deps, warned):
    """They are listed with their places; any other warning fails."""
    arguments = pytest_arguments(deps)
    processes = ["-n", "auto", "--dist", "loadfile", "--max-worker-restart=0"]
    assert arguments[:1] == ["-q"] and arguments[-len(processes) :] == processes
    done = warned(*arguments[: -len(processes)], "-n", "1")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "RuntimeWarning: numbers are lost" in done.stdout
    if deps == "tested":
        assert "4 failed in" in done.stdout
        return
    assert "1 failed, 3 passed, 3 warnings in" in done.stdout
    summary = done.stdout.partition("warnings summary")[2]
    for line, name in ((5, "DeprecationWarning: the old "
                           "way"), (8, "PendingDeprecationWarning: the way that"),
                       (11, "FutureWarning: the way of")):  # fmt: skip
        assert f"test_warners.py:{line}: {name}" in summary


SKIPPED = """
import pytest

@pytest.mark.parametrize("number", range(2))
def test_browser(number):
    pytest.skip("no browser here")

@pytest.mark.skipif(True, reason="needs a CUDA device")
def test_gpu(): ...

@pytest.mark.xfail(reason="not yet")
def test_expected_failure():
    assert False

def test_passes(): ...
"""
CONFTEST = """
from tests.skips import SkipReport, pytest_addoption

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipReport(config))
"""


@pytest.fixture
def skipping(tmp_path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    (tmp_path / "test_module.py").write_text(
        "import pytest\npytest.importorskip('no_such_package')\n"
    )
    return tmp_path


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_skips_come_last_with_their_reasons(workers, skipping):
    done = run_pytest(skipping, "-q", *workers)
    assert done.returncode == 0, done.stdout
    *_, closing, count, first, second, third = done.stdout.splitlines()
    assert re.match(r"1 passed, 4 skipped, 1 xfailed in ", closing)
    assert count == "4 skipped"
    assert first == "  2: no browser here"
    assert sorted([second, third]) == [
        "  1: could not import 'no_such_package': No module named 'no_such_package'",
        "  1: needs a CUDA device",
    ]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_strict_skips_fail_the_run(workers, skipping):
    done = run_pytest(skipping, "-q", "--strict-skips", *workers)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    lines = done.stdout.splitlines()[-4:]
    assert lines[:2] == ["4 skipped", "  2: no browser here (fails the run: --strict-skips)"]
    assert "  1: needs a CUDA device" in lines


def test_strict_skips_allow_what_a_sound_machine_may_lack(skipping):
    done = run_pytest(skipping, "-q", "--strict-skips", "test_skipped.py", "-k", "not browser")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-2:] == ["1 skipped", "  1: needs a CUDA device"]


def test_a_run_without_skips_says_so(skipping):
    done = run_pytest(skipping, "-q", "--strict-skips", "test_skipped.py", "-k", "passes")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "0 skipped"


def test_failures_stay_failures(skipping):
    (skipping / "test_fails.py").write_text("def test(): assert False\n")
    done = run_pytest(skipping, "-q", "test_fails.py")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert done.stdout.splitlines()[-1] == "0 skipped"


# ---------------------------------------------------------------------------------- system packages

APT_GET = """#!/bin/sh
echo "$@" >> "$FOLDER/calls"
case "$*" in
    *" update"*) [ -z "$OFFLINE" ] || { echo "some advice" >&2; echo "E: no network" >&2; exit 100; } ;;
    *" install "*) touch "$FOLDER/chromium" "$FOLDER/driver"; chmod +x "$FOLDER/chromium" "$FOLDER/driver" ;;
esac
"""


@pytest.fixture
def system(tmp_path, monkeypatch, capsys):
    """Runs the script on a machine with `sh`, without a browser, and with an apt-get if there is to
    be one."""
    from tests import system_packages

    for program in ("sh", "touch", "chmod"):
        (tmp_path / program).symlink_to(shutil.which(program))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("FOLDER", str(tmp_path))
    monkeypatch.setattr(
        system_packages, "PACKAGES", {"chromium": "chromium", "driver": "chromium-driver"}
    )
    monkeypatch.setattr(system_packages, "LIBRARIES", {"c": "libc6"})  # which is there

    monkeypatch.setattr(system_packages, "SLOW_PACKAGES", {"slurmd": "slurm-package"})

    def run(user: int = 0, apt_get: bool = True, tier: str = "") -> tuple[str, list[str]]:
        """What the script prints, and the calls of apt-get."""
        monkeypatch.setattr(os, "geteuid", lambda: user)
        if apt_get:
            (tmp_path / "apt-get").write_text(APT_GET)
            (tmp_path / "apt-get").chmod(0o755)
        system_packages.main(tier)
        calls = tmp_path / "calls"
        return capsys.readouterr().out, calls.read_text().splitlines() if calls.exists() else []

    return run


REMEDY = "to run them, as root: apt-get install --no-install-recommends chromium chromium-driver\n"


def test_slow_tests_need_further_packages(system):
    printed, calls = system(tier="slow")
    assert printed.startswith("Installing chromium chromium-driver slurm-package for the tests\n")
    assert calls[-1].endswith(" chromium chromium-driver slurm-package")


def test_root_installs_what_is_missing(system):
    printed, calls = system()
    assert printed == "Installing chromium chromium-driver for the tests\n"
    update, install = calls
    assert update.endswith(" update")
    assert install.endswith(" install --yes --no-install-recommends chromium chromium-driver")
    assert system() == ("", calls)  # nothing is missing now


def test_libraries_are_found_by_the_names_that_linkers_know(system, monkeypatch):
    from tests import system_packages

    monkeypatch.setattr(system_packages, "LIBRARIES", {"c": "libc6", "no-such": "libnone1"})
    missing = system_packages.missing_packages(system_packages.PACKAGES)
    assert missing + system_packages.missing_libraries() == [
        "chromium",
        "chromium-driver",
        "libnone1",
    ]


@pytest.mark.parametrize("options, why", [
    ({"user": 1000}, "apt-get needs root"),
    ({"apt_get": False}, "there is no apt-get here"),
])  # fmt: skip
def test_others_are_told_what_is_missing(options, why, system):
    printed, calls = system(**options)
    assert printed == f"Tests that need chromium, chromium-driver will be skipped ({why}); {REMEDY}"
    assert calls == []


def test_a_failure_to_install_is_told(system, monkeypatch):
    monkeypatch.setenv("OFFLINE", "1")
    printed, _ = system()
    told = printed.splitlines(keepends=True)[1]
    reason = "apt-get update failed: E: no network"
    assert told == f"Tests that need chromium, chromium-driver will be skipped ({reason}); {REMEDY}"
