"""The program around a runtime: its signals, its children, its other runtimes and its modules stay its own.

Ray starts a worker for each CPU at once, and a second of CPU goes into each: a program has no more of them than actors.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayfold.actors.os_process.reaper import MARK, end_marked
from rayfold.benchmarks.harness.processes import processes_below
from tests.support.driver import ROOT, start_driver, wait_until_gone

pytestmark = pytest.mark.slow

SIGNALS = """
import faulthandler, os, signal, sys
from rayfold import BlockingRuntime
from tests.bank import Account, Open

got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(signal.Signals(number).name))

def send_both():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)

faulthandler.enable()
with BlockingRuntime(sys.argv[1], aggregates=[Account], partitions=1, num_cpus=1) as bank:
    send_both()
    bank.execute(Account, "alice", Open(owner="x"))
send_both()
print(*got, flush=True)
os.kill(os.getpid(), signal.SIGSEGV)
"""

INTERRUPTED_STOP = """
import os, signal, sys, threading
from rayfold import BlockingRuntime
from tests.bank import Account, Open

with BlockingRuntime(sys.argv[1], aggregates=[Account], partitions=1, num_cpus=1) as bank:
    bank.execute(Account, "alice", Open(owner="x"))
    print("stops", flush=True)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
"""

INTERRUPTED_START = """
import os, signal, sys, threading
from rayfold import BlockingRuntime
from tests.bank import Account
from ray._private import worker

def endless(*arguments, **options):  # as Ray's own is while its directory does not answer
    with worker._connect_or_shutdown_lock:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait()

import ray
ray.init = endless
try:
    BlockingRuntime(sys.argv[1], aggregates=[Account], num_cpus=1).start()
except KeyboardInterrupt:
    print("interrupted")
"""

OPENED_AGAIN = """
import os, signal, sys, threading
import ray
from rayfold import BlockingRuntime
from tests.bank import Account, Open

rays_own, interrupted = ray.init, threading.Event()

def slow(*arguments, **options):
    ray.init = rays_own
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupted.wait(60)
    return rays_own(*arguments, **options)

ray.init = slow
bank = BlockingRuntime(sys.argv[1], aggregates=[Account], partitions=1, num_cpus=1)
try:
    bank.start()
except KeyboardInterrupt:
    interrupted.set()
with bank:
    print(bank.execute(Account, "alice", Open(owner="x")).version)
"""

FORKED = """
import os, sys
from rayfold import BlockingRuntime, CallerError, connect_blocking
from tests.bank import Account, Deposit, Open

def opened(name):
    return BlockingRuntime(sys.argv[1] + name, aggregates=[Account], partitions=1, num_cpus=1)

def in_child(do):
    if (child := os.fork()) == 0:
        do()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0

def connects():
    with connect_blocking(sys.argv[1] + "one") as bank:
        print(bank.execute(Account, "alice", Deposit(amount=1)).version, flush=True)

def opens():
    try:
        opened("two").start()
    except CallerError as error:
        print(str(error).partition(", ")[2], flush=True)

with opened("one") as bank:
    bank.execute(Account, "alice", Open(owner="x"))
    in_child(connects)
    in_child(opens)
in_child(opens)
"""

NO_RAY = """
import sys
from rayfold import BlockingRuntime, Unavailable
from tests.bank import Account

try:
    BlockingRuntime(sys.argv[1], aggregates=[Account], num_cpus=2).start()
except Unavailable as error:
    print(error)
"""

TWO_RUNTIMES = """
import sys, threading
from pathlib import Path
from rayfold import BlockingRuntime
from tests.bank import Account, BalanceOf, Balances, Deposit, Open

def opened(name):
    classes = {"aggregates": [Account], "projections": [Balances], "partitions": 1, "num_cpus": 2}
    return BlockingRuntime(Path(sys.argv[1]) / name, **classes).start()

one, two = opened("one"), opened("two")
for bank in (one, two):
    bank.execute(Account, "alice", Open(owner="x"))
one.stop()
receipt = two.execute(Account, "alice", Deposit(amount=5))
print(two.ask(Balances, BalanceOf(account="alice"), after=receipt))
one = opened("one")
two.stop()
receipt = one.execute(Account, "alice", Deposit(amount=7))
print(one.ask(Balances, BalanceOf(account="alice"), after=receipt))
one.stop()
import ray
print(ray.is_initialized(), [thread.name for thread in threading.enumerate() if thread.name.startswith("rayfold")])
"""

FORKS = """
import os, sys
from rayfold import BlockingRuntime, CallerError
from tests.bank import Account, BalanceOf, Balances, Deposit, Open, Turnover

