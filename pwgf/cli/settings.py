"""What each command takes, with defaults and units; `--help` prints it. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Run:
    """Solve a problem with a known answer, write the run to a file, and say how good it is."""

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")]
    """ornstein-uhlenbeck, styblinski-tang, barenblatt, aggregation; gaussian-mixture, rosenbrock, funnel or
    double-banana"""
    dim: int = 2
    """dimension of the space"""
    c: float | None = None
    """styblinski-tang: steepness of the double wells (None: 0.06)"""
    m: float | None = None
    """barenblatt: exponent of the porous medium, above 1 (None: 2)"""
    end_time: float | None = None
    """last time stored, in units of t (None: the problem's own)"""
    num_rows: int | None = None
    """number of stored times, evenly spaced, both ends included (None: the problem's own)"""
    scheme: str = "pwgf"
    """pwgf moves the parameters of a map, jko-icnn and sw-jko minimise step by step, particles are Euler-Maruyama
    steps"""
    map: Literal["residual", "affine"] = "residual"
    """residual is affine plus a small network; affine is exact for ornstein-uhlenbeck and barenblatt"""
    width: int | None = None
    """residual map: units of a hidden layer (None: about 16 dim, at least 32)"""
    depth: int = 1
    """residual map: hidden layers"""
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
    """fixed step of --integrator implicit, euler, rk4, …, or of the other schemes, in units of t (None: steps by error
    control; particles: a thousandth of the time range, jko-icnn and sw-jko: at most a twentieth)"""
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
    max_steps: int | None = None
    """stop after so many steps; --resume continues (None: no limit)"""


@dataclass(frozen=True)
class Info:
    """Say in words what is in a run's file and how good it is."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """written by pwgf run or pwgf.solve"""


@dataclass(frozen=True)
class Plot:
    """Draw energy, projection residual, error and law of a run, from its file alone."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
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

    problem: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PROBLEM")]
    """ornstein-uhlenbeck, styblinski-tang, barenblatt or aggregation"""
    methods: str = "pwgf,sw-jko,particles"
    """names with commas between them; an unknown one lists them all"""
    dims: str = "2"
    """dimensions with commas between them"""
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


@dataclass(frozen=True)
class Pack:
    """Make one file of a run that was killed, failed or interrupted; it can still be resumed."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """what was given as out; its parts go once the file is written and checked"""


@dataclass(frozen=True)
class Doctor:
    """Read and hash all of a run, say what is damaged and how many rows are good; exit status 1 for damage."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """what was given as out; nothing in it is changed"""
    salvage: str | None = None
    """copy the good rows, up to the first damaged one, to this new file"""


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[Animate, tyro.conf.subcommand("animate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Pack, tyro.conf.subcommand("pack")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)
