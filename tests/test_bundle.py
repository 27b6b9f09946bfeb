"""A bundle's manifest names every file; nothing that was changed, added or lost is accepted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY_SHAPES

from plm_edge.bundle import (
    MANIFEST,
    BundleFile,
    Manifest,
    new_bundle,
    read_bundle,
    stranger,
    verify_bundle,
    write_manifest,
)
from plm_edge.errors import FileFormatError, OutputError, PlmEdgeError, UsageError

FILES = {"model.gguf": bytes(range(256)), "notes.txt": "Erklärung".encode()}


def manifest_of(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        spec=TINY_SHAPES["plain"],
        plan={"layout": "latent", "quant": "Q4_0", "n_ctx": 4096, "x": [1, 2.5, None, True]},
        source={"name": "tiny", "revision": None},
        licence="Apache-2.0",
        producer="plm-edge 0.1.0",
        files=tuple(
            BundleFile(name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        ),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    with new_bundle(path) as folder:
        for name, data in FILES.items():
            (folder / name).write_bytes(data)
        write_manifest(folder, manifest_of(FILES))
    return path


def rewrite(bundle: Path, **changes: Any) -> None:
    """A manifest with other content whose own hash is right; "gone" takes a key away."""
    content = json.loads((bundle / MANIFEST).read_text()) | changes
    content = {key: value for key, value in content.items() if value != "gone"}
    del content["sha256"]

    def text(content: dict[str, Any]) -> str:
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    digest = hashlib.sha256(text(content).encode()).hexdigest()
    (bundle / MANIFEST).write_text(text(content | {"sha256": digest}))


def test_what_is_written_is_read(bundle):
    assert read_bundle(bundle) == verify_bundle(bundle) == manifest_of(FILES)


def test_same_manifest_same_bytes(bundle):
    files = dict(reversed(FILES.items()))
    assert manifest_of(files).to_json() == (bundle / MANIFEST).read_text()


def test_a_rewritten_manifest_is_accepted_so_the_next_tests_mean_something(bundle):
    rewrite(bundle, producer="plm-edge 0.1.1")
    assert verify_bundle(bundle).producer == "plm-edge 0.1.1"


def test_a_file_is_no_bundle(bundle):
    with pytest.raises(FileFormatError, match=f"{MANIFEST}: expected the folder of a bundle"):
        verify_bundle(bundle / MANIFEST)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_any_changed_byte_is_noticed(bundle, name):
    good = (bundle / name).read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        (bundle / name).write_bytes(bad)
        with pytest.raises(FileFormatError, match=name):
            verify_bundle(bundle)
    (bundle / name).write_bytes(good)
    verify_bundle(bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_any_other_length_is_noticed_without_hashing(bundle, name):
    good = (bundle / name).read_bytes()
    for bad in (*(good[:n] for n in range(len(good))), good + b"\n", good + good):
        (bundle / name).write_bytes(bad)
        with pytest.raises(FileFormatError, match=name):
            read_bundle(bundle)


def test_missing_and_extra_files(bundle):
    (bundle / "extra").touch()
    with pytest.raises(FileFormatError, match=r"extra: expected the bundle's files only"):
        read_bundle(bundle)
    (bundle / "extra").unlink()
    (bundle / "model.gguf").rename(bundle.parent / "model.gguf")
    with pytest.raises(FileFormatError, match=r"model\.gguf: expected this file, found none"):
        read_bundle(bundle)
    (bundle / "model.gguf").symlink_to(bundle.parent / "model.gguf")
    with pytest.raises(FileFormatError, match="expected a plain file"):
        read_bundle(bundle)


def test_a_folder_without_manifest_is_not_a_model(bundle):
    (bundle / MANIFEST).unlink()
    with pytest.raises(FileFormatError, match=r"found no manifest\.json"):
        read_bundle(bundle)
    with pytest.raises(UsageError, match="found no bundle"):
        read_bundle(bundle / "none")


ENTRY = {"name": "model.gguf", "size": 3, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"schema_version": 2}, "expected schema version 1, found 2"),
        ({"schema_version": "gone"}, "found None"),
        ({"surprise": 1}, "surprise"),
        ({"plan": "gone"}, "plan"),
        ({"plan": [1]}, "plan is"),
        ({"source": None}, "source is None"),
        ({"licence": 3}, "licence is 3"),
        ({"producer": {}}, "producer is"),
        ({"spec": {}}, "model spec"),
        ({"spec": 7}, "found"),
        ({"files": 7}, "found"),
        ({"files": [7]}, "found"),
        ({"files": [ENTRY, ENTRY]}, "each file once"),
        ({"files": [ENTRY | {"mode": 1}]}, "mode"),
        ({"files": [ENTRY | {"size": -1}]}, "not a size"),
        ({"files": [ENTRY | {"size": 1.0}]}, "not a size"),
        ({"files": [ENTRY | {"size": True}]}, "not a size"),
        ({"files": [ENTRY | {"sha256": "0" * 63}]}, "not a sha256"),
        ({"files": [ENTRY | {"sha256": None}]}, "not a sha256"),
        *(
            ({"files": [ENTRY | {"name": name}]}, "not the name of a file")
            for name in ("", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", MANIFEST, 3)
        ),
    ],
)
def test_manifests_with_faults(bundle, changes, text):
    rewrite(bundle, **changes)
    with pytest.raises(FileFormatError, match=text) as caught:
        read_bundle(bundle)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).startswith(str(bundle / MANIFEST))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"7",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"{}" * 600_000,
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda data: repr(data[:4]),
)
def test_manifests_that_are_no_manifest(bundle, data):
    (bundle / MANIFEST).write_bytes(data)
    with pytest.raises(FileFormatError, match=r"manifest\.json"):
        read_bundle(bundle)


def test_duplicate_keys_are_noticed(bundle):
    text = (bundle / MANIFEST).read_text()
    (bundle / MANIFEST).write_text(text.replace('"licence"', '"licence": null,\n "licence"', 1))
    with pytest.raises(FileFormatError, match="found it changed"):
        read_bundle(bundle)


def test_only_a_bundle_is_replaced(bundle):
    def again(force: bool) -> None:
        with new_bundle(bundle, force) as folder:
            write_manifest(folder, replace(manifest_of({}), producer="new"))

    with pytest.raises(OutputError, match="--force"):
        again(force=False)
    (bundle / "thesis.tex").touch()
    assert stranger(bundle) == "thesis.tex"
    with pytest.raises(OutputError, match=r"found thesis\.tex"):
        again(force=True)
    (bundle / "thesis.tex").unlink()
    (bundle / "model.gguf").write_bytes(b"damaged")
    again(force=True)
    assert read_bundle(bundle).producer == "new"
    (bundle / MANIFEST).write_text('{"name": "web app"}')
    with pytest.raises(OutputError, match="not of a bundle"):
        again(force=True)
    (bundle / MANIFEST).unlink()
    (bundle / "photo.jpg").touch()
    with pytest.raises(PlmEdgeError, match=r"found photo\.jpg"):
        again(force=True)
    assert sorted(entry.name for entry in bundle.parent.iterdir()) == ["bundle"]


def test_an_export_that_fails_leaves_the_old_bundle(bundle):
    def fail() -> None:
        with new_bundle(bundle, force=True) as folder:
            (folder / "model.gguf").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert verify_bundle(bundle) == manifest_of(FILES)
    assert sorted(entry.name for entry in bundle.parent.iterdir()) == ["bundle"]
