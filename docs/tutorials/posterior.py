# %% [markdown]
# # A posterior: samples, weights and evidence
#
# A logistic growth curve y = K/(1 + e^{−r(t − 5)}) seen at twelve times with noise. The unknowns are log K, log r and
# the log of the noise; log p below is prior times likelihood with all constants, so that Z is the evidence of the
# model.

# %%
import math

import torch
from matplotlib.figure import Figure

from pwgf import sampling

generator = torch.Generator().manual_seed(1)
times = torch.linspace(0, 11, 12, dtype=torch.float64)
data = 10 / (1 + torch.exp(-0.8 * (times - 5))) + 0.4 * torch.randn(12, generator=generator, dtype=torch.float64)
centre = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)


def curve(x):  # (n, 3) -> (n, 12)
    return x[:, :1].exp() / (1 + torch.exp(-x[:, 1:2].exp() * (times - 5)))


def log_p(x):  # (n, 3) -> (n,)
    prior = -0.5 * (x - centre).square().sum(-1) - 1.5 * math.log(2 * math.pi)
    misfit = (data - curve(x)) / x[:, 2:].exp()
    return prior - 0.5 * misfit.square().sum(-1) - 12 * (x[:, 2] + 0.5 * math.log(2 * math.pi))


# %% [markdown]
# `whiten="laplace"` puts the origin at the mode and measures in its curvature. The flow stops where KL(ρ|posterior)
# is below `tolerance`; the density of ρ is exact, so each sample has a weight, and `ess` says what the weights leave
# of them.

# %%
# log Z = -7.663 ± 0.001, effective share 0.996; log K = 2.284 ± 0.014
found = sampling.sample(log_p, dim=3, n=2000, whiten="laplace", num_samples=400)
print(f"log Z = {found.log_z:.3f} ± {found.log_z_stderr:.3f}, effective share {found.ess:.3f}")
for name, mean, variance in zip(("log K", "log r", "log noise"), found.mean(), found.cov().diagonal(), strict=True):
    print(f"{name:9} {float(mean):+.3f} ± {float(variance) ** 0.5:.3f}")

# %% [markdown]
# Hamiltonian chains check it: the same means, from an unrelated method.

# %%
chains = sampling.hmc(log_p, found.x[:32], steps=200, warmup=100)
print("chains   ", [round(float(mean), 3) for mean in chains.samples.mean(0)], f"R̂ {float(chains.rhat.max()):.3f}")

# %%
figure = Figure(figsize=(6, 3.5), layout="constrained")
axes = figure.subplots()
axes.plot(times, curve(found.x[:100]).T, color="C0", alpha=0.1)
axes.plot(times, data, "ko")
axes.set(xlabel="t", ylabel="y", title="100 samples of the posterior")
figure.savefig("tutorial-posterior.png")

# %% [markdown]
# Next: [modes that are missed, other coordinates, logistic regression](../uses.md#samples-of-an-unnormalised-density)
