"""docs/layouts.md names the keys, tensors and sizes that are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace

import gguf
import pytest
from docs_text import LAYOUTS, README, spans, table
from tiny import TINY_SHAPES, write_tiny_checkpoint

from plm_edge.cache_layout import CacheLayout
from plm_edge.exporters import export
from plm_edge.exporters.synth import SHAPES
from plm_edge.gguf_spec import DEEPSEEK2_ARCH, LATENT_ARCH, PLM_ARCH, spec_to_gguf
from plm_edge.layouts import data_bytes, file_tensors
from plm_edge.quant_plan import choose_formats

KINDS = {"UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "BOOL": "bool", "STRING": "string"}


@pytest.fixture(scope="module")
def written_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Key -> type, as the public gguf package reads an export whose source states a licence."""
    root = tmp_path_factory.mktemp("docs")
    folder = write_tiny_checkpoint(root / "tiny")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    export(folder, out=root / "out")
    keys = {}
    for key, field in gguf.GGUFReader(root / "out" / "model.gguf").fields.items():
        *array, kind = (kind.name for kind in field.types)
        if not key.startswith("GGUF."):  # the reader's own: version and counts
            keys[key] = f"[{KINDS[kind]}]" if array else KINDS[kind]
    return keys


def wrong_keys(text: str, written: Mapping[str, str]) -> list[str]:
    said, may_lack = {}, set()
    for cells in table(text, "key"):
        key = spans(cells[0])[0].replace("*.", LATENT_ARCH + ".")
        said[key] = cells[1]
        if cells[3] == "if known":
            may_lack.add(key)
    assert len(said) == len(table(text, "key"))
    return [
        key
        for key in {*said, *written}
        if said.get(key) != written.get(key) and not (key in may_lack and key not in written)
    ]


def test_the_keys_of_layout_latent_are_those_of_the_docs(written_keys: dict[str, str]) -> None:
    assert not wrong_keys(LAYOUTS, written_keys)


@pytest.mark.parametrize(("old", "new"), [
    ("| `*.tied` | bool |", "| `*.tied` | u32 |"),
    ("| `*.rope.freq_base` |", "| `*.rope.base` |"),
    ("| `tokenizer.ggml.pre` | string | `qwen2` | always |\n", ""),
])  # fmt: skip
def test_a_wrong_key_would_show(written_keys: dict[str, str], old: str, new: str) -> None:
    assert old in LAYOUTS
    assert wrong_keys(LAYOUTS.replace(old, new), written_keys)


def test_layout_plm_lacks_the_keys_that_the_docs_name() -> None:
    spec = TINY_SHAPES["plain"]
    ours, theirs = (
        {key.removeprefix(arch + ".") for key in spec_to_gguf(spec, arch)}
        for arch in (LATENT_ARCH, PLM_ARCH)
    )
    passage = LAYOUTS.partition("and the five that llama.cpp's graph takes")[2]
    assert set(spans(passage.partition("So a model")[0])) == ours - theirs
    assert theirs < ours


def documented_tensors(text: str, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of layer 0, from words such as "heads*nope + heads*rope, d_model"."""
    return {
        spans(name)[0].replace("{i}", "0"): tuple(
            sum(math.prod(sizes[word.strip()] for word in term.split("*")) for term in d.split("+"))
            for d in shape.split(",")
        )
        for name, shape, _ in table(text, "name in the file")
    }


def test_the_tensors_of_layout_latent_are_those_of_the_docs() -> None:
    spec = replace(TINY_SHAPES["plm"], layers=1, tied=False)  # every size is a multiple of 16
    tensors = file_tensors("latent", spec, choose_formats(spec, "Q8_0"))
    want = [(tensor.file_name, tensor.file_shape) for tensor in tensors]
    assert list(documented_tensors(LAYOUTS, asdict(spec)).items()) == want
    bent = LAYOUTS.replace("weight.group32` | d_ffn, d_model", "weight.group32` | d_model, d_ffn")
    assert list(documented_tensors(bent, asdict(spec)).items()) != want


def test_the_sizes_of_the_cache_are_computed() -> None:
    spec = SHAPES["plm-1.8b"].spec
    latent = CacheLayout(spec.rank, spec.rope).bytes(4096, spec.layers)
    values = spec.heads * (spec.nope + spec.rope + spec.v_head)
    expanded = 2 * values * 4096 * spec.layers
    for text in (f"{latent:,}", f"{expanded:,}", f"{values:,}", f"{latent / 2**20:.0f} MiB"):
        assert text in LAYOUTS
    mib = f"{latent / 2**20:.0f} MiB against {expanded / 2**20:,.0f} MiB"
    for text in (f"{expanded / latent:.1f} times as many", mib):
        assert text in " ".join(README.split())


def test_layout_deepseek2_has_the_keys_of_plm_and_those_of_its_table() -> None:
    theirs, plm = (
        {key.removeprefix(arch + ".") for key in spec_to_gguf(TINY_SHAPES["plain"], arch)}
        for arch in (DEEPSEEK2_ARCH, PLM_ARCH)
    )
    said = {key for cells in table(LAYOUTS, "key of deepseek2") for key in spans(cells[0])}
    assert said | plm == theirs
    assert said - plm == theirs - plm


def test_what_deepseek2_costs_is_computed() -> None:
    spec = SHAPES["plm-1.8b"].spec
    values = spec.heads * (spec.nope + spec.rope + spec.v_head) - spec.rank - spec.rope
    less = 2 * spec.layers * values
    for quant, *cells in table(LAYOUTS, "deepseek2 of PLM-1.8B"):
        formats = choose_formats(spec, quant)
        plm, deepseek2 = (
            data_bytes(layout, file_tensors(layout, spec, formats))
            for layout in ("plm", "deepseek2")
        )
        more = deepseek2 - plm
        want = [f"{n:,} bytes" for n in (plm, more, less)]
        assert cells == [*want, f"{more / less:,.0f} tokens"]
