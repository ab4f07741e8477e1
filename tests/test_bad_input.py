"""Misuse is told at the door, by the right error, in a message that says call, expected, got and cure."""

import math

import h5py
import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, NonFiniteError, PathError, PWGFError, SchemaError, ShapeError, StorageError

FREE = energies.Potential(lambda x: x.square().sum(-1) / 2) + energies.Entropy()


def scheme(energy=FREE, map=None, reference=None, **settings):
    settings = {"num_samples": 40, "num_eval": 40, **settings}
    return pwgf.PWGF(energy, map or maps.Affine(2), reference or pwgf.Gaussian(2), **settings)


def solve(energy=FREE, times=(0.0, 0.05), settings=None, **arguments):
    return pwgf.solve(scheme(energy, **(settings or {})), times, progress=False, **arguments)


# ---- times ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([], r"solve\(times=…\) must be a non-empty sequence of numbers; got shape \(0,\)\. E\.g\. torch\.linspace"),
        (3.0, r"non-empty sequence of numbers; got shape \(\)"),
        (None, "sequence of numbers"),
        ([[0, 1]], r"non-empty sequence of numbers; got shape \(1, 2\)"),
        ("now", "must be a sequence of numbers; got 'now'"),
        (torch.zeros(2, device="meta"), "must be a sequence of numbers; got tensor"),
        ([0, 0], "must increase strictly; got 0 followed by 0. Sort them and drop repeats"),
        ([0, 2, 1], "must increase strictly; got 2 followed by 1"),
        ([0, math.nan], "must be finite; got nan at position 1"),
        ([-math.inf, 0], "must be finite; got -inf at position 0"),
    ],
)
def test_times(times, message):
    with pytest.raises(ConfigError, match=message):
        solve(times=times)


def test_times_of_evolve():
    moving = scheme()
    with pytest.raises(ConfigError, match=r"evolve\(times=…\) must increase strictly"):
        next(pwgf.evolve(moving, moving.start(), [1.0, 0.0]))


def test_states_of_evolve():
    with pytest.raises(ConfigError, match=r"evolve\(scheme, state, times\) needs a State.*got Tensor\. Give evolve"):
        next(pwgf.evolve(scheme(), torch.zeros(6), [1.0]))


@pytest.mark.parametrize("problem", ["x", 0, energies.Potential])
def test_what_is_no_problem(problem):
    with pytest.raises(ConfigError, match=r"solve\(problem=…\) needs a problem with to_config\(\).*got .*leave it out"):
        solve(problem=problem)


@pytest.mark.parametrize("path", [3, b"", "", "a\0b", ["run.h5"]])
def test_what_is_no_path(path):
    with pytest.raises(PathError, match=r"solve\(out=…\) needs a path.*got .*Give e\.g\. 'results/run\.h5'"):
        solve(out=path)
    with pytest.raises(PathError, match=r"load\(path\) needs a path"):
        pwgf.load(path)


def test_no_path_to_load():
    with pytest.raises(PathError, match=r"load\(path\) needs a path; got NoneType"):
        pwgf.load(None)


@pytest.mark.parametrize("max_cost", ["1 %", 0, 2.0, True])
def test_what_is_no_share_of_the_run_time(tmp_path, max_cost):
    with pytest.raises(
        ConfigError, match=r"max_cost=…\) needs a fraction in \(0, 1\] or None; got .*Give 0\.01 for 1 %"
    ):
        solve(out=tmp_path / "run.h5", max_cost=max_cost)
    assert not any(tmp_path.iterdir())


