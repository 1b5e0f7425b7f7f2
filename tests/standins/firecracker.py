#!/usr/bin/env python3
"""Stands in for the ``firecracker`` program: its API on the socket that it makes itself, its state rules, no KVM.

Written against the vendor's API description and the words of its source, not against our client: it has an HTTP reader
and field tables of its own, refuses what it does not know, and opens what it is told to open, as the user that it is,
from where it runs. Every request is appended as a line of JSON to the file named by ``STANDIN_JOURNAL``.
``STANDIN_FAULTS`` is a JSON object that makes requests go wrong, by method and path (``PUT /vsock``): ``fail`` (400
with a reason), ``hang``, ``die`` (in the middle of the request), ``garble`` (no HTTP), ``truncate`` (half an answer).
``start``: ``die`` or ``hang`` before the socket is there.

The guest is the shared one of the stand-ins (``tests/standins/guest``) where ``STANDIN_HARDWARE`` names the socket of
its hardware; else nobody listens behind the machine's vsock.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

VERSION = "1.12.0"
MOST_DEVICES = 17
SNAPSHOT_AGE_NS = 3600 * 10**9
"""By how much the clock of a guest is behind that goes on from a snapshot."""
_NAMES_ITS_DRIVE = re.compile(r"[A-Za-z0-9_]+")
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SERIAL_BYTES = 20
PRE_BOOT = "The requested operation is not supported before starting the microVM."
POST_BOOT = "The requested operation is not supported after starting the microVM."

Fields = dict[str, tuple[type, bool]]
"""name -> (type, whether it must be there)."""
DRIVE: Fields = {
    "drive_id": (str, True),
    "is_root_device": (bool, True),
    "is_read_only": (bool, False),
    "path_on_host": (str, False),
    "cache_type": (str, False),
    "io_engine": (str, False),
    "partuuid": (str, False),
}
NIC: Fields = {"iface_id": (str, True), "host_dev_name": (str, True), "guest_mac": (str, False)}
LOAD: Fields = {
    "snapshot_path": (str, True),
    "mem_backend": (dict, False),
    "resume_vm": (bool, False),
    "network_overrides": (list, False),
}
# method and path -> (fields of the body, whether it is for a machine that does not run yet; None: always)
CALLS: dict[str, tuple[Fields | None, bool | None]] = {
    "GET /": (None, None),
    "PUT /machine-config": (
        {"vcpu_count": (int, True), "mem_size_mib": (int, True), "smt": (bool, False)},
        True,
    ),
    "PUT /boot-source": (
        {"kernel_image_path": (str, True), "initrd_path": (str, False), "boot_args": (str, False)},
        True,
    ),
    "PUT /drives": (DRIVE, True),
    "PATCH /drives": ({"drive_id": (str, True), "path_on_host": (str, False)}, False),
    "PUT /network-interfaces": (NIC, True),
    "PUT /vsock": ({"guest_cid": (int, True), "uds_path": (str, True)}, True),
    "PUT /entropy": ({}, True),
    "PUT /actions": ({"action_type": (str, True)}, True),
    "PATCH /vm": ({"state": (str, True)}, False),
    "PUT /snapshot/create": (
        {"snapshot_type": (str, False), "snapshot_path": (str, True), "mem_file_path": (str, True)},
        False,
    ),
    "PUT /snapshot/load": (LOAD, True),
}


class Refused(Exception):
    """An answer that is no, in the vendor's words."""


class Machine(Protocol):
    """The guest behind the VMM, as the shared one of the stand-ins is."""

    def boot(
        self, command_line: str, root: int, console: int, vcpus: int, memory: int, clock_offset_ns: int
    ) -> None: ...
    def connect(self, port: int) -> socket.socket | None: ...
    def plug_nic(self, mac: str, mtu: int, taps: Sequence[int]) -> None: ...
    def plug_disk(self, name: str, disk: int, read_only: bool) -> None: ...
    def unplug(self, name: str) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def wait(self) -> str: ...


