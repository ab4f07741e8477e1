"""Any `torch.nn.Module` as a push-forward map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import ConfigError, ShapeError
from .base import Block, PushForward, blocks, check_dim

_STATEFUL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class FromModule(PushForward):
    r"""T_θ(z) = module_θ(z), with θ the flattened parameters of a module that maps (n,d) to (n,d).

    `initial` gives the module's own parameters, so the flow starts at (module)#λ; with `residual=True` the map is
    T_θ(z) = z + module_θ(z) − module_θ₀(z), which starts as the identity exactly, whatever the module. The module is
    not changed; its buffers are constants of the map. Jη and Jᵀu go by double backward, ∂_zT by `torch.func`.

    Args:
        module: differentiable twice, acting on each sample by itself (no BatchNorm), without randomness (no Dropout).
        dim: d ≥ 1.
        residual: start as the identity.

    Raises:
        ConfigError: not a module, no trainable parameters, a frozen parameter, BatchNorm or Dropout inside.
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

    def __init__(self, module: nn.Module, dim: int, *, residual: bool = False) -> None:
        check_dim(dim, "FromModule(module, dim)")
        if not isinstance(module, nn.Module):
            raise ConfigError(
                f"FromModule(module, dim): module must be a torch.nn.Module; got {type(module).__name__}."
            )
        for name, child in module.named_modules():
            if isinstance(child, _STATEFUL):
                raise ConfigError(
                    f"FromModule: {name or 'the module'} is a {type(child).__name__}, which makes T depend on the "
                    "other samples or on chance; a map must act on each sample by itself. Remove it, or use LayerNorm."
                )
        frozen = [name for name, q in module.named_parameters() if not q.requires_grad]
        if frozen:
            raise ConfigError(
                f"FromModule: parameter {frozen[0]!r} is frozen (requires_grad=False), so the flow could not move it; "
                "unfreeze it, or register it as a buffer to keep it constant."
            )
        self.dim, self.residual = dim, bool(residual)
        self._module = module
        self._names = [name for name, _ in module.named_parameters()]
        if not self._names:
            raise ConfigError("FromModule: the module has no parameters, so there is nothing to move.")
        self._layout = blocks([(name, tuple(q.shape)) for name, q in module.named_parameters()])
        self._theta0 = torch.cat([q.detach().double().cpu().reshape(-1) for q in module.parameters()])
        self._check_output()

    def _check_output(self) -> None:
        z = torch.zeros(2, self.dim, dtype=torch.float64)
        try:
            out = self._apply(self._theta0, z)
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise ShapeError(
                f"FromModule(module, dim={self.dim}): the module failed on an input of shape (2, {self.dim}): {error}. "
                "It must map (n, dim) to (n, dim) in any float dtype."
            ) from error
        if not isinstance(out, Tensor) or out.shape != z.shape:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ShapeError(
                f"FromModule(module, dim={self.dim}): the module must map (2, {self.dim}) to the same; got {got}."
            )

    def _apply(self, theta: Tensor, z: Tensor) -> Tensor:
        values = dict(zip(self._names, self.unpack(theta), strict=True))
        for name, buffer in self._module.named_buffers():
            values[name] = buffer.to(z) if buffer.is_floating_point() else buffer.to(z.device)
        return functional_call(self._module, values, (z,))

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

    def to_config(self) -> dict[str, Any]:
        """Names the module's class; the module itself cannot be rebuilt from JSON and is handed to `load(map=…)`."""
        return {
            "name": "FromModule",
            "dim": self.dim,
            "residual": self.residual,
            "module": type(self._module).__qualname__,
        }
