"""The front door: six names and the errors, a light import, and imports that flow one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import plm_edge
from plm_edge import errors

ROOT = Path(__file__).resolve().parent.parent
# What each floor may know, by full dotted name; "plm_edge" is the core. The floors are folders at
# the top, so their files are read there and not through the links in plm_edge/.
FLOORS = ("plm_edge.devices", "plm_edge.exporters", "plm_edge.runtime", "plm_edge.cli")
MAY_IMPORT = {
    "plm_edge": {"plm_edge", "plm_edge.devices"},
    "plm_edge.devices": {"plm_edge.devices", "plm_edge.errors", "plm_edge.native"},
    "plm_edge.exporters": {"plm_edge.exporters", "plm_edge", "plm_edge.devices"},
    "plm_edge.runtime": {"plm_edge.runtime", "plm_edge", "plm_edge.devices"},
}


def floor(module: str) -> str:
    """The floor a module stands on: one of FLOORS, or the core."""
    return next((f for f in FLOORS if module == f or module.startswith(f + ".")), "plm_edge")


def allowed(module: str, imported: str) -> bool:
    if module == "plm_edge" or floor(module) == "plm_edge.cli":  # the composition roots
        return True
    may = MAY_IMPORT[floor(module)]
    if floor(imported) != "plm_edge":
        return floor(imported) in may
    return "plm_edge" in may or any(imported == m or imported.startswith(m + ".") for m in may)


def our_modules() -> Iterator[tuple[str, Path]]:
    folders = {"plm_edge": "plm_edge"} | {
        name: f"plm_edge.{name}" for name in ("devices", "exporters", "runtime")
    }
    for folder, package in folders.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "plm_edge" and inner[0] in folders:
                continue  # a link
            parts = inner[:-1] if inner[-1] == "__init__" else inner
            yield ".".join([package, *parts]), path


def imports_of(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Full dotted names; `from a import b` counts as a.b where that is a module of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = module.split(".")[: len(module.split(".")) - node.level + is_package]
                base = ".".join([*up, *([base] if base else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def ours(name: str) -> bool:
    return name.startswith("plm_edge.")


def refused(source: str, module: str, is_package: bool = False) -> list[str]:
    found = filter(ours, imports_of(source, module, is_package))
    return [name for name in found if not allowed(module, name)]


def test_imports_flow_one_way() -> None:
    seen = 0
    for module, path in our_modules():
        wrong = refused(path.read_text(), module, path.name == "__init__.py")
        assert not wrong, f"{module} imports {wrong}"
        seen += 1
    assert seen > 30


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("plm_edge.runtime.cache", "from plm_edge.exporters.gguf_writer import write"),
        ("plm_edge.runtime.cache", "from plm_edge import exporters"),
        ("plm_edge.runtime.cache", "def f():\n    import plm_edge.cli.app"),
        ("plm_edge.exporters", "from ..runtime import load"),
        ("plm_edge.exporters.gguf_writer", "from plm_edge.runtime import Session"),
        ("plm_edge.plan", "from plm_edge.runtime.session import Session"),
        ("plm_edge.tokenizer.hf", "from .. import exporters"),
        ("plm_edge.devices.host", "from plm_edge.spec import ModelSpec"),
        ("plm_edge.devices.host", "import plm_edge.plan"),
    ],
)
def test_a_planted_import_is_refused(module: str, planted: str) -> None:
    assert refused(planted, module, is_package=module in FLOORS)


def test_floors_may_look_down() -> None:
    assert not refused("from plm_edge.plan import Plan\nimport numpy", "plm_edge.runtime.load")
    assert not refused("from plm_edge.native import isa", "plm_edge.devices.host")
    assert not refused("from plm_edge import exporters, runtime", "plm_edge.cli.chat")


def test_public_names() -> None:
    calls = {"ModelSpec", "chat", "export", "load", "make_plan"}
    family = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert set(plm_edge.__all__) == calls | family
    for name in plm_edge.__all__:
        assert getattr(plm_edge, name) is not None
        assert name in dir(plm_edge)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        plm_edge.train  # noqa: B018


def modules_after(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


HEAVY = {"torch", "onnx", "onnxruntime", "llama_cpp", "huggingface_hub", "transformers"}


def test_import_is_light() -> None:
    loaded = modules_after("import plm_edge")
    assert not loaded & (HEAVY | {"numpy", "typer", "gguf", "jinja2", "ctypes"})


def test_the_terminal_does_not_import_its_caller() -> None:
    modules = modules_after("import plm_edge.cli.terminal")
    assert "plm_edge.cli.slash" in modules
    assert "plm_edge.cli.chat" not in modules


def test_help_needs_no_numpy() -> None:
    loaded = modules_after("import plm_edge.cli.app")
    assert not loaded & (HEAVY | {"numpy", "gguf", "jinja2"})


def test_the_device_side_needs_no_extra() -> None:
    loaded = modules_after(
        "import plm_edge, plm_edge.runtime; plm_edge.load; plm_edge.chat; plm_edge.make_plan"
    )
    assert not loaded & HEAVY
    assert "gguf" not in loaded  # the package writes and is an oracle; the runtime reads by itself


def test_every_package_is_installed() -> None:
    listed = (ROOT / "pyproject.toml").read_text().partition("packages = [")[2].partition("]")[0]
    ours = {module for module, path in our_modules() if path.name == "__init__.py"}
    assert {word.strip(' "\n') for word in listed.split(",")} - {""} == ours
