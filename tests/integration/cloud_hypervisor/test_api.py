"""The client of Cloud Hypervisor's API against the stand-in: every call, its order, and all that can go wrong."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kuasar.backends.base import Nic
from kuasar.backends.cloud_hypervisor import bodies
from kuasar.backends.cloud_hypervisor.api import Api
from kuasar.backends.hybrid_vsock import open_port
from kuasar.backends.rest import socket_path
from kuasar.backends.sockets import listen
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, DeadlineExceeded, KuasarError, Unavailable
from tests.integration.cloud_hypervisor.standin import StandIn
from tests.vendor_specs import require_spec, validate

GUEST = bodies.Guest(
    kernel=os.devnull,
    initramfs=os.devnull,
    root_disk=os.devnull,
    command_line="console=ttyS0",
    vsock="/run/vsock.sock",
    memory_bytes=128 << 20,
    max_memory_bytes=1024 << 20,
    max_vcpus=2,
    shared_memory=True,
)
Starter = Callable[..., StandIn]


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def start(loop: Loop, tmp_path: Path) -> Iterator[Starter]:
    """Starts a stand-in; faults by endpoint, with ``_`` and ``__`` for ``.`` and ``-``."""
    started: list[StandIn] = []

    def starter(**faults: str) -> StandIn:
        named = {name.replace("__", "-").replace("_", ".", 1): fault for name, fault in faults.items()}
        started.append(StandIn(tmp_path, loop, named))
        return started[-1]

    yield starter
    for each in started:
        each.end()


async def live(api: Api, disk: str, taps: tuple[int, ...]) -> list[Any]:
    """A machine's whole life; gives what was answered."""
    nic = Nic("eth0", "02:00:00:00:00:01", 1500, taps)
    return [
        (await api.get("vmm.ping"))["version"],
        await api.put("vm.create", bodies.create(replace(GUEST, vsock=f"{disk}.vsock"))),
        await api.put("vm.boot"),
        (await api.put("vm.add-fs", bodies.share("share", "/run/virtiofsd.sock")))["id"],
        (await api.put("vm.add-net", bodies.net("nic0", nic), taps))["id"],
        (await api.put("vm.add-disk", bodies.disk("k1", disk, read_only=True)))["id"],
        await api.put("vm.resize", bodies.resize(2, 256 << 20)),
        sorted(await api.get("vm.counters")),
        await api.put("vm.remove-device", bodies.remove("k1")),
        await api.put("vm.pause"),
        (await api.get("vm.info"))["state"],
        await api.put("vm.resume"),
        await api.put("vm.power-button"),
        await api.put("vm.shutdown"),
        await api.put("vmm.shutdown"),
    ]


ENDPOINTS = [
    "vmm.ping",
    "vm.create",
    "vm.boot",
    "vm.add-fs",
    "vm.add-net",
    "vm.add-disk",
    "vm.resize",
    "vm.counters",
    "vm.remove-device",
    "vm.pause",
    "vm.info",
    "vm.resume",
    "vm.power-button",
    "vm.shutdown",
    "vmm.shutdown",
]


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.touch()
    return str(path)


@pytest.fixture
def taps(tmp_path: Path) -> Iterator[tuple[int]]:
    """An open file in the place of a tap."""
    fds = [os.open(tmp_path / "tap0", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)]
    yield (fds[0],)
    for fd in fds:
        os.close(fd)


def test_the_life_of_a_machine(loop: Loop, start: Starter, disk: str, taps: tuple[int], tmp_path: Path) -> None:
    standin = start()
    answers = loop.run(live(standin.api, disk, taps))
    devices = ["k1", "nic0", "root", "share", "vsock"]
    assert answers[:8] == ["v50.0.0", None, None, "share", "nic0", "k1", None, devices]
    assert answers[8:] == [None, None, "Paused", None, None, None, None]
    assert standin.process.wait(timeout=60) == 0
    journal = standin.journal
    assert [each["call"].split(" ")[1] for each in journal] == ENDPOINTS
    assert {each["call"]: each["files"] for each in journal if each["files"]} == {
        "PUT vm.add-net": [str(tmp_path / "tap0")]
    }


def test_the_vendor_allows_the_whole_sequence(loop: Loop, start: Starter, disk: str, taps: tuple[int]) -> None:
    spec = require_spec("cloud-hypervisor")
    standin = start()
    loop.run(live(standin.api, disk, taps))
    for each in standin.journal:
        method, endpoint = each["call"].split(" ")
        if method == "PUT":
            validate(spec, endpoint, each["body"])
        else:
            assert "get" in spec["paths"][f"/{endpoint}"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "fault, error, words",
    [
        ("fail", BackendFailed, r"Error from API: told to fail: by the test \(HTTP 500\)"),
        ("die", Unavailable, "ended the connection without an answer|connection broke"),
        ("garble", Unavailable, "without an answer"),
        ("truncate", Unavailable, "without an answer"),
    ],
)
def test_a_call_that_goes_wrong_is_told(
    loop: Loop,
    tmp_path: Path,
    disk: str,
    taps: tuple[int],
    endpoint: str,
    fault: str,
    error: type[KuasarError],
    words: str,
) -> None:
    standin = StandIn(tmp_path, loop, {endpoint: fault})
    try:
        with pytest.raises(error, match=words) as caught:
            loop.run(live(standin.api, disk, taps))
        assert endpoint in caught.value.message
        assert [each["call"].split(" ")[1] for each in standin.journal] == ENDPOINTS[: ENDPOINTS.index(endpoint) + 1]
    finally:
        standin.end()


