"""One table says what stands in a file: names, formats, bytes; the cache has its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from plm_edge.arrangements import arranged_bytes
from plm_edge.cache_layout import CacheLayout
from plm_edge.errors import UnsupportedError
from plm_edge.exporters.synth import SHAPES
from plm_edge.layouts import LAYOUTS, data_bytes, file_tensors
from plm_edge.quant_plan import choose_formats

PLM = SHAPES["plm-1.8b"].spec
UNTIED = replace(PLM, layers=1, tied=False)


def test_plm_at_q4_0_has_the_bytes_of_its_blocks():
    tensors = file_tensors("latent", PLM, choose_formats(PLM, "Q4_0", pure=True))
    norms = 4 * (32 * (2 * 2048 + 512) + 2048)
    assert len(tensors) == 290
    assert (
        sum(tensor.nbytes for tensor in tensors) == (1_825_458_176 - norms // 4) // 32 * 18 + norms
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_each_tensor_has_the_bytes_of_its_arrangement(layout, quant):
    spec = replace(PLM, layers=1, vocab=517)  # the embedding's last tile is not full
    tensors = file_tensors(layout, spec, choose_formats(spec, quant))
    for tensor in tensors:
        want = arranged_bytes(tensor.arrangement, tensor.format, tensor.rows, tensor.cols)
        assert tensor.nbytes == want
        suffix = "" if tensor.arrangement == "rows" else "." + tensor.arrangement
        assert tensor.file_name == tensor.name + suffix
    step = LAYOUTS[layout].alignment
    assert sum(tensor.nbytes for tensor in tensors) <= data_bytes(layout, tensors)
    assert data_bytes(layout, tensors) % step == 0


def test_latent_arranges_each_kind_as_its_kernel_reads_it():
    tensors = file_tensors("latent", UNTIED, choose_formats(UNTIED, "Q8_0"))
    assert {tensor.file_name: tensor.file_shape for tensor in tensors} == {
        "token_embd.weight.tile16x4": (151936, 2048),
        "output_norm.weight": (2048,),
        "output.weight.tile16x4": (151936, 2048),
        "blk.0.attn_norm.weight": (2048,),
        "blk.0.attn_q.weight.tile16x4": (3072, 2048),
        "blk.0.attn_kv_a_mqa.weight.tile16x4": (576, 2048),
        "blk.0.attn_kv_a_norm.weight": (512,),
        "blk.0.attn_kv_b.weight": (4096, 512),
        "blk.0.attn_output.weight.tile16x4": (2048, 2048),
        "blk.0.ffn_norm.weight": (2048,),
        "blk.0.ffn_up.weight.tile16x4": (8192, 2048),
        "blk.0.ffn_down.weight.group32": (8192, 2048),
    }


def test_the_head_may_be_finer_than_the_rest():
    formats = choose_formats(PLM, "Q4_0")
    assert formats["token_embd.weight"] == "Q8_0"
    assert formats["blk.0.attn_kv_b.weight"] == formats["blk.31.ffn_down.weight"] == "Q4_0"
    assert formats["output_norm.weight"] == formats["blk.7.attn_kv_a_norm.weight"] == "F32"
    assert choose_formats(PLM, "Q4_0", pure=True)["token_embd.weight"] == "Q4_0"
    assert choose_formats(PLM, "F16")["token_embd.weight"] == "F16"
    untied = choose_formats(UNTIED, "Q4_0")
    assert (untied["token_embd.weight"], untied["output.weight"]) == ("Q4_0", "Q8_0")


def test_matrices_that_are_no_whole_blocks_are_f16():
    odd = replace(PLM, layers=1, d_ffn=8200, rank=520)
    formats = choose_formats(odd, "Q4_0")
    assert formats["blk.0.ffn_down.weight"] == formats["blk.0.attn_kv_b.weight"] == "F16"
    assert formats["blk.0.ffn_up.weight"] == "Q4_0"
    narrow = replace(PLM, layers=1, d_model=2056)  # ffn_down's rows are whole, its groups are not
    assert choose_formats(narrow, "Q8_0")["blk.0.ffn_down.weight"] == "F16"
    assert choose_formats(narrow, "BF16")["blk.0.ffn_down.weight"] == "BF16"


def test_what_llama_cpp_cannot_run_is_refused():
    with pytest.raises(UnsupportedError, match="embedding as head"):
        file_tensors("plm", UNTIED, choose_formats(UNTIED, "F16"))
    other_eps = replace(PLM, eps=1e-5)
    with pytest.raises(UnsupportedError, match="found 1e-05 and 1e-06"):
        file_tensors("plm", other_eps, choose_formats(other_eps, "F16"))
    odd = replace(PLM, nope=127)
    with pytest.raises(UnsupportedError, match=r"even nope width .* found 127"):
        file_tensors("plm", odd, choose_formats(odd, "F16"))
    with pytest.raises(UnsupportedError, match="layout of latent, plm, deepseek2, found 'rows'"):
        file_tensors("rows", PLM, {})
    with pytest.raises(UnsupportedError, match="found 'Q3_K'"):
        choose_formats(PLM, "Q3_K")


def test_a_cached_row_is_one_latent_and_one_key():
    assert CacheLayout(512, 64).row_bytes == 1152
    assert CacheLayout(512, 64).bytes(4096, 32) == 150_994_944
    assert CacheLayout(512, 64, "f32").bytes(1, 1) == 2304
    assert CacheLayout(512, 64, "q8_0").row_bytes == 672
    assert CacheLayout(512, 64, "q8_0").bytes(4096, 32) == 88_080_384
    with pytest.raises(UnsupportedError, match="found 'q4_0'"):
        CacheLayout(512, 64, "q4_0")  # type: ignore[arg-type]
