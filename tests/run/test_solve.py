"""solve and evolve: rows, seeds, callbacks, warnings, progress, failures."""

import logging
import os
import re

import numpy as np
import pytest
import torch

import pwgf
from pwgf import energies, maps
from pwgf.errors import ConfigError, NonFiniteError
from pwgf.schemes.base import Watch
from pwgf.schemes.pwgf.watch import PWGFWatch
from pwgf.state import Info
from tests.run.helpers import TIMES, assert_same_rows, scheme, solve


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run."""
    return solve()


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_a_row_at_every_time_exactly(whole):
    assert whole.t.tolist() == TIMES
    assert whole["num_steps"].tolist() == [0, 4, 8, 12, 16]
    assert whole["num_stages"].tolist() == [0, 8, 16, 24, 32]
    assert (np.diff(whole["energy_potential"]) < 0).all()
    assert (np.diff(whole["wall_time"]) > 0).all()


def test_evolve_by_hand_equals_solve(whole):
    moving = scheme()
    state = moving.start(3)
    thetas = [state.theta]
    for after, info in pwgf.evolve(moving, state, TIMES):
        assert info.t1 == after.t
        if after.t in TIMES:
            thetas.append(after.theta)
    assert np.array_equal(whole["theta"], torch.stack(thetas).numpy())


def test_evolve_passes_over_times_that_are_gone():
    moving = scheme()
    state = moving.start(0, t=0.2)
    assert [after.t for after, _ in pwgf.evolve(moving, state, [0.0, 0.1, 0.2])] == []
    assert [after.t for after, _ in pwgf.evolve(moving, state, [0.0, 0.1, 0.22])] == [0.22]


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda t: torch.tensor(t, dtype=torch.float64)])
def test_times_of_every_kind(make):
    run = solve(make([0.0, 0.1]))
    assert run.t.dtype == np.float64
    assert run.t == pytest.approx([0.0, 0.1], abs=1e-7)
    assert run.sample(0.1, 3).shape == (3, 2)  # 0.1 in float32 is still that row


def test_negative_initial_time_shifts_the_run(whole):
    shifted = solve([t - 0.5 for t in TIMES])
    assert shifted.t[0] == -0.5
    assert np.allclose(shifted["theta"], whole["theta"], rtol=0, atol=1e-10)


def test_a_single_time():
    run = solve([2.0])
    assert len(run) == 1
    assert torch.equal(run.sample(2.0, 5), pwgf.Gaussian(2).sample(5, torch.Generator().manual_seed(0)))
    assert run.state().t == 2.0


def test_seeds(whole):
    assert_same_rows(whole, solve())
    assert not np.array_equal(whole["theta"][-1], solve(seed=4)["theta"][-1])


def test_the_global_generator_is_neither_read_nor_moved(whole):
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert_same_rows(whole, solve())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_on_disk_equals_one_in_memory(whole, tmp_path):
    stored = solve(out=tmp_path / "run.h5")
    assert_same_rows(whole, stored)
    assert os.listdir(tmp_path) == ["run.h5"]
    assert stored.config == whole.config


def test_solve_goes_on_from_a_state(whole):
    first = solve(TIMES[:3])
    second = solve(TIMES[2:], start=first.state())
    assert np.array_equal(second["theta"], whole["theta"][2:])


# ---- callbacks, warnings, progress ----------------------------------------------------------------------------------


def test_callbacks_see_every_step_and_true_stops_after_storing():
    seen, after = [], []

    def stop(state, info):
        seen.append((info.t0, state.t))
        return state.t > 0.13

    run = solve(callbacks=[stop, lambda state, info: after.append(state.t)])
    assert len(seen) == 6
    assert all(one[1] == other[0] for one, other in zip(seen, seen[1:], strict=False))
    assert run.t.tolist() == [0.0, 0.1, seen[-1][1]]
    assert after == [t for _, t in seen]  # the second callback also sees the last step


@pytest.mark.parametrize("make", [bool, np.bool_, torch.tensor])
def test_any_true_truth_value_stops(make):
    late = solve(callbacks=[lambda state, info: make(state.t > 0.13)])
    assert 0.13 < late.t[-1] < 0.2


@pytest.mark.parametrize("answer", ["yes", 1, np.float64(1.0), torch.tensor([True]), torch.tensor(1.0), [True]])
def test_any_other_answer_of_a_callback_is_refused(answer):
    with pytest.raises(ConfigError, match=r"callback must return True.*or False or None.*; got .*Return a comparison"):
        solve(callbacks=[lambda state, info: answer])


def test_callbacks_and_users_loops_hold_states_of_their_own():
    def spoil(state, info):
        for tensor in (state.theta, state.theta_dot, state.rng, *state.extra.values()):
            tensor.zero_()

    assert_same_rows(solve(callbacks=[spoil]), solve())
    flow, states = scheme(), []
    for state, info in pwgf.evolve(flow, flow.start(3), TIMES[:2]):
        states.append(state.theta.clone())
        spoil(state, info)
    assert torch.equal(states[-1], torch.from_numpy(solve()["theta"][1]))


def test_a_stopped_run_is_finished(tmp_path):
    stopped = solve(out=tmp_path / "run.h5", callbacks=[lambda state, info: state.t > 0.13])
    assert_same_rows(solve(out=tmp_path / "run.h5", resume=True), stopped, but=())


def test_the_loop_warns_of_folds_and_poor_maps_once(caplog):
    class Cubic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(1))

        def forward(self, z):
            return self.a * (z**3 / 3 - z)

    energy = energies.Potential(lambda x: (x - 2).square().sum(-1))
    moving = pwgf.PWGF(energy, maps.FromModule(Cubic(), 1), pwgf.Gaussian(1), num_samples=50, num_eval=50)
    with caplog.at_level(logging.WARNING, "pwgf"):
        pwgf.solve(moving, [0.0, 0.01, 0.02], progress=False)
    for words in (
        r"the map folds at .* Cure: more samples",
        r"the law seems to be off by .* at t = 0\.01, more than accuracy = 2 %.*Tried at this time",
    ):
        assert len([m for m in caplog.messages if re.search(words, m)]) == 1


@pytest.mark.parametrize(("folded", "kinds"), [(0.0, []), (4e-4, []), (6e-4, ["fold"])])
def test_single_folds_in_the_tail_are_no_warning(folded, kinds):
    assert [kind for kind, _ in Watch((0.0, 1.0)).of_row({"fold_fraction": folded}, 0.5)] == kinds


def test_the_loop_warns_of_a_poor_map_where_there_is_no_estimate(caplog):
    """In d = 130, 50 samples do not determine x = A z + b: on fresh ones it follows little of v."""
    energy = energies.Potential(lambda x: (x - 3).square().square().sum(-1))
    moving = pwgf.PWGF(
        energy, maps.Affine(130), pwgf.Gaussian(130), num_samples=50, num_eval=50, integrator=pwgf.Euler(1e-6)
    )
    with caplog.at_level(logging.WARNING, "pwgf"):
        run = pwgf.solve(moving, [0.0, 1e-6], progress=False)
    assert np.isnan(run["error_estimate"]).all()
    assert len([m for m in caplog.messages if re.search(r"the map misses \d+ % of .* at t = 0, .*a wider map", m)]) == 1


def test_the_loop_does_not_warn_of_a_velocity_that_is_all_but_gone(caplog):
    problem = pwgf.problems.OrnsteinUhlenbeck(2)
    moving = pwgf.PWGF(problem.energy, maps.ResidualMLP(2, width=8), problem.reference, num_samples=300, num_eval=500)
    with caplog.at_level(logging.WARNING, "pwgf"):
        run = pwgf.solve(moving, [0.0, 6.0], progress=False)
    assert run["projection_residual"][-1] > 0.25  # of a velocity that is nearly zero
    assert not [m for m in caplog.messages if "off by" in m]


def test_the_loop_warns_when_the_energy_rises(caplog):
    energy = energies.Potential(lambda x: 50 * x.square().sum(-1))  # rate 100: a step of .05 overshoots fourfold
    moving = pwgf.PWGF(
        energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=50, num_eval=50, integrator=pwgf.Euler(0.05)
    )
    with caplog.at_level(logging.WARNING, "pwgf"):
        pwgf.solve(moving, [0.0, 0.1], progress=False)
    assert any("the energy rose by" in m and "lower tolerance or dt" in m for m in caplog.messages)


@pytest.mark.parametrize(
    ("rises", "warns"),
    [
        ([(-100.0, 0.0), (0.0005, 0.0005)], False),  # F hovers, after it has fallen by 100
        ([(-1.0, 0.0), (0.0005, 0.0005)], True),
        ([(-1e6, 0.0), (0.002, 0.002)], True),  # a thousandth of F is named however far it has fallen
        ([(0.0005, 0.0005)], True),  # it has not fallen yet
    ],
)
def test_a_rise_of_the_energy_is_judged_beside_how_far_it_has_fallen(rises, warns):
    watch, kinds = PWGFWatch((0.0, 1.0)), []
    for change, energy in rises:
        values = {"energy_change": change, "predicted_change": 0.0, "energy": energy, "length": 0.1}
        kinds += [kind for kind, _ in watch.of_step(Info(0.0, 0.1, 0.1, 1, 0, values))]
    assert ("increase" in kinds) == warns


@pytest.mark.parametrize(("implicit", "cure"), [(False, "Cure: integrator='implicit'"), (True, "Cure: a wider map")])
def test_ten_tiny_steps_in_a_row_are_a_stall(implicit, cure):
    def warned(lengths):
        watch, said = PWGFWatch((0.0, 1.0), implicit=implicit), []
        values = {"energy_change": 0.0, "predicted_change": 0.0, "energy": 1.0}
        for dt in lengths:
            info = Info(0.5, 0.5 + dt, dt, 1, 0, {**values, "length": dt})
            said += [message for _, message in watch.of_step(info)]
        return said

    assert warned([1e-9 * 3**k for k in range(12)]) == []  # a first step that grows
    assert warned([1e-8] * 9 + [1e-3] + [1e-8] * 9) == []
    [message] = warned([1e-8] * 10)
    assert "the last 10 steps were no longer than 1.0e-08, at t = 0.5" in message and cure in message


def test_progress_says_where_it_is_and_can_be_silenced(capsys, monkeypatch):
    monkeypatch.setattr("pwgf.run.progress._INTERVAL", 0.0)
    solve(progress=True)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("pwgf: t = 0.4 of 0.4, dt 0.025, energy ")
    monkeypatch.setenv("PWGF_PROGRESS", "0")
    solve(progress=None)
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("PWGF_PROGRESS")
    solve(progress=None)
    assert "pwgf: t = " in capsys.readouterr().err


def test_progress_is_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    solve(progress=True)
    assert "%|" in capsys.readouterr().err


# ---- failures -------------------------------------------------------------------------------------------------------


def failing(**settings):
    """A drift to the right into x > 13.5, where V is not a number: all samples are well on this side at t = 1."""
    energy = energies.Potential(lambda x: -10 * x[:, 0] + 1e-3 * (13.5 - x[:, 0]).sqrt())
    return pwgf.PWGF(
        energy, maps.Affine(1), pwgf.Gaussian(1), num_samples=50, num_eval=50, integrator=pwgf.Euler(0.1), **settings
    )


def test_a_failed_run_in_memory_hands_over_its_rows():
    with pytest.raises(NonFiniteError, match="no step from t = .*is good") as caught:
        pwgf.solve(failing(), np.linspace(0, 3, 7), progress=False)
    run = caught.value.run
    assert 1 < len(run) < 7
    assert run.sample(run.t[-1], 5).shape == (5, 1)
    assert run.state().t == run.t[-1]


def test_a_failed_run_on_disk_keeps_its_rows(tmp_path):
    with pytest.raises(NonFiniteError):
        pwgf.solve(failing(), np.linspace(0, 3, 7), out=tmp_path / "run.h5", progress=False)
    assert 1 < len(pwgf.load(tmp_path / "run.h5")) < 7


def test_a_failure_at_the_start_has_no_run():
    with pytest.raises(NonFiniteError) as caught:
        pwgf.solve(pwgf.PWGF(energies.Potential(lambda x: x[:, 0].log()), maps.Affine(1), pwgf.Gaussian(1)), [0.0, 1.0])
    assert caught.value.run is None
