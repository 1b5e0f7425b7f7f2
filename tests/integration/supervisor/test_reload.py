"""What configuration changes, reloads and restarts of supervisord do to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kuasar.core.errors import NotFound
from tests.integration.supervisor.stack import ROOT, Stack, wait_pidfd


def test_reread_and_update_leave_the_workers_alone(stack: Stack) -> None:
    peer = stack.add("u")
    assert "sandbox" not in stack.ctl("reread")
    assert "sandbox" not in stack.ctl("update")
    extra = Path(stack.directory, "supervisord.d", "extra.conf")
    extra.parent.mkdir()
    extra.write_text("[program:extra]\ncommand = sleep 1000\n[group:sandbox]\nprograms = extra\n")
    assert "ERROR" not in (shown := stack.ctl("update")), shown
    state = stack.client.state("u")
    assert (state["pid"], state["state"]) == (peer.pid, "RUNNING")


def test_update_still_works_for_other_programs(stack: Stack) -> None:
    peer = stack.add("u")
    extra = Path(stack.directory, "supervisord.d", "extra.conf")
    extra.parent.mkdir()
    extra.write_text("[program:extra]\ncommand = sleep 1000\nstartsecs = 0\nautorestart = false\n")
    assert "extra: added process group" in stack.ctl("update")
    assert "RUNNING" in stack.ctl("status", "extra")
    extra.unlink()
    assert "extra: removed process group" in stack.ctl("update")
    assert stack.client.state("u")["pid"] == peer.pid


def test_removing_the_empty_group_does_no_harm(stack: Stack) -> None:
    assert "removed process group" in stack.ctl("remove", "sandbox")
    assert stack.add("n").pid


def test_reload_replays_the_directories(stack: Stack) -> None:
    kept, lost = stack.add("kept"), stack.add("lost")
    stack.record("kept")
    stack.record("new")
    for name in ("empty", "_bad", "bad..name"):
        Path(stack.config.sandboxes_dir, name).mkdir()
    Path(stack.config.sandboxes_dir, "_bad", "sandbox.msgpack").touch()
    Path(stack.config.sandboxes_dir, "file").touch()
    stack.ctl("reload")
    for peer in (kept, lost):
        peer.wait_end()
    stack.wait_up()
    for name in ("kept", "new"):
        peer = stack.control.next(name)
        assert peer.facts["ppid"] == stack.daemon.process.pid
    assert [(s["id"], s["state"], s["started_by"], s["restarts"]) for s in stack.client.states()] == [
        (name, "RUNNING", "zygote", 0) for name in ("kept", "new")
    ]
    os.kill(stack.client.state("kept")["pid"], 9)
    stack.control.next("kept")  # the new plugin's wake-up works as the old one's did
    with pytest.raises(NotFound):
        stack.client.state("lost")


def test_a_new_supervisord_replays_the_directories(stack: Stack) -> None:
    stack.record("kept")
    peer = stack.add("kept")
    os.kill(stack.daemon.process.pid, 9)
    peer.wait_end()
    stack.daemon.wait_end()
    stack.restart()
    assert stack.control.next("kept").pid == stack.client.state("kept")["pid"]
    assert stack.client.state("kept")["started_by"] == "zygote"


def test_without_a_zygote_the_replay_executes(directory: str, no_leaks: None) -> None:
    stack = Stack(directory, zygote=False)
    try:
        stack.record("kept")
        stack.daemon.stop()
        stack.restart()
        peer = stack.control.next("kept")
        assert stack.client.state("kept")["started_by"] == "exec"
        assert peer.facts["fds"] == [0, 1, 2]
        os.kill(stack.daemon.process.pid, 9)
        peer.wait_end()  # executed ones die with supervisord, too
    finally:
        stack.close()


def test_supervisord_as_a_daemon(directory: str, no_leaks: None) -> None:
    stack = Stack(directory, daemon=False)
    subprocess.run([sys.executable, "-m", "supervisor.supervisord", "-c", stack.conf], cwd=ROOT, check=True)
    try:
        daemon = int(stack.ctl("pid"))
        peer = stack.add("d")  # the first by exec or zygote, whichever is ready
        assert peer.facts["ppid"] == daemon
        assert int(peer.ask("orphan")) == daemon  # a subreaper still, after the fork that made it a daemon
        os.kill(peer.pid, signal.SIGKILL)
        assert stack.control.next("d").facts["ppid"] == daemon
    finally:
        pidfd = os.pidfd_open(daemon)
        stack.ctl("shutdown")
        wait_pidfd(pidfd)
        stack.close()
