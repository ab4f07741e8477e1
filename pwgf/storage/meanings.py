"""What every dataset of a run means: `long_name`, `units` and `description`, kept as attributes of the file."""

from __future__ import annotations

from typing import NamedTuple

import h5py

from pwgf.storage.schema import put_attr


class Meaning(NamedTuple):
    """Of a dataset.

    Args:
        long_name: for an axis, e.g. "energy F".
        units: "1" for a pure number or count, "s", or those of the user: "units of x", "units of t", "units of F".
        description: a sentence.
    """

    long_name: str
    units: str
    description: str


_SPEED = "units of x / units of t"
_MEANINGS = {
    "t": Meaning("time t", "units of t", "time of the row; rows increase in it"),
    "param": Meaning("parameter", "1", "position in θ; layout names the blocks"),
    "dim": Meaning("coordinate", "1", "coordinate of the space, counted from 0"),
    "sample": Meaning("sample", "1", "number of the sample; it keeps its z, so that it moves along a path"),
    "samples": Meaning("samples x of ρ_t", "units of x", "the same z pushed at every row, as by run.sample(t, n)"),
    "theta": Meaning("parameters θ", "1", "parameters of the map in this row; of particles their positions"),
    "theta_dot": Meaning("rate of the parameters dθ/dt", "1 / units of t", "rate θ̇ solved for this row"),
    "energy": Meaning("energy F", "units of F", "energy of the law, a mean over fresh samples"),
    "energy_stderr": Meaning("standard error of the energy", "units of F", "sampling error of energy; NaN if unknown"),
    "projection_residual": Meaning(
        "projection residual", "1", "E|Jθ̇ − v|²/E|v|² on fresh samples: share of the velocity that the map misses"
    ),
    "velocity_rms": Meaning("rms velocity", _SPEED, "√E|v|²"),
    "error_estimate": Meaning(
        "estimated error of the law", "units of x", "W₂ to the exact law, about, from the velocity that the map misses"
    ),
    "error_more_samples": Meaning(
        "estimated error with more samples", "units of x", "the estimate with 4 times the samples; NaN if not tried"
    ),
    "error_second_map": Meaning(
        "estimated error with a second map", "units of x", "the estimate with a second map; NaN if not tried"
    ),
    "step_error": Meaning(
        "error of the steps", "units of x", "root of the sum of squares of the estimated errors of all steps so far"
    ),
    "error_95": Meaning("error of the law, 95 % level", "units of x", "W₂ to the exact law is below it, by experience"),
    "kinetic_energy": Meaning("kinetic energy", "units of F", "½E|Jη|² of a second-order flow"),
    "total_energy": Meaning("total energy", "units of F", "F + ½E|Jη|², which friction alone changes"),
    "acceleration_rms": Meaning("rms acceleration", "units of x / units of t²", "that the samples should have"),
    "path_error": Meaning(
        "distance from free paths",
        "units of x",
        "rms, of fresh samples from those that follow Newton's law by themselves",
    ),
    "power": Meaning("power", "units of F / units of t", "E ∂ₜV, the rate of work on the samples"),
    "entropy_production": Meaning("entropy production", "1 / units of t", "E|v|²/τ of a driven flow"),
    "heat": Meaning("heat", "units of F / units of t", "E[f·v], the rate at which forces f on particles heat the bath"),
    "num_iterations": Meaning("iterations", "1", "for the equations of the steps, total since the start"),
    "spread": Meaning("spread of the law", "units of x", "√tr cov of ρ; in PWGF without the fastest .5 %"),
    "dissipation": Meaning("dissipation", "units of F / units of t", "E[v·Jθ̇], about −dF/dt"),
    "fold_fraction": Meaning("folded samples", "1", "share of samples where det ∂T/∂z ≤ 0, so that the map folds"),
    "second_moment": Meaning("second moment", "units of x²", "E|x|²"),
    "solver_residual": Meaning("residual of the linear solve", "1", "relative residual of the normal equations"),
    "solver_iterations": Meaning("products of the linear solve", "1", "products Jη and Jᵀu in the row's own solve"),
    "damping": Meaning("damping ε", "1", "of the row's own solve, relative to the trace of the metric"),
    "dt": Meaning("next step", "units of t", "proposed length of the next step"),
    "num_steps": Meaning("steps", "1", "total since the start"),
    "num_stages": Meaning("right sides", "1", "total since the start, in the scheme's unit of work"),
    "num_products": Meaning("products", "1", "products Jη and Jᵀu in successful steps, total since the start"),
    "num_rejected": Meaning("rejected substeps", "1", "total since the start"),
    "num_redraws": Meaning("steps with new samples", "1", "steps tried again with new samples, total since the start"),
    "num_implicit": Meaning("implicit steps", "1", "steps taken implicitly, total since the start"),
    "inner_iterations": Meaning("inner iterations", "1", "of the optimisation in the last step"),
    "learning_rate": Meaning("learning rate", "1", "of the inner optimisation in the last step"),
    "num_unsettled": Meaning("unsettled steps", "1", "steps whose inner optimisation was cut short, total so far"),
    "result/held_out": Meaning(
        "held-out value", "1", "nats: −E log ρ of samples kept aside, or E[log ρ − log π] of a fit"
    ),
    "result/iterations": Meaning("iterations", "1", "of the fit"),
    "result/converged": Meaning("converged", "1", "1 where the fit stopped for lack of improvement, else 0"),
    "result/error": Meaning("error of the fit", "units of x", "√(sliced W₂²) to data kept aside; NaN if not measured"),
    "result/floor": Meaning("floor of the error", "units of x", "what error would be if the data came from the law"),
    "wall_time": Meaning("wall time", "s", "since the start, added over resumed runs"),
    "cpu_time": Meaning("CPU time", "s", "of all processes since the start, added over resumed runs"),
    "result/x": Meaning("samples x", "units of x", "drawn from ρ; by log_weights they are samples of p/Z"),
    "result/draw": Meaning("draw", "1", "number of the sample"),
    "result/log_density": Meaning("log ρ(x)", "1", "exact log density of the samples; NaN after a polish"),
    "result/log_weights": Meaning("log p(x) − log ρ(x)", "1", "log weights of the samples; NaN after a polish"),
    "result/log_z": Meaning("log Z", "1", "log of the integral of p, by importance sampling"),
    "result/log_z_stderr": Meaning("standard error of log Z", "1", "by the delta method"),
    "result/log_z_bound": Meaning("lower bound of log Z", "1", "E log(p/ρ) = log Z − KL(ρ|p/Z)"),
    "result/log_z_bound_stderr": Meaning("standard error of the bound of log Z", "1", "sampling error"),
    "result/ess": Meaning("effective sample size", "1", "as a share of the samples, (Σw)²/(nΣw²)"),
    "result/centre": Meaning("m of x = m + Ly", "units of x", "centre of the coordinates y in which the flow ran"),
    "result/scale": Meaning("L of x = m + Ly", "units of x", "scale of the coordinates y in which the flow ran"),
    "result/y": Meaning("y of the first samples", "units of y", "by which coordinates of the user's are recognised"),
    "result/theta": Meaning("parameters θ after the update", "1", "of the law after the observation at the end"),
    "result/mean": Meaning("mean", "units of x", "of the law after the observation at the end"),
    "result/cov": Meaning("covariance", "units of x²", "of the law after the observation at the end"),
    "result/log_evidence": Meaning("log evidence", "1", "log ∫p(y|x) dρ(x) of the observation"),
    "result/log_evidence_stderr": Meaning("standard error of the log evidence", "1", "sampling error"),
    "result/share": Meaning("effective share", "1", "of the samples before the observation, by their likelihood"),
    "result/kl_flow": Meaning("KL to the posterior", "1", "nats, at the end of the flow towards it"),
    "result/kl_fit": Meaning("KL of the fit", "1", "nats, between that law and the one map that replaces it"),
    "result/about": Meaning("what the result is", "", "JSON: its kind, names of coordinates, settings"),
    "config": Meaning("settings", "", "JSON: scheme, times, seed, problem, the scheme's own description, metadata"),
    "layout": Meaning("blocks of θ", "", "JSON: name, shape and offset of every block of θ"),
    "restart": Meaning("restart state", "", "the state from which solve(resume=True) continues"),
    "provenance": Meaning("origin", "", "JSON: how the run was made"),
    "result": Meaning("result", "", "what was made of the run after its end"),
    "arrays": Meaning("values of the settings", "", "values by which load and resume recognise map, reference, energy"),
}


