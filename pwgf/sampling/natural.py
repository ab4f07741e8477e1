"""Natural-gradient descent of KL(ρ|π), which finishes what a flow has begun.

The flow moves samples along forces, so that mass crosses a barrier as rarely as particles do. In the metric of Fisher
and Rao, mass moves between wells at once: the step η minimises

    KL(ρ|π) − E[v·Jη] + ½E|div(Jη) + Jη·∇ log ρ|² + ½ε|η|²,   v = ∇ log p − ∇ log ρ,

whose rows, −∂_θ log ρ_θ at fixed x, are one for each sample. Near ρ = π this is Newton's method.

References:
    S. Amari, Natural Gradient Works Efficiently in Learning, 1998.
    A. Chen, M. Heyl, Empowering deep neural quantum states through efficient optimization, 2024 (p > n).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from ..energies.base import slope as gradient
from ..errors import PWGFError
from ..maps import PushForward
from ..measures import PushedMeasure, Reference

_DAMPING = 1e-6  # ε relative to the mean eigenvalue, where samples outnumber parameters fourfold
_DAMPING_OF_FEW = 0.1  # the same for fewer samples
_NUM_SAMPLES = 2000  # of a step; up to twice as many where they are four for each parameter
_MOST_NUMBERS = 40_000_000  # of the rows, n·p
_LONGEST = 0.5  # step: standard deviation of the change of log ρ
_MOST_STEPS = 60
_NEAR = 3.0  # nats, of KL(ρ|π): above it the steps are still on their way
_PATIENCE = 12  # steps in which KL must fall by a tenth
_HALVINGS = 4  # of a step, before ε grows
_CHUNK = 500  # samples whose rows are formed at a time


class _Look(NamedTuple):
    """At n samples: log p − log ρ (n,), ∇ log ρ and v (n,d), which samples lie on a fold (n,), and |x|² (n,)."""

    log_w: Tensor
    score: Tensor
    force: Tensor
    folded: Tensor
    squares: Tensor

    @property
    def spread(self) -> float:
        """The rms of x."""
        return float(self.squares.mean().sqrt())

    def objective(self, kept: Tensor) -> float:
        """−E log w over the samples kept: KL(ρ|π) but for a constant."""
        return -float(self.log_w[kept].mean())


class Descended(NamedTuple):
    """The best θ (p,), and before each step KL(ρ|π), F = −E log w, both in nats, and the rms of x."""

    theta: Tensor
    kl: list[float]
    energies: list[float]
    spreads: list[float]

    def add(self, kl: float, look: _Look) -> None:
        """Records the state before a step."""
        self.kl.append(kl)
        self.energies.append(-float(look.log_w.mean()))
        self.spreads.append(look.spread)

    @property
    def rests(self) -> bool:
        """Has neither KL nor F fallen by a tenth of KL in the last twelve steps?"""
        if len(self.kl) <= _PATIENCE:
            return False
        best = min(self.kl)
        fall = min(self.energies[:-_PATIENCE]) - min(self.energies)
        return best > 0.9 * min(self.kl[:-_PATIENCE]) and fall < 0.1 * best

    @property
    def arrived(self) -> bool:
        """Did KL fall below three nats?"""
        return min(self.kl, default=math.inf) < _NEAR

    @property
    def runs_away(self) -> bool:
        """Did F still fall after all steps, a third as fast as at first or faster, while the samples spread tenfold?"""
        middle = _MOST_STEPS // 2
        if len(self.energies) <= _MOST_STEPS or self.spreads[-1] < 10 * self.spreads[0]:
            return False
        return self.energies[middle] - self.energies[-1] > (self.energies[0] - self.energies[middle]) / 3


class NaturalDescent:
    """Natural-gradient descent of KL((T_θ)#λ | p/Z).

    Args:
        map, reference: T and λ.
        target: log p, (n,d) → (n,), differentiable.
        device: where p is evaluated.
        seed: of the samples, which are drawn anew for each step.

    `works` says that the map's derivatives can be batched (`torch.func.vmap`) and that 500 rows of p numbers fit into
    memory; `has_enough`, that the samples outnumber the parameters fourfold: then a step is cheap, and nearly exact.
    """

    def __init__(
        self, map: PushForward, reference: Reference, target: Callable[[Tensor], Tensor], device: str, seed: int
    ) -> None:
        self.map, self.reference, self.target, self.device = map, reference, target, device
        self.generator = torch.Generator().manual_seed(seed)
        self.has_enough = enough = 4 * map.num_params <= 2 * _NUM_SAMPLES
        wanted = max(_NUM_SAMPLES, 4 * map.num_params) if enough else _NUM_SAMPLES
        self.num_samples = min(wanted, _MOST_NUMBERS // map.num_params)
        self.least_damping = self.damping = _DAMPING if enough else _DAMPING_OF_FEW
        self.works = self.num_samples >= _CHUNK and self._can_be_batched()

    def run(self, theta: Tensor, tolerance: float) -> Descended:
        """Steps from θ (p,) until the estimated KL(ρ|π) is below `tolerance`, in nats.

        It ends before that where in twelve steps neither the estimate nor F has fallen by a tenth of it, after sixty
        steps, and where log p is not finite.
        """
        theta, self.damping = theta.double().to(self.device), self.least_damping
        found = Descended(theta, [], [], [])
        for _ in range(_MOST_STEPS + 1):
            z = self.reference.matched_sample(self.num_samples, self.generator).to(self.device)
            look = self._look(theta, z)
            kl = float(torch.logsumexp(look.log_w, 0)) - math.log(len(z)) - float(look.log_w.mean())
            if not math.isfinite(kl):
                break
            if kl <= min(found.kl, default=math.inf):
                found = found._replace(theta=theta)
            found.add(kl, look)
            if kl <= tolerance or found.rests:
                break
            theta = self._stepped(theta, z, look)
        return found

    def _can_be_batched(self) -> bool:
        z = self.reference.sample(2, 0).to(self.device)
        try:
            self.rows(self.map.initial(0).to(self.device), z, torch.ones_like(z))
        except RuntimeError:  # control flow that depends on values, or an operation without a rule
            return False
        return True

    def _look(self, theta: Tensor, z: Tensor) -> _Look:
        parts = []
        for part in z.split(4 * _CHUNK):
            rho = PushedMeasure(self.map, self.reference, theta, part)
            x = rho.x.detach().requires_grad_(True)
            value = self.target(x)
            force = gradient(value, x, "log p(x)")
            log_w, squares = value.detach() - rho.log_density, x.detach().square().sum(1)
            parts.append((log_w, rho.score, force - rho.score, rho.det_sign <= 0, squares))
        return _Look(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _stepped(self, theta: Tensor, z: Tensor, look: _Look) -> Tensor:
        """θ after the longest step along which KL falls and no sample comes to lie on a fold; θ where there is none."""
        kept = ~look.folded
        if not bool(kept.any()):
            return theta
        rows = self.rows(theta, z[kept], look.score[kept])
        slope = self._pulled(theta, z[kept], look.force[kept])
        for _ in range(_HALVINGS):
            eta = solved(rows, slope, self.damping)
            change = float((rows @ eta).square().mean().sqrt())
            share = min(1.0, _LONGEST / max(change, 1e-300))
            for halving in range(_HALVINGS):
                new = theta + share * 0.5**halving * eta
                expected = share * 0.5**halving * float(slope @ eta)
                if self._is_better(new, z, look, 0.1 * expected):
                    self.damping = max(self.damping / 4, self.least_damping)
                    return new
            self.damping *= 16
        return theta

    def _is_better(self, theta: Tensor, z: Tensor, before: _Look, fall: float) -> bool:
        """Does θ lower F by more than `fall` on the samples that lie on no fold, and keep them off?"""
        try:
            then = self._look(theta, z)
        except PWGFError:  # of a map that cannot be evaluated there
            return False
        kept = ~before.folded
        lower = before.objective(kept) - then.objective(kept) > fall
        return lower and not bool((then.folded & kept).any())

    def rows(self, theta: Tensor, z: Tensor, score: Tensor) -> Tensor:
        """−∂_θ log ρ_θ at fixed x = T(z), (n,p), less their mean."""

        def log_density(theta: Tensor, z: Tensor, score: Tensor) -> Tensor:
            moved = self.map(theta, z.unsqueeze(0)).squeeze(0)
            _, log_abs_det = torch.linalg.slogdet(self.map.jacobian(theta, z.unsqueeze(0)).squeeze(0))
            return log_abs_det + score @ moved

        of_each = vmap(grad(log_density), (None, 0, 0))
        parts = zip(z.split(_CHUNK), score.split(_CHUNK), strict=True)
        rows = torch.cat([of_each(theta, *part).detach() for part in parts])
        return rows - rows.mean(0)

    def _pulled(self, theta: Tensor, z: Tensor, force: Tensor) -> Tensor:
        """E[Jᵀv], (p,): minus the gradient of KL(ρ|π)."""
        leaf = theta.detach().clone().requires_grad_(True)
        (slope,) = torch.autograd.grad((self.map(leaf, z) * force).sum(), leaf)
        return slope / len(z)


def solved(rows: Tensor, slope: Tensor, damping: float) -> Tensor:
    """(RᵀR/n + ε)⁻¹ s for rows R (n,p), with ε relative to the mean eigenvalue; the smaller Gram matrix is factored."""
    n, p = rows.shape
    few = n < p
    gram = (rows @ rows.T if few else rows.T @ rows) / n
    epsilon = damping * float(gram.trace()) / p
    gram.diagonal().add_(epsilon)
    factor, _ = torch.linalg.cholesky_ex(gram)  # of a matrix that is not finite: a step that is not, and is refused
    if not few:
        return torch.cholesky_solve(slope[:, None], factor)[:, 0]
    seen = rows.T @ torch.cholesky_solve((rows @ slope)[:, None], factor)[:, 0] / n
    return (slope - seen) / epsilon
