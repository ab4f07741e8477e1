"""Langevin particles: the law at a time of the flow of KL(ρ|π) to a target π, known by many samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..measures import Reference

_ROUGH = 0.25  # largest curvature × step before a particle's step is split; width errors are then a per cent
_MAX_SPLIT = 2**12


class _Moment(NamedTuple):
    """The particles after `steps` full steps, with the state of their generator."""

    steps: int
    x: Tensor
    rng: Tensor


class LangevinParticles:
    """Particles of dX = ∇log π(X) dt + √2 dW, whose law is the flow of KL(ρ|π) from the reference, temperature 1.

    They are moved by Heun's method, X̃ = X + h∇log π(X) + √(2h) ξ, X ← X + ½h(∇log π(X) + ∇log π(X̃)) + √(2h) ξ, of
    weak order 2 for additive noise; where `curvature` times h exceeds ¼, a particle's step is split. Where they have
    come is kept; what `at(t)` gives does not depend on what was asked before.

    Args:
        name: of what asks, for messages.
        log_target: log π, (n, d) -> (n,), differentiable.
        reference: their law at the start.
        count: N ≥ 2 particles.
        dt: longest step h > 0, in units of t.
        seed: of their start and noise.
        start: time of the start.
        curvature: about the largest |eigenvalue| of ∇²log π, (n, d) -> (n,).

    References:
        P. E. Kloeden, E. Platen, Numerical Solution of Stochastic Differential Equations, 1992, §15.1.
    """

    def __init__(
        self,
        name: str,
        log_target: Callable[[Tensor], Tensor],
        reference: Reference,
        count: int,
        dt: float,
        seed: int,
        *,
        start: float,
        curvature: Callable[[Tensor], Tensor],
    ) -> None:
        self._name, self._log_target, self._reference = name, log_target, reference
        self._count, self._dt, self._seed = count, dt, seed
        self._start, self._curvature = start, curvature
        self._moments: list[_Moment] = []

    def at(self, t: float) -> Tensor:
        """The particles at time t after the start, (N, d).

        Raises:
            NonFiniteError: they left the range of numbers: `dt` is too long.
        """
        whole = (t - self._start) / self._dt
        steps = math.floor(whole + 1e-9)
        moment = self._after(steps)
        x, rest = moment.x, (whole - steps) * self._dt
        if rest > 1e-9 * self._dt:  # a last, shorter step, with noise that the path does not see
            generator = torch.Generator().manual_seed(((self._seed + 1) << 32) + steps)
            x = self._checked(self._step(x, rest, generator), t)
        return x

    def _after(self, steps: int) -> _Moment:
        """The particles after so many steps, from the latest ones kept before."""
        earlier = [moment for moment in self._moments if moment.steps <= steps]
        if earlier:
            last = max(earlier, key=lambda moment: moment.steps)
        else:
            generator = torch.Generator().manual_seed(self._seed)
            last = _Moment(0, self._reference.sample(self._count, generator), generator.get_state())
        if last.steps == steps:
            return last
        x, generator = last.x, torch.Generator()
        generator.set_state(last.rng)
        for k in range(last.steps, steps):
            x = self._checked(self._step(x, self._dt, generator), self._start + (k + 1) * self._dt)
        self._moments.append(_Moment(steps, x, generator.get_state()))
        return self._moments[-1]

    def _step(self, x: Tensor, h: float, generator: torch.Generator) -> Tensor:
        """One step of length h, (N, d); stiff particles take it in 2, 4, 8, … parts."""
        rough = (self._curvature(x) * h / _ROUGH).clamp(1, _MAX_SPLIT)
        parts = 2 ** torch.ceil(torch.log2(rough) - 1e-12).long()
        moved = x.clone()
        for count in parts.unique().tolist():
            mine = parts == count
            y = x[mine]
            for _ in range(count):
                y = self._heun(y, h / count, generator)
            moved[mine] = y
        return moved

    def _heun(self, x: Tensor, h: float, generator: torch.Generator) -> Tensor:
        noise = math.sqrt(2 * h) * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        drift = self._drift(x)
        return x + 0.5 * h * (drift + self._drift(x + h * drift + noise)) + noise

    def _drift(self, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(self._log_target(leaf).sum(), leaf)[0]

    def _checked(self, x: Tensor, t: float) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise NonFiniteError(
                f"{self._name}.exact: {int((~torch.isfinite(x).all(1)).sum())} of {len(x)} Langevin particles are NaN "
                f"or infinite at t = {t:.6g}. Cause: the step is unstable where the target is steep. Give a shorter "
                f"one: {self._name}(…, dt={self._dt / 4:g})."
            )
        return x
