"""docs/comparison.md: figures published by the three studies and others beside those of this package, on one page.

The page is made from the tables on the pages in results/ and the files in experiments/data/ alone; nothing is solved.

    python -m experiments.comparison           # a second; a test holds the page against what this writes
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from experiments.common import RESULTS, lines_of
from experiments.gaussian_mixture import means
from experiments.targets import mixture_published, published, published_seconds

PAGE = RESULTS.parent / "docs" / "comparison.md"
Row = dict[str, str]

INTRODUCTION = """# Published figures and ours

This page is written by `python -m experiments.comparison` from the tables in [results](../results/README.md) and the
figures in `experiments/data`. Ratios are ours over theirs: below 1 we are better. Published seconds are of the studies'
GPUs, ours of one CPU thread, to which [the conventions](../results/README.md#machine-and-conventions) apply; each page
of results states the version with which it was measured.
"""

PEERS = {  # what to use when, by problem and alternative
    ("gaussian-d12", "zuko"): "`sampling.sample`: it finds a Gaussian in its first step",
    ("wells-d2", "zuko"): "`sampling.sample`: more exact, sooner, and without a schedule to be chosen",
    ("twonorm", "numpyro"): "NUTS for one posterior mean; `sampling.sample` for many samples, or for log Z",
    ("density-d1", "scipy"): "finite volumes, in one dimension",
    ("density-d1", "py-pde"): "finite volumes by scipy",
    ("density-d2", "scipy"): "finite volumes, in two dimensions on a box that is known",
    ("density-d2", "py-pde"): "finite volumes by scipy",
    ("wells-d50", "numpy"): "plain particles for moments alone; `FittedParticles` for a density, score or energy too",
    ("filtering", "particles"): "a bootstrap filter for mean and evidence; `filtering.run` for a density",
}

OTHERS = """## Where something else is the better choice

- **Mixtures, scored against their stationary law.** On the targets measured in d = 2 and 6 we are behind the published
  means of JKO-ICNN in symmetric KL, at less than a tenth of its seconds. The masses of our law are right to about a
  hundredth; its cuts between components are not sharp enough ([mixtures](../results/mixtures.md)).
- **Only moments or samples are wanted, and the law is smooth.** Langevin particles reach their sampling error within
  seconds ([rivals](../results/rivals.md)). They have no density, no score and no entropy: the published figures of
  particles above are mostly the bias of the kernel density estimate by which they were scored.
- **Aggregation that ends on a curve.** Particles settle on rings and annuli; a smooth map of the plane cannot open
  the centre of a Gaussian, so that a few samples stay inside ([aggregation](../results/aggregation.md)).
- **Posteriors of a few tens of weights.** Chains of `sampling.hmc` reach an error of one per cent in less than a minute
  of one core. The flow is faster to the same moments and gives log Z, but predictions need neither: the mode predicts
  as well ([sampling](../results/sampling.md)).
- **One dimension.** Finite volumes need no map; they are the reference of [porous media](../results/porous_media.md).
"""


def main() -> None:
    """Writes docs/comparison.md."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The text of docs/comparison.md."""
    parts = [INTRODUCTION, gaussians(), mixtures(), posteriors(), filtering(), aggregation(), peers(), OTHERS]
    return "\n".join(parts)


def read(name: str, *columns: str) -> list[Row]:
    """Rows of the first table on a page of results that has these columns.

    Raises:
        ValueError: there is none.
    """
    return table_in((RESULTS / name).read_text(encoding="utf-8"), name, *columns)


def table_in(text: str, name: str, *columns: str) -> list[Row]:
    """Rows of the first Markdown table of a text that has these columns; `name` is for the message."""
    header: list[str] = []
    rows: list[Row] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            if rows:
                return rows
            header = []
        elif not header:
            header = cells
        elif set(columns) <= set(header) and not set("".join(cells)) <= set("-: "):
            rows.append(dict(zip(header, cells, strict=True)))
    if not rows:
        raise ValueError(f"results/{name} has no table with the columns {', '.join(columns)}.")
    return rows


def gaussians() -> str:
    """Medians over the targets at t = .9, at the default tolerance."""
    found = read("gaussians.md", "target", "t = .9", "JKO-ICNN, t = .9")
    found = [row for row in found if row["tolerance"] == "0.0001"]
    lines = []
    for d in dict.fromkeys(int(row["d"]) for row in found):
        mine = [row for row in found if row["d"] == str(d)]
        targets = [int(row["target"]) for row in mine]
        ours = statistics.median(float(row["t = .9"]) for row in mine)
        seconds = statistics.median(float(row["CPU s"]) for row in mine)
        theirs = statistics.median(published("ICNN_jko", d, 0.9)[k] for k in targets)
        particles = statistics.median(published("EM_sim_50000", d, 0.9)[k] for k in targets)
        took = published_seconds("ICNN_jko", d)
        names = ", ".join(map(str, targets))
        cells = [str(d), names, _figure(ours), _figure(theirs), _figure(particles)]
        lines.append([*cells, _ratio(ours, theirs), f"{seconds:.0f}", f"{took:.0f}", _ratio(seconds, took)])
    header = ["d", "targets", "symmetric KL", "JKO-ICNN", "50 000 particles", "ratio", "CPU s", "GPU s"]
    text = """## Ornstein–Uhlenbeck flows

The Gaussian targets of Mokrov et al., 2021 ([arXiv 2106.00736](https://arxiv.org/abs/2106.00736)), symmetric KL to the
exact law at t = .9, medians over the targets measured ([Gaussian flows](../results/gaussians.md)).
"""
    return _section(text, [*header, "ratio"], lines)


def mixtures() -> str:
    """Means over the targets measured, beside means of five."""
    lines = []
    for d, (targets, found) in means().items():
        theirs = mixture_published(d)
        ours, seconds = found["sym_kl"], found["cpu_seconds"]
        error, took = theirs["jko_icnn_sym_kl"], theirs["jko_icnn_gpu_seconds"]
        cells = [str(d), targets, f"{ours:.3g}", f"{found['floor']:.3g}", error, theirs["particles_50000_sym_kl"]]
        lines.append([*cells, _ratio(ours, float(error)), f"{seconds:.0f}", took, _ratio(seconds, float(took))])
    header = ["d", "targets", "symmetric KL", "floor", "JKO-ICNN", "50 000 particles", "ratio", "CPU s", "GPU s"]
    text = """## Mixtures of Gaussians

The mixtures of the same study from N(0, 16 I), with its own centres: symmetric KL of the law at t = 4 to the
*stationary* law, means over the targets measured; published are means of all five. The exact law at t = 4 is at least
at the distance `floor`, since its masses are not at rest ([Mixtures](../results/mixtures.md)).
"""
    return _section(text, [*header, "ratio"], lines)


def posteriors() -> str:
    """Accuracy and seconds of Bayesian logistic regression."""
    lines = []
    for row in read("sampling.md", "set", "accuracy", "JKO-ICNN", "SW-JKO"):
        if row["JKO-ICNN"] == "–":
            continue
        jko, sliced = row["JKO-ICNN"].split("/"), row["SW-JKO"].split("/")
        seconds = float(row["CPU s"])
        cells = [row["set"], row["accuracy"], row["mode, 20 splits"], "0" + jko[0], "0" + sliced[0], f"{seconds:.0f}"]
        lines.append([*cells, jko[1], sliced[1], _ratio(seconds, float(jko[1])), _ratio(seconds, float(sliced[1]))])
    header = ["set", "accuracy", "of the mode", "JKO-ICNN", "SW-JKO", "CPU s", "JKO-ICNN, s", "SW-JKO, s"]
    text = """## Bayesian logistic regression

Accuracy on held-out data, and seconds, beside Mokrov et al. and Bonet et al., 2022
([arXiv 2110.10972](https://arxiv.org/abs/2110.10972)). The splits are not theirs: over 20 splits the accuracy varies by
the ± stated, and the posterior's mode predicts as well. `-intercept` rows have a column of ones, which the study's
model lacks ([Sampling](../results/sampling.md)).
"""
    return _section(text, [*header, "ratio of s", "ratio of s"], lines)


def filtering() -> str:
    """Medians over the seeds of the filtering problem."""
    row = next(row for row in read("filtering.md", "seed", "pwgf", "50000 particles") if row["seed"] == "median")
    ours, seconds = float(row["pwgf"]), float(row["CPU s"])
    lines = [
        ["pwgf", _figure(ours), "1", f"{seconds:.0f} (CPU)"],
        ["JKO-ICNN, published", "0.0170", _ratio(ours, 0.0170), "13627 (GPU)"],
        ["50 000 particles, published", "0.0043", _ratio(ours, 0.0043), "–"],
        ["50 000 particles", row["50000 particles"], _ratio(ours, float(row["50000 particles"])), row["CPU s, 50000"]],
    ]
    text = """## Nonlinear filtering

Nine observations of a diffusion in a rippled well, the law at t = 5, median of 15 seeds; the published figures are
those of Mokrov et al., §5.4 ([Filtering](../results/filtering.md)). Particles are faster.
"""
    return _section(text, ["method", "symmetric KL", "ours over it", "seconds"], lines)


def aggregation() -> str:
    """Errors of four schemes on swarms with exact laws."""
    columns = ["law", "t", "scheme", "W₂ of radii", "rms∣T − T*∣", "CPU s"]
    found = read("aggregation.md", *columns)
    text = """## Aggregation

From N(0, .25² I) to a ring, a disc and an annulus, all schemes by this package, against exact laws
([Aggregation](../results/aggregation.md)). For the ring Bonet et al. publish 10 to 20 minutes of SW-JKO and 5 hours of
JKO-ICNN.
"""
    return _section(text, columns, [[row[name] for name in columns] for row in found])


def peers() -> str:
    """A sentence for each row of `benchmarks.peers`: the ratio of errors and of seconds, and what to use when."""
    found = read("peers.md", "problem", "method", "error", "CPU s")
    sentences = []
    for problem in dict.fromkeys(row["problem"] for row in found):
        rows = [row for row in found if row["problem"] == problem]
        ours = next(row for row in rows if row["method"].startswith("pwgf"))
        for other in (row for row in rows if not row["method"].startswith("pwgf")):
            mine, theirs = _errors(ours), _errors(other)
            shared = [name for name in mine if name in theirs]
            told = ", ".join(f"{name} {_ratio(mine[name], theirs[name])}" for name in shared)
            seconds = _ratio(float(ours["CPU s"]), float(other["CPU s"]))
            sentences.append([problem, other["method"], told, seconds, PEERS[problem, other["method"]]])
    text = """## Beside what packages give

`python -m benchmarks.peers` runs this package and plain alternatives on the same questions
([Beside the alternatives](../results/peers.md)). Ratios are ours over theirs: below 1 we are more exact, or faster.
"""
    return _section(text, ["problem", "other", "ratio of errors", "ratio of CPU s", "what to use"], sentences)


def _errors(row: Row) -> dict[str, float]:
    """Errors of a row of results/peers.md by their names: "log Z 1.2e-03; KL 2e-2"."""
    parts = [part.rpartition(" ") for part in row["error"].split("; ")]
    return {name: float(value) for name, _, value in parts}


def _section(text: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join([text, *lines_of(header, rows), ""])


def _figure(value: float) -> str:
    return f"{value:.2g}"


def _ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.1g}" if ours < 0.095 * theirs else f"{ours / theirs:.2g}"


if __name__ == "__main__":
    main()
