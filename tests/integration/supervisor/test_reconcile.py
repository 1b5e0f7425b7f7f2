"""The reconciler against a real supervisord, real processes, cgroups and mounts: adopts, frees, and says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kuasar.agent import kernel
from kuasar.core import cgroup, tombstones
from kuasar.core.process import start_time
from kuasar.core.trees import mounts_below
from tests import needs
from tests.integration.supervisor.stack import PATIENCE, Stack

pytestmark = needs.ROOT


class Command:
    """``python -m kuasar.supervisor.reconcile`` for one stack, with a cache directory of its own."""

    def __init__(self, stack: Stack) -> None:
        self.cache = Path(stack.directory, "cache")
        config = Path(stack.directory, "reconcile.toml")
        config.write_text(f'cache_dir = "{self.cache}"\n' + Path(stack.directory, "kuasar.toml").read_text())
        self.argv = [sys.executable, "-m", "kuasar.supervisor.reconcile", "--config", str(config), "--confirm", "0.05"]

    def __call__(self, *arguments: str, code: int = 0) -> list[tuple[str, str, str, str]]:
        """(verb, sandbox, name, error) of every step."""
        done = subprocess.run(
            [*self.argv, "--json", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert report["dry_run"] is ("--dry-run" in arguments)
        return [(each["verb"], each["sandbox"], each["name"], each["error"]) for each in report["actions"]]


@pytest.fixture
def command(stack: Stack) -> Command:
    return Command(stack)


class Orphan:
    """A sandbox whose worker and record are gone: a directory with a mount, a process in a cgroup, a log."""

    def __init__(self, stack: Stack, sandbox: str, cwd: str | None = None) -> None:
        self.directory = Path(stack.config.sandboxes_dir, sandbox)
        self.volume = Path(stack.directory, "volume")
        self.target = self.directory / "shared"
        self.cgroup = f"/kuasar-test-{os.getpid()}/kuasar-{sandbox}"
        self.log = Path(stack.config.sandbox_log_dir, f"{sandbox}.agent.log")
        self.volume.mkdir()
        (self.volume / "precious").write_text("data")
        self.target.mkdir(parents=True)
        (self.directory / "generation").write_text("1")
        kernel.mount(str(self.volume), str(self.target), "", kernel.MS_BIND)
        cgroup.create(self.cgroup)
        with self.log.open("ab") as log:
            log.write(b"last words\n")
            self.process = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        cgroup.enter(self.cgroup, self.process.pid)

    def steps(self) -> list[tuple[str, str, str]]:
        name = self.directory.name
        return [
            ("kill", name, str(self.process.pid)),
            ("destroy-cgroup", name, self.cgroup),
            ("unmount", name, str(self.target)),
            ("remove", name, str(self.log)),
            ("remove", name, ""),
        ]

    def is_whole(self) -> bool:
        runs = self.process.poll() is None and cgroup.exists(self.cgroup)
        return runs and mounts_below(str(self.directory)) == [str(self.target)] and self.log.exists()

    def require_gone(self) -> None:
        self.process.wait(PATIENCE)
        assert not cgroup.exists(self.cgroup)
        assert mounts_below(str(self.directory)) == []
        assert not self.directory.exists()
        assert not self.log.exists()
        assert (self.volume / "precious").read_text() == "data"


@contextmanager
def orphan(stack: Stack, sandbox: str) -> Iterator[Orphan]:
    made = Orphan(stack, sandbox)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        for path in mounts_below(str(made.directory)):
            kernel.umount(path)
        for root in cgroup.current().roots():
            for path in (f"{root}{made.cgroup}", f"{root}{os.path.dirname(made.cgroup)}"):
                if os.path.isdir(path):
                    os.rmdir(path)


def test_all_is_in_order(stack: Stack, command: Command) -> None:
    stack.record("s1")
    stack.add("s1")
    assert command() == []


def test_a_recorded_sandbox_gets_a_worker(stack: Stack, command: Command) -> None:
    stack.record("s1")
    assert command("--dry-run") == [("adopt", "s1", "s1", "")]
    assert stack.client.states() == []
    assert command() == [("adopt", "s1", "s1", "")]
    assert stack.control.next("s1").pid == stack.client.state("s1")["pid"]
    assert command() == []


def test_an_orphan_is_freed_and_has_a_tombstone(stack: Stack, command: Command) -> None:
    with orphan(stack, "o1") as left:
        assert [step[:3] for step in command("--dry-run")] == left.steps()
        assert left.is_whole()
        assert command() == [(*step, "") for step in left.steps()]
        left.require_gone()
        assert command() == []
    buried = tombstones.read_all(stack.config.state_dir)
    assert [(each.sandbox, each.phase, each.log) for each in buried] == [("o1", "reconciled", ["last words"])]
    assert "neither a record nor a worker" in buried[0].reason


def test_what_blocks_is_named_and_the_next_round_succeeds(stack: Stack, command: Command) -> None:
    with orphan(stack, "o1") as left:
        with subprocess.Popen(["sleep", "1000"], cwd=left.target) as user:
            try:
                failed = {step[:3]: step[3] for step in command(code=1) if step[3]}
                assert set(failed) == {("unmount", "o1", str(left.target)), ("remove", "o1", "")}
                assert all(f"process {user.pid} (sleep)" in error for error in failed.values())
                assert not cgroup.exists(left.cgroup)
            finally:
                user.kill()
        assert [step[0] for step in command()] == ["unmount", "remove"]
        left.require_gone()


def test_what_has_a_worker_is_left_alone(stack: Stack, command: Command) -> None:
    with orphan(stack, "o1") as left:
        stack.add("o1")
        assert command() == []
        assert left.is_whole()


def test_what_has_no_directory_here_may_be_another_stacks(stack: Stack, command: Command) -> None:
    log = Path(stack.config.sandbox_log_dir, "other.agent.log")
    with log.open("ab") as output, subprocess.Popen(["sleep", "1000"], stdout=output) as process:
        try:
            assert command() == []
            assert process.poll() is None
            assert log.exists()
        finally:
            process.kill()


def test_a_damaged_record_is_set_aside_and_everything_freed(stack: Stack, command: Command) -> None:
    with orphan(stack, "o1") as left:
        stack.add("o1")
        damaged = left.directory / "sandbox.msgpack.damaged"
        damaged.write_text("rubbish")
        assert command() == [("set-aside", "o1", str(damaged), ""), ("retire", "o1", "o1", "")]
        assert Path(stack.config.state_dir, "damaged", "o1.msgpack").read_text() == "rubbish"
        stack.daemon.wait_line("the sandbox is gone, its worker is forgotten")
        assert command() == [(*step, "") for step in left.steps()]
        left.require_gone()


def test_a_half_made_template_goes_and_one_in_the_making_stays(stack: Stack, command: Command) -> None:
    import fcntl

    templates = command.cache / "qemu" / "templates"
    for key in ("dead", "busy"):
        (templates / f"{key}.new-7").mkdir(parents=True)
        (templates / f"{key}.new-7" / "memory").write_bytes(b"x")
        (templates / f"{key}.lock").touch()
    (templates / "whole").mkdir()
    with (templates / "busy.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command() == [("remove", "", str(templates / "dead.new-7"), "")]
    assert sorted(path.name for path in templates.iterdir()) == ["busy.lock", "busy.new-7", "dead.lock", "whole"]


def test_without_supervisord_nothing_is_anybodys(stack: Stack, command: Command) -> None:
    with orphan(stack, "o1") as left:
        stack.daemon.stop()
        assert command(code=1) == []
        assert left.is_whole()
        stack.restart()
        command()
        left.require_gone()


def test_the_service_comes_round_and_ends_with_its_parent(stack: Stack, command: Command) -> None:
    keeps_going = [*command.argv, "--every", "0.1"]
    parent = subprocess.Popen(
        ["sh", "-c", '"$@" 2>/dev/null & echo $!; wait', "sh", *keeps_going], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    service = int(parent.stdout.readline())
    try:
        stack.record("s1")
        stack.control.next("s1")
        stack.record("s2")
        stack.control.next("s2")
    finally:
        parent.kill()
        parent.wait()
    pipe = parent.stdout.read()  # until the service, which has it too, has ended
    parent.stdout.close()
    assert pipe == ""
    assert start_time(service) is None or Path(f"/proc/{service}/cmdline").read_bytes() == b""