# ---- a user's V -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("V", "error", "message"),
    [
        (
            lambda x: x,
            ShapeError,
            r"V\(x\) must return shape \(40,\) for .*\(40, 2\).*; got \(40, 2\)\. Cure: .*\.sum\(-1\)",
        ),
        (
            lambda x: x.sum(-1, keepdim=True),
            ShapeError,
            r"must return shape \(40,\).*got \(40, 1\)\. Cure: sum over the last",
        ),
        (lambda x: x.sum(), ShapeError, r"must return shape \(40,\).*got \(\)\. Cure: return one value per sample"),
        (lambda x: 1.0, ShapeError, r"must return a torch tensor of shape \(40,\).*got float.*one value per sample"),
        (lambda x: None, ShapeError, "must return a torch tensor.*got NoneType"),
        (lambda x: np.zeros(len(x)), ShapeError, "must return a torch tensor.*got ndarray. Use torch operations"),
        (lambda x: torch.from_numpy(np.sin(x.numpy())).sum(-1), ConfigError, r"V\(x\) failed on .*no NumPy inside"),
        (lambda x: x.detach().square().sum(-1), ConfigError, "has no gradient: it is not differentiable.*no .detach"),
        (lambda x: x.round().sum(-1), ConfigError, "has no gradient: it is not differentiable"),
        (lambda x, *, y: x.sum(-1), ConfigError, r"V\(x\) failed on .*TypeError.*missing 1 required keyword-only"),
        (lambda x, y: x.sum(-1), ConfigError, r"V\(x\); got a function of 2 arguments.*Potential\(V, time=True\)"),
        (
            lambda x: x.float().sum(-1),
            ConfigError,
            r"returned torch.float32 on cpu for .*torch.float64.*captured\.to\(x\)",
        ),
        (
            lambda x: x @ torch.ones(2),
            ConfigError,
            r"V\(x\) failed on .*must have the input's dtype and device: captured\.to",
        ),
        (lambda x: torch.ones(len(x), dtype=torch.long), ConfigError, "returned torch.int64"),
        (
            lambda x: x.sum(-1) * math.nan,
            NonFiniteError,
            "term 'potential' is NaN or infinite at 40 of 40 samples at t = 0",
        ),
        (
            lambda x: x.sum(-1).sqrt(),
            NonFiniteError,
            r"term 'potential' .* first at x = \(.*Causes: \(a\).*check it at this x",
        ),
        (
            lambda x: torch.where(x[:, 0] > 0, x[:, 1], math.nan),
            NonFiniteError,
            r"energy is nan at the start \(term 'potential'\)",
        ),
    ],
)
def test_what_V_may_not_do(V, error, message):
    with pytest.raises(error, match=message):
        solve(energies.Potential(V) + energies.Entropy())


def test_another_device_inside_V():
    weight = torch.ones(2, dtype=torch.float64, device="meta")
    with pytest.raises(ConfigError, match=r"V\(x\) (failed|returned) .*meta.*captured\.to\(x\)"):
        solve(energies.Potential(lambda x: (x * weight).sum(-1)))


def test_a_float64_tensor_inside_V_of_a_float32_run():
    weight = torch.ones(2, dtype=torch.float64)
    with pytest.raises(
        ConfigError, match=r"V\(x\) returned torch.float64 on cpu for .*torch.float32.*captured\.to\(x\)"
    ):
        solve(energies.Potential(lambda x: (x * weight).sum(-1)), settings={"dtype": torch.float32})


