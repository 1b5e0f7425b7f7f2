"""Workers under a real supervisord: added, killed, crashing, stopped by hand, removed."""

from __future__ import annotations

import os
import resource
import signal
import statistics
import time
from pathlib import Path

import pytest

from kuasar.core.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable, WrongState
from tests import failpoints
from tests.integration.supervisor.stack import LOG_BYTES, Peer, Stack, wait_pidfd


def test_twenty_workers_are_supervisords_own_children(stack: Stack) -> None:
    peers: dict[str, Peer] = {}
    took = []
    for sandbox in (f"w{n:02}" for n in range(20)):
        started = time.monotonic()
        peers[sandbox] = stack.add(sandbox)
        took.append(peers[sandbox].facts["ready"] - started)
    for sandbox, peer in peers.items():
        facts = peer.facts
        assert facts["ppid"] == stack.daemon.process.pid
        assert facts["sid"] == facts["pid"] == peer.pid
        assert facts["threads"] == 1
        assert facts["fds"] == [0, 1, 2]
        assert facts["stdin"] == "/dev/null"
        assert facts["sigchld"]
        assert facts["sigterm"]
        assert facts["cmdline"] == f"kuasar-worker {sandbox}\0"
        assert facts["comm"] == "kuasar-worker"
    states = stack.client.states()
    assert stack.client.counts() == {"RUNNING": len(states)}
    assert [(state["id"], state["pid"], state["state"], state["started_by"]) for state in states] == [
        (sandbox, peer.pid, "RUNNING", "zygote") for sandbox, peer in peers.items()
    ]
    assert all(f"sandbox:{sandbox}" in (status := stack.ctl("status")) for sandbox in peers), status
    assert statistics.median(took) < 1.0  # measured: 0.005


def test_adding_again_gives_the_same_worker(stack: Stack) -> None:
    peer = stack.add("a")
    assert stack.client.add("a") == peer.pid
    assert len(stack.client.states()) == 1


def test_a_killed_worker_is_replaced_at_once(stack: Stack) -> None:
    took = []
    for n in range(5):
        peer = stack.add(f"k{n}")
        started = time.monotonic()
        os.kill(peer.pid, signal.SIGKILL)
        successor = stack.control.next(f"k{n}")
        took.append(successor.facts["ready"] - started)
        state = stack.client.state(f"k{n}")
        assert state["pid"] == successor.pid != peer.pid
        assert (state["restarts"], state["last_exit"]) == (1, "killed by SIGKILL")
    assert min(took) < 0.5  # measured: 0.005; a supervisord that does not wake takes 1 to 2 s


def test_twenty_workers_killed_at_once_are_replaced(stack: Stack) -> None:
    names = [f"m{n}" for n in range(20)]
    before = {name: stack.add(name) for name in names}
    for peer in before.values():
        os.kill(peer.pid, signal.SIGKILL)
    after = {name: stack.control.next(name) for name in names}
    assert {name: peer.pid for name, peer in after.items()} == {s["id"]: s["pid"] for s in stack.client.states()}
    assert not {peer.pid for peer in before.values()} & {peer.pid for peer in after.values()}


def test_exit_zero_means_the_sandbox_is_gone(stack: Stack) -> None:
    stack.add("g").tell("exit 0")
    stack.daemon.wait_line("sandbox:g: the sandbox is gone")
    with pytest.raises(NotFound, match="g"):
        stack.client.state("g")
    assert "sandbox:g" not in stack.ctl("status")
    assert stack.add("g").pid  # the id is free again


def test_another_exit_code_is_a_crash_with_its_words(stack: Stack) -> None:
    stack.add("c").tell("exit 7")
    stack.control.next("c")
    assert stack.client.state("c")["last_exit"] == "exited with 7"
    log = Path(stack.config.sandbox_log_dir, "c.log").read_text()
    assert "supervisor: the worker exited with 7 after" in log


def test_an_exception_is_in_the_log_and_a_crash(stack: Stack) -> None:
    stack.add("x").tell("raise so it goes")
    stack.control.next("x")
    assert stack.client.state("x")["last_exit"] == "exited with 70"
    assert "RuntimeError: so it goes" in Path(stack.config.sandbox_log_dir, "x.log").read_text()


