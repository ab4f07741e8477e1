"""Sampling, chains, filtering, fitting, posteriors, problems, laws and distances where data lie on a device.

Nothing mixes two devices, and every result is that of the CPU. The device is a pretended one (`pretend_device`).
"""

import math
from types import SimpleNamespace

import pytest
import torch

import pwgf
from pwgf import distances, filtering, fitting, maps, measures, posteriors, problems, sampling
from tests.device_helpers import FEW, SMALL, TIMES, double_well, flow, normal, same_on_both


@pytest.mark.parametrize("whiten", ["auto", None, "laplace"])
@pytest.mark.parametrize("polish", [0, 3])
def test_sampling_of_a_density_with_data_on_the_device(whiten, polish):
    precision = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)

    def found(where):
        matrix = precision.to(where)
        settings = {"map": maps.Affine(2), "max_time": 0.125, "device": where, "progress": False, **FEW}
        drawn = sampling.sample(
            lambda x: -((x @ matrix) * x).sum(-1) / 2, 2, n=100, whiten=whiten, polish=polish, **settings
        )
        return {"x": drawn.x, "log_weights": drawn.log_weights, "log_z": drawn.log_z, "mean": drawn.mean()}

    same_on_both(found)


COORDINATES = {
    "pair": lambda where: (torch.full((2,), 0.1).to(where), 2 * torch.eye(2).to(where)),
    "function": lambda where: lambda y: (2 * y, torch.full_like(y[:, 0], 2 * math.log(2))),
}


@pytest.mark.parametrize("name", COORDINATES)
def test_sampling_in_coordinates_on_the_device(name):
    def found(where):
        settings = {"map": SMALL, "max_time": 0.25, "device": where, "progress": False, **FEW}
        drawn = sampling.sample(
            lambda x: -x.square().sum(-1).square() / 4, 2, n=200, whiten=COORDINATES[name](where), **settings
        )
        return {"x": drawn.x, "log_weights": drawn.log_weights, "log_z": drawn.log_z}

    same_on_both(found, 1e-6)


def test_chains_from_starts_on_the_device():
    def found(where):
        matrix, x = torch.tensor([2.0, 1.0], dtype=torch.float64).to(where), normal(30, 2).to(where)
        log_density = lambda x: -(matrix * x.square()).sum(-1) / 2  # noqa: E731
        chains = sampling.hmc(log_density, x, steps=6, warmup=8)
        moved = sampling.langevin(log_density, x, 4)
        assert chains.x.device == moved.device == x.device
        return {"hmc": chains.x.cpu(), "rhat": chains.rhat.cpu(), "langevin": moved.cpu()}

    same_on_both(found)


def test_filtering_with_data_on_the_device():
    model = filtering.StateSpace(
        lambda x: x.square().sum(-1) / 2, lambda y, x: -(x - y).square().sum(-1) / 2, pwgf.Gaussian(1)
    )
    seen = torch.tensor([0.7], dtype=torch.float64)  # of the CPU: `StateSpace` moves it

    def found(where):
        law = filtering.Law(maps.Affine(1), pwgf.Gaussian(1), maps.Affine(1).initial())
        own = seen.to(where)
        updated = filtering.update(law, lambda x: -(x - own).square().sum(-1) / 2, device=where, **FEW)
        filtered = filtering.run(
            model, [0.05], [seen], map=maps.Affine(1), progress=False, device=where, update_settings={"device": where},
            **FEW,
        )  # fmt: skip
        return {
            "theta": updated.law.theta, "log_evidence": updated.log_evidence, "kl": updated.kl_fit,
            "filtered": filtered.law.theta,
        }  # fmt: skip

    same_on_both(found)


@pytest.mark.parametrize("dim", [1, 2])
def test_an_update_by_an_observation_that_tells_much(dim):
    """Few samples have weight there: the flow starts at the mode instead of at weighted moments."""
    law = filtering.Law(maps.Affine(dim), pwgf.Gaussian(dim), maps.Affine(dim).initial())

    def found(where):
        seen = torch.full((dim,), 6.0, dtype=torch.float64).to(where)
        updated = filtering.update(law, lambda x: -200 * (x - seen).square().sum(-1), device=where, **FEW)
        return {"theta": updated.law.theta, "log_evidence": updated.log_evidence}

    same_on_both(found, 1e-6)


