"""Filtering against the Kalman filter, finite volumes and particles; what is refused."""

import math

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, filtering, maps, problems, storage
from pwgf.errors import ConfigError, PathError, ResumeMismatchError, SchemaError, ShapeError, SolverError
from pwgf.filtering import Law, StateSpace, update
from tests.storage.forging import forge, set_value

TIMES, SEEN = [0.4, 1.0], [1.2, -0.3]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def rippled():
    return StateSpace(
        potential=lambda x: (torch.sin(2 * math.pi * x) / math.pi + x.square() / 4).sum(-1),
        log_likelihood=lambda y, x: -(x - y).square().sum(-1) / 2 - 0.5 * math.log(2 * math.pi),
        initial=pwgf.Gaussian(1),
    )


class Linear:
    """Two dimensions, one observed."""

    K, b = double(1.0, 0.4, 0.4, 0.8).reshape(2, 2), double(0.5, -1.0)
    H, R = double(1.0, -0.5).reshape(1, 2), double(0.3).reshape(1, 1)
    seen = (double(0.7), double(-0.2))

    def model(self):
        noise = torch.distributions.Normal(0, math.sqrt(float(self.R)))
        return StateSpace(
            lambda x: ((x - self.b) @ self.K * (x - self.b)).sum(-1) / 2,
            lambda y, x: noise.log_prob(y - x @ self.H.T).squeeze(1),
            pwgf.Gaussian(2),
        )

    def kalman(self, end=1.5):
        start = torch.zeros(2).double(), torch.eye(2).double()
        return filtering.kalman(self.K, self.b, self.H, self.R, *start, TIMES, self.seen, end=end)


def test_a_model_far_from_the_origin_gives_what_kalman_gives():
    """All of the above moved by 300: the evidence and the covariance stay, the mean moves."""
    far, linear = 300.0, Linear()
    mean, cov, evidence = linear.kalman()
    model, linear.b = linear.model(), linear.b + far
    model = StateSpace(model.potential, model.log_likelihood, pwgf.Gaussian(2, mean=far))
    seen = [y + (far * linear.H).sum() for y in linear.seen]
    found = filtering.run(model, TIMES, seen, end=1.5, map=maps.Affine(2), progress=False)
    its_mean, its_cov = found.law.moments()
    torch.testing.assert_close(its_mean - far, mean, rtol=0, atol=0.01)
    torch.testing.assert_close(its_cov, cov, rtol=0, atol=0.01)
    assert found.log_evidence == pytest.approx(evidence, abs=0.01)


@pytest.mark.parametrize(
    "map", [maps.Affine(2), maps.ResidualMLP(2, width=8, axis_units=2)], ids=["affine", "residual"]
)
def test_a_linear_model_gives_what_kalman_gives(map):
    mean, cov, evidence = Linear().kalman()
    found = filtering.run(Linear().model(), TIMES, Linear.seen, end=1.5, map=map, progress=False)
    its_mean, its_cov = found.law.moments()
    torch.testing.assert_close(its_mean, mean, rtol=0, atol=0.01)
    torch.testing.assert_close(its_cov, cov, rtol=0, atol=0.01)
    assert found.log_evidence == pytest.approx(evidence, abs=0.01)
    assert all(u.kl_flow < 2e-3 and u.kl_fit < 1e-3 and 0 < u.share < 1 for u in found.updates)
    assert found.times == TIMES and len(found.predicted) == 2 and len(found.runs) == 3