def check(fields: Fields, body: Any) -> dict[str, Any]:
    """Every field known and of its type, and those that must be there are."""
    prefix = "An error occurred when deserializing the json body of a request: "
    if not isinstance(body, dict):
        raise Refused(f"{prefix}invalid type.")
    for name, value in body.items():
        if name not in fields:
            raise Refused(f"{prefix}unknown field `{name}`, expected one of `{'`, `'.join(fields)}`.")
        if type(value) is not fields[name][0]:
            raise Refused(f"{prefix}invalid type for `{name}`.")
    for name, (_, is_required) in fields.items():
        if is_required and name not in body:
            raise Refused(f"{prefix}missing field `{name}`.")
    return body


def _open(path: str, writable: bool) -> int:
    """As Firecracker does: as whoever it is, from where it is."""
    return os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)


def serial_of(path: str) -> str:
    """What a guest reads of the drive."""
    found = os.stat(path)
    return f"{found.st_dev}{found.st_rdev}{found.st_ino}"[:_SERIAL_BYTES]


class Drive:
    """A drive and what is in it."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.is_root = body["is_root_device"]
        self.read_only = body.get("is_read_only", False)
        self.path = ""
        self.fd = -1
        self.put(body.get("path_on_host", ""), "Unable to create the virtio block device")

    def put(self, path: str, doing: str) -> None:
        """Another file."""
        try:
            fd = _open(path, not self.read_only)
            self.size = os.lseek(fd, 0, os.SEEK_END) // 512 * 512
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = fd
        except OSError as exc:
            words = f"Error manipulating the backing file: {exc.strerror} (os error {exc.errno}) {path}"
            raise Refused(f"Drive config error: {doing}: Virtio backend error: {words}") from exc
        self.path = path

    @property
    def serial(self) -> str:
        return serial_of(self.path)


class Vsock:
    """Hybrid vsock: a line asks for a port of the guest, and the connection is the port's from then on."""

    def __init__(self, path: str, lock: threading.Lock) -> None:
        self.machine: Machine | None = None
        self._lock = lock
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(path)
        except OSError as exc:
            words = f"Error binding to the host-side Unix socket: {exc.strerror} (os error {exc.errno})"
            raise Refused(f"Vsock config error: Cannot create backend for vsock device: {words}") from exc
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=[sock], daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        line = b""
        with sock:
            while not line.endswith(b"\n"):
                byte = sock.recv(1)
                if not byte:
                    return
                line += byte
            command, _, port = line.strip().partition(b" ")
            if command != b"CONNECT" or not port.isdigit() or self.machine is None:
                return  # the VMM just hangs up
            with self._lock:
                agent = self.machine.connect(int(port))
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


def open_tap(name: str) -> int:
    """By its name, in the network namespace that we are in."""
    prefix = "Network config error: Could not create the network device: Open tap device failed: "
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise Refused(f"{prefix}Couldn't open /dev/net/tun: {exc.strerror} (os error {exc.errno})") from exc
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        if name not in (each for _, each in socket.if_nameindex()):
            # Firecracker would make one; ours are made beforehand, so a missing one is a mistake.
            raise Refused(f"{prefix}there is no interface {name}")
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as exc:
        os.close(fd)
        words = f"Error while creating ifreq structure: {exc.strerror} (os error {exc.errno})"
        words += f". Invalid TUN/TAP Backend provided by {name}."
        raise Refused(prefix + words) from exc
    except BaseException:
        os.close(fd)
        raise
    return fd


