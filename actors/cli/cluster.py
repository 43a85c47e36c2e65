"""`rayfold up`, `down`, `node` and `nodes`: nodes of a cluster, started, stopped and listed from a shell.

`up` starts several nodes on this machine that outlive the command; a second `up` starts again what was lost. `down`
stops exactly those. `node` turns a real machine into one node of a cluster: it becomes `ray start --block`, with the
label, the environment and the settings that Rayfold needs. `nodes` lists those of any cluster.

Rules kept here: those of `cli/main.py`. A process is stopped by its session and start time, never by a name; `ray
stop`, which ends every Ray on the machine, is never called.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from ...runtime.errors import CallerError, InvalidMessage
from ..cluster.cluster_file import CLUSTER_FOLDER, known_port, known_wish, read_cluster, remove_cluster, write_cluster
from ..cluster.environment import OBJECT_STORE_BYTES, OWN_ACTOR_SLOT, node_environment
from ..cluster.local import LocalCluster, LocalNodes
from ..cluster.node import create_or_read_node, hold_node
from ..cluster.ray_cluster import Cluster
from ..cluster.token import ensure_token, has_token
from ..settings import Settings
from .application import take_down_application
from .console import console
from .options import AddressOption

__all__ = ["down", "node", "nodes", "up"]

FOLDER: Final = Path(CLUSTER_FOLDER)
PORT: Final = 6379
"""Ray's own default for the head."""


DataOption = Annotated[Path, typer.Option("--data", help="The folder that holds the nodes' data folders.")]


def up(
    nodes: Annotated[int | None, typer.Option(help="Number of nodes; default: as many as before, 3 at first.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs that each node reports to Ray; default: as before.")] = None,
    data: DataOption = FOLDER,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Port of the head; default: the one that it had before, or any."),
    ] = None,
) -> None:
    """Start a cluster of several nodes on this machine, or what is missing of it. It outlives this command."""
    folder = data.absolute()
    cluster = read_cluster(folder, nodes, cpus)
    if cluster is None:
        had = known_wish(folder)
        wanted = LocalCluster(had.nodes if nodes is None else nodes, had.cpus if cpus is None else cpus)
        cluster = LocalNodes(wanted, folder, remember=True)
    if nodes is not None and nodes < cluster.wanted.nodes:
        what = f"the cluster in {folder} has {cluster.wanted.nodes} nodes, not {nodes}"
        raise InvalidMessage("rayfold up", what, "choose another folder, or leave --nodes out")
    missing = [node.name for node in cluster.nodes if not node.alive]
    _choose_port(cluster, port, running=len(missing) < len(cluster.nodes))
    cluster.start()
    try:
        write_cluster(cluster)
    except BaseException:
        cluster.stop(grace_s=0)
        raise
    cluster.let_go()
    _show(cluster, missing, data)


def down(
    app: Annotated[
        str | None, typer.Argument(help="Take down this application, and leave the cluster running.")
    ] = None,
    data: DataOption = FOLDER,
    address: AddressOption = "auto",
) -> None:
    """Stop the cluster that `rayfold up` started there: exactly its processes. Or one application. The data stays."""
    if app is not None:
        take_down_application(app, address)
        return
    folder = data.absolute()
    cluster = read_cluster(folder)
    if cluster is None:
        raise CallerError(f"{folder}: no cluster was started here")
    running = sum(len(node.session.members()) for node in cluster.nodes if node.session is not None)
    cluster.stop()
    remove_cluster(folder)
    console.print(
        f"stopped {_nodes(len(cluster.nodes))}, {running} processes; their data stays in {escape(str(folder))}"
    )