def test_fitting_where_the_data_lie():
    target, x = torch.tensor([2.0, 1.0], dtype=torch.float64), normal(40, 2, seed=3)

    def found(where):
        map, settings = maps.Affine(2), {"max_iterations": 12, "polish": 10, "progress": False, "batch_size": 20}
        matrix = target.to(where)
        theta0 = map.initial().to(where)
        log_density = lambda x: -(matrix * x.square()).sum(-1)  # noqa: E731
        to_density = fitting.fit(map, pwgf.Gaussian(2), log_density, theta0=theta0, **settings)
        to_samples = fitting.fit(map, pwgf.Gaussian(2), x.to(where), **settings)
        regressed, _ = fitting.regress(map, theta0, x.to(where), (2 * x + 1).to(where), 4)
        run = pwgf.solve(flow(map, double_well(), where), TIMES, progress=False)
        taken = fitting.reparametrise(run, 0.01, maps.Affine(2), num_samples=20, num_eval=20, max_iterations=2)
        return {
            "density": to_density.theta, "samples": to_samples.theta, "regressed": regressed.cpu(),
            "taken over": taken.theta,
        }  # fmt: skip

    same_on_both(found, 1e-6)


@pytest.mark.parametrize("batch_size", [None, 20])
def test_logistic_regression_with_data_on_the_device(batch_size):
    X = normal(30, 2, seed=4)
    y = (X.sum(1) > 0.5 * normal(30, seed=5)).int()

    def found(where):
        problem = posteriors.LogisticRegression(X.to(where), y, batch_size=batch_size)
        at = normal(5, 3, seed=6).to(where)
        x, volume = problem.coordinates()(at)
        values = {"x": x, "volume": volume, "log p": problem.log_target(at), "predicted": problem.predict(at, X)}
        assert all(value.device == at.device for value in values.values())
        scores = {"accuracy": problem.accuracy(at, X, y), "log": problem.mean_log_likelihood(at, X.to(where), y)}
        return {name: value.cpu() for name, value in values.items()} | scores

    same_on_both(found)


@pytest.mark.parametrize("name", ["w2", "sliced_w2", "energy_distance", "mmd"])
@pytest.mark.parametrize("dim", [1, 2])
def test_distances_of_samples_on_two_devices(name, dim):
    x, y, distance = normal(12, dim), normal(9, dim, seed=1), getattr(distances, name)

    def figures(where):
        pairs = {"x": (x.to(where), y), "y": (x, y.to(where)), "both": (x.to(where), y.to(where))}
        return {there: float(distance(*pair)) for there, pair in pairs.items()}

    same_on_both(figures, 1e-12)


def test_distances_of_gaussians_on_two_devices():
    cov = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)

    def figures(where):
        pair = torch.zeros(2).to(where), cov, torch.ones(2), torch.eye(2).to(where)
        named = (distances.bures_w2, distances.gaussian_kl, distances.gaussian_sym_kl)
        return {distance.__name__: float(distance(*pair)) for distance in named}

    same_on_both(figures, 1e-12)


@pytest.mark.parametrize("distance", [distances.floor, distances.sym_kl])
def test_distances_of_laws_on_the_device(distance):
    law, other = pwgf.Gaussian(2), pwgf.Gaussian(2, [1.0, 0.0])

    def figures(where):
        there = SimpleNamespace(
            sample=lambda n, seed: law.sample(n, seed).to(where), log_density=lambda x: -1.1 * x.square().sum(-1) / 2
        )
        if distance is distances.sym_kl:
            return {"sym_kl": float(distance(there, other, n=50))}
        return {"floor": distance(distances.sliced_w2, there.sample, 20, 2)}

    same_on_both(figures, 1e-12)


# ---- problems and laws -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", problems.names())
def test_every_problem(name):
    """Its energy, on samples of its start."""
    problem = problems.from_config({"name": name, "dim": 1 if name == "Kuramoto" else 2})
    map, z = problem.needed_map or maps.Affine(problem.dim), problem.reference.sample(20)

    def found(where):
        theta = map.initial().to(where)
        rho = measures.PushedMeasure(map, problem.reference, theta, z.to(where), t=float(problem.times[0]))
        return {"velocity": problem.energy.velocity(rho).cpu()}

    same_on_both(found)


def test_laws_of_samples_and_of_maps_at_points_on_the_device():
    map, x = SMALL, normal(5, 2, seed=1)

    def found(where):
        fitted = measures.Gaussianised(normal(200, 2).to(where))
        laws = {"map": measures.PushedLaw(map, pwgf.Gaussian(2), map.initial().to(where)), "samples": fitted}
        figures = {f"score of a {name}": law.score(x.to(where)) for name, law in laws.items()}
        return figures | {name: law.log_density(x.to(where)) for name, law in laws.items()}

    same_on_both(found)
