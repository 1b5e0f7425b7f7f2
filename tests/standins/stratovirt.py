#!/usr/bin/env python3
"""Stands in for the ``stratovirt`` program (2.4): its command line (``stratovirt_options.py``), its dialect of QMP, its
state rules, no machine. Written against the vendor's source, not against our client, and compared with the true program
by the suite ``real_engine``.

The dialect, where it is not QEMU's: whatever is read at once is taken for one command; what cannot be parsed, an
unknown command or argument too, is refused in an answer without an id; so is the 101st command of a second; the answer
to ``qmp_capabilities`` never has an id; a second client waits until the first has gone.

Every command is appended as a line of JSON to the file named by ``STANDIN_JOURNAL``. ``STANDIN_FAULTS`` is a JSON
object that makes calls go wrong, by name (``start``: the program, ``greeting``: the monitor, else a command): ``fail``
(refused with a reason), ``hang``, ``die`` (in the middle), ``garble`` (no JSON), ``truncate`` (half an answer), and for
``device_del`` also ``ignore`` (the guest does not let go).
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
from collections import deque
from collections.abc import Mapping
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))

from tests.standins.stratovirt_guest import Guest, make_guest
from tests.standins.stratovirt_options import (
    MICROVM_DISKS,
    MICROVM_NICS,
    CannotStart,
    Drive,
    Machine,
    add_disk,
    check_disk,
    listen,
    parse,
)
from tests.standins.stratovirt_port import Port

VERSION = "2.4.0"
GREETING = {"QMP": {"version": {"qemu": {"micro": 1, "minor": 0, "major": 5}, "package": f"StratoVirt-{VERSION}"}}}
MOST_PER_SECOND = 100

Types = Mapping[str, type]
FILE: Types = {"driver": str, "filename": str, "aio": str}
CACHE: Types = {"no-flush": bool, "direct": bool}
# command -> (fields, those that must be there)
COMMANDS: dict[str, tuple[dict[str, type | Types], tuple[str, ...]]] = {
    "qmp_capabilities": ({}, ()),
    "query-status": ({}, ()),
    "query-version": ({}, ()),
    "query-balloon": ({}, ()),
    "query-migrate": ({}, ()),
    "stop": ({}, ()),
    "cont": ({}, ()),
    "quit": ({}, ()),
    "balloon": ({"value": int}, ("value",)),
    "blockdev-add": (
        {
            "node-name": str,
            "file": FILE,
            "media": str,
            "cache": CACHE,
            "read-only": bool,
            "detect-zeroes": str,
            "driver": str,
            "backing": str,
            "discard": str,
            "id": str,
            "options": str,
        },
        ("node-name", "file"),
    ),
    "blockdev-del": ({"node-name": str}, ("node-name",)),
    "device_add": (
        {
            "id": str,
            "driver": str,
            "addr": str,
            "lun": int,
            "drive": str,
            "bus": str,
            "mac": str,
            "netdev": str,
            "chardev": str,
            "mq": str,
            "serial": str,
            "iothread": str,
            "multifunction": bool,
            "num-queues": int,
            "queue-size": int,
            "cpu-id": int,
        },
        ("id", "driver"),
    ),
    "device_del": ({"id": str}, ("id",)),
}


class Refused(Exception):
    """An answer that is no; ``has_id``: whether the command was understood so far."""

    def __init__(self, words: str, kind: str = "GenericError", *, has_id: bool = True) -> None:
        super().__init__(words)
        self.kind = kind
        self.has_id = has_id


def understand(data: bytes) -> tuple[str, dict[str, Any], str | None]:
    """Command, arguments, id. Raises :class:`Refused` as the vendor's deserializer does: without an id."""
    try:
        request = json.loads(data)
    except ValueError as exc:
        raise Refused(f"{exc} at line 1", has_id=False) from exc
    name = request.get("execute") if isinstance(request, dict) else None
    if name not in COMMANDS:
        raise Refused(f"unknown variant `{name}`, expected one of {', '.join(COMMANDS)} at line 1", has_id=False)
    unknown = set(request) - {"execute", "arguments", "id"}
    if unknown or not isinstance(request.get("id"), str | None):
        raise Refused(f"unknown field `{unknown}`, expected `arguments` or `id` at line 1", has_id=False)
    known, needed = COMMANDS[name]
    arguments = request.get("arguments", {})
    _check(known, arguments)
    for each in needed:
        if each not in arguments:
            raise Refused(f"missing field `{each}` at line 1", has_id=False)
    return name, arguments, request.get("id")


