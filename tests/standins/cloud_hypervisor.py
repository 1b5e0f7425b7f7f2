#!/usr/bin/env python3
"""Stands in for the ``cloud-hypervisor`` program: its API on the inherited socket, its state rules, no machine.

Written against the vendor's API description, not against our client: it has an HTTP reader and a field table of its
own. Every request is appended as a line of JSON to the file named by ``STANDIN_JOURNAL``. ``STANDIN_FAULTS`` is a JSON
object that makes calls go wrong, by endpoint: ``fail`` (500 with a reason), ``hang``, ``die`` (in the middle of the
call), ``garble`` (no HTTP), ``truncate`` (half an answer).

The guest is played by a real agent: a machine that runs connects vsock port 1024 to the unix socket that
``STANDIN_AGENT`` names. Without it nobody listens in the guest.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

VERSION = "50.0.0"
_MOST_FDS = 8
_AGENT_PORT = 1024

Fields = dict[str, type | tuple[type, ...] | dict[str, Any]]
DISK: Fields = {"id": str, "serial": str, "path": str, "readonly": bool, "image_type": str}
NET: Fields = {"id": str, "mac": str, "mtu": int, "num_queues": int}
SHARE: Fields = {"id": str, "tag": str, "socket": str, "num_queues": int, "queue_size": int}
VSOCK: Fields = {"id": str, "cid": int, "socket": str}
CONSOLE: Fields = {"mode": str, "file": str}
CREATE: Fields = {
    "payload": {"kernel": str, "initramfs": str, "cmdline": str},
    "cpus": {"boot_vcpus": int, "max_vcpus": int},
    "memory": {"size": int, "shared": bool, "hotplug_method": str, "hotplug_size": int},
    "disks": list,
    "rng": {"src": str},
    "serial": CONSOLE,
    "console": CONSOLE,
    "vsock": VSOCK,
}
# endpoint -> (method, fields of the body or None, states that allow it, the state afterwards or "")
CALLS: dict[str, tuple[str, Fields | None, frozenset[str], str]] = {
    "vmm.ping": ("GET", None, frozenset({"", "Created", "Running", "Paused", "Shutdown"}), ""),
    "vmm.shutdown": ("PUT", None, frozenset({"", "Created", "Running", "Paused", "Shutdown"}), ""),
    "vm.info": ("GET", None, frozenset({"Created", "Running", "Paused", "Shutdown"}), ""),
    "vm.counters": ("GET", None, frozenset({"Running", "Paused"}), ""),
    "vm.create": ("PUT", CREATE, frozenset({""}), "Created"),
    "vm.boot": ("PUT", None, frozenset({"Created", "Shutdown"}), "Running"),
    "vm.shutdown": ("PUT", None, frozenset({"Running", "Paused"}), "Shutdown"),
    "vm.pause": ("PUT", None, frozenset({"Running"}), "Paused"),
    "vm.resume": ("PUT", None, frozenset({"Paused"}), "Running"),
    "vm.resize": ("PUT", {"desired_vcpus": int, "desired_ram": int}, frozenset({"Running"}), ""),
    "vm.add-disk": ("PUT", DISK, frozenset({"Running"}), ""),
    "vm.add-net": ("PUT", NET, frozenset({"Running"}), ""),
    "vm.add-fs": ("PUT", SHARE, frozenset({"Running"}), ""),
    "vm.remove-device": ("PUT", {"id": str}, frozenset({"Running"}), ""),
}


class Refused(Exception):
    """An answer that is no: its status and the chain of causes."""

    def __init__(self, status: int, *causes: str) -> None:
        super().__init__(*causes)
        self.status = status
        self.causes = causes


def check(fields: Fields, body: Any, where: str) -> None:
    """Every field known and of its type, no other."""
    if not isinstance(body, dict):
        raise Refused(400, "Error from API", f"{where}: no object")
    for name, value in body.items():
        wanted = fields.get(name)
        if wanted is None:
            raise Refused(400, "Error from API", f"{where}.{name}: unknown field")
        if isinstance(wanted, dict):
            check(wanted, value, f"{where}.{name}")
        elif not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise Refused(400, "Error from API", f"{where}.{name}: wrong type")


class Vsock:
    """Hybrid vsock at ``path``: a line asks for a port of the guest, and the connection is the port's from then on."""

    def __init__(self, path: str, agent: str) -> None:
        self._path = path
        self._agent = agent

    def open(self) -> None:
        """Listen, until the program ends."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(self._path)
        except OSError as exc:
            raise Refused(500, "Error from API", "Cannot create vsock backend", str(exc)) from exc
        listener.listen()
        threading.Thread(target=self._accept, args=[listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        line = b""
        with sock:
            while not line.endswith(b"\n"):
                byte = sock.recv(1)
                if not byte:
                    return
                line += byte
            if line != b"CONNECT %d\n" % _AGENT_PORT or not self._agent:
                return  # the VMM just hangs up
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
                agent.connect(self._agent)
                sock.sendall(b"OK 1073741824\n")
                back = threading.Thread(target=_carry, args=[agent, sock], daemon=True)
                back.start()
                _carry(sock, agent)
                back.join()


def _carry(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


class Vmm:
    """The state of the machine that is not there."""

    def __init__(self) -> None:
        self.state = ""
        self.config: dict[str, Any] = {}
        self.devices: set[str] = set()
        self.shares_memory = False

    def call(self, method: str, endpoint: str, body: Any, fds: int) -> Any:
        """The answer, or :class:`Refused`. ``fds``: how many descriptors came with it."""
        known = CALLS.get(endpoint)
        if known is None or known[0] != method:
            raise Refused(404, "Not Found", f"{method} {endpoint}")
        _, fields, states, after = known
        if fields is not None:
            check(fields, body, endpoint)
        elif body is not None:
            raise Refused(400, "Error from API", f"{endpoint}: takes no body")
        if self.state not in states:
            status = 405 if self.state else 404
            raise Refused(status, "Error from API", f"The VM is {self.state or 'not created'}")
        answer = self._do(endpoint, body, fds)
        self.state = after or self.state
        return answer

    def _do(self, endpoint: str, body: Any, fds: int) -> Any:
        if fds and endpoint != "vm.add-net":
            raise Refused(400, "Error from API", f"{endpoint}: takes no descriptors")
        if endpoint == "vmm.ping":
            return {"version": f"v{VERSION}", "pid": os.getpid(), "features": ["kvm"]}
        if endpoint == "vm.info":
            return {"config": self.config, "state": self.state}
        if endpoint == "vm.counters":
            return {name: {} for name in sorted(self.devices)}
        if endpoint == "vm.create":
            self._create(body)
        elif endpoint == "vm.boot":
            Vsock(self.config["vsock"]["socket"], os.environ.get("STANDIN_AGENT", "")).open()
        elif endpoint == "vm.resize":
            self._resize(body)
        elif endpoint == "vm.remove-device":
            if body["id"] not in self.devices:
                raise Refused(404, "Error from API", f"Device {body['id']} not found")
            self.devices.discard(body["id"])
        elif endpoint.startswith("vm.add-"):
            return self._add(endpoint, body, fds)
        return None

    def _create(self, body: dict[str, Any]) -> None:
        cpus, memory = body["cpus"], body["memory"]
        if not 1 <= cpus["boot_vcpus"] <= cpus["max_vcpus"]:
            raise Refused(400, "Error from API", "cpus: boot_vcpus is beyond max_vcpus")
        for each in body["disks"]:
            check(DISK, each, "vm.create.disks")
            self.devices.add(each["id"])
        if body["vsock"]["cid"] < 3:
            raise Refused(400, "Error from API", "vsock.cid: below 3")
        self.devices.add(body["vsock"]["id"])
        self.shares_memory = memory.get("shared", False)
        self.config = body

    def _resize(self, body: dict[str, Any]) -> None:
        memory, cpus = self.config["memory"], self.config["cpus"]
        if body["desired_vcpus"] > cpus["max_vcpus"]:
            raise Refused(500, "Error from API", "Desired vCPU count exceeds maximum")
        if body["desired_ram"] > memory["size"] + memory.get("hotplug_size", 0):
            raise Refused(500, "Error from API", "Desired RAM exceeds what can be plugged in")

    def _add(self, endpoint: str, body: dict[str, Any], fds: int) -> dict[str, str]:
        if body["id"] in self.devices:
            raise Refused(409, "Error from API", f"Identifier {body['id']} is not unique")
        if endpoint == "vm.add-net" and body["num_queues"] != 2 * fds:
            raise Refused(400, "Error from API", f"{body['num_queues']} queues, but {fds} taps")
        if endpoint == "vm.add-disk" and not os.path.exists(body["path"]):
            raise Refused(500, "Error from API", f"Cannot open disk path {body['path']}", "No such file or directory")
        if endpoint == "vm.add-fs" and not self.shares_memory:
            raise Refused(400, "Error from API", "Using vhost-user requires shared memory")
        self.devices.add(body["id"])
        return {"id": body["id"], "bdf": f"0000:00:{len(self.devices):02x}.0"}


def read_request(sock: socket.socket) -> tuple[str, str, Any, list[int]]:
    """Method, endpoint, body, descriptors that came beside the first bytes."""
    size = socket.CMSG_SPACE(_MOST_FDS * array.array("i").itemsize)
    data, ancillary, _, _ = sock.recvmsg(65536, size)
    fds = array.array("i")
    for _, _, each in ancillary:
        fds.frombytes(each[: len(each) - len(each) % fds.itemsize])
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, content = data.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    method, target, version = lines[0].split(" ")
    if version != "HTTP/1.1" or not target.startswith("/api/v1/"):
        raise Refused(400, f"bad request line {lines[0]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(content) < int(headers.get("content-length", "0")):
        content += _more(sock)
    return method, target.removeprefix("/api/v1/"), json.loads(content) if content else None, list(fds)


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise EOFError
    return data


def answer(sock: socket.socket, status: int, body: Any) -> None:
    """As the VMM writes it: no body with 204, a list of causes with an error."""
    content = b"" if body is None else json.dumps(body).encode()
    words = {200: "OK", 204: "No Content"}.get(status, "Error")
    head = f"HTTP/1.1 {status} {words}\r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
    if content:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    elif status != 204:
        head += "Content-Length: 0\r\n"
    sock.sendall(head.encode() + b"\r\n" + content)


def misbehave(fault: str, sock: socket.socket) -> None:
    """Carry out a fault; comes back only to end the connection."""
    if fault == "fail":
        answer(sock, 500, ["Error from API", "told to fail", "by the test"])
    elif fault == "hang":
        while sock.recv(1):
            pass
    elif fault == "garble":
        sock.sendall(b"\x00\xffno HTTP\r\n\r\n")
    elif fault == "truncate":
        sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half":')
    elif fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise ValueError(f"unknown fault {fault!r}")


def serve(listener: socket.socket, journal: str, faults: dict[str, str]) -> None:
    """Connection by connection, until ``vmm.shutdown``."""
    vmm = Vmm()
    while True:
        sock, _ = listener.accept()
        with sock:
            fds: list[int] = []
            endpoint = ""
            try:
                method, endpoint, body, fds = read_request(sock)
                with open(journal, "a", encoding="utf-8") as file:
                    files = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
                    file.write(json.dumps({"call": f"{method} {endpoint}", "body": body, "files": files}) + "\n")
                if endpoint in faults:
                    misbehave(faults[endpoint], sock)
                    continue
                result = vmm.call(method, endpoint, body, len(fds))
                answer(sock, 204 if result is None else 200, result)
            except Refused as exc:
                answer(sock, exc.status, list(exc.causes))
            except (EOFError, OSError):
                continue
            finally:
                for fd in fds:
                    os.close(fd)
            if endpoint == "vmm.shutdown":
                return


def main(argv: list[str]) -> int:
    """The program."""
    if argv == ["--version"]:
        print(f"cloud-hypervisor v{os.environ.get('STANDIN_VERSION', VERSION)}")
        return 0
    if len(argv) != 4 or argv[0] != "--api-socket" or argv[2:] != ["--seccomp", "true"]:
        print(f"unexpected arguments {argv}", file=sys.stderr)
        return 1
    listener = socket.socket(fileno=int(argv[1].removeprefix("fd=")))
    serve(listener, os.environ["STANDIN_JOURNAL"], json.loads(os.environ.get("STANDIN_FAULTS", "{}")))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
