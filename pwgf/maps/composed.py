"""One map after another, all or some of them moving."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import check_points
from ..errors import ConfigError, ShapeError
from ._products import products, times
from .base import Block, Layer, Linearisation, Pushed, PushForward


@dataclass(frozen=True, init=False)
class Composed(PushForward):
    r"""T = T_K ∘ … ∘ T_1; θ holds the parameters of the moving maps one after another, the others are fixed.

    Jacobians are multiplied, log|det| added, inverses applied in reverse order, the score is pushed from map to map,
    and the tangent of a part is multiplied by the Jacobians of the maps after it: all exact wherever the parts are. J
    comes as layers where all moving parts have them.

    Cost: the sum of the parts, and one d×d product per sample for each map after the first moving one.

    Args:
        maps: T_1, …, T_K in the order in which they are applied.
        moving: numbers k ≥ 0 of the maps whose parameters the flow moves; None means all.
        thetas: K entries, each the parameters (p_k,) at which that map stays, or starts if it moves; None, as a whole
            or as an entry, means the map's own `initial`.

    Raises:
        ConfigError: no maps, not maps, different dimensions, or a `moving` that names no map.
        ShapeError: `thetas` does not fit the maps.

    Example:
        >>> import torch
        >>> from pwgf import maps
        >>> map = maps.Composed([maps.Affine(2), maps.ResidualMLP(2)], moving=[1])
        >>> map.num_params == maps.ResidualMLP(2).num_params
        True
    """

    maps: tuple[PushForward, ...]
    moving: tuple[int, ...]
    thetas: tuple[tuple[float, ...] | None, ...]
    dim: int = field(init=False, compare=False)
    _kept: dict[int, Tensor] = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        maps: Sequence[PushForward],
        moving: Sequence[int] | None = None,
        thetas: Sequence[Tensor | Sequence[float] | None] | None = None,
    ) -> None:
        maps = tuple(maps)
        if not maps or not all(isinstance(map, PushForward) for map in maps):
            raise ConfigError(
                f"Composed(maps) needs at least one map; got {[type(map).__name__ for map in maps]}. Wrap a module as "
                "maps.FromModule(module, dim)."
            )
        dims = [map.dim for map in maps]
        if len(set(dims)) > 1:
            raise ConfigError(f"Composed(maps): all maps must have the same dim; got {dims}.")
        chosen = range(len(maps)) if moving is None else moving
        moving = tuple(sorted(set(chosen)))
        if not moving or len(moving) != len(chosen) or not set(moving) <= set(range(len(maps))):
            raise ConfigError(
                f"Composed(maps, moving=…) needs at least one of the numbers 0 … {len(maps) - 1}, each once; got "
                f"{list(chosen)}. Leave it out to move all maps."
            )
        for name, value in {"maps": maps, "moving": moving, "dim": dims[0]}.items():
            object.__setattr__(self, name, value)
        given = _checked(maps, thetas)
        kept = {k: (map.initial() if given[k] is None else given[k]) for k, map in enumerate(maps) if k not in moving}
        given = [kept.get(k, theta) for k, theta in enumerate(given)]
        object.__setattr__(self, "thetas", tuple(None if theta is None else tuple(theta.tolist()) for theta in given))
        object.__setattr__(self, "_kept", kept)

    def layout(self) -> list[Block]:
        """The blocks of the moving maps, named number.block."""
        found, offset = [], 0
        for k in self.moving:
            found += [Block(f"{k}.{b.name}", b.shape, b.offset + offset) for b in self.maps[k].layout()]
            offset += self.maps[k].num_params
        return found

    @property
    def needs_damping(self) -> bool:  # type: ignore[override]
        """Whether a part does."""
        return any(map.needs_damping for map in self.maps)

    @property
    def periodic(self) -> bool:  # type: ignore[override]
        """Whether a part is."""
        return any(map.periodic for map in self.maps)

    @property
    def own_coordinates(self) -> bool:  # type: ignore[override]
        """Whether a part sees its own."""
        return any(map.own_coordinates for map in self.maps)

    def check_domain(self, z: Tensor, call: str) -> None:
        """That of the first map."""
        self.maps[0].check_domain(z, call)

    def closes(self, lower: Tensor, upper: Tensor) -> bool:
        """Whether all parts do."""
        return all(map.closes(lower, upper) for map in self.maps)

    @property
    def numbers_per_sample(self) -> int:
        """Those of the parts."""
        return sum(map.numbers_per_sample for map in self.maps)

    def initial(self, seed: int = 0) -> Tensor:
        """The given parameters of the moving maps, else their own starts; number k starts from seed + k."""
        starts = [(k, self.thetas[k]) for k in self.moving]
        return torch.cat(
            [self.maps[k].initial(seed + k) if t is None else torch.tensor(t, dtype=torch.float64) for k, t in starts]
        )

    def _split(self, theta: Tensor) -> list[Tensor]:
        """θ of every map, moving or not."""
        pieces = iter(theta.split([self.maps[k].num_params for k in self.moving]))
        return [next(pieces) if k in self.moving else self._kept[k].to(theta) for k in range(len(self.maps))]

    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """T_K(… T_1(z))."""
        for map, part in zip(self.maps, self._split(theta), strict=True):
            z = map(part, z)
        return z

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """The product of the parts' Jacobians."""
        jacobians = []
        for map, part in zip(self.maps, self._split(theta), strict=True):
            jacobians.append(map.jacobian(part, z))
            z = map(part, z)
        return functools.reduce(lambda before, after: after @ before, jacobians)

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        """The sum of the parts'."""
        total = torch.zeros_like(z[:, 0])
        for map, part in zip(self.maps, self._split(theta), strict=True):
            total, z = total + map.log_abs_det(part, z), map(part, z)
        return total

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the parts' signs and the sum of their log|det|."""
        sign, total = torch.ones_like(z[:, 0]), torch.zeros_like(z[:, 0])
        for map, part in zip(self.maps, self._split(theta), strict=True):
            its_sign, its_log = map.volume(part, z)
            sign, total, z = sign * its_sign, total + its_log, map(part, z)
        return sign, total

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """From map to map: the score of the measure that one map makes is the slope from which the next one starts."""
        sign, log_abs_det = torch.ones_like(z[:, 0]), torch.zeros_like(z[:, 0])
        inverses: list[Tensor | None] = []
        for map, part in zip(self.maps, self._split(theta.detach()), strict=True):
            pushed = map.push_score(part, z, slope)
            slope, sign, log_abs_det = pushed.score, sign * pushed.det_sign, log_abs_det + pushed.log_abs_det
            inverses.append(pushed.inverse)
            z = map(part, z)
        known = [inverse for inverse in inverses if inverse is not None]
        whole = functools.reduce(torch.matmul, known) if len(known) == len(inverses) else None
        return Pushed(slope, sign, log_abs_det, whole)

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """The parts' inverses, the last map's first; raises what they raise."""
        check_points(x, self.dim, f"{type(self).__name__}.inverse(theta, x): x", finite=True)
        for map, part in reversed(list(zip(self.maps, self._split(theta.detach()), strict=True))):
            x = map.inverse(part, x)
        return x

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J = [D_{k+1}⋯ J_k over the moving k], D the Jacobians of the later maps at their own inputs."""
        return _Chain(self._parts(theta, z)).linearisation()

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """The same of ∂_zT·ξ, by the chain rule: D_{k+1}⋯ of the part's own, and its J with D_{k+1}⋯ bent along ξ."""
        return _Chain(self._parts(theta, z, xi)).linearisation()

    def _parts(self, theta: Tensor, z: Tensor, xi: Tensor | None = None) -> list[_Part]:
        """The moving maps from the last to the first, each with what the later ones make of its tangent."""
        thetas, z, met = self._split(theta.detach()), z.detach(), []
        first, offset = self.moving[0], self.num_params
        for k, (map, part) in enumerate(zip(self.maps, thetas, strict=True)):
            jacobian, bent = None, None
            if k > first:
                jacobian, bent = _bent(map, part, z, xi)
            elif xi is not None:
                jacobian = map.jacobian(part, z).detach()
            met.append((z, xi, jacobian, bent))
            xi = xi if xi is None else times(jacobian, xi)
            z = map(part, z).detach()
        found: list[_Part] = []
        after: Tensor | None = None
        bend: Tensor | None = None
        for k in range(len(self.maps) - 1, first - 1, -1):
            map, part, (z, xi, jacobian, bent) = self.maps[k], thetas[k], met[k]
            if k in self.moving:
                offset -= map.num_params
                own = map.linearise(part, z) if xi is None or bend is not None else None
                slope = None if xi is None else map.linearise_slope(part, z, xi)
                found.append(_Part(slice(offset, offset + map.num_params), own, slope, after, bend))
            if k > first and jacobian is not None:
                if bent is not None:
                    bent = bent if after is None else after @ bent
                    bend = bent if bend is None else bend @ jacobian + bent
                after = jacobian if after is None else after @ jacobian
        return found

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """J itself, (n,d,p), from the rows of the parts."""
        rows: list[Tensor] = []
        for k, (map, part) in enumerate(zip(self.maps, self._split(theta.detach()), strict=True)):
            if rows:
                jacobian = map.jacobian(part, z).detach()
                rows = [jacobian @ earlier for earlier in rows]
            if k in self.moving:
                rows.append(map.tangent_rows(part, z))
            z = map(part, z).detach()
        return torch.cat(rows, dim=2)

    def slope_rows(self, theta: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """∂_θ(∂_zT·ξ) itself, (n,d,p), by the chain rule from the rows and the slope rows of the parts."""
        rows: list[Tensor] = []
        slopes: list[Tensor] = []
        for k, (map, part) in enumerate(zip(self.maps, self._split(theta.detach()), strict=True)):
            jacobian, bend = _bent(map, part, z, xi)
            slopes = [jacobian @ slope + bend @ row for slope, row in zip(slopes, rows, strict=True)]  # type: ignore[operator]  # with ξ
            rows = [jacobian @ row for row in rows]
            if k in self.moving:
                rows.append(map.tangent_rows(part, z))
                slopes.append(map.slope_rows(part, z, xi))
            xi, z = times(jacobian, xi), map(part, z).detach()
        return torch.cat(slopes, dim=2)

    def to_config(self) -> dict[str, Any]:
        """The configurations of the parts, and the parameters of those that stay."""
        config = {"maps": [map.to_config() for map in self.maps], "moving": list(self.moving)}
        return {"name": "Composed", **config, "thetas": [given and list(given) for given in self.thetas]}


def _bent(map: PushForward, theta: Tensor, z: Tensor, xi: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """∂_zT and, where there are directions ξ (n,d), its derivative along them, (n,d,d) each."""
    if xi is None:
        return map.jacobian(theta, z).detach(), None
    with torch.enable_grad():
        leaf = z.detach().requires_grad_(True)
        jacobian = map.jacobian(theta, leaf)
        if not jacobian.requires_grad:  # an affine map
            return jacobian, torch.zeros_like(jacobian)
        return jacobian.detach(), products(jacobian, [leaf])[0]([xi]).detach()


def _checked(
    maps: tuple[PushForward, ...], thetas: Sequence[Tensor | Sequence[float] | None] | None
) -> list[Tensor | None]:
    """θ of every map where it is given, (p_k,) float64 on the CPU."""
    given = [None] * len(maps) if thetas is None else list(thetas)
    if len(given) != len(maps):
        raise ShapeError(
            f"Composed(maps, thetas=…) needs one entry per map, {len(maps)}; got {len(given)}. None: the map "
            "starts at its initial()."
        )
    found: list[Tensor | None] = []
    for k, (map, theta) in enumerate(zip(maps, given, strict=True)):
        if theta is None:
            found.append(None)
            continue
        values = torch.as_tensor(theta, dtype=torch.float64, device="cpu").detach()
        if values.shape != (map.num_params,) or not bool(torch.isfinite(values).all()):
            raise ShapeError(
                f"Composed(maps, thetas=…): entry {k} must hold the {map.num_params} finite parameters of "
                f"{type(map).__name__}; got shape {tuple(values.shape)}. Take them from run.theta(t) or map.initial()."
            )
        found.append(values.clone())
    return found


class _Part(NamedTuple):
    """A moving map: where its parameters lie, its J and its slopes' tangent, and A and B by which they count.

    Its part of J is A·J, of the tangent of slopes A·S + B·J; A is the product of the later maps' Jacobians (None where
    there are none) and B its derivative along ξ.
    """

    where: slice
    own: Linearisation | None
    slope: Linearisation | None
    after: Tensor | None
    bend: Tensor | None

    def terms(self) -> list[tuple[Linearisation, Tensor | None]]:
        """The tangents that add up, each with the matrices (n,d,d) by which it is multiplied; None is the unit one."""
        if self.slope is None:
            return [(self.own, self.after)]  # type: ignore[list-item]  # one of the two is there
        found = [(self.slope, self.after)]
        return found if self.own is None else [*found, (self.own, self.bend)]

    def layers(self) -> list[Layer]:
        """Its layers, if all terms have them."""
        found = [(layer, by) for tangent, by in self.terms() for layer in tangent.layers()]  # type: ignore[misc]
        shifted = [(layer._replace(offset=layer.offset + self.where.start), by) for layer, by in found]
        return [layer if by is None else _carried(layer, by) for layer, by in shifted]


class _Chain:
    """The tangent of a composition from those of its moving maps, the last first."""

    def __init__(self, parts: list[_Part]) -> None:
        self.parts = parts

    def linearisation(self) -> Linearisation:
        """As a whole."""
        tangents = [tangent for part in self.parts for tangent, _ in part.terms()]
        layered = all(tangent.layers is not None for tangent in tangents)
        repeats = len(tangents) > len(self.parts) or any(tangent.repeats for tangent in tangents)
        return Linearisation(self.jv, self.jtu, self.layers if layered else None, repeats=repeats)

    def jv(self, eta: Tensor) -> Tensor:
        """Jη, (n,d)."""
        moved = [times(by, tangent.jv(eta[part.where])) for part in self.parts for tangent, by in part.terms()]
        return torch.stack(moved).sum(0)

    def jtu(self, u: Tensor) -> Tensor:
        """Jᵀu, (p,)."""
        found = []
        for part in reversed(self.parts):
            pulled = [tangent.jtu(u if by is None else times(by.mT, u)) for tangent, by in part.terms()]
            found.append(torch.stack(pulled).sum(0))
        return torch.cat(found)

    def layers(self) -> list[Layer]:
        """The parts' layers, their g multiplied by the matrices."""
        return [layer for part in reversed(self.parts) for layer in part.layers()]


def _carried(layer: Layer, later: Tensor) -> Layer:
    return layer._replace(g=later if layer.g is None else later @ layer.g)
