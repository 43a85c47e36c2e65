"""Every word in the name of a file, a class or a public function has one row in the glossary, or is an ordinary one."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("no_garbage_collection")

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = re.findall(r"^\| \*\*([^*]+)\*\*", GLOSSARY, re.MULTILINE)
ORDINARY = re.findall(
    r"[a-z]+", GLOSSARY.partition("## Ordinary words\n")[2].partition("\n## ")[0].rpartition("\n\n")[2]
)
IN_FUNCTIONS = re.findall(r"[a-z]+", GLOSSARY.partition("## Ordinary words of functions\n")[2].rpartition("\n\n")[2])
REPLACED = {
    *("board", "gate", "heir", "keeper", "lane", "nursery", "pulse", "reach", "road", "stretch"),
    *("hears", "said", "say", "says", "tell", "tells", "told", "turn", "turns", "way", "ways"),
}
"""Words of the author's own that the glossary has others for: no name has them any more."""
A_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[a-z]+")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def words_of_names() -> dict[str, set[str]]:
    """Each word, and the names that it is part of."""
    found: dict[str, set[str]] = {}
    for folder in ("actors", "runtime", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            classes = [node.name for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
            title = () if path.stem.startswith("adr_") else (path.stem,)  # that of a decision, in full
            for name in (*title, *classes):
                for word in A_WORD.findall(name):
                    found.setdefault(word.lower(), set()).add(name)
    return found


def sources() -> list[Path]:
    return [
        *(path for folder in ("actors", "runtime") for path in sorted((ROOT / folder).rglob("*.py"))),
        *sorted((ROOT / "rayfold").glob("*.py")),
    ]


@cache
def words_of_functions() -> dict[str, set[str]]:
    """The same of functions and methods without a leading underscore."""
    found: dict[str, set[str]] = {}
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                for word in A_WORD.findall(node.name):
                    found.setdefault(word.lower(), set()).add(node.name)
    return found


def root(word: str) -> str:
    """What forms of one word have in common: `stop`, `stops` and `stopped`."""
    bare = re.sub(r"(ing|ed|es|(?<!s)s|e)$", "", word) if len(word) > 2 else word
    return bare[:-1] if len(bare) > 3 and bare[-1] == bare[-2] and bare[-1] not in "ls" else bare


def singular(word: str) -> set[str]:
    return {word, word.removesuffix("s"), word.removesuffix("es")}


def test_each_word_of_a_name_of_a_file_or_class_is_in_the_glossary() -> None:
    explained = {word for term in TERMS for word in A_WORD.findall(term.lower())} | set(ORDINARY)
    unknown = {word: names for word, names in words_of_names().items() if not singular(word) & explained}
    assert not unknown, "give it a row, or take the field's word for it"


def test_each_word_of_a_name_of_a_public_function_is_in_the_glossary_in_one_of_its_forms() -> None:
    explained = {root(word) for term in TERMS for word in A_WORD.findall(term.lower())}
    explained |= {root(word) for word in (*ORDINARY, *IN_FUNCTIONS)}
    unknown = {word: names for word, names in words_of_functions().items() if root(word) not in explained}
    assert not unknown, "take a word that it has; another one needs a row"


def test_no_word_comes_back_that_was_replaced() -> None:
    assert not REPLACED & {*ORDINARY, *IN_FUNCTIONS}
    names = {name for word in REPLACED for name in words_of_names().get(word, set())}
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):  # a field, among them
                names.add(node.target.id)
    assert not {name for name in names if REPLACED & set(A_WORD.findall(name.lower()))}


def test_no_word_has_two_meanings() -> None:
    assert not [term for term, rows in Counter(TERMS).items() if rows > 1], "two rows"
    assert not [word for word, times in Counter([*ORDINARY, *IN_FUNCTIONS]).items() if times > 1]
    assert not {term for term in TERMS if singular(term) & set(ORDINARY)}, "ordinary, and explained"


def test_no_ordinary_word_is_listed_that_no_name_has() -> None:
    assert not set(ORDINARY) - words_of_names().keys()
    assert not set(IN_FUNCTIONS) - words_of_functions().keys()
