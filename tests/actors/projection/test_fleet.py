"""ProjectorFleet without Ray: what a start makes of a projector whose process ends with each call that opens it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from rayfold import Unavailable
from rayfold.actors.cluster.rpc import Reply
from rayfold.actors.packaging.builds import Build
from rayfold.actors.projection import fleet
from rayfold.actors.projection.fleet import Projector, ProjectorFleet, ServedBuild
from rayfold.actors.projection.status_records import Place
from rayfold.actors.settings import Settings
from rayfold.runtime.encoding.catalogue import Catalogue
from tests.bank import Account, Balances


class Ending:
    """A projector that is always being started again: it does not open, and has nothing wrong to report yet."""

    def open(self) -> NoReturn:
        raise ConnectionError("its process has ended")

    def place(self) -> Place:
        return Place(1, {}, {}, Reply())

    def come_to(self, after: object, timeout_s: float) -> None:
        """Nothing to wait for."""


async def call(method: Callable[..., Any], *arguments: Any, timeout_s: float | None = None) -> Any:
    """`rpc.call`, of an object that is here."""
    return method(*arguments)


async def test_a_projector_that_does_not_come_up_holds_no_start_and_a_deployment_is_not_ready_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fleet, "call", call)
    monkeypatch.setattr(fleet, "_RETRY_S", 0.001)
    given: Any = None
    projectors = ProjectorFleet(given, Catalogue([Account], [Balances]), "bank", "bank", given, given, Settings())
    ending: Any = Ending()
    served = ServedBuild(Balances, Build(1, 1, tmp_path), b"", [Projector(0, 0, "ending", tmp_path, ending)])
    projectors.serving["Balances"] = served
    await projectors.open()
    with pytest.raises(Unavailable, match="projector ending: it has not caught up since its process began"):
        await projectors.check_started()
