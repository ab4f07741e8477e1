"""Files whose hashes fit, made by somebody who means harm or has a bug: refused by name, at little cost."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from pwgf.errors import ConfigError, PWGFError, SchemaError
from pwgf.storage import Header, Writer, examine, open_record, pack, rows, salvage
from pwgf.storage.schema import MAX_TEXT_BYTES, put_attr
from tests.storage.forging import forge, forge_manifest, forge_part, set_value
from tests.storage.helpers import HEADER, abandon, row, state, write_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture
def packed(tmp_path):
    """A packed run of five rows."""
    return write_run(str(tmp_path / "run.h5"), 5).path


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A killed run of seven rows in three segments."""
    monkeypatch.setattr(rows, "SEGMENT_ROWS", 3)
    path = str(tmp_path / "parts.h5")
    writer = Writer.create(path, HEADER)
    for k in range(7):
        writer.append(row(k), state(k))
    abandon(writer)
    return path


def changed(name, k, value):
    """Sets one entry of a dataset."""

    def change(file):
        values = file[name][...]
        values[k] = value
        file[name][...] = values

    return change


@pytest.mark.parametrize(("k", "value"), [(2, np.nan), (3, np.inf), (3, 1 / 7), (3, 0.1)])
def test_times_that_do_not_increase_are_never_read(packed, tmp_path, k, value):
    forge(packed, changed("t", k, value))
    with pytest.raises(SchemaError, match="times of its rows are not finite and increasing"):
        open_record(packed).column("t")
    found = salvage(packed, tmp_path / "good.h5")
    assert found.rows == k and not found.resumable and f"the time of its row {k} is not after" in found.problems[0]
    check_rows_of(open_record(tmp_path / "good.h5"), k)


def check_rows_of(record, count):
    """The first `count` rows, without a state to continue from."""
    assert len(record) == count and record.verify() == []
    for j in range(count):
        np.testing.assert_array_equal(record.vector("theta", j), row(j)["theta"])


def test_the_doctor_finds_parameters_that_are_not_finite(packed, parts):
    forge_part(parts, "seg", changed("theta", (0, 1), np.nan))
    found = examine(parts)
    assert found.rows == 6 and "the parameters of its row 0 are not finite" in found.problems[0]
    assert open_record(parts).verify() != []


def test_a_packed_row_that_is_not_finite_ends_the_good_ones(packed, tmp_path):
    forge(packed, changed("theta", (3, 1), np.inf))
    assert salvage(packed, tmp_path / "good.h5").rows == 3
    check_rows_of(open_record(tmp_path / "good.h5"), 3)


def test_a_text_in_place_of_an_array_is_refused(packed, tmp_path):
    forge(packed, lambda file: set_value(file, "arrays/mask", "x" * 1000))
    for read in (lambda: open_record(packed).arrays["mask"], lambda: salvage(packed, tmp_path / "good.h5")):
        with pytest.raises(SchemaError, match="arrays/mask is no array of numbers"):
            read()


def test_segments_that_go_back_in_time_are_neither_read_nor_packed(parts):
    forge_part(parts, "seg", changed("t", 0, 0.2))
    with pytest.raises(SchemaError, match="times of its rows are not finite and increasing"):
        open_record(parts).column("t")
    with pytest.raises(SchemaError, match="times of its rows are not finite and increasing"):
        pack(parts)
    assert not os.path.exists(parts) and "not finite and increasing" in examine(parts).problems[0]


def swap(body):
    body["segments"][0], body["segments"][1] = body["segments"][1], body["segments"][0]


MANIFESTS = {  # what of it is changed, and what the refusal says
    "twice": (lambda b: b["segments"].insert(1, b["segments"][0]), "one is missing, or named twice"),
    "20 000 times": (lambda b: b.update(segments=[b["segments"][0]] * 20_000), "one is missing, or named twice"),
    "missing": (lambda b: b["segments"].pop(1), "one is missing, or named twice"),
    "swapped": (swap, "one is missing, or named twice"),
    "state of other rows": (lambda b: b["segments"].pop(), "is not the state after the last row"),
    "created null": (lambda b: b.update(created=None), "created is no text"),
    "rows infinite": (lambda b: b["segments"][0].update(rows=math.inf), "impossible values of 'seg-"),
    "rows negative": (lambda b: b["segments"][0].update(rows=-3), "impossible values of 'seg-"),
    "rows true": (lambda b: b["segments"][0].update(rows=True), "impossible values of 'seg-"),
    "a hash": (lambda b: b["header"].update(sha256="../x"), "impossible values of 'header-"),
    "dim": (lambda b: b.update(dim=10**6), "another dim or num_params than the manifest"),
    "no params": (lambda b: b.update(num_params=0), "num_params is '0'"),
    "huge": (lambda b: b.update(serial=10**30), "serial is '10000000"),
    "status": (lambda b: b.update(status="\x1b[31mdone"), r"status '\\x1b\[31mdone'"),
    "no list": (lambda b: b.update(segments=3), "is not a manifest"),
    "no dictionary": (lambda b: b.update(header=[1]), "is not a manifest"),
    "header a segment": (lambda b: b.update(header=b["segments"][0]), "where another kind of part belongs"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_have_a_schema(parts, name):
    change, message = MANIFESTS[name]
    forge_manifest(parts, change)
    with pytest.raises(SchemaError, match=message):
        open_record(parts)
    assert examine(parts).status == "unreadable"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layout", [{"name": "A", "shape": [4], "offset": 0}]),
        ("layout", [{"name": "A", "shape": [-3], "offset": 0}]),
        ("layout", [{"name": "A", "shape": 3, "offset": 0}]),
        ("layout", [{"name": "A", "shape": [1], "offset": 0}, {"name": "B", "shape": [2], "offset": 2}]),
        ("layout", ["A"]),
        ("layout", {"A": [3]}),
        ("config", [1, 2]),
    ],
)
def test_a_layout_covers_the_parameters(packed, name, value):
    forge(packed, lambda file: set_value(file, name, value))
    with pytest.raises(SchemaError, match="its config or layout has the wrong form"):
        open_record(packed)


