"""Builds the site: `python -m docs.tools.build` gathers the pages in build/docs and leaves build/site.

It needs no network, and a warning is an error.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from mkdocs.commands.build import build as build_site
from mkdocs.config import load_config

ROOT = Path(__file__).parents[2]
_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "constraints.txt")


def build(folder: Path) -> Path:
    """Gathers the pages in folder/docs and builds folder/site, which is returned."""
    pages, site = folder / "docs", folder / "site"
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    (pages / "results").mkdir()
    results = [path for path in ROOT.glob("results/*.*") if path.suffix in (".md", ".png", ".csv")]
    for source in (*(ROOT / name for name in _PAGES), *results):
        shutil.copy(source, pages / source.relative_to(ROOT))
    return built(pages, site)


def built(pages: Path, site: Path) -> Path:
    """The site of these pages; `Abort` at the first warning."""
    build_site(load_config(str(ROOT / "mkdocs.yml"), docs_dir=str(pages), site_dir=str(site), strict=True))
    return site


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    build(ROOT / "build")
