"""What llama.cpp makes of a model: how it caches a layout, and which layout a graphics card gets.

No import of llama.cpp: these are facts about it, seen with llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping

from plm_edge.devices import DeviceProfile
from plm_edge.errors import UnsupportedError
from plm_edge.layouts import data_bytes, file_tensors, layout_of
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
    """The layout where none is asked for: on a graphics card the smaller of llama.cpp's.

    Smaller with the cache of the whole context: that has to fit, and is what the last token reads.
    """
    if not is_card(profile):
        return "latent"
    sizes = {}
    for layout in LAYOUTS:
        try:
            weights = data_bytes(layout, file_tensors(layout, spec, formats))
        except UnsupportedError:  # it cannot say this model
            continue
        sizes[layout] = weights + cache_bytes(layout, spec, "f16", n_ctx)
    return min(sizes, key=lambda layout: sizes[layout]) if sizes else "latent"
