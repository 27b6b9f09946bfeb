"""What llama.cpp makes of a model: how it caches a layout, and which layout a graphics card gets.

No import of llama.cpp: these are facts about it, seen with llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping

from plm_edge.devices import DeviceProfile, load, names
from plm_edge.errors import UnsupportedError
from plm_edge.layouts import data_bytes, file_tensors, layout_of
from plm_edge.planned import Plan
from plm_edge.spec import ModelSpec

LAYOUTS = ("plm", "deepseek2")  # that it runs
# With flash attention llama.cpp aborts on architecture plm (assert in ggml_set_rows).
FLASH_ATTENTION = {"plm": (False,), "deepseek2": (False, True)}
CACHE_TYPES = ("f16", "q8_0")
_BLOCK_BYTES = {"f32": 128, "f16": 64, "q8_0": 34}  # of 32 cached values
_BLOCK = 32
_CELLS = 256  # its contexts are multiples of this


def cache_bytes(layout: str, spec: ModelSpec, cache_type: str, n_ctx: int) -> int:
    """Of all layers for n_ctx tokens, which llama.cpp rounds up.

    In layout plm `cache_type` is that of the keys; values are F16 without flash attention.
    """
    cells = -(-n_ctx // _CELLS) * _CELLS
    row = (spec.rank + spec.rope) * _BLOCK_BYTES[cache_type]
    if layout == "plm":
        key = (spec.nope + spec.rope) * _BLOCK_BYTES[cache_type]
        row = spec.heads * (key + spec.v_head * max(64, _BLOCK_BYTES[cache_type]))
    return cells * spec.layers * row // _BLOCK


def is_card(profile: DeviceProfile) -> bool:
    """Whether it is a graphics card, whose memory no CPU kernels run in."""
    return profile.gpu is not None and profile.isa is None


def backend_for(profile: DeviceProfile, layout: str) -> str:
    """What runs that layout there."""
    return "llama" if is_card(profile) and layout in LAYOUTS else layout_of(layout).backend


def layout_for(
    profile: DeviceProfile, spec: ModelSpec, formats: Mapping[str, str], n_ctx: int
) -> str:
    """The layout where none is asked for."""
    return smaller_layout(spec, formats, n_ctx) if is_card(profile) else "latent"


def smaller_layout(spec: ModelSpec, formats: Mapping[str, str], n_ctx: int) -> str:
    """Of llama.cpp's layouts the smaller with the cache of the whole context.

    That has to fit, and is what the last token reads. "latent" where neither can say the model.
    """
    sizes = _sizes(spec, formats, n_ctx)
    return min(sizes, key=lambda layout: sizes[layout]) if sizes else "latent"


def layout_on_cpu(
    spec: ModelSpec, formats: Mapping[str, str], n_ctx: int, usable_bytes: int
) -> str:
    """Plm where it fits: there llama.cpp is faster on a CPU at every context (docs/layouts.md)."""
    if _sizes(spec, formats, n_ctx).get("plm", usable_bytes) < usable_bytes:
        return "plm"
    return smaller_layout(spec, formats, n_ctx)


def _sizes(spec: ModelSpec, formats: Mapping[str, str], n_ctx: int) -> dict[str, int]:
    """Bytes of weights and cache in the layouts that can say the model."""
    sizes = {}
    for layout in LAYOUTS:
        try:
            weights = data_bytes(layout, file_tensors(layout, spec, formats))
        except UnsupportedError:
            continue
        sizes[layout] = weights + cache_bytes(layout, spec, "f16", n_ctx)
    return sizes


def layers_that_fit(target: str, spec: ModelSpec, plan: Plan) -> int:
    """Layers for the GPU, the head counted as one more: all, or what the card's memory holds.

    `target` is the name of the profile that was planned for; of no card that is known, all.
    """
    whole = spec.layers + 1
    cards = (load(name) for name in names())
    card = next((card for card in cards if card.name == target and is_card(card)), None)
    if card is None:
        return whole
    sizes = file_tensors(plan.layout, spec, plan.formats)
    in_layers = sum(tensor.nbytes for tensor in sizes if tensor.name.startswith("blk."))
    head = sum(tensor.nbytes for tensor in sizes) - in_layers
    room = card.usable_bytes - plan.budget.scratch
    if in_layers + head + plan.budget.cache <= room:
        return whole
    return max(0, int(room // ((in_layers + plan.budget.cache) / spec.layers)))