def test_a_constant_V_is_legal():
    """Nothing moves; with entropy the flow is the heat equation, var 1 + 2t."""
    still = solve(energies.Potential(lambda x: torch.ones_like(x[:, 0])), [0.0, 1.0])
    assert np.array_equal(still["theta"][0], still["theta"][1])
    heat = solve(energies.Potential(lambda x: torch.ones_like(x[:, 0])) + energies.Entropy(), [0.0, 1.0])
    assert heat["theta"][1].reshape(2, 3)[:, :2] == pytest.approx(math.sqrt(3) * np.eye(2), abs=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: energies.Potential(3), r"Potential\(V\) needs a function of a tensor; got int 3"),
        (lambda: energies.Interaction(None), r"Interaction\(W\) needs a function"),
        (lambda: energies.PorousMedium(1), r"PorousMedium\(m\) must be positive and not 1 .*use Entropy"),
        (lambda: scheme(lambda x: x.sum(-1)), r"PWGF\(energy=…\) must be an energy .*energies\.Potential\(V\)"),
        (lambda: scheme(map=torch.nn.Linear(2, 2)), r"PWGF\(map=…\) must be a map .*maps\.FromModule\(module, dim\)"),
        (lambda: scheme(reference=3), r"PWGF\(reference=…\) must be a measures\.Reference, such as"),
        (lambda: scheme(map=maps.Affine(3)), r"same dimension; got map\.dim = 3 and reference\.dim = 2"),
    ],
)
def test_wrong_members(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"integrator": pwgf.FixedStep("rk4", 0.1), "tolerance": 1e-3},
            r"tolerance=…\) needs an adaptive integrator; got integrator=FixedStep\('rk4', …\).*use integrator='auto'",
        ),
        ({"integrator": "rk4"}, r"integrator='rk4'\) takes fixed steps and needs .*integrate\.FixedStep\('rk4', dt\)"),
        ({"integrator": "bosh"}, r"integrator='bosh'\) is unknown; there are auto, .*dopri8\. Did you mean 'bosh3'\?"),
        ({"tolerance": -1e-3}, r"PWGF\(tolerance=…\) must be a number in \(0, inf\); got -0\.001"),
        (
            {"integrator": pwgf.Implicit(dt=0.1), "tolerance": 1e-3},
            r"tolerance=…\) needs an adaptive integrator; got Implicit\(dt=0\.1\), which takes fixed steps",
        ),
        (
            {"integrator": "implicit", "form": "gradient"},
            r"form='gradient'\) has no velocity for implicit steps; use integrator='explicit'",
        ),
        ({"integrator": pwgf.Implicit}, r"integrator=…\) must be a name or an integrator such as .*; got <class"),
        ({"solver": "lsmrr"}, r"solver=…\) needs one of .*; got 'lsmrr'\. Did you mean 'lsmr'\?"),
        ({"solver": 3}, r"solver=…\) needs one of .* or a solver; got 3"),
        ({"damping": -1e-6}, r"PWGF\(damping=…\) must be a number in \[0, inf\); got -1e-06"),
        ({"damping": math.nan}, r"PWGF\(damping=…\) must be a number in \[0, inf\); got nan"),
        ({"momentum": 1.5}, r"PWGF\(momentum=…\) must be a number in \[0, 1\]; got 1\.5"),
        ({"num_samples": 0}, r"PWGF\(num_samples=…\) must be an integer ≥ 1; got 0"),
        ({"num_samples": 10.0}, r"PWGF\(num_samples=…\) must be an integer ≥ 1; got 10\.0"),
        ({"num_eval": 0}, r"PWGF\(num_eval=…\) must be an integer ≥ 1; got 0"),
        ({"chunk_size": 0}, r"PWGF\(chunk_size=…\) must be an integer ≥ 1; got 0"),
        ({"form": "grad"}, r"form='grad'\) must be 'velocity' or 'gradient'\. Did you mean 'gradient'\?"),
        ({"dtype": torch.float16}, r"dtype=…\) must be torch\.float64 or torch\.float32; got torch\.float16"),
        ({"device": "gpu"}, r"PWGF\(device=…\) must be 'cpu' or 'cuda'; got 'gpu'"),
        ({"theta0": torch.zeros(3)}, r"theta0=…\) must have shape \(6,\) for this map; got \(3,\).*map\.initial\(\)"),
        ({"theta0": torch.full((6,), math.nan)}, r"theta0=…\) must be finite"),
        ({"theta0": "zeros"}, r"theta0=…\) must be a tensor like map\.initial\(\); got str"),
    ],
)
def test_settings_of_pwgf(settings, message):
    with pytest.raises(ConfigError if "shape" not in message else ShapeError, match=message):
        scheme(**settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there():
    with pytest.raises(ConfigError, match=r"PWGF\(device='cuda'\) needs a CUDA device, and torch finds none here"):
        scheme(device="cuda")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: maps.ResidualMLP(2, width=0), ConfigError, r"ResidualMLP\(width=…\) must be an integer ≥ 1; got 0"),
        (lambda: maps.ResidualMLP(2, depth=0), ConfigError, r"ResidualMLP\(depth=…\) must be an integer ≥ 1; got 0"),
        (lambda: maps.Affine(0), ConfigError, r"Affine\(dim\).* dim must be an integer ≥ 1; got 0"),
        (
            lambda: pwgf.Gaussian(2, cov=[[1.0, 2.0], [2.0, 1.0]]),
            ConfigError,
            "positive definite; its smallest eigenvalue is -1",
        ),
        (lambda: pwgf.Gaussian(2, cov=[[1.0, 2.0], [0.0, 1.0]]), ConfigError, "not symmetric. Use"),
        (lambda: pwgf.Gaussian(2, cov=-1.0), ConfigError, "positive definite"),
        (lambda: pwgf.Gaussian(2, cov=torch.eye(3)), ShapeError, r"cov must be .*\(2, 2\).*; got \(3, 3\)"),
        (lambda: pwgf.Gaussian(2, mean=[1.0, 2.0, 3.0]), ShapeError, r"mean must be .*\(2,\).*; got \(3,\)"),
        (lambda: pwgf.Barenblatt(2, m=1, t=1), ConfigError, "must be > 1 .*use Gaussian"),
    ],
)
def test_settings_of_maps_and_references(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, r"solve\(seed=…\) must be an integer in \[0, 2⁶³\); got -1"),
        ({"seed": 0.5}, r"solve\(seed=…\) must be an integer"),
        (
            {"callbacks": print},
            r"callbacks=…\) needs a list of functions f\(state, info\); got builtin_function.*callbacks=\[f\]",
        ),
        ({"callbacks": [3]}, r"callbacks=…\) needs a list of functions .*; got a list with int"),
        ({"checkpoint_seconds": 0}, r"checkpoint_seconds=…\) must be a positive number; got 0"),
        ({"resume": True}, r"resume=True\) needs the file to resume: solve\(…, out="),
    ],
)
def test_arguments_of_solve(arguments, message):
    with pytest.raises(ConfigError, match=message):
        solve(**arguments)


