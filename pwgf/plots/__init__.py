"""Figures: `draw` and `save` for a run, `compare.draw` and `compare.save` for a comparison (needs the extra `plot`)."""

from . import compare
from ._style import style
from .run import draw, save, title

__all__ = ["compare", "draw", "save", "style", "title"]
