"""A graph that is written down node by node; a node's name says where it stands.

with g.scope("layers.3"), g.scope("attention"):
    q = g.op("MatMul", x, w, name="q")          # the node and its output: layers.3/attention/q
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

CONTRIB = "com.microsoft"  # onnxruntime's own operators


class Graph:
    """Nodes in the order they run, small constants, and the stored weights that were used."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.noted: list[ValueInfoProto] = []  # types that shape inference cannot find by itself
        self.used: dict[str, None] = {}  # names of stored arrays, in order
        self._scopes: list[str] = []
        self._names: set[str] = set()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names inside begin with this one."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def op(self, kind: str, *inputs: str, name: str, output: str = "", **attributes: Any) -> str:
        """Append a node; its one output is called `output`, or like the node. Returns the name."""
        full = self._named(name)
        self.nodes.append(helper.make_node(kind, inputs, [output or full], full, **attributes))
        return output or full

    def contrib(
        self, kind: str, *inputs: str, name: str, shape: Sequence[int | str], **attributes: Any
    ) -> str:
        """Append a node of onnxruntime's own; it gives float32 of that shape."""
        output = self.op(kind, *inputs, name=name, domain=CONTRIB, **attributes)
        self.noted.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, shape))
        return output

    def split(self, x: str, sizes: Sequence[int], axis: int, name: str) -> list[str]:
        """Cut x along an axis."""
        if len(sizes) == 1:
            return [x]
        full = self._named(name)
        parts = [f"{full}.{k}" for k in range(len(sizes))]
        node = helper.make_node("Split", [x, self.ints(*sizes)], parts, full, axis=axis)
        self.nodes.append(node)
        return parts

    def ints(self, *values: int) -> str:
        """A constant (n,) of int64."""
        return self._constant(f"ints/{'_'.join(map(str, values))}", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant () of float32."""
        return self._constant(f"number/{value!r}", np.array(value, np.float32))

    def integer(self, value: int) -> str:
        """A constant () of int64."""
        return self._constant(f"integer/{value}", np.array(value, np.int64))

    def stored(self, name: str) -> str:
        """A stored array by its name."""
        self.used[name] = None
        return name

    def _named(self, name: str) -> str:
        full = "/".join([*self._scopes, name])
        assert full not in self._names
        self._names.add(full)
        return full

    def _constant(self, name: str, value: np.ndarray[Any, Any]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(value, name)
        return name
