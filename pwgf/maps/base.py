"""The push-forward map T_θ: what every map can do, and defaults that are right for all of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap

from ..checks import check_points
from ..errors import ShapeError, SolverError
from ._products import products, times


class Layer(NamedTuple):
    """One matrix W (out, in) in θ that acts on each sample separately: ∂T_k(z_i)/∂W[o, j] = g[i, k, o] · a[i, j].

    `offset` is where W starts in θ (row-major), `a` (n, in) the input of the layer (a bias is a column of ones),
    `g` (n, d, out) the derivative of T with respect to the layer's output; None stands for the identity (out = d).
    `output` names the only coordinate of T that the layer moves, where there is one.
    With `transposed` it is Wᵀ that acts, ∂T_k(z_i)/∂W[o, j] = g[i, k, j] · a[i, o]. A matrix that acts both ways gives
    two layers, one of each kind; their sum is its part of J.
    """

    offset: int
    shape: tuple[int, int]
    a: Tensor
    g: Tensor | None
    transposed: bool = False
    output: int | None = None

    def push(self, eta: Tensor) -> Tensor:
        """The part of Jη that W gives, (n,d), from η (p,)."""
        weight = eta[self.offset : self.offset + math.prod(self.shape)].view(self.shape)
        moved = self.a @ (weight if self.transposed else weight.T)
        return moved if self.g is None else (self.g @ moved.unsqueeze(2)).squeeze(2)

    def pull(self, u: Tensor) -> Tensor:
        """The part of Jᵀu that belongs to W, in its shape, from u (n,d)."""
        back = u if self.g is None else (u.unsqueeze(1) @ self.g).squeeze(1)
        return self.a.T @ back if self.transposed else back.T @ self.a

    def outputs(self, dim: int) -> Tensor:
        """g, also where None stands for it."""
        if self.g is not None:
            return self.g
        return torch.eye(dim, dtype=self.a.dtype, device=self.a.device).expand(len(self.a), dim, dim)


@dataclass(frozen=True)
class Linearisation:
    """The tangent J = ∂_θT at fixed (θ, z): `jv` η (p,) → Jη (n,d), `jtu` u (n,d) → Jᵀu (p,).

    `layers` gives the factors of J where the map is made of per-sample linear layers, else None; `diagonal` the sums
    Σ_i w_i Σ_k J_ik² (p,) for weights w (n,) where they can be computed faster than through them. `repeats` says that
    some matrix acts more than once: it has a layer for each use, and their sum is its part of J.
    """

    jv: Callable[[Tensor], Tensor]
    jtu: Callable[[Tensor], Tensor]
    layers: Callable[[], list[Layer]] | None = None
    diagonal: Callable[[Tensor], Tensor] | None = None
    repeats: bool = False


class Pushed(NamedTuple):
    """The effect of T on a density at samples z.

    `score` (n,d) is ∇ log ρ at T(z), `det_sign` (n,) the sign of det ∂_zT, `log_abs_det` (n,) its logarithm; `inverse`
    (n,d,d) is (∂_zT)⁻¹ where the family computes it on the way.
    """

    score: Tensor
    det_sign: Tensor
    log_abs_det: Tensor
    inverse: Tensor | None = None


class Block(NamedTuple):
    """A named block of the flat θ: `theta[offset : offset + prod(shape)].view(shape)`."""

    name: str
    shape: tuple[int, ...]
    offset: int


def blocks(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> list[Block]:
    """Lays named shapes out one after another."""
    out, offset = [], 0
    for name, shape in shapes:
        out.append(Block(name, tuple(shape), offset))
        offset += int(torch.Size(shape).numel())
    return out


class PushForward(ABC):
    """A map T_θ: R^d → R^d, differentiable in θ (p,) and in z (n,d) for any n ≥ 1.

    A subclass supplies `__call__`, `initial` and `layout`; it overrides `jacobian`, `log_abs_det`, `push_score`,
    `inverse` and `linearise` where its family has a cheaper formula. All methods follow the dtype and device of θ and
    z.
    """

    dim: int

    @abstractmethod
    def __call__(self, theta: Tensor, z: Tensor) -> Tensor:
        """T_θ(z): (p,), (n,d) → (n,d)."""

    @abstractmethod
    def initial(self, seed: int = 0) -> Tensor:
        """θ₀ (p,), float64 on the CPU, at which T is the identity (or the map it was built from)."""

    @abstractmethod
    def layout(self) -> list[Block]:
        """Name, shape and offset of every parameter block of θ."""

    @property
    def num_params(self) -> int:
        """p, the length of θ."""
        last = self.layout()[-1]
        return last.offset + int(torch.Size(last.shape).numel())

    def unpack(self, theta: Tensor) -> list[Tensor]:
        """Views of θ's blocks, in the order of `layout`; ShapeError where θ is that of another map."""
        layout = self.layout()
        sizes = [math.prod(block.shape) for block in layout]
        if theta.shape != (sum(sizes),):
            raise ShapeError(
                f"{type(self).__name__}(theta, z): theta must hold its {sum(sizes)} parameters; got shape "
                f"{tuple(theta.shape)}. That of a run belongs to scheme.map, which is "
                "maps.from_config(run.config['scheme']['map'])."
            )
        return [theta[b.offset : b.offset + size].view(b.shape) for b, size in zip(layout, sizes, strict=True)]

    def jacobian(self, theta: Tensor, z: Tensor) -> Tensor:
        """∂_zT (n,d,d), entry [i,k,j] = ∂T_k/∂z_j at z_i; differentiable in θ and z. Cost: T and d backward passes.

        Reverse mode, because scores differentiate the result once more, and the derivative of torch's forward-mode
        `layer_norm` is silently wrong (seen in torch 2.13); it is also the faster of the two here.
        """
        return vmap(jacrev(lambda zi: self(theta, zi[None])[0]))(z)

    def volume(self, theta: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Sign of det ∂_zT and log|det ∂_zT|, (n,) each; differentiable. Cost: `jacobian`, n LU factorisations."""
        sign, log_abs_det = torch.linalg.slogdet(self.jacobian(theta, z))
        return sign, log_abs_det

    def log_abs_det(self, theta: Tensor, z: Tensor) -> Tensor:
        """log|det ∂_zT| (n,); differentiable. Cost: that of `volume`."""
        return self.volume(theta, z)[1]

    def push_score(self, theta: Tensor, z: Tensor, slope: Tensor) -> Pushed:
        """∇ log ρ(T(z)) = (∂_zT)^{−T} [slope − ∇_z log|det ∂_zT|] with slope = ∇ log λ(z) (n,d); nothing requires grad.

        Cost: `jacobian`, its backward pass, and n LU factorisations of size d.
        """
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(True)
            jacobian = self.jacobian(theta.detach(), leaf)
            sign, log_abs_det = torch.linalg.slogdet(jacobian)
            if log_abs_det.requires_grad:  # not for affine maps
                slope = slope - torch.autograd.grad(log_abs_det.sum(), leaf)[0]
        transposed = jacobian.detach().transpose(1, 2)
        score = torch.linalg.solve_ex(transposed, slope.unsqueeze(-1))[0].squeeze(-1)
        return Pushed(score, sign.detach(), log_abs_det.detach())

    def inverse(self, theta: Tensor, x: Tensor) -> Tensor:
        """z with T_θ(z) = x, (n,d), by Newton's method; raises SolverError where it fails."""
        return newton_inverse(self, theta, x)

    @property
    def numbers_per_sample(self) -> int:
        """Numbers held at once for each sample by a density or a tangent: an estimate, for choosing `chunk_size`."""
        return 4 * self.dim**2 + 2 * self.num_params

    def linearise(self, theta: Tensor, z: Tensor) -> Linearisation:
        """J = ∂_θT at (θ, z), by double backward on a retained graph. Cost of a product: about two of T."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_(True)
            push, pull = products(self(leaf, z.detach()), [leaf])
        return Linearisation(jv=lambda eta: push([eta]), jtu=lambda u: pull(u)[0])

    def tangent_rows(self, theta: Tensor, z: Tensor) -> Tensor:
        """J itself, (n,d,p), entry [i,k,:] = ∂_θT_k at z_i. Cost: T and d backward passes, p numbers per row."""
        return vmap(jacrev(lambda theta, zi: self(theta, zi[None])[0]), (None, 0))(theta, z).detach()

    def linearise_slope(self, theta: Tensor, z: Tensor, xi: Tensor) -> Linearisation:
        """∂_θ(∂_zT·ξ) at (θ, z) and directions ξ (n,d): how the slope of T along ξ changes with θ.

        From the map's factors where it has them, differentiated along ξ by forward mode: ∂_ξ(g ⊗ a) = ∂_ξg ⊗ a +
        g ⊗ ∂_ξa. Otherwise by double backward on the graph of `jacobian`; a product costs about four of it.
        """
        if self.has_factors:
            return from_layers(slope_layers(self, theta.detach(), z.detach(), xi), self.num_params)
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_(True)
            push, pull = products(times(self.jacobian(leaf, z.detach()), xi), [leaf])
        return Linearisation(jv=lambda eta: push([eta]), jtu=lambda u: pull(u)[0])

    def slope_rows(self, theta: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """∂_θ(∂_zT·ξ) itself, (n,d,p). Cost: d² backward passes, p numbers per row; sample by sample without vmap."""

        def along(theta: Tensor, zi: Tensor, xi: Tensor) -> Tensor:
            return times(self.jacobian(theta, zi[None]), xi[None])[0]

        try:
            return vmap(jacrev(along), (None, 0, 0))(theta, z, xi).detach()
        except RuntimeError:  # an operation in place, or one without a rule for vmap
            each = [jacrev(lambda at, zi=zi, xii=xii: along(at, zi, xii))(theta) for zi, xii in zip(z, xi, strict=True)]
            return torch.stack(each).detach()

    def moving_at(self, theta: Tensor) -> tuple[PushForward, slice]:
        """The map of those parameters that a flow moves at θ (p,), and where they lie in θ; here of all of them.

        A map that holds others fixed gives one that has them built in: it costs the less.
        """
        return self, slice(0, self.num_params)

    def grown(self, theta: Tensor, z: Tensor) -> Tensor | None:
        """θ (p,) of the same T with further parameters that move, for samples z (n,d) of λ; None where it has none."""
        return None

    own_coordinates: ClassVar[bool] = False
    """Whether T sees coordinates of its own, whatever the centre and the spread of λ; `PWGF` gives it none then."""

    def seen(self, z: Tensor) -> Tensor:
        """z (n,d) in the coordinates to whose size the parameters are made; here z itself."""
        return z

    def check_domain(self, z: Tensor, call: str) -> None:  # noqa: B027, most maps take every z
        """ConfigError where samples z (n,d) of λ lie outside the domain of T; here nothing does."""

    def closes(self, lower: Tensor, upper: Tensor) -> bool:
        """Whether a density that ends at the walls of this box, corners (d,), has no edge for T's flow; here not."""
        return False

    periodic: ClassVar[bool] = False
    """Whether T maps a circle or torus onto itself."""

    needs_damping: ClassVar[bool] = True
    """Whether combinations of the parameters may hardly move a sample, which the damping of a solve then holds back."""

    has_factors: ClassVar[bool] = False

    def factors(self, theta: Tensor, z: Tensor) -> list[Layer]:
        """The layers of J, differentiable in z by forward mode, for families with `has_factors`."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """JSON from which `maps.from_config` rebuilds this map."""
        settings: dict[str, Any] = {}
        if is_dataclass(self):
            settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"name": type(self).__name__, **settings}


def slope_layers(map: PushForward, theta: Tensor, z: Tensor, xi: Tensor) -> list[Layer]:
    """The factors of ∂_θ(∂_zT·ξ): those of J, either their a or their g differentiated along ξ."""
    layers: list[Layer] = []

    def arrays(at: Tensor) -> list[Tensor]:
        layers[:] = map.factors(theta, at)
        return [array for layer in layers for array in (layer.a, layer.g) if array is not None]

    pairs = iter(zip(*jvp(arrays, (z,), (xi,)), strict=True))
    found = []
    for layer in layers:
        a, a_rate = next(pairs)
        g, g_rate = (None, None) if layer.g is None else next(pairs)
        found.append(layer._replace(a=a_rate, g=g))
        if g_rate is not None:
            found.append(layer._replace(a=a, g=g_rate))
    moves = [layer.a.any() if layer.g is None else layer.a.any() & layer.g.any() for layer in found]
    return [layer for layer, kept in zip(found, torch.stack(moves).tolist(), strict=True) if kept]


def from_layers(layers: list[Layer], num_params: int) -> Linearisation:
    """A linearisation given by its factors alone. Cost of a product: a few passes over all of them."""

    def jv(eta: Tensor) -> Tensor:
        return torch.stack([layer.push(eta) for layer in layers]).sum(0)

    def jtu(u: Tensor) -> Tensor:
        total = u.new_zeros(num_params)
        for layer in layers:
            total[layer.offset : layer.offset + math.prod(layer.shape)] += layer.pull(u).reshape(-1)
        return total

    return Linearisation(jv, jtu, lambda: layers, repeats=True)


def solve_affine(affine: Tensor, x: Tensor, call: str) -> Tensor:
    """y with A y + b = x, (n,d), from [A b] (d,d+1).

    Raises:
        SolverError: A is singular.
    """
    y, info = torch.linalg.solve_ex(affine[:, :-1], (x - affine[:, -1]).T)
    if int(info) != 0:
        raise SolverError(
            f"{call}.inverse: the matrix A in θ is singular, so T maps space onto a plane and has no inverse. "
            "Use a smaller tolerance or more damping, so that the flow avoids such θ."
        )
    return y.T


def inverse_of_factor(factor: Tensor) -> Tensor:
    """(LLᵀ)⁻¹ (b,k,k) for lower L.

    On a GPU by two triangular solves: `cholesky_inverse` would take the matrices there one after another.
    """
    if factor.device.type == "cpu":
        return torch.cholesky_inverse(factor)
    identity = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    half = torch.linalg.solve_triangular(factor, identity, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def score_by_inverse(z: Tensor, log_abs_det: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """∇ log ρ(x) (n,d) = ∇_x [log λ(z) + log|det ∂_xz|] with slope = ∇ log λ(z): one backward pass, no d×d matrices.

    z = T⁻¹(x) and log|det ∂_xz| must have been computed from the leaf x, with gradients enabled.
    """
    return torch.autograd.grad((z * slope).sum() + log_abs_det.sum(), x)[0]


def newton_inverse(map: PushForward, theta: Tensor, x: Tensor, *, max_iterations: int = 40) -> Tensor:
    """Solves T_θ(z) = x for each row of x (n,d) → (n,d).

    Newton's method with backtracking from z = x; rows where it fails are reached by continuation along the straight
    line from T(0) to x, which succeeds for every diffeomorphism given enough steps.

    Raises:
        SolverError: some rows have no solution that the method finds (a folded map, or x outside its range).
    """
    check_points(x, map.dim, f"{type(map).__name__}.inverse(theta, x): x", finite=True)
    theta, x = theta.detach(), x.detach()
    accuracy = 100 * torch.finfo(x.dtype).eps
    z, solved = _newton(map, theta, x, x.clone(), accuracy, max_iterations)
    for steps in (16, 128):
        if bool(solved.all()):
            return z
        failed = ~solved
        target, start = x[failed], torch.zeros_like(x[failed])
        origin = map(theta, start)
        for s in torch.linspace(1.0 / steps, 1.0, steps).tolist():
            start, ok = _newton(map, theta, origin + s * (target - origin), start, accuracy, 10)
        z[failed], solved[failed] = start, ok
    if not bool(solved.all()):
        worst = (map(theta, z[~solved]) - x[~solved]).norm(dim=1).max()
        raise SolverError(
            f"{type(map).__name__}.inverse: Newton failed at {int((~solved).sum())} of {len(x)} points "
            f"(largest |T(z) − x| = {float(worst):.2e}). Causes: (a) the map folds there (see fold_fraction): use a "
            "map that cannot fold; (b) x lies outside the range of T: evaluate the density nearer to the samples."
        )
    return z


def _newton(
    map: PushForward, theta: Tensor, x: Tensor, z: Tensor, accuracy: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Backtracked Newton; returns (z, solved) where solved (n,) marks |T(z) − x| ≤ accuracy·(1+|x|)."""
    goal = accuracy * (1 + x.norm(dim=1))
    residual = map(theta, z) - x
    size = residual.norm(dim=1)
    for _ in range(max_iterations):
        active = (size > goal).nonzero()[:, 0]
        if not len(active):
            break
        xa, za, ra, sa = x[active], z[active], residual[active], size[active]
        jacobian = map.jacobian(theta, za)
        step, info = torch.linalg.solve_ex(jacobian, ra.unsqueeze(-1))
        step = torch.where((info == 0).view(-1, 1), step.squeeze(-1), ra)
        best_z, best_r, best_s = za, ra, sa
        for halving in range(8):
            trial = za - 0.5**halving * step
            r = map(theta, trial) - xa
            s = r.norm(dim=1)
            better = (s < sa) & (best_s >= sa)  # the longest step that is one
            best_z = torch.where(better.unsqueeze(1), trial, best_z)
            best_r = torch.where(better.unsqueeze(1), r, best_r)
            best_s = torch.where(better, s, best_s)
            num_better = int((best_s < sa).sum())
            if num_better == len(sa):
                break
        z, residual, size = z.clone(), residual.clone(), size.clone()
        z[active], residual[active], size[active] = best_z, best_r, best_s
        if not num_better:
            break
    return z, size <= goal
