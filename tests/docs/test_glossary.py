"""Every word in the name of a file or class has one row in the glossary, or is an ordinary one."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TERMS = re.findall(r"^\| \*\*([^*]+)\*\*", GLOSSARY, re.MULTILINE)
ORDINARY = re.findall(r"[a-z]+", GLOSSARY.partition("## Ordinary words")[2].rpartition("\n\n")[2])
A_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[a-z]+")


def words_of_names() -> dict[str, set[str]]:
    """Each word, and the names that it is part of."""
    found: dict[str, set[str]] = {}
    for folder in ("actors", "runtime", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            classes = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
            title = () if path.stem.startswith("adr_") else (path.stem,)  # that of a decision, in full
            for name in (*title, *classes):
                for word in A_WORD.findall(name):
                    found.setdefault(word.lower(), set()).add(name)
    return found


def singular(word: str) -> set[str]:
    return {word, word.removesuffix("s"), word.removesuffix("es")}


def test_each_word_of_a_name_of_a_file_or_class_is_in_the_glossary() -> None:
    explained = {word for term in TERMS for word in A_WORD.findall(term.lower())} | set(ORDINARY)
    unknown = {word: names for word, names in words_of_names().items() if not singular(word) & explained}
    assert not unknown, "give it a row, or take the field's word for it"


def test_no_word_has_two_meanings() -> None:
    assert not [term for term, rows in Counter(TERMS).items() if rows > 1], "two rows"
    assert not [word for word, times in Counter(ORDINARY).items() if times > 1]
    assert not {term for term in TERMS if singular(term) & set(ORDINARY)}, "ordinary, and explained"


def test_no_ordinary_word_is_listed_that_no_name_has() -> None:
    assert not set(ORDINARY) - words_of_names().keys()
