"""Deployed code: imported only from a folder in which no other user has a hand, and only as it was deployed."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayfold.actors.packaging.code import make_importable
from rayfold.runtime.errors import Damaged, NotPrivate, Unavailable
from tests.other_user import as_nobody, needs_root

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def packed(text: str = "WHO = 'deployed'\n", name: str = "till_of_test.py") -> tuple[str, bytes]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, text)
        archive.writestr("inside/__init__.py", "")
    return hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


def counting(content: bytes) -> tuple[Callable[[str], bytes], list[str]]:
    asked: list[str] = []

    def fetch(digest: str) -> bytes:
        asked.append(digest)
        return content

    return fetch, asked


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYFOLD_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path / "data"


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder like `/tmp`, for a program without a data folder."""
    monkeypatch.delenv("RAYFOLD_DATA", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with tempfile.TemporaryDirectory(prefix="rayfold-shared-", dir="/tmp") as name:
        Path(name).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


def imported(folder: Path) -> str:
    """What a fresh process has imported from this folder."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import till_of_test; print(till_of_test.WHO)"
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder)], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_what_was_unpacked_is_private_and_survives_a_second_use(data: Path) -> None:
    digest, content = packed()
    fetch, asked = counting(content)
    for _ in range(2):
        make_importable(digest, fetch, first=True)
    assert asked == [digest]
    assert sys.path[0] == str(data / "code" / digest)
    assert not [one for one in (data, *data.rglob("*")) if stat.S_IMODE(one.stat().st_mode) & 0o077]


@pytest.mark.parametrize("how", ["empty", "other content", "gone", "a link", "one too many", "no folder"])
def test_code_that_is_not_what_was_deployed_is_unpacked_again(data: Path, tmp_path: Path, how: str) -> None:
    """Empty is what a power cut leaves of a file that was not synced."""
    digest, content = packed()
    make_importable(digest, lambda _: content, first=True)
    folder = data / "code" / digest
    module = folder / "till_of_test.py"
    if how == "empty":
        module.write_bytes(b"")
    elif how == "other content":
        module.write_text("WHO = 'planted!'\n")
    elif how == "gone":
        module.unlink()
    elif how == "a link":
        (tmp_path / "planted.py").write_text("WHO = 'deployed'\n")
        module.unlink()
        module.symlink_to(tmp_path / "planted.py")
    elif how == "one too many":
        (folder / "json.py").write_text("WHO = 'planted'\n")
    else:
        for one in sorted(folder.rglob("*"), reverse=True):
            one.rmdir() if one.is_dir() else one.unlink()
        folder.rmdir()
        folder.touch()
    make_importable(digest, lambda _: None, first=True)
    assert imported(folder) == "deployed"
    assert sorted(str(one.relative_to(folder)) for one in folder.rglob("*.py")) == [
        "inside/__init__.py",
        "till_of_test.py",
    ]
    assert not list((data / "code").glob("unpacking.*"))


def test_code_that_was_kept_and_decayed_is_fetched_again(data: Path) -> None:
    digest, content = packed()
    make_importable(digest, lambda _: content, first=True)
    (data / "code" / f"{digest}.zip").write_bytes(content[:-1])
    (data / "code" / digest / "till_of_test.py").write_bytes(b"")
    fetch, asked = counting(content)
    make_importable(digest, fetch, first=True)
    assert asked == [digest]
    assert imported(data / "code" / digest) == "deployed"


def test_code_of_another_digest_than_was_asked_for_is_refused(data: Path) -> None:
    digest, _ = packed()
    _, other = packed("WHO = 'another'\n")
    with pytest.raises(
        Damaged, match=r"the application's code \w{12} is damaged: what Ray's directory has is of another"
    ):
        make_importable(digest, lambda _: other, first=True)
    with pytest.raises(Unavailable, match="is not in Ray's directory any more; deploy it again"):
        make_importable(digest, lambda _: None, first=True)
    assert not (data / "code" / digest).exists()


def test_byte_code_from_before_this_start_of_the_machine_is_not_used(data: Path) -> None:
    digest, content = packed()
    make_importable(digest, lambda _: content, first=True)
    folder = data / "code" / digest
    imported(folder)
    (stale,) = (folder / "__pycache__").iterdir()
    os.utime(stale, (1, 1))
    fresh = folder / "__pycache__" / "other.pyc"
    fresh.touch()
    make_importable(digest, lambda _: None, first=True)
    assert (stale.exists(), fresh.exists()) == (False, True)


def test_an_unpacking_that_was_killed_leaves_nothing_that_is_used_and_is_cleared_away(data: Path) -> None:
    digest, content = packed()
    (data / "code" / "unpacking.killed").mkdir(parents=True)
    make_importable(digest, lambda _: content, first=True)
    assert not list((data / "code").glob("unpacking.*"))
    assert imported(data / "code" / digest) == "deployed"


def test_of_many_versions_the_last_ones_are_kept_and_those_that_a_process_imports_from(data: Path) -> None:
    first, content = packed("WHO = 'first'\n")
    code = (
        "import sys\nfrom rayfold.actors.packaging.code import make_importable\n"
        "make_importable(sys.argv[1], lambda _: open(sys.argv[2], 'rb').read(), first=True)\n"
        "print('uses it', flush=True)\nsys.stdin.read()\nimport till_of_test; print(till_of_test.WHO)\n"
    )
    (data.parent / "first.zip").write_bytes(content)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, first, str(data.parent / "first.zip")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "uses it\n"
        for number in range(12):
            deploys_in_a_process_of_its_own(data, number)
        kept = {one.name for one in (data / "code").iterdir() if one.is_dir()}
        assert first in kept
        assert len(kept) == 9
        assert running.communicate("", timeout=60)[0] == "first\n"
    deploys_in_a_process_of_its_own(data, 12)
    assert first not in {one.name for one in (data / "code").iterdir()}


def deploys_in_a_process_of_its_own(data: Path, number: int) -> None:
    digest, content = packed(f"WHO = {number}\n")
    (data.parent / "one.zip").write_bytes(content)
    code = (
        "import sys\nfrom rayfold.actors.packaging.code import make_importable\n"
        "make_importable(sys.argv[1], lambda _: open(sys.argv[2], 'rb').read(), first=True)\n"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", code, digest, str(data.parent / "one.zip")],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@needs_root
@pytest.mark.parametrize("what", ["the folder of the user", "the folder of code", "a link"])
def test_code_is_not_imported_from_what_another_user_has_made_first(shared: Path, what: str) -> None:
    digest, content = packed()
    ours = shared / "rayfold-0"
    if what == "the folder of the user":
        as_nobody("os.mkdir(sys.argv[1], 0o777); os.mkdir(sys.argv[1] + '/code', 0o777)", ours)
    elif what == "a link":
        as_nobody("os.mkdir(sys.argv[2]); os.symlink(sys.argv[2], sys.argv[1])", ours, shared / "theirs")
    else:
        ours.mkdir(mode=0o777)
        ours.chmod(0o777)
        as_nobody("os.mkdir(sys.argv[1] + '/code', 0o777)", ours)
    before = list(sys.path)
    with pytest.raises(NotPrivate, match=r"rayfold-0.*belongs to user (nobody|root)"):
        make_importable(digest, lambda _: content, first=False)
    assert sys.path == before


@needs_root
def test_another_user_cannot_exchange_the_code_that_a_later_program_imports(shared: Path) -> None:
    digest, content = packed()
    make_importable(digest, lambda _: content, first=False)
    assert sys.path[-1] == str(shared / "rayfold-0" / "code" / digest)
    tried = """
for act in (
    lambda: os.listdir(sys.argv[1]),
    lambda: os.rename(sys.argv[1], sys.argv[1] + ".was"),
    lambda: os.rename(os.path.dirname(sys.argv[1]), os.path.dirname(sys.argv[1]) + ".was"),
):
    try:
        act()
    except PermissionError:
        continue
    print("done")
"""
    assert as_nobody(tried, shared / "rayfold-0" / "code") == ""


@needs_root
def test_code_in_a_data_folder_that_others_may_exchange_is_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, content = packed()
    (shared / "team").mkdir()
    (shared / "team").chmod(0o777)
    monkeypatch.setenv("RAYFOLD_DATA", str(shared / "team" / "data"))
    with pytest.raises(NotPrivate, match="team: other users may rename what is in it"):
        make_importable(digest, lambda _: content, first=True)
