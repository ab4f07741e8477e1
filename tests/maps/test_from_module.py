"""`FromModule` finds the layers of a module where it has them, and is right where it has none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError
from pwgf.linalg import Auto
from pwgf.maps import _module_layers as module_layers
from pwgf.tangent import Tangent
from tests.maps.members import points, random_theta
from tests.maps.module_members import LAYERED, PLAIN, FedWithAWeight, Flipped, Pair, build

ALL = {**LAYERED, **PLAIN}
CLOSE = dict(rtol=1e-10, atol=1e-10)
NO_RULE = "ignore:There is a performance drop because we have not yet implemented the batching rule"  # weight norm


def dense(map, theta, z):
    """J (n·d, p), by reverse mode through the plain call, one row of J at a time, without vmap or hooks."""
    by_theta = torch.autograd.functional.jacobian(lambda q: map(q, z), theta)
    return by_theta.reshape(z.numel(), -1)


def check_products(map, n, chunk_size, layered):
    theta, z = random_theta(map), points(n, map.dim)
    t, J = Tangent(map, theta, z, chunk_size), dense(map, theta, z)
    eta, u = points(1, map.num_params, 1)[0], points(n, map.dim, 2)
    assert t.layered == layered
    torch.testing.assert_close(t.jv(eta).reshape(-1), J @ eta, **CLOSE)
    torch.testing.assert_close(t.jtu(u), J.T @ u.reshape(-1), **CLOSE)
    return t, J


def check_tangent(map, n, chunk_size, layered):
    t, J = check_products(map, n, chunk_size, layered)
    torch.testing.assert_close(t.trace(), J.square().sum() / n, **CLOSE)
    torch.testing.assert_close(t.gram_dual(), J @ J.T, **CLOSE)
    torch.testing.assert_close(t.gram_primal(), J.T @ J / n, **CLOSE)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("name", LAYERED)
def test_layers_are_found_and_give_the_tangent(name, chunk_size, residual):
    map = maps.FromModule(build(LAYERED[name]), 2, residual=residual)
    check_tangent(map, 7, chunk_size, layered=True)


@pytest.mark.filterwarnings(NO_RULE)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_other_modules_are_differentiated_plainly(name, residual):
    map = maps.FromModule(build(PLAIN[name]), 2, residual=residual)
    check_tangent(map, 4, None, layered=False)


@pytest.mark.parametrize("name", LAYERED)
def test_layers_in_float32(name):
    map = maps.FromModule(build(LAYERED[name]), 2)
    theta, z = random_theta(map), points(6, 2)
    t, J = Tangent(map, theta.float(), z.float()), dense(map, theta, z)
    eta, u = points(1, map.num_params, 1)[0], points(6, 2, 2)
    pairs = [
        (t.jv(eta.float()).reshape(-1), J @ eta),
        (t.jtu(u.float()), J.T @ u.reshape(-1)),
        (t.gram_dual(), J @ J.T),
        (t.gram_primal(), J.T @ J / 6),
    ]
    assert t.layered
    for got, expected in pairs:
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings(NO_RULE)
@pytest.mark.parametrize("name", ALL)
def test_the_users_module_is_left_alone(name):
    module = build(ALL[name]).train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    hooks = [(len(child._forward_hooks), len(child._forward_pre_hooks)) for child in module.modules()]
    map = maps.FromModule(module, 2, residual=True)
    tangent = Tangent(map, random_theta(map), points(3, 2))
    tangent.trace()
    tangent.jtu(tangent.jv(map.initial()))
    assert hooks == [(len(child._forward_hooks), len(child._forward_pre_hooks)) for child in module.modules()]
    assert all(q.grad is None and q.requires_grad and q.dtype == torch.float32 for q in module.parameters())
    assert all(child.training for child in module.modules())
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_hooks_go_when_the_module_fails():
    class Fails(Pair):
        broken = False

        def forward(self, z):
            h = self.first(z)
            if self.broken:
                raise KeyError("gone")
            return self.last(h)

    module = Fails()
    map = maps.FromModule(module, 2)
    map._module.broken = True
    with pytest.raises(KeyError, match="gone"):
        map.linearise(map.initial(), points(3, 2))
    assert [len(child._forward_hooks) for child in map._module.modules()] == [0, 0, 0]


def test_a_run_that_breaks_the_rules_is_differentiated_plainly():
    """The check when the map is made saw three samples; four take another way through this module."""
    map = maps.FromModule(build(FedWithAWeight), 2)
    check_products(map, 4, None, layered=False)
    check_tangent(map, 3, None, layered=True)
    mixed = Tangent(map, random_theta(map), points(7, 2), chunk_size=4)
    assert not mixed.layered  # one part of the samples with layers, one without


@pytest.mark.parametrize("way", ["flipped", "late"])
def test_the_check_against_plain_differentiation_can_fail(way, monkeypatch):
    """What no structure shows is caught by numbers: samples in another order, factors that are wrong."""
    assert maps.FromModule(build(Pair), 2).linearise(*start(build(Pair))).layers is not None
    if way == "late":
        right = module_layers._slopes
        monkeypatch.setattr(module_layers, "_slopes", lambda x, pull: [1.001 * g for g in right(x, pull)])
    module = build(Flipped if way == "flipped" else Pair)
    assert maps.FromModule(module, 2).linearise(*start(module)).layers is None


def start(module):
    return maps.FromModule(module, 2).initial(), points(3, 2)


@pytest.mark.parametrize("name", ["in place and branching", "branching"])
def test_derivatives_by_z_without_vmap(name):
    map = maps.FromModule(build(ALL[name]), 2)
    theta, z = random_theta(map), points(5, 2)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda q: map(theta, q[None])[0], zi) for zi in z])
    torch.testing.assert_close(map.jacobian(theta, z), expected)
    assert not map.jacobian(theta, z).requires_grad
    assert torch.autograd.gradcheck(map.log_abs_det, (theta.requires_grad_(True), z.requires_grad_(True)))


class Cube(torch.autograd.Function):
    """x³ with a derivative that cannot be differentiated again, and a forward mode."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, back):
        return 3 * ctx.saved_tensors[0] ** 2 * back

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0] ** 2 * tangent


