"""plm-edge inspect: what it says is what the file, the cache and the planner say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import Run, one_line

from plm_edge import devices
from plm_edge.bundle import MODEL_FILE
from plm_edge.inspection import inspect
from plm_edge.plan import Plan
from plm_edge.runtime import Model

Bundles = Callable[..., Path]


@pytest.mark.parametrize("layout", ["latent", "plm"])
def test_sums_are_those_of_the_gguf_package(bundle_of: Bundles, layout: str) -> None:
    file = bundle_of("blocks", "Q4_0", layout) / MODEL_FILE
    found = inspect(file)
    read = gguf.GGUFReader(file)
    assert found.layout == layout
    for name, (count, values, nbytes) in found.by_format().items():
        theirs = [tensor for tensor in read.tensors if tensor.tensor_type.name == name]
        assert count == len(theirs)
        assert values == sum(int(tensor.n_elements) for tensor in theirs)
        assert nbytes == sum(int(tensor.n_bytes) for tensor in theirs)
    assert sum(count for count, _, _ in found.by_format().values()) == len(read.tensors)
    assert sum(row[2] for row in found.by_kind().values()) == sum(t.nbytes for t in found.tensors)
    assert {key for key in read.fields if not key.startswith("GGUF.")} == set(found.keys)


def test_the_cache_of_a_token_is_the_sessions(bundle_of: Bundles) -> None:
    cache = inspect(bundle_of("plm") / MODEL_FILE).cache()
    model = Model(bundle_of("plm") / MODEL_FILE)
    for kind in ("f16", "q8_0", "f32"):
        with model.session(8, kind) as session:
            assert session.cache_bytes == 8 * cache[kind]
    model.close()
    # two heads with a key of 128 + 64 and a value of 128, two bytes each, two layers
    assert cache["expanded"] == 2 * (128 + 64 + 128) * 2 * 2
    assert "q8_0" not in inspect(bundle_of("odd") / MODEL_FILE).cache()


def test_every_device_has_a_line(bundle_of: Bundles) -> None:
    targets = dict(inspect(bundle_of("blocks") / MODEL_FILE).targets)
    assert list(targets) == devices.names()
    plan = targets["rpi4-2gb"]
    assert isinstance(plan, Plan)
    assert plan.n_ctx == 128
    assert plan.budget.cache == 128 * inspect(bundle_of("blocks") / MODEL_FILE).cache()["f16"]


def test_another_model_is_shown_and_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Other")
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((4, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = inspect(file)
    assert (found.architecture, found.name, found.spec, found.targets) == (
        "llama",
        "Other",
        None,
        (),
    )
    assert "llama" in str(found.refusal)
    assert found.by_format() == {"F16": (1, 128, 256)}


def test_the_command(inside: Run, bundle_of: Bundles, checkpoint_of: Bundles) -> None:
    bundle = bundle_of("blocks", "Q4_0")
    short = inside("inspect", bundle)
    for said in (
        r"layout   latent \(architecture plm-edge-latent\): runs in the native session\n",
        r"model    .* units, vocabulary 352, head tied, context 128\n",
        r"formats  Q4_0 +\d+ +[\d,]+ values +[\d,]+ bytes +4\.500 bits each\n",
        r"cache    f16 +512 bytes a token\n",
        r"rpi4-2gb +[\d,]+ MiB with a context of 128: weights",
    ):
        assert re.search(said, short.out), said
    lines = short.out.splitlines()
    needs = [line[9:] for line in lines[next(i for i, x in enumerate(lines) if "needs" in x) :]]
    for name, line in zip(devices.names(), needs, strict=True):
        assert line.startswith(f"{name} "), line
    details = inside("inspect", bundle / MODEL_FILE, "--tensors", "--keys").out
    assert re.search(r"\d Q4_0 +160 x 64  blk\.0\.ffn_up\.weight\.tile16x4\n", details)
    assert "\ntokenizer.ggml.tokens = 352 values\n" in details
    found = json.loads(inside("inspect", bundle, "--json").out)
    assert found["cache_bytes_per_token"]["f16"] == 512
    assert len(found["tensors"]) == len(Model(bundle / MODEL_FILE).weights)
    assert "layout   latent" in inside("inspect", checkpoint_of("blocks")).out


@pytest.mark.parametrize(("make", "code", "part"), [
    (lambda folder: folder / "none.gguf", 2, "none.gguf"),
    (lambda folder: (folder / "a.gguf").write_bytes(b"nothing") and folder / "a.gguf", 3, "GGUF"),
])  # fmt: skip
def test_a_mistake_is_one_line(
    inside: Run, tmp_path: Path, make: Callable[[Path], Path], code: int, part: str
) -> None:  # fmt: skip
    one_line(inside("inspect", make(tmp_path)), code, part)
