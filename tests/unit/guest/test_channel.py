"""The device of the channel: a port, or a terminal where the port is a console's."""

from __future__ import annotations

import os
import pty
import select
import socket
from pathlib import Path

import pytest

from guest.pid1.channel import open_port

EVERY_BYTE = bytes(range(256))


def test_a_port_is_opened_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "vport0p1").write_bytes(b"")
    fd = open_port(str(tmp_path / "vport0p1"), "/none")
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(tmp_path / "vport0p1")
        assert not os.get_blocking(fd)
    finally:
        os.close(fd)


def test_a_consoles_port_is_its_terminal_and_passes_every_byte(tmp_path: Path) -> None:
    host, guest = pty.openpty()
    console = os.ttyname(guest)
    path = str(tmp_path / "vport0p0")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as refusing:
            refusing.bind(path)  # what is opened like this refuses as the kernel's port does: ENXIO
            fd = open_port(path, console)
        try:
            os.write(host, EVERY_BYTE)
            assert read_all(fd) == EVERY_BYTE
            os.write(fd, EVERY_BYTE)
            assert read_all(host) == EVERY_BYTE
        finally:
            os.close(fd)
    finally:
        os.close(host)
        os.close(guest)


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_port(str(tmp_path / "none"), "/none")


def read_all(fd: int) -> bytes:
    data = b""
    while len(data) < len(EVERY_BYTE):
        assert select.select([fd], [], [], 30.0)[0]
        data += os.read(fd, 4096)
    return data
