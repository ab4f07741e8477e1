"""What each command takes, with defaults and units; `--help` prints it. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

Given = Annotated[Mapping[str, Sequence[str]], tyro.conf.Suppress]
"""Options that are set aside for what is chosen by name, see `_options.split`; no option itself."""

Problem = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")]
File = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class Run:
    """Solve a problem, write the run to a file, and say how good it is.

    Further options: the problem's own arguments, such as --c of styblinski-tang or --m of barenblatt, and settings of
    what is chosen by name, --map.NAME, --integrator.NAME, --scheme.NAME, --solver.NAME. `pwgf options` lists them.
    """

    problem: Problem
    """ornstein-uhlenbeck, styblinski-tang, barenblatt, aggregation; gaussian-mixture, rosenbrock, funnel,
    double-banana; moving-trap, linear-drift, kinetic-trap, which are driven; heat-in-box, kuramoto,
    newtonian-aggregation, confined-porous-medium; harmonic-hamiltonian or isothermal-gas, which follow Newton's law;
    your own as FILE.py:NAME or MODULE:NAME, a class, function, problem or energy"""
    dim: int | None = None
    """dimension of the space (None: the problem's own, else 2)"""
    times: str | None = None
    """times to store, with commas between them (None: the problem's own)"""
    end_time: float | None = None
    """last time stored, in units of t (None: the problem's own)"""
    num_rows: int | None = None
    """number of stored times, evenly spaced, both ends included (None: the problem's own)"""
    scheme: str | None = None
    """pwgf moves the parameters of a map, jko-icnn and sw-jko minimise step by step, particles are Euler-Maruyama
    steps, pwhf follows Newton's law (None: pwgf, or pwhf for a problem of that kind)"""
    map: str | None = None
    """residual is affine plus a small network; affine is exact for ornstein-uhlenbeck and barenblatt; convex-ridge and
    convex-max cannot fold (None: residual, in layers for d = 2 and 3)"""
    width: int | None = None
    """the same as --map.width: units of a hidden layer (None: residual takes about 16 dim, at least 32)"""
    depth: int | None = None
    """the same as --map.depth: hidden layers of residual (None: 1)"""
    num_samples: int | None = None
    """samples of a right side or inner iteration, or number of particles (None: the scheme's default)"""
    num_eval: int | None = None
    """fresh samples on which the figures of a row are measured (None: the scheme's default)"""
    integrator: str = "auto"
    """auto, implicit, explicit, an adaptive method (bosh3, dopri5, adaptive_heun, fehlberg2, dopri8), or with --dt
    implicit or a method of fixed steps (euler, midpoint, heun2, heun3, rk4)"""
    tolerance: float | None = None
    """rms displacement error of a sample per step, in units of x (None: 1e-4 explicit or on a line, 3e-4 implicit)"""
    dt: float | None = None
    """--integrator.dt, fixed step of implicit, euler, rk4, …, or of the other schemes, in units of t (None: steps by
    error control; particles: a thousandth of the time range, jko-icnn and sw-jko: at most a twentieth)"""
    damping: float | None = None
    """of the linear solve, relative to the trace of the metric (None: 1e-6; 1e-7 in implicit steps of small maps, on a
    line 1e-9)"""
    momentum: float | None = None
    """the damping is centred at up to momentum times the last rate of the parameters, 0 to 1 (None: .9; 0 there)"""
    form: Literal["velocity", "gradient"] = "velocity"
    """right side: project the velocity, or differentiate the sampled energy as published"""
    solver: str = "auto"
    """of the linear system: auto, primal, dual, block-pcg, pcg, cg or lsmr"""
    seed: int = 0
    """of all randomness"""
    dtype: Literal["float64", "float32"] = "float64"
    """floating point format of parameters and samples"""
    device: str = "cpu"
    """where to compute, e.g. cuda"""
    threads: int | None = None
    """CPU threads (None: torch's own choice)"""
    out: str | None = None
    """file to write (None: results/PROBLEM-dDIM.h5)"""
    resume: bool = False
    """continue the run at --out; starts afresh where nothing is"""
    overwrite: bool = False
    """replace the run at --out"""
    max_seconds: float | None = None
    """stop after so many seconds of wall time; --resume continues (None: no limit)"""
    store_samples: int | None = None
    """samples of the law that every row holds, for programs without pwgf (None: none)"""
    max_steps: int | None = None
    """stop after so many steps; --resume continues (None: no limit)"""
    given: Given = field(default_factory=dict)


@dataclass(frozen=True)
class Info:
    """Say in words what is in a run's file and how good it is, or in a comparison's."""

    file: File
    """written by pwgf run, pwgf.solve or pwgf compare"""
    json: bool = False
    """say all of it as JSON instead"""
    problem: str | None = None
    """FILE.py:NAME or MODULE:NAME of a problem of your own, by whose exact law the error is measured (None: the one
    that the file names, if it is built in)"""


@dataclass(frozen=True)
class Plot:
    """Draw energy, projection residual, error and law of a run, from its file alone."""

    file: File
    """written by pwgf run or pwgf.solve"""
    kind: Literal["overview", "energy", "marginals", "density"] = "overview"
    """overview of one run; energy over time; marginals: densities of coordinates and of their pairs at several times;
    density of two coordinates at one time"""
    dims: str | None = None
    """coordinates, counted from 0, with commas between them (None: the first ones)"""
    times: str | None = None
    """times at which the law is shown, with commas between them (None: four rows; density: the last)"""
    out: str | None = None
    """picture to write, .png, .pdf or .svg (None: FILE with the ending .png)"""
    problem: str | None = None
    """FILE.py:NAME or MODULE:NAME of a problem of your own, whose exact law is drawn beside the run's (None: that of
    the problem that the file names, if it is built in)"""


@dataclass(frozen=True)
class Animate:
    """Write the law of a run in motion, from its file alone: samples of two coordinates, or the density of one."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """written by pwgf run or pwgf.solve"""
    dims: str | None = None
    """one or two coordinates, counted from 0, with a comma between them (None: the first two, or the only one)"""
    frames: int | None = None
    """number of frames, evenly spaced in time (None: one a row where there are 24 to 96 rows, else 48)"""
    fps: float = 12
    """frames per second"""
    out: str | None = None
    """film to write, .gif, or .mp4 where ffmpeg is installed (None: FILE with the ending .gif)"""


@dataclass(frozen=True)
class Export:
    """Write samples of a run's law to a file that needs no pwgf: netCDF, CSV, Parquet or Zarr."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """written by pwgf run or pwgf.solve"""
    out: str | None = None
    """file to write, .nc, .csv, .parquet or .zarr (None: FILE with the ending .nc); what is there is replaced"""
    samples: int = 1000
    """samples of each law; sample k has the same z at all times"""
    dims: str | None = None
    """coordinates, counted from 0, with commas between them (None: all)"""
    times: str | None = None
    """times with commas between them (None: all rows)"""
    seed: int = 0
    """of the samples"""


@dataclass(frozen=True)
class Compare:
    """Solve one problem by several methods and print their errors, CPU seconds and failures side by side."""

    problem: Problem
    """ornstein-uhlenbeck, styblinski-tang, barenblatt or aggregation; your own as FILE.py:NAME or MODULE:NAME, with
    its arguments as further options"""
    methods: str | None = None
    """names with commas between them; an unknown one lists them all (None: pwgf,sw-jko,particles, or pwhf for a problem
    of Newton's law)"""
    dims: str | None = None
    """dimensions with commas between them (None: the problem's own, else 2)"""
    times: str | None = None
    """times to store and score, from the start on, with commas (None: five over the problem's own range)"""
    seeds: str = "0"
    """seeds of the runs with commas between them"""
    num_samples: int = 10_000
    """samples of each law behind densities and moments; particles use what they have"""
    out: str | None = None
    """HDF5 file of the table (None: results/compare-PROBLEM.h5); the figure goes beside it as .png"""
    runs: str | None = None
    """folder for the runs themselves; those that are there already are not repeated"""
    overwrite: bool = False
    """replace the table at --out"""
    given: Given = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Put several runs side by side, a row each: settings that differ, errors, energy, CPU seconds, verdict.

    Exit status 1 where a file cannot be read; its row says so.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES")]
    """runs, or folders of them"""
    csv: bool = False
    """with commas between the columns, and all digits"""
    problem: str | None = None
    """as for pwgf info; runs of a built-in problem are measured by that"""


@dataclass(frozen=True)
class Sweep:
    """Solve a problem for every combination of settings, in a file each, and put the runs side by side.

    Any option of `pwgf run` may have several values, with blanks between them: --temperature 0.1 0.2 --seed 0 1 2. The
    same command again keeps what is finished and continues the rest. Exit status 1 where a run is not complete.
    """

    problem: Problem
    """as for pwgf run"""
    out_dir: str = "runs"
    """folder for the runs"""
    jobs: int = 1
    """runs at a time, each in a process of its own, with one thread unless --threads says otherwise"""
    csv: bool = False
    """print the table with commas between the columns, and all digits"""
    given: Given = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """Make one file of a run that was killed, failed or interrupted; it can still be resumed."""

    file: File
    """what was given as out; its parts go once the file is written and checked"""


@dataclass(frozen=True)
class Doctor:
    """Read and hash all of a run, say what is damaged and how many rows are good; exit status 1 for damage."""

    file: File
    """what was given as out; nothing in it is changed"""
    salvage: str | None = None
    """copy the good rows, up to the first damaged one, to this new file"""


@dataclass(frozen=True)
class Options:
    """List what can be chosen by name, and the options that each of them has."""

    kind: Annotated[Literal["all", "problem", "map", "integrator", "scheme", "solver"], tyro.conf.Positional] = "all"
    """which of them"""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Animate, tyro.conf.subcommand("animate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Table, tyro.conf.subcommand("table")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Options, tyro.conf.subcommand("options")]
)
