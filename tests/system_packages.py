"""Installs the programs and libraries that some tests need, where that is possible: as root, with apt-get.

Elsewhere it says in one line what is missing. The tests run all the same, without those that need
such a program.
"""

import ctypes.util
import os
import shutil
import subprocess
import sys

# Programs that the tests look for, and the packages of Debian and its descendants that hold them.
PACKAGES = {
    "chromium": "chromium",
    "chromedriver": "chromium-driver",  # which must be as new as the browser
    "fish": "fish",
    "zsh": "zsh",
    "ip": "iproute2",
}
# Those of slow tests, which `make slow` installs.
SLOW_PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "munged": "munge",
}
# The same for libraries, by the names that linkers know: `trackers` brings an OpenCV with windows.
LIBRARIES = {"GL": "libgl1"}
LIMIT_S = 600
APT_GET = ("apt-get", "-q", "-o", "Acquire::Retries=2", "-o", "DPkg::Lock::Timeout=120")


def missing_packages(programs: dict[str, str]) -> list[str]:
    """The packages of those programs that are not here."""
    return [package for program, package in programs.items() if not shutil.which(program)]


def missing_libraries() -> list[str]:
    """The packages of those libraries that are not here."""
    packages = []
    for library, package in LIBRARIES.items():
        if not ctypes.util.find_library(library):
            packages.append(package)
    return packages


def install(packages: list[str]) -> str:
    """Installs Debian packages and returns why that failed, in one line, or an empty string."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        try:
            done = subprocess.run(
                [*APT_GET, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                timeout=LIMIT_S,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {command[0]} took more than {LIMIT_S} s"
        if done.returncode:
            complaint = done.stderr.strip() or "no reason given"
            return f"apt-get {command[0]} failed: {complaint.splitlines()[-1]}"
    return ""


def main(tier: str = "") -> None:
    """`tier` is "slow" for the packages of slow tests, too."""
    wanted = PACKAGES
    if tier == "slow":
        wanted = PACKAGES | SLOW_PACKAGES
    packages = missing_packages(wanted) + missing_libraries()
    if not packages:
        return
    reason = "apt-get needs root"
    if not shutil.which("apt-get"):
        reason = "there is no apt-get here"
    elif os.geteuid() == 0:
        print(f"Installing {' '.join(packages)} for the tests", flush=True)
        reason = install(packages)
        packages = missing_packages(wanted) + missing_libraries()
    if packages:
        command = f"apt-get install --no-install-recommends {' '.join(packages)}"
        why = f" ({reason})" if reason else ""
        print(
            f"Tests that need {', '.join(packages)} will be skipped{why}; to run them, as root: "
            f"{command}",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
