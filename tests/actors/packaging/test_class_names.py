"""Classes by the names of their modules, imported by another program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayfold.actors.packaging.class_names import ClassNames, names_of_classes
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import DefinitionError
from tests.bank import Account


@pytest.mark.parametrize("ends", ["import sys; sys.exit(3)", "raise ValueError(3)", "raise GeneratorExit(3)"])
def test_a_module_that_raises_when_it_is_imported_is_reported_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    (tmp_path / "module_that_ends.py").write_text(ends)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DefinitionError, match=r"module_that_ends.Account.*its module cannot be imported here: \w+: 3"):
        ClassNames(("module_that_ends:Account",)).found()


def test_a_program_is_given_folders_of_the_application_and_none_of_another_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    folders = names_of_classes(Catalogue([Account], [])).folders
    assert str(tmp_path) in folders
    installed = {str(Path(one.__file__).parents[1]) for one in (json, pytest) if one.__file__}
    assert not installed & set(folders)
