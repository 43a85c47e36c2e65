"""Token: what a process must show to be let into a Ray cluster of this user; one file for all of them."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ...runtime.errors import StorageFailed
from ...runtime.printable import printable_log
from ...runtime.private import check_owner, make_private_folder, write_private

__all__ = ["ensure_token", "has_token", "proof_of_token", "token_of"]

log = printable_log(__name__)

_TOKEN_BYTES_MAX: Final = 4096
"""It has 64 characters, if it was made here."""


def ensure_token(environment: Mapping[str, str]) -> None:
    """Make the token of this user's clusters if there is none; nothing if the environment gives one or needs none.

    Raises `StorageFailed` if it cannot be written.
    """
    if environment.get("RAY_AUTH_MODE", "token") != "token" or environment.get("RAY_AUTH_TOKEN"):
        return
    path = _token_path(environment)
    try:
        if not path.parent.exists():
            make_private_folder(path.parent)
        if not path.exists():
            _make_token(path)
        _protect_token(path)
    except OSError as error:
        raise StorageFailed(str(path), f"cannot write the token: {error.strerror or error}") from error


def has_token(environment: Mapping[str, str]) -> bool:
    """Whether this user has a token, or none is needed."""
    if environment.get("RAY_AUTH_MODE", "token") != "token" or environment.get("RAY_AUTH_TOKEN"):
        return True
    return _token_path(environment).exists()


def token_of(environment: Mapping[str, str]) -> str:
    """The token of this user's clusters, as a process with this environment has it; empty if none is needed, or none is
    there. Raises `StorageFailed` if it cannot be read."""
    if environment.get("RAY_AUTH_MODE", "token") != "token":
        return ""
    if given := environment.get("RAY_AUTH_TOKEN"):
        return given.strip()
    path = _token_path(environment)
    try:
        with path.open("rb") as file:
            return file.read(_TOKEN_BYTES_MAX).decode().strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StorageFailed(str(path), f"cannot read the token: {getattr(error, 'strerror', error)}") from error


def proof_of_token(token: str, socket_name: str) -> str:
    """What a program sends to the socket of this name, so that the token itself is not sent; empty without a token."""
    return hmac.digest(token.encode(), socket_name.encode(), hashlib.sha256).hex() if token else ""


def _token_path(environment: Mapping[str, str]) -> Path:
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def _make_token(path: Path) -> None:
    """Written beside its place and linked there: it is never there in part, nor open to others, and the first of two
    makers wins."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    write_private(temporary, secrets.token_hex(32).encode())
    try:
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _protect_token(path: Path) -> None:
    """Tighten a token that Ray itself has written: readable by every user of the machine. Raises `NotPrivate` for that
    of another user."""
    check_owner(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        log.warning("%s could be read by other users of this machine; make another one if some are not trusted", path)
        path.chmod(0o600)
