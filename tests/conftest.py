"""Settings of all tests: their order, their time limits, the evidence of failures and the closing words of a run."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler.loadscope import LoadScopeScheduling

from tests.support import evidence
from tests.support.outcome import FAILED
from tests.support.patience import patience

# No deadline for an example: a busy machine is not a failure of the code.
settings.register_profile("hawse", deadline=None)
settings.load_profile("hawse")

#: Folders in the order in which they are given to workers, the longest first, and the limit of a test in seconds of
#: tests.support.patience. A lab's first test boots it.
_FOLDERS = {"lab": 180, "engines": 120, "vm": 75, "conformance": 75, "contract": 30, "unit": 30}
#: Property of a test's report that the end of the run counts: see `fault_survived`.
_FAULT = "fault survived"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by folder, and give each test the limit of its folder."""
    order = list(_FOLDERS)
    items.sort(key=lambda item: order.index(_folder(item)))
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(patience(_FOLDERS[_folder(item)])))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no annotations
    """Give all tests of the lab to one worker, those of engines to another, and the rest by file.

    The lab takes most of a minute to boot. Engines have fixed places on a host, the firewall's rules among them.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.split("/")[1]
        return folder if folder in ("lab", "engines") else file


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Save evidence as soon as a test with a VM has failed, while its processes are still there."""
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    if report.failed and {"vm", "lab", "engine"} & {marker.name for marker in item.iter_markers()}:
        report.sections.append(("evidence", evidence.save(_evidence_name(item))))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Name a failed test as soon as it has failed: the whole run takes minutes."""
    if report.failed and os.environ.get("PYTEST_XDIST_WORKER") is None:
        reason = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        print(f"\nFAILED {report.nodeid}\n{reason[0] if reason else ''}", file=sys.__stdout__, flush=True)


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item) -> Generator[None, object, object]:
    """Save evidence when a test's time is over, before the failure is raised: that ends processes it waits for."""
    result = yield
    fail = signal.getsignal(signal.SIGALRM)

    def save_and_fail(number: int, frame: FrameType | None) -> None:
        evidence.save(_evidence_name(item))
        assert callable(fail)
        fail(number, frame)

    signal.signal(signal.SIGALRM, save_and_fail)
    return result


@pytest.fixture
def fault_survived(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with the name of a fault; the number of all faults survived is printed at the end of the run."""
    return lambda name: request.node.user_properties.append((_FAULT, name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the count of faults survived, and last of all what was not run and how to run it."""
    passed = terminalreporter.getreports("passed")
    properties = [name for report in passed if report.when == "call" for name, _ in report.user_properties]
    if faults := properties.count(_FAULT):
        terminalreporter.write_line(f"faults injected and survived: {faults}")
    skipped = {report.longrepr[2] for report in terminalreporter.getreports("skipped") if report.longrepr}
    for reason in sorted(skipped):
        terminalreporter.write_line(f"not run: {reason}")


def _evidence_name(item: pytest.Item) -> str:
    return item.nodeid.removeprefix("tests/")


def _folder(item: pytest.Item) -> str:
    folder = os.path.relpath(item.path, os.path.dirname(__file__)).partition(os.sep)[0]
    return folder if folder in _FOLDERS else "unit"
