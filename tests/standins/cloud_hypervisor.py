"""Stands in for the ``cloud-hypervisor`` program: its API on the inherited socket, its state rules, our guest.

Written against the vendor's API description and the true program's answers (``tests/integration/cloud_hypervisor/
test_real_engine.py``), not against our client: it has an HTTP reader and a field table of its own. Settings, by
environment variables (``tests/standins/install.py`` puts them into the program):

``STANDIN_JOURNAL``   file to which every request is appended as a line of JSON
``STANDIN_FAULTS``    JSON object that makes calls go wrong, by endpoint: ``fail`` (500 with a reason), ``hang``,
                      ``die`` (in the middle of the call), ``garble`` (no HTTP), ``truncate`` (half an answer)
``STANDIN_HARDWARE``  socket of the hardware (``tests/standins/guest``); without it the machine is none, and nobody
                      listens in it
``STANDIN_VERSION``   what ``--version`` says
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from tests.standins.guest.client import Guest, GuestError

VERSION = "50.0.0"
_MOST_FDS = 8

Fields = dict[str, type | tuple[type, ...] | dict[str, Any]]
DISK: Fields = {"id": str, "serial": str, "path": str, "readonly": bool, "image_type": str}
NET: Fields = {"id": str, "mac": str, "mtu": int, "num_queues": int}
SHARE: Fields = {"id": str, "tag": str, "socket": str, "num_queues": int, "queue_size": int}
VSOCK: Fields = {"id": str, "cid": int, "socket": str}
CONSOLE: Fields = {"mode": str, "file": str}
CREATE: Fields = {
    "payload": {"kernel": str, "initramfs": str, "cmdline": str},
    "cpus": {"boot_vcpus": int, "max_vcpus": int, "nested": bool},
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
    "vm.power-button": ("PUT", None, frozenset({"Running"}), ""),
    "vm.snapshot": ("PUT", {"destination_url": str}, frozenset({"Paused"}), ""),
    "vm.restore": ("PUT", {"source_url": str}, frozenset({""}), "Paused"),
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

    def __init__(self, path: str, machine: Machine) -> None:
        self._path = path
        self._machine = machine

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
            words = line.split()
            if len(words) != 2 or words[0] != b"CONNECT":
                return  # the VMM just hangs up
            agent = self._machine.connect(int(words[1]))
            if agent is None:
                return
            with agent:
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


class Events:
    """The event monitor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._started = time.monotonic()

    def tell(self, source: str, event: str) -> None:
        """As the VMM writes it."""
        seconds, rest = divmod(time.monotonic() - self._started, 1)
        stamp = {"secs": int(seconds), "nanos": int(rest * 1e9)}
        text = json.dumps({"timestamp": stamp, "source": source, "event": event, "properties": None}, indent=2)
        os.write(self._fd, f"{text}\n\n".encode())


