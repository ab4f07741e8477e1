"""What several processes compute in tests/test_parallel.py; run by itself it is one of them.

python tests/parallel_worker.py figures FOLDER      # every figure, to FOLDER/rank-R.npz
python tests/parallel_worker.py run FILE MODE       # a run in which processes die
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch

import pwgf
from pwgf import energies, linalg, maps, parallel
from pwgf.energies.base import Energy
from pwgf.schemes.pwgf.right_side import RightSide
from pwgf.storage import Writer

TIMES = [0.0, 0.05, 0.1, 0.15]
N = 61  # odd: the shares differ in length
QUICK = {"integrator": pwgf.FixedStep("midpoint", 0.025)}


def potential(x):
    return (x.square().sum(-1) - 1).square() / 4 + torch.sin(x[:, 0])


def functional(rho):
    return (rho.x[:, 0] * rho.log_density).mean() + torch.sin(rho.x).mean() * rho.x.square().mean()


ENERGIES = {
    "potential": lambda: energies.Potential(potential),
    "entropy": lambda: energies.Entropy(),
    "porous": lambda: energies.PorousMedium(2),
    "internal": lambda: energies.InternalEnergy(lambda rho: rho**3),
    "kl": lambda: energies.KL(lambda x: -potential(x)),
    "interaction": lambda: energies.Interaction(lambda r: (r.square().sum(-1) + 0.1).sqrt() + 0.3 * r[..., 0] ** 3),
    "functional": lambda: energies.Functional(functional),
    "sum": lambda: energies.Potential(potential) + 0.5 * energies.Interaction(lambda r: r.square().sum(-1) ** 1.2),
}
MAPS = {
    "layered": lambda: maps.ResidualMLP(2, width=8, axis_units=2),
    "generic": lambda: maps.FromModule(
        torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)), 2, residual=True
    ),
    "layers": lambda: maps.Layers(maps.ResidualMLP(2, width=5, axis_units=2), count=2),
}


TIGHT = {"rtol": 1e-13}  # an iteration's rounding errors differ; its answers must not
GROWS = maps.Layers(maps.ResidualMLP(2, width=6, axis_units=2), count=2)
SOLVERS = {"primal": {}, "dual": {}, "pcg": TIGHT, "cg": TIGHT, "lsmr": TIGHT}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(n, seed):
    return torch.randn(n, generator=seeded(seed), dtype=torch.float64)


def scheme(energy=None, map=None, **settings):
    energy = energies.Potential(potential) + energies.Entropy() if energy is None else energy
    # damping: so few samples overfit the map without, and a run that folds doubles every rounding error at each step
    settings = {"num_samples": N, "num_eval": 2 * N + 1, "damping": 1e-4, **settings}  # the last block has one sample
    return pwgf.PWGF(energy, map or maps.ResidualMLP(2, width=8, axis_units=2), pwgf.Gaussian(2), **settings)


def growing():
    """A flow in which a second layer begins: mass that is torn open to a ring."""
    energy = energies.Potential(lambda x: (x.square().sum(1) - 4).square() / 8) + 0.25 * energies.Entropy()
    settings = {"num_samples": 201, "num_eval": 200, "integrator": "implicit", "tolerance": 1e-3, "accuracy": 0.01}
    return pwgf.PWGF(energy, GROWS, pwgf.Gaussian(2, cov=0.25), damping=1e-6, **settings)


def given(map):
    """θ off the start, a last θ̇, samples: the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        map = MAPS[map]()
    theta = map.initial() + 0.1 * noise(map.num_params, 1)
    return map, theta, noise(map.num_params, 2), pwgf.Gaussian(2).sample(N, seeded(3))


def right_sides():
    """θ̇ of every solver, and the numbers that a step decides by."""
    found = {}
    for name in MAPS:
        map, theta, last, z = given(name)
        for solver, settings in SOLVERS.items():
            for form in ("velocity", "gradient"):
                if form == "gradient" and solver in ("dual", "lsmr"):
                    continue
                made = scheme(map=map, solver=linalg.get_solver(solver, **settings), form=form)
                side = RightSide(made._setup, z, last, 0.0, momentum=0.9, damping=0.1)
                found[f"{name} {solver} {form}"] = side(theta).numpy()
                figures = [side.fit, side.residual, side.start[0], float(side.displacement(last))]
                found[f"{name} {solver} {form} figures"] = np.array(
                    [*figures, side.fall(theta + 0.01 * last, 0.0)["energy"]]
                )
    return found