def meaning(name: str) -> Meaning:
    """Of a dataset by its name in the file; of a scheme's own column only its name is known.

    Example:
        >>> meaning("wall_time")
        Meaning(long_name='wall time', units='s', description='since the start, added over resumed runs')
        >>> meaning("energy_entropy").long_name
        'energy, its term entropy'
    """
    group, _, inner = name.partition("/")
    if inner and name in _MEANINGS:
        return _MEANINGS[name]
    found = _MEANINGS.get(group)
    if found is not None and inner:
        return found._replace(long_name=f"{found.long_name}: {inner.replace('_', ' ')}")
    if found is not None:
        return found
    term = name.removeprefix("energy_").replace("_", " ")
    if name.startswith("energy_"):
        return Meaning(f"energy, its term {term}", "units of F", "a term of the energy with its coefficient")
    return Meaning(name.replace("_", " "), "", "a column of the scheme's own")


def attributes(name: str) -> dict[str, str]:
    """The meaning of a dataset as the attributes it has in the file; what is not known is left out."""
    return {key: text for key, text in meaning(name)._asdict().items() if text}


def explain(name: str, dataset: h5py.Dataset) -> None:
    """Writes the meaning of a dataset into its attributes."""
    for key, text in attributes(name).items():
        put_attr(dataset, key, text)
