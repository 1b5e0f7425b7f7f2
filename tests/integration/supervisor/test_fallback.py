"""supervisord without a zygote that answers: workers are executed, agents live on."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from kuasar.supervisor import zygote_client
from kuasar.supervisor.worker import STOP_SECONDS
from kuasar.supervisor.zygote_wire import CLONE_NEWPID
from tests.integration.supervisor.stack import PATIENCE, Stack, wait_pidfd


def test_workers_are_executed_while_the_zygote_is_away(stack: Stack) -> None:
    before = stack.add("before")
    stack.ctl("stop", "zygote")
    executed = stack.add("executed")
    assert executed.facts["ppid"] == stack.daemon.process.pid
    assert executed.facts["fds"] == [0, 1, 2]
    assert stack.client.state("executed")["started_by"] == "exec"
    stack.daemon.wait_line("sandbox:executed: .*is away.*executing it instead")
    before.ask("print alive")

    stack.ctl("start", "zygote")
    stack.daemon.wait_line("zygote announced itself")
    os.kill(executed.pid, signal.SIGKILL)
    assert stack.control.next("executed").facts["cmdline"] == "kuasar-worker executed\0"
    assert stack.client.state("executed")["started_by"] == "zygote"


def test_a_killed_zygote_comes_back_and_harms_nobody(stack: Stack) -> None:
    workers = [stack.add(f"z{n}") for n in range(3)]
    os.kill(int(stack.ctl("pid", "zygote")), signal.SIGKILL)
    stack.daemon.wait_line("zygote announced itself")
    for n, worker in enumerate(workers):
        worker.ask("print alive")
        assert stack.client.state(f"z{n}")["restarts"] == 0
    assert stack.add("after").facts["cmdline"] == "kuasar-worker after\0"


def test_a_hung_zygote_stops_the_loop_once_only(stack: Stack) -> None:
    pid = int(stack.ctl("pid", "zygote"))
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for n in range(5):
            stack.add(f"h{n}")
            assert stack.client.state(f"h{n}")["started_by"] == "exec"
        took = time.monotonic() - started
    finally:
        os.kill(pid, signal.SIGCONT)
    stack.daemon.wait_line("sandbox:h0: .*did not answer within 1 s")
    stack.daemon.wait_line("sandbox:h4: .*did not answer a moment ago")
    assert took < 5 * 1.0  # one time-out, not five
    for n in range(5):
        assert stack.client.state(f"h{n}")["restarts"] == 0  # the clones it makes on waking up have ended unseen


@pytest.mark.root
def test_agents_outlive_everything(stack: Stack) -> None:
    stack.add("a")
    with socket.socket(socket.AF_UNIX) as listener, open(f"{stack.directory}/agent.log", "wb") as log:
        args = {"name": "agent", "control": f"{stack.config.state_dir}/control.sock"}
        request = {"kind": "agent", "title": "kuasar-agent a", "args": args, "flags": CLONE_NEWPID}
        fds = [listener.fileno(), log.fileno()]
        with zygote_client.fork(stack.config.supervisor.zygote, request, fds, PATIENCE) as clone:
            pidfd = os.pidfd_open(clone.pid)
            clone.commit()
    try:
        agent = stack.control.next("agent")
        os.kill(stack.daemon.process.pid, signal.SIGKILL)
        stack.daemon.wait_end()
        agent.ask("print alone")
        stack.restart()
        agent.ask("print still alone")
        stack.ctl("reload")
        stack.wait_up()
        agent.ask("print for ever")
    finally:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_pidfd(pidfd)


def test_a_stop_that_comes_before_the_program_is_executed_is_not_lost(stack: Stack) -> None:
    stack.ctl("stop", "zygote")
    started = time.monotonic()
    for n in range(5):
        stack.client.add(f"q{n}")
        stack.client.remove(f"q{n}")
        stack.daemon.wait_line(f"sandbox:q{n}: the sandbox is gone")
    assert time.monotonic() - started < STOP_SECONDS  # a lost SIGTERM is made good by the SIGKILL after this time
