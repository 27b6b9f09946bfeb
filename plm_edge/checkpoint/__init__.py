"""Checkpoints as Hugging Face writes them: config.json and safetensors, read strictly and lazily.

    with open_checkpoint(folder) as checkpoint:
        rows = checkpoint.read_rows("token_embd.weight", 0, 1024)   # (1024, d_model) float32

Nothing is ever imported from the folder, and pickled weights are never opened.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plm_edge.checkpoint.files import Signature, locate, parse_json_object, read_small
from plm_edge.checkpoint.safetensors import Entry, SafetensorsFile
from plm_edge.checkpoint.source import describe_source
from plm_edge.errors import FileFormatError, SpecError, UnsupportedError, UsageError, short
from plm_edge.spec import ModelSpec
from plm_edge.tensors import TensorInfo, tensor_table

__all__ = ["Checkpoint", "open_checkpoint", "read_spec"]

_MAX_CONFIG = 1_000_000  # bytes
_MAX_INDEX = 16 << 20
_MAX_SHARDS = 128  # each is an open file
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
)  # fmt: skip
# Buffers that old transformers saved; they follow from rope_theta.
_NEUTRAL = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
_LM_HEAD = "lm_head.weight"
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_PIECE = 1 << 18  # values converted at once: 1 MiB of float32


class Checkpoint:
    """An open checkpoint. Tensors go by their canonical names; values come as float32."""

    def __init__(
        self,
        folder: Path,
        spec: ModelSpec,
        files: list[SafetensorsFile],
        signatures: list[Signature],
        source: dict[str, str | None],
    ) -> None:
        self.spec = spec
        self.tokenizer_files = folder
        self.source = source
        self._files = files
        self._signatures = [*signatures, *(file.signature for file in files)]
        by_hf_name = {name: (file, e) for file in files for name, e in file.entries.items()}
        self._table = tensor_table(spec)
        _check_tensors(self._table, by_hf_name, spec)
        self._tensors = {name: by_hf_name[info.hf_name] for name, info in self._table.items()}
        if spec.tied and _LM_HEAD in by_hf_name:
            self._check_tied(by_hf_name[_LM_HEAD])

    @property
    def number_format(self) -> str:
        """F32, F16 or BF16: the one all tensors are stored in, F32 where they differ."""
        found = {entry.dtype for _, entry in self._tensors.values()}
        return found.pop() if len(found) == 1 else "F32"

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows start..stop of a matrix: (stop - start, cols) float32.

        Raises FileFormatError naming the first row that holds NaN or infinity.
        """
        rows, cols = self._table[name].shape
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"rows {start}..{stop} of {name}, which has {rows}")
        x = _read(*self._tensors[name], start * cols, (stop - start) * cols)
        _check_finite(x, cols, name, start)
        return x.reshape(stop - start, cols)

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor in its shape: (n,) or (rows, cols) float32."""
        shape = self._table[name].shape
        if len(shape) == 2:
            return self.read_rows(name, 0, shape[0])
        x = _read(*self._tensors[name], 0, shape[0])
        _check_finite(x, 1, name, 0)
        return x

    def assert_unchanged(self) -> None:
        """Raises FileFormatError when a file changed since it was opened. Call it at the end."""
        for signature in self._signatures:
            signature.check()

    def close(self) -> None:
        """Close all files; closing twice is allowed."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: object, why: BaseException | None, at: object) -> None:
        self.close()
        if isinstance(why, FileFormatError):  # half of what another program writes is no wonder
            self.assert_unchanged()

    def _check_tied(self, head: tuple[SafetensorsFile, Entry]) -> None:
        """tie_word_embeddings and a head of its own: fine only if it is the embedding again."""
        rows, cols = self._table["token_embd.weight"].shape
        step = max(1, _PIECE // cols)
        for start in range(0, rows, step):
            count = (min(start + step, rows) - start) * cols
            ours = _read(*self._tensors["token_embd.weight"], start * cols, count)
            if not np.array_equal(ours, _read(*head, start * cols, count)):
                raise SpecError(
                    "config.json says tie_word_embeddings, but lm_head.weight differs from the "
                    f"embedding within rows {start}..{start + count // cols - 1}; "
                    "correct the config or remove the tensor"
                )


def read_spec(path: Path, allow_keys: Collection[str] = frozenset()) -> ModelSpec:
    """The spec of a Hugging Face folder from its config.json alone; weights may be missing."""
    text, _ = _read_config(path)
    return ModelSpec.from_config(parse_json_object(text, "config.json"), allow_keys)


def _read_config(path: Path) -> tuple[bytes, Signature]:
    if not path.is_dir():
        found_there = "a file" if path.exists() else "nothing"
        raise UsageError(
            f"expected a model folder with config.json, found {found_there} at {str(path)!r}"
        )
    found = locate(path, "config.json")
    if found is None:
        raise FileFormatError(
            f"expected config.json in {path.name!r}, found none; is it a model folder?"
        )
    return read_small(found, _MAX_CONFIG)


def open_checkpoint(path: Path, allow_keys: Collection[str] = frozenset()) -> Checkpoint:
    """Open a Hugging Face folder; every name and shape is checked, no weight is read yet.

    `allow_keys` are unknown keys of config.json that the user declares to change nothing.
    """
    text, signature = _read_config(path)
    spec = ModelSpec.from_config(parse_json_object(text, "config.json"), allow_keys)
    signatures = [signature]
    for name in _TOKENIZER:
        file = locate(path, name)
        if file is not None:
            signatures.append(Signature.of(file, file.stat()))
    files: list[SafetensorsFile] = []
    try:
        _open_weights(path, files, signatures)
        return Checkpoint(path, spec, files, signatures, describe_source(path, text))
    except BaseException:
        for open_file in files:
            open_file.close()
        raise


def _open_weights(folder: Path, files: list[SafetensorsFile], signatures: list[Signature]) -> None:
    """Append the opened files to `files`, so that the caller can close them after an error."""
    single, index = locate(folder, _SINGLE), locate(folder, _INDEX)
    if single is not None and index is not None:
        raise FileFormatError(f"found both {_SINGLE} and {_INDEX}; remove the one that is stale")
    if single is not None:
        files.append(SafetensorsFile(single))
    elif index is not None:
        _open_shards(folder, index, files, signatures)
    else:
        _refuse_other_weights(folder)


def _open_shards(
    folder: Path, index: Path, files: list[SafetensorsFile], signatures: list[Signature]
) -> None:
    text, signature = read_small(index, _MAX_INDEX)
    signatures.append(signature)
    weight_map = parse_json_object(text, _INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FileFormatError(f"{_INDEX} needs an object weight_map from tensors to files")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise FileFormatError(f"{_INDEX}: weight_map must map tensor names to file names")
    shards = sorted(set(weight_map.values()))
    if len(shards) > _MAX_SHARDS:
        raise FileFormatError(f"{_INDEX} names {len(shards)} files, at most {_MAX_SHARDS} allowed")
    for shard in shards:
        found = locate(folder, shard)
        if found is None:
            raise FileFormatError(f"{_INDEX} names {short(shard)}, which is missing; download it")
        file = SafetensorsFile(found)
        files.append(file)
        mapped = {name for name, where in weight_map.items() if where == shard}
        if mapped != set(file.entries):
            raise FileFormatError(
                f"{_INDEX} and {short(shard)} disagree: missing there "
                f"{_list(mapped - set(file.entries))}, not in the index "
                f"{_list(set(file.entries) - mapped)}"
            )


def _refuse_other_weights(folder: Path) -> None:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
    if pickled:
        raise UnsupportedError(
            f"found only pickled weights ({short(pickled[0])}), which can run code and are never "
            "opened; convert the checkpoint to safetensors"
        )
    raise FileFormatError(
        f"expected {_SINGLE} or {_INDEX} in {folder.name!r}, found neither; "
        "download the whole checkpoint"
    )


def _check_tensors(
    table: Mapping[str, TensorInfo],
    found: Mapping[str, tuple[SafetensorsFile, Entry]],
    spec: ModelSpec,
) -> None:
    """Names both ways, then shapes and types."""
    wanted = {info.hf_name: info.shape for info in table.values()}
    missing = wanted.keys() - found.keys()
    extra = {name for name in found.keys() - wanted.keys() if not _NEUTRAL.fullmatch(name)}
    if spec.tied and _LM_HEAD in extra:
        extra.remove(_LM_HEAD)
        wanted[_LM_HEAD] = (spec.vocab, spec.d_model)
    if missing or extra:
        raise SpecError(
            f"config.json and weights disagree: missing {_list(missing)}, unknown {_list(extra)}"
        )
    for name, shape in wanted.items():
        entry = found[name][1]
        if entry.shape != shape:
            raise SpecError(
                f"{name} has the shape {list(entry.shape)}, config.json asks for {list(shape)}; "
                "take both from the same checkpoint"
            )
        if entry.dtype not in _ITEM_BYTES:
            raise SpecError(
                f"{name} is stored as {entry.dtype}; F32, F16 and BF16 can be exported, "
                "so start from the unquantized checkpoint"
            )


def _read(file: SafetensorsFile, entry: Entry, first: int, count: int) -> NDArray[np.float32]:
    """`count` values from value `first` on, as float32; converted in pieces that fit a cache."""
    size = _ITEM_BYTES[entry.dtype]
    out = np.empty(count, np.float32)
    for start in range(0, count, _PIECE):
        part = out[start : start + _PIECE]
        data = file.read(entry, (first + start) * size, part.size * size)
        if entry.dtype == "BF16":  # the upper half of a float32
            bits = np.frombuffer(data, "<u2")
            np.left_shift(bits, 16, out=part.view(np.uint32), dtype=np.uint32)
        else:
            part[:] = np.frombuffer(data, "<f4" if entry.dtype == "F32" else "<f2")
    return out


def _check_finite(x: NDArray[np.float32], cols: int, name: str, first_row: int) -> None:
    """`x` is flat, rows of `cols` values."""
    for start in range(0, x.size, _PIECE):
        finite = np.isfinite(x[start : start + _PIECE])
        if not finite.all():
            row = first_row + (start + int(np.argmin(finite))) // cols
            raise FileFormatError(
                f"{name} holds NaN or infinity in row {row}; the checkpoint is damaged: "
                "download it again"
            )


def _list(names: Collection[Any]) -> str:
    """A few names and how many more."""
    some = ", ".join(short(name) for name in sorted(names)[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (some or "none") + more
