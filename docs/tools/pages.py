"""Pages made while the site is built: tutorials from their scripts, a gallery from the experiments. A hook of mkdocs.

A tutorial is a script in the percent format, which notebooks and editors know: `# %%` begins a cell of code,
`# %% [markdown]` one of text. Its figures, `savefig("NAME.png")`, are kept in docs/images.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
_CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)


def cells(script: Path) -> list[tuple[str, str]]:
    """The cells of a script: "markdown" or "code", and the text."""
    _, *parts = _CELL.split(script.read_text(encoding="utf-8"))
    found = []
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        if title.strip() == "[markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", body.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", body.strip()))
    return found


def notebook(script: Path) -> nbformat.NotebookNode:
    """The script as a notebook, without outputs."""
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    made = [new[kind](text, id=f"cell-{k}") for k, (kind, text) in enumerate(cells(script))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel})


def tutorial(script: Path) -> str:
    """The script as a page."""
    lines = []
    for kind, text in cells(script):
        lines += [text, ""] if kind == "markdown" else ["```python", text, "```", ""]
        if not lines[2:]:
            lines += [f"[Script]({script.name}) · [notebook]({script.stem}.ipynb)", ""]
        if kind == "code":
            pictures = re.findall(r'savefig\("(.*?)"', text)
            lines += [f"![Figure made by the lines above](../images/{picture})\n" for picture in pictures]
    return "\n".join(lines)


def _pictures(module: Path, text: str) -> list[Path]:
    """The pictures of an experiment: those of its last run here, else the kept ones named after it or by its text."""
    kept = [*ROOT.glob("docs/images/*.png"), *ROOT.glob("results/*.png")]
    own = sorted(path for path in kept if path.stem.startswith(module.stem) or path.name in text)
    own = list({path.name: path for path in own}.values())  # of two copies one
    return sorted(ROOT.glob(f"results/{module.stem}/*.png")) or own


def gallery() -> tuple[str, list[Path]]:
    """The page of the experiments that are commands, from their docstrings, and the pictures on it."""
    lines = ["# Gallery", "", "Each experiment is one command in a checkout, and says how long it takes.", ""]
    shown: list[Path] = []
    for module in sorted(ROOT.glob("experiments/*.py")):
        text = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
        command = f"python -m experiments.{module.stem}"
        if command not in text:
            continue
        results = [page for page in sorted(ROOT.glob("results/*.md")) if command in page.read_text(encoding="utf-8")]
        lines += [f"## {module.stem.replace('_', ' ').capitalize()}", "", text, ""]
        for page in results:
            title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
            lines += [f"Measured: [{title}](../results/{page.name})", ""]
        for picture in _pictures(module, text):
            shown.append(picture)
            lines += [f"![{module.stem}: {picture.stem}](../{picture.relative_to(ROOT)})", ""]
    return "\n".join(lines), shown


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages, the notebooks, and pictures of experiments that were run here."""
    made: dict[str, str | bytes] = {}
    for script in TUTORIALS:
        made[f"docs/tutorials/{script.stem}.md"] = tutorial(script)
        made[f"docs/tutorials/{script.stem}.ipynb"] = nbformat.writes(notebook(script))
    made["docs/gallery.md"], pictures = gallery()
    made |= {picture.relative_to(ROOT).as_posix(): picture.read_bytes() for picture in pictures}
    for name, content in made.items():
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, **rest: Any) -> str:
    """Links that lead to scripts in the repository lead to their pages on the site."""
    markdown = re.sub(r"\]\(((?:docs/)?tutorials/[\w-]+)\.py\)", r"](\1.md)", markdown)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"\]\((?:\.\./)*experiments\)", f"]({up}docs/gallery.md)", markdown)
