"""The command `pwgf info`, and what `pwgf run` says at its end: a run in words."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

from .. import storage
from ..errors import PathError
from ..study.compare import Comparison
from ._terminal import say
from .facts import VERDICTS, Facts, plain, problem_from, read, run_of
from .settings import Info


def info(settings: Info) -> int:
    """Says what is in a file and how good it is, in words or as JSON; exit status 0."""
    path, is_part = run_of(settings.file)
    if is_part:
        return _tell(settings, {"file": settings.file, "kind": "part", "run": path}, [_part(settings.file, path)])
    with contextlib.suppress(PathError):  # no comparison: `load` says what else it may be
        table = Comparison.load(path)
        found = {"file": path, "kind": "comparison", "config": table.config, "entries": table.entries}
        methods = ", ".join(table.config.get("methods", []))
        return _tell(settings, found, [f"{path}: a comparison of {methods}", "", *table.lines()])
    with contextlib.suppress(PathError):
        columns, about = storage.read_table(path)
        listed = {name: list(values) for name, values in columns.items()}
        found = {"file": path, "kind": "table", "config": about, "columns": listed}
        return _tell(settings, found, _table(path, about, listed))
    found = read(path, problem_from(settings.problem, "pwgf info --problem"))
    return _tell(settings, found, lines(found))


def _tell(settings: Info, found: dict[str, Any], words: list[str]) -> int:
    if settings.json:
        words = [json.dumps(plain(found), indent=2, ensure_ascii=False)]
    for line in words:
        say(line)
    return 0


def _table(path: str, about: Facts, columns: dict[str, list[Any]]) -> list[str]:
    """What a table is about, and its rows."""
    rows = [
        [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in zip(*columns.values(), strict=True)
    ]
    lines = [list(columns), ["---"] * len(columns), *rows]
    return [f"{path}: a table of {about.get('kind', 'pwgf')}", "", *(f"| {' | '.join(line)} |" for line in lines)]


def _part(file: str, path: str) -> str:
    return f"{file}: a part of the run {path}, which is written, or was killed or stopped: pwgf info {path}"


def lines(found: Facts) -> list[str]:
    """All that `pwgf info` says of a run."""
    warnings = [f"Warning: {line}" for line in found["warnings"]] or ["Warnings: none"]
    head = [f"{found['file']}: {found['status']}", *about(found), *energy_lines(found), *quality_lines(found)]
    return [*head, *error_lines(found), *result_lines(found), *warnings]


def about(found: Facts) -> list[str]:
    """Problem, scheme, rows, work and energy of a run."""
    work = "work not counted" if found["work"] is None else f"{found['work']:.0f} {found['work_unit']}"
    if found["num_implicit"] is not None:
        work += f" in {found['num_steps']:.0f} steps ({found['num_implicit']:.0f} implicit)"
    if found["num_rejected"]:
        work += f", {found['num_rejected']:.0f} steps rejected"
    seconds = math.nan if found["seconds"] is None else found["seconds"]
    return [
        found["title"],
        f"Rows: {found['rows']}, from t = {found['t_first']:g} to {found['t_last']:g}; {work}, {seconds:.3g} s",
        f"Energy terms: {' + '.join(found['energy_terms'])}",
        *(f"{figures}: {source}" for figures, source in found["sources"].items()),
    ]


def energy_lines(found: Facts) -> list[str]:
    """Whether the energy falls, or the total energy does what it should."""
    if found["energy_last"] is None:
        return [f"Energy: not known{'' if found['has_density'] else ' (particles have no density)'}"]
    label = "Total energy" if found["energy_name"] == "total_energy" else "Energy"
    ends = f"{label}: {found['energy_first']:.5g} -> {found['energy_last']:.5g}"
    if found["energy_balance"] == "stays":
        return [f"{ends}; it should not change, and did by at most {found['energy_change']:.2g}"]
    if found["energy_balance"] == "varies":
        return [f"{ends}; it need not fall, since the flow is driven"]
    rises = found["energy_rises"]
    fall = f"RISES at {rises} of {found['rows'] - 1} rows" if rises else "falls in every row, as it should"
    return [f"{ends}; it {fall} (up to its sampling error)"]


def quality_lines(found: Facts) -> list[str]:
    """The velocity that the map missed, what that makes of the law, and folds."""
    if found["residual_max"] is None:
        return []
    said = [f"Projection residual: at most {found['residual_max']:.2g}, last {found['residual_last']:.2g}"]
    if found["verdict"] is not None:
        advice = next(advice for word, advice, _ in VERDICTS if word == found["verdict"])
        off = f"{100 * found['estimated_error']:.2g} % of its spread at most, at t = {found['estimated_error_t']:g}"
        said += [
            f"Verdict: {found['verdict']}{advice}; the law is off by some {off} (W2, estimated from the velocity that "
            "the map missed)"
        ]
        if found["error_95"] is not None:
            above = f"{100 * found['error_95']:.2g} %"
            said.append(
                f"  With the errors of the steps it should be below {above}, as in 79 of 80 rows of test problems"
            )
        tried = [f"{100 * value:.2g} % with {words}" for words, value in found["tried"].items()]
        said += [f"  Tried there: {' and '.join(tried)}"] if tried else []
    if found["fold_fraction"] is not None:
        said.append(f"Folded samples: at most {100 * found['fold_fraction']:.2g} %")
    return said


def result_lines(found: Facts) -> list[str]:
    """The numbers of what was made of the run, such as log Z of its samples."""
    if found["result"] is None:
        return []
    result = {name: value for name, value in found["result"].items() if name != "about"}
    about = found["result"]["about"]
    kind = about.get("kind", "of another program") if isinstance(about, dict) else "of another program"
    return [f"Result, {kind}: {', '.join(f'{name} {value:.4g}' for name, value in result.items())}"]


def error_lines(found: Facts) -> list[str]:
    """Distance of the last row to the exact law."""
    error = found["error"]
    if error is None:
        return [f"Error: {found['error_unknown']}"]
    kl = "not defined (no density, or other support)"
    if math.isfinite(error["sym_kl"]):
        kl = f"{error['sym_kl']:.2g} nats"
    return [
        f"Error against the exact law at t = {found['t_last']:g}: Bures-W2 {error['bures_w2']:.2g} in units of x "
        f"(its sampling error {error['bures_w2_floor']:.1g}; the law's spread is {error['spread']:.3g})",
        f"  mean off by {error['mean']:.2g}, covariance by {100 * error['cov']:.2g} %, symmetric KL {kl}",
    ]
