"""Structure-aware mutations of a run's files, whose hashes mostly fit, and what becomes of them in every reader.

Usage: python fuzz.py FOLDER FIRST COUNT SECONDS; FOLDER holds what `prepare` made. Prints what was found as JSON.
"""

import contextlib
import copy
import io
import json
import os
import resource
import shutil
import signal
import sys
import time

import h5py
import numpy as np
import torch

import pwgf
from pwgf import cli, storage
from pwgf.errors import PWGFError
from pwgf.storage.schema import put_attr
from tests.run.helpers import TIMES, scheme, solve
from tests.storage.forging import forge, forge_manifest, forge_part, rehash, set_value

PROBLEM = pwgf.problems.OrnsteinUhlenbeck(2)
JSON = [
    None, True, -1, 0, 3, 10**6, 10**9, 2**63, 10**400, 0.5, -1e-3, float("nan"), float("inf"), "", "load", "\x1b[2J",
    "é\u202e", "x" * 1000, [], [1], ["a"], [[]] * 50, {}, {"name": "Affine"}, {"name": 3, "dim": -1}, {"a": {"b": []}},
]  # fmt: skip
ARRAYS = [
    np.array(np.nan), np.array(-1.0), np.array(np.inf), np.array(3), np.zeros(0), np.zeros(3), np.full(5056, 255, "u1"),
    np.zeros((2, 2)), np.full(18, np.nan), np.array(True), np.zeros(18, "f4"), np.arange(7), np.zeros((0, 3)),
]  # fmt: skip


class Hang(BaseException):
    """A reader took longer than it may."""


def prepare(folder):
    """A packed run, one that was killed in parts, and one that grows a packed beginning; each of four rows or more."""

    def stop(state, info):
        if state.t > 0.34:
            raise KeyboardInterrupt

    packed, killed, grown = (os.path.join(folder, name) for name in ("packed.h5", "killed.h5", "grown.h5"))
    solve(TIMES, out=packed, problem=PROBLEM)
    for path, first in ((killed, None), (grown, TIMES[:3])):
        if first:
            solve(first, out=path, problem=PROBLEM)
        with contextlib.suppress(KeyboardInterrupt):
            solve(TIMES, out=path, resume=True, problem=PROBLEM, callbacks=[stop], checkpoint_seconds=1e-9)
        forge_manifest(path, lambda body: body.update(status="running"))  # as a kill leaves it


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def places(value, way=()):
    """All places in a JSON value, as ways of keys."""
    yield way
    parts = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*way, key))


def json_changed(rng, value):
    """The value with one entry replaced, removed, doubled, or its key renamed."""
    value = copy.deepcopy(value)
    ways = [way for way in places(value) if way]
    if not ways:
        return pick(rng, JSON)
    *above, last = pick(rng, ways)
    at = value
    for key in above:
        at = at[key]
    kind = int(rng.integers(5))
    if kind < 3:
        at[last] = pick(rng, JSON)
    elif kind == 3 and isinstance(at, list):
        at.insert(0, at[last])
    elif kind == 3:
        at[pick(rng, ["x", "dim", "\x1b[31m", "terms"])] = at.pop(last)
    else:
        at.pop(last)
    return value


