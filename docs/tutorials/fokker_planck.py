# %% [markdown]
# # Fokker–Planck in five dimensions, against the exact law
#
# ∂ₜρ = ∇·(ρ∇V) + Δρ from N(0, I) in d = 5, where every coordinate falls into two wells, V(x) = c Σ(x_k⁴ − 16x_k² +
# 5x_k). As V is a sum over coordinates, the exact law is a product of laws on a line, which finite volumes give to
# all digits that matter here.

# %%
import torch

import pwgf
from pwgf import distances, energies, maps, problems


def V(x):  # (n, d) -> (n,)
    return 0.06 * (x**4 - 16 * x**2 + 5 * x).sum(-1)


energy = energies.Potential(V) + energies.Entropy()
scheme = pwgf.PWGF(energy, maps.ResidualMLP(dim=5), pwgf.Gaussian(dim=5))
run = pwgf.solve(scheme, times=torch.linspace(0, 1, 6), out="wells.h5", overwrite=True)

# %% [markdown]
# Without an exact law, a run judges itself: `error_estimate` is about W₂ to the exact law, `spread` the size of the
# law.

# %%
print(run["error_estimate"] / run["spread"])  # at most 1e-3

# %% [markdown]
# Here the exact law is known. `run.at(t)` and `exact.exact(t)` are both laws, so that distances take either. A distance
# between samples has a floor: what two samples of the same law show.

# %%
exact = problems.StyblinskiTang(dim=5, c=0.06)
for t in (0.2, 0.6, 1.0):  # 1e-5, 2e-5, 2e-4
    print(f"t = {t}: symmetric KL {float(distances.sym_kl(run.at(t), exact.exact(t), n=4000)):.1e}")

law, truth = run.at(1.0), exact.exact(1.0)
mine, theirs, others = law.sample(2000, seed=1), truth.sample(2000, seed=2), truth.sample(2000, seed=3)
print(f"energy distance {float(distances.energy_distance(mine, theirs)):.1e}")  # 8e-3
print(f"its floor       {float(distances.energy_distance(others, theirs)):.1e}")  # 6e-3

# %% [markdown]
# Densities of one coordinate, dashed those of the exact law.

# %%
figure = run.plot_marginals(times=[0.0, 0.2, 0.4, 1.0], dims=0, problem=exact)
figure.savefig("tutorial-fokker-planck.png")

# %% [markdown]
# Next: [which map, integrator and scheme](../which-map.md), [how far off is the
# law?](../method.md#how-far-off-is-the-law)