def test_a_crash_loop_backs_off_and_shows(stack: Stack) -> None:
    """It is looked at while it waits for 1.6 s, so that a busy machine has the time to."""
    started = time.monotonic()
    stack.client.add("loop")
    line = stack.daemon.wait_line(r"sandbox:loop: .*\(8 short lives in a row\)")
    assert "the worker exited with 3 after 0.0 s" in line
    assert "started again in 1.6 s" in line
    state = stack.client.state("loop")
    assert (state["state"], state["pid"], state["restarts"]) == ("BACKOFF", 0, 7)
    assert state["last_exit"] == "exited with 3"
    assert "exited with 3 after 0.0 s (8 short lives in a row)" in state["description"]
    assert "BACKOFF" in (status := stack.ctl("status", "sandbox:loop")), status
    assert "exited with 3" in status
    with pytest.raises(Unavailable, match=r"does not stay up.*exited with 3"):
        stack.client.add("loop")
    stack.daemon.wait_line(r"\(9 short lives in a row\)")
    assert time.monotonic() - started > 0.1 + 0.2 + 0.4 + 0.8 + 1.6
    assert stack.client.remove("loop")
    with pytest.raises(NotFound):
        stack.client.state("loop")


def test_an_operators_stop_is_respected(stack: Stack) -> None:
    peer, other = stack.add("s"), stack.add("other")
    stack.record("s")
    assert "stopped" in stack.ctl("stop", "sandbox:s")
    peer.wait_end()
    os.kill(other.pid, signal.SIGKILL)
    stack.control.next("other")  # the loop has gone round, and s was left alone
    state = stack.client.state("s")
    assert (state["state"], state["pid"], state["stopped_by_operator"]) == ("STOPPED", 0, True)
    assert "STOPPED" in stack.ctl("status", "sandbox:s")
    with pytest.raises(WrongState, match="operator"):
        stack.client.add("s")

    assert "started" in stack.ctl("start", "sandbox:s")
    again = stack.control.next("s")
    assert not stack.client.state("s")["stopped_by_operator"]
    stack.ctl("restart", "sandbox:s")
    again.wait_end()
    assert stack.control.next("s").pid == stack.client.state("s")["pid"]
    assert stack.client.state("s")["restarts"] == 0


def test_a_stopped_crash_loop_stays_stopped(stack: Stack) -> None:
    stack.client.add("loop2")
    stack.daemon.wait_line(r"sandbox:loop2: .*\(5 short lives in a row\)")
    stack.ctl("stop", "sandbox:loop2")
    assert stack.client.state("loop2")["stopped_by_operator"]
    assert stack.client.state("loop2")["state"] == "STOPPED"


def test_signal_works_and_is_no_stop(stack: Stack) -> None:
    peer = stack.add("sig")
    assert "signalled" in stack.ctl("signal", "KILL", "sandbox:sig")
    peer.wait_end()
    assert stack.control.next("sig").pid != peer.pid


def test_tail_shows_the_workers_own_log(stack: Stack) -> None:
    one, two = stack.add("t1"), stack.add("t2")
    one.ask("print hello from one")
    two.ask("print hello from two")
    stack.client.states()  # supervisord has read its pipes before it answers this
    assert "hello from one" in (shown := stack.ctl("tail", "sandbox:t1"))
    assert "hello from two" not in shown


def test_tail_follows(stack: Stack) -> None:
    peer = stack.add("f")
    with stack.ctl_process("tail", "-f", "sandbox:f") as tail:
        assert tail.stdout is not None
        assert "Ctrl-C" in tail.stdout.readline()
        peer.ask("print first words")
        assert any("first words" in line for line in iter(tail.stdout.readline, ""))
        tail.terminate()


