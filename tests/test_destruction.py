"""Whatever the sources remove, rename or overwrite is listed in docs/destruction.md, with its evidence and a test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "destruction.md"
ROW = re.compile(r"\| `(?P<file>[a-z_/]+\.py)`: (?P<functions>[^|]+) \|[^|]+\|(?P<evidence>[^|]+)\|(?P<tests>[^|]+)\|")

DESTROYS = {
    "unlink",
    "rmtree",
    "rename",
    "renames",
    "rmdir",
    "removedirs",
    "ftruncate",
    "truncate",
    "write_durably",
    "write_private",
    "write_text",
    "write_bytes",
    "pipe_file",
    "rm_file",
    "rm",
}
OF_MODULES = {("os", "remove"), ("os", "replace"), ("shutil", "move")}
BEHIND_NAMES = {"_internal_kv_del", "rmtree"}
"""Also where they are handed on as values, to a thread or a finalizer."""


def destroying(tree: ast.AST) -> Iterator[str]:
    """The functions, with their classes, in which something is removed, renamed or overwritten."""

    def walk(node: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if is_destruction(child):
                yield ".".join(names)
            inside = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            yield from walk(child, (*names, getattr(child, "name", "")) if inside else names)

    return walk(tree, ())


def is_destruction(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and node.attr in {*BEHIND_NAMES, "O_TRUNC"}:
        return True
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    if isinstance(called, ast.Name):
        return called.id in DESTROYS
    if not isinstance(called, ast.Attribute):
        return False
    owner = called.value.id if isinstance(called.value, ast.Name) else ""
    of_a_path = called.attr == "replace" and len(node.args) == 1 and "temporary" in ast.dump(called.value)
    return called.attr in DESTROYS or (owner, called.attr) in OF_MODULES or of_a_path


def found() -> set[str]:
    sources = [path for folder in ("actors", "runtime") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {
        f"{path.relative_to(ROOT)}: {function}"
        for path in sources
        for function in destroying(ast.parse(path.read_text()))
    }


def rows() -> list[re.Match[str]]:
    return [row for line in PAGE.read_text().splitlines() if (row := ROW.match(line))]


@pytest.mark.slow
def test_each_place_that_destroys_something_is_listed_and_nothing_else() -> None:
    listed = {f"{row['file']}: {name}" for row in rows() for name in re.findall(r"`([A-Za-z_.]+)`", row["functions"])}
    assert sorted(found() - listed) == [], f"list in {PAGE.name} the evidence they act on, and the test without it"
    assert sorted(listed - found()) == [], f"these are listed in {PAGE.name} and destroy nothing any more"


def test_the_tests_that_the_list_names_exist() -> None:
    missing = []
    for row in rows():
        named = re.findall(r"`(tests/[a-z_/]+\.py)(?:::([a-z_0-9]+))?`", row["tests"])
        assert named or "no test:" in row["tests"], row.group(0)
        for path, test in named:
            if not (ROOT / path).exists() or (test and f"def {test}(" not in (ROOT / path).read_text()):
                missing.append(f"{path}::{test}")
    assert missing == []


@pytest.mark.parametrize(
    "source",
    [
        "def f(): path.unlink()",
        "def f(): shutil.rmtree(x)",
        "def f(): weakref.finalize(x, shutil.rmtree, y)",
        "def f(): os.replace(a, b)",
        "def f(): temporary.replace(path)",
        "def f(): write_durably(path, b'')",
    ],
)
def test_a_new_place_is_found(source: str) -> None:
    assert list(destroying(ast.parse(source))) != []
    harmless = "def f(): return text.replace('a', 'b'), replace(value, x=1), names.remove(x)"
    assert list(destroying(ast.parse(harmless))) == []