def _check(known: Mapping[str, Any], values: Any) -> None:
    if not isinstance(values, dict):
        raise Refused("invalid type: expected a struct at line 1", has_id=False)
    for name, value in values.items():
        if name not in known:
            raise Refused(f"unknown field `{name}`, expected one of {', '.join(known)} at line 1", has_id=False)
        wanted = known[name]
        if isinstance(wanted, Mapping):
            _check(wanted, value)
        elif type(value) is not wanted:
            raise Refused(f"invalid type: {value!r}, expected a {wanted.__name__} at line 1", has_id=False)


class Vmm:
    """The state of the machine. All calls are made with ``lock`` held."""

    def __init__(self, machine: Machine, guest: Guest, ignores_unplug: bool) -> None:
        self.machine = machine
        self.guest = guest
        self.lock = threading.Lock()
        self.is_running = True
        self.client: socket.socket | None = None
        self._ignores_unplug = ignores_unplug
        self._drives: dict[str, Drive] = {}
        self._slots: dict[int, str] = {index: each[0] for index, each in enumerate(machine.disks)}
        """Of a microvm: which of its disks has what."""
        self._plugged: dict[str, str] = {}
        """Of a q35: device -> its port."""
        self._paths = {each[0]: each[2].path for each in machine.disks}
        """Node -> its file."""

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Tell the client, if there is one."""
        now = time.time()
        stamp = {"seconds": int(now), "microseconds": int(now * 1e6) % 1_000_000}
        if self.client is not None:
            send(self.client, {"event": name, "data": data, "timestamp": stamp})

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The answer, or :class:`Refused`."""
        if name == "query-status":
            return {"running": self.is_running, "singlestep": False, "status": ("paused", "running")[self.is_running]}
        if name == "query-version":
            return {**GREETING["QMP"]["version"]}
        if name in ("balloon", "query-balloon"):
            if not self.machine.balloon:
                raise Refused("No balloon device has been activated", "DeviceNotActive")
            return {"actual": self.machine.memory_bytes} if name == "query-balloon" else {}
        if name == "query-migrate":
            return {"status": "setup"}
        if name in ("stop", "cont"):
            self._switch(name == "cont")
        elif name == "blockdev-add":
            self._add_node(arguments)
        elif name == "blockdev-del":
            self._delete_node(arguments["node-name"])
        elif name == "device_add":
            if self.machine.is_standard:
                self._plug(arguments)
            else:
                self._replace(arguments)
        elif name == "device_del":
            if self.machine.is_standard:
                self._unplug(arguments["id"])
            else:
                self._take_out(arguments["id"])
        return {}

    def _switch(self, runs: bool) -> None:
        if self.is_running == runs:
            raise Refused("")  # the vendor says nothing more
        if runs:
            self.guest.resume()
        else:
            self.guest.pause()
        self.is_running = runs
        self.event("RESUME" if runs else "STOP", {})

    def _add_node(self, arguments: dict[str, Any]) -> None:
        name, file = arguments["node-name"], arguments["file"]
        direct = arguments.get("cache", {}).get("direct", True)
        aio = file.get("aio", "native" if direct else "off")
        try:
            check_disk(file["filename"], direct, aio)
        except CannotStart as exc:
            raise Refused(str(exc)) from exc
        path, read_only = file["filename"], arguments.get("read-only", False)
        if path in self._paths.values() and not read_only:
            raise Refused(f"Failed to add drive {path}, file can only be shared with read_only.")
        if arguments.get("driver", "raw") != "raw":
            raise Refused("Unknown format type")
        if name in self._drives or name in self._slots.values():
            raise Refused(f"{name} is already registered.")
        if not self.machine.is_standard and len(self._drives) + len(self._slots) >= MICROVM_DISKS + MICROVM_NICS:
            raise Refused(f"A maximum of {MICROVM_DISKS + MICROVM_NICS} replaceable devices are supported.")
        self._drives[name] = Drive(path, read_only)
        self._paths[name] = path

    def _delete_node(self, name: str) -> None:
        if not self.machine.is_standard:
            raise Refused("blockdev_del not support yet")
        if name not in self._drives:
            raise Refused(f"Drive {name} not found")
        del self._drives[name]
        del self._paths[name]

    # -- a microvm's disks ---------------------------------------------------------------------------------------------

    def _replace(self, arguments: dict[str, Any]) -> None:
        name, slot = arguments["id"], int(arguments.get("addr", "0"), 0)
        if name not in self._drives:
            raise Refused("Failed to find device configuration.")
        if "blk" not in arguments["driver"]:
            raise Refused("Unsupported replaceable device type.")
        if slot >= MICROVM_DISKS:
            raise Refused(f"A maximum of block {MICROVM_DISKS} replaceable devices are supported.")
        if slot in self._slots:
            raise Refused(f"The slot {slot} is occupied already.")
        self._slots[slot] = name
        drive = self._drives.pop(name)
        self.guest.plug_disk(f"vd{chr(ord('a') + slot)}", drive.path, drive.read_only)

    def _take_out(self, name: str) -> None:
        slots = [slot for slot, each in self._slots.items() if each == name]
        if not slots and self._drives.pop(name, None) is None:
            raise Refused(f"Device {name} not found")
        for slot in slots:
            del self._slots[slot]
            self.guest.unplug(f"vd{chr(ord('a') + slot)}")
        self._paths.pop(name, None)
        self.event("DEVICE_DELETED", {"device": name, "path": name})

    # -- a q35's ports -------------------------------------------------------------------------------------------------

    def _plug(self, arguments: dict[str, Any]) -> None:
        name, port = arguments["id"], arguments.get("bus", "")
        if arguments["driver"] != "virtio-blk-pci":
            raise Refused(f"Failed to add device: Driver {arguments['driver']} is not support")
        if name in self._plugged or name in self.machine.ids:
            raise Refused(f"Device id {name} existed")
        if port not in self.machine.ports or port in self._plugged.values():
            raise Refused("Failed to add virtio pci blk: Failed to add virtio pci device")
        if int(arguments.get("addr", "1"), 0) != 0:
            raise Refused("Failed to plug device: HotplugUnsupported")
        drive = self._drives.get(arguments.get("drive", ""))
        try:
            add_disk(self.machine, {**arguments, "id": name}, {} if drive is None else {arguments["drive"]: drive})
        except CannotStart as exc:
            raise Refused(f"Failed to add virtio pci blk: {exc}") from exc
        self._plugged[name] = port
        _, serial, backend = self.machine.disks[-1]
        self.guest.plug_disk(serial, backend.path, backend.read_only)

    def _unplug(self, name: str) -> None:
        if name not in self._plugged:
            raise Refused("Can not find parent device from pci bus")
        if not self._ignores_unplug:
            threading.Thread(target=self._let_go, args=[name], daemon=True).start()

    def _let_go(self, name: str) -> None:
        """The guest has been asked, and does after the answer."""
        with self.lock:
            serial = next(each[1] for each in self.machine.disks if each[0] == name)
            self.guest.unplug(serial)
            self.machine.disks = [each for each in self.machine.disks if each[0] != name]
            del self._plugged[name]
            self.event("DEVICE_DELETED", {"device": name, "path": f"/machine/peripheral/{name}"})