class Vmm:
    """The state of the microVM that is not there. ``make_machine`` gives the guest behind it."""

    def __init__(self, make_machine: Callable[[], Machine | None]) -> None:
        self._make_machine = make_machine
        self._machine: Machine | None = None
        self.state = "Not started"
        self._config: dict[str, dict[str, Any]] = {}
        self._drives: dict[str, Drive] = {}
        self._nics: dict[str, dict[str, Any]] = {}
        self._vsock: Vsock | None = None
        self._lock = threading.Lock()
        """Held by who asks the guest for something."""

    def call(self, method: str, path: str, body: Any) -> Any:
        """The answer, or :class:`Refused`."""
        kind, _, name = path.strip("/").partition("/")
        whole = f"/{kind}/{name}" if kind == "snapshot" else f"/{kind}"
        known = CALLS.get(f"{method} {whole}")
        if known is None:
            raise Refused(f"Invalid request method and/or path: {method} {kind}.")
        fields, before_boot = known
        if fields is not None:
            check(fields, body)
        if kind in ("drives", "network-interfaces"):
            _check_name(name, body["drive_id" if kind == "drives" else "iface_id"])
        if before_boot is not None and before_boot != (self.state == "Not started"):
            raise Refused(POST_BOOT if before_boot else PRE_BOOT)
        return getattr(self, f"_{method.lower()}_{whole.strip('/').replace('/', '_').replace('-', '_')}")(name, body)

    def _get_(self, _: str, __: Any) -> Any:
        return {"app_name": "Firecracker", "id": "kuasar", "state": self.state, "vmm_version": VERSION}

    # -- before the start ----------------------------------------------------------------------------------------------

    def _put_machine_config(self, _: str, body: dict[str, Any]) -> None:
        if not 1 <= body["vcpu_count"] <= 32:
            raise Refused("Machine config error: The number of vCPUs must be greater than 0, less than 32.")
        if body["mem_size_mib"] < 1:
            raise Refused(
                "Machine config error: The memory size (MiB) is either 0, or not a multiple of the page size."
            )
        self._config["machine-config"] = body

    def _put_boot_source(self, _: str, body: dict[str, Any]) -> None:
        for field, what in (("kernel_image_path", "kernel"), ("initrd_path", "initrd")):
            try:
                os.close(_open(body[field], False))
            except OSError as exc:
                raise Refused(
                    f"Boot source error: The {what} file cannot be opened: {exc.strerror} (os error {exc.errno})"
                ) from exc
        self._config["boot-source"] = body

    def _put_drives(self, name: str, body: dict[str, Any]) -> None:
        if body["is_root_device"] and any(drive.is_root for drive in self._drives.values()):
            raise Refused("Drive config error: A root block device already exists!")
        self._drives[name] = Drive(body)
        self._config[f"drives/{name}"] = body

    def _put_network_interfaces(self, name: str, body: dict[str, Any]) -> None:
        if any(body.get("guest_mac") == nic["mac"] for nic in self._nics.values()):
            raise Refused(f"Network config error: The MAC address is already in use: {body['guest_mac']}")
        self._nics[name] = {"mac": body["guest_mac"], "tap": open_tap(body["host_dev_name"])}
        self._config[f"network-interfaces/{name}"] = body

    def _put_vsock(self, _: str, body: dict[str, Any]) -> None:
        if body["guest_cid"] < 3:
            raise Refused("Vsock config error: Cannot create vsock device: invalid CID")
        self._vsock = Vsock(body["uds_path"], self._lock)
        self._config["vsock"] = body

    def _put_entropy(self, _: str, body: dict[str, Any]) -> None:
        self._config["entropy"] = body

    def _put_actions(self, _: str, body: dict[str, Any]) -> None:
        if body["action_type"] != "InstanceStart":
            raise Refused(PRE_BOOT)
        if "boot-source" not in self._config:
            raise Refused("Start microvm error: Cannot start microvm without kernel configuration.")
        count = len(self._drives) + len(self._nics) + sum(name in self._config for name in ("vsock", "entropy"))
        if count > MOST_DEVICES:
            raise Refused("Start microvm error: Could not attach device: no more interrupts are available")
        self._start()

    def _start(self, clock_offset_ns: int = 0) -> None:
        machine = self._machine = self._make_machine()
        if machine is not None:
            with self._lock:
                self._boot(machine, clock_offset_ns)
            threading.Thread(target=self._end_with, args=[machine], daemon=True).start()
        if self._vsock is not None:
            self._vsock.machine = machine
        self.state = "Running"

    def _boot(self, machine: Machine, clock_offset_ns: int) -> None:
        (root,) = [drive for drive in self._drives.values() if drive.is_root]
        for drive in self._drives.values():
            if drive.size and not drive.is_root:
                machine.plug_disk(drive.serial, drive.fd, drive.read_only)
        for nic in self._nics.values():
            machine.plug_nic(nic["mac"], 0, [nic["tap"]])
        words = self._config["boot-source"]["boot_args"] + " pci=off root=/dev/vda ro"
        size = self._config["machine-config"]
        machine.boot(words, root.fd, 1, size["vcpu_count"], size["mem_size_mib"] << 20, clock_offset_ns)

    def _end_with(self, machine: Machine) -> None:
        """A guest that resets its machine ends the program; one that powers off halts it for ever, as it does under
        Firecracker."""
        how = machine.wait()
        while how == "power-off":
            time.sleep(3600)
        os._exit(0)

    # -- afterwards ----------------------------------------------------------------------------------------------------

    def _patch_drives(self, name: str, body: dict[str, Any]) -> None:
        doing = "Unable to patch the block device"
        drive = self._drives.get(name)
        if drive is None:
            raise Refused(
                f"Drive config error: {doing}: Device not found in the device manager. Please verify the request."
            )
        before = drive.serial if drive.size else ""
        drive.put(body["path_on_host"], doing)
        if self._machine is not None:
            with self._lock:
                if before:
                    self._machine.unplug(before)
                if drive.size:
                    self._machine.plug_disk(drive.serial, drive.fd, drive.read_only)

    def _patch_vm(self, _: str, body: dict[str, Any]) -> None:
        if body["state"] not in ("Paused", "Resumed"):
            raise Refused("An error occurred when deserializing the json body of a request: unknown variant.")
        if self._machine is not None:
            with self._lock:
                (self._machine.pause if body["state"] == "Paused" else self._machine.resume)()
        self.state = "Paused" if body["state"] == "Paused" else "Running"

    def _put_snapshot_create(self, _: str, body: dict[str, Any]) -> None:
        if self.state != "Paused":
            raise Refused(
                "Create snapshot error: Cannot save the microVM state: Operation not allowed: save while running"
            )
        with open(body["snapshot_path"], "w", encoding="utf-8") as file:
            json.dump(self._config, file)
        with open(body["mem_file_path"], "wb") as memory:
            memory.write(b"memory")
            memory.truncate(self._config["machine-config"]["mem_size_mib"] << 20)

    def _put_snapshot_load(self, _: str, body: dict[str, Any]) -> None:
        if self._config:
            raise Refused(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources."
            )
        try:
            with open(body["snapshot_path"], encoding="utf-8") as file:
                saved = json.load(file)
            os.close(_open(body["mem_backend"]["backend_path"], False))
        except (OSError, ValueError) as exc:
            raise Refused(f"Load snapshot error: Failed to restore from snapshot: {exc}") from exc
        others = {each["iface_id"]: each["host_dev_name"] for each in body.get("network_overrides", [])}
        for endpoint, each in saved.items():
            kind, _, name = endpoint.partition("/")
            if kind == "network-interfaces" and name in others:
                each = {**each, "host_dev_name": others.pop(name)}
            if kind == "boot-source":
                self._config[kind] = each
            else:
                self.call("PUT", f"/{endpoint}", each)
        if others:
            raise Refused("Load snapshot error: Failed to restore from snapshot: Unknown Network Device.")
        self._start(clock_offset_ns=-SNAPSHOT_AGE_NS)
        if not body.get("resume_vm"):
            self._patch_vm("", {"state": "Paused"})


