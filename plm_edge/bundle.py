"""A bundle: a folder of files and `manifest.json`, which is written last and names them all.

A folder whose manifest is missing, changed or does not fit its files is not a model. The manifest
is JSON in one canonical form, so that the same export gives the same bytes, and carries the sha256
of itself without that field: no byte of a bundle can change unnoticed by `verify_bundle`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from plm_edge.atomic import atomic_folder, write_atomic
from plm_edge.errors import FileFormatError, OutputError, SpecError, UsageError
from plm_edge.spec import ModelSpec

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
MODEL_FILE = "model.gguf"

_MAX_BYTES = 1 << 20  # of a manifest
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "export the model again"


@dataclass(frozen=True)
class BundleFile:
    """One file of a bundle, directly in its folder."""

    name: str
    size: int  # bytes
    sha256: str  # hex


@dataclass(frozen=True)
class Manifest:
    """What a bundle is, where it came from and which files belong to it."""

    spec: ModelSpec
    plan: Mapping[str, Any]  # layout, formats, context; plain values
    source: Mapping[str, Any]  # the checkpoint: name, revision, hash; plain values
    licence: str | None  # None: not stated by the source
    producer: str  # program and version
    files: tuple[BundleFile, ...]

    def to_json(self) -> str:
        """The canonical text, with its own hash."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "spec": self.spec.to_dict(),
            "plan": dict(self.plan),
            "source": dict(self.source),
            "licence": self.licence,
            "producer": self.producer,
            "files": [asdict(file) for file in sorted(self.files, key=lambda file: file.name)],
        }
        return _canonical(content | {"sha256": _sha256_of(content)})

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """The strict inverse of `to_json`; `where` names the file in errors."""
        content = _parse(text, where)
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise FileFormatError(
                f"{where}: expected schema version {SCHEMA_VERSION}, found {version!r}; "
                "use the version of plm-edge that wrote it, or export the model again"
            )
        claimed = content.pop("sha256", None)
        if claimed != _sha256_of(content) or text != _canonical(content | {"sha256": claimed}):
            raise FileFormatError(
                f"{where}: expected the text as exported, found it changed; {_AGAIN}"
            )
        del content["schema_version"]
        try:
            content["spec"] = ModelSpec.from_dict(content["spec"])
            content["files"] = tuple(_bundle_file(file) for file in content["files"])
            manifest = cls(**content)
            _check_kinds(manifest)
        except (KeyError, TypeError, ValueError, SpecError) as why:
            raise FileFormatError(
                f"{where}: expected a manifest of a model, found: {why}"
            ) from None
        names = [file.name for file in manifest.files]
        if len(set(names)) != len(names):
            raise FileFormatError(f"{where}: expected each file once, found {sorted(names)}")
        return manifest


def read_bundle(path: Path) -> Manifest:
    """The manifest of the bundle `path`, after checking that exactly its files are there.

    Names and sizes are checked; hashes by `verify_bundle`. Raises FileFormatError.
    """
    manifest = Manifest.from_json(_manifest_text(path), str(path / MANIFEST))
    for file in manifest.files:
        found = path / file.name
        try:
            status = found.lstat()
        except FileNotFoundError:
            raise FileFormatError(f"{found}: expected this file, found none; {_AGAIN}") from None
        if not stat.S_ISREG(status.st_mode):
            raise FileFormatError(f"{found}: expected a plain file, found a link or a folder")
        if status.st_size != file.size:
            raise FileFormatError(
                f"{found}: expected {file.size} bytes, found {status.st_size}; copy it again"
            )
    extra = _beside(path, {file.name for file in manifest.files})
    if extra is not None:
        raise FileFormatError(f"{path / extra}: expected the bundle's files only; move it away")
    return manifest


def model_file(path: Path) -> Path:
    """The GGUF file that `path` is, or the one in the bundle `path`; FileFormatError if none is."""
    if not path.is_dir():
        return path
    file = path / MODEL_FILE
    if file.exists():
        return file
    if any(path.glob("*.onnx")):
        raise FileFormatError(
            f"{path}: expected {MODEL_FILE}, found ONNX files only; "
            "export with --format gguf or both"
        )
    raise FileFormatError(f"{path}: expected {MODEL_FILE}, found none; {_AGAIN}")


