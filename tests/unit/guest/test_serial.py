"""The carrier between the host's serial port and the agent, on a terminal in place of the port."""

from __future__ import annotations

import os
import socket
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from guest.pid1.channel import make_raw, open_port
from guest.pid1.serial import CLOSED, NONCE_BYTES, OPEN, READY, Carrier
from kuasar.core.serial import make_nonce

SECONDS = 10.0


class Stage:
    """The host's end of the port, the agent's listener, and the carrier between them."""

    def __init__(self, directory: Path, backlog: int) -> None:
        self.host, self._port = os.openpty()
        tty.setraw(self.host)
        tty.setraw(self._port)
        self.agent = socket.socket(socket.AF_UNIX)
        self.agent.settimeout(SECONDS)
        self.agent.bind(str(directory / "agent.sock"))
        self.agent.listen(backlog)
        self.carrier = Carrier(open_port(os.ttyname(self._port)), str(directory / "agent.sock"))

    def close(self) -> None:
        """A guest's carrier lives as long as the machine, and has no end of its own."""
        self.agent.close()
        for fd in (self.host, self._port, self.carrier._port):
            os.close(fd)

    def pump(self) -> None:
        """As the agent's loop does; fails the test where that blocks."""
        pumping = threading.Thread(target=self.carrier.pump, daemon=True)
        pumping.start()
        pumping.join(SECONDS)
        assert not pumping.is_alive(), "the carrier blocks, and with it the agent"


@contextmanager
def staged(directory: Path, backlog: int) -> Iterator[Stage]:
    """A stage; nothing of it stays."""
    stage = Stage(directory, backlog)
    try:
        yield stage
    finally:
        stage.close()


def nonce(number: int) -> bytes:
    return b"%d" % (10 ** (NONCE_BYTES - 1) + number)


def test_an_opening_makes_a_connection_and_bytes_go_both_ways(tmp_path: Path) -> None:
    with staged(tmp_path, 4) as stage:
        os.write(stage.host, b"rubbish" + OPEN + nonce(1) + b"to the agent")
        stage.pump()
        connection, _ = stage.agent.accept()
        with connection:
            assert connection.recv(100) == b"to the agent"
            connection.sendall(b"to the host")
            stage.pump()
            answer = READY + nonce(1) + b"to the host"
            assert os.read(stage.host, 1000) == answer


def test_more_openings_than_the_agent_can_accept_at_once_do_not_block_it(tmp_path: Path) -> None:
    """Its listener is served by the same loop, which would wait for itself."""
    with staged(tmp_path, 0) as stage:
        os.write(stage.host, b"".join(OPEN + nonce(number) for number in range(10)))
        stage.pump()
        assert os.read(stage.host, 1000) == CLOSED + nonce(9)
        stage.agent.accept()[0].close()
        os.write(stage.host, OPEN + nonce(10))
        stage.pump()
        assert os.read(stage.host, 1000) == READY + nonce(10)


def test_an_opening_passes_a_terminal_that_is_not_raw_yet() -> None:
    """A console's terminal has its usual settings until PID 1 has opened it, and the host does not wait for that."""
    for _ in range(64):
        host, port = os.openpty()
        try:
            opening = OPEN + make_nonce()
            os.write(host, opening)
            make_raw(port)
            os.set_blocking(port, False)
            assert os.read(port, 4096) == opening
        finally:
            os.close(host)
            os.close(port)
