"""What a file says of a run is checked before anything is built of it."""

import numpy as np
import pytest

import pwgf
from pwgf import cli
from pwgf.errors import SchemaError
from tests.run.helpers import TIMES, solve
from tests.storage.forging import forge, forge_config, set_value


@pytest.fixture
def packed(tmp_path):
    """A packed run of two rows."""
    solve(TIMES[:2], out=tmp_path / "run.h5", problem=pwgf.problems.OrnsteinUhlenbeck(2))
    return str(tmp_path / "run.h5")


def at(name, value):
    """Sets an entry of the config by its dotted name."""

    def change(config):
        *way, last = name.split(".")
        for key in way:
            config = config[key]
        config[last] = value

    return change


CONFIGS = [
    ("scheme.map.depth", 10**9, r"config\.scheme\.map\.depth is 1000000000, too many for a run of \d+ parameters"),
    ("scheme.map.dim", 10**6, r"config\.scheme\.map\.dim is 1000000 where the run has dimension 2"),
    ("scheme.reference.dim", 10**6, r"config\.scheme\.reference\.dim is 1000000 where the run has dimension 2"),
    ("scheme.reference.mean", [0.0] * 3, "mean must be a number or have shape"),
    ("problem.dim", 10**6, r"config\.problem\.dim is 1000000 where the run has dimension 2"),
    ("scheme.dtype", "load", "config.scheme.dtype is 'load' where one of float64, float32 was expected"),
    ("scheme.dtype", ["float64"], "config.scheme.dtype is"),
    ("scheme.map.width", 5, "a map or a reference of other sizes than the rows have"),
    ("scheme.map.wide", 5, "its settings build nothing .TypeError"),
    ("scheme.map", "ResidualMLP", "config.scheme.map is 'ResidualMLP' where settings with a name was expected"),
    ("scheme.tolerance", "small", "config.scheme.tolerance is 'small' where a positive number was expected"),
    ("scheme", None, "config.scheme is None where settings with a name was expected"),
    ("times", [0.0, float("nan")], "config.times is .* where increasing numbers was expected"),
    ("times", [1.0, 0.0], "config.times is .* where increasing numbers was expected"),
    ("problem", {"name": "OrnsteinUhlenbeck", "dim": 2, "c": "x"}, "config.problem.c is 'x' where a number was"),
    ("seed", "0", "config.seed is '0'"),
    ("scheme.energy", {"name": "\x1b[31m", "terms": 3}, "config.scheme.energy is"),
    ("description", "PWGF", "config.description is 'PWGF' where a description with a name was expected"),
    ("description.rows", ["map"], "config.description.rows is .* where a text was expected"),
    ("description.settings", "\x1b[31m", "config.description.settings is .* where a list of texts was expected"),
    ("description.work_unit", 3, "config.description.work_unit is 3 where a text was expected"),
]


@pytest.mark.parametrize(("name", "value", "message"), CONFIGS)
def test_settings_that_no_run_has(packed, name, value, message, capsys):
    forge_config(packed, at(name, value))
    with pytest.raises(pwgf.errors.ConfigError, match=message):
        pwgf.load(packed).sample(0.0, 10)
    cli.main(["info", packed])
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "Traceback" not in said.err


@pytest.mark.parametrize(("name", "value", "message"), [
    ("scheme.reference.cov", [[2.0, 0.0], [0.0, 2.0]], r"log λ of the reference at the same points differs"),
    ("scheme.map.gain", 1.5, r"T of the map at the same points differs"),
])  # fmt: skip
def test_settings_that_build_another_law_are_refused(packed, name, value, message):
    forge_config(packed, at(name, value))
    with pytest.raises(SchemaError, match=message + r".*settings were changed since, or this version of pwgf"):
        pwgf.load(packed)


def test_settings_within_each_other_without_end_are_refused(packed):
    deep = {"name": "Affine", "dim": 2}
    for _ in range(300):
        deep = {"name": "InBox", "map": deep, "lower": [0.0, 0.0], "upper": [1.0, 1.0]}
    forge_config(packed, at("scheme.map", deep))
    with pytest.raises(SchemaError, match="lists nested more than 50 deep"):
        pwgf.load(packed)
    for command in ("info", "table"):
        assert cli.main([command, packed]) in (1, 2)
    with pytest.raises(pwgf.errors.ConfigError, match="lists nested more than 50 deep"):
        pwgf.storage.Header({"map": deep}, [], {}, 2, 6)


def test_escapes_in_names_do_not_reach_the_terminal(packed, capsys):
    forge_config(packed, at("scheme.energy.terms", [{"name": "\x1b[31mred\x07"}]))
    assert cli.main(["info", packed]) == 0
    assert r"Energy terms: \x1b[31mred\x07" in capsys.readouterr().out


def test_settings_without_a_problem_are_read(packed):
    forge_config(packed, lambda config: config.pop("problem"))
    assert pwgf.load(packed).sample(0.0, 10).shape == (10, 2)


@pytest.mark.parametrize("value", ["x", np.zeros((8, 2), np.int64), np.zeros((8, 2, 2)), np.zeros(10**4)])
def test_values_of_the_parts_have_the_form_of_such_values(packed, value):
    forge(packed, lambda file: set_value(file, "arrays/check/map", value))
    with pytest.raises(SchemaError, match="arrays/check/map"):
        pwgf.load(packed, map=pwgf.maps.ResidualMLP(2))


STATES = [
    ("dt", np.array(-1.0), "other types, sizes or ranges"),
    ("dt", np.array(np.nan), "other types, sizes or ranges"),
    ("time", np.array(np.inf), "other types, sizes or ranges"),
    ("time", np.array(0.05), "does not belong to the rows"),
    ("rng", np.zeros(100, np.uint8), "other types, sizes or ranges"),
    ("rng", np.full(5056, 255, np.uint8), "none that a run of pwgf leaves .RuntimeError"),
    ("theta", np.zeros(3), "other types, sizes or ranges"),
    ("theta_dot", np.zeros(3), "other types, sizes or ranges"),
    ("counters", "[]", "other types, sizes or ranges"),
    ("counters", '{"num_stages": -1}', "other types, sizes or ranges"),
    ("counters", f'{{"num_stages": {2**63}}}', "other types, sizes or ranges"),
    ("extra_tiny", "x", "other types, sizes or ranges"),
    ("fingerprint", "x", "none that a run of pwgf leaves|other types"),
]


@pytest.mark.parametrize(("name", "value", "message"), STATES)
def test_states_from_which_no_run_goes_on(packed, name, value, message):
    forge(packed, lambda file: set_value(file, f"restart/{name}", value))
    with pytest.raises(SchemaError, match=message):
        solve(TIMES, out=packed, resume=True, problem=pwgf.problems.OrnsteinUhlenbeck(2))
    assert len(pwgf.load(packed)) == 2
