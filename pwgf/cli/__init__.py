"""The command line, `pwgf` or `python -m pwgf`."""

from .main import main

__all__ = ["main"]
