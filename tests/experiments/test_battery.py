"""The battery's judges against closed forms, and its quick members: verdict, warnings and errors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import chi2

import pwgf

battery = pytest.importorskip("experiments.battery", reason="the experiments are not part of this installation")
references = pytest.importorskip("experiments.battery_references", reason="the experiments are not installed")
stiff_references = pytest.importorskip("experiments.stiff_references", reason="the experiments are not installed")

TIMES = (0.0, 0.3, 1.0)
QUICK = ("laplace1d", "ou_two_scales")


def moved(image):
    """A run whose samples are x = image(t, z)."""
    return SimpleNamespace(push=lambda t, z: torch.as_tensor(image(t, z.numpy())))


def shrunk(t, start):
    """The image of z ~ N(0, start) under the flow of ½x² and entropy."""
    return lambda z: z * np.sqrt(np.exp(-2 * t) + (1 - np.exp(-2 * t)) / start)


def test_an_exact_radial_run_has_no_error():
    judge = references.radial(
        stiff_references.Radial(2, lambda r: 0.5 * r**2, TIMES, tau=1.0, spread=0.5, cells=800, steps=100)
    )
    laws = judge.compute()
    for k in (1, 2):
        errors = judge.errors(moved(lambda t, z: shrunk(t, 0.25)(z)), k, laws)
        assert max(errors.values()) < 3e-4


def test_an_exact_product_has_no_error_and_a_shift_has_its_own():
    judge = references.product(stiff_references.Line(lambda x: 0.5 * x[:, 0] ** 2, TIMES, tau=1.0), 3)
    laws = judge.compute()
    assert max(judge.errors(moved(lambda t, z: z), 2, laws).values()) < 1e-4  # N(0, I) rests
    errors = judge.errors(moved(lambda t, z: z + np.array([0.06, 0.0, 0.0])), 2, laws)
    assert errors["w2"] == pytest.approx(0.06 / math.sqrt(3), rel=1e-3)
    assert errors["sliced"] == pytest.approx(0.06, rel=1e-2)
    assert errors["obs"] == pytest.approx(0.06, rel=1e-2)


def test_a_law_that_attracts_itself_has_its_mean_and_variance():
    """V = W = ½x²: m = m₀e^{−t}, and the variance tends to τ/2 at the rate 4."""
    tau, mean, spread = 0.5, 0.3, math.sqrt(0.5)
    judge = references.MeanField(lambda x: 0.5 * x[:, 0] ** 2, TIMES, tau=tau, mean=mean, spread=spread, steps=50)
    laws = judge.compute()

    def exact(t, z):
        variance = tau / 2 + (spread**2 - tau / 2) * np.exp(-4 * t)
        return mean * np.exp(-t) + (z - mean) * np.sqrt(variance) / spread

    for k in (1, 2):
        errors = judge.errors(moved(exact), k, laws)
        assert errors["w2"] < 1e-3
        assert errors["l1"] < 1e-3
        assert judge.errors(moved(lambda t, z: exact(t, z) + 0.02), k, laws)["w2"] > 0.02


def test_particles_allow_for_their_own_noise():
    start = pwgf.Gaussian(2)

    def particles(t):
        return torch.randn(20_000, 2, generator=torch.Generator().manual_seed(int(10 * t)), dtype=torch.float64)

    judge = references.Sampled(start, TIMES, particles)
    laws = judge.compute()
    for k in (1, 2):
        errors = judge.errors(moved(lambda t, z: z), k, laws)
        assert errors["share"] < 1
        assert 0 < errors["floor"] < 0.03
        assert judge.errors(moved(lambda t, z: z + 0.06), k, laws)["share"] > 1.5


def test_a_coulomb_gas_moves_by_the_mass_within_its_radius():
    """ṙ = −r + M(r₀)/r², integrated by scipy."""
    judge = battery.cases()["coulomb3d"].judge
    z = judge.reference.sample(20).numpy()
    assert judge.image(z, 0, {}) == pytest.approx(z)
    start = np.linalg.norm(z, axis=1)
    mass = chi2.cdf(start**2, 3)
    radius = solve_ivp(lambda t, r: mass / r**2 - r, (0, judge.times[3]), start, rtol=1e-10, atol=1e-12).y[:, -1]
    assert np.linalg.norm(judge.image(z, 3, {}), axis=1) == pytest.approx(radius, rel=1e-6)


def test_two_time_scales_each_reach_their_variance():
    """v̇ = 2 − 2kv, integrated by scipy."""
    judge = battery.cases()["ou_two_scales"].judge
    rate = np.array([1.0, 1e4])
    exact = solve_ivp(lambda t, v: 2 - 2 * rate * v, (0, judge.times[2]), [4.0, 4.0], method="LSODA", rtol=1e-9).y[
        :, -1
    ]
    assert judge.image(np.full((1, 2), 2.0), 2, {})[0] ** 2 == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("w2", "warned", "done", "found"),
    [
        (0.02, [], True, ("WRONG", "silent")),
        (0.02, ["off"], True, ("WRONG", "warned")),
        (0.005, ["off"], True, ("right", "false alarm")),
        (0.005, [], True, ("right", "–")),
        (0.005, [], False, ("stopped", "–")),
        (0.02, [], False, ("stopped", "silent")),
    ],
)
def test_verdicts_and_warnings(w2, warned, done, found, capsys):
    line = {
        "problem": "p", "seed": 0, "bounds": {"w2": 0.01}, "rows": [{"t": 1.0, "w2": w2, "error_95": 0.01}],
        "warned": warned, "error": None, "done": done, "right": done and w2 <= 0.01,
        "reached": 1.0, "end": 1.0, "cpu": 1.0,
    }  # fmt: skip
    line.update(verdict=battery.verdict(line), said=battery.said(line))
    assert (line["verdict"], line["said"]) == found
    battery.print_table([line])
    told = capsys.readouterr().out
    assert f"1 {found[0]}" in told
    assert f"error_95 above w2 in {int(w2 < 0.01)} of 1 rows" in told


def test_an_error_that_is_no_number_is_wrong():
    line = {"bounds": {"w2": 0.01, "obs": 0.01}, "rows": [{"w2": 0.001, "obs": math.nan}], "warned": [], "error": None}
    assert math.isnan(battery.missed(line, line["rows"][0])) and battery.said(line) == "silent"


def solved(name, monkeypatch, folder):
    """A run of the battery, stored and its law kept in the folder."""
    monkeypatch.setattr(battery, "FOLDER", folder)
    monkeypatch.setattr(stiff_references, "RESULTS", folder)
    return battery.solve(name, budget=math.inf)


def test_a_ball_under_diffusion_is_refused(monkeypatch, tmp_path):
    line = solved("heat_ball", monkeypatch, tmp_path)
    assert line["verdict"] == "refused"
    assert "jumps at the edge of this reference" in line["error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_the_answer_is_right_and_nothing_is_warned_of(name, monkeypatch, tmp_path):
    line = solved(name, monkeypatch, tmp_path)
    assert len(line["rows"]) == 5
    assert all(battery.missed(line, row) <= 1 for row in line["rows"])
    assert (line["verdict"], line["said"]) == ("right", "–"), line["warned"]
