"""Products with stored weights, and the look-up of embeddings, by the format of the weight."""

from __future__ import annotations

from onnx import TensorProto

from plm_edge.exporters.onnx.arrays import BITS, BLOCK, FLOATS, heads_together
from plm_edge.exporters.onnx.graph import Graph
from plm_edge.exporters.onnx.store import Store

# MatMulNBits rounds activations to 8 bits for each block of 32 and multiplies integers: twice as
# fast as level 0 with one token on AVX2 (docs/decisions.md).
ACCURACY_LEVEL = 4


class Products:
    """Writes down the nodes that read weights of a store."""

    def __init__(self, g: Graph, store: Store) -> None:
        self.g, self.store = g, store

    def look_up(self, weight: str, ids: str, name: str) -> str:
        """Rows of a matrix (rows, cols): ids (...) -> (..., cols)."""
        g, fmt = self.g, self.store.format(weight)
        with g.scope(name):
            if fmt in FLOATS:
                return self._widened(g.op("Gather", g.stored(weight), ids, name="rows"), fmt)
            if self.store.standard:
                return g.op("Gather", self._dequantized(weight), ids, name="rows")
            rows, blocks, block_bytes = self.store.arrays[f"{weight}.q"].shape
            flat = self.store.alias(f"{weight}.q", f"{weight}.q.rows", (rows, blocks * block_bytes))
            return g.contrib(
                "GatherBlockQuantized", g.stored(flat), ids, g.stored(f"{weight}.scales"),
                name="rows", shape=("places", blocks * BLOCK), bits=BITS[fmt], block_size=BLOCK,
                gather_axis=0, quantize_axis=1,
            )  # fmt: skip

    def linear(self, weight: str, x: str, name: str) -> str:
        """Multiply x (N, cols) with a matrix (rows, cols): (N, rows)."""
        g, fmt = self.g, self.store.format(weight)
        if fmt in BITS and not self.store.standard:
            return self._n_bits(weight, fmt, x, ("places",), name)
        if fmt in BITS:
            with g.scope(name):
                values = self._dequantized(weight)
        else:
            with g.scope(name):
                values = self._widened(g.stored(weight), fmt)
        return g.op("Gemm", x, values, name=f"{name}/Gemm", transB=1)

    def per_head(self, weight: str, x: str, shape: tuple[int, int, int], name: str) -> str:
        """Multiply x (N, heads, in) head by head with its own (in, out): (N, heads, out)."""
        g, fmt, (heads, inner, outer) = self.g, self.store.format(weight), shape
        with g.scope(name):
            if fmt in BITS and not self.store.standard:
                # MatMulNBits has no batch of weights: one node for some heads, where each meets
                # the matrices of all; of (head, matrix) the products with its own are kept.
                group = heads_together(heads)
                parts = g.split(x, [group] * (heads // group), 1, "groups")
                made = [
                    self._n_bits(f"{weight}.{k}", fmt, part, ("places", group), f"heads.{k}")
                    for k, part in enumerate(parts)
                ]
                joined = g.op("Concat", *made, name="joined", axis=1)  # (N, heads, group * out)
                each = g.op("Reshape", joined, g.ints(0, heads * group, outer), name="each")
                own = g.ints(*(group * head + head % group for head in range(heads)))
                return g.op("Gather", each, own, name="own", axis=1)
            if fmt in BITS:
                flat = self._dequantized(weight)  # (heads * out, in)
                stacked = g.op("Reshape", flat, g.ints(heads, outer, inner), name="stacked")
                values = g.op("Transpose", stacked, name="turned", perm=[0, 2, 1])
            else:
                values = self._widened(g.stored(weight), fmt)
            by_head = g.op("Transpose", x, name="by_head", perm=[1, 0, 2])
            product = g.op("MatMul", by_head, values, name="MatMul")
            return g.op("Transpose", product, name="by_token", perm=[1, 0, 2])

    def _n_bits(
        self, weight: str, fmt: str, x: str, front: tuple[str | int, ...], name: str
    ) -> str:
        """Multiply x (*front, cols): (*front, rows)."""
        q, scales = f"{weight}.q", f"{weight}.scales"
        rows, blocks, _ = self.store.arrays[q].shape
        return self.g.contrib(
            "MatMulNBits", x, self.g.stored(q), self.g.stored(scales), name=name,
            shape=(*front, rows), N=rows, K=blocks * BLOCK, bits=BITS[fmt], block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip

    def _dequantized(self, weight: str) -> str:
        """(rows, cols) float32 from integers and scales, by the standard's operator."""
        q, scales = self.g.stored(f"{weight}.q"), self.g.stored(f"{weight}.scales")
        return self.g.op(
            "DequantizeLinear", q, scales, name="dequantized", axis=1, block_size=BLOCK
        )

    def _widened(self, values: str, fmt: str) -> str:
        if fmt == "F32":
            return values
        return self.g.op("Cast", values, name="widened", to=TensorProto.FLOAT)
