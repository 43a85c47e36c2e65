"""The API reference: every public name has its place on a page, and a docstring with an example that is Python."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest

import rayfold
import rayfold.testing
from tests.docs.pages import ROOT

PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")}
SHOWN = [name for text in PAGES.values() for name in re.findall(r"^::: rayfold\.(\w+)$", text, re.MULTILINE)]
OF_TESTING = [
    name for text in PAGES.values() for name in re.findall(r"^::: rayfold\.testing\.(\w+)$", text, re.MULTILINE)
]
VALUES = {"ANY", "NO_STREAM", "Payload"}
"""No classes and no functions: their meaning stands in one line behind them."""


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    assert sorted(SHOWN) == sorted(rayfold.__all__)
    assert sorted(OF_TESTING) == sorted(set(rayfold.testing.__all__) - set(rayfold.__all__))


def test_the_first_page_of_the_reference_lists_what_the_others_show() -> None:
    for page, text in PAGES.items():
        if page != "index":
            [row] = re.findall(rf"^\| \[[^]]+\]\({page}\.md\) \| (.*) \|$", PAGES["index"], re.MULTILINE)
            shown = re.findall(r"^::: rayfold\.(?:testing\.)?(\w+)$", text, re.MULTILINE)
            assert re.findall(r"`(\w+)`", row) == shown


@pytest.mark.parametrize("name", sorted((set(rayfold.__all__) - VALUES) | set(OF_TESTING)))
def test_what_is_public_has_a_docstring_with_an_example(name: str) -> None:
    documented = inspect.getdoc(getattr(rayfold.testing if name in OF_TESTING else rayfold, name)) or ""
    meaning, found, example = documented.partition("\n\nExample:\n")
    assert found, f"{name}: write `Example:` and show how it is used"
    assert meaning.partition("\n\n")[0].endswith("."), f"{name}: begin with its meaning, in whole sentences"
    ast.parse("async def example(self):\n" + textwrap.indent(textwrap.dedent(example), "    "))
