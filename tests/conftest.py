"""One thread for every test: two-thread kernels stall beside busy neighbours, and bits must not depend on them."""

import pytest
import torch

collect_ignore = []
try:
    import tests.pretend_device  # noqa: F401, torch knows its device in backward passes only if there was none before
except ImportError:  # torch < 2.10 has no backends in Python
    collect_ignore = ["pretend_device.py", "pretended_ranks.py", "device_helpers.py", "test_benchmarks.py"]
    collect_ignore += ["test_device.py", "test_device_counts.py", "test_device_uses.py"]


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter, config):
    """The counts of `make test-faults`: what each long test tried, as a table to publish."""
    if config.option.markexpr != "faults":
        return
    reports = [report for report in terminalreporter.stats.get("passed", ()) if report.when == "call"]
    rows = [values for report in reports for name, values in report.user_properties if name == "faults"]
    if rows:
        terminalreporter.write_line("\n| fault | cases | outcome |\n|---|---|---|")
    for what in sorted({(row[0], row[2]) for row in rows}):
        count = sum(row[1] for row in rows if (row[0], row[2]) == what)
        terminalreporter.write_line(f"| {what[0]} | {count} | {what[1]} |")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("PWGF_PROGRESS", "0")
