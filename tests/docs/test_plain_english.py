"""Pages, docstrings, comments and texts of the sources keep to plain English: no words in which processes are persons.

The list has words that were in use, each with what to write instead. It is about prose alone: code blocks of the pages,
names in backticks and the Unix user nobody are left out. The decisions are records of their time, and keep their words.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("no_garbage_collection")

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "decisions"),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "deploy/README.md")),
]
SOURCES = [path for folder in ("runtime", "actors", "rayfold") for path in sorted((ROOT / folder).glob("**/*.py"))]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("**/*.py"))
TESTS = [
    path
    for folder in ("tests", "examples", "tools")
    for path in sorted((ROOT / folder).glob("**/*.py"))
    if path != Path(__file__).resolve()
]
BANNED = {
    r"told|tells?|telling": "returns, reports, gets, is sent; distinguishes",
    r"say|says|said|saying": "returns, raises, has; for example",
    r"hears?|heard": "learns of, gets",
    r"look(s|ed|ing)? (at|after|into|whether)|a look at": "reads, checks, supervises",
    r"lets? go|letting go": "releases, closes",
    r"whoever|nobody|somebody|someone|anybody|anyone|everybody|everyone": "the caller, the process, no process, all",
    r"what(ever)? (is|was) there": "what exists, what is stored",
    r"for ever": "permanently, without end",
    r"by heart": "cached",
    r"(has|have|had) (not )?got|news": "has, lacks; new records, a change",
    r"keepers?|gates?|lanes?|heirs?|nursery|lookout|obituar\w+|whereabouts": "the word of the glossary",
    r"lives on|living|dies|died|wants|believes?d?": "runs, ends, needs, knows",
}
ALLOWED = {
    "docs/glossary.md": {"died"},  # of `ActorDiedError`, in the list of words of names
    "benchmarks/flights/quiet_ray.py": {"died"},  # in lines of Ray, as in the tests of it
    "tests/benchmarks/test_flights_cluster.py": {"died"},
    "tests/benchmarks/test_flights_demo.py": {"died"},
}
"""Words that have to stay on a page or in a source, with the reason."""


ANY_BANNED = re.compile("|".join(rf"\b(?:{words})\b" for words in BANNED), re.IGNORECASE)
"""Is looked for first: nearly no line has any."""


def prose_of_page(page: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page, in paragraphs, without its blocks of code."""
    in_code, begun, lines = False, 1, list[str]()
    for number, line in enumerate((*page.read_text(encoding="utf-8").splitlines(), ""), 1):
        fence = line.lstrip().startswith("```")
        if fence or in_code or not line.strip() or line.startswith("|"):
            if lines:
                yield begun, " ".join(lines)
                lines = []
            if line.startswith("|") and not in_code:
                yield number, line
            in_code ^= fence
        else:
            begun = begun if lines else number
            lines.append(line.strip())


def prose_of_source(path: Path) -> Iterator[tuple[int, str]]:
    """Docstrings and other texts, and comments, of which adjoining ones are one."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, " ".join(node.value.split())
    begun, last, lines = 0, 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row = token.start[0]
            if lines and row != last + 1:
                yield begun, " ".join(lines)
                lines = []
            begun = begun if lines else row
            last = row
            lines.append(token.string.lstrip("# "))
    if lines:
        yield begun, " ".join(lines)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    for line, text in prose_of_page(path) if path.suffix == ".md" else prose_of_source(path):
        yield line, re.sub(r"`[^`]*`|\buser \(?nobody\b", "``", text)


def found_in(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    return [
        f"{name}:{line}: {match[0]!r}, write: {instead}"
        for line, text in prose(path)
        if ANY_BANNED.search(text)
        for words, instead in BANNED.items()
        for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
        if match[0].lower() not in ALLOWED.get(name, set())
    ]


@pytest.mark.parametrize("paths", [PAGES, SOURCES, BENCHMARKS, TESTS], ids=["pages", "sources", "benchmarks", "tests"])
def test_no_page_and_no_source_has_a_banned_word(paths: list[Path]) -> None:
    assert len(paths) > 30
    found = [line for path in paths for line in found_in(path)]
    assert not found, "\n".join(found)
