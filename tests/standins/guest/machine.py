"""The process behind one guest: makes it, plugs devices into it, and ends it when its VMM ends.

Requests come one at a time on a socket (``client.py``). Started by the server with root's rights and outside of the
VMM's cgroup, so that it can still clean up when that is destroyed.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.standins.guest import birth, pumps, sharing
from tests.standins.guest.cgroups import GuestCgroup
from tests.standins.guest.client import receive, send
from tests.standins.guest.loops import Loop

_AGENT_PORT = 1024
_SHARE_EVENT = "/sys/devices/virtual/mem/null/uevent"
_ENDS = {signal.SIGINT: "power-off", signal.SIGHUP: "reset"}
"""What reboot(2) in a pid namespace ends the first process with."""


class Machine:
    """One guest. ``control`` is the connection to process ``vmm``."""

    def __init__(self, control: socket.socket, vmm: int) -> None:
        self._control = control
        self._vmm = vmm
        self._end = -1
        self._pid = 0
        self._pidfd = -1
        self._killed = False
        self._cgroup: GuestCgroup | None = None
        self._pumps = pumps.Pumps()
        self._cards = 0
        self._disks: dict[str, Loop] = {}
        self._root: Loop | None = None
        self._waiting: list[Callable[[], None]] = []
        """Devices that were plugged in before the start."""
        self._scratch = tempfile.mkdtemp(prefix="kguest-")
        self._socket = f"{self._scratch}/vsock"

    def serve(self) -> None:
        """Until the VMM is gone."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        try:
            while True:
                for fd, _ in poll.poll():
                    if fd == self._pidfd:
                        poll.unregister(fd)
                        self._has_ended()
                    elif not self._answer():
                        return
                    elif self._pidfd >= 0 and self._end >= 0:
                        poll.register(self._pidfd, select.POLLIN)
        finally:
            self._kill({}, [])
            self._release()

    def _answer(self) -> bool:
        body, fds = receive(self._control)
        if body is None:
            return False
        try:
            answer, passed = getattr(self, f"_{body.pop('verb')}")(body, fds)
        except (OSError, LookupError, RuntimeError) as exc:
            answer, passed = {"error": f"{type(exc).__name__}: {exc}"}, []
        finally:
            for fd in fds:
                with suppress(OSError):
                    os.close(fd)
        with suppress(OSError):
            send(self._control, answer, passed)
        for fd in passed:
            os.close(fd)
        return True

    # -- life ----------------------------------------------------------------------------------------------------------

    def _hello(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        self._end = os.dup(fds[0])
        return {}, []

    def _boot(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        if self._pid:
            raise RuntimeError("it has been started already")
        root, console = fds
        self._cgroup = GuestCgroup(self._vmm, f"guest-{os.getpid()}")
        self._root = Loop(root, read_only=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        place = os.pipe()
        with listener:
            listener.bind(self._socket)
            plan = birth.Plan(
                scratch=self._make_mount_point(),
                root_device=self._root.path,
                listener=listener.fileno(),
                console=console,
                cgroups=self._cgroup.mounts,
                **body,
            )
            self._pid, complaints = birth.start(plan, place)
        self._pidfd = os.pidfd_open(self._pid)
        self._cgroup.enter(self._pid)
        os.write(place[1], b"g")
        with os.fdopen(complaints, "rb") as file:
            said = file.read().decode()
        for fd in place:
            os.close(fd)
        if said:
            raise RuntimeError(f"the guest could not be started: {said}")
        for plug in self._waiting:
            plug()
        self._waiting.clear()
        return {}, []

    def _make_mount_point(self) -> str:
        path = f"{self._scratch}/guest"
        os.mkdir(path)
        return path

    def _has_ended(self) -> None:
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        if self._end >= 0:
            cause = _ENDS.get(signal.Signals(os.WTERMSIG(status))) if os.WIFSIGNALED(status) else None
            cause = "killed" if self._killed else cause
            with suppress(BrokenPipeError):  # the VMM is gone, too
                os.write(self._end, (cause or "panic").encode())
            os.close(self._end)
            self._end = -1

    def _kill(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        if self._pid:
            self._killed = True
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            if self._cgroup is not None:
                with suppress(OSError):  # somebody has destroyed it
                    self._cgroup.freeze(False)
            select.select([self._pidfd], [], [])
        return {}, []

    def _freeze(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        if self._cgroup is not None:
            self._cgroup.freeze(body["frozen"])
        return {}, []

    def _power_button(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """The guest's kernel has nobody who listens for it."""
        return {}, []

    def _resize(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        self._write("size.json", json.dumps([body["vcpus"], body["memory"]]))
        return {}, []

    def _clock(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        with open(self._inside(f"{birth.HARDWARE}/clock"), encoding="ascii") as file:
            return {"offset_ns": int(file.read())}, []

    def _connect(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if body["port"] != _AGENT_PORT:
                raise ConnectionRefusedError
            sock.connect(self._socket)
        except (ConnectionRefusedError, FileNotFoundError):
            sock.close()
            return {}, []
        return {}, [sock.detach()]

    # -- devices -------------------------------------------------------------------------------------------------------

    def _plug_nic(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        taps = [os.dup(fd) for fd in fds]
        name = f"eth{self._cards}"
        self._cards += 1

        def plug() -> None:
            self._pumps.add(pumps.make_card(self._pid, name, body["mac"], body["mtu"], taps[0]), taps)

        return self._now_or_later(plug)

    def _plug_share(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        server, source = sharing.find_server(body["path"])

        def plug() -> None:
            _in_a_child(lambda: sharing.show(server, source, self._pid, f"{birth.HARDWARE}/shares/{body['tag']}"))
            with open(_SHARE_EVENT, "w", encoding="ascii") as file:
                file.write("change")

        return self._now_or_later(plug)

    def _plug_disk(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        name = body["name"]
        self._unplug({"name": name}, [])
        loop = self._disks[name] = Loop(fds[0], body["read_only"])

        def plug() -> None:
            os.mknod(self._inside(f"/dev/loop{loop.number}"), stat.S_IFBLK | 0o600, loop.device)
            self._write(f"disks/loop{loop.number}", name)
            loop.tell()

        return self._now_or_later(plug)

    def _unplug(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        loop = self._disks.pop(body["name"], None)
        if loop is not None:
            for path in (f"{birth.HARDWARE}/disks/loop{loop.number}", f"/dev/loop{loop.number}"):
                with suppress(OSError):  # the guest has ended, or was never started
                    os.unlink(self._inside(path))
            loop.close()
        return {}, []

    def _now_or_later(self, plug: Callable[[], None]) -> tuple[dict[str, Any], list[int]]:
        if self._pid:
            plug()
        else:
            self._waiting.append(plug)
        return {}, []

    def _inside(self, path: str) -> str:
        """A path of the guest, as the host reaches it."""
        return f"/proc/{self._pid}/root{path}"

    def _write(self, name: str, text: str) -> None:
        with open(self._inside(f"{birth.HARDWARE}/{name}"), "w", encoding="utf-8") as file:
            file.write(text)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        if self._pid:
            self._has_ended()
        self._pumps.close()
        for loop in (*self._disks.values(), *([self._root] if self._root else [])):
            loop.close()
        if self._cgroup is not None:
            self._cgroup.remove()
        with suppress(FileNotFoundError):
            os.unlink(self._socket)
        with suppress(FileNotFoundError):
            os.rmdir(f"{self._scratch}/guest")
        os.rmdir(self._scratch)


def _in_a_child(work: Callable[[], None]) -> None:
    """Do what changes namespaces for good in a process that ends then."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as exc:
            os.write(writer, f"{type(exc).__name__}: {exc}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    if said:
        raise RuntimeError(said)