class Machine:
    """The guest of a configuration, from its boot on. With no hardware there is none, and everything succeeds."""

    def __init__(self, config: dict[str, Any], events: Events) -> None:
        self._config = config
        self._events = events
        self._lock = threading.Lock()
        self._guest: Guest | None = None
        self._vsock = Vsock(config["vsock"]["socket"], self)

    def start(self, clock_offset_ns: int = 0) -> None:
        """Boot it, from the files of the configuration."""
        files = []
        try:
            for path in (self._config["payload"]["kernel"], self._config["payload"]["initramfs"]):
                os.close(self._open(path, os.O_RDONLY))
            files.append(self._open(self._config["disks"][0]["path"], os.O_RDONLY))
            files.append(os.dup(sys.stdout.fileno()))
            if "STANDIN_HARDWARE" in os.environ:
                self._guest = Guest(os.environ["STANDIN_HARDWARE"])
                cpus, memory = self._config["cpus"]["boot_vcpus"], self._config["memory"]["size"]
                command_line = self._config["payload"]["cmdline"]
                self._guest.boot(command_line, files[0], files[1], cpus, memory, clock_offset_ns)
                threading.Thread(target=self._watch, args=[self._guest], daemon=True).start()
        finally:
            for fd in files:
                os.close(fd)

    def listen(self) -> None:
        """Make the socket of its vsock."""
        self._vsock.open()

    def _open(self, path: str, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Refused(500, "Error from API", f"Cannot open {path}", str(exc.strerror)) from exc

    def _watch(self, guest: Guest) -> None:
        """The guest's end: power-off ends the program; after a reset, or a panic, the machine starts anew."""
        how = guest.wait()
        if how == "power-off":
            self._events.tell("vm", "shutdown")
            self._events.tell("vmm", "shutdown")
            os._exit(0)
        if how in ("reset", "panic"):
            self._events.tell("vm", "rebooting")
            guest.close()
            self.start()
            self._events.tell("vm", "rebooted")

    def do(self, work: str, *args: Any) -> Any:
        """Something that :class:`Guest` does."""
        with self._lock:
            if self._guest is None:
                return None
            try:
                return getattr(self._guest, work)(*args)
            except GuestError as exc:
                raise Refused(500, "Error from API", str(exc)) from exc

    def connect(self, port: int) -> socket.socket | None:
        """A connection to a port of the guest; None where nobody listens."""
        found: socket.socket | None = None
        with suppress(Refused):
            found = self.do("connect", port)
        return found


class Vmm:
    """The program's state: what there is of a machine."""

    def __init__(self, events: Events) -> None:
        self.state = ""
        self.config: dict[str, Any] = {}
        self.devices: set[str] = set()
        self._events = events
        self._machine: Machine | None = None

    def call(self, method: str, endpoint: str, body: Any, fds: list[int]) -> Any:
        """The answer, or :class:`Refused`. ``fds``: descriptors that came with it."""
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
        if fds and endpoint != "vm.add-net":
            raise Refused(400, "Error from API", f"{endpoint}: takes no descriptors")
        action = getattr(self, "_" + endpoint.partition(".")[2].replace("-", "_"), None)
        answer = action(body, fds) if action is not None else None
        self.state = after or self.state
        return answer

    @property
    def machine(self) -> Machine:
        """The machine that the state says is there."""
        assert self._machine is not None
        return self._machine

    def _ping(self, body: Any, fds: list[int]) -> Any:
        return {"version": f"v{VERSION}", "pid": os.getpid(), "features": ["kvm"]}

    def _info(self, body: Any, fds: list[int]) -> Any:
        tree = {name: {"id": name, "resources": [], "children": []} for name in sorted(self.devices)}
        return {"config": self.config, "state": self.state, "memory_actual_size": 0, "device_tree": tree}

    def _counters(self, body: Any, fds: list[int]) -> Any:
        return {name: {} for name in sorted(self.devices)}

    def _create(self, body: dict[str, Any], fds: list[int]) -> None:
        cpus = body["cpus"]
        if not 1 <= cpus["boot_vcpus"] <= cpus["max_vcpus"]:
            raise Refused(400, "Error from API", "cpus: boot_vcpus is beyond max_vcpus")
        for each in body["disks"]:
            check(DISK, each, "vm.create.disks")
        if (body["serial"], body["console"]) != ({"mode": "Tty"}, {"mode": "Off"}):
            raise Refused(500, "Error from API", "only a serial console on standard output is played here")
        if body["vsock"]["cid"] < 3:
            raise Refused(400, "Error from API", "vsock.cid: below 3")
        self.devices = {each["id"] for each in (*body["disks"], body["vsock"])}
        self.config = body

    def _boot(self, body: Any, fds: list[int]) -> None:
        self._events.tell("vm", "booting")
        self._machine = Machine(self.config, self._events)
        self._machine.start()
        self._machine.listen()
        self._events.tell("vm", "booted")

    def _shutdown(self, body: Any, fds: list[int]) -> None:
        if self._machine is not None:
            self._machine.do("kill")
        self._events.tell("vm", "shutdown")

    def _pause(self, body: Any, fds: list[int]) -> None:
        self.machine.do("pause")
        self._events.tell("vm", "paused")

    def _resume(self, body: Any, fds: list[int]) -> None:
        self.machine.do("resume")
        self._events.tell("vm", "resumed")

    def _power_button(self, body: Any, fds: list[int]) -> None:
        self.machine.do("press_power_button")

    def _resize(self, body: dict[str, Any], fds: list[int]) -> None:
        memory, cpus = self.config["memory"], self.config["cpus"]
        if body["desired_vcpus"] > cpus["max_vcpus"]:
            raise Refused(500, "Error from API", "Desired vCPU count exceeds maximum")
        if body["desired_ram"] > memory["size"] + memory.get("hotplug_size", 0):
            raise Refused(500, "Error from API", "Desired RAM exceeds what can be plugged in")
        self.machine.do("resize", body["desired_vcpus"], body["desired_ram"])

    def _add_disk(self, body: dict[str, Any], fds: list[int]) -> Any:
        self._require_new(body)
        try:
            disk = os.open(body["path"], (os.O_RDONLY if body["readonly"] else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as exc:
            words = f"I/O error (path={body['path']} op=open)"
            raise Refused(500, "Error from API", "Cannot open disk path", words, str(exc.strerror)) from exc
        try:
            self.machine.do("plug_disk", body["serial"], disk, body["readonly"])
        finally:
            os.close(disk)
        return self._added(body)

    def _add_net(self, body: dict[str, Any], fds: list[int]) -> Any:
        self._require_new(body)
        if body["num_queues"] != 2 * len(fds):
            raise Refused(400, "Error from API", f"{body['num_queues']} queues, but {len(fds)} taps")
        if body["num_queues"] > 2 * self.config["cpus"]["boot_vcpus"]:
            words = (
                f"Queue count ({body['num_queues']}) must not exceed boot vCPUs ({self.config['cpus']['boot_vcpus']})"
            )
            raise Refused(500, "Error from API", "Failed to validate config", words)
        if "mtu" in body:
            raise Refused(500, "Error from API", "Cannot set the MTU of a tap in another namespace")
        self.machine.do("plug_nic", body["mac"], 0, fds)
        return self._added(body)

    def _add_fs(self, body: dict[str, Any], fds: list[int]) -> Any:
        self._require_new(body)
        if not self.config["memory"].get("shared", False):
            raise Refused(400, "Error from API", "Using vhost-user requires shared memory")
        self.machine.do("plug_share", body["tag"], body["socket"])
        return self._added(body)

    def _require_new(self, body: dict[str, Any]) -> None:
        if body["id"] in self.devices:
            raise Refused(500, "Error from API", f"Identifier {body['id']} is not unique")

    def _added(self, body: dict[str, Any]) -> dict[str, str]:
        self.devices.add(body["id"])
        return {"id": body["id"], "bdf": f"0000:00:{len(self.devices):02x}.0"}

    def _remove_device(self, body: dict[str, Any], fds: list[int]) -> None:
        if body["id"] not in self.devices:
            words = f"Failed to find device corresponding to the given identifier: {body['id']}"
            raise Refused(500, "Error from API", "The device could not be removed from the VM", words)
        self.machine.do("unplug", body["id"])
        self.devices.discard(body["id"])

    # -- saved machines ------------------------------------------------------------------------------------------------

    def _snapshot(self, body: dict[str, Any], fds: list[int]) -> None:
        directory = _directory(body["destination_url"])
        state = {"devices": sorted(self.devices), "time_ns": time.time_ns() + (self.machine.do("clock_offset_ns") or 0)}
        for name, text in (("config.json", json.dumps(self.config)), ("state.json", json.dumps(state))):
            with open(f"{directory}/{name}", "x", encoding="utf-8") as file:
                file.write(text)
        with open(f"{directory}/memory-ranges", "xb") as memory:
            memory.write(b"memory of a guest")
            memory.truncate(self.config["memory"]["size"])
        self._events.tell("vm", "snapshotted")

    def _restore(self, body: dict[str, Any], fds: list[int]) -> None:
        directory = _directory(body["source_url"])
        try:
            with open(f"{directory}/config.json", "rb") as file:
                config = json.load(file)
            with open(f"{directory}/state.json", "rb") as file:
                state = json.load(file)
            with open(f"{directory}/memory-ranges", "rb") as file:
                whole = len(file.read()) == config["memory"]["size"]
        except (OSError, ValueError) as exc:
            raise Refused(500, "Error from API", "Cannot restore VM", str(exc)) from exc
        if not whole:
            raise Refused(500, "Error from API", "Cannot restore VM", "failed to fill whole buffer")
        check(CREATE, config, "config.json")
        self._create(config, [])
        if state["devices"] != sorted(self.devices):
            raise Refused(500, "Error from API", "Cannot restore VM", "the devices are others")
        self._machine = Machine(config, self._events)
        self._machine.start(state["time_ns"] - time.time_ns())
        self._machine.do("pause")
        self._machine.listen()
        self._events.tell("vm", "restored")


def _directory(url: str) -> str:
    path = url.removeprefix("file://")
    if path == url or not os.path.isdir(path):
        raise Refused(500, "Error from API", f"Destination is not a directory: {url}")
    return path


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


def serve(listener: socket.socket, events: Events, journal: str, faults: dict[str, str]) -> None:
    """Connection by connection, until ``vmm.shutdown``."""
    vmm = Vmm(events)
    while True:
        sock, _ = listener.accept()
        with sock:
            fds: list[int] = []
            endpoint = ""
            try:
                method, endpoint, body, fds = read_request(sock)
                if journal:
                    with open(journal, "a", encoding="utf-8") as file:
                        files = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
                        file.write(json.dumps({"call": f"{method} {endpoint}", "body": body, "files": files}) + "\n")
                if endpoint in faults:
                    misbehave(faults[endpoint], sock)
                    continue
                result = vmm.call(method, endpoint, body, fds)
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
    if argv[::2] != ["--api-socket", "--event-monitor", "--seccomp"] or argv[5] != "true":
        print(f"unexpected arguments {argv}", file=sys.stderr)
        return 1
    listener = socket.socket(fileno=int(argv[1].removeprefix("fd=")))
    events = Events(int(argv[3].removeprefix("fd=")))
    events.tell("vmm", "starting")
    faults = json.loads(os.environ.get("STANDIN_FAULTS", "{}"))
    serve(listener, events, os.environ.get("STANDIN_JOURNAL", ""), faults)
    events.tell("vmm", "shutdown")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
