"""The token of a user's clusters: at no moment can another user of the machine read it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rayfold.actors.cluster.token import ensure_token, proof_of_token, token_of
from rayfold.runtime.errors import NotPrivate, StorageFailed
from tests.other_user import as_nobody, needs_root

ROOT = Path(__file__).resolve().parents[3]

STARTS = """
from rayfold.actors.cluster.ray_cluster import Cluster
cluster = Cluster.start_or_join(num_cpus=1, own_actors_max=0)
cluster.stop()
"""


def environment(path: Path) -> dict[str, str]:
    return {"RAY_AUTH_TOKEN_PATH": str(path)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_private_whatever_the_umask_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "home" / ".ray" / "auth_token"
    before = os.umask(0)
    try:
        ensure_token(environment(path))
    finally:
        os.umask(before)
    token = path.read_text()
    assert (len(token), mode(path), mode(path.parent)) == (64, 0o600, 0o700)
    ensure_token(environment(path))
    assert path.read_text() == token
    assert [one.name for one in path.parent.iterdir()] == ["auth_token"]


def test_makers_at_once_agree_on_one_token_and_none_sees_half_of_it(tmp_path: Path) -> None:
    path, seen = tmp_path / "auth_token", []

    def make() -> None:
        ensure_token(environment(path))
        seen.append(path.read_text())

    threads = [threading.Thread(target=make) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(seen) == 16
    assert len(set(seen)) == 1
    assert len(seen[0]) == 64


def test_a_token_that_ray_has_written_open_to_all_is_tightened_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "auth_token"
    path.write_text("a" * 64)
    path.chmod(0o644)
    ensure_token(environment(path))
    assert mode(path) == 0o600
    assert f"{path} could be read by other users of this machine" in caplog.text


@needs_root
def test_the_token_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "auth_token"
    path.write_text("a" * 64)
    os.chown(path, 65534, 65534)
    with pytest.raises(NotPrivate, match=r"auth_token: this file belongs to user nobody \(65534\)"):
        ensure_token(environment(path))


@pytest.mark.slow
@needs_root
def test_another_user_never_reads_the_token_while_a_first_runtime_starts(tmp_path: Path) -> None:
    """From before its first start until after its end, another user tries to open the token all the time."""
    home = Path("/tmp") / f"rayfold-home-{os.getpid()}"
    home.mkdir(mode=0o755)
    token = home / ".ray" / "auth_token"
    tries = f"""
import time
ended = time.monotonic() + 100
while os.path.exists({str(home)!r}) and time.monotonic() < ended:
    try:
        os.open({str(token)!r}, os.O_RDONLY)
        print("read it"); break
    except OSError:
        time.sleep(0.0005)
"""
    told: list[str] = []
    trying = threading.Thread(target=lambda: told.append(as_nobody(tries)))
    try:
        trying.start()
        env = {**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)}
        env.pop("RAY_AUTH_TOKEN", None)
        env.pop("RAY_AUTH_TOKEN_PATH", None)
        subprocess.run([sys.executable, "-P", "-c", STARTS], env=env, check=True, timeout=90, capture_output=True)
        assert mode(token) == 0o600
    finally:
        for one in sorted(home.rglob("*"), reverse=True):
            one.rmdir() if one.is_dir() and not one.is_symlink() else one.unlink()
        home.rmdir()
        trying.join()
    assert told == [""]


def test_the_token_of_a_process_is_that_of_its_environment_or_of_its_user(tmp_path: Path) -> None:
    path = tmp_path / "auth_token"
    path.write_text("of the user\n")
    of_user = {"RAY_AUTH_TOKEN_PATH": str(path)}
    assert token_of(of_user) == "of the user"
    assert token_of({**of_user, "RAY_AUTH_TOKEN": " given "}) == "given"
    assert token_of({**of_user, "RAY_AUTH_MODE": "disabled"}) == ""
    assert token_of({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) == ""
    with pytest.raises(StorageFailed, match="cannot read the token: Is a directory"):
        token_of({"RAY_AUTH_TOKEN_PATH": str(tmp_path)})


def test_a_proof_is_of_one_token_for_one_socket() -> None:
    proofs = {proof_of_token(token, name) for token in ("a", "b") for name in ("one", "two")}
    assert (len(proofs), proof_of_token("", "one")) == (4, "")
    assert all(len(proof) == 64 for proof in proofs)
