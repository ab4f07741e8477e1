"""Any normalizing flow of the package zuko as a push-forward map."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import Pushed, check_dim, check_points, score_by_inverse
from .coupling import import_zuko
from .from_module import FromModule

_ACCURACY = 1e-6  # to which the flow's log det must be that of its own map: zuko's bisections go no further


class FromFlow(FromModule):
    r"""T_θ(z): the direction in which a zuko flow draws its samples, z → x; θ are the parameters of its transform.

    A zuko flow holds a transform from x to z and a law of z. T is the inverse of that transform; the flow's own law is
    not looked at: λ is the reference that the scheme is given, so the pair starts at the flow's own measure where the
    two laws agree (`pwgf.Gaussian(dim)` for most flows). `initial` gives the flow's own parameters: unlike the other
    maps, T_θ₀ is the flow as it was given, trained or not. The flow is not changed.

    The inverse is the transform itself, log|det| its own, and the score is one backward pass through the log density.
    T runs the transform backwards: one pass for coupling flows, d passes for autoregressive ones (give
    `zuko.lazy.Flow(flow.transform.inv, flow.base)` for the other way round). J comes as factors where the networks are
    plain `zuko.nn.MLP`s, as in coupling flows.

    Args:
        flow: an unconditional `zuko.lazy.Flow`, differentiable twice for energies with a density: give its networks a
            smooth activation, such as activation=torch.nn.Tanh; with zuko's default, ReLU, scores jump.
        dim: d ≥ 1.

    Raises:
        ConfigError: zuko is missing, this is no flow, a parameter is frozen or there are none, its own log det is not
            that of its map, and what `FromModule` refuses.
        ShapeError: the transform does not map (n, d) to (n, d).

    Example:
        >>> import torch, zuko
        >>> from pwgf import maps
        >>> map = maps.FromFlow(zuko.flows.RealNVP(2, hidden_features=(8,), activation=torch.nn.Tanh), dim=2)
        >>> map(map.initial(), torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([5, 2])

    References:
        Rozet et al., Zuko: normalizing flows in PyTorch, 2022, doi 10.5281/zenodo.7625672.
    """

    _call: ClassVar[str] = "FromFlow(flow"

    def __init__(self, flow: nn.Module, dim: int) -> None:
        check_dim(dim, "FromFlow(flow, dim)")
        zuko = import_zuko("FromFlow(flow, dim)")
        transform = getattr(flow, "transform", None)
        if not isinstance(flow, zuko.lazy.LazyDistribution) or not isinstance(transform, zuko.lazy.LazyTransform):
            raise ConfigError(
                "FromFlow(flow, dim): flow must be a zuko flow, a law with a transform; got "
                f"{type(flow).__name__}. Take one of zuko.flows, or zuko.lazy.Flow(transform, base); other modules go "
                "to maps.FromModule."
            )
        self._linear = (nn.Linear, zuko.nn.Linear)
        super().__init__(_Sampler(transform), dim)
        self._check_log_det()

    def _check_log_det(self) -> None:
        """Refuses transforms whose log det is an estimate, or belongs to another map, as that of the exact ODE does."""
        theta, z, _, _ = self._random_point()
        with torch.no_grad():
            expected = torch.linalg.slogdet(self.jacobian(theta, z)).logabsdet
            back, log_abs_det = self._pull(theta, self(theta, z))
        gap, miss = float((log_abs_det + expected).abs().max()), float((back - z).abs().max())
        if not (gap < _ACCURACY and miss < _ACCURACY):
            raise ConfigError(
                f"FromFlow(flow, dim={self.dim}): the flow's log det misses that of its own map by {gap:.1e}, its "
                f"inverse z by {miss:.1e}. Causes: (a) a continuous flow, whose trace is estimated or whose steps are "
                "adaptive: use maps.NeuralODE; (b) an inverse by iteration: tighten it; (c) an operation that cannot be "
                "differentiated."
            )

    def _pull(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """T⁻¹(x), (n,d), and log|det ∂_xT⁻¹| (n,), by the transform itself."""
        z, log_abs_det = self._run(self.unpack(theta), x, True)
        return z, log_abs_det if log_abs_det.ndim == 1 else log_abs_det.sum(1)

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """The transform at x."""
        check_points(self, x)
        with torch.no_grad():
            return self._pull(theta.detach(), x.detach())[0]

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log|det ∂_zT| (n,) by the transform; differentiable. An invertible map has one sign everywhere: it is given as 1."""
        return torch.ones_like(z[:, 0]), -self._pull(theta, self(theta, z))[1]

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """∇ log ρ(T(z)) by one backward pass through log ρ(x) = log λ(T⁻¹(x)) + log|det ∂T⁻¹(x)|."""
        theta = theta.detach()
        with torch.enable_grad():
            x = self(theta, z.detach()).detach().requires_grad_(True)
            back, log_abs_det = self._pull(theta, x)
            score = score_by_inverse(back, log_abs_det, x, slope)
        return Pushed(score, torch.ones_like(z[:, 0]), -log_abs_det.detach())

    def to_config(self) -> dict[str, Any]:
        """Names the transform's class; the flow itself cannot be rebuilt from JSON and is handed to `load(map=…)`."""
        return {"name": "FromFlow", "dim": self.dim, "flow": type(self._module.transform).__qualname__}


class _Sampler(nn.Module):
    """z → x by the transform's inverse; with `back` x → (z, log|det|) by the transform."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, points: Tensor, back: bool = False) -> Any:
        transform = self.transform()
        return transform.call_and_ladj(points) if back else transform.inv(points)
