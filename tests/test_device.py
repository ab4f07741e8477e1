"""On a device other than the CPU nothing mixes two devices, and every result is that of the CPU.

The device is a pretended one (`pretend_device`); nobody has run the package on a real GPU for these tests.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pwgf
from pwgf import checks, energies, integrate, maps, measures
from pwgf.errors import ConfigError
from pwgf.linalg import CG, SOLVERS
from pwgf.run.provenance import provenance
from pwgf.run.resume import check_same
from tests.device_helpers import FEW, SMALL, TIMES, double_well, figures, flow, normal, same_on_both
from tests.energies.members import NAMES, cloud, member
from tests.linalg.helpers import DenseTangent
from tests.maps.members import MEMBERS, potential_for, reference_for, starts_as_identity
from tests.pretend_device import DEVICE, PretendedDevice
from tests.schemes.contract_members import PROBLEM

QUICK = {  # of each family of maps; the others take long under the mode that records
    "Affine3", "Composed2", "ConvexMax3-groups2", "ConvexRidge3-width5", "FromFlow3-coupling", "FromModule3-residual",
    "QuadraticICNN3", "ResidualMLP2-default",
}  # fmt: skip


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MEMBERS])
def test_every_map(name):
    map = MEMBERS[name]()
    dense = starts_as_identity(map)  # the others may fold, and then have no density
    energy = double_well() if dense else energies.Potential(lambda x: x.square().sum(-1))
    if isinstance(map, maps.OnTorus):
        energy = energies.Potential(potential_for(map)) + energies.Entropy()
    elif reference_for(map).box is not None:  # which may lie far out, where the wells are steep
        energy = 0.1 * energy
    same_on_both(lambda where: figures(flow(MEMBERS[name](), energy, where), dense))


@pytest.mark.parametrize("name", [*(name for name in NAMES if name != "sinkhorn"), "sinkhorn-coarse"])
def test_every_energy(name):
    coarse = "coarse" in name  # that of the other tests takes thousands of annealing steps
    energy = energies.Sinkhorn(cloud(2), blur=0.5, scaling=0.5) if coarse else member(name)
    same_on_both(lambda where: figures(flow(maps.Affine(2), energy, where)))


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver(name):
    rtol = 1e-4 if name in ("block-pcg", "pcg") else 1e-8  # their products are in single precision
    same_on_both(lambda where: figures(flow(SMALL, double_well(), where, solver=name, damping=1e-4)), rtol)


TIMED = {
    "potential": lambda: energies.Potential(lambda t, x: (1 + t) * x.square().sum(-1), time=True),
    "kl": lambda: energies.KL(lambda t, x: -(1 + t) * x.square().sum(-1), time=True),
    "interaction": lambda: energies.Interaction(lambda t, r: (1 + t) * r.square().sum(-1), time=True),
    "local": lambda: energies.Local(lambda t, x, log_rho: (1 + t) * log_rho, time=True),
    "drift": lambda: energies.Drift(lambda t, x: -(1 + t) * x, time=True),
    "diffusion": lambda: energies.Diffusion(lambda t, x: 1 + t + x[:, 0].square(), time=True),
}


@pytest.mark.parametrize("name", TIMED)
def test_every_energy_that_depends_on_time(name):
    same_on_both(lambda where: figures(flow(maps.Affine(2), TIMED[name](), where)))


@pytest.mark.parametrize("kind", [energies.MMD, energies.SlicedW2, functools.partial(energies.Sinkhorn, scaling=0.5)])
def test_samples_to_flow_to_may_lie_on_the_device(kind):
    same_on_both(lambda where: figures(flow(maps.Affine(2), kind(cloud(2).to(where)), where)))


INTEGRATORS = {
    **{name: integrate.FixedStep(name, 0.01) for name in integrate.FIXED},
    **{name: name for name in integrate.INTEGRATORS if name not in integrate.FIXED},
    "of one length": integrate.Implicit(dt=0.01),
    "Newton": integrate.Implicit(dt=0.01, newton=3),
}


@pytest.mark.parametrize("name", INTEGRATORS)
def test_every_integrator(name):
    same_on_both(lambda where: figures(flow(SMALL, double_well(), where, integrator=INTEGRATORS[name])), 1e-6)


def test_implicit_steps_by_random_directions_of_slopes():
    small = maps.ResidualMLP(3, width=4, axis_units=1)
    same_on_both(lambda where: figures(flow(small, double_well(), where, integrator="implicit")), 1e-6)


OTHER = {
    "gradient": {"form": "gradient"},
    "float32": {"dtype": torch.float32},
    "chunks": {"chunk_size": 7},
    "covariance": {"mobility": "covariance"},
    "factor of x": {"mobility": lambda x: 1 + x.square().sum(1)},
    "matrix": {"mobility": [[2.0, 0.5], [0.5, 1.0]]},
}


@pytest.mark.parametrize("settings", OTHER.values(), ids=OTHER)
def test_other_settings(settings):
    rtol = 1e-3 if "dtype" in settings else 1e-8
    same_on_both(lambda where: figures(flow(maps.Affine(2), double_well(), where, **settings)), rtol)


def test_a_layer_begins_and_moves():
    map = maps.Layers(SMALL, count=3)
    theta = map.grown(map.initial(), normal(50, 2))

    def moved(where):
        found = figures(flow(map, double_well(), where, theta0=theta, integrator="implicit"))
        z = normal(20, 2).to(where)
        return found | {"next": map.grown(theta.to(where), z).cpu()}

    same_on_both(moved, 1e-6)


SHORT = {"num_directions": 4, "num_samples": 30, "max_iterations": 12}
SCHEMES = {
    "jko": lambda where: pwgf.JKOICNN(
        double_well(), pwgf.Gaussian(2), h=0.01, width=8, num_batches=1, max_iterations=4, device=where, **FEW
    ),
    "jko-stochastic": lambda where: pwgf.JKOICNN(
        double_well(), pwgf.Gaussian(2), h=0.01, width=8, max_iterations=4, log_det="stochastic", device=where, **FEW
    ),
    "sw-jko": lambda where: pwgf.SWJKO(
        double_well(), maps.Affine(2), pwgf.Gaussian(2), tau=0.01, num_eval=30, device=where, **SHORT
    ),
    "sw-jko-particles": lambda where: pwgf.SWJKO(
        PROBLEM.energy, None, PROBLEM.reference, tau=0.01, device=where, **SHORT
    ),
    "pwhf": lambda where: pwgf.PWHF(
        double_well(), maps.ResidualMLP(2, width=4, axis_units=1), pwgf.Gaussian(2), dt=0.005, device=where, **FEW
    ),
    "particles": lambda where: pwgf.EulerMaruyama(
        double_well(), pwgf.Gaussian(2), num_samples=30, dt=0.005, device=where
    ),
    "particles-covariance": lambda where: pwgf.EulerMaruyama(
        double_well(), pwgf.Gaussian(2), num_samples=30, dt=0.005, mobility="covariance", device=where
    ),
    "fitted": lambda where: pwgf.FittedParticles(double_well(), pwgf.Gaussian(2), num_samples=60, device=where),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme(name):
    same_on_both(lambda where: figures(SCHEMES[name](where), dense="particles" not in name))


@pytest.mark.parametrize("name", [name for name in SCHEMES if "particles" not in name])
def test_laws_of_a_run_at_points_on_the_device(name):
    """They come back on the CPU."""

    def found(where):
        scheme, x = SCHEMES[name](where), normal(5, 2).to(where)
        run = pwgf.solve(scheme, pwgf.schemes.ask(scheme, "rows_for")(np.array(TIMES)), progress=False)
        law = run.at(TIMES[1])
        return {
            "log_density": run.log_density(TIMES[1], x), "score": run.score(TIMES[1], x),
            "of the law": law.log_density(x), "its score": law.score(x), "mean": law.mean(), "cov": law.cov(),
        }  # fmt: skip

    same_on_both(found, 1e-6)


REFERENCES = {
    "ball": lambda: measures.UniformBall(2, 2.0),
    "box": lambda: measures.UniformBox(-1.0, [1.0, 2.0]),
    "barenblatt": lambda: measures.Barenblatt(2, 2.0, 1.0),
    "cosines": lambda: measures.CosineSeries([-1.0, -1.0], [1.0, 1.0], [0.3, 0.1]),
    "unnormalised": lambda: measures.Unnormalised(
        lambda z: -z.square().sum(-1) / 2, lambda n, g: torch.randn(n, 2, generator=g, dtype=torch.float64), 2
    ),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_every_reference(name):
    def figures(where):
        scheme = pwgf.PWGF(PROBLEM.energy, maps.Affine(2), REFERENCES[name](), device=where, **FEW)
        run = pwgf.solve(scheme, TIMES, progress=False)
        return {"theta": run["theta"], "log_density": run.log_density(0.01, normal(5, 2) / 4)}

    same_on_both(figures)


# ---- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun, resumed, integrator", [(DEVICE, "cpu", "implicit"), ("cpu", DEVICE, "auto"), ("cpu", DEVICE, "explicit")]
)
def test_a_run_goes_on_on_another_device(begun, resumed, integrator, tmp_path, caplog):
    def run(where, times, **arguments):
        scheme = flow(maps.Affine(2), double_well(), where, integrator=integrator)
        return pwgf.solve(scheme, times, seed=1, progress=False, **arguments)

    times = [0.0, 0.01, 0.02]
    with PretendedDevice():
        run(begun, times[:2], out=tmp_path / "run.h5")
        found = run(resumed, times, out=tmp_path / "run.h5", resume=True)
        start = pwgf.load(tmp_path / "run.h5").state()
        assert run(resumed, [0.02, 0.03], start=start)["theta"].shape == (2, 6)
    assert f"resuming on {resumed} a run begun on {begun}: results may differ in the last bits" in caplog.text
    np.testing.assert_allclose(found["theta"], run("cpu", times)["theta"], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_two_processes_of_torchrun_on_a_device_each(tmp_path):
    """gloo carries their sums; the rows are those of two processes on the CPU."""
    worker, environment = Path(__file__).with_name("pretended_ranks.py"), {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[1]), "PWGF_PROGRESS": "0"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", worker, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    ranks = [np.load(tmp_path / f"rank-{rank}.npz") for rank in range(2)]
    for found in ranks:
        assert found["mixes"] == 0
        np.testing.assert_allclose(found["there"], found["here"], rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(ranks[0]["there"], ranks[1]["there"])


def test_cuda_is_its_first_gpu():
    config = {"scheme": {"device": "cuda", "max_memory": 1e9}, "times": [0.0, 1.0]}
    check_same(config, {**config, "scheme": {"device": "cuda:0", "max_memory": 1e9}})
    with pytest.raises(pwgf.ResumeMismatchError, match=r"scheme\.max_memory: stored 1000000000\.0, now 2000000000\.0"):
        check_same(config, {**config, "scheme": {"device": "cuda:0", "max_memory": 2e9}})
    check_same(config, {**config, "scheme": {"device": "cpu", "max_memory": 2e9}})


# ---- what a device must be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta", "mps", "xpu"])
def test_a_device_that_cannot_solve_is_refused(name):
    call = rf"PWGF\(device='{name}'\) needs a device that factorises matrices in float64, also where θ is float32; got "
    with pytest.raises(ConfigError, match=call + r"\w+Error: .*Use device='cpu' or 'cuda'\."):
        flow(maps.Affine(2), double_well(), name)


def test_a_potential_without_gradient_is_found_at_the_start():
    energy = energies.Potential(lambda x: x.round().sum(-1)) + energies.Entropy()
    message = r"Potential: V\(x\) varies with its input but has no gradient"
    with PretendedDevice(), pytest.raises(ConfigError, match=message):
        flow(maps.Affine(2), energy, DEVICE).start()


def test_blocks_take_a_tenth_of_the_memory_of_a_device():
    assert flow(maps.Affine(2), double_well(), "cpu").max_memory == 1e9
    with PretendedDevice():
        assert flow(maps.Affine(2), double_well(), DEVICE).max_memory == 8e9
        assert flow(maps.Affine(2), double_well(), DEVICE, max_memory=3e9).max_memory == 3e9


def test_the_name_of_the_device_is_stored():
    assert provenance(DEVICE)["device_name"] == "Pretended"
    assert isinstance(provenance("cpu")["device_name"], str)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_metric_products_are_in_full_precision(precision):
    """TF32 and bfloat16 would leave three digits of a product, and two."""
    seen = []

    class Recorded(DenseTangent):
        def jv(self, eta):
            seen.extend(matmul.fp32_precision for matmul in matmuls)
            return super().jv(eta)

    matmuls = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision(precision)
    try:
        before = [matmul.fp32_precision for matmul in matmuls]
        CG()(Recorded(normal(20, 6).float().view(10, 2, 6)), normal(10, 2).float(), damping=1e-3)
        assert [matmul.fp32_precision for matmul in matmuls] == before
        with pytest.raises(ZeroDivisionError), checks.full_precision():
            raise ZeroDivisionError
        assert [matmul.fp32_precision for matmul in matmuls] == before
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(seen) > 4 and not {*seen} & {"tf32", "bf16"}
    assert (before[0] == "tf32") == (precision != "highest")
