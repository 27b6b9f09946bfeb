"""A bundle holds exactly the checkpoint's numbers, in the same bytes each time, or is not there."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from allocations import most_allocated
from gguf import quants
from tiny import TINY_SHAPES, tiny_weights, write_safetensors, write_tiny_checkpoint

from plm_edge.arrangements import restore
from plm_edge.bundle import MANIFEST, read_bundle, verify_bundle
from plm_edge.checkpoint import open_checkpoint
from plm_edge.deepseek2 import GATE_KEY, UP_KEY
from plm_edge.errors import FileFormatError, NumericalError, OutputError, UnsupportedError
from plm_edge.exporters import export, gguf_writer
from plm_edge.exporters.gguf_writer import header_bytes, write_gguf
from plm_edge.formats import format_of
from plm_edge.gguf_file import GgufFile
from plm_edge.gguf_spec import spec_from_gguf, spec_to_gguf
from plm_edge.layouts import LAYOUTS, data_bytes, file_tensors
from plm_edge.plan import Plan
from plm_edge.quant_plan import choose_formats
from plm_edge.tensors import tensor_table
from plm_edge.tokenizer import Tokenizer

CASES = [
    (layout, shape, quant)
    for layout in ("latent", "plm")  # deepseek2, whose tensors are others: tests/test_deepseek2.py
    for shape in ("plain", "odd", "one_head", "blocks", "untied")
    for quant in ("F32", "F16", "BF16", "Q8_0", "Q4_0")
    if layout != "plm" or shape not in ("untied", "one_head")  # llama.cpp cannot
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return {
        name: write_tiny_checkpoint(base / name, TINY_SHAPES[name], seed=3)
        for name in {shape for _, shape, _ in CASES}
    }


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def files_of(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names(folder)
    }


@pytest.mark.parametrize(("layout", "shape", "quant"), CASES)
def test_every_number_is_the_checkpoints_in_its_format(checkpoints, tmp_path, layout, shape, quant):
    """Packed by the gguf package from the same weights, read by its reader: the same bytes."""
    manifest = export(checkpoints[shape], out=tmp_path / "out", quant=quant, layout=layout)
    spec, table = manifest.spec, tensor_table(manifest.spec)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = tiny_weights(spec, seed=3)
    tensors = file_tensors(layout, spec, manifest.plan["formats"])
    assert list(stored) == [tensor.file_name for tensor in tensors]
    assert len(tensors) == len(table)
    for tensor in tensors:
        found = stored[tensor.file_name]
        assert found.data_offset % LAYOUTS[layout].alignment == 0
        assert tuple(found.shape.tolist()) == tensor.file_shape[::-1]
        kind = gguf.GGMLQuantizationType[tensor.format]
        assert found.tensor_type == kind
        data = np.ascontiguousarray(found.data).reshape(-1).view(np.uint8)
        packed = restore(tensor.arrangement, tensor.format, data, tensor.rows, tensor.cols)
        x = weights[table[tensor.name].hf_name].reshape(tensor.rows, tensor.cols)
        want = quants.quantize(x, kind).view(np.uint8).reshape(tensor.rows, -1)
        np.testing.assert_array_equal(packed, want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_is_there_with_its_type(checkpoints, tmp_path, layout):
    manifest = export(checkpoints["plain"], out=tmp_path / "out", quant="Q4_0", layout=layout)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    arch = LAYOUTS[layout].arch
    tokenizer = Tokenizer.from_hf(checkpoints["plain"])
    want = {
        "GGUF.version": 3,
        "GGUF.tensor_count": len(file_tensors(layout, manifest.spec, manifest.plan["formats"])),
        "general.architecture": arch,
        "general.type": "model",
        "general.name": "plain",
        "general.file_type": 2,
        "general.quantization_version": 2,
        **({"general.alignment": 64} if layout == "latent" else {}),
        **spec_to_gguf(manifest.spec, arch),
        **tokenizer.to_gguf(manifest.spec.vocab),
    }
    if layout == "deepseek2":
        want |= {key: reader.fields[key].contents() for key in (GATE_KEY, UP_KEY)}
    want["GGUF.kv_count"] = len(want) - 2
    assert set(reader.fields) == set(want)
    for key, value in want.items():
        field = reader.fields[key]
        found = field.contents()
        kinds = {
            bool: gguf.GGUFValueType.BOOL,
            float: gguf.GGUFValueType.FLOAT32,
            str: gguf.GGUFValueType.STRING,
            list: gguf.GGUFValueType.ARRAY,
        }
        if not key.startswith("GGUF."):
            assert field.types[0] == kinds.get(type(value), gguf.GGUFValueType.UINT32), key
        assert found == (np.float32(value) if isinstance(value, float) else value), key
    types = reader.fields["tokenizer.ggml.token_type"].types
    assert types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_own_reader_gets_back_what_was_exported(checkpoints, tmp_path, layout):
    manifest = export(checkpoints["plain"], out=tmp_path / "out", quant="Q8_0", layout=layout)
    file = GgufFile.open(tmp_path / "out" / "model.gguf")
    with open_checkpoint(checkpoints["plain"]) as checkpoint:
        assert spec_from_gguf(file) == manifest.spec == checkpoint.spec
        assert manifest.source == checkpoint.source
    tokenizer = Tokenizer.from_gguf(file.metadata)
    text = "once upon a time: Größe, 東京"
    assert tokenizer.encode(text) == Tokenizer.from_hf(checkpoints["plain"]).encode(text)
    file.close()
    assert read_bundle(tmp_path / "out") == verify_bundle(tmp_path / "out") == manifest


@pytest.mark.parametrize("quant", ["F16", "Q8_0", "Q4_0"])
def test_latent_is_plm_with_its_blocks_moved(checkpoints, tmp_path, quant):
    spec = TINY_SHAPES["blocks"]
    data = {}
    for layout in ("latent", "plm"):
        export(checkpoints["blocks"], out=tmp_path / layout, quant=quant, layout=layout)
        file = GgufFile.open(tmp_path / layout / "model.gguf")
        for tensor in file_tensors(layout, spec, choose_formats(spec, quant)):
            stored = file.data(tensor.file_name)
            packed = restore(tensor.arrangement, tensor.format, stored, tensor.rows, tensor.cols)
            data[layout, tensor.name] = packed.tobytes()
        file.close()
    for name in tensor_table(spec):
        assert data["latent", name] == data["plm", name]


@pytest.mark.parametrize("quant", ["F32", "Q4_0"])
def test_same_checkpoint_same_bytes(checkpoints, tmp_path, quant):
    for name in ("one", "two"):
        export(checkpoints["plain"], out=tmp_path / name, quant=quant)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    other = write_tiny_checkpoint(tmp_path / "plain", TINY_SHAPES["plain"], seed=4)
    export(other, out=tmp_path / "three", quant=quant)
    assert files_of(tmp_path / "one") != files_of(tmp_path / "three")


def test_the_bytes_do_not_depend_on_shards_or_on_how_much_is_read_at_once(tmp_path, monkeypatch):
    spec = TINY_SHAPES["blocks"]
    one = write_tiny_checkpoint(tmp_path / "1" / "tiny", spec)
    three = write_tiny_checkpoint(tmp_path / "3" / "tiny", spec, shards=3)
    export(one, out=tmp_path / "one", quant="Q4_0")
    monkeypatch.setattr(gguf_writer, "_BLOCK_BYTES", 1)  # 16 rows
    export(three, out=tmp_path / "three", quant="Q4_0")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "three")


def test_the_plan_knows_the_bytes(checkpoints, tmp_path):
    calls = []
    manifest = export(
        checkpoints["blocks"],
        out=tmp_path / "out",
        quant="Q4_0",
        n_ctx=77,
        progress=lambda done, total: calls.append((done, total)),
    )
    plan = Plan.from_dict(manifest.plan)
    size = (tmp_path / "out" / "model.gguf").stat().st_size
    file = GgufFile.open(tmp_path / "out" / "model.gguf")
    first = min(tensor.offset for tensor in file.tensors.values())
    file.close()
    assert plan.n_ctx == 77
    assert size == first + plan.budget.weights == manifest.files[0].size
    done = [done for done, _ in calls]
    assert done == sorted(done)
    assert calls[-1] == (size, size)
    assert {total for _, total in calls} == {size}


def test_the_folder_is_named_after_model_and_target(checkpoints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export(checkpoints["plain"], "rpi")
    assert names(tmp_path) == ["plain-rpi"]
    assert read_bundle(Path("plain-rpi")).plan["target"] == "Raspberry Pi 5, 4 GB"


def test_an_earlier_bundle_is_replaced_with_force_only(checkpoints, tmp_path):
    out = tmp_path / "out"
    export(checkpoints["plain"], out=out, quant="Q4_0")
    before = files_of(out)
    with pytest.raises(OutputError, match="--force replaces it"):
        export(checkpoints["plain"], out=out, quant="Q8_0")
    assert files_of(out) == before
    export(checkpoints["plain"], out=out, quant="Q8_0", force=True)
    assert files_of(out) != before
    assert verify_bundle(out).plan["quant"] == "Q8_0"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_an_export_that_stops_half_way_leaves_the_old_bundle(checkpoints, tmp_path, failure):
    out = tmp_path / "out"
    export(checkpoints["plain"], out=out, quant="Q4_0")
    before = files_of(out)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise failure

    with pytest.raises(failure):
        export(checkpoints["plain"], out=out, quant="Q8_0", force=True, progress=stop)
    assert files_of(out) == before
    assert names(tmp_path) == ["out"]


def test_a_checkpoint_that_changes_meanwhile_is_not_exported(tmp_path):
    spec = TINY_SHAPES["plain"]
    folder = write_tiny_checkpoint(tmp_path / "tiny", spec)

    def change(done: int, total: int) -> None:
        write_safetensors(folder / "model.safetensors", tiny_weights(spec, seed=9))

    with pytest.raises(FileFormatError, match=r"model\.safetensors changed"):
        export(folder, out=tmp_path / "out", progress=change)
    assert names(tmp_path) == ["tiny"]


def test_numbers_that_do_not_fit_are_named(tmp_path):
    spec = TINY_SHAPES["plain"]
    folder = write_tiny_checkpoint(tmp_path / "tiny", spec)
    weights = tiny_weights(spec)
    weights["model.layers.1.mlp.down_proj.weight"][37, 5] = 70000
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(NumericalError, match=r"blk\.1\.ffn_down\.weight, row 37: .*F16.*70000"):
        export(folder, out=tmp_path / "out", quant="F16")
    weights["model.layers.1.mlp.down_proj.weight"][37, 5] = np.nan
    write_safetensors(folder / "model.safetensors", weights)
    with pytest.raises(FileFormatError, match=r"blk\.1\.ffn_down\.weight .* row 37"):
        export(folder, out=tmp_path / "out", quant="Q8_0")
    assert names(tmp_path) == ["tiny"]


def test_a_head_of_its_own_cannot_be_laid_out_for_llama_cpp(checkpoints, tmp_path):
    with pytest.raises(UnsupportedError, match="use --layout latent"):
        export(checkpoints["untied"], out=tmp_path / "out", layout="plm")
    assert names(tmp_path) == []


LIMITED = """
import resource, sys
from plm_edge.errors import PlmEdgeError
from plm_edge.exporters import export
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    export(sys.argv[1], out=sys.argv[2], quant="F32", force=True)
except PlmEdgeError as why:
    print(why)
    sys.exit(why.exit_code)
