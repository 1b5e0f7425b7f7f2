"""One run of ``kuasarctl exec``: standard streams, terminal and signals of this process, and the command far away.

The main thread writes output and handles signals; one thread reads standard input, as far as the gateway's window
goes; what is to be sent goes through one queue, which signal handlers may fill, too.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

from kuasar.api.gen.kuasar.admin.v1 import admin_pb2 as pb
from kuasar.cli.ctl.node import Node

_WINDOW_BYTES = 256 * 1024
_CHUNK = 32 * 1024
_PASSED_ON = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
_MANY_INTERRUPTS = 3
_INTERRUPTED = 128 + signal.SIGINT
_NO_READER = 128 + signal.SIGPIPE
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_USUAL_SIZE = pb.TerminalSize(width=80, height=24)
"""Where none of our streams is a terminal."""


class Session:
    """A command and its streams, once."""

    def __init__(
        self,
        sandbox: str,
        command: Sequence[str],
        env: dict[str, str],
        workdir: str,
        seconds: float,
        with_stdin: bool,
        terminal: bool,
    ) -> None:
        self._with_stdin = with_stdin
        self._terminal = terminal
        self._requests: queue.SimpleQueue[pb.ExecRequest | None] = queue.SimpleQueue()
        self._interrupts = 0
        self._call: Any = None
        self._room = threading.Condition()
        self._sent = 0
        self._taken = 0
        start = pb.ExecStart(
            id=sandbox,
            args=command,
            env=env,
            cwd=workdir,
            timeout_seconds=seconds,
            stdin=with_stdin,
            terminal=terminal,
        )
        if terminal:
            start.size.CopyFrom(_size() or _USUAL_SIZE)
        self._requests.put(pb.ExecRequest(start=start))

    def run(self, node: Node) -> tuple[int, str]:
        """Exit status, and what is to be said about it. Raises what :class:`Node` raises for a gateway that refuses
        or is gone."""
        stub = node.admin()
        with ExitStack() as stack:
            stack.callback(self._requests.put, None)
            if self._terminal and self._with_stdin:
                stack.enter_context(_raw_terminal())
            stack.enter_context(_handling(self._on_signal, self._on_resize if self._terminal else None))
            self._call = stub.Exec(iter(self._requests.get, None))
            stack.callback(self._call.cancel)
            if self._with_stdin:
                # A daemon: a read of a terminal cannot be ended.
                threading.Thread(target=self._read_input, daemon=True).start()
            return self._follow(node)

    def _follow(self, node: Node) -> tuple[int, str]:
        try:
            for response in node.following(self._call):
                match response.WhichOneof("response"):
                    case "stdout":
                        _write(_STDOUT, response.stdout)
                    case "stderr":
                        _write(_STDERR, response.stderr)
                    case "stdin_taken":
                        with self._room:
                            self._taken = response.stdin_taken
                            self._room.notify()
                    case "exit":
                        return response.exit.status, response.exit.reason
        except BrokenPipeError:
            return _NO_READER, ""
        except Exception:
            if self._interrupts >= _MANY_INTERRUPTS:
                return _INTERRUPTED, "killed, after being interrupted three times"
            raise
        return 125, "the gateway ended the call without saying how the command ended"

    # -- signals -------------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts >= _MANY_INTERRUPTS:
            self._call.cancel()
        else:
            self._requests.put(pb.ExecRequest(signal=number))

    def _on_resize(self, *_: object) -> None:
        size = _size()
        if size is not None:
            self._requests.put(pb.ExecRequest(resize=size))

    # -- standard input ------------------------------------------------------------------------------------------------

    def _read_input(self) -> None:
        try:
            while data := os.read(_STDIN, _CHUNK):
                self._requests.put(pb.ExecRequest(stdin=data))
                self._sent += len(data)
                with self._room:
                    self._room.wait_for(lambda: self._sent - self._taken <= _WINDOW_BYTES - _CHUNK)
        except OSError:
            pass  # a terminal that is gone has no more input
        self._requests.put(pb.ExecRequest(close_stdin=True))


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _size() -> pb.TerminalSize | None:
    for fd in (_STDOUT, _STDIN, _STDERR):
        try:
            columns, lines = os.get_terminal_size(fd)
        except OSError:
            continue
        return pb.TerminalSize(width=columns, height=lines)
    return None


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the command."""
    before = termios.tcgetattr(_STDIN)
    tty.setraw(_STDIN)
    try:
        yield
    finally:
        sys.stdout.flush()
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)


@contextmanager
def _handling(on_signal: Any, on_resize: Any) -> Iterator[None]:
    handlers = dict.fromkeys(_PASSED_ON, on_signal)
    if on_resize is not None:
        handlers[signal.SIGWINCH] = on_resize
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