def send(sock: socket.socket, message: Mapping[str, Any]) -> None:
    """As the vendor ends its lines. A client that has gone is not told."""
    try:
        sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\r\n")
    except OSError:
        return


def misbehave(fault: str, sock: socket.socket) -> None:
    """Carry out a fault, in the middle of a command; comes back only if the connection goes on."""
    if fault == "hang":
        signal.pause()
    elif fault == "garble":
        sock.sendall(b"\x00\xffno JSON\r\n")
    elif fault == "truncate":
        sock.sendall(b'{"return":{')
        sock.close()
    elif fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise ValueError(f"unknown fault {fault!r}")


class Monitor:
    """Serves the QMP socket, one client after the other."""

    def __init__(self, vmm: Vmm, listener: socket.socket, journal: str, faults: dict[str, str]) -> None:
        self._vmm = vmm
        self._listener = listener
        self._journal = journal
        self._faults = faults
        self._recent: deque[float] = deque(maxlen=MOST_PER_SECOND)

    def run(self) -> None:
        """Until ``quit``, which ends the program."""
        while True:
            sock, _ = self._listener.accept()
            with sock:
                if "greeting" in self._faults:
                    misbehave(self._faults["greeting"], sock)
                    continue
                send(sock, {"QMP": {**GREETING["QMP"], "capabilities": []}})
                with self._vmm.lock:
                    self._vmm.client = sock
                try:
                    while self._serve(sock):
                        pass
                except OSError:
                    pass
                with self._vmm.lock:
                    self._vmm.client = None

    def _serve(self, sock: socket.socket) -> bool:
        """One command; whether there may be more."""
        data, descriptors = _read(sock)
        for fd in descriptors:
            os.close(fd)
        if not data:
            return False
        number: str | None = None
        try:
            self._throttle()
            name, arguments, number = understand(data)
            self._write_down(name, arguments)
            fault = self._faults.get(name, "")
            if fault == "fail":
                raise Refused("told to fail by the test")
            if fault and fault != "ignore":
                misbehave(fault, sock)
                return fault != "truncate"
            with self._vmm.lock:
                answer = {"return": self._vmm.call(name, arguments)}
                send(sock, answer if number is None or name == "qmp_capabilities" else {**answer, "id": number})
        except Refused as exc:
            error: dict[str, Any] = {"error": {"class": exc.kind, "desc": str(exc)}}
            send(sock, error if number is None or not exc.has_id else {**error, "id": number})
            return True
        if name == "quit":
            with self._vmm.lock:
                self._vmm.event("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
            self._vmm.guest.kill()
            end(self._vmm.machine)
        return True

    def _throttle(self) -> None:
        now = time.monotonic()
        if len(self._recent) == MOST_PER_SECOND and now - self._recent[0] < 1.0:
            words = f"More than {MOST_PER_SECOND} requests received during 1 second"
            raise Refused(words, "OperationThrottled", has_id=False)
        self._recent.append(now)

    def _write_down(self, name: str, arguments: dict[str, Any]) -> None:
        if self._journal:
            with open(self._journal, "a", encoding="utf-8") as file:
                file.write(json.dumps({"call": name, "arguments": arguments}) + "\n")


def _read(sock: socket.socket) -> tuple[bytes, list[int]]:
    """All that is there, as one command, and the descriptors beside it."""
    data, descriptors = b"", array.array("i")
    flags = 0
    while True:
        try:
            piece, ancillary, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(16), flags)
        except BlockingIOError:
            break
        for _, _, each in ancillary:
            descriptors.frombytes(each[: len(each) - len(each) % descriptors.itemsize])
        if not piece:
            break
        data += piece
        flags = socket.MSG_DONTWAIT
    return data, list(descriptors)


