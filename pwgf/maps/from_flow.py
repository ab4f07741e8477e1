"""Any normalizing flow of the package zuko as a push-forward map."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import check_dim, check_points, plain_numbers
from ..errors import ConfigError
from ._products import products
from ._zuko import import_zuko
from .base import Linearisation, Pushed, score_by_inverse
from .from_module import FromModule

_ACCURACY = 1e-5  # of the flow's log det relative to that of its own map: the accuracy of zuko's bisections


class FromFlow(FromModule):
    r"""T_θ(z): the direction in which a zuko flow draws its samples, z → x; θ are the parameters of its transform.

    A zuko flow holds a transform from x to z and a law of z. T is the inverse of that transform; the law of z is
    ignored, because λ is the reference given to the scheme. The run starts at the measure of the flow where the two
    laws agree (`pwgf.Gaussian(dim)` for most flows). `initial` returns the parameters of the flow: unlike with the
    other maps, T_θ₀ is the flow as given, trained or not. The flow is not changed.

    The inverse and log|det| are those of the transform, and the score is one backward pass through the log density. T
    inverts the transform: one pass for coupling flows, d passes for autoregressive ones
    (`zuko.lazy.Flow(flow.transform.inv, flow.base)` exchanges the two directions). J comes as factors where the
    networks are plain `zuko.nn.MLP`s, as in coupling flows. Where T is an iteration without a second derivative (zuko's
    bisection, in SOSPF, BPF, NAF and others), J follows from the transform by the implicit function theorem; T is then
    as accurate as the iteration, 1e-6.

    Args:
        flow: an unconditional `zuko.lazy.Flow`, differentiable twice for energies with a density: give its networks a
            smooth activation, such as activation=torch.nn.Tanh; with zuko's default, ReLU, scores jump.
        dim: d ≥ 1.

    Raises:
        ConfigError: zuko is missing, this is not a flow, a parameter is frozen or there are none, its own log det is
            not that of its map, or `FromModule` would refuse it.
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

    @plain_numbers
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
        self._implicit = False
        super().__init__(_Sampler(transform), dim)
        self._check_log_det()

    def _needs_forward_mode(self) -> bool:
        try:
            return super()._needs_forward_mode()
        except ConfigError:
            self._implicit = True  # the check again, with the implicit derivative
        try:
            return super()._needs_forward_mode()
        except ConfigError as error:
            raise ConfigError(
                f"{error} Flows whose transform is integrated numerically (CNF, UNAF, SOSPF) belong here: use "
                "maps.NeuralODE, or a coupling or autoregressive flow."
            ) from error

    def _check_log_det(self) -> None:
        """Refuses transforms whose log det is an estimate, or that of another map, as a continuous flow's."""
        theta, z, _, _ = self._random_point()
        with torch.no_grad():
            expected = torch.linalg.slogdet(self.jacobian(theta, z).detach()).logabsdet
            back, log_abs_det = (found.detach() for found in self._pull(theta, self(theta, z)))
        gap, miss = float((log_abs_det + expected).abs().max()), float((back - z).abs().max())
        if not (gap < _ACCURACY and miss < _ACCURACY):
            raise ConfigError(
                f"FromFlow(flow, dim={self.dim}): the flow's log det misses that of its own map by {gap:.1e}, its "
                f"inverse z by {miss:.1e}. Causes: (a) a continuous flow, whose trace is estimated or whose steps are "
                "adaptive: use maps.NeuralODE; (b) an inverse by iteration: tighten it; (c) an operation that cannot "
                "be differentiated."
            )

    def _linearise_plainly(self, theta: Tensor, z: Tensor) -> Linearisation:
        """Where T is an iteration, from G = T⁻¹ at x = T(z): G(θ, x) = z gives ∂_θT = −(∂_xG)⁻¹ ∂_θG."""
        if not self._implicit:
            return super()._linearise_plainly(theta, z)
        with torch.no_grad():
            x = self(theta, z)
        leaves = self._leaves(theta)
        with torch.enable_grad():
            push, pull = products(self._run(leaves, x, True)[0], leaves)
        slopes = self._slopes_back(theta, x)

        def jv(eta: Tensor) -> Tensor:
            return -torch.linalg.solve(slopes, push(self.unpack(eta)).unsqueeze(2)).squeeze(2)

        def jtu(u: Tensor) -> Tensor:
            w = -torch.linalg.solve(slopes.transpose(1, 2), u.unsqueeze(2)).squeeze(2)
            return torch.cat([g.reshape(-1) for g in pull(w)])

        return Linearisation(jv, jtu)

    def _slopes_back(self, theta: Tensor, x: Tensor) -> Tensor:
        """∂_xT⁻¹ (n,d,d), by d backward passes."""
        with torch.enable_grad():
            at = x.detach().requires_grad_(True)
            back = self._pull(theta.detach(), at)[0]
            rows = [torch.autograd.grad(back[:, k].sum(), at, retain_graph=True)[0] for k in range(self.dim)]
        return torch.stack(rows, dim=1)

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂_zT (n,d,d), differentiable where T is no iteration."""
        if not self._implicit:
            return super().jacobian(theta, z)
        with torch.no_grad():
            x = self(theta, z)
        return torch.linalg.inv(self._slopes_back(theta, x))

    def _pull(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """T⁻¹(x), (n,d), and log|det ∂_xT⁻¹| (n,), by the transform itself."""
        z, log_abs_det = self._run(self.unpack(theta), x, True)
        return z, log_abs_det if log_abs_det.ndim == 1 else log_abs_det.sum(1)

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """The transform at x."""
        check_points(x, self.dim, f"{type(self).__name__}.inverse(theta, x): x", finite=True)
        with torch.no_grad():
            return self._pull(theta.detach(), x.detach())[0]

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log|det ∂_zT| (n,) by the transform; differentiable. Its sign, the same everywhere, is returned as 1."""
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
        """The class name of the transform; the flow itself cannot be stored; pass it to `load(map=…)`."""
        return {"name": "FromFlow", "dim": self.dim, "flow": type(self._module.transform).__qualname__}


class _Sampler(nn.Module):
    """z → x by the transform's inverse; with `back` x → (z, log|det|) by the transform."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, points: Tensor, back: bool = False) -> Any:
        transform = self.transform()
        return transform.call_and_ladj(points) if back else transform.inv(points)