def change_text(rng, file):
    """Config, layout, provenance or counters."""
    names = [name for name in ("config", "config", "config", "layout", "restart/counters") if name in file]
    names += [f"provenance/{name}" for name in list(file.get("provenance", {}))[:2]]
    name = pick(rng, names)
    text = file[name][()].decode()
    if rng.integers(8) == 0:
        return set_value(file, name, text[: len(text) // 2] or "{")
    return set_value(file, name, json_changed(rng, json.loads(text)))


def change_state(rng, file):
    if "restart" in file and len(file["restart"]):
        name = pick(rng, list(file["restart"]))
        set_value(file, f"restart/{name}", pick(rng, [*ARRAYS, "x", "[1]"]))


def change_dataset(rng, file):
    """One dataset of another type, shape or storage, away, or new."""
    names = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    name, kind = pick(rng, names), int(rng.integers(6))
    if kind == 0:
        del file[name]
    elif kind == 1:
        set_value(file, name, pick(rng, ARRAYS))
    elif kind == 2:
        set_value(file, name, pick(rng, JSON))
    elif kind == 3:
        file.create_dataset(f"{name}2" if rng.integers(2) else "x/y", data=pick(rng, ARRAYS))
    elif kind == 4:
        del file[name]
        file.create_dataset(name, shape=(int(10 ** rng.uniform(0, 9)),), dtype="f8", chunks=(1 << 17,), compression=9)
    else:
        file[pick(rng, ["x", "arrays/x", name + "3"])] = pick(
            rng, [h5py.SoftLink("/t"), h5py.ExternalLink("/etc/passwd", "/"), np.float64(1), np.dtype("f8")]
        )


def change_attribute(rng, file):
    name = pick(rng, [*file.attrs, "x"])
    value = pick(rng, [0, -1, 1, 10**6, 2**62, "", "\x1b[2J", "running", "1.9", "2.0", "x" * 3000, "complete"])
    if rng.integers(4) == 0 and name in file.attrs:
        del file.attrs[name]
    elif rng.integers(4) == 0:
        file.attrs[name] = np.array([1.0, np.nan])
    else:
        put_attr(file, name, value)


def change_rows(rng, file):
    """A time or a parameter that no run writes; the hashes fit."""
    if "t" in file and file["t"].size:
        name = pick(rng, ["t", "theta", "theta_dot"])
        values = file[name][...]
        values.flat[int(rng.integers(values.size))] = pick(rng, [np.nan, np.inf, -np.inf] + [-1e9] * (name == "t"))
        del file[name]
        file[name] = values


CHANGES = [change_text, change_text, change_state, change_dataset, change_attribute, change_rows]


def change_manifest(rng, body):
    kind = int(rng.integers(4))
    if kind == 0 and body["segments"]:
        rng.shuffle(body["segments"])
        body["segments"] *= int(rng.integers(1, 3))
    elif kind == 1 and body["segments"]:
        body["segments"].pop(int(rng.integers(len(body["segments"]))))
    else:
        new = json_changed(rng, body)
        body.clear()
        body.update(new if isinstance(new, dict) else {})


def change_bytes(rng, path):
    """Cut, filled with holes, overwritten or emptied."""
    size, kind = os.path.getsize(path), int(rng.integers(4))
    if kind == 0:
        os.truncate(path, int(rng.integers(size + 1)))
    elif kind == 1:
        os.truncate(path, size + int(10 ** rng.uniform(0, 9.3)))
    else:
        with open(path, "r+b") as file:
            file.seek(int(rng.integers(size)))
            file.write(rng.bytes(int(rng.integers(1, 64))) if kind == 2 else bytes(64))


def change_lock(rng, path):
    lock, kind = path + ".parts/run.lock", int(rng.integers(5))
    with contextlib.suppress(FileNotFoundError):
        os.remove(lock)
    if kind == 0:
        os.mkfifo(lock)
    elif kind == 1:
        os.symlink(pick(rng, ["/etc/passwd", "run.lock", "nowhere", "manifest.json"]), lock)
    elif kind == 2:
        os.mkdir(lock)
    else:
        who = {"pid": pick(rng, JSON), "host": pick(rng, JSON), "started": pick(rng, JSON)}
        with open(lock, "w", encoding="utf-8") as file:
            file.write(json.dumps(who if rng.integers(3) else pick(rng, JSON))[: int(rng.integers(1, 200))])


def copied(path, target):
    """Copies a run, packed and in parts."""
    if os.path.exists(path):
        shutil.copy(path, target)
    if os.path.exists(path + ".parts"):
        shutil.copytree(path + ".parts", target + ".parts")


def mutated(rng, folder, target):
    """A mutated copy of one of the runs at `target`; says what was changed."""
    base = pick(rng, ["packed.h5", "packed.h5", "killed.h5", "killed.h5", "grown.h5"])
    copied(os.path.join(folder, base), target)
    change = pick(rng, CHANGES)
    if base == "packed.h5":
        if rng.integers(6) == 0:
            change_bytes(rng, target)
            return base, "bytes"
        forge(target, lambda file: change(rng, file))
        return base, change.__name__
    kind = pick(rng, ["manifest", "manifest", "seg", "seg", "header", "restart", "bytes", "lock", "base"])
    if kind == "manifest":
        forge_manifest(target, lambda body: change_manifest(rng, body))
    elif kind == "lock":
        change_lock(rng, target)
    elif kind == "bytes":
        change_bytes(rng, os.path.join(target + ".parts", pick(rng, sorted(os.listdir(target + ".parts")))))
    elif kind == "base" and base == "grown.h5":
        with h5py.File(target, "r+") as file:
            change(rng, file)
            if rng.integers(2):
                rehash(file)
    else:
        forge_part(target, kind if kind != "base" else "seg", lambda file: change(rng, file))
    return base, f"{kind} {change.__name__}"


def read_all(record):
    with record:
        for name in record.names:
            record.column(name)
        for k in range(len(record)):
            record.vector("theta", k)
        record.restart()
        dict(record.arrays)
        record.verify()


def law(path):
    """Reads rows and law; returns t and θ."""
    run = pwgf.load(path)
    run.sample(float(run.t[-1]), 10)
    run.log_density(float(run.t[0]), torch.zeros(3, 2))
    run.state()
    return run.t, run["theta"]


def command(*arguments):
    """A command whose output must be free of control characters."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        cli.main(list(arguments))
    if "\x1b" in out.getvalue() or "Traceback" in out.getvalue():
        raise AssertionError("an escape or a traceback on the terminal")


READERS = [
    lambda path: read_all(storage.open_record(path)),
    law,
    storage.examine,
    lambda path: command("info", path),
    lambda path: command("doctor", path),
    lambda path: storage.salvage(path, path + ".saved"),
    storage.pack,
    lambda path: pwgf.solve(scheme(), TIMES, out=path, seed=3, resume=True, progress=False, problem=PROBLEM),
]


def tried(path, known, values_changed):
    """What the readers make of it: refusals, and faults of ours."""
    refused, faults = 0, []
    for number, reader in enumerate(READERS):
        try:
            found = reader(path)
            if number == 1 and not values_changed:
                rows = len(found[0])
                same = np.array_equal(found[0], known[0][:rows]) and np.array_equal(found[1], known[1][:rows])
                if not same:
                    faults.append(f"{number}: wrong rows")
        except PWGFError:
            refused += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            faults.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
    return refused > 0, faults


def main(folder, first, count, seconds):
    """Tries the mutations first … first + count − 1."""

    def hang(number, frame):
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    signal.signal(signal.SIGPROF, hang)
    known = law(os.path.join(folder, "packed.h5"))
    work = os.path.join(folder, f"work-{first}")
    found = {"refused": 0, "faults": [], "slowest": 0.0}
    for base in ("packed.h5", "killed.h5", "grown.h5"):  # the memory that whole runs take is what others are held to
        os.makedirs(work, exist_ok=True)
        copied(os.path.join(folder, base), os.path.join(work, base))
        assert tried(os.path.join(work, base), known, False) == (False, []), base
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(first, first + count):
        shutil.rmtree(work, ignore_errors=True)
        os.mkdir(work)
        target, rng = os.path.join(work, "run.h5"), np.random.default_rng(seed)
        try:
            what = mutated(rng, folder, target)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, OverflowError):
            what = ("none", "HDF5 itself does not write it")
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, seconds * len(READERS))
        signal.setitimer(signal.ITIMER_REAL, 300)  # blocked; on a busy machine 2 s of CPU may take a minute
        refused, faults = tried(target, known, "change_rows" in what[1] or "change_dataset" in what[1])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        found["slowest"] = max(found["slowest"], time.process_time() - began)
        found["refused"] += refused
        found["faults"] += [[seed, *what, fault] for fault in faults]
    found["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024  # MB
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
