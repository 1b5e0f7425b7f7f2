"""What a file must be to be a module, and what a module says of itself: its imports, its start, its first memory.

The reader is for modules that an engine has compiled already, so it explains nothing; what it cannot read is
:class:`BackendFailed`, and nothing makes it read beyond the file or loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from kuasar.core.errors import BackendFailed, InvalidArgument, ResourceExhausted

MAX_MODULE_BYTES = 256 * 1024 * 1024
PAGE = 65536

_MAGIC = b"\0asm"
_CORE_MODULE = b"\1\0\0\0"
_COMPONENT = b"\x0d\0\1\0"
_TYPES, _IMPORTS, _FUNCTIONS, _MEMORIES, _EXPORTS = 1, 2, 3, 5, 7
_FUNCTION, _TABLE, _MEMORY, _GLOBAL, _TAG = range(5)


def require_module(head: bytes, size: int, name: str) -> None:
    """Refuse, in words that help, what cannot be a module; ``head`` is the first 8 bytes of the file."""
    if size > MAX_MODULE_BYTES:
        raise ResourceExhausted(f"{name}: {size} bytes, a module may have at most {MAX_MODULE_BYTES}")
    if head[:4] == b"\x7fELF" or head[:2] == b"#!":
        kind = "a native program" if head[0] == 0x7F else "a script"
        raise InvalidArgument(
            f"process.args: {name} is {kind}; this runtime class runs WebAssembly modules only", field="process.args"
        )
    if head[:4] != _MAGIC:
        raise InvalidArgument(f"process.args: {name} is not a WebAssembly module", field="process.args")
    if head[4:] == _COMPONENT:
        raise InvalidArgument(
            f"process.args: {name} is a WebAssembly component; only core modules (WASI preview 1) can be run",
            field="process.args",
        )
    if head[4:] != _CORE_MODULE:
        raise InvalidArgument(
            f"process.args: {name} has WebAssembly version {head[4:].hex()}, only 1 is known", field="process.args"
        )


@dataclass(frozen=True)
class Interface:
    """What a module wants and gives."""

    imports: tuple[tuple[str, str], ...]
    """Module and name of each."""
    is_command: bool
    """Whether it exports a function ``_start`` without parameters and results."""
    memory_bytes: int
    """The size of its first memory at the start; 0 if it has none of its own."""


def read_interface(data: bytes, name: str) -> Interface:
    """Read the sections that matter of the module ``data``; ``name`` is for errors."""
    try:
        return _Reader(data).read()
    except (IndexError, UnicodeDecodeError, ValueError) as exc:
        raise BackendFailed(f"{name}: damaged: {exc}") from exc


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 8
        self._end = len(data)
        self._plain_types: list[bool] = []
        """Of each function type, whether it has neither parameters nor results."""
        self._functions: list[int] = []
        self._imports: list[tuple[str, str]] = []
        self._start = False
        self._memory = 0

    def read(self) -> Interface:
        readers = {
            _TYPES: self._type,
            _IMPORTS: self._import,
            _FUNCTIONS: lambda: self._functions.append(self._number()),
            _MEMORIES: self._own_memory,
            _EXPORTS: self._export,
        }
        while self._at < self._end:
            kind = self._byte()
            size = self._number()
            after = self._at + size
            if after > self._end:
                raise ValueError("a section is longer than the file")
            if kind in readers:
                for _ in range(self._number()):
                    readers[kind]()
                    if self._at > after:
                        raise ValueError("a section is shorter than its content")
            self._at = after
        return Interface(tuple(self._imports), self._start, self._memory)

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _number(self) -> int:
        """An unsigned LEB128 of at most 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number is too long")

    def _text(self) -> str:
        size = self._number()
        self._at += size
        if self._at > self._end:
            raise ValueError("a name is longer than the file")
        return str(self._data[self._at - size : self._at], "utf-8")

    def _type(self) -> None:
        if self._byte() != 0x60:
            raise ValueError("a type is no function type")
        counts = []
        for _ in range(2):
            counts.append(self._number())
            self._at += counts[-1]  # value types are one byte each
        self._plain_types.append(counts == [0, 0])

    def _import(self) -> None:
        self._imports.append((self._text(), self._text()))
        kind = self._byte()
        if kind == _FUNCTION:
            self._functions.append(self._number())
        elif kind == _TABLE:
            self._at += 1
            self._limits()
        elif kind == _MEMORY:
            self._limits()
        elif kind == _GLOBAL:
            self._at += 2
        else:
            raise ValueError(f"an import is of the unknown kind {kind}")

    def _limits(self) -> int:
        flags = self._byte()
        least = self._number()
        if flags & 1:
            self._number()
        return least

    def _own_memory(self) -> None:
        self._memory = max(self._memory, self._limits() * PAGE)

    def _export(self) -> None:
        name, kind, index = self._text(), self._byte(), self._number()
        if name == "_start" and kind == _FUNCTION:
            self._start = self._plain_types[self._functions[index]]