def verify_bundle(path: Path) -> Manifest:
    """`read_bundle`, and the hash of each file. Raises FileFormatError naming the file."""
    manifest = read_bundle(path)
    for file in manifest.files:
        found = _sha256_of_file(path / file.name)
        if found != file.sha256:
            raise FileFormatError(
                f"{path / file.name}: expected sha256 {file.sha256}, found {found}; "
                "copy or export it again"
            )
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json; the last thing that is written to a bundle."""
    write_file(folder, MANIFEST, manifest.to_json().encode())


def write_file(folder: Path, name: str, data: bytes) -> BundleFile:
    """Write a small file of a bundle at once."""

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomic(folder / name, write)
    return BundleFile(name, len(data), hashlib.sha256(data).hexdigest())


@contextlib.contextmanager
def new_bundle(path: Path, force: bool = False) -> Iterator[Path]:
    """A folder to write a bundle into; it takes the place of `path` when the block ends well.

    With `force` it replaces an earlier bundle, and never a folder that holds anything else.
    """
    with atomic_folder(path, force, stranger) as folder:
        yield folder
        assert (folder / MANIFEST).is_file()


def stranger(folder: Path) -> str | None:
    """What in `folder` is not a bundle's and must not be deleted with it; None if nothing.

    A bundle of another version, or with damaged files, is a bundle here.
    """
    if not (folder / MANIFEST).is_file():
        return _beside(folder, set())
    try:
        content = _parse(_manifest_text(folder), MANIFEST)
        names = {str(file["name"]) for file in content["files"]}
    except (FileFormatError, KeyError, TypeError):
        return f"a {MANIFEST} that is not of a bundle"
    return _beside(folder, names)


def _beside(folder: Path, names: set[str]) -> str | None:
    found = sorted(entry.name for entry in folder.iterdir())
    return next((name for name in found if name not in names | {MANIFEST}), None)


def _manifest_text(path: Path) -> str:
    file = path / MANIFEST
    try:
        if path.is_file():
            raise FileFormatError(f"{path}: expected the folder of a bundle, found a file")
        if not path.exists():
            raise UsageError(f"found no bundle {str(path)!r}; check its name")
        if path.is_dir() and not file.exists():
            raise FileFormatError(f"{path}: expected a bundle, found no {MANIFEST}; {_AGAIN}")
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as why:
        raise OutputError(f"{file}: cannot be read: {why.strerror}; is this a bundle?") from None
    if len(data) > _MAX_BYTES:
        raise FileFormatError(f"{file}: expected at most {_MAX_BYTES} bytes, found more")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FileFormatError(f"{file}: expected UTF-8 text, found other bytes; {_AGAIN}") from None


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise FileFormatError(f"{where}: expected JSON, found something else; {_AGAIN}") from None
    if not isinstance(content, dict):
        raise FileFormatError(f"{where}: expected a JSON object, found {type(content).__name__}")
    return content


def _check_kinds(manifest: Manifest) -> None:
    for field, kinds in (
        ("plan", dict),
        ("source", dict),
        ("licence", (str, type(None))),
        ("producer", str),
    ):
        if not isinstance(getattr(manifest, field), kinds):
            raise TypeError(f"{field} is {getattr(manifest, field)!r}")


def _bundle_file(content: dict[str, Any]) -> BundleFile:
    file = BundleFile(**content)
    plain = isinstance(file.name, str) and file.name not in ("", ".", "..", MANIFEST)
    if not plain or any(bad in file.name for bad in "/\\\0"):
        raise ValueError(f"{file.name!r} is not the name of a file in the bundle")
    if type(file.size) is not int or file.size < 0:
        raise ValueError(f"{file.size!r} is not a size of {file.name}")
    if not isinstance(file.sha256, str) or not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"{file.sha256!r} is not a sha256 of {file.name}")
    return file


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _sha256_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as why:
        raise OutputError(f"{path}: cannot be read: {why.strerror}; check the disk") from None
    return digest.hexdigest()
