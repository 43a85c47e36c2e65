"""Sessions of processes: found after their leader has ended, never mistaken for others, ended without one left over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rayfold.actors.cluster.node import DATA_VARIABLE
from rayfold.actors.cluster.processes import Session, end_sessions

pytestmark = pytest.mark.slow

# A leader with a child in a process group of its own, as Ray's workers are; both take SIGTERM and go on.
PROGRAM = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setpgid(0, 0)
    print("up", flush=True)
signal.pause()
"""


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, DATA_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        session = Session.led_by(process.pid, tmp_path)
        yield process
        end_sessions([session], grace_s=0)


def test_all_processes_of_a_session_are_found_and_ended(leader: subprocess.Popen[bytes], tmp_path: Path) -> None:
    session = Session.led_by(leader.pid, tmp_path)
    assert session.leads()
    assert len(session.members()) == 2
    assert end_sessions([session], grace_s=0.05) == []
    assert (session.leads(), session.members()) == (False, [])


def test_what_a_killed_leader_leaves_behind_is_found(leader: subprocess.Popen[bytes], tmp_path: Path) -> None:
    session = Session.led_by(leader.pid, tmp_path)
    leader.kill()
    leader.wait()
    assert not session.leads()
    assert len(session.members()) == 1
    assert replace(session, data_folder="/elsewhere").members() == []
    assert end_sessions([session], grace_s=0) == []
    assert session.members() == []


# A leader with a child whose first thread ends alone, by the system call: a zombie by `/proc`, without an environment,
# while its other thread holds what the process held.
HALF_ENDED = """
import ctypes, os, signal, threading
if os.fork() == 0:
    threading.Thread(target=threading.Event().wait).start()
    print(os.getpid(), flush=True)
    ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread
signal.pause()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of the system call is that of x86-64")
def test_a_process_that_is_ending_is_there_until_its_last_thread_has_ended(tmp_path: Path) -> None:
    environment = {**os.environ, DATA_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-c", HALF_ENDED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, start_new_session=True) as process:
        assert process.stdout is not None
        session = Session.led_by(process.pid, tmp_path)
        child = int(process.stdout.readline())
        try:
            while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                pass
            assert session.members() == [process.pid, child]
            process.kill()
            process.wait()
            assert session.members() == [child]
            assert end_sessions([session], grace_s=0) == []
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        assert session.members() == []


def test_a_number_that_now_belongs_to_another_process_is_left_alone(
    leader: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    session = Session.led_by(leader.pid, tmp_path)
    for other in (replace(session, started=session.started - 1), replace(session, boot_id="of another day")):
        assert (other.leads(), other.members()) == (False, [])
        assert other.signal(signal.SIGKILL) == 0
        assert end_sessions([other], grace_s=0) == []
    assert len(session.members()) == 2


def test_a_process_that_has_ended_leads_no_session(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with pytest.raises(ProcessLookupError, match=f"process {ended.pid} has ended"):
        Session.led_by(ended.pid, tmp_path)