def test_a_scheme_that_is_none():
    for other in (FREE, pwgf.PWGF):
        with pytest.raises(ConfigError, match=r"solve\(scheme=…\) needs a scheme, .*Make one: pwgf\.PWGF\(energy"):
            pwgf.solve(other, [0.0, 1.0])


def test_a_start_at_another_time():
    with pytest.raises(
        ConfigError, match=r"start=…\) is a state at t = 1, but times begin at 0; let times\[0\] = start\.t"
    ):
        solve(start=scheme().start(t=1.0))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: 3, ConfigError, r"start=…\) needs a State, such as run\.state\(\) .*; got int.*PWGF\(theta0=…\)"),
        (lambda: torch.zeros(6), ConfigError, r"start=…\) needs a State, .*; got Tensor"),
        (
            lambda: scheme(map=maps.ResidualMLP(2, width=4)).start(),
            ShapeError,
            r"must have shape \(6,\) for this scheme; got \(122,\) and \(122,\)\. Take the state from a run",
        ),
    ],
)
def test_a_start_of_another_kind(make, error, message):
    with pytest.raises(error, match=message):
        solve(start=make())


def test_a_start_is_cast_to_the_dtype_of_the_scheme():
    run = solve(start=scheme().start(), settings={"dtype": torch.float32})
    assert run.state().theta.dtype == torch.float32


# ---- energies of density --------------------------------------------------------------------------------------------