def implicit_solves():
    """η of an implicit step by every solver, with every part of a second variation, and its sizes."""
    found = {}
    for name in MAPS:
        map, theta, last, z = given(name)
        for solver, settings in SOLVERS.items():
            made = scheme(
                energy=ENERGIES["sum"]() + energies.PorousMedium(2),
                map=map,
                solver=linalg.get_solver(solver, **settings),
            )
            probes = torch.eye(2, dtype=torch.float64).expand(N, 2, 2)
            side = RightSide(
                made._setup, z, last, 0.0, momentum=0.0, damping=0.1, implicit_damping=0.1, implicit_momentum=0.9,
                probes=probes,
            )  # fmt: skip
            here = side.linearise(theta)
            found[f"{name} {solver} implicit"] = here.velocity(0.1).numpy()
            there = side.linearise(theta + 0.01 * last)
            found[f"{name} {solver} implicit again"] = there.velocity(0.1, there.moved_since(here)).numpy()
            sizes = [
                here.energy,
                here.fallen(0.1),
                here.displacement(last),
                here.stiffness(last),
                side.fit,
                *side.strain(),
            ]
            found[f"{name} {solver} implicit figures"] = np.array([*sizes, float(there.folded_since(here))])
    return found


def values():
    """F, v, ∇_θF and the second variation of every energy."""
    found = {}
    map, theta, _, z = given("layered")
    for name, make in ENERGIES.items():
        problem, group = scheme(energy=make())._setup, parallel.world()
        rho = problem.pushed(theta, z, 0.0)
        found[f"{name} value"] = problem.energy(rho).numpy()
        found[f"{name} velocity"] = rho.gather(problem.energy.velocity(rho)).numpy()
        form = problem.energy.hessian(rho)
        parts = [form.point, form.centred, form.slope, form.divergence]
        parts = [rho.gather(part.reshape(len(part), -1)) for part in parts if part is not None]
        found[f"{name} hessian"] = torch.cat(parts or [torch.ones(N, 1)], 1).numpy()
        leaf = theta.clone().requires_grad_(True)
        value = problem.energy(problem.pushed(leaf, z, 0.0))
        found[f"{name} gradient"] = group.sum(torch.autograd.grad(value, leaf)[0]).numpy()
        found[f"{name} traced value"] = value.detach().numpy()
    return found


def runs(folder):
    """Three rows of flows, in memory and in files; who writes; resumed files of the other number of processes."""
    found = {}
    for name in ("potential", "sum", "functional"):
        energy, settings = ENERGIES[name]() + energies.Entropy(), {} if name == "potential" else QUICK
        run = pwgf.solve(scheme(energy=energy, **settings), TIMES, seed=1)
        for column in ("theta", "energy", "energy_stderr", "projection_residual", "dissipation", "num_stages"):
            found[f"run {name} {column}"] = run[column]
    for integrator, name in (("implicit", "potential"), ("auto", "sum")):  # a step here is a thousand exchanges
        energy = ENERGIES[name]() + energies.Entropy()
        run = pwgf.solve(scheme(energy=energy, integrator=integrator), TIMES[:3], seed=1)
        for column in ("theta", "energy", "num_implicit", "num_stages"):
            found[f"run {integrator} {name} {column}"] = run[column]
    run = pwgf.solve(growing(), [0.0, 0.3], seed=1)
    found["run growing theta"], found["layers begun"] = run["theta"], np.array(GROWS.begun(run.theta(0.3)))
    make, made = Writer.create, []
    Writer.create = lambda *args, **settings: made.append(1) or make(*args, **settings)
    run = pwgf.solve(scheme(**QUICK), TIMES[:3], out=folder / "own.h5", seed=1)
    Writer.create = make
    found["run file theta"], found["writers"] = run["theta"], np.array(len(made))
    stop = lambda state, info: parallel.world().rank == parallel.world().size - 1  # noqa: E731
    found["rows when the last process stops"] = np.array(
        len(pwgf.solve(scheme(**QUICK), TIMES, seed=1, callbacks=[stop]))
    )
    particles = pwgf.EulerMaruyama(energies.Potential(potential), pwgf.Gaussian(2), num_samples=20, dt=0.05)
    found["run particles"] = pwgf.solve(particles, TIMES, seed=1, out=folder / "particles.h5")["theta"]
    return found


def told(action):
    """The error of an action, as text."""
    try:
        action()
    except (pwgf.PWGFError, SystemExit) as error:
        return np.array(f"{type(error).__name__}: {error}")
    return np.array("nothing")


class Own(Energy):
    """An energy that averages over what it sees."""

    def __call__(self, rho):
        return potential(rho.x).mean()

    def velocity(self, rho):
        return energies.Potential(potential).velocity(rho)