def node(
    data: Annotated[Path, typer.Option(help="The data folder of this node; made if it is missing.")],
    head: Annotated[bool, typer.Option("--head", help="The first node, to which the others connect.")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of the head, for every other node.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the node, for people; default: the host's name.")] = None,
    port: Annotated[int, typer.Option(help="Port of the head.")] = PORT,
    cpus: Annotated[int | None, typer.Option(help="CPUs that the node reports to Ray; default: all.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the command instead of becoming it.")] = False,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="-- OPTIONS", help="Passed to `ray start` unchanged.")
    ] = None,
) -> None:
    """Make this machine a node of a cluster: become `ray start --block` with Rayfold's label and settings."""
    if head == (address is not None):
        raise CallerError("use --head on the first node and --address HOST:PORT, the head's, on every other")
    identity = create_or_read_node(data, name or socket.gethostname().partition(".")[0])
    environment = node_environment(os.environ, data.absolute(), head=head, loopback=False)
    command = _ray_start(identity.labels, f"--port={port}" if head else f"--address={address}", cpus, more or [])
    if show:
        print(_as_shell(environment, command))
        return
    if head:
        ensure_token(environment)
    elif not has_token(environment):
        raise CallerError("no token here; copy ~/.ray/auth_token of the head's user to the same place, readable by you")
    hold_node(data)
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def nodes(
    address: Annotated[
        str, typer.Argument(metavar="[HOST:PORT]", help="Default: the cluster of this machine.")
    ] = "auto",
) -> None:
    """List the nodes of a cluster: names, addresses, and whether they are up. Exit code 1 if one is gone."""
    cluster = Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=address)
    found = cluster.nodes()
    cluster.stop()
    table = Table(title=_nodes(len(found)), title_justify="left")
    for column in ("node", "node id", "address", "up"):
        table.add_column(column)
    for one in found:
        table.add_row(escape(one.name), one.node_id, one.address, "[green]yes[/]" if one.alive else "[bold red]gone[/]")
    console.print(table)
    raise typer.Exit(0 if all(one.alive for one in found) else 1)


def _ray_start(labels: Mapping[str, str], where: str, cpus: int | None, more: Sequence[str]) -> list[str]:
    """The command that is a node of a real cluster, in the foreground."""
    beside = Path(sys.executable).with_name("ray")
    command = [str(beside) if beside.exists() else shutil.which("ray") or "ray", "start"]
    command += ["--head", where] if where.startswith("--port") else [where]
    command += ["--block", f"--labels={','.join(f'{label}={value}' for label, value in labels.items())}"]
    command += [f"--resources={json.dumps({OWN_ACTOR_SLOT: Settings().own_actors_max})}"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    command += [f"--num-cpus={cpus}"] if cpus is not None else []
    return [*command, *more]


def _as_shell(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """The command as one writes it in a shell, with what it adds to the environment."""
    added = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if os.environ.get(name) != value]
    return " \\\n  ".join(["env", *added, shlex.join(command)])


def _choose_port(cluster: LocalNodes, wanted: int | None, *, running: bool) -> None:
    """The port of the head. One that runs, or that the other nodes know, stays the same."""
    had = cluster.address.rpartition(":")[2]
    if running:
        if wanted is not None and str(wanted) != had:
            raise CallerError(f"the cluster in {cluster.folder} runs at port {had}; `rayfold down` first")
        return
    cluster.port = wanted
    if wanted is None and not had and (before := known_port(cluster.folder)) is not None:
        cluster.address = f"127.0.0.1:{before}"  # where it is started again if that is free


def _nodes(number: int) -> str:
    return "1 node" if number == 1 else f"{number} nodes"


def _show(cluster: LocalNodes, missing: Sequence[str], data: Path) -> None:
    if not missing:
        console.print(f"up already: {_nodes(len(cluster.nodes))} at {cluster.address}")
    elif len(missing) == len(cluster.nodes):
        console.print(f"up: {_nodes(len(cluster.nodes))}, {cluster.wanted.cpus} CPU each, at {cluster.address}")
    else:
        console.print(f"up again: {escape(', '.join(missing))}; {_nodes(len(cluster.nodes))} at {cluster.address}")
    for one in cluster.nodes:
        assert one.session is not None  # they are up
        role = "head" if one is cluster.nodes[0] else "    "
        console.print(
            f"  {escape(one.name)}  {role}  session {one.session.number}  {escape(str(one.data))}", soft_wrap=True
        )
    where = "" if data == FOLDER else f" --data {shlex.quote(str(data))}"
    console.print(
        f'a driver joins with cluster="{cluster.address}"; `rayfold down{escape(where)}` stops it', soft_wrap=True
    )
