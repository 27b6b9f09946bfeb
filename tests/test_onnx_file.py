"""The reader of ONNX graphs: what it says, and that a wrong file never gets past it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_SHAPES, write_tiny_checkpoint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from plm_edge import onnx_names as names  # noqa: E402
from plm_edge.bundle import Manifest, read_bundle, verify_bundle, write_file  # noqa: E402
from plm_edge.errors import FileFormatError, PlmEdgeError  # noqa: E402
from plm_edge.exporters import Files, export  # noqa: E402
from plm_edge.onnx_file import OnnxFile  # noqa: E402
from plm_edge.runtime import load  # noqa: E402
from plm_edge.tokenizer import hf  # noqa: E402
from plm_edge.tokenizer.hf_files import hf_files  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("onnx_file")
    write_tiny_checkpoint(root / "tiny", TINY_SHAPES["blocks"])
    export(str(root / "tiny"), out=root / "out", quant="Q4_0", files=Files("onnx"))
    return root / "out"


def test_it_reads_what_the_onnx_package_reads(bundle: Path) -> None:
    for name in (names.MODEL, names.IN_PLACE):
        file, model = (
            OnnxFile.read(bundle / name),
            onnx.load(bundle / name, load_external_data=False),
        )
        assert file.producer == "plm-edge"
        assert file.opsets == {o.domain: o.version for o in model.opset_import}
        graph = model.graph
        assert [v.name for v in file.inputs] == [v.name for v in graph.input]
        assert [v.name for v in file.outputs] == [v.name for v in graph.output]
        assert sum(file.operators.values()) == len(graph.node)
        outside = [t for t in graph.initializer if t.external_data]
        assert [a.name for a in file.stored] == [t.name for t in outside]
        for array, tensor in zip(file.stored, outside, strict=True):
            keys = {entry.key: entry.value for entry in tensor.external_data}
            assert (array.location, str(array.offset), str(array.length)) == tuple(keys.values())
            assert array.shape == tuple(tensor.dims)
    assert file.inputs[0].shape == ("batch", "tokens")
    assert file.operators["com.microsoft.MatMulNBits"] > 8
    file.check_external({names.DATA: (bundle / names.DATA).stat().st_size})


def bent(bundle: Path, out: Path, bend: Callable[[onnx.ModelProto], None]) -> Path:
    """A bundle with a bent graph, and a manifest that says that this is how it should be."""
    manifest = read_bundle(bundle)
    out.mkdir()
    for file in manifest.files:
        (out / file.name).write_bytes((bundle / file.name).read_bytes())
    model = onnx.load(bundle / names.IN_PLACE, load_external_data=False)
    bend(model)
    written = write_file(out, names.IN_PLACE, model.SerializeToString())
    files = tuple(written if f.name == written.name else f for f in manifest.files)
    changed = Manifest(**{**vars(manifest), "files": files})
    (out / "manifest.json").write_text(changed.to_json())
    return out


def entry(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def bend(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        for pair in tensor.external_data:
            if pair.key == key:
                pair.value = value
                return
        tensor.external_data.add(key=key, value=value)

    return bend


def in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.external_data)
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("value", tensor))


def a_subgraph(model: onnx.ModelProto) -> None:
    inner = onnx.helper.make_graph([], "inner", [], [])
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("body", inner))


def a_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="own")


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


@pytest.mark.parametrize(("bend", "said"), [
    (entry("location", "/etc/passwd"), "weights in a file of the bundle"),
    (entry("location", "../other/model.onnx.data"), "weights in a file of the bundle"),
    (entry("location", "a/../model.onnx.data"), "weights in a file of the bundle"),
    (entry("location", "*/_ORT_MEM_ADDR_/*"), "weights in a file of the bundle"),
    (entry("location", ""), "weights in a file of the bundle"),
    (entry("offset", "-64"), "external data of"),
    (entry("offset", "99999999999"), "within"),
    (entry("offset", "1e3"), "external data of"),
    (entry("length", "3"), "found 3 at"),
    (entry("length", "9" * 25), "external data of"),
    (entry("checksum", "0"), "external data with"),
    (in_an_attribute, "an attribute with field 5"),
    (a_subgraph, "an attribute with field 6"),
    (a_function, "field 25 of a model"),
    (sparse, "field 15 of a graph"),
])  # fmt: skip
def test_weights_outside_the_bundle_are_refused(
    bundle: Path, tmp_path: Path, bend: Callable[[onnx.ModelProto], None], said: str
) -> None:
    out = bent(bundle, tmp_path / "bent", bend)
    with pytest.raises(FileFormatError, match=said) as error:
        load(out, "onnx")
    assert "\n" not in str(error.value)


def test_a_graph_that_onnxruntime_refuses_is_one_line(bundle: Path, tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "Shapes"

    out = bent(bundle, tmp_path / "bent", unknown)
    with pytest.raises(FileFormatError, match="expected graphs that onnxruntime") as error:
        load(out, "onnx")
    assert "\n" not in str(error.value)


def test_a_link_to_the_weights_is_refused(bundle: Path, tmp_path: Path) -> None:
    out = bent(bundle, tmp_path / "bent", lambda model: None)
    (out / names.DATA).unlink()
    (out / names.DATA).symlink_to(bundle / names.DATA)
    with pytest.raises(FileFormatError, match="found a link"):
        load(out, "onnx")


def test_every_changed_bit_is_found_by_verify(bundle: Path, tmp_path: Path) -> None:
    out = bent(bundle, tmp_path / "bent", lambda model: None)
    for file in read_bundle(out).files:
        data = bytearray((out / file.name).read_bytes())
        data[len(data) // 2] ^= 1
        (out / file.name).write_bytes(data)
        with pytest.raises(FileFormatError, match=f"{file.name}: expected sha256"):
            verify_bundle(out)
        data[len(data) // 2] ^= 1
        (out / file.name).write_bytes(data)
    verify_bundle(out)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_an_error_or_a_graph(data: st.DataObject) -> None:
    graph = _GRAPH
    at = data.draw(st.integers(0, len(graph) - 1))
    kind = data.draw(st.sampled_from(["cut", "byte", "doubled"]))
    changed = {
        "cut": graph[:at],
        "byte": graph[:at] + bytes([data.draw(st.integers(0, 255))]) + graph[at + 1 :],
        "doubled": graph[:at] + graph[at : at + 40] * 2 + graph[at + 40 :],
    }[kind]
    path = _FOLDER / "changed.onnx"
    path.write_bytes(changed)
    try:
        OnnxFile.read(path).check_external({names.DATA: 10**6})
    except PlmEdgeError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.fixture(scope="module", autouse=True)
def _graph(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    global _GRAPH, _FOLDER
    _GRAPH, _FOLDER = (bundle / names.IN_PLACE).read_bytes(), tmp_path_factory.mktemp("changed")


def test_a_vocabulary_survives_the_files_of_hugging_face(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    before = hf.read_vocabulary(folder)
    written = hf_files(before)
    (tmp_path / "again").mkdir()
    for name, content in written.items():
        (tmp_path / "again" / name).write_bytes(content)
    after = hf.read_vocabulary(tmp_path / "again")
    for field in ("tokens", "merges"):
        assert list(getattr(before, field)) == list(getattr(after, field))
    np.testing.assert_array_equal(before.kinds, after.kinds)
    for field in ("pre", "nfc", "eos_id", "bos_id", "stop_ids", "chat_template"):
        assert getattr(before, field) == getattr(after, field)
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "again" / "tokenizer.json"))
    ours = json.loads(written["tokenizer.json"])
    assert theirs.get_vocab_size() == len(ours["model"]["vocab"]) + len(ours["added_tokens"])


def test_inspect_shows_graphs_weights_and_cache(bundle: Path) -> None:
    def said(*words: str) -> str:
        program = Path(sys.executable).with_name("plm-edge")
        return subprocess.check_output([program, "inspect", bundle, *words], text=True)

    spec, size = TINY_SHAPES["blocks"], (bundle / names.DATA).stat().st_size
    text = said("--tensors", "--keys")
    assert "model.onnx: opset 23, com.microsoft 1;" in text
    assert f"weights  {size:,} bytes" in text
    assert f"cache    {4 * (spec.rank + spec.rope)} bytes a token and layer" in text
    assert "in  float32 past_key_values.1.value (batch, 1, past, 64)" in text
    shown = json.loads(said("--json"))["onnx"]
    arrays = shown["arrays"]
    assert len({(a["offset"], a["length"]) for a in arrays}) == len(arrays)
    assert size - 4096 * len(arrays) < sum(a["length"] for a in arrays) <= size
    assert [graph["file"] for graph in shown["graphs"]] == [names.MODEL, names.IN_PLACE]
