"""The command line, `pwgf` or `python -m pwgf`."""

from .commands import main

__all__ = ["main"]
