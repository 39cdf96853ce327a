"""Reports skipped tests in the last lines of a run: how many, and why. With `--strict-skips` they
fail the run, unless their reason is one that a sound machine can have.
"""

import re
from collections import Counter

import pytest

# Beginnings of the reasons that a machine with every package installed may have.
ALLOWED = (
    "needs a CUDA device",
    "no hosts can be made here",  # a container may be refused network namespaces
    "no mounts can be made here",  # nor mounts
    "no control groups can be made here",
    "needs Linux",
    "needs the network",  # of published weights
)


def pytest_addoption(parser: pytest.Parser) -> None:
    allowed = ", ".join(ALLOWED)
    parser.addoption(
        "--strict-skips", action="store_true", help=f"fail if a test is skipped, except: {allowed}"
    )


class SkipReport:
    """A plugin of pytest. Under xdist the workers' reports reach the controller, where alone this
    is registered."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.strict = config.getoption("--strict-skips")
        self.reasons: Counter[str] = Counter()
        self.finished = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # An expected failure is reported as skipped, too.
        if report.skipped and not hasattr(report, "wasxfail"):
            self._count(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module can be skipped as a whole."""
        if report.skipped:
            self._count(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.finished = not self.config.option.collectonly
        if self._refused() and session.exitstatus in (
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        ):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self) -> None:
        """Comes after pytest's own last line."""
        if not self.finished:
            return
        write = self.config.get_terminal_writer().line
        write(f"{self.reasons.total()} skipped")
        refused = self._refused()
        for reason, count in self.reasons.most_common():
            verdict = " (fails the run: --strict-skips)" if reason in refused else ""
            write(f"  {count}: {reason}{verdict}")

    def _count(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        _, _, reason = report.longrepr  # file, line, reason
        reason = reason.removeprefix("Skipped: ")
        self.reasons[re.sub(r"\s+", " ", reason)] += 1

    def _refused(self) -> list[str]:
        if not self.strict:
            return []
        return [reason for reason in self.reasons if not reason.startswith(ALLOWED)]
