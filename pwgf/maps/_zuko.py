"""The package zuko, which is optional."""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import ConfigError


def import_zuko(call: str) -> Any:
    """The package zuko.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("zuko")
    except ImportError as error:
        raise ConfigError(
            f'{call} needs the package zuko, which is not installed. Install it with pip install "pwgf[flows]".'
        ) from error
