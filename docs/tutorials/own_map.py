# %% [markdown]
# # Your own map
#
# Any network may carry the law. `maps.FromModule(module, dim, residual=True)` adds it to the identity at the start,
# so that ρ = λ. It must be smooth: `tanh`, `softplus`, `GELU`, not `ReLU`, as the score has its second derivatives.

# %%
import torch
from torch import nn

import pwgf
from pwgf import distances, maps, problems

problem = problems.StyblinskiTang(dim=2, c=0.06)
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))

# %% [markdown]
# A network alone has no affine part, which most flows need: compose it with one.

# %%
candidates = {
    "network": maps.FromModule(network, dim=2, residual=True),
    "network, then affine": maps.Composed([maps.FromModule(network, dim=2, residual=True), maps.Affine(dim=2)]),
    "the default": maps.ResidualMLP(dim=2),
}
runs = {}
for name, candidate in candidates.items():
    scheme = pwgf.PWGF(problem.energy, candidate, problem.reference, num_samples=300)
    runs[name] = pwgf.solve(scheme, times=[0.0, 0.25])

# %% [markdown]
# `projection_residual` is the share of E|v|² that the map cannot follow, on fresh samples: the figure by which to
# judge a map where no exact law is known. Here one is.

# %%
for name, run in runs.items():  # symmetric KL 5e-5, 4e-5, 5e-6
    kl = float(distances.sym_kl(run.at(0.25), problem.exact(0.25), n=2000))
    print(f"{name}: residual {run['projection_residual'][-1]:.1e}, symmetric KL {kl:.1e}")

# %%
figure = runs["network, then affine"].plot_density(t=0.25, problem=problem)
figure.savefig("tutorial-own-map.png")

# %% [markdown]
# A file does not hold your module: give the map to `pwgf.load(path, map=…)`, which checks it against values in the
# file. Next: [a class of maps with cheap Jacobians](../extending.md#a-map), [which map when](../which-map.md).