def _check_name(in_path: str, in_body: str) -> None:
    if not _NAMES_ITS_DRIVE.fullmatch(in_path):
        raise Refused("API Resource IDs can only contain alphanumeric characters and underscores.")
    if in_path != in_body:
        raise Refused("The id from the path does not match the id from the body!")


def read_request(sock: socket.socket) -> tuple[str, str, Any]:
    """Method, path, body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, content = data.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    method, path, version = lines[0].split(" ")
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise Refused(f"Unsupported HTTP version in {lines[0]!r}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    while len(content) < int(headers.get("content-length", "0")):
        content += _more(sock)
    if method == "GET" and content:
        raise Refused("GET request cannot have a body.")
    if method != "GET" and not content:
        raise Refused(f"Empty {method} request.")
    return method, path, json.loads(content) if content else None


def _more(sock: socket.socket) -> bytes:
    data = sock.recv(65536)
    if not data:
        raise EOFError
    return data


def answer(sock: socket.socket, status: int, body: Any) -> None:
    """As the VMM writes it: no body with 204, a fault message with an error."""
    content = b"" if body is None else json.dumps(body).encode()
    words = {200: "OK", 204: "No Content", 400: "Bad Request"}[status]
    head = f"HTTP/1.1 {status} {words}\r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
    if content:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    sock.sendall(head.encode() + b"\r\n" + content)


def misbehave(fault: str, sock: socket.socket) -> None:
    """Carry out a fault; comes back only to end the connection."""
    if fault == "fail":
        answer(sock, 400, {"fault_message": "told to fail by the test"})
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


def serve(listener: socket.socket, vmm: Vmm, journal: str, faults: dict[str, str]) -> None:
    """Connection by connection, for ever."""
    while True:
        sock, _ = listener.accept()
        with sock:
            try:
                method, path, body = read_request(sock)
                if journal:
                    with open(journal, "a", encoding="utf-8") as file:
                        file.write(json.dumps({"call": f"{method} {path}", "body": body}) + "\n")
                if f"{method} {path}" in faults:
                    misbehave(faults[f"{method} {path}"], sock)
                    continue
                result = vmm.call(method, path, body)
                answer(sock, 204 if result is None else 200, result)
            except Refused as exc:
                print(f"[ERROR] Received Error. Status code: 400 Bad Request. Message: {exc}", file=sys.stderr)
                answer(sock, 400, {"fault_message": str(exc)})
            except (EOFError, OSError):
                continue


def options(argv: list[str]) -> dict[str, str]:
    """The options that it knows; another one ends it as it ends the program."""
    known = {"--api-sock": True, "--id": True, "--log-path": True, "--level": True, "--show-level": False}
    found: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if word not in known:
            print(f"Error: ParseArguments(UnexpectedArgument({word!r}))", file=sys.stderr)
            raise SystemExit(153)
        found[word] = next(words) if known[word] else ""
    return found


def make_machine() -> Machine | None:
    """The shared guest, if there is hardware for it."""
    hardware = os.environ.get("STANDIN_HARDWARE", "")
    if not hardware:
        return None
    from tests.standins.guest.client import Guest

    return Guest(hardware)


def main(argv: list[str]) -> int:
    """The program."""
    if argv == ["--version"]:
        print(f"Firecracker v{os.environ.get('STANDIN_VERSION', VERSION)}\n")
        return 0
    given = options(argv)
    with open(given["--log-path"], "r+", encoding="utf-8") as log:
        log.write(f"[anonymous-instance:main] Running Firecracker v{VERSION}\n")
    faults = json.loads(os.environ.get("STANDIN_FAULTS", "{}"))
    if faults.get("start") == "die":
        print("Error: told to die by the test", file=sys.stderr)
        return 1
    while faults.get("start") == "hang":
        time.sleep(3600)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(given["--api-sock"])
    except OSError:
        print(f"Error: RunWithApi(FailedToBindSocket({given['--api-sock']!r}))", file=sys.stderr)
        return 1
    listener.listen()
    serve(listener, Vmm(make_machine), os.environ.get("STANDIN_JOURNAL", ""), faults)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
