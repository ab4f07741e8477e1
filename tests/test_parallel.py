"""Several processes give what one gives: run here in one, and by gloo in two that share the samples."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pwgf
from pwgf import parallel
from pwgf.errors import ConfigError
from pwgf.parallel import ALONE, Group
from tests import parallel_worker
from tests.run.helpers import assert_same_rows

WORKER = Path(parallel_worker.__file__)
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": str(Path(pwgf.__file__).parent.parent),
    "PWGF_PROGRESS": "0",
}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def started(size, *arguments, **environment):
    """Processes that know of each other, as a launcher starts them."""
    shared = {**ENVIRONMENT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(size)}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            env={**shared, "RANK": str(rank), **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def torchrun(size, *arguments):
    """The worker in `size` processes, started by torchrun and ended if they hang."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size, WORKER]
    return subprocess.run(
        [*map(str, [*command, *arguments])], env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return {**parallel_worker.figures(folder), "folder": folder}


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def together(request, tmp_path_factory):
    """The figures of each process, started by torchrun."""
    folder, size = tmp_path_factory.mktemp("together"), request.param
    scheme, times = parallel_worker.scheme(**parallel_worker.QUICK), parallel_worker.TIMES[:2]
    pwgf.solve(scheme, times, seed=1, out=folder / "resumed.h5", progress=False)
    done = torchrun(size, "figures", folder)
    assert done.returncode == 0, done.stderr
    ranks = []
    for rank in range(size):
        with np.load(folder / f"rank-{rank}.npz") as found:
            ranks.append({name: found[name] for name in found.files})
    return {"ranks": ranks, "folder": folder, "said": done.stderr, "size": size}


def names(alone, *kinds):
    return [name for name in alone if name.startswith(kinds)]


def test_a_right_side_is_that_of_one_process(alone, together):
    checked = names(alone, "layered ", "generic ")
    assert len(checked) == 32 + 30
    for found in together["ranks"]:
        for name in checked:
            np.testing.assert_allclose(
                found[name], alone[name], rtol=1e-12, atol=1e-12 * np.nanmax(np.abs(alone[name])), err_msg=name
            )


def test_energies_velocities_and_gradients_are_those_of_one_process(alone, together):
    checked = names(alone, *parallel_worker.ENERGIES)
    assert len(checked) == 5 * len(parallel_worker.ENERGIES)
    for found in together["ranks"]:
        for name in checked:
            scale = np.abs(alone[name]).max()
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-12, atol=1e-12 * scale, err_msg=name)


def test_runs_are_those_of_one_process_within_the_tolerance(alone, together):
    for found in together["ranks"]:
        for name in names(alone, "run "):
            np.testing.assert_allclose(found[name], alone[name], rtol=1e-4, atol=1e-4, err_msg=name)
        assert found["layers begun"] == alone["layers begun"] == 2
        assert found["rows when the last process stops"] == 2


def test_all_processes_hold_the_same_bits(together):
    first, *others = together["ranks"]
    for name in first:
        if name.startswith(("layered", "generic", "run")):
            for other in others:
                assert np.array_equal(first[name], other[name], equal_nan=True), name


def test_one_process_writes(together):
    assert [int(found["writers"]) for found in together["ranks"]] == [1] + [0] * (together["size"] - 1)
    run = pwgf.load(together["folder"] / "own.h5")
    assert pwgf.storage.open_record(run.path).provenance["processes"] == together["size"]
    assert np.array_equal(run["theta"], together["ranks"][1]["run file theta"])


def test_what_one_process_meets_all_are_told(alone, together):
    assert "velocity of energy term 'potential' is NaN or infinite at 1 of 61 samples" in str(alone["nan"])
    for rank, found in enumerate(together["ranks"]):
        assert str(found["nan"]) == str(alone["nan"])
        assert "ConfigError: PWGF(energy=…) must be the same in all" in str(found["energy"])
        for name in ("own energy", "own velocity"):
            assert "ConfigError: PWGF(energy=…): term 'own" in str(found[name])
            assert "must average by rho.mean(values)" in str(found[name])
        assert "PathError: " in str(found["there"]) and "a run is there already" in str(found["there"])
        assert "StorageError: " in str(found["full"]) and "the disk is full" in str(found["full"])
        assert ("process 0 of" in str(found["full"])) == (rank > 0)
        assert str(found["signal"]) == "SystemExit: 143"
        assert int(found["checkpoints"]) == (1 if rank == 0 else 0)
    assert str(alone["energy"]) == str(alone["own energy"]) == str(alone["own velocity"]) == "nothing"
    assert len(pwgf.load(together["folder"] / "full.h5")) == 1
    assert len(pwgf.load(together["folder"] / "signal.h5")) == 1


def test_different_settings_are_refused_by_name(together):
    for found in together["ranks"]:
        assert "must have the same settings; they differ in scheme.damping: 1e-06 in process 0, 2e-06 in process 1" in (
            str(found["damping"])
        )