def end(machine: Machine, code: int = 0) -> None:
    """The program's own end: its sockets go with it."""
    for path in (machine.qmp, machine.port[1] if machine.port else ""):
        if path and os.path.lexists(path):
            os.unlink(path)
    os._exit(code)


def run(machine: Machine, journal: str, faults: dict[str, str]) -> None:
    """Boot the guest and serve."""
    listener = listen(machine.qmp)
    guest = make_guest(machine)
    vmm = Vmm(machine, guest, faults.get("device_del") == "ignore")
    if machine.port is not None:
        Port(listen(machine.port[1]), guest).start()
    guest.boot()

    def watch() -> None:
        guest.wait()
        with vmm.lock:
            vmm.event("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        end(machine)

    threading.Thread(target=watch, daemon=True).start()
    Monitor(vmm, listener, journal, faults).run()


def main(argv: list[str]) -> int:
    """The program."""
    faults: dict[str, str] = json.loads(os.environ.get("STANDIN_FAULTS", "{}"))
    if argv in (["-version"], ["-V"]):
        if faults.get("version") == "hang":
            signal.pause()
        print(f"StratoVirt {os.environ.get('STANDIN_VERSION', VERSION)} commit-id 00000000\n")
        return 0
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        if faults.get("start") == "fail":
            raise CannotStart("Failed to realize micro VM.\n\nCaused by:\n    told to fail by the test")
        if faults.get("start") == "hang":
            signal.pause()
        run(parse(argv), os.environ.get("STANDIN_JOURNAL", ""), faults)
    except CannotStart as exc:
        sys.stderr.write(f"{exc}\r\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
