"""Files from elsewhere: damaged, foreign, too new or hostile ones are refused, and never read another file."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pwgf.errors import PWGFError, SchemaError, StorageError
from pwgf.storage import Writer, guard, open_record
from pwgf.storage.schema import content_digest, dataset_digest, put_attr
from tests.storage.helpers import HEADER, abandon, check_rows, row, state, write_run

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LONG = [pytest.mark.slow, pytest.mark.faults]


def test_memory_that_is_short_is_no_damage():
    said = "reading 'run.h5' failed: there is not enough memory"
    with pytest.raises(StorageError, match=said) as caught, guard.trusting("run.h5"):
        np.empty(2**56)
    assert not isinstance(caught.value, SchemaError)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes of a packed run of 70 rows."""
    path = tmp_path_factory.mktemp("good") / "run.h5"
    write_run(str(path), 70, max_cost=0.5)
    return path.read_bytes()


def hostile(path, good, change):
    """The packed run after `change(file)`, with hashes made to fit again where that is possible."""
    path.write_bytes(good)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def external_storage(file):
    del file["energy"]
    file.create_dataset("energy", (70,), "f8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file):
    del file["energy"]
    layout = h5py.VirtualLayout((70,), "f8")
    layout[:] = h5py.VirtualSource("/other.h5", "x", (70,))
    file.create_virtual_dataset("energy", layout)


def cycle(file):
    file["restart/again"] = file["/"]


def second_name(file):
    file["energy2"] = file["energy"]


def huge(file):
    file.create_dataset("arrays/huge", (1 << 20, 1 << 20), "f8", chunks=(1, 1 << 17))  # 8 TiB in a few hundred bytes


def wide(file):
    file.create_dataset("arrays/wide", (1 << 27,), "f8", chunks=(1 << 20,))  # 1 GiB


def bomb(file):
    file.create_dataset("arrays/bomb", (1 << 24,), "f8", chunks=(1 << 17,), compression="gzip", fillvalue=0.0)
    file["arrays/bomb"][:] = 0.0  # 128 MiB of zeros in 130 kB


def chunky(file):
    file.create_dataset("arrays/chunky", (1 << 24,), "f8", chunks=(1 << 24,), compression="gzip")


def many(file):
    for k in range(guard.MAX_OBJECTS + 1):
        file.create_group(f"arrays/{k}")


def deep(file):
    file.create_group("arrays" + "/a" * 20)


def replaced(name, **options):
    def change(file):
        del file[name]
        file.create_dataset(name, **options)

    return change


HOSTILE = {
    "external link": (lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")), "link to elsewhere"),
    "soft link": (lambda f: f.__setitem__("arrays/x", h5py.SoftLink("/energy")), "link to elsewhere"),
    "external storage": (external_storage, "external storage"),
    "virtual": (virtual, "virtual dataset"),
    "cycle": (cycle, "has a second name|levels"),
    "second name": (second_name, "has a second name"),
    "named type": (lambda f: f.__setitem__("kind", np.dtype("f8")), "neither a group nor a dataset"),
    "references": (replaced("energy", shape=(70,), dtype=h5py.ref_dtype), "has dtype object"),
    "ragged": (replaced("energy", shape=(70,), dtype=h5py.vlen_dtype(np.float64)), "has dtype object"),
    "compound": (replaced("energy", shape=(70,), dtype=[("a", "f8")]), "has dtype"),
    "big endian": (replaced("energy", data=np.zeros(70), dtype=">f8"), "has dtype >f8"),
    "text array": (replaced("energy", data=np.array([b"x"] * 70)), "text other than one UTF-8 string"),
    "ascii": (replaced("config", data=b"{}", dtype=h5py.string_dtype("ascii", 2)), "text other than one UTF-8"),
    "empty": (lambda f: f.create_dataset("arrays/x", data=h5py.Empty("f8")), "is empty"),
    "huge": (huge, "claims 8796093022208 bytes, more than the limit"),
    "wide": (wide, "claims 1073741824 bytes, of which the file holds 0"),
    "bomb": (bomb, "'arrays/bomb' claims 134217728 bytes, of which the file holds"),
    "huge chunk": (chunky, "chunks of 134217728 bytes"),
    "filter": (replaced("energy", data=np.zeros(70), compression="lzf"), "filters other than"),
    "many": (many, "more than 10000 objects"),
    "deep": (deep, "16 levels"),
    "no time": (lambda f: f.__delitem__("t"), "has no dataset 't'"),
    "no config": (lambda f: f.__delitem__("config"), "has no dataset 'config'"),
    "config a number": (replaced("config", data=1.0), "'config' is no text"),
    "short column": (replaced("energy", data=np.zeros(69)), r"'energy' is float64 \(69,\) where float64 \(70,\)"),
    "float32 column": (replaced("energy", data=np.zeros(70, "f4")), "'energy' is float32"),
    "wrong p": (lambda f: put_attr(f, "num_params", 4), r"'theta' is float64 \(70, 3\) where float64 \(70, 4\)"),
    "wrong d": (lambda f: put_attr(f, "dim", 5), r"'dim' has shape \(2,\), not \(5,\)"),
    "no schema": (lambda f: f.attrs.__delitem__("pwgf_schema"), "HDF5 file of something else"),
    "odd schema": (lambda f: put_attr(f, "pwgf_schema", "one"), "its schema is 'one'"),
    "array schema": (lambda f: f.attrs.__setitem__("pwgf_schema", np.ones(3)), "HDF5 file of something else"),
    "newer": (lambda f: put_attr(f, "pwgf_schema", "2.0"), "schema 2.0, and pwgf .* reads schemas up to 1.x.*install"),
    "a part": (lambda f: put_attr(f, "pwgf_kind", "rows"), "it is a part of a run"),
    "changed hash": (lambda f: put_attr(f["energy"], "sha256", "0" * 64), "do not match content_sha256"),
    "not ours": (lambda f: f.create_dataset("extra", data=np.zeros(70)), "do not match content_sha256"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, good, name):
    change, message = HOSTILE[name]
    with pytest.raises(SchemaError, match=message):
        open_record(hostile(tmp_path / "run.h5", good, change))


def test_changed_values_are_refused_when_they_are_read(tmp_path, good):
    def change(file):
        file["restart/rng"][0] ^= 1
        file["arrays/reference/mean"][0] += 1
        file["energy"][0] += 1  # with a fletcher32 that fits
        file["theta"][0, 0] += 1

    record = open_record(hostile(tmp_path / "run.h5", good, change))
    assert record.column("t")[1] == 1 / 7
    with pytest.raises(SchemaError, match="'arrays/reference/mean' is damaged: it does not match its sha256"):
        record.arrays["reference/mean"]
    with pytest.raises(SchemaError, match="'restart/rng' is damaged: it does not match its sha256"):
        record.restart()
    with pytest.raises(SchemaError, match="'energy' is damaged: it does not match its sha256"):
        record.column("energy")
    assert len([problem for problem in record.verify() if "sha256" in problem]) >= 3


def test_a_minor_schema_of_the_same_major_is_read(tmp_path, good):
    path = hostile(tmp_path / "run.h5", good, lambda file: put_attr(file, "pwgf_schema", "1.7"))
    check_rows(open_record(path), 70, 70)


def test_deep_json_is_no_crash(tmp_path, good):
    def nested(file):
        data = b"[" * 200_000
        replaced("config", data=data, dtype=h5py.string_dtype("utf-8", len(data)))(file)
        put_attr(file["config"], "sha256", dataset_digest(file["config"]))
        names = [name for name, _ in guard.walk(file, "")]
        put_attr(file, "content_sha256", content_digest({n: guard.read_attr(file[n], "sha256") for n in names}))

    with pytest.raises(SchemaError, match="damaged"):
        open_record(hostile(tmp_path / "run.h5", good, nested))


def test_repacked_with_gzip_is_read(tmp_path, good):
    """The bytes lie otherwise, the content and its hashes are the same."""

    def repack(file):
        digest, data = file["theta"].attrs["sha256"], file["theta"][...]
        del file["theta"]
        theta = file.create_dataset("theta", data=data, compression="gzip", shuffle=True, chunks=(10, 3))
        theta.attrs["sha256"] = digest

    check_rows(open_record(hostile(tmp_path / "run.h5", good, repack)), 70, 70)


def test_no_hdf5_and_foreign_hdf5(tmp_path):
    path = tmp_path / "run.h5"
    for data in (b"", b"times: 1", os.urandom(5000)):
        path.write_bytes(data)
        with pytest.raises(SchemaError, match=r"run.h5.*expected a trajectory written by pwgf, but it is no HDF5 file"):
            open_record(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1.0
    with pytest.raises(SchemaError, match="an HDF5 file of something else"):
        open_record(path)


@pytest.mark.parametrize("every", [1601, pytest.param(10, marks=LONG)])
def test_a_truncated_file_is_refused(tmp_path, good, every, record_property):
    path = tmp_path / "run.h5"
    sizes = range(1, len(good), every)
    for size in sizes:
        path.write_bytes(good[:size])
        with pytest.raises(SchemaError):
            open_record(path)
    record_property("faults", ("packed file cut short at every tenth byte", len(sizes), "refused"))


def intact_or_refused(path):
    """Reads everything; True when all of it is right, False when it is refused. Anything else raises."""
    try:
        record = open_record(path)
        check_rows(record, 70, 70)
    except (StorageError, AssertionError) as error:
        if isinstance(error, AssertionError) and open_record(path).verify() == []:
            raise
        return False
    assert record.config == HEADER.config and record.complete
    return True


FLIP = """
import resource, sys; sys.path.insert(0, {root!r})
import numpy as np
from tests.storage.test_guard import intact_or_refused
data = bytearray(open({path!r}, "rb").read())
rng = np.random.default_rng({seed})
right, memory = 0, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
intact_or_refused({path!r})
before = memory()
for _ in range({count}):
    at, bit = int(rng.integers(len(data))), 1 << int(rng.integers(8))
    data[at] ^= bit
    open({path!r}, "wb").write(data)
    right += intact_or_refused({path!r})
    data[at] ^= bit
print(right, memory() - before)
"""


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=LONG)])
def test_flipped_bits_are_found(tmp_path, good, count, record_property):
    """In a process of its own: a crash of HDF5 would show as its exit status, a huge allocation as its memory."""
    path = tmp_path / "run.h5"
    path.write_bytes(good)
    code = FLIP.format(root=ROOT, path=str(path), seed=0, count=count)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    right, memory = map(int, done.stdout.split())
    assert right < count and memory < 64  # MB
    record_property("faults", ("packed file with one bit flipped", count, "refused, or every value right"))


@pytest.mark.parametrize("count", [10, pytest.param(200, marks=LONG)])
def test_flipped_bits_in_the_parts_are_found(tmp_path, count, record_property):
    path, rng = str(tmp_path / "run.h5"), np.random.default_rng(1)
    writer = Writer.create(path, HEADER, max_cost=1e-9)
    for k in range(70):
        writer.append(row(k), state(k))
    writer.publish()
    writer.checkpoint(state(69, between=True))
    abandon(writer)
    parts = sorted(part for part in (tmp_path / "run.h5.parts").iterdir() if part.name != "run.lock")
    for number in range(count):
        part = parts[number % len(parts)]
        data = bytearray(part.read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        kept = part.read_bytes()
        part.write_bytes(data)
        record = None
        with pytest.raises(SchemaError):
            record = open_record(path)
            record.vector("theta", 0)
        if part.name.startswith("seg") and record is not None:
            assert record.verify() != []
        part.write_bytes(kept)
    check_rows(open_record(path), 70, 70)
    record_property("faults", ("one bit flipped in a part of a killed run", count, "refused"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=64)))
def test_overwritten_bytes_are_found(tmp_path, good, cut):
    where, data = int(cut[0] * (len(good) - 1)), cut[1]
    path = tmp_path / "run.h5"
    path.write_bytes(good[:where] + data + good[where + len(data) :])
    intact_or_refused(path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 1 << 40), min_size=0, max_size=3).map(tuple),
    dtype=st.sampled_from(["<f8", "<f4", "<i8", "u1", "?", "<i4", "<c16", ">i8", "S5"]),
    name=st.sampled_from(["arrays/x", "restart/x", "x", "theta", "t", "param"]),
    chunked=st.booleans(),
)
def test_no_declared_shape_is_believed(tmp_path, good, shape, dtype, name, chunked):
    """A dataset of any shape without data: refused, or nothing bigger than the file is behind it."""
    path = tmp_path / "run.h5"

    def declare(file):
        if name in file:
            del file[name]
        chunks = tuple(min(n, 8) for n in shape) if chunked and shape and all(shape) else None
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
        if chunks:
            plan.set_chunk(chunks)
        space, kind = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5t
        h5py.h5d.create(file.id, name.encode(), kind.py_create(np.dtype(dtype)), space, plan)

    try:
        hostile(path, good, declare)
    except (ValueError, OSError, RuntimeError, OverflowError):
        return  # HDF5 itself cannot declare it
    with pytest.raises(PWGFError):  # at the latest content_sha256 shows that it does not belong
        open_record(path)


def test_a_manifest_names_no_file_outside_its_folder(tmp_path):
    from pwgf.storage import manifest as manifests

    path = str(tmp_path / "run.h5")
    writer = Writer.create(path, HEADER)
    writer.append(row(0), state(0))
    abandon(writer)
    name = os.path.join(path + ".parts", "manifest.json")
    with open(name) as file:
        body = json.load(file)
    body["segments"][0]["file"] = "../secret.h5"
    for fit in (False, True):
        if fit:
            body["sha256"] = manifests._digest({k: v for k, v in body.items() if k != "sha256"})
        with open(name, "w") as file:
            json.dump(body, file)
        with pytest.raises(SchemaError, match="not the name of a part" if fit else "does not match its own sha256"):
            open_record(path)
    body["schema"] = "2.1"
    with open(name, "w") as file:
        json.dump(body, file)
    with pytest.raises(SchemaError, match=r"schema 2.1, and pwgf .* reads schemas up to 1.x"):
        open_record(path)