"""


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_cannot_be_finished_leaves_the_old_bundle(checkpoints, tmp_path, share):
    out = tmp_path / "out"
    size = export(checkpoints["plain"], out=out, quant="F32").files[0].size
    export(checkpoints["plain"], out=out, quant="Q4_0", force=True)
    before = files_of(out)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, checkpoints["plain"], out, str(int(share * size))],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (4, "")
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    assert files_of(out) == before
    assert names(tmp_path) == ["out"]


def test_too_little_space_is_said_before_anything_is_written(checkpoints, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("plm_edge.atomic.shutil.disk_usage", lambda folder: free)
    with pytest.raises(OutputError, match=r"expected \d{6} bytes of free space, found 1000"):
        export(checkpoints["plain"], out=tmp_path / "out", quant="F32")
    assert names(tmp_path) == []


def test_memory_is_a_block_of_rows_not_a_tensor(tmp_path, monkeypatch):
    """An embedding of 64 MiB and an ffn_down of 1 MiB, with blocks of 256 KiB."""
    spec = replace(TINY_SHAPES["plm"], layers=1, vocab=65536)
    tensors = file_tensors("latent", spec, choose_formats(spec, "F32"))
    header = header_bytes("latent", {}, tensors)
    monkeypatch.setattr(gguf_writer, "_BLOCK_BYTES", 1 << 18)

    def packed_rows(name: str, fmt: str, start: int, stop: int) -> np.ndarray:
        cols = next(tensor.cols for tensor in tensors if tensor.name == name)
        return np.zeros((stop - start, format_of(fmt).row_bytes(cols)), np.uint8)

    path = tmp_path / "model.gguf"
    peak = most_allocated(lambda: write_gguf(path, header, "latent", tensors, packed_rows))
    assert path.stat().st_size == len(header) + data_bytes("latent", tensors)
    assert peak < 4 << 20


def test_the_manifest_comes_from_the_checkpoint(checkpoints, tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    manifest = export(folder, out=tmp_path / "out")
    assert manifest.licence == "apache-2.0"
    assert manifest.source["name"] == "tiny"
    assert str(tmp_path) not in (tmp_path / "out" / MANIFEST).read_text()
    file = GgufFile.open(tmp_path / "out" / "model.gguf")
    assert file.metadata["general.license"] == "apache-2.0"
    file.close()
