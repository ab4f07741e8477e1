"""Forging: files and manifests changed at will, with all hashes made to fit again."""

import hashlib
import json
import os

import h5py

from pwgf.storage.schema import content_digest, dataset_digest, put_attr


def set_value(file, name, value):
    """Replaces a dataset by an array, or by a text (any JSON value but an array is written as JSON)."""
    if name in file:
        del file[name]
    if hasattr(value, "dtype"):
        file.create_dataset(name, data=value)
    else:
        data = (value if isinstance(value, str) else json.dumps(value)).encode() or b" "
        file.create_dataset(name, data=data, dtype=h5py.string_dtype("utf-8", len(data)))


def rehash(file):
    """Makes the hashes of an open packed file fit its datasets; those that cannot be read keep what they have."""
    digests = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            small = item.shape is not None and item.nbytes < 1 << 26
            try:
                digests[name] = dataset_digest(item) if small else "0" * 64
                put_attr(item, "sha256", digests[name])
            except (OSError, TypeError, ValueError, RuntimeError):
                digests[name] = "0" * 64

    file.visititems(visit)
    put_attr(file, "content_sha256", content_digest(digests))


def forge(path, change):
    """A packed file after `change(file)`, with hashes that fit."""
    with h5py.File(path, "r+") as file:
        change(file)
        rehash(file)


def forge_config(path, change):
    """A packed file whose config is changed by `change(config)`."""

    def changed(file):
        config = json.loads(file["config"][()].decode())
        change(config)
        set_value(file, "config", config)

    forge(path, changed)


def sign(body):
    """A manifest's JSON with the sha256 that fits."""
    body = {name: value for name, value in body.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": digest, **body}).encode()


def forge_manifest(path, change):
    """A run in parts whose manifest is changed by `change(body)`; hashes of parts that are there fit their bytes."""
    name = os.path.join(path + ".parts", "manifest.json")
    with open(name, "rb") as file:
        body = json.load(file)
    change(body)
    with open(name, "wb") as file:
        file.write(sign(body))


def forge_part(path, kind, change):
    """A run in parts whose newest part of this kind is changed by `change(file)`, in the manifest too."""

    def changed(body):
        part = body["segments"][-1] if kind == "seg" else body[kind]
        name = os.path.join(path + ".parts", part["file"])
        with h5py.File(name, "r+") as file:
            change(file)
        with open(name, "rb") as file:
            digest = hashlib.sha256(file.read()).hexdigest()
        for other in (*body["segments"], body["header"], body["restart"]):
            if other["file"] == part["file"]:
                other["sha256"] = digest

    forge_manifest(path, changed)
