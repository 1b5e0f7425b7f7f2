"""What a container writes at full speed, checked while it is written, and given back to the disk once it was read.

The writer numbers its lines, each stream from zero, and says at its end how many there were. Every line has the same
width, so that one that was torn is seen. Where containerd itself dies, what it had read and not written yet is lost
with it, whatever the runtime: one gap a death, torn at its edge or not, is let pass then, and none otherwise.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

WIDTH = 63
STOP_FILE = "/tmp/stop"
END_CODE = 7
"""With which the writer ends once there is :data:`STOP_FILE`."""
WRITES = [
    "awk",
    f'BEGIN {{ while ((getline line < "{STOP_FILE}") < 0) for (k = 0; k < 200; k++) {{'
    f' printf "%0{WIDTH}d\\n", i; printf "%0{WIDTH}d\\n", i > "/dev/stderr"; i++ }}'
    f' system("sleep 1");'  # who has made the file must end first: it would be killed with the container
    f' printf "end %d\\n", i; printf "end %d\\n", i > "/dev/stderr"; exit {END_CODE} }}',
]
_STREAMS = (b"stdout", b"stderr")
_ENTRY = re.compile(rb"^\S+ (\w+) ([FP])[^ ]* (.*)$", re.MULTILINE)
_READ_BYTES = 4 << 20
_BLOCK = 1 << 20
"""Of the log, what is given back to the disk at a time."""
_MOST_COMPLAINTS = 3
_PUNCH_HOLE_KEEP_SIZE = 0x3


@dataclass
class Stream:
    """One stream of a writer."""

    name: str
    count: int = 0
    ended_at: int | None = None
    """How many lines the writer says that it has written."""
    wrong: list[str] = field(default_factory=list)
    _next: int = 0
    _part: bytes = b""
    _gaps_allowed: int = 0
    _in_gap: bool = False

    def allow_gap(self) -> None:
        """containerd is about to die."""
        self._gaps_allowed += 1

    def feed(self, text: bytes, whole: bool) -> None:
        """The next entry of the log: a line, or the beginning of one if it is not ``whole``."""
        line = self._part + text
        if not whole:
            self._part = line
            return
        self._part = b""
        if len(line) == WIDTH and line.isdigit():
            self.count += 1
            if (number := int(line)) != self._next:
                self._jump(number)
            self._next, self._in_gap = number + 1, False
        elif line.startswith(b"end ") and line[4:].isdigit():
            self.ended_at = int(line[4:])
            if self.ended_at != self._next:
                self._jump(self.ended_at)
        elif not self._enter_gap():
            self._complain(f"torn after {self._next - 1}: {line!r:.200}")

    def unfinished(self) -> list[str]:
        """What is wrong with it once nothing follows."""
        return [*self.wrong, *([] if self.ended_at is not None else [f"{self.name}: ends after {self._next - 1}"])]

    def _jump(self, number: int) -> None:
        if number < self._next:
            self._complain(f"{number} comes after {self._next - 1}")
        elif not self._in_gap and not self._enter_gap():
            self._complain(f"{number - self._next} lines are missing from {self._next} on")

    def _enter_gap(self) -> bool:
        if self._in_gap or not self._gaps_allowed:
            return False
        self._gaps_allowed -= 1
        self._in_gap = True
        return True

    def _complain(self, words: str) -> None:
        if len(self.wrong) < _MOST_COMPLAINTS:
            self.wrong.append(f"{self.name}: {words}")


class Lines:
    """The log of one writer, as containerd writes it. For one thread at a time."""

    def __init__(self, path: str) -> None:
        self.streams = {name: Stream(name.decode()) for name in _STREAMS}
        self._path = path
        self._file = -1
        self._rest = b""
        self._offset = self._freed = 0

    @property
    def count(self) -> int:
        """Lines on both streams."""
        return sum(stream.count for stream in self.streams.values())

    @property
    def ended(self) -> bool:
        """Whether both streams have come to their last line."""
        return all(stream.ended_at is not None for stream in self.streams.values())

    def allow_gap(self) -> None:
        """containerd is about to die."""
        for stream in self.streams.values():
            stream.allow_gap()

    def read(self) -> None:
        """Check what is new."""
        if self._file < 0:
            if not os.path.exists(self._path):
                return
            self._file = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        while data := os.pread(self._file, _READ_BYTES, self._offset):
            self._offset += len(data)
            entries, newline, self._rest = (self._rest + data).rpartition(b"\n")
            for name, tag, text in _ENTRY.findall(entries + newline):
                self.streams[name].feed(text, tag == b"F")
        if self._offset - self._freed >= _BLOCK:
            self._give_back()

    def wrong(self) -> list[str]:
        """In words, after the last :meth:`read`."""
        return [words for stream in self.streams.values() for words in stream.unfinished()]

    def close(self) -> None:
        """Harmless to repeat."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _give_back(self) -> None:
        """containerd appends, so that the size must stay; a file system without holes keeps it."""
        whole = self._offset // _BLOCK * _BLOCK
        ctypes.CDLL(None).fallocate(
            self._file,
            _PUNCH_HOLE_KEEP_SIZE,
            ctypes.c_long(self._freed),
            ctypes.c_long(whole - self._freed),
        )
        self._freed = whole


@contextmanager
def reading(logs: Sequence[Lines], seconds: float = 0.05) -> Iterator[None]:
    """Read all of them every now and then until the end."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            for each in logs:
                each.read()

    reader = threading.Thread(target=run, name="lines")
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()