def test_two_processes_on_one_device_are_refused(alone, together):
    for found in together["ranks"]:
        said = (
            f"solve: each of the {together['size']} processes of this run needs a device of its own; processes 0 and 1 "
        )
        assert said + "both compute on xpu:0. Give device='cuda'" in str(found["one device"])
        assert str(found["own devices"]) == "nothing"
    assert str(alone["one device"]) == "nothing"


def test_a_file_of_one_process_is_continued_by_several(alone, together):
    found = np.load(together["folder"] / "resumed.npy")
    straight = pwgf.solve(
        parallel_worker.scheme(**parallel_worker.QUICK), parallel_worker.TIMES, seed=1, progress=False
    )["theta"]
    np.testing.assert_allclose(found, straight, atol=1e-6)
    said = f"resuming with 1 threads in {together['size']} processes a run begun with 1 in 1: results may differ"
    assert together["said"].count(said) == 1


@pytest.mark.parametrize(
    "mode", ["exit 1", pytest.param("exit 0", marks=pytest.mark.slow), pytest.param("halt 1", marks=pytest.mark.slow)]
)
def test_when_a_process_dies_the_others_stop_and_one_alone_can_go_on(mode, tmp_path, caplog):
    out = tmp_path / "run.h5"
    processes = started(2, "run", out, mode, PWGF_PARALLEL_TIMEOUT="15" if "halt" in mode else "120")
    try:
        survivor = processes[1 - int(mode[-1])]
        said = survivor.communicate(timeout=120)[1]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stderr.close()
    assert survivor.returncode == 1
    last = said.strip().splitlines()[-1]
    assert f"ParallelError: process {1 - int(mode[-1])} of 2 stops, because another one has stopped or did not" in last
    assert "resume=True. Rows up to t = 0.05 are stored." in last
    assert pwgf.load(out).t.tolist() == parallel_worker.TIMES[:2]
    settings = {"integrator": pwgf.FixedStep("midpoint", 0.0125)}
    run = pwgf.solve(parallel_worker.scheme(**settings), parallel_worker.TIMES, out=out, seed=1, resume=True)
    assert "resuming with 1 threads in 1 processes a run begun with 1 in 2" in caplog.text
    straight = pwgf.solve(parallel_worker.scheme(**settings), parallel_worker.TIMES, seed=1)
    np.testing.assert_allclose(run["theta"], straight["theta"], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("together", [2], indirect=True)
@pytest.mark.parametrize("mode", ["kill", "terminate"])
def test_a_run_under_torchrun_that_was_stopped_resumes_to_the_bit(mode, together, tmp_path):
    """All processes killed at once, or torchrun terminated as by a queue; then the same command again."""
    out = tmp_path / "run.h5"
    assert torchrun(2, "run", out, mode).returncode != 0
    stopped = pwgf.load(out)
    assert stopped.t.tolist() == parallel_worker.TIMES[:2]
    assert stopped.state().t == pytest.approx(0.0625 if mode == "kill" else 0.075)  # the step under way is finished
    done = torchrun(2, "run", out, "nothing")
    assert done.returncode == 0, done.stderr
    run, whole = pwgf.load(out), pwgf.load(together["folder"] / "whole.h5")
    assert_same_rows(run, whole)
    settings = {"integrator": pwgf.FixedStep("midpoint", 0.0125)}
    straight = pwgf.solve(parallel_worker.scheme(**settings), parallel_worker.TIMES, seed=1, progress=False)
    np.testing.assert_allclose(run["theta"], straight["theta"], atol=1e-6)


# ---- without other processes


def test_one_process_is_the_identity():
    x = torch.arange(5)
    same = [ALONE.sum(x), ALONE.slice_rows(x), ALONE.gather_rows(x), ALONE.from_first(x), ALONE.norm(x)]
    assert all(y is x for y in same)
    assert ALONE.greatest(1.0, 2.0) == ALONE.numbers_from_first(1.0, 2.0) == (1.0, 2.0)
    assert ALONE.any(True) and not ALONE.any(torch.tensor(False))
    ALONE.barrier()
    ALONE.agree({"a": 1}, "solve")
    with pytest.raises(ConfigError, match="as it is"):
        ALONE.on_first(lambda: (_ for _ in ()).throw(ConfigError("as it is")))


@pytest.mark.parametrize("n", [0, 1, 2, 7, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_cover_all_rows_once(n, size):
    shares = [list(range(n))[Group(rank, size).share(n)] for rank in range(size)]
    assert sum(shares, []) == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Group(0, size).for_samples(n).size == (size if n >= size else 1)


def test_the_world_is_one_process_unless_started_together(monkeypatch):
    assert parallel.world() == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.world() == ALONE  # a variable that other programs set as well
    for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PWGF_PARALLEL", "0")
    assert parallel.world() == ALONE


def test_processes_that_do_not_come_are_told(monkeypatch):
    here = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in {**here, "PWGF_PARALLEL_TIMEOUT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(pwgf.ParallelError, match="the 2 processes of this run could not be joined.*torchrun"):
        parallel.world()
    monkeypatch.setenv("PWGF_PARALLEL_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="PWGF_PARALLEL_TIMEOUT must be a positive number of seconds; got 'soon'"):
        parallel.world()