uses = {
    "execute": lambda bank: bank.execute(Account, "alice", Deposit(amount=1), timeout_s=3),
    "ask": lambda bank: bank.ask(Balances, BalanceOf(account="alice"), timeout_s=3),
    "history": lambda bank: bank.history(Account, "alice"),
    "status": lambda bank: bank.status(),
    "subscribe": lambda bank: next(bank.subscribe()),
    "events": lambda bank: next(bank.events()),
}
with BlockingRuntime(sys.argv[1], aggregates=[Account], projections=[Balances], partitions=1, num_cpus=2) as bank:
    bank.execute(Account, "alice", Open(owner="x"))
    for name, use in uses.items():
        if (child := os.fork()) == 0:
            try:
                use(bank)
            except CallerError as error:
                print(name, "refused", "which has this runtime open" in str(error), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    if (child := os.fork()) == 0:
        raise ValueError("that nothing catches")
    print("a child that raises ends with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    print("hooks", sys.excepthook is sys.__excepthook__, os.environ.get("PYTHONBREAKPOINT"), flush=True)
    if os.fork() == 0:
        bank.stop()
        print("the child has ended")
        sys.exit(7)  # in an orderly way, with what Python does at exit
    print("an orderly child ends with", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
    print(bank.execute(Account, "alice", Deposit(amount=1)).version, flush=True)
"""

MODULES = """
import os, sys
sys.path.insert(0, "lib")  # relative to where the program began
os.makedirs("lib/sub", exist_ok=True)
with open("lib/shop_model.py", "w") as file:
    file.write(open(sys.argv[2]).read())
from rayfold import BlockingRuntime
import shop_model
os.chdir("/")
with BlockingRuntime(sys.argv[1], aggregates=[shop_model.Account], partitions=1, num_cpus=1) as bank:
    print(bank.execute(shop_model.Account, "alice", shop_model.Deposit(amount=1)).version)
"""

SHOP_MODEL = """
from rayfold import Aggregate, Command, Event, Shared, decide, evolve

class Deposit(Command):
    amount: int

class Deposited(Event):
    amount: int

class Account(Aggregate, placement=Shared()):
    balance: int = 0

    @decide
    def deposit(self, command: Deposit) -> Deposited:
        return Deposited(amount=command.amount)

    @evolve
    def deposited(self, event: Deposited) -> None:
        self.balance += event.amount
"""

SUBSCRIBER = """
import sys
from rayfold import subscribe
from tests.bank import Account

subscription = subscribe(sys.argv[1], sys.argv[2], aggregates=[Account])
print(next(iter(subscription))[0], flush=True)
"""

MAKER = """
import sys
from rayfold import BlockingRuntime
from tests.bank import Account, Open
with BlockingRuntime(sys.argv[1], aggregates=[Account], partitions=1, num_cpus=1) as bank:
    for name in ("alice", "bob"):
        bank.execute(Account, name, Open(owner=name))
"""


def output_of(program: str, *arguments: object, cwd: Path = ROOT) -> str:
    """What a program prints, stderr too. It must end by itself, and well."""
    with start_driver("-c", program, *map(str, arguments), folder=cwd) as driver:
        printed, errors = driver.communicate(timeout=100)
    assert driver.returncode == 0, errors
    return printed + errors


def test_the_programs_signal_handlers_stay_the_programs_and_those_that_it_has_set_below_python_too(
    tmp_path: Path,
) -> None:
    with start_driver("-c", SIGNALS, str(tmp_path / "data")) as driver:
        printed, errors = driver.communicate(timeout=100)
    assert printed == "SIGINT SIGTERM SIGINT SIGTERM\n"
    assert errors.startswith("Fatal Python error: Segmentation fault"), "faulthandler was replaced"
    assert "SIGSEGV received" not in errors, "Ray's handler ran"
    assert driver.returncode == -signal.SIGSEGV


def test_two_runtimes_in_one_program_end_independently(tmp_path: Path) -> None:
    assert output_of(TWO_RUNTIMES, tmp_path).splitlines() == ["5", "7", "False []"]


def test_a_forked_child_is_refused_at_once_and_its_end_takes_nothing_from_its_parent(tmp_path: Path) -> None:
    *refused, child, version = output_of(FORKS, tmp_path / "data").splitlines() + [""]
    lines = [*refused, child]
    assert "a child that raises ends with 1" in lines
    assert "an orderly child ends with 7" in lines
    assert "ValueError: that nothing catches" in lines
    assert "hooks True None" in lines
    assert lines[:6] == [
        f"{use} refused True" for use in ("execute", "ask", "history", "status", "subscribe", "events")
    ]
    assert "2" in lines, version
    assert "the child has ended" in lines


def test_modules_load_in_actors_however_the_program_found_them(tmp_path: Path) -> None:
    model = tmp_path / "model.txt"
    model.write_text(SHOP_MODEL)
    assert output_of(MODULES, tmp_path / "data", model, cwd=tmp_path) == "1\n"


def test_a_program_with_an_open_subscription_ends_and_keeps_its_place(tmp_path: Path) -> None:
    output_of(MAKER, tmp_path / "data")
    assert output_of(SUBSCRIBER, tmp_path / "data", "mailer").startswith("Opened(owner='alice')")
    assert output_of(SUBSCRIBER, tmp_path / "data", "mailer").startswith("Opened(owner='alice')"), (
        "it was not asked for more"
    )


@pytest.mark.parametrize(
    ("number", "delay_s"), [(signal.SIGINT, 1.0), (signal.SIGINT, 1.5), (signal.SIGTERM, 1.5), (signal.SIGKILL, 1.0)]
)
def test_a_program_that_is_ended_while_its_runtime_starts_leaves_no_actor_and_no_server(
    tmp_path: Path, number: signal.Signals, delay_s: float
) -> None:
    with start_driver("-c", MAKER, str(tmp_path / "data")) as driver:
        try:
            driver.wait(delay_s)
        except subprocess.TimeoutExpired:
            processes = processes_below(driver.pid)
            driver.send_signal(number)
        else:
            pytest.fail("it ended before the signal came")
        assert driver.wait(60) != 0
    wait_until_gone(processes)


def test_only_what_ray_has_started_under_the_mark_is_ended() -> None:
    mark = f"test-{os.getpid()}"
    sleeping = [sys.executable, "-c", "import sys; sys.stdin.read()"]

    def started(**variables: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(sleeping, stdin=subprocess.PIPE, env={**os.environ, **variables})

    others = [
        started(),
        started(**{MARK: mark}),
        started(RAY_RAYLET_PID="1"),
        started(**{MARK: "x"}, RAY_RAYLET_PID="1"),
    ]
    worker = started(**{MARK: mark}, RAY_RAYLET_PID="1")
    try:
        assert end_marked(mark, "/no/such/folder/") == 1
        assert worker.wait(10) == -signal.SIGKILL
        assert [one.poll() for one in others] == [None] * 4
    finally:
        for one in [*others, worker]:
            one.communicate()


def test_a_ray_that_does_not_come_up_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "no folder").write_text("")
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path / "no folder")}
    told = subprocess.run(
        [sys.executable, "-c", NO_RAY, str(tmp_path / "bank")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told.stdout.startswith("the Ray of this program: does not come up: "), told
    assert "Traceback" not in told.stderr


def test_ctrl_c_while_a_runtime_stops_prints_the_traceback_of_the_program_and_nothing_else(tmp_path: Path) -> None:
    with start_driver("-c", INTERRUPTED_STOP, str(tmp_path / "store")) as driver:
        out, errors = driver.communicate(timeout=120)
    assert out == "stops\n"
    assert errors.splitlines()[0] == "Traceback (most recent call last):"
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert errors.count("Traceback") == 1
    assert "Task" not in errors
    assert "raylet" not in errors


def test_a_program_whose_start_is_interrupted_ends_although_ray_does_not_come_up(tmp_path: Path) -> None:
    assert output_of(INTERRUPTED_START, tmp_path / "store") == "interrupted\n"


def test_a_runtime_whose_start_was_interrupted_is_started_again(tmp_path: Path) -> None:
    assert output_of(OPENED_AGAIN, tmp_path / "store") == "1\n"


def test_a_forked_child_uses_the_system_of_its_parent_by_path_and_is_refused_one_of_its_own(tmp_path: Path) -> None:
    version, *refused = output_of(FORKED, tmp_path).splitlines()
    assert version == "2"
    assert refused == 2 * [
        "which has used Ray, and so it can neither start a Ray nor join one; connect to a system that runs, or start "
        'children with multiprocessing.get_context("spawn")'
    ]
