"""The byte stream to the host: a listening socket that the agent accepts its worker's connections on.

Where the machine has a vsock device that socket is the channel. Otherwise it is a unix socket of the guest, and a
carrier (guest/pid1/serial.py) takes the bytes from it to the virtio-serial port and back. A machine whose only port
is a virtio console's (StratoVirt's microvm) has it as a terminal.
"""

from __future__ import annotations

import errno
import os
import socket
import termios
from contextlib import suppress

from guest.pid1.serial import Carrier

VSOCK_PORT = 1024
PORT_NAME = "kuasar.agent"
_KNOCK_SECONDS = 0.5
_VSOCK_DEVICES = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
_PORTS = "/sys/class/virtio-ports"
_CONSOLE = "/dev/hvc0"
"""The terminal of the first virtio console."""


def listen(directory: str) -> tuple[socket.socket, Carrier | None]:
    """The listening socket, and the carrier where the channel is a serial port. Raises ``FileNotFoundError`` when the
    machine has neither device."""
    if _has_vsock():
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        listener.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
        listener.listen(4)
        _knock()
        return listener, None
    port = find_port(PORT_NAME)
    if port is None:
        raise FileNotFoundError(f"the machine has neither a vsock device nor a serial port named {PORT_NAME}")
    path = f"{directory}/agent.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(path)
    listener.listen(4)
    return listener, Carrier(open_port(port), path)


def _knock() -> None:
    """Tell the host that we listen, by a connection to the same port there, at once ended. Who waits for that need not
    try again and again; where nobody does, it is refused, which is all the same to us."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock, suppress(OSError):
        sock.settimeout(_KNOCK_SECONDS)
        sock.connect((socket.VMADDR_CID_HOST, VSOCK_PORT))


def describe(listener: socket.socket) -> str:
    """For the console."""
    if listener.family == socket.AF_VSOCK:
        return f"listening on vsock port {VSOCK_PORT}"
    return f"listening on serial port {PORT_NAME}"


def find_port(name: str) -> str | None:
    """The device of the virtio-serial port called ``name``."""
    try:
        ports = sorted(os.listdir(_PORTS))
    except FileNotFoundError:
        return None
    for port in ports:
        with open(f"{_PORTS}/{port}/name", encoding="utf-8", errors="replace") as file:
            if file.read().strip() == name:
                return f"/dev/{port}"
    return None


def open_port(port: str, console: str = _CONSOLE) -> int:
    """A descriptor of the port's device, or, where the kernel keeps that to itself because the port is a console's, of
    its terminal, which passes every byte on as it is. Raises ``OSError``."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(port, flags)
    except OSError as exc:
        if exc.errno != errno.ENXIO:
            raise
    terminal = os.open(console, flags)
    make_raw(terminal)
    return terminal


def make_raw(terminal: int) -> None:
    """No echo, no lines, no signals, eight bits: as ``cfmakeraw(3)``."""
    _, _, cflag, _, ispeed, ospeed, cc = termios.tcgetattr(terminal)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8 | termios.CREAD
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    termios.tcsetattr(terminal, termios.TCSANOW, [0, 0, cflag, 0, ispeed, ospeed, cc])


def _has_vsock() -> bool:
    try:
        return any(name.startswith("virtio") for name in os.listdir(_VSOCK_DEVICES))
    except FileNotFoundError:
        return False