class Squeeze(torch.nn.Module):
    """(z₁+z₂)·(a₁, a₂): rank one, whatever a."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(2))

    def forward(self, z):
        return z.sum(-1, keepdim=True) * self.a


@pytest.mark.parametrize("energy", [FREE, energies.PorousMedium(2), energies.KL(lambda x: -x.square().sum(-1))])
def test_a_map_without_density(energy):
    with pytest.raises(
        NonFiniteError, match=r"det ∂_zT = 0 at 40 of 40 .*first at z = \(.*no density.*use maps\.ResidualMLP"
    ):
        solve(energy, settings={"map": maps.FromModule(Squeeze(), 2)})


class Folded(torch.nn.Module):
    """(a z₁², z₂): det = 2 a z₁ changes its sign at z₁ = 0."""

    def __init__(self, bend=1.0):
        super().__init__()
        self.a = torch.nn.Parameter(torch.ones(1))
        self.bend = bend

    def forward(self, z):
        return torch.stack([self.a * (z[:, 0] ** 2 if self.bend else -z[:, 0]), z[:, 1]], dim=1)


@pytest.mark.parametrize("energy", [FREE, energies.PorousMedium(2), energies.KL(lambda x: -x.square().sum(-1))])
def test_a_module_that_folds_space(energy):
    map = maps.FromModule(Folded(), 2)
    with pytest.raises(
        ConfigError, match=r"not invertible at its start: det ∂_zT ≤ 0 at \d+ of 40 .*first at z = \(-.*residual=True"
    ):
        solve(energy, settings={"map": map})
    solve(energies.Potential(lambda x: x.square().sum(-1)), settings={"map": map})  # no density, no matter
    solve(settings={"map": maps.FromModule(Folded(), 2), "theta0": torch.ones(1)})  # the user's own start
    solve(settings={"map": maps.FromModule(Folded(bend=0), 2)})  # turns space over, but is invertible


def test_particles_without_density():
    with pytest.raises(ConfigError, match="particles have no density, which PorousMedium needs.*Use scheme PWGF"):
        pwgf.EulerMaruyama(energies.PorousMedium(2), pwgf.Gaussian(2), num_samples=10, dt=0.1)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a run")
    return path


def test_out_that_exists(text):
    with pytest.raises(PathError, match=r"a run is there already\. .*resume=True.*overwrite=True.*another path"):
        solve(out=text)
    assert text.read_text() == "not a run"


def test_out_that_is_a_folder(tmp_path):
    with pytest.raises(PathError, match=r"expected a file, got a folder\. Give a path in it"):
        solve(out=tmp_path)


@pytest.mark.parametrize("where", ["below a file", "/proc/no-such-place/run.h5"])
def test_out_that_cannot_be_written(text, where):
    out = text / "run.h5" if where == "below a file" else where
    with pytest.raises(PathError, match="expected a place where files can be made.*give another path"):
        solve(out=out)


def test_nothing_is_computed_before_a_bad_path_is_told(text, monkeypatch):
    monkeypatch.setattr(pwgf.PWGF, "step", lambda *_: pytest.fail("a step was made"))
    monkeypatch.setattr(pwgf.PWGF, "measure", lambda *_: pytest.fail("a row was measured"))
    with pytest.raises(PathError):
        solve(out=text)


def test_resume_of_a_text_file(text):
    with pytest.raises(SchemaError, match="it is no HDF5 file"):
        solve(out=text, resume=True)
    assert text.read_text() == "not a run"


def test_load_of_a_missing_file(tmp_path):
    with pytest.raises(PathError, match=r"opening '.*no\.h5': no such file; expected a run\. Check the path") as caught:
        pwgf.load(tmp_path / "no.h5")
    for kind in (PWGFError, ConfigError, StorageError, ValueError, OSError):
        assert isinstance(caught.value, kind)


def test_load_of_a_folder(tmp_path):
    with pytest.raises(PathError, match="expected a file, got a folder"):
        pwgf.load(tmp_path)


def test_load_of_a_text_file(text):
    with pytest.raises(SchemaError, match="expected a trajectory written by pwgf, but it is no HDF5 file"):
        pwgf.load(text)


def test_load_of_a_foreign_hdf5_file(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["t"] = [0.0, 1.0]
    with pytest.raises(SchemaError, match="an HDF5 file of something else .*no attribute pwgf_schema"):
        pwgf.load(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"map": maps.Affine(2)}, ShapeError, r"load\(map=…\): the run has 122 parameters; got a map with 6\. Give"),
        (
            {"map": maps.ResidualMLP(3, 4)},
            ShapeError,
            r"load\(map=…\): the run has dimension 2; got a map .* dim = 3",
        ),
        ({"map": "residual"}, ConfigError, r"load\(map=…\) must be the map that the run was solved with; got str"),
        ({"reference": pwgf.Gaussian(3)}, ShapeError, r"load\(reference=…\): the run has dimension 2; got .* dim = 3"),
        ({"reference": 1}, ConfigError, r"load\(reference=…\) must be the reference that .*; got int"),
    ],
)
def test_load_with_a_map_or_reference_of_another_run(tmp_path, given, error, message):
    pwgf.solve(scheme(map=maps.ResidualMLP(2, width=4)), [0.0], out=tmp_path / "run.h5", progress=False)
    with pytest.raises(error, match=message):
        pwgf.load(tmp_path / "run.h5", **given)


@pytest.mark.parametrize("dtype", [torch.int32, "float64"])
def test_a_dtype_of_particles_that_is_no_float(dtype):
    with pytest.raises(ConfigError, match=r"EulerMaruyama\(dtype=…\) must be torch\.float64 or torch\.float32; got"):
        pwgf.EulerMaruyama(FREE, pwgf.Gaussian(2), num_samples=10, dt=0.1, dtype=dtype)


def test_an_integrator_that_is_no_text():
    with pytest.raises(ConfigError, match=r"PWGF\(integrator=…\) must be a name or an integrator .*; got \['rk4'\]"):
        scheme(integrator=["rk4"])


def test_every_error_is_one_family():
    for kind in (ConfigError, ShapeError, NonFiniteError, StorageError, SchemaError, PathError):
        assert issubclass(kind, PWGFError)
    assert issubclass(ShapeError, ValueError)
