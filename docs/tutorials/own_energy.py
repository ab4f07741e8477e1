# %% [markdown]
# # Your own energy
#
# Plain functions make most energies: `Potential(V)`, `Interaction(W)`, `Local(g)` with g(x, log ρ), `Functional(F)`
# of all samples at once. Velocities and second variations follow by automatic differentiation.

# %%
import torch

import pwgf
from pwgf import energies, maps

# %% [markdown]
# A crowd: a hill repels, a wide bowl holds it together, and the pressure ρ^(3/2) keeps people apart. F = ∫V dρ +
# ∫2ρ^(3/2).


# %%
def V(x):  # (n, 2) -> (n,)
    return x.square().sum(-1) / 4 + 2 * torch.exp(-(x - 0.5).square().sum(-1))


def pressure(x, log_rho):  # (n, 2), (n,) -> (n,), the energy per sample
    return 2 * torch.exp(log_rho / 2)


energy = energies.Potential(V) + energies.Local(pressure)
map, reference = maps.ResidualMLP(dim=2), pwgf.Gaussian(dim=2)
scheme = pwgf.PWGF(energy, map, reference, num_samples=500)
run = pwgf.solve(scheme, times=torch.linspace(0, 1, 5), out="crowd.h5", overwrite=True)
print(run["energy"])  # falls from 1.59 to 1.37
print(run["error_estimate"] / run["spread"])  # 1.2 % at the end

# %%
figure = run.plot_density(t=1.0)
figure.savefig("tutorial-own-energy.png")

# %% [markdown]
# A term that couples all samples: the crowd also wants its centre at (1, 0). `Functional(F)` takes any scalar of
# `rho.x` and `rho.log_density`, here ½·5·|E x − a|².


# %%
def centred(rho):
    return 2.5 * (rho.x.mean(0) - torch.tensor([1.0, 0.0]).to(rho.x)).square().sum()


scheme = pwgf.PWGF(energy + energies.Functional(centred), map, reference, num_samples=500)
pulled = pwgf.solve(scheme, times=[0.0, 1.0])
print(run.at(1.0).mean(), pulled.at(1.0).mean())  # (−.11, −.11) and (.91, −.02)

# %% [markdown]
# The flow goes downhill in F, whatever F is: if `run["energy"]` rises, something is wrong. Next: [a class of
# energies](../extending.md#an-energy), [energies that depend on time](driven.py).
