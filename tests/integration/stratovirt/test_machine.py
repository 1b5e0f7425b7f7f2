"""A StratoVirt as the worker starts it: the stand-in as VMM, the real agent as its guest."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from pathlib import Path

import pytest

from kuasar.backends.stratovirt.argv import AGENT_SOCKET, QMP_SOCKET
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError, Unavailable
from tests.integration.agent.harness import running_agent
from tests.integration.stratovirt.rig import Rig, raw_client, read_line
from tests.needs import ROOT

pytestmark = ROOT
RUNC = pytest.mark.skipif(
    shutil.which("runc") is None, reason="runc is not installed: the agent makes containers by it"
)
CALLS = ["query-status", "stop", "balloon"]


@RUNC
def test_the_agent_of_a_machine_answers(rig: Rig) -> None:
    (rig.directory / "agent").mkdir()
    with running_agent(rig.directory / "agent", f"t{uuid.uuid4().hex[:8]}") as agent:
        rig.boot(rig.stand_in(STANDIN_AGENT=agent.socket_path))
        for _ in range(2):  # a successor connects anew
            client = rig.loop.run(rig.machine.open_channel(time.monotonic() + 60.0))
            answer = client.call("setup", {"hostname": "pod", "sysctls": {}, "shm_bytes": 0}, deadline=None)
            assert isinstance(rig.loop.run(answer), dict)
            client.close()
        rig.loop.run(rig.machine.reconnect(time.monotonic() + 60.0))
        rig.loop.run(rig.machine.quit())
        assert rig.loop.run(rig.process.ended_by(time.monotonic() + 60.0))
    assert not {QMP_SOCKET, AGENT_SOCKET} & set(os.listdir(rig.directory))


def test_a_guest_that_never_listens_costs_the_deadline(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    with pytest.raises(DeadlineExceeded, match="serial port"):
        rig.loop.run(rig.machine.open_channel(time.monotonic() + 0.3))


def test_a_machine_is_paused_and_goes_on(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    rig.execute("stop")
    assert rig.execute("query-status") == {"running": False, "singlestep": False, "status": "paused"}
    with pytest.raises(BackendFailed, match="QMP stop"):
        rig.execute("stop")
    rig.execute("cont")
    assert rig.execute("query-status")["running"]
    assert [name for name, _ in rig.events] == ["STOP", "RESUME"]


def test_commands_take_turns(rig: Rig) -> None:
    """StratoVirt takes what it reads at once for one command."""
    rig.boot(rig.stand_in())
    tasks = [rig.loop.spawn(rig.machine.monitor.execute("query-status"), f"{number}") for number in range(30)]

    async def all_of_them() -> list[bool]:
        return [(await task)["running"] for task in tasks]

    assert rig.loop.run(all_of_them()) == [True] * 30
    assert rig.journal == [("query-status", {})] * 30


def test_two_commands_at_once_are_none(rig: Rig) -> None:
    """The stand-in is as strict as the vendor."""
    rig.boot(rig.stand_in())
    rig.machine.disconnect_monitor()
    with raw_client(rig.directory) as sock:
        sock.sendall(b'{"execute":"query-status","id":"1"}\n{"execute":"query-status","id":"2"}\n')
        assert b'"error"' in read_line(sock)
        sock.sendall(b'{"execute":"query-status","id":"3"}\n')
        assert b'"id":"3"' in read_line(sock)


# -- what can go wrong -------------------------------------------------------------------------------------------------


def test_a_program_that_ends_at_once(rig: Rig) -> None:
    with pytest.raises(Unavailable, match="StratoVirt ended before its monitor could be reached"):
        rig.boot(rig.stand_in({"start": "fail"}))
    assert "told to fail by the test" in rig.log
    rig.end()
    assert not {QMP_SOCKET, AGENT_SOCKET} & set(os.listdir(rig.directory))


def test_a_monitor_that_never_appears(rig: Rig) -> None:
    with pytest.raises(DeadlineExceeded, match="StratoVirt's monitor socket does not appear"):
        rig.boot(rig.stand_in({"start": "hang"}), seconds=1.0)


@pytest.mark.parametrize("fault", ["die", "garble", "truncate"])
def test_a_monitor_that_does_not_greet(rig: Rig, fault: str) -> None:
    with pytest.raises((Unavailable, BackendFailed), match="connecting to StratoVirt"):
        rig.boot(rig.stand_in({"greeting": fault}))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "fault, error, words",
    [
        ("fail", BackendFailed, r"QMP {}: told to fail by the test"),
        ("die", Unavailable, r"QMP {}: StratoVirt is gone"),
        ("garble", Unavailable, r"QMP {}: StratoVirt is gone"),
        ("truncate", Unavailable, r"QMP {}: StratoVirt is gone"),
    ],
)
def test_a_command_that_goes_wrong(rig: Rig, call: str, fault: str, error: type[KuasarError], words: str) -> None:
    rig.boot(rig.stand_in({call: fault}))
    arguments = {"value": 1 << 27} if call == "balloon" else {}
    with pytest.raises(error, match=words.format(call)):
        rig.execute(call, **arguments)


def test_a_command_that_hangs_costs_the_deadline(rig: Rig) -> None:
    rig.boot(rig.stand_in({"stop": "hang"}))
    with pytest.raises(DeadlineExceeded, match="QMP stop"):
        rig.loop.run(rig.machine.monitor.execute("stop", deadline=time.monotonic() + 0.3))
    rig.loop.run(rig.machine.quit())  # its turn never comes: the machine is killed then


def test_a_program_that_is_not_there(rig: Rig) -> None:
    with pytest.raises((BackendFailed, Unavailable)):
        rig.boot("/nonexistent/stratovirt", seconds=30.0)


def test_a_machine_that_ends_closes_its_port(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    channel = rig.loop.spawn(rig.machine.open_channel(time.monotonic() + 60.0), "channel")
    rig.loop.run(rig.machine.quit())
    assert rig.loop.run(rig.process.ended_by(time.monotonic() + 60.0))

    async def outcome() -> None:
        await channel

    with pytest.raises(KuasarError):
        rig.loop.run(outcome())


def test_asking_what_is_gone_to_quit_is_harmless(rig: Rig) -> None:
    rig.loop.run(rig.machine.quit())


def test_the_console_is_nobody_elses(rig: Rig) -> None:
    rig.boot(rig.stand_in())
    assert Path(rig.directory, "console").stat().st_mode & 0o777 == 0o600