def test_escapes_of_a_file_never_reach_a_terminal(packed):
    forge(packed, lambda file: put_attr(file, "status", "\x1b]0;owned\x07"))
    with pytest.raises(SchemaError, match=r"status is '\\x1b\]0;owned\\x07'"):
        open_record(packed)
    forge(packed, lambda file: put_attr(file, "pwgf_schema", "7.0"))
    forge(packed, lambda file: put_attr(file, "pwgf_version", "\x1b[2J\u202e"))
    with pytest.raises(SchemaError, match=r"written by pwgf \\x1b\[2J\\u202e: install"):
        open_record(packed)
    assert str(PWGFError("tabs\tand\nlines, ρ∇ä\x9b")) == "tabs\tand\nlines, ρ∇ä\\x9b"


def arrays(file):
    """Twenty deflated arrays of 60 MB of zeros."""
    for k in range(20):
        file.create_dataset(f"arrays/x{k}", shape=(60 << 17,), chunks=(1 << 20,), dtype="f8", compression=9)[:] = 0


def sparse_array(file):
    """An array of 2 GiB of holes that is no deflated one."""
    file.create_dataset("arrays/x", shape=(1 << 28,), dtype="f8")[-1] = 0


def nested(megabytes):
    return lambda file: set_value(file, "config", "[" + "[],[]," * (megabytes << 20) + "[]]")


def numbers(megabytes):
    return lambda file: set_value(file, "provenance/x", "[" + "1e0," * (megabytes << 18) + "1]")


def hole(path, parts):
    os.truncate(os.path.join(parts + ".parts", sorted(os.listdir(parts + ".parts"))[-1]), 2 << 30)
    return parts


def big_manifest(path, parts):
    with open(parts + ".parts/manifest.json", "wb") as file:
        file.write(b"[" + b"{}," * (20 << 20) + b"1]")
    return parts


def forged(change):
    def made(path, parts):
        forge(path, change)
        return path

    return made


BOMBS = {
    "arrays": (forged(arrays), "datasets claim 1258291200 bytes, of which the file holds"),
    "sparse array": (forged(sparse_array), "a file of holes"),
    "sparse segment": (hole, "a file of holes"),
    "nested JSON": (forged(nested(3)), "damaged (ValueError: more than"),
    "long JSON": (forged(nested(8)), "'config' claims 50331652 bytes"),
    "numbers in JSON": (forged(numbers(20)), "damaged (ValueError: more than"),
    "manifest": (big_manifest, "more than 16777216 bytes"),
}
MEASURE = """
import sys; sys.path.insert(0, {root!r})
import json, resource, time
from pwgf.storage import examine, open_record
from pwgf.errors import SchemaError
peak = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")
before, began, told = peak(), time.process_time(), ""
try:
    open_record({path!r})
except SchemaError as error:
    told = str(error)
print(json.dumps([told, time.process_time() - began, peak() - before]))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_little(packed, parts, name):
    make, message = BOMBS[name]
    path = make(packed, parts)
    code = MEASURE.format(root=ROOT, path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, seconds, memory = json.loads(done.stdout)
    assert message in told
    assert seconds < 2 and memory < 200  # MB


def test_a_text_that_no_reader_accepts_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"Header\(config=…\) needs what JSON can hold.*more than \d+ bytes"):
        Header({"x": "a" * (MAX_TEXT_BYTES + 1)}, [], {}, 1, 1)
    with pytest.raises(ConfigError, match="needs what JSON can hold.*surrogates not allowed"):
        Header({}, [], {"argv": "\udce9"}, 1, 1)


def test_arrays_of_the_header_are_read_when_they_are_asked_for(packed, monkeypatch):
    from pwgf.storage.pieces import Piece

    names, value = [], Piece.value
    monkeypatch.setattr(Piece, "value", lambda piece, name: names.append(name) or value(piece, name))
    record = open_record(packed)
    assert not [name for name in names if name.startswith("arrays/")]
    assert record.arrays["reference/mean"][1] == math.pi and names[-1] == "arrays/reference/mean"
    assert sorted(record.arrays) == ["mask", "reference/mean"] and "x" not in record.arrays
