"""One running exec or attach: stdin, output, terminal size and exit status over the streaming half of CRI.

CRI's Exec and Attach answer with a URL; behind it containerd serves the streams over SPDY/3.1 (what the kubelet
uses) or over WebSocket. We speak the part of SPDY that this needs, because containerd's WebSocket variant has no
way to end stdin without ending the output too. One stream each for error (the exit status as JSON), stdin, stdout,
stderr and resize. The server's SPDY library has no flow control, so we need none; header blocks are compressed
without SPDY's preset dictionary, which zlib allows and the server reads, and those of the server are not looked at.

    connecting --every stream acknowledged--> open --peer closes, or close()--> ended

An `ExecStream` belongs to one thread. It reads whenever it waits or writes, so a peer that only continues once its
output is taken cannot block it. All output is kept until the session is dropped.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import time
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc

PROTOCOL = "v4.channel.k8s.io"  # the version that puts the exit code on the error stream

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING = 1, 2, 3, 6
_SPDY3 = 0x8003  # control bit and version
_FIN = 1
_HEAD = struct.Struct(">II")
_CHUNK = 32 << 10
_READ = 256 << 10


class CriError(Exception):
    """A CRI call or stream failed: `code` says how (a gRPC status code), `message` what, in the peer's words."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


class ExecResult(NamedTuple):
    """What a finished command left. With a terminal, stderr is part of stdout."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class ExecStream:
    """A command running in a container, or an attachment to the container's own process.

    Leaving the context closes the connection; what that does to a command still running is up to the runtime.
    Every call raises CriError: DEADLINE_EXCEEDED after `timeout` seconds, UNAVAILABLE when the stream has ended.
    """

    def __init__(self, url: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool, timeout: float) -> None:
        """Connects to `url` and opens the streams, which must be those asked for in the Exec or Attach call."""
        self._out = bytearray()
        self._in = bytearray()
        self._compressor = zlib.compressobj()
        self._names: dict[int, str] = {}
        self._acknowledged: set[str] = set()
        self._ended = False
        self._searched = 0
        self.received: dict[str, bytearray] = {}
        deadline = time.monotonic() + timeout
        self._socket = _dial(url, timeout)
        try:
            self._upgrade(url)
            self._socket.setblocking(False)
            asked = {"error": True, "stdin": stdin, "stdout": stdout, "stderr": stderr, "resize": tty}
            for name in (name for name, wanted in asked.items() if wanted):
                self._open(name)
            # The server throws away what arrives on a stream that it has not acknowledged yet.
            self._pump(
                lambda: len(self._acknowledged) == len(self._names), deadline - time.monotonic(), "opening the streams"
            )
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> ExecStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stdout(self) -> bytes:
        """All standard output so far."""
        return bytes(self.received.get("stdout", b""))

    @property
    def stderr(self) -> bytes:
        """All standard error so far."""
        return bytes(self.received.get("stderr", b""))

    def send_stdin(self, data: bytes, *, timeout: float = 30.0) -> None:
        """Sends `data` and returns when it has left this process."""
        stream = self._require("stdin")
        for start in range(0, len(data), _CHUNK):
            self._queue_data(stream, data[start : start + _CHUNK])
        self._flush(timeout, "sending stdin")

    def close_stdin(self, *, timeout: float = 30.0) -> None:
        """Ends stdin: the command reads end-of-file. Output goes on."""
        self._queue_data(self._require("stdin"), b"", _FIN)
        self._flush(timeout, "closing stdin")

    def resize(self, width: int, height: int, *, timeout: float = 30.0) -> None:
        """Tells the terminal its size, in characters."""
        size = json.dumps({"Width": width, "Height": height}).encode()
        self._queue_data(self._require("resize"), size)
        self._flush(timeout, "resizing the terminal")

    def read_until(self, text: bytes, *, timeout: float = 30.0) -> bytes:
        """Waits for `text` in stdout and returns what came since the previous `read_until`, `text` included."""
        output = self.received["stdout"]
        start = self._searched
        self._pump(lambda: output.find(text, start) >= 0, timeout, f"waiting for {text!r}")
        self._searched = output.find(text, start) + len(text)
        return bytes(output[start : self._searched])

    def wait(self, *, timeout: float = 30.0) -> ExecResult:
        """Waits for the end and returns all output and the exit code.

        CriError INTERNAL when the runtime could not run the command. For an attachment the exit code is 0
        once the container's process has ended, whatever that process returned.
        """
        self._pump(lambda: self._ended, timeout, "waiting for the command to end")
        return ExecResult(self.stdout, self.stderr, self._exit_code())

    def close(self) -> None:
        """Drops the connection. Harmless to repeat."""
        self._ended = True
        self._socket.close()

    # --- the protocol

    def _upgrade(self, url: str) -> None:
        parts = urlsplit(url)
        request = (
            f"POST {parts.path}{'?' + parts.query if parts.query else ''} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: {PROTOCOL}\r\nContent-Length: 0\r\n\r\n"
        )
        try:
            self._socket.sendall(request.encode("ascii"))
            while b"\r\n\r\n" not in self._in:
                data = self._socket.recv(_READ)
                if not data or len(self._in) > _READ:
                    raise CriError(grpc.StatusCode.UNAVAILABLE, f"{url}: no HTTP answer: {bytes(self._in[:200])!r}")
                self._in += data
        except OSError as error:
            raise CriError(grpc.StatusCode.UNAVAILABLE, f"{url}: {error}") from error
        head, _, rest = bytes(self._in).partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 ") or PROTOCOL.encode() not in head:
            answer = (head + b" " + rest)[:300].decode(errors="replace")
            raise CriError(grpc.StatusCode.UNAVAILABLE, f"{url}: refused to speak SPDY/3.1 and {PROTOCOL}: {answer}")
        self._in = bytearray(rest)

    def _open(self, name: str) -> None:
        stream = len(self._names) * 2 + 1
        self._names[stream] = name
        self.received[name] = bytearray()
        fields = (b"streamtype", name.encode())
        block = struct.pack(">I", 1) + b"".join(struct.pack(">I", len(field)) + field for field in fields)
        block = self._compressor.compress(block) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        # stream, associated stream (none), priority and slot (none)
        body = struct.pack(">IIBB", stream, 0, 0, 0) + block
        self._queue_control(_SYN_STREAM, body)

    def _queue_control(self, kind: int, body: bytes) -> None:
        self._out += _HEAD.pack(_SPDY3 << 16 | kind, len(body)) + body

    def _queue_data(self, stream: int, data: bytes, flags: int = 0) -> None:
        self._out += _HEAD.pack(stream, flags << 24 | len(data)) + data

    def _require(self, name: str) -> int:
        for stream, known in self._names.items():
            if known == name:
                return stream
        raise CriError(grpc.StatusCode.FAILED_PRECONDITION, f"the stream was opened without {name}")

    def _flush(self, timeout: float, doing: str) -> None:
        self._pump(lambda: not self._out, timeout, doing)

    def _pump(self, done: Callable[[], bool], timeout: float, doing: str) -> None:
        """Reads, and writes what is queued, until `done`."""
        deadline = time.monotonic() + timeout
        poll = select.poll()
        while not done():
            if self._ended:
                raise CriError(grpc.StatusCode.UNAVAILABLE, f"{doing}: the stream has ended{self._last_words()}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise CriError(grpc.StatusCode.DEADLINE_EXCEEDED, f"{doing}: not done in {timeout:g} s")
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._out else 0))
            ready = dict(poll.poll(left * 1000 + 1)).get(self._socket.fileno(), 0)
            if ready & select.POLLOUT:
                self._write()
            if ready & ~select.POLLOUT:
                self._read()

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._out[:_READ])
        except BlockingIOError:
            return
        except OSError:
            self._out.clear()  # the peer is gone; what it said before can still be read
            self._ended = not self._can_read()
            return
        del self._out[:sent]

    def _can_read(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ended = True
            return
        self._in += data
        used = 0
        while len(self._in) - used >= _HEAD.size:
            first, second = _HEAD.unpack_from(self._in, used)
            end = used + _HEAD.size + (second & 0xFFFFFF)
            if len(self._in) < end:
                break
            self._take(first, second >> 24, bytes(self._in[used + _HEAD.size : end]))
            used = end
        del self._in[:used]

    def _take(self, first: int, flags: int, body: bytes) -> None:
        """One frame; kinds that need no answer and carry nothing for us (GOAWAY, SETTINGS, ...) pass by."""
        if not first >> 31:
            name = self._names.get(first)
            if name is None:
                raise CriError(grpc.StatusCode.INTERNAL, f"data on SPDY stream {first}, which was never opened")
            self.received[name] += body
            return
        if first >> 16 != _SPDY3:
            raise CriError(grpc.StatusCode.INTERNAL, f"SPDY frame of another version: {first:#010x}")
        kind = first & 0xFFFF
        if kind in {_SYN_REPLY, _RST_STREAM, _PING} and len(body) < 4:
            raise CriError(grpc.StatusCode.INTERNAL, f"SPDY frame of type {kind} has only {len(body)} bytes")
        if kind == _SYN_REPLY:
            self._acknowledged.add(self._names.get(int.from_bytes(body[:4], "big"), ""))
        elif kind == _PING:
            self._queue_control(_PING, body)

    def _last_words(self) -> str:
        words = bytes(self.received.get("error", b""))[:300].decode(errors="replace")
        return f": {words}" if words else ""

    def _exit_code(self) -> int:
        try:
            status = json.loads(self.received["error"])
        except ValueError:
            status = None
        if not isinstance(status, dict):
            text = f"the stream ended without an exit status{self._last_words()}"
            raise CriError(grpc.StatusCode.UNAVAILABLE, text)
        if status.get("status") == "Success":
            return 0
        code = _find_exit_code(status)
        if code is None:
            raise CriError(grpc.StatusCode.INTERNAL, str(status.get("message") or status))
        return code


def _find_exit_code(status: dict[str, Any]) -> int | None:
    """The exit code in a Kubernetes Status object, {"details": {"causes": [{"reason": "ExitCode", ...}]}}."""
    details = status.get("details")
    causes = details.get("causes") if isinstance(details, dict) else None
    for cause in causes if isinstance(causes, list) else []:
        if isinstance(cause, dict) and cause.get("reason") == "ExitCode" and str(cause.get("message")).isdecimal():
            return int(cause["message"])
    return None


def _dial(url: str, timeout: float) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not parts.port:
        raise CriError(grpc.StatusCode.UNIMPLEMENTED, f"cannot stream from {url!r}: only http://host:port is spoken")
    try:
        return socket.create_connection((parts.hostname, parts.port), timeout)
    except OSError as error:
        raise CriError(grpc.StatusCode.UNAVAILABLE, f"cannot connect to {url}: {error}") from error
