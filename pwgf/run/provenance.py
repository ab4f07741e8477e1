"""The software and the machine with which a run was computed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import Any

import torch

from .._version import __version__


def provenance(device: str, processes: int = 1) -> dict[str, Any]:
    """Versions, platform, host, threads, processes, device and its name, git commits of pwgf and folder, command line.

    JSON values.
    """
    return {
        "pwgf": __version__,
        **{library: _version(library) for library in ("torch", "torchdiffeq", "numpy", "h5py")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": device,
        "device_name": _device_name(device),
        "git_commit": _git_commit("."),
        "pwgf_commit": _package_commit(),
        "argv": [str(word).encode("utf-8", "backslashreplace").decode() for word in sys.argv],  # which may be no UTF-8
    }


def _device_name(device: str) -> str:
    """What the device calls itself, such as "NVIDIA H200"; on a CPU the processor, "" where that is unknown."""
    named = getattr(getattr(torch, torch.device(device).type), "get_device_name", None)
    return platform.processor() if named is None else str(named(device))


def _version(library: str) -> str:
    """Version of an installed library, which need not be imported for that; "" where it came without metadata."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _package_commit() -> str:
    """Commit of the checkout that this package runs from, "" where it is installed, or git does not know its files."""
    folder, name = os.path.split(os.path.abspath(__file__))
    return _git_commit(folder) if _git(folder, "ls-files", name) else ""


def _git_commit(folder: str) -> str:
    """Commit of the folder's repository, or ""; the run does not depend on it."""
    return _git(folder, "rev-parse", "HEAD")


def _git(folder: str, *words: str) -> str:
    """What git says, "" where it fails."""
    command = ["git", "-C", folder, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
