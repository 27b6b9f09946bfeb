"""The recorder of the native session: each call appends a kernel with its arguments filled in."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from plm_edge import head_screen
from plm_edge.arrangements import TILE, arranged_bytes
from plm_edge.cache_layout import CacheType
from plm_edge.kinds.recorder import CacheRows
from plm_edge.native import kernels as native
from plm_edge.spec import ModelSpec

Array = NDArray[Any]


Activations = Literal["int16", "int8"]


@dataclass(frozen=True)
class MappedWeight:
    """A weight where it lies in the mapped file; vectors (norms) are float32 rows."""

    data: Array  # uint8, as stored
    rows: int
    cols: int
    format: str
    arrangement: str

    @property
    def nbytes(self) -> int:
        """Of its data."""
        return int(self.data.nbytes)


@dataclass
class KernelRecorder:
    """Builds one list of ops over the buffers of a session. Implements kinds.recorder.Recorder."""

    spec: ModelSpec
    isa: int  # address of the instruction set
    step: native.Step
    buffers: Mapping[str, Array]
    cache_type: CacheType
    few: bool
    expanded: bool
    activations: Activations
    ops: list[native.Op] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)  # what the ops point at outlives the recording

    def _add(self, name: str, args: ctypes.Structure) -> None:
        self.kept.append(args)
        self.ops.append(native.op(name, args))

    def _at(self, name: str) -> int:
        return int(self.buffers[name].ctypes.data)

    def _vectors(self, name: str) -> native.Vectors:
        parts = (f"{name}.q", f"{name}.scale", f"{name}.sum")
        packed = (self._at(p) if p in self.buffers else None for p in parts)
        in_bytes = self._at(f"{name}.bytes") if self._in_bytes(name) else None
        return native.Vectors(self._at(name), *packed, in_bytes)

    def _address(self, weight: MappedWeight) -> int:
        self.kept.append(weight.data)
        return int(weight.data.ctypes.data)

    def _in_bytes(self, x: str) -> bool:
        """Not what `ffn_down` is given, see the workspace."""
        return self.activations == "int8" and f"{x}.bytes" in self.buffers

    def _most(self, x: str) -> int:
        return native.ACTIVATIONS["int8" if self._in_bytes(x) else "int16"]

    def _matrix(self, weight: MappedWeight) -> native.Matrix:
        return native.Matrix(
            self._address(weight),
            weight.rows,
            weight.cols,
            native.FORMAT_CODES[weight.format],
            native.ARRANGEMENT_CODES[weight.arrangement],
        )

    def _head(self) -> tuple[int, Any]:
        return self.isa, ctypes.pointer(self.step)

    def embed(self, weight: MappedWeight, ids: str, y: str) -> None:
        """Y (T, cols) = the rows of weight that `ids` (T,) name."""
        args = native.Embed(*self._head(), self._matrix(weight), self._at(ids), self._at(y))
        self._add("embed", args)

    def norm(self, x: str, weight: MappedWeight, y: str, *, eps: float | None = None) -> None:
        """See kinds.recorder.Recorder; so for every method below."""
        at, eps = self._vectors(y), self.spec.eps if eps is None else eps
        pointers = self._at(x), self._address(weight), self._at(y)
        args = native.Norm(*self._head(), *pointers, at, weight.cols, self._most(y), eps)
        self._add("norm", args)

    def pack(self, x: str, *, square: bool = False) -> None:
        width = self.buffers[x].shape[-1]
        at, most = self._vectors(x), self._most(x)
        args = native.Pack(*self._head(), self._at(x), at, width, square, most)
        self._add("pack", args)

    def product(self, weight: MappedWeight, x: str, y: str, *, add: bool = False) -> None:
        at = self._vectors(x)
        args = native.Product(*self._head(), self._matrix(weight), at, self._at(y), add)
        self._add("product", args)

    def rotate(self, q: str) -> None:
        s, step = self.spec, ctypes.pointer(self.step)
        args = native.Rotate(step, self._at(q), self._at("turns"), s.heads, s.nope, s.rope)
        self._add("rotate", args)

    def remember(self, kv_a: str, norm: MappedWeight, cache: CacheRows) -> None:
        s = self.spec
        args = native.Remember(
            ctypes.pointer(self.step),
            self._at(kv_a),
            self._address(norm),
            self._at("turns"),
            cache.ctypes.data,
            s.rank,
            s.rope,
            native.CACHE_CODES[self.cache_type],
            s.latent_eps,
        )
        self._add("remember", args)

    def _attention(self, kv_b: MappedWeight, cache: CacheRows, scale: float) -> native.Attention:
        s, scratch = self.spec, self.buffers["scratch"]
        return native.Attention(
            *self._head(),
            self._matrix(kv_b),
            self._at("q"),
            cache.ctypes.data,
            self._at("queries"),
            self._at("partial"),
            self._at("heads"),
            scratch.ctypes.data,
            scratch.shape[1],
            s.heads,
            s.nope,
            s.rope,
            s.v_head,
            s.rank,
            native.CACHE_CODES[self.cache_type],
            self.buffers["x"].shape[0],
            scale,
        )

    def absorb(self, kv_b: MappedWeight, cache: CacheRows, scale: float) -> None:
        args = self._attention(kv_b, cache, scale)
        for name in ("absorb", "attend", "unabsorb"):
            self._add(name, args)

    def expand(self, kv_b: MappedWeight, cache: CacheRows, scale: float) -> None:
        self._add("expand", self._attention(kv_b, cache, scale))

    def fire(self, up: MappedWeight, down: MappedWeight, x: str, y: str) -> None:
        args = native.Fire(
            *self._head(),
            self._matrix(up),
            self._matrix(down),
            self._vectors(x),
            *(self._at(name) for name in ("units", "slices", "unit_rows")),
        )
        self._add("fire", args)
        slices, step = self._at("slices"), ctypes.pointer(self.step)
        self._add("gather", native.Gather(step, slices, self._at(y), self.spec.d_model))

    def up(self, up: MappedWeight, down: MappedWeight, x: str) -> None:
        weights = self._matrix(up), self._matrix(down), self._vectors(x)
        args = native.Up(*self._head(), *weights, self._fired())
        self._add("up", args)

    def down(self, down: MappedWeight, y: str) -> None:
        room = self._at("sums"), self._at(y)
        args = native.Down(*self._head(), self._matrix(down), self._fired(), *room)
        self._add("down", args)

    def _fired(self) -> native.Fired:
        """What fired takes the place of the units, which nobody else needs meanwhile."""
        parts = ("scale", "which", "count", "token")
        return native.Fired(self._at("units"), *(self._at(f"fired.{part}") for part in parts))

    def screened_head(
        self, head: MappedWeight, screen: Mapping[str, MappedWeight], tiles: int, x: str, y: str
    ) -> None:
        """Y (1, vocab) = head . x (1, d_model), exact in the `tiles` tiles that promise most."""
        self.product(screen[head_screen.ROTATION], x, "screen")
        self.pack("screen")
        self.product(screen[head_screen.COARSE], "screen", y)
        args = native.Screen(
            *self._head(),
            self._matrix(head),
            self._vectors(x),
            *(self._at(name) for name in (y, "peaks", "chosen", "tails")),
            arranged_bytes(head.arrangement, head.format, TILE, head.cols),
            tiles,
        )
        for name in ("peak", "choose", "rescore", "level"):
            self._add(name, args)
