"""`rayfold anchor`, and the part of `rayfold verify` that compares a store with an anchor.

Rules kept here: those of `cli/main.py`. On a schedule, an address that cannot be reached costs one line and is tried
again; a store that is not what was anchored before ends the command with exit code 1: that is an alarm, and no new
anchor may cover it up.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from ...runtime.errors import (
    CallerError,
    Damaged,
    InvalidMessage,
    StorageFailed,
    StoreInUse,
    StoreMismatch,
    StoreMissing,
    Unavailable,
)
from .application import connected_to, is_application
from .console import complaints, console
from .options import AddressOption

if TYPE_CHECKING:
    from ...runtime.backup.anchor import Anchor, AnchorKey
    from ...runtime.store.readable_store import ReadableStore

__all__ = ["anchor", "check_anchor"]

LATEST: Final = "anchor-latest.json"
"""Beside the dated ones, so that the next run compares the store with the last one."""

_DATED: Final = re.compile(r"anchor-\d{8}T\d{6}\.json")

ALARM: Final = 1
"""The exit code if the store is not what was anchored last."""

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

INTERVAL_MIN_S: Final = 1
INTERVAL_MAX_S: Final = 366 * 86_400


def anchor(
    directory: Annotated[
        Path, typer.Argument(help="The directory of a store, in use or not; or an application's name.")
    ],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The private key that signs it.")],
    new: Annotated[bool, typer.Option("--new-key", help="Make the key, in a new file of mode 0600.")] = False,
    to: Annotated[
        str | None, typer.Option("--to", metavar="ADDRESS", help="Also write it to a folder, or s3://bucket/name.")
    ] = None,
    every: Annotated[
        str | None,
        typer.Option("--every", metavar="TIME", help="Repeat at this interval: 30s, 15m, 1h, 1d. Needs --to."),
    ] = None,
    address: AddressOption = "auto",
) -> None:
    """Print and sign the end of each log of a store, so that a later change of anything before it is detected."""
    from ...runtime.backup.anchor import new_key, read_key

    interval_s = None if every is None else _seconds(every)
    if interval_s is not None and to is None:
        raise CallerError("--every needs --to ADDRESS, where the anchors are kept")
    signing = new_key(key) if new else read_key(key)
    complaints.print(f"public key {signing.public_key}", soft_wrap=True)
    with ExitStack() as stack:
        store = _store(directory, address, stack)
        while True:
            try:
                _anchor_once(store, signing, to)
            except Damaged as error:
                complaints.print(f"[bold red]alarm:[/] {escape(str(error))}", soft_wrap=True)
                raise typer.Exit(ALARM) from None
            except (StorageFailed, StoreInUse, Unavailable) as error:
                if interval_s is None:
                    raise
                complaints.print(
                    f"not anchored, tried again in {escape(every or '')}: {escape(str(error))}", soft_wrap=True
                )
            if interval_s is None:
                return
            time.sleep(interval_s)


def check_anchor(store: ReadableStore, file: Path, public_key: Path | None) -> bool:
    """Print whether the store holds what was anchored. True if it does. Raises `CallerError`, `Damaged`."""
    from ...runtime.backup.anchor import ANCHOR_BYTES_MAX, Anchor, differences, public_key_in

    try:
        with file.open("rb") as opened:
            found = Anchor.from_json(opened.read(ANCHOR_BYTES_MAX + 1))
    except OSError as error:
        raise CallerError(f"{file} cannot be read: {error.strerror or error}") from error
    if found.signature or public_key is not None:
        found.check_signature("" if public_key is None else public_key_in(public_key))
    differing = differences(found, store)
    for partition, what in differing.items():
        where = "" if partition < 0 else f"partition {partition}: "
        console.print(f"[bold red]not as anchored:[/] {escape(where + what)}", soft_wrap=True)
    if not differing:
        events = sum(found.heads.values())
        console.print(
            f"[green]as anchored[/] at {escape(found.anchored_at)}: {events:,} events up to there", soft_wrap=True
        )
    if public_key is None:
        who = f"signed with the key {found.public_key}" if found.signature else "not signed"
        text = f"the anchor is {escape(who)}; --public-key FILE compares with the one you know"
        complaints.print(text, soft_wrap=True)
    return not differing


def _store(directory: Path, address: str, stack: ExitStack) -> ReadableStore:
    from ...runtime.store.store import open_store

    if is_application(directory):
        return stack.enter_context(connected_to(str(directory), address)).any_store
    store = open_store(directory)
    if store.away:
        what = "this is one node's share of a store, and an anchor is of all of it"
        raise StoreMismatch(str(store.path), what, "name the application instead of the directory, while it runs")
    return store


def _anchor_once(store: ReadableStore, key: AnchorKey, to: str | None) -> None:
    from ...runtime.backup.anchor import ANCHOR_BYTES_MAX, take_anchor
    from ...runtime.backup.target import target_at

    if to is None:
        print(take_anchor(store).signed(key).as_json(), end="")
        return
    target = target_at(to)
    with target.held(writing=True):
        last = target.read(LATEST, ANCHOR_BYTES_MAX)
        if last is None and (dated := [name for name in target.sizes() if _DATED.fullmatch(name)]):
            what = f"it is gone, and {max(dated)} is there; put the last one back under that name, once you know why"
            raise Damaged(f"{target.address}/{LATEST}", what)
        try:
            _compare_with_last(store, last, f"{target.address}/{LATEST}", key)
            taken = take_anchor(store).signed(key)
        except (StoreMismatch, StoreMissing) as error:  # a log is another store's, or gone
            if last is None:
                raise
            raise Damaged(f"the store, compared with {target.address}/{LATEST},", str(error)) from error
        name = f"anchor-{re.sub('[^0-9T]', '', taken.anchored_at.partition('+')[0])}.json"
        for one in (LATEST, name):  # first what the next run compares with
            target.write(one, taken.as_json().encode())
    print(taken.as_json(), end="", flush=True)
    complaints.print(f"written to {escape(target.address)}/{name}", soft_wrap=True)


def _compare_with_last(store: ReadableStore, content: bytes | None, where: str, key: AnchorKey) -> None:
    """Raise `Damaged` if the store no longer holds what was anchored last, or that anchor is not one of this key."""
    from ...runtime.backup.anchor import Anchor, differences

    if content is None:
        return
    last: Anchor = Anchor.from_json(content)
    last.check_signature(key.public_key)
    if differing := differences(last, store):
        text = "; ".join(what if one < 0 else f"partition {one}: {what}" for one, what in differing.items())
        raise Damaged(f"the store, compared with {where},", text)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not INTERVAL_MIN_S <= seconds <= INTERVAL_MAX_S:
        raise InvalidMessage("--every", f"{text!r} is not a time", "write a number with s, m, h or d, as in 1h")
    return seconds