def test_the_log_is_rotated(stack: Stack) -> None:
    peer = stack.add("rot")
    for _ in range(3):
        peer.ask("print " + "x" * (LOG_BYTES // 2))
    stack.client.states()
    sizes = {path.name: path.stat().st_size for path in Path(stack.config.sandbox_log_dir).iterdir()}
    assert sizes.keys() == {"rot.log", "rot.log.1"}
    assert max(sizes.values()) <= LOG_BYTES * 2


def test_remove_ends_the_worker(stack: Stack) -> None:
    peer = stack.add("r")
    assert not stack.client.remove("r")
    peer.wait_end()
    stack.daemon.wait_line("sandbox:r: the sandbox is gone")
    assert stack.client.remove("r")
    with pytest.raises(NotFound):
        stack.client.state("r")


def test_a_worker_told_to_stop_may_say_that_the_sandbox_is_gone(stack: Stack) -> None:
    record = stack.record("p")
    stack.add("p").ask("polite")
    stack.ctl("stop", "sandbox:p")
    assert stack.client.state("p")["stopped_by_operator"]  # it exited with 0, but its record is there
    stack.ctl("start", "sandbox:p")
    stack.control.next("p").ask("polite")
    record.unlink()
    stack.ctl("stop", "sandbox:p")
    with pytest.raises(NotFound):
        stack.client.state("p")


@pytest.mark.parametrize("sandbox", ["", "../x", "a/b", "-a", "a b", "x" * 1000, "a\n"])
def test_bad_ids_are_refused(stack: Stack, sandbox: str) -> None:
    for method in (stack.client.add, stack.client.remove, stack.client.state):
        with pytest.raises(InvalidArgument, match="id: "):
            method(sandbox)


def test_orphans_are_adopted_without_alarm(stack: Stack) -> None:
    adopted_by = int(stack.add("o").ask("orphan"))
    assert adopted_by == stack.daemon.process.pid
    stack.close()
    assert "unknown pid" not in stack.daemon.log


def test_a_program_of_the_file_that_is_killed_comes_back(stack: Stack) -> None:
    gateway = stack.control.next("gateway")
    os.kill(gateway.pid, signal.SIGKILL)
    assert stack.control.next("gateway").pid != gateway.pid


def test_nothing_of_ours_outlives_supervisord(stack: Stack) -> None:
    workers = [stack.add(f"d{n}") for n in range(3)]
    gateway = stack.control.next("gateway")
    zygote = os.pidfd_open(int(stack.ctl("pid", "zygote")))
    os.kill(stack.daemon.process.pid, signal.SIGKILL)
    for peer in (*workers, gateway):
        peer.wait_end()
    wait_pidfd(zygote)
    assert stack.daemon.wait_end() == -signal.SIGKILL


def test_the_client_says_that_supervisord_is_away_and_finds_it_again(stack: Stack) -> None:
    stack.add("one")
    stack.daemon.stop()
    with pytest.raises(Unavailable, match="away"):
        stack.client.add("two")
    stack.restart()
    assert stack.add("two").pid


def test_no_worker_is_started_for_which_supervisord_has_no_descriptors(stack: Stack) -> None:
    worker = stack.add("s1")
    pid = stack.daemon.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")) + 20, before[1]))
    with pytest.raises(ResourceExhausted, match=r"a worker for sandbox s2: .* descriptors"):
        stack.client.add("s2")
    assert [state["id"] for state in stack.client.states()] == ["s1"]
    # the dead are still replaced
    os.kill(worker.pid, signal.SIGKILL)
    assert stack.control.next("s1").pid != worker.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    stack.add("s2")


@pytest.mark.parametrize("point", ["plugin.request", "plugin.added"])
def test_supervisord_dies_while_a_worker_is_added(stack: Stack, point: str) -> None:
    """Whoever asked hears that it is away, asks the next one, and gets one worker."""
    failpoints.arm(f"{stack.config.state_dir}/failpoints", point, "kill times=1")
    with pytest.raises(Unavailable):
        stack.client.add("s1")
    stack.daemon.wait_end()
    stack.restart()
    assert stack.client.add("s1") == stack.client.state("s1")["pid"]
    assert [state["id"] for state in stack.client.states()] == ["s1"]
