"""Render a model's chat template, which is a program by a stranger, within limits.

jinja2's immutable sandbox keeps it from Python's insides. What the sandbox does not limit is work:
loops, macros that call themselves, texts multiplied. Here every step costs, by the characters it
makes, and the account is closed after a stated number of characters or seconds.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from plm_edge.errors import FileFormatError, UsageError

MAX_SOURCE = 100_000  # characters; the longest templates in use have 20,000
MAX_DEPTH = 100  # of nested nodes
MAX_OUTPUT = 1_000_000  # characters
MAX_WORK = 16_000_000  # characters made, or steps
MAX_SECONDS = 1.0  # of this thread's processor time: a busy machine does not fail a sound template
MAX_INT_BITS = 4_096

# What chat templates use; all of it makes no more than it is given, or is watched below.
_TEXT_FILTERS = (
    "capitalize", "e", "escape", "lower", "replace", "safe", "string", "title", "trim", "upper",
)  # fmt: skip
_FILTERS = (
    "abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length",
    "list", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "select",
    "selectattr", "sort", "unique",
)  # fmt: skip
_TEXT_METHODS = (
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isascii", "isdigit",
    "islower", "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition",
    "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
    "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
)  # fmt: skip
_METHODS: dict[type, tuple[str, ...]] = {
    str: _TEXT_METHODS,
    list: ("count", "index"),
    tuple: ("count", "index"),
    dict: ("get", "items", "keys", "values"),
    LoopContext: ("cycle", "changed"),
}
_GLOBALS = ("range", "dict", "namespace")
_REFUSED = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends, nodes.Block)


class _Budget:
    """The work a rendering may still do."""

    def __init__(self) -> None:
        self.left = MAX_WORK
        self.deadline = time.thread_time() + MAX_SECONDS

    def charge(self, cost: int) -> None:
        self.left -= cost + 1
        if self.left < 0:
            _over(f"at most {MAX_WORK:,} steps and characters of work")
        if time.thread_time() > self.deadline:
            _over(f"to be rendered within {MAX_SECONDS:g} s")

    def weigh(self, value: Any) -> Any:
        """Charge for every character in a value, and in what it contains, as often as it does.

        Every container that a template makes is weighed when it is made, so that none can be small
        in memory and endless to write or to compare (a list of twice the list before, 60 times).
        """
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, dict):
                waiting += item.keys()
                waiting += item.values()
            elif isinstance(item, list | tuple):
                waiting += item
            elif isinstance(item, Namespace):
                _over("namespaces read by their attributes")
            self.charge(len(item) if isinstance(item, str | list | tuple | dict) else 1)
        return value


def _over(expected: str) -> NoReturn:
    raise FileFormatError(
        f"chat template: expected {expected}, found more; use a model with a sound template"
    )


class _Environment(ImmutableSandboxedEnvironment):
    """Charges the budget for loops, calls, filters, operators, containers and output."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, budget: _Budget) -> None:
        # As transformers sets it up (utils/chat_template_utils.py, _compile_jinja_template).
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=budget.weigh,
        )
        self.budget = budget
        self.filters = {
            **{name: self._watched(self.filters[name]) for name in _FILTERS},
            **{name: self._watched(self.filters[name], name) for name in _TEXT_FILTERS},
            "tojson": self._watched(_tojson, "tojson"),
            "join": self._join,
            "plm_loop": self._loop,
            "plm_weigh": budget.weigh,
        }
        functions = {name: self.globals[name] for name in _GLOBALS}
        self.globals = {**functions, "raise_exception": _raise_exception}

    def wrap_str_format(self, value: Any) -> None:
        """No str.format, not even the sandbox's: a width in it makes any length."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods by list; other attributes as the sandbox has it."""
        if callable(value) and not isinstance(obj, Namespace):
            return any(isinstance(obj, t) and attr in names for t, names in _METHODS.items())
        return super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        __self.budget.charge(0)
        if isinstance(owner, str) and name == "join":
            return __self._join(args[0] if args else (), owner)
        if isinstance(owner, str) and name == "replace":
            __self._check_replace(owner, *args)
        made = super().call(__context, __obj, *args, **kwargs)
        return made if isinstance(made, Namespace) else __self.budget.weigh(made)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse an operation on sizes nobody needs before it is done."""
        bits = [v.bit_length() if isinstance(v, int) else 0 for v in (left, right)]
        if operator == "%" and isinstance(left, str):
            _over("no text formatted with '%'")  # for the same reason as str.format
        if operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    self.budget.charge(len(many) * max(0, times))
        powers = operator == "**" and bits[0] * abs(right if isinstance(right, int) else 0)
        if powers > MAX_INT_BITS or (operator == "*" and sum(bits) > MAX_INT_BITS):
            _over(f"numbers of at most {MAX_INT_BITS} bits")
        return self.budget.weigh(super().call_binop(context, operator, left, right))

    def _watched(self, filter_: Callable[..., Any], text: str = "") -> Callable[..., Any]:
        """The filter, its result weighed; and what a filter of texts makes a text of, before."""

        @functools.wraps(filter_)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if text:
                for argument in args:
                    self.budget.weigh(argument)
            if text == "replace":
                self._check_replace(*args[1:])  # the first is jinja's evaluation context
            return self.budget.weigh(filter_(*args, **kwargs))

        return watched

    def _loop(self, iterable: Iterable[Any], constants: int) -> Iterator[Any]:
        """The items of a loop whose body holds so many characters of plain text."""
        for item in iterable:
            self.budget.charge(constants)
            yield item

    def _join(self, value: Iterable[Any], d: str = "") -> str:
        texts = []
        for part in value:
            texts.append(str(self.budget.weigh(part)))
            self.budget.charge(len(d))
        return d.join(texts)

    def _check_replace(self, text: Any, old: Any = "", new: Any = "", *_: Any) -> None:
        self.budget.charge(str(text).count(str(old)) * len(str(new)))


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    """As transformers has it: not escaped for HTML."""
    if indent is not None and not 0 <= indent <= 16:
        _over("an indent of at most 16")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: Any) -> NoReturn:
    line = " ".join(str(message)[:200].split())
    raise UsageError(f"chat template: these messages are not what it expects: {line}")


# ---------------------------------------------------------------- the program, before it runs


def _depth(tree: nodes.Node) -> int:
    """Levels of nodes; without recursion, which the depth itself would stop."""
    depth, level = 0, [tree]
    while level:
        depth += 1
        level = [child for node in level for child in node.iter_child_nodes()]
    return depth


def _check(tree: nodes.Template) -> None:
    for node in tree.find_all(_REFUSED):
        raise FileFormatError(
            f"chat template: expected one that stands alone, found {type(node).__name__.lower()} "
            f"in line {node.lineno}; use a model with a sound template"
        )
    if any(loop.recursive for loop in tree.find_all(nodes.For)):
        _over("loops that do not call themselves")


def _charge_for_work(node: Any) -> Any:
    """The node with its loops and concatenations led through the environment's accounts."""
    for name, child in node.iter_fields():
        if isinstance(child, nodes.Node):
            setattr(node, name, _charge_for_work(child))
        elif isinstance(child, list):
            charged = [_charge_for_work(c) if isinstance(c, nodes.Node) else c for c in child]
            setattr(node, name, charged)
    if isinstance(node, nodes.For):
        constants = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filtered(node.iter, "plm_loop", nodes.Const(constants))
    if isinstance(node, nodes.Concat):
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "join")
    if isinstance(node, nodes.List | nodes.Dict) or (
        isinstance(node, nodes.Tuple) and node.ctx == "load"
    ):
        return _filtered(node, "plm_weigh")
    return node


def _filtered(node: Any, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def render(source: str, values: dict[str, Any]) -> str:
    """The text that the template makes of the values, within the limits above."""
    if len(source) > MAX_SOURCE:
        _over(f"at most {MAX_SOURCE:,} characters of source")
    budget = _Budget()
    environment = _Environment(budget)
    pieces, length = [], 0
    try:
        tree = environment.parse(source)
        if _depth(tree) > MAX_DEPTH:
            _over(f"at most {MAX_DEPTH} levels of nesting")
        _check(tree)
        tree = _charge_for_work(tree)
        tree.set_environment(environment)
        for piece in environment.from_string(tree).generate(values):
            length += len(piece)
            pieces.append(piece)
            if length > MAX_OUTPUT:
                _over(f"at most {MAX_OUTPUT:,} characters of output")
            budget.charge(0)
    except (RecursionError, MemoryError):
        _over(f"at most {MAX_DEPTH} levels of nesting")
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, SyntaxError) as why:
        line = " ".join(f"{type(why).__name__}: {why}"[:200].split())
        raise FileFormatError(
            f"chat template: expected it to work, found {line}; use a model with a sound template"
        ) from None
    return "".join(pieces)
