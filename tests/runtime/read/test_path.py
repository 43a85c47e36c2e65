"""The path of events into a read model, by the source: one verb for each level, and no level calls itself again."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOM = Path(__file__).resolve().parents[3] / "runtime" / "read"
CLASSES = {"ReadModel": "read_model.py", "StoredModel": "stored_model.py", "EventApplier": "event_applier.py"}
PATH = [
    ("ReadModel", "apply", "catch_up"),
    ("ReadModel", "catch_up", "_feed"),
    ("ReadModel", "_feed", "_feed_some"),
    ("ReadModel", "_feed_some", "take_in"),
    ("StoredModel", "take_in", "_advance"),
    ("StoredModel", "_advance", "_attempt"),
    ("StoredModel", "_attempt", "run"),
]


def calls(tree: ast.Module, name: str, *, of_parts: bool = False) -> dict[str, set[str]]:
    """By method of a class: which methods it calls of `self`, and with `of_parts` of what `self` has."""
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {
        method.name: {
            node.func.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if (owner := ast.unparse(node.func.value)) == "self" or (of_parts and owner.startswith("self."))
        }
        for method in cls.body
        if isinstance(method, ast.FunctionDef)
    }


def order(graph: dict[str, set[str]]) -> list[str]:
    """The methods, those that are called first. Raises `CycleError`."""
    return list(TopologicalSorter(graph).static_order())


def source(name: str) -> ast.Module:
    return ast.parse((ROOM / CLASSES[name]).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CLASSES)
def test_nothing_on_the_path_calls_itself(name: str) -> None:
    assert len(order(calls(source(name), name))) > 3


@pytest.mark.parametrize(("name", "level", "below"), PATH)
def test_each_level_calls_the_next(name: str, level: str, below: str) -> None:
    assert below in calls(source(name), name, of_parts=True)[level]


def test_the_levels_stand_on_the_first_screen_of_the_file() -> None:
    text = ast.get_docstring(source("ReadModel")) or ""
    levels = [text.index(f"| `{verb}") for verb in ("apply`, `catch_up", "_feed", "take_in", "_attempt", "run")]
    assert levels == sorted(levels)
    assert text[: levels[-1]].count("\n") < 40


def test_a_method_that_calls_itself_by_way_of_another_is_found() -> None:
    tree = ast.parse("class A:\n def f(self): self.g()\n def g(self): self.f()")
    with pytest.raises(CycleError):
        order(calls(tree, "A"))