class OwnVelocity(Own):
    """The right value, with a velocity that averages over what it sees."""

    def __call__(self, rho):
        return 0.5 * rho.mean(rho.x).square().sum()

    def velocity(self, rho):
        return -rho.x.mean(0).expand_as(rho.x)


def failures(folder):
    """What all processes are told; two of them are no failure for a single process."""
    rank = parallel.world().rank
    map, theta, last, z = given("layered")
    first = z[0, 0] + 1e-9
    nan_at_first = scheme(energy=energies.Potential(lambda x: (x[:, 0] - first).sqrt()), map=maps.Affine(2))
    z = z[z[:, 0].argsort()]  # one bad sample, the first: it is rank 0's
    first = z[:2, 0].mean()
    side = RightSide(nan_at_first._setup, z, last[:6], 0.0, momentum=0.0, damping=1e-3)
    found = {"nan": told(lambda: side(maps.Affine(2).initial()))}
    found["damping"] = told(lambda: pwgf.solve(scheme(damping=1e-6 * (rank + 1)), TIMES))
    found["one device"] = told(lambda: parallel.world().check_own_device("xpu:0", "solve"))
    found["own devices"] = told(lambda: parallel.world().check_own_device(f"xpu:{rank}", "solve"))
    shift = float(rank)
    found["energy"] = told(lambda: scheme(energy=energies.Potential(lambda x: (x - shift).square().sum(-1))).start())
    found["own energy"] = told(lambda: scheme(energy=Own()).start())
    found["own velocity"] = told(lambda: scheme(energy=OwnVelocity()).start())
    pwgf.solve(scheme(**QUICK), TIMES[:2], out=folder / "there.h5")
    found["there"] = told(lambda: pwgf.solve(scheme(**QUICK), TIMES[:2], out=folder / "there.h5"))
    checkpoint, append = Writer.checkpoint, Writer.append

    def full(writer, row, restart):
        if row["t"] > 0:
            raise pwgf.StorageError(f"{writer.path}: the disk is full")
        append(writer, row, restart)

    Writer.append = full
    found["full"] = told(lambda: pwgf.solve(scheme(**QUICK), TIMES[:2], out=folder / "full.h5"))
    Writer.append = append
    seen = []
    Writer.checkpoint = lambda writer, restart: seen.append(restart["time"]) or checkpoint(writer, restart)

    def terminated(state, info):
        if rank == parallel.world().size - 1 and not seen:
            os.kill(os.getpid(), signal.SIGTERM)

    found["signal"] = told(
        lambda: pwgf.solve(
            scheme(integrator=pwgf.FixedStep("midpoint", 0.025)),
            TIMES,
            out=folder / "signal.h5",
            callbacks=[terminated],
        )
    )
    found["checkpoints"] = np.array(len(seen))
    Writer.checkpoint = checkpoint
    return found


def figures(folder):
    """All of the above."""
    folder = Path(folder)
    return {**right_sides(), **implicit_solves(), **values(), **runs(folder), **failures(folder)}


def dying(out, mode):
    """A run, begun or resumed, in which between the second row and the third something happens, by mode:

    "exit R", "halt R": process R exits, or halts; "kill": all are killed; "terminate": torchrun gets SIGTERM;
    "nothing".
    """
    rank = parallel.world().rank

    def die(state, info):
        if not 0.07 < state.t < TIMES[2]:
            return
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif mode == "terminate" and rank == 0:
            os.kill(os.getppid(), signal.SIGTERM)
            while not signal.getsignal(signal.SIGTERM).__self__.number:  # until torchrun has passed it on
                time.sleep(0.01)
        elif mode == f"halt {rank}":
            time.sleep(1000)
        elif mode == f"exit {rank}":
            os._exit(9)

    fixed = scheme(integrator=pwgf.FixedStep("midpoint", 0.0125))
    pwgf.solve(fixed, TIMES, out=out, seed=1, callbacks=[die], resume=True, checkpoint_seconds=1e-9)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "figures":
        np.savez(f"{sys.argv[2]}/rank-{os.environ['RANK']}.npz", **figures(sys.argv[2]))
        run = pwgf.solve(scheme(**QUICK), TIMES, out=f"{sys.argv[2]}/resumed.h5", seed=1, resume=True)
        if os.environ["RANK"] == "0":
            np.save(f"{sys.argv[2]}/resumed.npy", run["theta"])
        dying(f"{sys.argv[2]}/whole.h5", "nothing")
    else:
        dying(sys.argv[2], sys.argv[3])
