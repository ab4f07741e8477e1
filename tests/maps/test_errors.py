"""Misuse of maps is told at the door; what must work, works."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pwgf import maps
from pwgf.errors import ConfigError, ShapeError
from tests.maps.members import module, points


@pytest.mark.parametrize("dim", [0, -1, 1.5, True, "2", None])
@pytest.mark.parametrize("make", [maps.Affine, maps.ResidualMLP, lambda d: maps.FromModule(nn.Linear(2, 2), d)])
def test_dim_must_be_a_positive_integer(make, dim):
    with pytest.raises(
        ConfigError, match=r"(Affine|ResidualMLP|FromModule)\(.*dim.*\): dim must be an integer ≥ 1; got"
    ):
        make(dim)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, r"ResidualMLP\(width=…\) must be an integer ≥ 1; got 0"),
        ({"width": 2.5}, r"ResidualMLP\(width=…\) must be an integer ≥ 1; got 2\.5"),
        ({"depth": 0}, r"ResidualMLP\(depth=…\) must be an integer ≥ 1; got 0"),
        ({"depth": None}, r"ResidualMLP\(depth=…\) must be an integer ≥ 1; got None"),
        ({"depth": True}, r"ResidualMLP\(depth=…\) must be an integer ≥ 1; got True"),
        ({"axis_share": 1.2}, r"ResidualMLP\(axis_share=…\) must lie in \[0, 1\]; got 1\.2"),
        ({"axis_share": "all"}, r"ResidualMLP\(axis_share=…\) must lie in \[0, 1\]; got 'all'"),
        ({"scale": 0.0}, r"ResidualMLP\(scale=…\) must be positive and finite; got 0\.0"),
        ({"scale": float("nan")}, r"ResidualMLP\(scale=…\) must be positive and finite; got nan"),
        ({"gain": 0.0}, r"ResidualMLP\(gain=…\) must be positive and finite; got 0\.0"),
        ({"gain": "small"}, r"ResidualMLP\(gain=…\) must be positive and finite; got 'small'"),
        ({"axis_units": -1}, r"ResidualMLP\(axis_units=…\) must be an integer ≥ 0; got -1"),
        ({"axis_gain": 0.0}, r"ResidualMLP\(axis_gain=…\) must be positive and finite; got 0\.0"),
    ],
)
def test_settings_of_the_residual_map(settings, message):
    with pytest.raises(ConfigError, match=message):
        maps.ResidualMLP(2, **settings)


class Stuck(nn.Module):
    """A module that works only on its own dtype, as one with a captured constant does."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 2))

    def forward(self, z):
        return z @ (self.w.float() + torch.ones(2, 2, dtype=torch.float32))


def frozen():
    linear = nn.Linear(2, 2)
    linear.bias.requires_grad_(False)
    return linear


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.sin, ConfigError, r"FromModule\(module, dim\): module must be a torch\.nn\.Module; got builtin"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            ConfigError,
            r"1 is a BatchNorm1d.*Remove it, or use Lay",
        ),
        (lambda: nn.Dropout(), ConfigError, r"the module is a Dropout, which makes T depend on .*chance"),
        (
            frozen,
            ConfigError,
            r"parameter 'bias' is frozen \(requires_grad=False\).*unfreeze it, or register it as a buffer",
        ),
        (nn.Tanh, ConfigError, r"the module has no parameters, so there is nothing to move"),
        (lambda: nn.Linear(2, 3), ShapeError, r"dim=2\): the module must map \(2, 2\) to the same; got \(2, 3\)"),
        (
            lambda: nn.Linear(3, 3),
            ShapeError,
            r"dim=2\): the module failed on an input of shape \(2, 2\): .*any float dtype",
        ),
        (lambda: nn.LSTM(2, 2), ShapeError, r"the module must map \(2, 2\) to the same; got tuple"),
        (Stuck, ShapeError, r"the module failed on an input of shape \(2, 2\)"),
    ],
)
def test_modules_that_are_no_map(make, error, message):
    with pytest.raises(error, match=message):
        maps.FromModule(make(), dim=2)


