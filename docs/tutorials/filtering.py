# %% [markdown]
# # Filtering: a diffusion seen through noise
#
# dX = −V′(X) dt + √2 dW in a rippled well, V = sin(2πx)/π + x²/4, is observed with noise of variance 1. The law of X
# given what was seen so far is wanted. Between observations it follows a Fokker–Planck equation; at each, Bayes'
# rule.

# %%
import math

import torch
from matplotlib.figure import Figure

import pwgf
from pwgf import filtering

model = filtering.StateSpace(
    potential=lambda x: (torch.sin(2 * math.pi * x) / math.pi + x.square() / 4).sum(-1),
    log_likelihood=lambda y, x: -(x - y).square().sum(-1) / 2 - math.log(2 * math.pi) / 2,
    initial=pwgf.Gaussian(1),
)
times, seen = [0.5, 1.0], [0.3, 1.9]
found = filtering.run(model, times, seen, end=1.5, tolerance=1e-3, num_samples=400)  # short rather than exact

# %% [markdown]
# Each update states its own errors in nats: that of the flow towards the posterior, and that of the one map which
# replaces two. `share` is the effective share of the samples before: small where an observation is a surprise.

# %%
print(f"log evidence {found.log_evidence:.3f}")  # −3.399
for t, update in zip(times, found.updates, strict=True):
    print(f"t = {t}: share {update.share:.2f}, flow {update.kl_flow:.1e}, fit {update.kl_fit:.1e}")

# %% [markdown]
# In d = 1 finite volumes give the exact law.

# %%
exact = filtering.finite_volumes(model, times, seen, end=1.5)
x = torch.linspace(-4, 4, 400, dtype=torch.float64)[:, None]
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
axes.plot(x, found.law.log_density(x).exp(), label="pwgf")
axes.plot(exact.grid, exact.density, "k--", label="finite volumes")
axes.set(xlabel="x", ylabel="density at t = 1.5", xlim=(-4, 4))
axes.legend()
figure.savefig("tutorial-filtering.png")

# %% [markdown]
# Next: [its limits, and other filters](../uses.md#filtering)