class Turning:
    """A drift that is no gradient, about a centre that may move, and noise unlike in the two directions."""

    K, D = double(1.0, -2.0, 1.5, 0.5).reshape(2, 2), double(0.8, 0.2).diag()
    H, R = Linear.H, Linear.R

    def model(self, centre=None):
        def b(t, x):
            return -(x - (double(0.5, -1.0) if centre is None else centre(float(t))).to(x)) @ self.K.T.to(x)

        drift = energies.Drift(b, time=True) if centre else energies.Drift(lambda x: b(0.0, x))
        return StateSpace(drift + energies.Diffusion(self.D), Linear().model().log_likelihood, pwgf.Gaussian(2))

    def by_hand(self, centre, end=1.5):
        """Mean and covariance by the moments of the linear problem and Bayes' rule for precisions."""
        mean, cov, now = torch.zeros(2).double(), torch.eye(2).double(), 0.0
        for t, y in zip([*TIMES, end], [*Linear.seen, None], strict=True):
            problem = problems.LinearDrift(self.K, lambda s, now=now: centre(now + s), self.D, mean=mean, cov=cov)
            law = problem.exact(t - now)
            mean, cov, now = law.mean(), law.cov(), t
            if y is not None:
                precision = torch.linalg.inv(cov)
                cov = torch.linalg.inv(precision + self.H.T @ self.H / self.R)
                mean = cov @ (precision @ mean + (self.H.T / self.R).flatten() * y)
        return mean, cov


def test_kalman_follows_a_drift_that_turns():
    turning, centre = Turning(), double(0.5, -1.0)
    start = torch.zeros(2).double(), torch.eye(2).double()
    mean, cov, _ = filtering.kalman(
        turning.K, centre, turning.H, turning.R, *start, TIMES, Linear.seen, end=1.5, temperature=turning.D
    )
    exact_mean, exact_cov = turning.by_hand(lambda t: centre)
    torch.testing.assert_close(mean, exact_mean, rtol=0, atol=1e-8)
    torch.testing.assert_close(cov, exact_cov, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "centre",
    [None, lambda t: double(math.cos(3 * t), math.sin(3 * t))],
    ids=["at rest", "dragged"],
)
def test_a_model_that_is_no_gradient(centre, tmp_path):
    turning = Turning()
    mean, cov = turning.by_hand(centre or (lambda t: double(0.5, -1.0)))
    model = turning.model(centre)
    found = filtering.run(model, TIMES, Linear.seen, end=1.5, map=maps.Affine(2), progress=False, out=tmp_path)
    its_mean, its_cov = found.law.moments()
    torch.testing.assert_close(its_mean, mean, rtol=0, atol=0.01)
    torch.testing.assert_close(its_cov, cov, rtol=0, atol=0.01)
    again = filtering.load(tmp_path)
    torch.testing.assert_close(again.law.moments()[0], its_mean)
    assert again.runs[1].t.tolist() == pytest.approx([0.4, 1.0] if centre else [0.0, 0.6])
    particles = filtering.particles(model, TIMES, Linear.seen, end=1.5, n=20_000)
    torch.testing.assert_close(particles.x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(particles.x.T), cov, rtol=0, atol=0.03)
    assert found.log_evidence == pytest.approx(particles.log_evidence, abs=0.05)


def test_a_rippled_well_gives_what_finite_volumes_give():
    exact = filtering.finite_volumes(rippled(), TIMES, SEEN, end=1.5)
    found = filtering.run(rippled(), TIMES, SEEN, end=1.5, progress=False)
    inside = exact.density > 1e-10
    nodes, p = torch.from_numpy(exact.grid[inside])[:, None], torch.from_numpy(exact.density[inside])
    log_q = found.law.log_density(nodes)
    sym_kl = float(((p - log_q.exp()) * (p.log() - log_q)).sum() * (exact.grid[1] - exact.grid[0]))
    assert 0 < sym_kl < 3e-3
    x = found.law.sample(20_000)
    assert float(x.mean()) == pytest.approx(exact.mean, abs=0.05)