def test_a_module_is_not_changed_and_its_buffers_are_constants():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.eye(2))
            self.register_buffer("shift", torch.ones(2))

        def forward(self, z):
            return z @ self.w + self.shift

    inner = Shifted()
    map = maps.FromModule(inner, dim=2)
    assert map.num_params == 4
    for dtype in (torch.float32, torch.float64):
        z = points(3, 2).to(dtype)
        torch.testing.assert_close(map(map.initial().to(dtype) * 2, z), 2 * z + 1)
    assert torch.equal(inner.w, torch.eye(2))
    assert inner.shift.dtype == torch.float32


def test_a_module_trained_later_does_not_move_the_start():
    inner = module(2)
    map = maps.FromModule(inner, dim=2, residual=True)
    start, z = map.initial(), points(5, 2)
    with torch.no_grad():
        for q in inner.parameters():
            q.add_(1.0)
    assert torch.equal(map.initial(), start)
    assert torch.equal(map(start, z), z)


def test_an_unknown_stored_map_gets_a_hint():
    with pytest.raises(ConfigError, match=r"stored map 'ResidualMPL' cannot be rebuilt.*Did you mean 'ResidualMLP'\?"):
        maps.from_config({"name": "ResidualMPL", "dim": 2})


class Swirl(maps.PushForward):
    """A user's own map with nothing but the three abstract methods: rotation by an angle that grows with |z|²."""

    dim = 2

    def layout(self):
        return [maps.Block("rate", (1,), 0)]

    def initial(self, seed=0):
        return torch.zeros(1, dtype=torch.float64)

    def __call__(self, theta, z):
        angle = theta * z.square().sum(1, keepdim=True)
        turned = torch.stack([-z[:, 1], z[:, 0]], dim=1)
        return torch.cos(angle) * z + torch.sin(angle) * turned


def test_the_defaults_serve_a_users_own_map():
    map, theta, z = Swirl(), torch.tensor([0.7], dtype=torch.float64), points(40, 2)
    torch.testing.assert_close(map.log_abs_det(theta, z), torch.zeros(40, dtype=torch.float64))  # it keeps areas
    x = map(theta, z)
    torch.testing.assert_close(map.inverse(theta, x), map(-theta, x), rtol=1e-8, atol=1e-8)
    turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)
    expected = z.square().sum(1, keepdim=True) * turned  # ∂T/∂rate
    torch.testing.assert_close(map.linearise(theta, z).jv(torch.ones(1, dtype=torch.float64)), expected)
    assert map.to_config() == {"name": "Swirl"}


def test_a_share_of_units_starts_on_single_coordinates():
    map = maps.ResidualMLP(4, width=20, axis_share=0.5)
    first = map.unpack(map.initial())[1][:, :-1]
    on_axis = (first != 0).sum(1)
    assert on_axis.tolist() == [1] * 10 + [4] * 10
    map = maps.ResidualMLP(4, width=64, axis_share=1.0)
    every = map.unpack(map.initial())[1][:, :-1]
    assert bool(((every != 0).sum(1) == 1).all())
    assert ((every != 0).sum(0)).tolist() == [16] * 4


def test_a_residual_map_stored_before_it_had_functions_of_single_coordinates():
    """Such a file left the width to the default of its time, max(64, 24 d)."""
    stored = {"name": "ResidualMLP", "dim": 3, "width": None, "depth": 1, "axis_share": 0.5, "scale": 1.0, "gain": 0.1}
    map = maps.from_config(stored)
    assert map == maps.ResidualMLP(3, width=72, axis_share=0.5, axis_units=0, gain=0.1)
    assert map.num_params == 3 * 4 + 72 * 4 + 3 * 72


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(2, 2), [0.0, 0.0], 1.0), ConfigError, r"map must be one from pwgf\.maps; got Linear"),
        ((maps.Affine(2), [0.0], 1.0), ShapeError, r"centre=…\) needs the 2 finite coordinates of a point; got 1"),
        ((maps.Affine(1), [float("nan")], 1.0), ShapeError, r"centre=…\) needs the 1 finite coordinates of a point"),
        ((maps.Affine(1), [0.0], 0.0), ConfigError, r"Standardised\(spread=…\) must be positive and finite; got 0\.0"),
    ],
)
def test_coordinates_that_are_none(arguments, error, message):
    with pytest.raises(error, match=message):
        maps.Standardised(*arguments)
