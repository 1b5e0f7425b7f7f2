"""``kuasarctl`` as a program, against a real gateway, real workers and a real supervisord."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from kuasar.api.gen.kuasar.admin.v1 import admin_pb2 as pb
from tests import needs
from tests.integration.gateway.node import SECONDS, Node, running
from tests.interrupts import INTERRUPTIBLE

pytestmark = needs.ROOT
IMAGE = needs.GUEST_IMAGE
ARGV = [sys.executable, "-m", "kuasar.cli.ctl.main"]


@pytest.fixture
def node() -> Iterator[Node]:
    with running() as made:
        made.admin.ListSandboxes(pb.ListSandboxesRequest(), timeout=SECONDS, wait_for_ready=True)
        yield made


def ctl(node: Node, *arguments: str, code: int = 0) -> str:
    argv = [*ARGV, "--config", node.toml, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def data(node: Node, *arguments: str, code: int = 0) -> Any:
    return json.loads(ctl(node, *arguments, "--json", code=code))


def test_a_life_as_an_operator_sees_it(node: Node) -> None:
    node.run("aaa1", "web")
    node.create("bbb2", "db")
    listing = data(node, "ps")
    assert (listing["source"], listing["note"]) == ("gateway", "")
    web, db = listing["sandboxes"]
    assert (web["state"], web["worker"], web["restarts"], db["state"]) == ("ready", "alive", 0, "created")
    assert ctl(node, "ps").splitlines()[1].split()[:4] == ["aaa1", "default/web", "runc", "ready"]

    assert data(node, "inspect", "web")["info"]["worker_pid"] == str(web["worker_pid"])
    assert f"alive (pid {web['worker_pid']})" in ctl(node, "inspect", "a")
    assert "launch" in [phase["name"] for phase in data(node, "timings", "aaa1")["phases"]]
    assert "started" in ctl(node, "logs", "web")
    assert ctl(node, "why", "web").startswith("sandbox aaa1 runs, since ")
    engines = {each["name"]: each for each in data(node, "engines")["engines"]}
    assert engines["runc"]["usable"]
    assert "no-runc does not exist" in engines["gone"]["reason"]
    assert ctl(node, "gc", "--dry-run") == "nothing to do\n"

    os.kill(web["worker_pid"], signal.SIGKILL)
    watch = node.admin.Watch(pb.WatchRequest(id="aaa1"), timeout=SECONDS)
    while node.admin.GetSandbox(pb.GetSandboxRequest(id="aaa1"), timeout=SECONDS).sandbox.generation != 2:
        pass  # the call waits for the successor
    assert "SIGKILL" in data(node, "why", "web")["worker"]["last_exit"]
    next(watch)
    os.kill(data(node, "inspect", "web")["machine_pid"], signal.SIGKILL)
    while next(watch).topic != "sandbox.exit":
        pass
    watch.cancel()
    assert data(node, "why", "web")["end"]["reason"] == "the agent died"
    node.remove("aaa1")
    assert "the agent died" in ctl(node, "why", "web")
    assert ctl(node, "inspect", "web", code=3) == ""


def test_log_levels_are_changed_in_running_processes(node: Node) -> None:
    node.run("aaa1", "web")
    node.create("bbb2", "db")
    assert [(each["process"], each["level"]) for each in data(node, "log-level")] == [("gateway", "info")]
    changed = data(node, "log-level", "debug", "--worker", "web")
    assert [(each["process"], each["sandbox"], each["level"]) for each in changed] == [
        ("worker", "aaa1", "debug"),
        ("agent", "aaa1", "debug"),
    ]
    assert data(node, "log-level")[0]["level"] == "info"
    everyone = data(node, "log-level", "error", "--all")
    assert [(each["process"], each["sandbox"]) for each in everyone] == [
        *(("gateway", ""), ("worker", "aaa1"), ("agent", "aaa1"), ("worker", "bbb2")),
    ]
    assert {each["level"] for each in everyone} == {"error"}
    assert " level=debug" in ctl(node, "logs", "web")
    assert " level=debug" in ctl(node, "logs", "web", "--agent")
    ctl(node, "log-level", "loud", code=2)
    ctl(node, "log-level", "--worker", "nobody", code=3)


def test_events_are_followed(node: Node) -> None:
    argv = [*INTERRUPTIBLE, *ARGV, "--config", node.toml, "events", "-f", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            # it may not watch yet: whatever it sees first, later things follow
            seen: list[str] = []
            number = 0
            while not seen:
                node.create(f"first{number}", "x")
                node.remove(f"first{number}")
                number += 1
                if _readable(process):
                    seen.append(json.loads(process.stdout.readline())["topic"])
            node.run("aaa1", "web")
            while True:
                event = json.loads(process.stdout.readline())
                if (event["topic"], event["sandbox"]) == ("sandbox.started", "aaa1"):
                    break
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def _readable(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return bool(select.select([process.stdout], [], [], 0.1)[0])


def test_the_gateway_is_down(node: Node) -> None:
    node.run("aaa1", "web")
    assert "stopped" in node.ctl("stop", "gateway")
    try:
        listing = data(node, "ps")
        assert listing["source"] == "directories"
        assert "the gateway does not answer" in listing["note"]
        assert [(each["id"], each["state"]) for each in listing["sandboxes"]] == [("aaa1", "ready")]
        assert "this is what its record says" in data(node, "inspect", "web")["note"]
        assert "asked from here" in data(node, "engines")["note"]
        ctl(node, "events", "-f", code=4)
        found = {each["check"]: each for each in data(node, "doctor", code=1)["checks"]}
        assert found["gateway"]["status"] == "fail"
        assert found["supervisord"]["status"] == "pass"
    finally:
        assert "started" in node.ctl("start", "gateway")


def test_doctor_of_a_node_without_containerd(node: Node) -> None:
    node.run("aaa1", "web")
    found = {each["check"]: each for each in data(node, "doctor", code=1)["checks"]}
    assert {name for name, each in found.items() if each["status"] == "fail"} == {"containerd"}
    for name in (
        "supervisord",
        "workers",
        "zygote",
        "keeper",
        "gateway",
        "leftovers",
        "engine runc",
        "descriptors of supervisord",
    ):
        assert found[name]["status"] == "pass", found[name]
    assert found["engine gone"]["status"] == "warn"
    node.ctl("stop", "sandbox:aaa1")
    assert "stopped by an operator: aaa1" in ctl(node, "doctor", code=1)
    assert "was stopped by an operator" in ctl(node, "why", "web")
    looked = data(node, "inspect", "web")
    assert "stopped by an operator" in looked["note"]
    assert (looked["state"], looked["worker"]) == ("ready", None)
    node.ctl("start", "sandbox:aaa1")


@needs.QEMU
@needs.IMAGE
def test_a_template_is_made_listed_and_removed(tmp_path: Path) -> None:
    config = tmp_path / "kuasar.toml"
    config.write_text(
        f'state_dir = "{tmp_path}/s"\ncache_dir = "{tmp_path}/c"\nsandboxers = {{}}\n'
        f'[engines.qemu]\nimage = "{IMAGE}"\n'
    )

    def run(*arguments: str) -> str:
        argv = [*ARGV, "--config", str(config), "template", *arguments]
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=4 * SECONDS, check=True).stdout

    assert json.loads(run("ls", "--json")) == []
    run("build")
    (found,) = json.loads(run("ls", "--json"))
    assert (found["engine"], found["state"]) == ("qemu", "ready")
    assert found["boot_seconds"] > 0
    assert 0 < found["bytes"] < found["memory_bytes"]
    run("rm", found["key"][:6])
    assert json.loads(run("ls", "--json")) == []


def test_a_full_disk_is_named_by_whoever_meets_it_and_by_doctor() -> None:
    with running(state_kib=8192) as node:
        node.run("aaa1", "web")
        node.create("bbb2", "db")
        ballast = Path(f"{node.directory}/s/ballast")
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        found = {each["check"]: each for each in data(node, "doctor", code=1)["checks"]}
        assert found["space of state_dir"]["status"] == "fail"
        assert "records and logs cannot be written" in found["space of state_dir"]["reason"]
        with pytest.raises(grpc.RpcError, match="No space left on device"):
            node.start("bbb2")
        assert [each["id"] for each in data(node, "ps")["sandboxes"]] == ["aaa1"]  # a start that fails leaves nothing
        assert "No space left on device" in ctl(node, "why", "db")
        ballast.unlink()
        node.forget("bbb2")
        node.run("ccc3", "cache")
