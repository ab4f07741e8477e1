"""Any `torch.nn.Module` as a push-forward map."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..checks import check_dim, check_each_sample, plain_numbers, private
from ..errors import ConfigError, ShapeError
from ._module_layers import linear_spots, linearise_layers
from ._products import products
from .base import Block, Linearisation, PushForward, blocks

_ALONE = threading.RLock()  # while θ is lent to a module or hooks are tied to it, no other thread may run one
_STATEFUL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class FromModule(PushForward):
    r"""T_θ(z) = module_θ(z), with θ the flattened parameters of a module that maps (n,d) to (n,d).

    `initial` returns the parameters of the module, so the flow starts at (module)#λ; with `residual=True` the map is
    T_θ(z) = z + module_θ(z) − module_θ₀(z), which starts as the identity exactly, whatever the module. The map keeps a
    copy of the module as it is now, whose buffers are constants; threads may share the map and run it in turn.

    Where all parameters belong to `nn.Linear` layers, each called once per evaluation on one row per sample, with
    anything between them, J comes as factors of these layers, so that Gram matrices and the trace are cheap and the
    solver `pcg` can be used for large problems. This is detected automatically and checked against plain
    differentiation; every other module (shared weights, convolutions, attention, scales of a LayerNorm, …) is
    differentiated plainly. Jη and Jᵀu use double backward; Jη uses forward mode, two to three times slower, where the
    module has no second derivative.

    Args:
        module: differentiable, acting on each sample separately (no BatchNorm), without randomness (no Dropout); twice
            differentiable for energies with a density.
        dim: d ≥ 1.
        residual: start as the identity.

    Raises:
        ConfigError: not a module, no trainable parameters, a frozen parameter, BatchNorm or Dropout inside, or an
            output that cannot be differentiated by the parameters.
        ShapeError: the module does not map (n, d) to (n, d).

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> map = maps.FromModule(module, dim=2, residual=True)
        >>> z = torch.randn(5, 2, dtype=torch.float64)
        >>> torch.equal(map(map.initial(), z), z)
        True
    """

    _call: ClassVar[str] = "FromModule(module"  # how messages name the call
    _linear: tuple[type[nn.Module], ...] = (nn.Linear,)

    @plain_numbers
    def __init__(self, module: nn.Module, dim: int, *, residual: bool = False) -> None:
        check_dim(dim, f"{self._call}, dim)")
        if not isinstance(module, nn.Module):
            raise ConfigError(f"{self._call}, dim): module must be a torch.nn.Module; got {type(module).__name__}.")
        for name, child in module.named_modules():
            if isinstance(child, _STATEFUL):
                raise ConfigError(
                    f"{type(self).__name__}: {name or 'the module'} is a {type(child).__name__}, which makes T depend "
                    "on the other samples or on chance; a map must act on each sample separately. Remove it, or use "
                    "LayerNorm."
                )
        if any(nn.parameter.is_lazy(q) for q in (*module.parameters(), *module.buffers())):
            raise ConfigError(
                f"{self._call}, dim={dim}): the module is lazy, its parameters have no shape yet. Call it once: "
                f"module(torch.zeros(2, {dim}))."
            )
        frozen = [name for name, q in module.named_parameters() if not q.requires_grad]
        if frozen:
            raise ConfigError(
                f"{type(self).__name__}: parameter {frozen[0]!r} is frozen (requires_grad=False), so the flow could "
                "not move it; unfreeze it, or register it as a buffer to keep it constant."
            )
        self.dim = dim
        self.residual = bool(residual)
        self._module = self._copied(module)
        self._names = [name for name, _ in module.named_parameters()]
        if not self._names:
            raise ConfigError(
                f"{type(self).__name__}: the module has no parameters, so there is nothing to move. Buffers are "
                "constants: make what the flow should move an nn.Parameter."
            )
        self._layout = blocks([(name, tuple(q.shape)) for name, q in module.named_parameters()])
        self._theta0 = torch.cat([q.detach().double().cpu().reshape(-1) for q in module.parameters()])
        self._check_output()
        theta, z, _, _ = self._random_point()
        check_each_sample(partial(self._apply, theta), [z], f"{self._call}, dim={self.dim}): the module")
        self._forward_mode = False
        self._forward_mode = self._needs_forward_mode()
        self._spots = linear_spots(self._module, self._layout, self._linear)
        if self._spots is not None and not self._layers_agree():
            self._spots = None

    def _copied(self, module: nn.Module) -> nn.Module:
        """A module of the map's own, to which θ is lent and hooks are tied: the user's stays as it is."""
        try:
            return copy.deepcopy(module)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(
                f"{self._call}, dim={self.dim}): the module cannot be copied: {error}. Causes: (a) a tensor computed "
                "in __init__ and kept: use torch.nn.utils.parametrizations, or compute it in forward; (b) an open "
                "file or the like among its attributes."
            ) from error

    def _check_output(self) -> None:
        z = torch.linspace(-1, 1, 2 * self.dim, dtype=torch.float64).view(2, self.dim)
        try:
            out = self._apply(self._theta0, z)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise ShapeError(
                f"{self._call}, dim={self.dim}): the module failed on an input of shape (2, {self.dim}): {error}. "
                "It must map (n, dim) to (n, dim) in any float dtype."
            ) from error
        if not isinstance(out, Tensor) or out.shape != z.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(
                f"{self._call}, dim={self.dim}): the module must map (2, {self.dim}) to the same; got {got}."
            )

    def _needs_forward_mode(self) -> bool:
        """Whether Jη requires forward mode because the module has no second derivative.

        A Function marked `once_differentiable` raises nothing in a double backward but loses its part of Jη, hence the
        comparison with Jᵀu.
        """
        theta, z, u, eta = self._random_point()
        try:
            plain = self._linearise_plainly(theta, z)
            pulled = plain.jtu(u)
        except RuntimeError as error:
            raise ConfigError(
                f"{self._call}, dim={self.dim}): T cannot be differentiated by the module's parameters: {error}. "
                "Causes: (a) an operation in place on a tensor that the derivative needs: use the out-of-place "
                "version, h = h * 2 instead of h *= 2, nn.ReLU() instead of nn.ReLU(inplace=True); (b) detach, no_grad "
                "or NumPy inside the module: use torch's operations on the tensors themselves."
            ) from error
        reasons = []
        for name, jv in (("double backward", plain.jv), ("forward mode", partial(self._jvp, theta, z))):
            try:
                moved = jv(eta)
            except RuntimeError as error:
                reasons.append(f"{name}: {error}")
                continue
            gap = ((moved * u).sum() - eta @ pulled).abs() / (moved.norm() * u.norm() + eta.norm() * pulled.norm())
            if not bool(gap > 1e-5):  # far above rounding; the solve reports NaN
                return name == "forward mode"
            reasons.append(f"{name}: Jη and Jᵀu disagree")
        raise ConfigError(
            f"{self._call}, dim={self.dim}): Jη cannot be computed ({'; '.join(reasons)}). Replace the operation, "
            "or give your torch.autograd.Function a backward made of torch's operations, without once_differentiable."
        )

    def _layers_agree(self) -> bool:
        """Whether the factors are J: compared along random directions, which detects every error."""
        theta, z, u, eta = self._random_point()
        try:
            found, plain = self._linearise_layers(theta, z), self._linearise_plainly(theta, z)
            if found is None or found.layers is None:
                return False
            moved, pulled = plain.jv(eta), plain.jtu(u)
            by_factors = torch.stack([layer.push(eta) for layer in found.layers()]).sum(0)
            pairs = [(found.jv(eta), moved), (by_factors, moved), (found.jtu(u), pulled)]
        except RuntimeError:  # an operation that only forward mode differentiates
            return False
        return all(bool((got - right).norm() <= 1e-9 * right.norm()) for got, right in pairs)

    def _random_point(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """θ near the start, where no weight is zero, and random z (3,d), u (3,d), η (p,); the same at every call."""
        generator, p, d = torch.Generator().manual_seed(0), len(self._theta0), self.dim
        noise, eta, *samples = (torch.randn(k, generator=generator, dtype=torch.float64) for k in (p, p, 3 * d, 3 * d))
        z, u = (sample.view(3, d) for sample in samples)
        return self._theta0 + 0.01 * (1 + self._theta0.abs()) * noise, z, u, eta

    def _apply(self, theta: Tensor, z: Tensor) -> Tensor:
        return self._run(self.unpack(theta), z)

    def _run(self, parameters: Sequence[Tensor], z: Tensor, *more: Any) -> Any:
        values = dict(zip(self._names, parameters, strict=True))
        for name, buffer in self._module.named_buffers():
            values[name] = buffer.to(z.device, z.dtype if buffer.is_floating_point() else None, copy=True)
        with _ALONE, sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            return functional_call(self._module, values, (private(z), *more))

    def layout(self) -> list[Block]:
        """The module's parameters in its own order, under its own names."""
        return self._layout

    def initial(self, seed: int = 0) -> Tensor:
        """The module's parameters when the map was made; the seed is not needed."""
        return self._theta0.clone()

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """module_θ(z), or z + module_θ(z) − module_θ₀(z)."""
        if not self.residual:
            return self._apply(theta, z)
        return z + (self._apply(theta, z) - self._apply(self._theta0.to(theta), z))

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J at (θ, z), with `layers` where the module has them. Cost of a product: about two of T."""
        theta, z = theta.detach(), z.detach()
        return self._linearise_layers(theta, z) or self._linearise_plainly(theta, z)

    def _linearise_layers(self, theta: Tensor, z: Tensor) -> Linearisation | None:
        if self._spots is None:
            return None
        leaves = self._leaves(theta)
        with _ALONE:
            return linearise_layers(self._spots, leaves, len(theta), lambda: self._run(leaves, z))

    def _linearise_plainly(self, theta: Tensor, z: Tensor) -> Linearisation:
        leaves = self._leaves(theta)
        with torch.enable_grad():
            push, pull = products(self._run(leaves, z), leaves)

        def jv(eta: Tensor) -> Tensor:
            return self._jvp(theta, z, eta) if self._forward_mode else push(self.unpack(eta))

        return Linearisation(jv, lambda u: torch.cat([g.reshape(-1) for g in pull(u)]))

    def _jvp(self, theta: Tensor, z: Tensor, eta: Tensor) -> Tensor:
        """Jη by forward mode."""
        return jvp(lambda at: self._apply(at, z), (theta,), (eta,))[1].detach()

    def _leaves(self, theta: Tensor) -> list[Tensor]:
        """The blocks of θ as separate leaves: derivatives need not pass through one vector of length p."""
        return [block.detach().requires_grad_(True) for block in self.unpack(theta)]

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """J itself, (n,d,p); n·d backward passes one by one where `torch.vmap` refuses the module."""
        try:
            return super().tangent_rows(theta, z)
        except RuntimeError:  # control flow that depends on values, or an operation without a rule for vmap
            seeds = torch.eye(self.dim, dtype=z.dtype, device=z.device).unsqueeze(1)
            tangents = [self._linearise_plainly(theta.detach(), zi[None]) for zi in z.detach()]
            return torch.stack([torch.stack([tangent.jtu(seed) for seed in seeds]) for tangent in tangents])

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂_zT (n,d,d), differentiable; by d backward passes over all samples where `torch.vmap` refuses the module.

        Raises:
            ConfigError: its derivative is asked for, and the module has no second one.
        """
        followed = torch.is_grad_enabled() and (theta.requires_grad or z.requires_grad)
        if followed and self._forward_mode:
            raise ConfigError(
                f"{type(self).__name__}.jacobian: this energy needs the score of the pushed measure, thus second "
                "derivatives of the module, which has none (an operation without a differentiable backward). Replace "
                "the operation, or use an energy without density (Potential, Interaction)."
            )
        try:
            return super().jacobian(theta, z)
        except RuntimeError:  # as in `tangent_rows`
            with torch.enable_grad():
                at = z if z.requires_grad else z.detach().requires_grad_(True)
                x = self(theta, at)
                rows = [torch.autograd.grad(x[:, k].sum(), at, create_graph=True)[0] for k in range(self.dim)]
            found = torch.stack(rows, dim=1)
            return found if followed else found.detach()

    def to_config(self) -> dict[str, Any]:
        """The class name of the module; the module cannot be rebuilt from JSON and is passed to `load(map=…)`."""
        return {
            "name": type(self).__name__,
            "dim": self.dim,
            "residual": self.residual,
            "module": type(self._module).__qualname__,
        }
