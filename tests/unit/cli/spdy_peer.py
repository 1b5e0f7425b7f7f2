"""The server half of an exec over SPDY/3.1, played by the test on a thread: real sockets, real frames.

Written from the protocol, not from our client, so that the two check each other: it decompresses header blocks
with zlib's plain interface and compresses its replies with a preset dictionary, as containerd's library does.
"""

from __future__ import annotations

import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

TIMEOUT = 10.0


class Peer:
    """One accepted connection. `streams` maps names to numbers; `frames` yields what the client sends after that."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.request = b""
        self.streams: dict[str, int] = {}
        self._decompressor = zlib.decompressobj()
        self._compressor = zlib.compressobj(zdict=b"\x00\x00\x00\x07options")

    def read_exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.connection.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def upgrade(self, answer: bytes = b"") -> None:
        """Reads the HTTP request and agrees, or gives another `answer`."""
        while not self.request.endswith(b"\r\n\r\n"):
            self.request += self.read_exactly(1)
        self.connection.sendall(
            answer
            or b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
        )

    def accept_streams(self, count: int) -> None:
        """Takes `count` streams, and acknowledges them only when all are there."""
        for _ in range(count):
            kind, body = self.read_control()
            assert kind == 1, "SYN_STREAM"
            stream, associated, priority, slot = struct.unpack_from(">IIBB", body)
            assert (associated, priority, slot) == (0, 0, 0)
            block = self._decompressor.decompress(body[10:])
            assert struct.unpack_from(">I", block) == (1,)
            fields, at = [], 4
            for _ in range(2):
                (length,) = struct.unpack_from(">I", block, at)
                fields.append(block[at + 4 : at + 4 + length].decode())
                at += 4 + length
            assert at == len(block)
            assert fields[0] == "streamtype"
            self.streams[fields[1]] = stream
        # A client that sends data too early would lose it here.
        self.connection.setblocking(False)
        with suppress(BlockingIOError):
            assert self.connection.recv(1, socket.MSG_PEEK) == b"nothing before the acknowledgement"
        self.connection.settimeout(TIMEOUT)
        for stream in self.streams.values():
            block = self._compressor.compress(struct.pack(">I", 0)) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
            self.send_control(2, struct.pack(">I", stream) + block)

    def read_control(self) -> tuple[int, bytes]:
        version, kind, length = struct.unpack(">HHI", self.read_exactly(8))
        assert version == 0x8003
        return kind, self.read_exactly(length & 0xFFFFFF)

    def read_data(self) -> tuple[str, bytes, bool]:
        """The next data frame: stream name, data, whether it ends the stream."""
        stream, length = struct.unpack(">II", self.read_exactly(8))
        names = {number: name for name, number in self.streams.items()}
        return names[stream], self.read_exactly(length & 0xFFFFFF), bool(length >> 24 & 1)

    def send_control(self, kind: int, body: bytes) -> None:
        self.connection.sendall(struct.pack(">HHI", 0x8003, kind, len(body)) + body)

    def send_data(self, name: str, data: bytes) -> None:
        self.connection.sendall(struct.pack(">II", self.streams[name], len(data)) + data)

    def finish(self, status: str = '{"status":"Success"}') -> None:
        """Writes the exit status, resets the streams and hangs up, as containerd does."""
        self.send_data("error", status.encode())
        for stream in self.streams.values():
            self.send_control(3, struct.pack(">II", stream, 5))
        self.send_control(7, struct.pack(">II", 0, 0))


@contextmanager
def serving(script: Callable[[Peer], None]) -> Iterator[str]:
    """Plays `script` for the first client and yields the URL; an error in the script fails the test."""
    failures: list[BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)

        def play() -> None:
            try:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(TIMEOUT)
                    script(Peer(connection))
            except BaseException as error:  # raised again in the test's own thread
                failures.append(error)

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/exec/token?x=1"
        finally:
            thread.join(TIMEOUT)
            assert not thread.is_alive()
    if failures:
        raise failures[0]
