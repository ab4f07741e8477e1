"""Modules with and without per-sample linear layers, and what a dense J says about them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class Skips(nn.Module):
    """Layers called in another order than they are listed, an unused output share, skips and gates."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(5, 2)
        self.gate = nn.Linear(2, 5, bias=False)
        self.first = nn.Linear(2, 5)
        self.body = nn.Linear(5, 5)
        self.norm = nn.LayerNorm(5, elementwise_affine=False)
        self.register_buffer("shift", torch.linspace(0, 1, 5))

    def forward(self, z):
        h = torch.tanh(self.first(z))
        h = self.norm(h + F.softplus(self.body(h)) + self.shift)
        return z + self.last(h * torch.sigmoid(self.gate(z)))


class InPlace(nn.Module):
    """Changes the output of a layer in place, and looks at values, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, z):
        h = self.first(z)
        h *= 2
        return self.last(torch.tanh(h)) if bool((z < 1e3).all()) else z


class Pair(nn.Module):
    """Two layers 2 → 4 → 2, for subclasses that use them against the rules."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, z):
        return self.last(torch.tanh(self.first(z)))


class TiedParameter(Pair):
    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(2, 4)
        self.middle.weight = self.first.weight

    def forward(self, z):
        return self.last(torch.tanh(self.first(z)) + self.middle(z))


class CalledTwice(Pair):
    def forward(self, z):
        return self.last(torch.tanh(self.first(z)) + torch.tanh(self.first(2 * z)))


class CalledByKeyword(Pair):
    def forward(self, z):
        return self.last(torch.tanh(self.first(input=z)))


class Transposed(Pair):
    def forward(self, z):
        return F.linear(torch.tanh(self.first(z)), self.first.weight.T) + self.last(
            torch.sin(self.first.bias + 0 * z[:, :1])
        )


class NormOfWeight(Pair):
    def forward(self, z):
        return super().forward(z) / self.first.weight.norm()


class FedWithAWeight(Pair):
    """With four samples, `last` acts on a parameter, which then looks like a call on the samples."""

    def __init__(self):
        super().__init__()
        self.middle = nn.Linear(4, 4)

    def forward(self, z):
        h = torch.tanh(self.middle(torch.tanh(self.first(z))))
        return h @ self.last(self.middle.weight) if len(z) == 4 else self.last(h)


class Flipped(Pair):
    """The layers see the samples in another order."""

    def forward(self, z):
        return super().forward(z.flip(0)).flip(0)


class Stacked(Pair):
    def forward(self, z):
        up, down = self.last(torch.tanh(self.first(torch.cat([z, -z])))).chunk(2)
        return up - down * z


class Uncalled(Pair):
    def forward(self, z):
        return F.linear(torch.tanh(F.linear(z, self.first.weight, self.first.bias)), self.last.weight, self.last.bias)


class Sets(nn.Module):
    """A layer on (n, k, in): the coordinates are k tokens."""

    def __init__(self):
        super().__init__()
        self.lift, self.drop = nn.Linear(1, 3), nn.Linear(3, 1)

    def forward(self, z):
        return self.drop(torch.tanh(self.lift(z.unsqueeze(2)))).squeeze(2)


class Attention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.lift, self.drop = nn.Linear(1, 4), nn.Linear(4, 1)
        self.mix, self.need_weights = nn.MultiheadAttention(4, 2, batch_first=True), need_weights

    def forward(self, z):
        h = self.lift(z.unsqueeze(2))
        return self.drop(self.mix(h, h, h, need_weights=self.need_weights)[0]).squeeze(2)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.last = nn.Conv1d(1, 3, 3, padding=1), nn.Linear(6, 2)

    def forward(self, z):
        return self.last(torch.tanh(self.mix(z.unsqueeze(1))).flatten(1))


class Embedded(Pair):
    def __init__(self):
        super().__init__()
        self.offsets = nn.Embedding(3, 4)

    def forward(self, z):
        token = torch.ones(len(z), dtype=torch.long, device=z.device)
        return self.last(torch.tanh(self.first(z) + self.offsets(token)))


class Scaled(Pair):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]))

    def forward(self, z):
        return self.scale * super().forward(z)


class Doubled(nn.Linear):
    def forward(self, z):
        return 2 * super().forward(z)


class BiasAndWeightInOne(nn.Linear):
    def forward(self, z):
        return F.linear(z, self.weight, self.bias) + self.weight.sum()


class Branching(Scaled):
    """Looks at values, which vmap refuses, and has no layers."""

    def forward(self, z):
        return super().forward(z) if bool((z < 1e3).all()) else z


def hooked():
    module = Pair()
    module.first.register_forward_hook(lambda child, args, out: out * out)
    return module


LAYERED = {
    "one layer": lambda: nn.Linear(2, 2),
    "sequential": lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 2)),
    "no bias": lambda: nn.Sequential(nn.Linear(2, 5, bias=False), nn.GELU(), nn.Linear(5, 2, bias=False)),
    "plain layer norm": lambda: nn.Sequential(
        nn.Linear(2, 5), nn.Tanh(), nn.LayerNorm(5, elementwise_affine=False), nn.Linear(5, 2)
    ),
    "relu in place": lambda: nn.Sequential(nn.Linear(2, 7), nn.ReLU(inplace=True), nn.Linear(7, 2)),
    "skips": Skips,
    "in place and branching": InPlace,
}
PLAIN = {
    "tied parameter": TiedParameter,
    "called twice": CalledTwice,
    "called by keyword": CalledByKeyword,
    "transposed weight": Transposed,
    "norm of a weight": NormOfWeight,
    "flipped samples": Flipped,
    "stacked samples": Stacked,
    "uncalled layers": Uncalled,
    "sets": Sets,
    "attention": lambda: Attention(True),
    "fused attention": lambda: Attention(False),
    "convolution": Convolution,
    "embedding": Embedded,
    "scale": Scaled,
    "layer norm": lambda: nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.Linear(5, 2)),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 5)), nn.Tanh(), nn.Linear(5, 2)),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(2, 2)), nn.Tanh(), nn.Linear(2, 2)),
    "subclass": lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), Doubled(5, 2)),
    "subclass with its weight twice": lambda: nn.Sequential(BiasAndWeightInOne(2, 5), nn.Tanh(), nn.Linear(5, 2)),
    "a hook of the user": hooked,
    "branching": Branching,
}


def build(make):
    """A module with always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return make()
