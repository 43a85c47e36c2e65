"""New code for a projection that has stopped: it takes over also if it stops as well, and the deployment reports it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from tests.actors.rollout.test_deploy import APP, DOMAIN, HANDLER, LOOKING, change, pay, rayfold, write
from tests.support.console import console

pytestmark = pytest.mark.slow

BOUND: Final = "        assert event.amount < 100_000, 'no luck'\n"


@pytest.mark.timeout(400)
def test_a_projection_that_stops_as_the_one_before_it_is_named_and_is_none_to_wait_for(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    write(tmp_path, {"__init__.py": "", "rules.py": "FEE = 1\n", "domain.py": DOMAIN, "app.py": APP})
    change(tmp_path, "domain.py", HANDLER, HANDLER + BOUND)
    deploy = ("deploy", "shop.app:shop")
    with LocalNodes(LocalCluster(nodes=1, cpus=1), tmp_path / "cluster", remember=True) as nodes:
        assert "has stopped" not in rayfold(nodes, tmp_path, *deploy, "--create", "--wait")
        with console(nodes.address, name="shop") as shop:
            assert pay(shop, "till", 10) == 9
            shop("bank.execute(app.Till, 'till', app.Pay(amount=200_000)) and None")
            while not all(one["failed"] for one in shop("bank.status().projectors")):
                LOOKING.wait(0.05)  # each look asks the projector

        for options, code, why in (((), 0, "still no luck"), (("--wait",), 1, "no luck again")):
            write(tmp_path, {"domain.py": DOMAIN.replace(HANDLER, HANDLER + BOUND.replace("no luck", why))})
            said = rayfold(nodes, tmp_path, *deploy, *options, code=code)
            assert "shop runs on" in said, "what else was changed does not wait for the mend"
            assert "projection Slips has stopped: " in said
            assert f"AssertionError: {why}" in said

        write(tmp_path, {"domain.py": DOMAIN})
        assert "has stopped" not in rayfold(nodes, tmp_path, *deploy, "--wait")
        with console(nodes.address, name="shop") as shop:
            assert pay(shop, "till", 10) == 9 + 199_999 + 9
