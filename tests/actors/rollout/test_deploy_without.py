"""A first deployment on a cluster that has had nodes which are not there any more: `--create --without`."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from tests.actors.rollout.test_deploy import APP, DOMAIN, pay, rayfold, write
from tests.support.console import console

pytestmark = pytest.mark.slow


def test_a_first_store_is_made_without_nodes_that_were_given_up_by_name(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    write(tmp_path, {"__init__.py": "", "rules.py": "FEE = 1\n", "domain.py": DOMAIN, "app.py": APP})
    with LocalNodes(LocalCluster(nodes=2, cpus=1), tmp_path / "cluster", remember=True) as nodes:
        nodes.kill_node(1)  # Ray's directory remembers both of them, and for some seconds more takes this one to be up
    with LocalNodes(LocalCluster(nodes=1, cpus=1), tmp_path / "cluster", remember=True) as nodes:
        why = (
            "the store shop: no node that answers has it, and these may: node-1 (down); start them; or, if those that"
            " are down have nothing of it or will never be back, name them: `--without node-1` of `rayfold deploy"
            " --create`"
        )
        deploy = ("deploy", "shop.app:shop")
        assert rayfold(nodes, tmp_path, *deploy, "--dry-run", code=1) == f"it would be refused: {why}"
        for options in ((), ("--create",)):
            refused = rayfold(nodes, tmp_path, *deploy, *options, code=1)
            assert refused == f"error: {why}; nothing of the name shop runs"
        said = rayfold(nodes, tmp_path, *deploy, "--create", "--without", "node-0,node-1", code=1)
        assert "node-0 is up, and is asked; only a node that is down can be left out: node-1" in said
        assert not (nodes.nodes[0].data / "shop").exists()

        ahead = rayfold(nodes, tmp_path, *deploy, "--without", "node-1", "--dry-run")
        assert "a new, empty store with 2 partitions is made on node-0, without node-1" in ahead
        assert "shop runs on" in rayfold(nodes, tmp_path, *deploy, "--create", "--without", "node-1")
        with console(nodes.address, name="shop") as shop:
            assert pay(shop, "till", 10) == 9
