"""Classes by the names of their modules, imported by another program."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold.actors.packaging.class_names import ClassNames
from rayfold.runtime.errors import DefinitionError


@pytest.mark.parametrize("ends", ["import sys; sys.exit(3)", "raise ValueError(3)", "raise GeneratorExit(3)"])
def test_a_module_that_raises_when_it_is_imported_is_reported_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    (tmp_path / "module_that_ends.py").write_text(ends)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DefinitionError, match=r"module_that_ends.Account.*its module cannot be imported here: \w+: 3"):
        ClassNames(("module_that_ends:Account",)).found()