class Once(Pair):
    def forward(self, z):
        return self.last(Cube.apply(self.first(z)))


def test_a_module_without_second_derivative_goes_by_forward_mode():
    module = build(Once)
    nn.init.zeros_(module.last.weight)  # the part that double backward would lose vanishes here, but not along the flow
    map = maps.FromModule(module, 2)
    check_tangent(map, 4, None, layered=False)
    theta, z = random_theta(map), points(4, 2)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda q: map(theta, q[None])[0], zi) for zi in z])
    torch.testing.assert_close(map.jacobian(theta, z), expected)
    with pytest.raises(ConfigError, match=r"FromModule\.jacobian: this energy needs the score.*Potential, Interaction"):
        map.log_abs_det(theta, z.requires_grad_(True))


class Distances(Pair):
    def forward(self, z):
        h = self.first(z)
        return self.last(torch.cdist(h.unsqueeze(1), torch.eye(4, dtype=h.dtype)).squeeze(1))


class Overwritten(Pair):
    def forward(self, z):
        h = torch.tanh(self.first(z))
        h *= 2
        return self.last(h)


class OverwrittenInput(Pair):
    """Overwrites what `last` was fed, with seven samples; the derivative by its weight needs that."""

    def forward(self, z):
        h = torch.tanh(self.first(z)) + 0
        x = self.last(h)
        if len(z) == 7:
            h *= 2
        return x


def test_a_layer_whose_input_is_overwritten_has_no_factors():
    map = maps.FromModule(build(OverwrittenInput), 2)
    check_tangent(map, 4, None, layered=True)
    assert map._linearise_layers(map.initial(), points(7, 2)) is None


class Detached(Pair):
    def forward(self, z):
        return super().forward(z).detach()


class Shifts(Pair):
    def forward(self, z):
        z += 1
        return super().forward(z)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Distances, r"Jη cannot be computed \(double backward: .*cdist.*; forward mode: .*Replace the operation"),
        (
            Overwritten,
            r"T cannot be differentiated by the module's parameters: .*inplace.*\(a\).*h = h \* 2 inst",
        ),
        (Detached, r"T cannot be differentiated by the module's parameters: .*\(b\) detach, no_grad or NumPy"),
    ],
)
def test_modules_that_cannot_be_differentiated_are_told(make, message):
    with pytest.raises(ConfigError, match=r"(?s)FromModule\(module, dim=2\): " + message):
        maps.FromModule(build(make), 2)


