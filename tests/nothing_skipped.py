"""A pytest plugin: where CI is true a skipped test is a failure, and each is named."""

from __future__ import annotations

import os

import pytest

STRICT = os.environ.get("CI", "").lower() not in ("", "0", "false")


class NothingSkipped:
    """Collects what was skipped, and turns the run into a failure at its end."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            reason = report.longrepr
            self.skipped[report.nodeid] = reason[2] if isinstance(reason, tuple) else str(reason)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, which is a failure here", red=True)
            for node, reason in self.skipped.items():
                terminalreporter.line(f"{node}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    if STRICT:
        config.pluginmanager.register(NothingSkipped(), "nothing-skipped")
