# %% [markdown]
# # A driven system: work and entropy production
#
# A harmonic trap is dragged along at unit speed, V(t, x) = ½|x − t e₁|², at temperature ½. The law lags behind; the
# work done on it is dissipated.

# %%
import torch
from matplotlib.figure import Figure

import pwgf
from pwgf import energies, maps, problems


def V(t, x):  # t a 0-d tensor, (n, d) -> (n,)
    return 0.5 * ((x[:, 0] - t).square() + x[:, 1].square())


energy = energies.Potential(V, time=True) + 0.5 * energies.Entropy()
scheme = pwgf.PWGF(energy, maps.Affine(dim=2), pwgf.Gaussian(dim=2, cov=0.5 * torch.eye(2)))
run = pwgf.solve(scheme, times=torch.linspace(0, 4, 17), out="trap.h5", overwrite=True)

# %% [markdown]
# Two columns tell the thermodynamics: `power`, the rate of work E ∂ₜV, and `entropy_production`, E|v|²/τ. Both are
# known here.

# %%
exact = problems.MovingTrap(dim=2, speed=1.0, stiffness=1.0, temperature=0.5)
print(run["power"][-1], exact.power(4.0))  # 0.984, 0.982: from 10 000 samples
print(run["entropy_production"][-1], exact.entropy_production(4.0))  # 1.9274, 1.9274
print(run.at(4.0).mean(), exact.exact(4.0).mean())  # (3.0183, 0) both

# %%
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
axes.plot(run.t, run["power"], "o", label="power")
axes.plot(run.t, run["entropy_production"], "s", label="entropy production")
axes.plot(run.t, [exact.power(t) for t in run.t], "k--", label="exact")
axes.plot(run.t, [exact.entropy_production(t) for t in run.t], "k--")
axes.set(xlabel="t")
axes.legend()
figure.savefig("tutorial-driven.png")

# %% [markdown]
# A force that is no gradient is a `Drift(b)`, noise in some directions a `Diffusion(D)`. A particle in the same trap
# that also rotates:


# %%
def b(x):  # (n, d) -> (n, d)
    return torch.stack([-x[:, 0] - 2 * x[:, 1], 2 * x[:, 0] - x[:, 1]], 1)


start = pwgf.Gaussian(dim=2, mean=[2.0, 0.0], cov=torch.eye(2) / 4)
scheme = pwgf.PWGF(energies.Drift(b) + energies.Diffusion(0.5), maps.Affine(dim=2), start)
spiral = pwgf.solve(scheme, times=torch.linspace(0, 2, 5))
for t in spiral.t:
    print(f"t = {t}: mean {spiral.at(t).mean().tolist()}")

# %% [markdown]
# Next: [driven flows](../driven.md), [second-order flows](../hamiltonian.md).