def test_finite_volumes_agree_with_kalman_and_converge():
    model = StateSpace(lambda x: x.square().sum(-1) / 2, lambda y, x: -(x - y).square().sum(-1) / 0.4, pwgf.Gaussian(1))
    one, start = torch.eye(1).double(), (torch.zeros(1).double(), torch.eye(1).double())
    mean, cov, _ = filtering.kalman(
        one, torch.zeros(1).double(), one, 0.2 * one, *start, TIMES, [double(y) for y in SEEN], end=1.5
    )
    errors = []
    for nodes in (501, 1001):
        law = filtering.finite_volumes(model, TIMES, SEEN, end=1.5, num_nodes=nodes)
        errors.append(abs(law.var - float(cov)))
        assert law.mean == pytest.approx(float(mean), abs=1e-3)
    assert errors[1] < 0.3 * errors[0] < 1e-3  # second order


def test_the_evidence_of_kalman_is_that_of_the_joint_gaussian():
    """d = 1 at rest: y_1, y_2 are jointly Gaussian with covariance e^{−|t−s|} + R."""
    one, start = torch.eye(1).double(), (torch.zeros(1).double(), torch.eye(1).double())
    seen = [double(y) for y in SEEN]
    _, _, evidence = filtering.kalman(one, torch.zeros(1).double(), one, 0.2 * one, *start, TIMES, seen)
    cov = torch.exp(-(double(*TIMES)[:, None] - double(*TIMES)).abs()) + 0.2 * torch.eye(2).double()
    joint = torch.distributions.MultivariateNormal(torch.zeros(2).double(), cov)
    assert evidence == pytest.approx(float(joint.log_prob(double(*SEEN))), abs=1e-10)


def test_particles_agree_with_kalman():
    mean, cov, evidence = Linear().kalman()
    found = filtering.particles(Linear().model(), TIMES, Linear.seen, end=1.5, n=20_000)
    torch.testing.assert_close(found.x.mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(found.x.T), cov, rtol=0, atol=0.03)
    assert found.log_evidence == pytest.approx(evidence, abs=0.05)
    assert all(0 < share < 1 for share in found.shares)


def test_an_update_is_bayes_rule():
    """Prior N(0, I), y = 2 with variance .25: posterior N(1.6, .2) in the first coordinate."""
    map = maps.Affine(2)
    prior = Law(map, pwgf.Gaussian(2), map.initial())
    done = update(prior, lambda x: -(x[:, 0] - 2).square() / 0.5)
    mean, cov = done.law.moments()
    torch.testing.assert_close(mean, double(1.6, 0.0), rtol=0, atol=2e-3)
    torch.testing.assert_close(cov, torch.diag(double(0.2, 1.0)), rtol=0, atol=2e-3)
    exact = float(torch.distributions.Normal(0, math.sqrt(1.25)).log_prob(torch.tensor(2.0))) + 0.5 * math.log(
        2 * math.pi * 0.25
    )
    assert done.log_evidence == pytest.approx(exact, abs=5e-3)


def test_a_surprising_observation_is_found_by_the_mode():
    """Twelve deviations away no sample of the pilot counts; the Laplace approximation finds the place."""
    map = maps.Affine(1)
    prior = Law(map, pwgf.Gaussian(1), map.initial())
    done = update(prior, lambda x: -(x[:, 0] - 24).square() / 2)
    mean, cov = done.law.moments()
    assert done.share < 1e-3
    assert float(mean) == pytest.approx(12, abs=0.01) and float(cov) == pytest.approx(0.5, abs=0.01)


