"""For all tests: the order of the parts, their times, and settings of the person who runs them kept out."""

from __future__ import annotations

import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
LAST_LINES = 30  # of what a failed end-to-end test says at once
# what is quick comes first
PARTS = ("style", "unit", "plan", "operations", "nvml", "cli", "hosts", "e2e")


def _place(item: pytest.Item) -> int:
    part = item.path.relative_to(TESTS).parts[0]
    return PARTS.index(part) if part in PARTS else len(PARTS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the parts in order, and say why a test cannot run on this machine."""
    items.sort(key=_place)
    no_root = pytest.mark.skip(reason="needs root: makes test hosts, namespaces and mounts")
    no_gpu = pytest.mark.skip(reason="needs an NVIDIA GPU with its driver: no /dev/nvidiactl here")
    for item in items:
        if "e2e" in item.keywords and os.geteuid() != 0:
            item.add_marker(no_root)
        if "gpu" in item.keywords and not Path("/dev/nvidiactl").exists():
            item.add_marker(no_gpu)


class AtOnce:
    """An end-to-end test that fails says so when it fails: a run that is cut off has told it too."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")  # none in a lane
        if report.failed and terminal and "/e2e/" in report.nodeid:
            terminal.ensure_newline()
            terminal.write_line(f"FAILED {report.when} {report.nodeid} after {report.duration:.0f} s")
            for line in report.longreprtext.splitlines()[-LAST_LINES:]:
                terminal.write_line(f"    {line}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(AtOnce(config))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The time of each part: one line a folder of tests, and one for each end-to-end test."""
    seconds: dict[str, float] = defaultdict(float)
    tests: Counter[str] = Counter()
    long: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = str(Path(report.location[0]).parent)
                seconds[folder] += report.duration
                tests[folder] += report.when == "call"
                if folder.endswith("e2e"):
                    long[report.nodeid] += report.duration
    if seconds:
        terminalreporter.section("time of each part")
        for name, spent in sorted(seconds.items()):
            terminalreporter.write_line(f"{spent:8.1f} s  {tests[name]:5} tests  {name}")
        for name, spent in long.items():
            terminalreporter.write_line(f"{spent:8.1f} s              {name}")


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    """Steps of the runner set the process's umask, as a process of their own may; the next test has the usual one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(autouse=True, scope="session")
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Configuration, state and data of the person who runs the tests are neither read nor written."""
    # a shell that starts the tests in its background lets them, and all their children, ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
        yield