def test_a_vmm_that_hangs_costs_the_deadline(loop: Loop, start: Starter) -> None:
    standin = start(vm_create="hang")
    with pytest.raises(DeadlineExceeded, match=r"Cloud Hypervisor's vm\.create"):
        loop.run(standin.api.put("vm.create", bodies.create(GUEST), deadline=time.monotonic() + 0.2))


def test_a_call_after_one_that_was_given_up_gets_its_own_answer(loop: Loop, start: Starter) -> None:
    standin = start(vm_create="hang")
    with pytest.raises(DeadlineExceeded):
        loop.run(standin.api.put("vm.create", bodies.create(GUEST), deadline=time.monotonic() + 0.2))
    assert loop.run(standin.api.get("vmm.ping"))["version"] == "v50.0.0"


def test_a_vmm_that_does_not_read_costs_the_deadline(loop: Loop, start: Starter) -> None:
    standin = start()
    os.kill(standin.process.pid, signal.SIGSTOP)
    body = {"cmdline": "x" * (4 << 20)}  # more than the socket holds
    with pytest.raises(DeadlineExceeded):
        loop.run(standin.api.put("vm.create", body, deadline=time.monotonic() + 0.2))


@pytest.mark.parametrize(
    "endpoint, body, words",
    [
        ("vm.boot", None, r"The VM is not created \(HTTP 404\)"),
        ("vm.add-disk", bodies.disk("k1", "/x", read_only=True), "not created"),
        ("vm.create", {"payload": {"kernel": 1}}, r"vm\.create\.payload\.kernel: wrong type \(HTTP 400\)"),
        ("vm.create", {"colour": "red"}, r"vm\.create\.colour: unknown field"),
        ("vm.unknown", None, "HTTP 404"),
    ],
)
def test_what_the_vmm_refuses_is_told_in_its_words(
    loop: Loop, start: Starter, endpoint: str, body: dict[str, Any] | None, words: str
) -> None:
    with pytest.raises(BackendFailed, match=words):
        loop.run(start().api.put(endpoint, body))


def test_nothing_listens(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"cannot connect to Cloud Hypervisor at .*api\.sock: No such file"):
        loop.run(Api(loop, str(tmp_path), "api.sock").get("vmm.ping"))


def test_a_path_that_no_address_holds_is_named() -> None:
    with pytest.raises(BackendFailed, match=r"longer than the 107 bytes .*state_dir"):
        socket_path("/" + "d" * 120, "vsock.sock")
    assert socket_path("/run/s", "vsock.sock") == "/run/s/vsock.sock"


# -- hybrid vsock ------------------------------------------------------------------------------------------------------


class Vsock:
    """The VMM's end of hybrid vsock, for one connection: answers the request line with ``answer`` and hangs up."""

    def __init__(self, directory: Path, answer: bytes) -> None:
        self._listener = listen(str(directory), "vsock.sock")
        self._answer = answer
        self.asked = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while not self.asked.endswith(b"\n"):
                self.asked += connection.recv(64)
            connection.sendall(self._answer)

    def end(self) -> None:
        self._thread.join()
        self._listener.close()


def ask(loop: Loop, directory: Path) -> socket.socket:
    return loop.run(open_port(loop, str(directory), "vsock.sock", 1024, time.monotonic() + 30.0))


def test_what_follows_the_handshake_is_the_agent_s(loop: Loop, tmp_path: Path) -> None:
    vmm = Vsock(tmp_path, b"OK 1073741824\nhello")
    try:
        with ask(loop, tmp_path) as sock:
            sock.setblocking(True)
            assert sock.recv(64) == b"hello"
    finally:
        vmm.end()
    assert vmm.asked == b"CONNECT 1024\n"


@pytest.mark.parametrize(
    "answer, error, words",
    [
        (b"", Unavailable, "nobody listens on vsock port 1024"),
        (b"OK 1", Unavailable, "nobody listens"),
        (b"NO\n", BackendFailed, r"answered b'NO\\n' instead of OK"),
        (b"O" * 500, BackendFailed, "instead of OK"),
    ],
)
def test_a_handshake_that_fails(
    loop: Loop, tmp_path: Path, answer: bytes, error: type[KuasarError], words: str
) -> None:
    vmm = Vsock(tmp_path, answer)
    try:
        with pytest.raises(error, match=words):
            ask(loop, tmp_path)
    finally:
        vmm.end()


def test_a_machine_without_vsock(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot connect to the machine's vsock"):
        ask(loop, tmp_path)