def test_no_observation_is_a_mere_flow_and_flows_are_stored(tmp_path):
    found = filtering.run(rippled(), [], [], end=0.2, map=maps.Affine(1), out=tmp_path, progress=False)
    assert found.updates == [] and found.log_evidence == 0
    assert pwgf.load(tmp_path / "flow-000.h5").t.tolist() == [0.0, 0.2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: StateSpace(3, lambda y, x: x, pwgf.Gaussian(1)), ConfigError, r"StateSpace\(potential=…\)"),
        (lambda: StateSpace(lambda x: x, lambda y, x: x, 3), ConfigError, "initial=….*got int"),
        (
            lambda: StateSpace(lambda x: x, lambda y, x: x, pwgf.Gaussian(1), temperature=0),
            ConfigError,
            "temperature",
        ),
        (
            lambda: StateSpace(energies.PorousMedium(2), lambda y, x: x, pwgf.Gaussian(1)),
            ConfigError,
            "particles have no density, which PorousMedium needs",
        ),
        (
            lambda: StateSpace(energies.Drift(lambda x: -x), lambda y, x: x, pwgf.Gaussian(1), temperature=0.5),
            ConfigError,
            r"the noise is in the energy; got temperature=0\.5 beside it.*0\.5 \* Entropy\(\)",
        ),
        (
            lambda: filtering.finite_volumes(
                StateSpace(energies.Drift(lambda x: -x), lambda y, x: x, pwgf.Gaussian(1)), [], [], end=1.0
            ),
            ConfigError,
            "needs a model with a potential.*every drift has a potential: give it, or use particles",
        ),
        (lambda: filtering.run(3, [], []), ConfigError, "needs a StateSpace; got int"),
        (lambda: filtering.run(rippled(), [1.0], []), ConfigError, "got 1 times, 0 observations"),
        (lambda: filtering.run(rippled(), [1.0, 0.5], [0, 0]), ConfigError, r"increase strictly.*\[1.0, 0.5\]"),
        (lambda: filtering.run(rippled(), [0.0], [0]), ConfigError, "increase strictly from above 0"),
        (lambda: filtering.run(rippled(), [1.0], [0], end=0.5), ConfigError, "before the last observation at t = 1"),
        (lambda: filtering.run(rippled(), 1.0, 2.0), ConfigError, "must be sequences"),
        (
            lambda: filtering.run(rippled(), np.array([1], "timedelta64[ns]"), [0]),
            ConfigError,
            "numbers without a unit; got .*Divide by the unit",
        ),
        (lambda: filtering.run(rippled(), [1.0], [0], seed=0.5), ConfigError, r"run\(seed=…\) must be an integer"),
        (lambda: filtering.load(4), PathError, "needs a path; got int"),
        (
            lambda: filtering.particles(rippled(), [0.1], [torch.zeros(3, 7)], n=5),
            ConfigError,
            r"log_likelihood\(y, x\) failed for an observation of shape \(3, 7\)",
        ),
        (
            lambda: filtering.particles(StateSpace(lambda x: x.sum(-1), lambda y, x: x, pwgf.Gaussian(1)), [0.1], [0]),
            ShapeError,
            r"must return shape \(10000,\) for x of shape \(10000, 1\); got \(10000, 1\).*Sum over",
        ),
        (lambda: filtering.particles(rippled(), [0.1], [math.nan], n=5), ConfigError, "is NaN for an observation nan"),
        (lambda: filtering.particles(rippled(), [0.1], [0.0], n=1), ConfigError, "n"),
        (lambda: filtering.particles(rippled(), [0.1], [0.0], dt=0), ConfigError, "dt"),
        (lambda: filtering.finite_volumes(Linear().model(), [], [], end=1.0), ConfigError, "works in one dimension"),
        (
            lambda: filtering.finite_volumes(rippled(), [], [], end=1.0, half_width=2),
            ConfigError,
            "reaches the ends of the grid.*half_width=4",
        ),
        (
            lambda: filtering.kalman(*[torch.eye(2)] * 4, torch.zeros(2), torch.eye(2), [], [], end=1.0),
            ShapeError,
            r"needs shapes \(d,d\), \(d,\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("settings", [{"num_fit": -3}, {"max_iterations": 0}, {"seed": 0.5}])
def test_bad_settings_of_an_update(settings):
    law = filtering.Law(maps.Affine(1), pwgf.Gaussian(1), maps.Affine(1).initial())
    with pytest.raises(ConfigError, match=rf"filtering\.update\({next(iter(settings))}=…\) must be an integer"):
        update(law, lambda x: x.sum(-1), **settings)


@pytest.mark.parametrize("filter", [filtering.run, filtering.particles, filtering.finite_volumes])
def test_an_observation_of_zero_likelihood(filter):
    model = StateSpace(
        lambda x: x.square().sum(-1) / 2,
        lambda y, x: torch.where((x[:, 0] - y).abs() < 1, 0.0, -math.inf),
        pwgf.Gaussian(1),
    )
    with pytest.raises(ConfigError, match="at t = 0.1 has zero likelihood at each of .* samples of the law"):
        filter(model, [0.1], [50.0])


class Own(maps.Affine):
    """A map that no file can rebuild."""


@pytest.mark.parametrize(("map", "end"), [(maps.Affine(2), 1.5), (maps.Affine(2), None), (Own(2), None)])
def test_a_filter_is_loaded_from_its_folder(tmp_path, map, end):
    options = {"map": map, "end": end, "progress": False, "num_samples": 200, "num_eval": 200}
    made = filtering.run(Linear().model(), TIMES, Linear.seen, out=tmp_path / "filter", **options)
    found = filtering.load(tmp_path / "filter", map=map if isinstance(map, Own) else None)
    assert (found.times, found.end, found.log_evidence) == (made.times, made.end, made.log_evidence)
    assert torch.equal(found.law.theta, made.law.theta) and len(found.runs) == len(made.runs)
    for mine, other in zip(found.predicted, made.predicted, strict=True):
        assert torch.equal(mine.theta, other.theta)
    for mine, other in zip(found.updates, made.updates, strict=True):
        assert torch.equal(mine.law.theta, other.law.theta) and torch.equal(mine.law.sample(5), other.law.sample(5))
        assert (mine.share, mine.kl_flow, mine.kl_fit) == (other.share, other.kl_flow, other.kl_fit)
    with storage.open_record(tmp_path / "filter" / "flow-000.h5") as record:
        mean, cov = found.updates[0].law.moments()
        np.testing.assert_allclose(record.result["mean"], mean)
        np.testing.assert_allclose(record.result["cov"], cov)


def test_a_filter_that_was_stopped_is_not_loaded(tmp_path, monkeypatch):
    def stop(*given, **options):
        raise KeyboardInterrupt

    options = {"map": maps.Affine(2), "progress": False, "num_samples": 200, "out": tmp_path}
    with monkeypatch.context() as stopped:
        stopped.setattr("pwgf.filtering.by_flow.update", stop)
        with pytest.raises(KeyboardInterrupt):
            filtering.run(Linear().model(), TIMES, Linear.seen, **options)
    with pytest.raises(
        ConfigError, match=r"expected the folder of filtering\.run.*stopped before its end.*resume=True"
    ):
        filtering.load(tmp_path)
    made = filtering.run(Linear().model(), TIMES, Linear.seen, resume=True, **options)
    assert torch.equal(filtering.load(tmp_path).law.theta, made.law.theta)
    with pytest.raises(ConfigError, match="there is no filter"):
        filtering.load(tmp_path / "nothing")


def test_a_filter_that_is_begun_anew_over_another_one_is_not_mixed_with_it(tmp_path, monkeypatch):
    options = {"map": maps.Affine(2), "progress": False, "num_samples": 200, "out": tmp_path}
    made = filtering.run(Linear().model(), TIMES, Linear.seen, **options)
    shorter = filtering.run(Linear().model(), TIMES[:1], Linear.seen[:1], overwrite=True, **options)
    found = filtering.load(tmp_path)  # though the second flow of the longer one is still there
    assert torch.equal(found.law.theta, shorter.law.theta) and len(found.runs) == 1
    again = filtering.run(Linear().model(), TIMES, Linear.seen, resume=True, **options)
    assert torch.equal(filtering.load(tmp_path).law.theta, made.law.theta) and torch.equal(
        again.law.theta, made.law.theta
    )

    def stop(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pwgf.filtering.by_flow.update", stop)
    with pytest.raises(KeyboardInterrupt):
        filtering.run(Linear().model(), TIMES, Linear.seen, overwrite=True, **options)
    with pytest.raises(ConfigError, match="stopped before its end"):
        filtering.load(tmp_path)


def test_a_damaged_update_is_refused(tmp_path):
    filtering.run(Linear().model(), TIMES[:1], Linear.seen[:1], map=maps.Affine(2), out=tmp_path, progress=False)
    forge(str(tmp_path / "flow-000.h5"), lambda file: set_value(file, "result/theta", np.zeros(3)))
    with pytest.raises(SchemaError, match=r"its update has parameters of shape \(3,\)"):
        filtering.load(tmp_path)
    forge(str(tmp_path / "flow-000.h5"), lambda file: file.__delitem__("result/theta"))
    with pytest.raises(SchemaError, match=r"its update is damaged \(KeyError: 'theta'"):
        filtering.load(tmp_path)
    storage.write_table(tmp_path / "filter.h5", {"t": [0.5], "run_id": ["a"]}, {"num_updates": 5})
    with pytest.raises(SchemaError, match="its table has 1 flows and 5 updates"):
        filtering.load(tmp_path)
    storage.write_table(tmp_path / "filter.h5", {"x": [0.5]}, {})
    with pytest.raises(SchemaError, match=r"its table is none of a filter \(KeyError: 't'"):
        filtering.load(tmp_path)


def test_a_resume_that_is_refused_leaves_the_stored_filter_alone(tmp_path):
    options = {"map": maps.Affine(2), "progress": False, "num_samples": 200, "out": tmp_path}
    made = filtering.run(Linear().model(), TIMES, Linear.seen, **options)
    others = (double(-0.7), Linear.seen[1])
    with pytest.raises(ResumeMismatchError, match=r"theta0"):
        filtering.run(Linear().model(), TIMES, others, resume=True, **options)
    found = filtering.load(tmp_path)
    assert found.log_evidence == made.log_evidence
    assert all(torch.equal(a.law.theta, b.law.theta) for a, b in zip(found.updates, made.updates, strict=True))


def test_a_likelihood_without_a_gradient_is_refused():
    """The gradient of the prior alone would give a wrong law."""
    law = filtering.Law(maps.Affine(1), pwgf.Gaussian(1), maps.Affine(1).initial())
    with pytest.raises(ConfigError, match=r"log_likelihood\(y, x\) varies with its input but has no gradient"):
        update(law, lambda x: -(x.detach() - 1).square().sum(-1))
    silent = update(law, lambda x: torch.zeros_like(x[:, 0]))  # an observation that tells nothing
    assert abs(silent.log_evidence) < 1e-6


def test_a_fit_that_misses_the_law_is_reported(caplog):
    """Observed x² of N(0, 1): two modes, of which an affine map makes one."""
    law = filtering.Law(maps.Affine(1), pwgf.Gaussian(1), maps.Affine(1).initial())
    found = update(law, lambda x: -(x.square().sum(-1) - 2).square(), map=maps.ResidualMLP(1), tolerance=1e-2)
    assert found.kl_fit > 0.1 and "kl_fit" in caplog.text


def test_an_observation_that_cannot_be_taken_in_is_named(monkeypatch):
    def fails(law, log_likelihood, **settings):
        raise SolverError("no descent")

    monkeypatch.setattr("pwgf.filtering.by_flow.update", fails)
    with pytest.raises(SolverError, match=r"filtering\.run: observation 0, of t = 0\.4, was not taken in: no descent"):
        filtering.run(Linear().model(), TIMES, Linear.seen, map=maps.Affine(2), num_samples=200, progress=False)
