"""One guest, as the VMM sees it."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kuasar.core.namespaces import join_netns
from kuasar.core.taps import open_tap
from kuasar.workers.rtnetlink import Rtnetlink

CHECKOUT = Path(__file__).parents[3]
AGENT_SOCKET, DISKS, PORT = "agent.sock", "disks.json", 1024
_TUNSETOFFLOAD, _OFFLOADS = 0x400454D0, 0x0F
_SIOCSIFHWADDR, _ARPHRD_ETHER = 0x8924, 1
_FRAME_BYTES = 1 << 17
_CALL_SECONDS = 60.0
_libc = ctypes.CDLL(None)


class Guest:
    """A guest that lives in ``directory`` (made, and the caller's to remove). Its console is our standard output."""

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._directory = os.path.abspath(directory)
        self._process: subprocess.Popen[bytes] | None = None
        self._loops: dict[str, str] = {}
        self._cards: list[tuple[str, list[int]]] = []
        self._write_disks({})

    # -- life ----------------------------------------------------------------------------------------------------------

    def boot(self, command_line: str, disks: Sequence[dict[str, Any]]) -> None:
        """Start it with what is plugged in already; returns when it runs (its agent may not listen yet)."""
        for disk in disks[1:]:  # the first one is its root, which is this host's here
            self.plug_disk(disk["serial"], disk["path"], disk["read_only"])
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            here = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
            try:
                listener.bind(f"/proc/self/fd/{here}/{AGENT_SOCKET}")
            finally:
                os.close(here)
            listener.listen(8)
            settings = {"listen": listener.fileno(), "directory": self._directory, "command_line": command_line}
            argv = [sys.executable, "-m", "tests.standins.guest.init", json.dumps(settings)]
            environment = {"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
            self._process = subprocess.Popen(
                argv, pass_fds=[listener.fileno()], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                stdout=subprocess.PIPE, cwd="/",
            )  # fmt: skip
        self._pid = self._await_first_process()
        for mac, taps in self._cards:
            self._connect_card(mac, taps)

    def _await_first_process(self) -> int:
        """The first line of its output names it; the rest is the console."""
        assert self._process is not None and self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first.startswith(b"pid "):
            raise OSError(f"the guest does not come up: {first!r}")
        threading.Thread(target=_copy, args=[self._process.stdout.fileno(), 1], daemon=True).start()
        return int(first.split()[1])

    def connect(self, port: int) -> socket.socket:
        """A connection to a port of it. Raises ``OSError`` while nobody listens there."""
        if port != PORT:
            raise ConnectionRefusedError(f"nobody listens on port {port}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        here = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{here}/{AGENT_SOCKET}")
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(here)
        return sock

    def wait(self) -> int:
        """Until it has switched itself off."""
        assert self._process is not None
        code = self._process.wait()
        for device in self._loops.values():
            _detach(device)
        self._loops.clear()
        return code

    def kill(self) -> None:
        """Power off, at once."""
        assert self._process is not None
        self._process.kill()

    def pause(self) -> None:
        """Nothing in it moves."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It does again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        namespace = os.readlink(f"/proc/{self._pid}/ns/pid")
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if os.readlink(f"/proc/{name}/ns/pid") == namespace:
                    os.kill(int(name), number)

    # -- devices -------------------------------------------------------------------------------------------------------

    def plug_disk(self, serial: str, path: str, read_only: bool) -> None:
        """A disk appears: a block device as it is, a file behind a loop device."""
        number = os.stat(path).st_rdev
        if stat.S_ISBLK(os.stat(path).st_mode):
            name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
        else:
            argv = ["losetup", "--find", "--show", *(["--read-only"] if read_only else []), path]
            self._loops[serial] = subprocess.check_output(argv, text=True).strip()
            name = os.path.basename(self._loops[serial])
        self._write_disks({**self._read_disks(), serial: {"name": name, "read_only": read_only}})

    def unplug(self, serial: str) -> None:
        """It goes."""
        disks = self._read_disks()
        del disks[serial]
        self._write_disks(disks)
        if serial in self._loops:
            _detach(self._loops.pop(serial))

    def plug_nic(self, mac: str, mtu: int, taps: Sequence[int]) -> None:
        """A card appears, whose frames go through the pod's ``taps``."""
        self._cards.append((mac, list(taps)))
        if self._process is not None:
            self._connect_card(mac, list(taps))

    def _connect_card(self, mac: str, taps: list[int]) -> None:
        card = _in_thread(lambda: self._make_card(mac))
        ways = {card: taps[0], **dict.fromkeys(taps, card)}
        for fd in ways:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
        threading.Thread(target=_carry, args=[ways], daemon=True).start()

    def _make_card(self, mac: str) -> int:
        """In the guest's network namespace: a tap with that address, down."""
        join_netns(f"/proc/{self._pid}/ns/net")
        with Rtnetlink() as netlink:
            name = next(f"eth{index}" for index in range(64) if netlink.index(f"eth{index}") is None)
        (fd,) = open_tap(name, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            address = _ARPHRD_ETHER.to_bytes(2, sys.byteorder) + bytes.fromhex(mac.replace(":", ""))
            fcntl.ioctl(sock, _SIOCSIFHWADDR, name.encode().ljust(16, b"\0") + address.ljust(24, b"\0"))
        return fd

    # -- what its device lookup is told --------------------------------------------------------------------------------

    def _read_disks(self) -> dict[str, Any]:
        with open(f"{self._directory}/{DISKS}", encoding="ascii") as file:
            found: dict[str, Any] = json.load(file)
        return found

    def _write_disks(self, disks: dict[str, Any]) -> None:
        path = f"{self._directory}/{DISKS}"
        with open(f"{path}.new", "w", encoding="ascii") as file:
            json.dump(disks, file)
        os.rename(f"{path}.new", path)


def _detach(device: str) -> None:
    subprocess.run(["losetup", "--detach", device], check=False, stderr=subprocess.DEVNULL)


def _in_thread(work: Any) -> Any:
    """In a thread of its own, which may move to another namespace."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    if not found:
        raise OSError("a device could not be made: see above")
    return found[0]


def _copy(source: int, target: int) -> None:
    while data := os.read(source, 65536):
        with suppress(OSError):
            os.write(target, data)


def _carry(ways: dict[int, int]) -> None:
    """Frames from each descriptor to its other one, for ever."""
    with select.epoll() as poll:
        for fd in ways:
            poll.register(fd, select.EPOLLIN)
        while True:
            for fd, event in poll.poll():
                with suppress(OSError):  # an interface that is down takes and gives no frames
                    while True:
                        os.write(ways[fd], os.read(fd, _FRAME_BYTES))
                if event & (select.EPOLLERR | select.EPOLLHUP):
                    time.sleep(0.01)  # its namespace is going