def test_a_module_that_changes_its_input_in_place_leaves_the_samples_alone():
    shifting, plain = maps.FromModule(build(Shifts), 2), maps.FromModule(build(Pair), 2)
    z = points(5, 2)
    before = z.clone()
    torch.testing.assert_close(shifting(shifting.initial(), z), plain(plain.initial(), z + 1))
    torch.testing.assert_close(shifting.jacobian(shifting.initial(), z), plain.jacobian(plain.initial(), z + 1))
    assert torch.equal(z, before)


def test_a_step_goes_by_preconditioned_conjugate_gradients(monkeypatch):
    """n·d = 2100 and p = 2102, both beyond the direct solvers; a linear V moves every sample by −∇V = (1, −2)."""
    seen = []

    class Watched(Auto):
        def prepare(self, tangent, *args, **settings):
            state = super().prepare(tangent, *args, **settings)
            seen.append((tangent.n * tangent.d, tangent.p, state.solver.name))
            return state

    module = build(lambda: nn.Sequential(nn.Linear(2, 42), nn.Tanh(), nn.Linear(42, 42), nn.Tanh(), nn.Linear(42, 4)))
    map = maps.FromModule(nn.Sequential(module, nn.Linear(4, 2)), 2, residual=True)
    energy = energies.Potential(lambda x: 2 * x[:, 1] - x[:, 0])
    scheme = pwgf.PWGF(
        energy, map, pwgf.Gaussian(2), num_samples=1050, num_eval=200, solver=Watched(), integrator="explicit"
    )
    state, _ = scheme.step(scheme.start(0), 0.1)
    z = points(100, 2)
    moved = torch.tensor([0.1, -0.2], dtype=torch.float64) * state.t / 0.1
    assert set(seen) == {(2100, map.num_params, "pcg")}
    assert map.num_params > 2000
    torch.testing.assert_close(map(state.theta, z), z + moved, rtol=0, atol=1e-3)


# ---- the user's module is the user's --------------------------------------------------------------------------------


class Drop(Pair):
    def forward(self, z):
        return self.last(nn.functional.dropout(torch.tanh(self.first(z)), 0.3))


class Centred(Pair):
    def forward(self, z):
        h = torch.tanh(self.first(z))
        return self.last(h - h.mean(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Drop, r"the module gives other values when it is called again .*module\.eval\(\)"),
        (Centred, r"the module gives a sample other values when other samples stand beside it.*LayerNorm"),
        (lambda: nn.LazyLinear(2), r"the module is lazy.*Call it once: module\(torch\.zeros\(2, 2\)\)"),
    ],
)
def test_modules_that_are_no_functions_of_each_sample_are_refused(make, message):
    with pytest.raises(ConfigError, match=r"FromModule\(module, dim=2\): " + message):
        maps.FromModule(build(make), 2)


def test_buffers_that_a_module_changes_are_constants_of_the_map():
    module = build(lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(2, 16)), nn.Tanh(), nn.Linear(16, 2)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    map, z = maps.FromModule(module, 2, residual=True), points(4, 2)
    theta = map.initial() + 0.3 * torch.randn(map.num_params, dtype=torch.float64)
    assert torch.equal(map(theta, z), map(theta, z))
    map.linearise(theta, z).jv(theta)
    map.jacobian(theta, z)
    assert torch.equal(map(theta, z), map(theta, z))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_module_that_changes_after_the_map_was_made_does_not_change_the_map():
    module = build(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)))
    module.register_buffer("shift", torch.ones(2, dtype=torch.float64))
    map, z = maps.FromModule(module, 2, residual=True), points(4, 2)
    theta = 1.5 * map.initial()
    before = map(theta, z)
    with torch.no_grad():
        for q in module.parameters():
            q.fill_(0.7)
    module[1] = nn.ReLU()
    assert torch.equal(map(theta, z), before)


def test_threads_may_share_a_map():
    module = build(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)))
    map, z, u = maps.FromModule(module, 2, residual=True), points(50, 2), points(50, 2)
    thetas = [map.initial() + 0.1 * k for k in range(4)]

    def work(theta):
        found = map.linearise(theta, z)
        return [map(theta, z), found.jtu(u), found.jv(theta), map.jacobian(theta, z)]

    expected = [work(theta) for theta in thetas]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, thetas * 25))
    for k, found in enumerate(results):
        for one, other in zip(found, expected[k % 4], strict=True):
            assert torch.equal(one, other)
    with ThreadPoolExecutor(2) as pool:  # another precision beside it
        both = list(pool.map(lambda z: map(map.initial().to(z), z).dtype, [z, z.float()] * 50))
    assert both == [torch.float64, torch.float32] * 50
