"""One thread for every test: two-thread kernels stall beside busy neighbours, and bits must not depend on them."""

import pytest
import torch


def pytest_configure(config):
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("PWGF_PROGRESS", "0")
