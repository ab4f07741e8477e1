"""JKO steps by convex potentials against exact JKO steps: Gaussian, one-dimensional, self-similar, contracting."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import solveh_banded

import pwgf
from pwgf import cli, energies, maps, problems, schemes
from pwgf.errors import ConfigError, NonFiniteError, ShapeError, SolverError
from pwgf.schemes.jko import QuadraticICNN
from pwgf.schemes.jko.inner import exact_log_det, stochastic_log_det
from pwgf.study.accuracy import errors
from tests.run.helpers import assert_same_rows

H = 0.1
TIMES = np.arange(6) * H
COV = [[0.5, 0.2], [0.2, 0.3]]
MEAN = [1.0, -0.5]
SMALL = {"width": 8, "num_samples": 64, "num_batches": 2, "num_eval": 128, "max_iterations": 30}


def spring(x):
    return 2 * (x - 1).square().sum(-1)


def small(energy=None, reference=None, **settings):
    """A scheme whose steps are cheap; not a good minimisation."""
    energy = energies.Potential(spring) + energies.Entropy() if energy is None else energy
    return pwgf.JKOICNN(energy, reference or pwgf.Gaussian(2), **{"h": H, **SMALL, **settings})


@pytest.fixture(scope="module")
def problem():
    return problems.OrnsteinUhlenbeck(2, cov=COV, mean=MEAN)


@pytest.fixture(scope="module")
def run(problem):
    scheme = pwgf.JKOICNN(problem.energy, problem.reference, h=H, width=16, num_samples=256, num_batches=8)
    return pwgf.solve(scheme, TIMES, progress=False)


# ---- exact steps ----------------------------------------------------------------------------------------------------


def gaussian_jko(h, steps):
    """Law of the exact scheme for V = ½(x−b)ᵀΣ⁻¹(x−b), temperature 1, from N(0, I).

    In an eigen-direction of Σ with variance w the objective is ½(m'−m)² + ½(s'−s)² + h[((m'−b)² + s'²)/(2w) − log s'].
    """
    w, q = np.linalg.eigh(np.array(COV))
    b, m, s = q.T @ np.array(MEAN), np.zeros(2), np.ones(2)
    a = 1 / h + 1 / w
    for _ in range(steps):
        m, s = (m / h + b / w) / a, (s / h + np.sqrt((s / h) ** 2 + 4 * a)) / (2 * a)
    return q @ m, (q * s**2) @ q.T


def sym_kl(mean, cov, mean2, cov2):
    """KL + KL of two Gaussians."""
    first, second, shift = np.linalg.inv(cov), np.linalg.inv(cov2), mean2 - mean
    traces = np.trace(second @ cov) + np.trace(first @ cov2) - 2 * len(mean)
    return 0.5 * (traces + shift @ (first + second) @ shift)


class _ExactSteps(problems.OrnsteinUhlenbeck):
    """The problem with the law of exact JKO steps in place of the flow's."""

    def exact(self, t):
        mean, cov = (torch.tensor(part) for part in gaussian_jko(H, round(t / H)))
        cov = (cov + cov.T) / 2
        return pwgf.Gaussian(2, mean, cov)


def test_gaussian_steps_are_the_exact_ones(run, problem):
    """The law is much nearer to that of exact steps than those are to the flow; to the flow, within 3 times of them."""
    ours = errors(run, _ExactSteps(2, cov=COV, mean=MEAN), n=1000, rows=[2, 5])["sym_kl"]
    total = errors(run, problem, n=1000, rows=[2, 5])["sym_kl"]
    for k, own, error in zip((2, 5), ours, total, strict=True):
        law = problem.exact(k * H)
        floor = sym_kl(*gaussian_jko(H, k), law.mean().numpy(), law.cov().numpy())
        assert own < floor / 3
        assert error < 3 * floor


def test_the_energy_falls_and_is_that_of_exact_steps(run, problem):
    assert (np.diff(run["energy"]) < 1e-3).all()
    precision = np.linalg.inv(np.array(COV))
    for k in (0, 1, 5):
        mean, cov = gaussian_jko(H, k)
        shift = mean - np.array(MEAN)
        potential = 0.5 * (shift @ precision @ shift + np.trace(precision @ cov))
        entropy = -0.5 * (2 * math.log(2 * math.pi * math.e) + np.linalg.slogdet(cov)[1])
        assert run["energy"][k] == pytest.approx(potential + entropy, abs=0.01)
        assert run["energy"][k] == pytest.approx(run["energy_potential"][k] + run["energy_entropy"][k])


def quantile_jko(V, dV, h, steps, n=1001, end=6.0):
    """Exact steps in one dimension from N(0,1): Newton on the increasing map X(z) over a grid of z, weights φ(z)dz."""
    z = np.linspace(-end, end, n)
    dz = z[1] - z[0]
    at, between = (np.exp(-(y**2) / 2) / math.sqrt(2 * math.pi) * dz for y in (z, (z[1:] + z[:-1]) / 2))

    def value(y, x):
        gaps = np.diff(y)
        if (gaps <= 0).any():
            return math.inf
        return at @ ((y - x) ** 2 / 2 + h * V(y)) - h * between @ np.log(gaps)

    x = z.copy()
    for _ in range(steps):
        y = x.copy()
        for _ in range(50):
            pull, stiff = h * between / np.diff(y), h * between / np.diff(y) ** 2
            slope = at * (y - x + h * dV(y))
            slope[1:] -= pull
            slope[:-1] += pull
            bands = np.zeros((2, n))
            bands[1] = at
            bands[1, 1:] += stiff
            bands[1, :-1] += stiff
            bands[0, 1:] = -stiff
            way, share = solveh_banded(bands, -slope), 1.0
            while value(y + share * way, x) > value(y, x) + 1e-4 * share * (slope @ way) and share > 1e-9:
                share /= 2
            y = y + share * way
        x = y
    mean = at @ x
    energy = at @ V(x) - between @ np.log(np.diff(x) / dz) - 0.5 * math.log(2 * math.pi * math.e)
    return mean, at @ (x - mean) ** 2, energy


def test_one_dimensional_steps_are_the_exact_ones():
    """Double well at temperature 1, where the law is no Gaussian."""

    def V(x):
        return x**4 / 4 - x**2 + 0.3 * x

    energy = energies.Potential(lambda x: V(x).sum(-1)) + energies.Entropy()
    scheme = pwgf.JKOICNN(energy, pwgf.Gaussian(1), h=H, width=16, num_samples=512, num_batches=4)
    run = pwgf.solve(scheme, TIMES[:5], progress=False)
    mean, var, value = quantile_jko(V, lambda x: x**3 - 2 * x + 0.3, H, 4)
    x = run.sample(TIMES[4], 20_000)
    noise = math.sqrt(var / 20_000)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * noise + 0.01)
    assert float(x.var()) == pytest.approx(var, rel=0.05)
    assert run["energy"][-1] == pytest.approx(value, abs=0.01)


def test_porous_medium_steps_keep_the_profile():
    """From a Barenblatt law each step is x ↦ ax, a the minimiser of ½(a−1)²E|x|² + hF a^{−d(m−1)}; M and F follow a."""
    dim, m, h = 2, 2.0, 0.2
    reference = pwgf.Barenblatt(dim, m, 1.0)
    # F = E ρ^{m−1}/(m−1), E over the law itself: 1 − k|x|²/C is Beta distributed with mean (q+1)/(q+1+d/2)
    energy = reference.C * (reference.q + 1) / (reference.q + 1 + dim / 2) / (m - 1)
    second = reference.second_moment
    scheme = small(energies.PorousMedium(m), reference, h=h, num_samples=512, num_eval=2048, max_iterations=300)
    run = pwgf.solve(scheme, [0.0, h, 2 * h], progress=False)
    for k in range(3):
        assert run["second_moment"][k] == pytest.approx(second, rel=0.03)
        assert run["energy"][k] == pytest.approx(energy, rel=0.03)
        stiff, low, high = h * dim * (m - 1) * energy, 1.0, 3.0
        for _ in range(60):
            a = (low + high) / 2
            low, high = (a, high) if (a - 1) * second < stiff * a ** (-dim * (m - 1) - 1) else (low, a)
        second, energy = second * a**2, energy * a ** (-dim * (m - 1))


def test_interaction_steps_contract_about_the_mean():
    """W = ½k|x|²: F = ½k·var on n samples over n−1 pairs, so a step divides deviations by 1 + hk·n/(n−1)."""
    strength, n = 3.0, 64
    kernel = energies.RadialPolynomial(quadratic=strength / 2)
    scheme = small(energies.Interaction(kernel), pwgf.Gaussian(2, mean=1.0), max_iterations=300)
    run = pwgf.solve(scheme, [0.0, H], progress=False)
    z = pwgf.Gaussian(2, mean=1.0).sample(500, torch.Generator().manual_seed(1))
    expected = 1 + (z - 1) / (1 + H * strength * n / (n - 1))
    assert float((run.push(H, z) - expected).square().sum(1).mean().sqrt()) < 0.02


@pytest.mark.slow
def test_a_ring_forms():
    """W = |x|⁴/4 − |x|²/2 in the plane: the limit is the circle of radius 1/√3, F = −1/12 (Carrillo, Huang 2017)."""
    problem = problems.Aggregation(2)
    scheme = pwgf.JKOICNN(problem.energy, problem.reference, h=0.5, num_samples=512, num_batches=4)
    run = pwgf.solve(scheme, np.arange(0, 8.1, 0.5), progress=False)
    radius = run.sample(8.0, 2000).norm(dim=1)
    assert float(radius.median()) == pytest.approx(1 / math.sqrt(3), abs=0.02)
    assert run["energy"][-1] == pytest.approx(-1 / 12, abs=2e-3)
    assert (np.diff(run["energy"]) < 1e-3).all()


@pytest.mark.parametrize("make", [maps.ConvexRidge, lambda dim, width: maps.ConvexMax(dim, groups=width // 2, size=2)])
def test_other_convex_families_serve(make):
    """Implicit Euler of the mean: m ← (m + 4h)/(1 + 4h) from 0."""
    run = pwgf.solve(small(map=make(2, width=8), max_iterations=100, patience=20), [0.0, H], progress=False)
    assert run.sample(H, 4000).mean(0).numpy() == pytest.approx(4 * H / (1 + 4 * H), abs=0.05)


TARGET = [
    energies.KL(lambda x: -spring(x)),
    energies.Local(lambda x, log_rho: spring(x) + log_rho),
    energies.Functional(lambda rho: (spring(rho.x) + rho.log_density).mean()),
    energies.Potential(spring) + energies.InternalEnergy(lambda rho: rho * rho.log()),
]


@pytest.mark.parametrize("energy", TARGET, ids=lambda energy: type(energy).__name__)
def test_one_energy_written_in_many_ways(energy):
    plain = pwgf.solve(small(), [0.0, H], progress=False)
    other = pwgf.solve(small(energy), [0.0, H], progress=False)
    torch.testing.assert_close(other.theta(H), plain.theta(H), rtol=1e-6, atol=1e-8)
    assert other["energy"] == pytest.approx(plain["energy"])


@pytest.mark.parametrize("temperature", [0.0, 0.25])
def test_any_temperature(temperature):
    """Variance of a step for V = 2|x − 1|²: s' = (s + √(s² + 4hτ(1 + 4h)))/(2(1 + 4h)), at τ = 0 s/(1 + 4h)."""
    energy = energies.Potential(spring) + temperature * energies.Entropy()
    run = pwgf.solve(small(energy, max_iterations=200), [0.0, H], progress=False)
    s = (1 + math.sqrt(1 + 4 * H * temperature * (1 + 4 * H))) / (2 * (1 + 4 * H))
    assert float(run.sample(H, 4000).std()) == pytest.approx(s, rel=0.05)


# ---- reading --------------------------------------------------------------------------------------------------------


def test_between_rows_samples_move_on_straight_lines(run):
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before, after = run.push(2 * H, z), run.push(3 * H, z)
    torch.testing.assert_close(run.push(2.25 * H, z), before + 0.25 * (after - before))
    assert torch.equal(run.push(0.0, z), z)


@pytest.mark.parametrize("t", [0.0, 3 * H, 3.4 * H])
def test_the_density_is_that_of_the_samples(run, t):
    """log ρ_t(T(z)) = log λ(z) − log|det ∂T(z)| with ∂T of the whole chain by differences; the score by differences."""
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x, step = run.push(t, z), 1e-5 * torch.eye(2, dtype=torch.float64)
    columns = [(run.push(t, z + e) - run.push(t, z - e)) / 2e-5 for e in step]
    volume = torch.linalg.slogdet(torch.stack(columns, 2)).logabsdet
    expected = pwgf.Gaussian(2).log_density(z) - volume
    torch.testing.assert_close(run.log_density(t, x), expected, rtol=1e-6, atol=1e-6)
    slopes = [(run.log_density(t, x + e) - run.log_density(t, x - e)) / 2e-5 for e in step]
    torch.testing.assert_close(run.score(t, x), torch.stack(slopes, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", ["cached", "redrawn", "fresh"])
def test_resume_is_exact_to_the_bit(samples, tmp_path):
    settings = {"samples": samples, "log_det": "stochastic", "dtype": torch.float32}
    whole = pwgf.solve(small(**settings), TIMES[:4], seed=2, progress=False)
    out = tmp_path / "run.h5"

    def die(state, info):
        if state.counters["num_steps"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pwgf.solve(small(**settings), TIMES[:4], seed=2, progress=False, out=out, callbacks=[die])
    assert len(pwgf.load(out)) == 3
    again = pwgf.solve(small(**settings), TIMES[:4], seed=2, progress=False, out=out, resume=True)
    assert_same_rows(again, whole)
    read = pwgf.load(out)
    assert torch.equal(read.sample(2.5 * H, 50), whole.sample(2.5 * H, 50))
    assert read.sample(H, 5).dtype == torch.float32


def test_a_run_is_described_by_its_scheme(tmp_path, capsys):
    out = tmp_path / "run.h5"
    pwgf.solve(small(max_iterations=1), [0.0, H], out=out, progress=False)
    cli.main(["info", str(out)])
    said = capsys.readouterr().out
    assert "JKOICNN with QuadraticICNN" in said
    assert "1 inner iterations" in said


def test_another_map_does_not_read_the_file(tmp_path):
    out = tmp_path / "run.h5"
    pwgf.solve(small(max_iterations=1), [0.0, H], out=out, progress=False)
    with pytest.raises(ShapeError, match=r"load\(map=…\): the run has \d+ parameters; got a map with \d+"):
        pwgf.load(out, map=QuadraticICNN(2, width=9))
    config = pwgf.load(out).config
    config = {**config, "scheme": {**config["scheme"], "map": maps.Affine(2).to_config()}}
    with pytest.raises(ConfigError, match="needs its own family of convex gradients, Affine, to be read; got Affine"):
        schemes.replay(config)


def test_fresh_samples_lead_to_the_same_law():
    scheme = small(samples="fresh", num_samples=256, max_iterations=150)
    run = pwgf.solve(scheme, TIMES[:3], progress=False)
    mean = 1 - 1 / (1 + 4 * H) ** 2
    assert run.sample(2 * H, 4000).mean(0).numpy() == pytest.approx(mean, abs=0.05)


def test_a_step_changes_nothing_and_repeats():
    one = small()
    state = one.start(2)
    before = {name: value.clone() for name, value in state.extra.items()}
    first, second = one.step(state, H)[0], one.step(state, H)[0]
    assert torch.equal(first.theta, second.theta)
    assert not torch.equal(first.theta, state.theta)
    assert all(torch.equal(state.extra[name], value) for name, value in before.items())


def test_the_last_step_may_be_shorter():
    run = pwgf.solve(small(max_iterations=200), [0.0, H / 2], progress=False)
    assert run.sample(H / 2, 4000).mean(0).numpy() == pytest.approx(2 * H / (1 + 2 * H), abs=0.05)


# ---- the log determinant --------------------------------------------------------------------------------------------


def test_the_stochastic_log_det_is_unbiased(monkeypatch):
    """Averaged over all 2³ sign vectors, value and gradient are the exact ones: three Lanczos steps span R³."""
    map = QuadraticICNN(3, width=6, rank=2)
    theta = map.initial(1) + 0.3 * torch.rand(map.num_params, generator=torch.Generator().manual_seed(1)).double()
    leaf = theta.requires_grad_(True)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = exact_log_det(map, leaf, x)[1]
    assert torch.allclose(exact, torch.logdet(map.jacobian(leaf, x)))
    drawn = iter([torch.tensor([bits]).expand(4, 3) for bits in itertools.product((0, 1), repeat=3)])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(drawn))
    estimate = stochastic_log_det(torch.Generator())
    mean = torch.stack([estimate(map, leaf, x)[1] for _ in range(8)]).mean(0)
    torch.testing.assert_close(mean, exact, rtol=1e-10, atol=1e-10)
    slopes = [torch.autograd.grad(value.sum(), leaf)[0] for value in (mean, exact)]
    torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)


# ---- what cannot work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"h": 0.0}, r"JKOICNN\(h=…\) must be a number in \(0, inf\); got 0\.0"),
        ({"h": -1.0}, r"JKOICNN\(h=…\) must be a number in \(0, inf\)"),
        ({"width": 0}, r"QuadraticICNN\(width=…\) must be an integer ≥ 1; got 0"),
        ({"rank": 0}, r"QuadraticICNN\(rank=…\) must be an integer ≥ 1; got 0"),
        ({"num_samples": 0}, r"JKOICNN\(num_samples=…\) must be an integer ≥ 1"),
        ({"num_batches": 0}, r"JKOICNN\(num_batches=…\) must be an integer ≥ 1"),
        ({"num_decays": -1}, r"JKOICNN\(num_decays=…\) must be an integer ≥ 0"),
        ({"learning_rate": 0}, r"JKOICNN\(learning_rate=…\) must be a number in \(0, inf\)"),
        (
            {"samples": "cache"},
            r"JKOICNN\(samples=…\) must be 'cached' or 'redrawn' or 'fresh'; got 'cache'. Did you mean 'cached'",
        ),
        ({"log_det": "hutch"}, r"JKOICNN\(log_det=…\) must be 'exact' or 'stochastic'; got 'hutch'"),
        ({"dtype": torch.float16}, r"JKOICNN\(dtype=…\) must be torch\.float64 or torch\.float32"),
        ({"device": "gpu"}, r"JKOICNN\(device=…\) must be 'cpu' or 'cuda'"),
        ({"map": maps.Affine(2)}, r"JKOICNN\(map=…\) must be the gradient of a convex function: .* got Affine"),
        ({"map": maps.ConvexRidge(3)}, r"JKOICNN: map and reference must have the same dimension; got map\.dim = 3"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        small(**settings)


def test_bad_members():
    with pytest.raises(ConfigError, match=r"JKOICNN\(energy=…\) must be an energy.*got function. Wrap a potential"):
        pwgf.JKOICNN(spring, pwgf.Gaussian(2), h=H)
    with pytest.raises(ConfigError, match=r"JKOICNN\(reference=…\) must be a measures.Reference.*got int"):
        pwgf.JKOICNN(energies.Entropy(), 2, h=H)


def test_rows_must_be_steps():
    message = r"JKOICNN\(h=0\.1\) stores the map of every step.*t = 0\.1 followed by 0\.4\. Give times=torch\.arange"
    with pytest.raises(ConfigError, match=message):
        pwgf.solve(small(), [0.0, 0.1, 0.4], progress=False)
    scheme = small()
    with pytest.raises(ConfigError, match="times may be at most h apart"):
        scheme.step(scheme.start(), 0.3)


def test_a_state_in_the_middle_lacks_the_chain():
    scheme = small(max_iterations=1)
    middle = pwgf.solve(scheme, [0.0, H], progress=False).state()
    with pytest.raises(ConfigError, match=r"chain of maps, whose beginning.*resume=True"):
        pwgf.solve(scheme, [H, 2 * H], start=middle, progress=False)
    assert len(pwgf.solve(scheme, [0.0, H], start=scheme.start(1), progress=False)) == 2


def test_a_diverged_minimisation_is_told_and_not_stored():
    def narrow(x):  # NaN where a sample leaves the unit's neighbourhood
        return torch.where(x.abs() < 30, x.square(), math.nan).sum(-1)

    energy = energies.Potential(narrow) + energies.Entropy()
    message = (
        r"inner minimisation diverged in the step from t = 0 to 0\.1; the state at t = 0 is good: .*"
        r"\(objective nan\) at inner iteration \d+, learning rate 1e\+02; the best value.*smaller learning_rate"
    )
    with pytest.raises(SolverError, match=message) as failure:
        pwgf.solve(small(energy, learning_rate=100.0), TIMES, progress=False)
    assert len(failure.value.run) == 1


def test_an_energy_that_is_not_finite_at_the_start_is_told():
    energy = energies.Potential(lambda x: (x.sum(-1) + 2).log()) + energies.Entropy()
    with pytest.raises(NonFiniteError, match=r"energy is nan at the start \(term 'potential'\), t = 0"):
        small(energy).start()
