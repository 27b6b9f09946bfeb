"""From what the user typed to a path: a path, `demo`, or a Hugging Face hub id.

    resolve_model("PLM-Team/PLM-1.8B-Instruct")            -> the folder of the snapshot
    resolve_model("PLM-Team/PLM-1.8B-Instruct-gguf:Q8_0")  -> the one GGUF file of that name

Only the files that are read are downloaded; never code, never pickles.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from plm_edge.errors import FileFormatError, OutputError, UnsupportedError, UsageError

_DEMO = Path(__file__).parents[1] / "demo"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"({_PART}/{_PART})(?::([A-Za-z0-9_]{{1,32}}))?")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "README.md",
]
_NEVER = ["*.py", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*/*"]

_T = TypeVar("_T")


def resolve_model(model: str | Path, offline: bool = False, config_only: bool = False) -> Path:
    """The folder or file that `model` means, downloaded if need be; of a folder all or the config.

    The word `demo` is always the model inside the package; a folder of that name is `./demo`, or a
    Path, which forgets the dot.
    """
    if model == "demo":
        if not _DEMO.is_dir():
            raise UnsupportedError(f"the demo model is not installed at {_DEMO}; install again")
        return _DEMO
    model = str(model)
    local = _local(model)
    if local is not None:
        return local
    repo, quant = _hub_id(model).groups()
    hub = _hub()
    if quant:
        return _gguf(hub, repo, quant, offline)
    return _snapshot(hub, repo, offline, ["config.json"] if config_only else _FILES)


def check_name(model: str) -> None:
    """Raises UsageError for what is nothing here and no hub id; nobody is asked."""
    if model != "demo" and _local(model) is None:
        _hub_id(model)


def _hub_id(model: str) -> re.Match[str]:
    named = _HUB_ID.fullmatch(model)
    if not named or model.endswith((".gguf", ".onnx", ".safetensors")):
        raise UsageError(
            f"found no file or folder {model!r}; expected a path, a hub id such as "
            "PLM-Team/PLM-1.8B-Instruct, or demo"
        )
    return named


def is_hub_id(model: str) -> bool:
    """Whether it names a repository of the hub, not of GGUF files, and nothing here."""
    named = _HUB_ID.fullmatch(model)
    return named is not None and named[2] is None and _local(model) is None


def _local(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a NUL
        return None


def choose_gguf(files: list[str], repo: str, quant: str) -> str:
    """The file whose name ends in that quantization: "...-Q8_0.gguf" or "...Q8_0.gguf"."""
    whole = sorted(f for f in files if f.endswith(".gguf") and not _SPLIT.search(f))
    ending = re.compile(rf"(^|[-./]){re.escape(quant)}\.gguf$", re.IGNORECASE)
    matching = [f for f in whole if ending.search(f)]
    if len(matching) != 1:
        found = ", ".join(matching or whole) or "none that is in one piece"
        raise UsageError(f"expected one {quant} GGUF file in {repo}, found: {found}")
    return matching[0]


def _snapshot(hub: ModuleType, repo: str, offline: bool, files: list[str]) -> Path:
    started = time.time()
    folder = Path(
        _download(
            repo,
            offline,
            lambda: hub.snapshot_download(
                repo, allow_patterns=files, ignore_patterns=_NEVER, local_files_only=offline
            ),
        )
    )
    if not (folder / "config.json").exists():
        raise UsageError(
            f"{repo} has no config.json; if it holds GGUF files, name one: {repo}:Q8_0"
        )
    for file in sorted(folder.glob("*.safetensors")):
        _check_fresh_blob(file.resolve(), started)
    return folder


def _gguf(hub: ModuleType, repo: str, quant: str, offline: bool) -> Path:
    started = time.time()
    if offline:
        folder = Path(
            _download(
                repo,
                offline,
                lambda: hub.snapshot_download(
                    repo, allow_patterns=["*.gguf"], local_files_only=True
                ),
            )
        )
        files = [str(p.relative_to(folder)) for p in folder.rglob("*.gguf")]
        return folder / choose_gguf(files, repo, quant)
    files = _download(repo, offline, lambda: hub.HfApi().list_repo_files(repo))
    name = choose_gguf(files, repo, quant)
    path = Path(_download(repo, offline, lambda: hub.hf_hub_download(repo, name)))
    _check_fresh_blob(path.resolve(), started)
    return path


def _download(repo: str, offline: bool, call: Callable[[], _T]) -> _T:
    try:
        return call()
    except Exception as why:
        if offline:
            raise OutputError(
                f"{repo} is not in the local cache; run once without --offline"
            ) from None
        # huggingface_hub lets the errors of its HTTP library through, which differ by version.
        lines = str(why).strip().splitlines()
        reason = f"{type(why).__name__}: {lines[0]}" if lines else type(why).__name__
        raise OutputError(
            f"could not get {repo} from the hub ({reason[:200]}); check the name and the "
            "connection, or give a local folder"
        ) from None


def _check_fresh_blob(blob: Path, started: float) -> None:
    """Hash what was downloaded just now: the hub client compares sizes only.

    The cache names large files by their sha256; files it already had are not read again.
    """
    status = blob.stat()
    if not re.fullmatch("[0-9a-f]{64}", blob.name) or status.st_mtime < started - 2:
        return
    digest = hashlib.sha256()
    with blob.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        raise FileFormatError(
            f"a downloaded file has the sha256 {digest.hexdigest()[:16]}..., expected "
            f"{blob.name[:16]}...; remove {blob} and try again"
        )


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise UnsupportedError(
            "a hub id needs huggingface_hub; run: pip install 'plm-edge[hub]'"
        ) from None
    module: ModuleType = huggingface_hub
    return module
