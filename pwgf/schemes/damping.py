"""How strongly a solve is damped: by the gap between old and new samples each interval, and by trial now and then."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import NonFiniteError
from .right_side import Problem, clip_folded, finite_velocity

NOTCH = 4.0
"""Factor between one damping and the next."""

PERIOD, HURRY = 20, 5
"""Intervals from one trial to the next, which costs three of their eighty right sides; and where much is missed."""

MUCH, LITTLE = 0.33, 0.01
"""Shares of |v|² left over that call for a trial soon, and that are not worth a smaller damping."""

LEAST = 1e-8
"""Damping below which a trial does not go: rounding takes over there."""

_CLEARLY = 0.8  # ratio of what is left over that is worth a notch; smaller gains are noise, or momentum's doing
_AT_ALL = 0.97  # the same where much is left over: there each notch brings little and many of them bring a lot


def adapted_damping(damping: float, low: float, high: float, first_fit: float, held_out: float) -> float:
    """The damping of the next interval, within [low, high].

    A notch up while the last solve missed clearly more of v on fresh samples than a solve misses on its own (it fitted
    noise), or missed a third of it anyway (what is left is beyond the map: a few fast samples near a fold, which small
    damping chases); a notch down when the two agree to 30 % or less than 1 % is held out; else unchanged.

    Args:
        damping: λ of the last interval.
        low, high: bounds.
        first_fit: share of |v|² that the first solve of the interval missed on its own samples.
        held_out: share that θ̇ of the interval before missed on the same samples, which it had not seen.
    """
    if held_out > max(2 * first_fit, 0.03) or held_out > MUCH:
        damping = NOTCH * damping
    elif held_out < max(1.3 * first_fit, LITTLE):
        damping = damping / NOTCH
    return min(max(damping, low), high)


def tried_damping(
    problem: Problem, theta: Tensor, prior: Tensor, z: Tensor, fresh: Tensor, t: float, *, damping: float, high: float
) -> float:
    """λ, or what is reached from it by notches each of which leaves clearly less of v on samples not seen by the solve.

    Cost: two velocities and three solves, one more for each notch taken.

    Args:
        problem: what is solved.
        theta: (p,).
        prior: momentum × last θ̇, (p,).
        z: (n,d) samples of the solves.
        fresh: (m,d) samples on which they are judged.
        t: time, for messages.
        damping: λ.
        high: largest damping allowed; the smallest is 1e-8.
    """
    try:
        rho, held = problem.pushed(theta, z), problem.pushed(theta, fresh)
        v = clip_folded(finite_velocity(problem.energy, rho, t), rho, problem.clip, rho.group)[0]
        w = clip_folded(finite_velocity(problem.energy, held, t), held, problem.clip, held.group)[0]
    except NonFiniteError:  # the next interval will say so, or get round it
        return damping
    tangent, judge = problem.tangent(theta, z), problem.tangent(theta, fresh)

    def left_over(trial: float) -> float:
        solution = problem.solver(tangent, v, damping=trial, prior=prior)
        if not solution.converged:
            return math.inf
        missed, whole = (judge.jv(solution.x) - w).square().sum(), w.square().sum()
        missed, whole = held.group.sum(torch.stack([missed, whole]))
        return float(missed / whole) if float(whole) > 0 else 0.0

    start = left_over(damping)
    for factor in (1 / NOTCH, NOTCH):
        here, chosen = start, damping
        while LEAST <= factor * chosen <= high and (factor > 1 or here > LITTLE):
            there = left_over(factor * chosen)
            if there >= (_AT_ALL if here > MUCH else _CLEARLY) * here:
                break
            here, chosen = there, factor * chosen
        if chosen != damping:
            return chosen
    return damping


def is_due(num_steps: int, held_out: float) -> bool:
    """Whether a trial follows after so many intervals."""
    return num_steps % PERIOD == HURRY or (held_out > MUCH and num_steps % HURRY == 0)
