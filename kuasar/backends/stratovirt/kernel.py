"""A guest kernel in a form that StratoVirt loads.

Its microvm takes a bzImage, or else copies the file as it is to 16 MiB and jumps there: an ELF file has to be laid out
first. (A q35's kernel is the firmware's to start.)
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from kuasar.core.errors import BackendFailed, wrap

_START = 0x1000000
"""Where the kernel is loaded and entered."""
_MOST_BYTES = 512 * 1024 * 1024
_ELF_MAGIC, _LOAD = b"\x7fELF", 1
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")  # type, flags, offset, virtual, physical, file size, memory size, alignment
_BZIMAGE_MAGIC_AT, _BZIMAGE_MAGIC = 0x202, b"HdrS"


def flat_kernel(path: str, cache: str, name: str) -> str:
    """The kernel at ``path`` as a microvm's; if it is an ELF file, laid out as ``<cache>/<name>.bin``, which is made
    once (some 0.1 s). Raises :class:`BackendFailed`."""
    try:
        with open(path, "rb") as file:
            start = file.read(_HEADER.size)
    except OSError as exc:
        raise wrap(exc, f"the guest kernel {path}") from exc
    if not start.startswith(_ELF_MAGIC):
        return path
    target = f"{cache}/{name}.bin"
    if not os.path.exists(target):
        try:
            os.makedirs(cache, mode=0o700, exist_ok=True)
            _lay_out(path, target)
        except OSError as exc:
            raise wrap(exc, f"cannot write {target}") from exc
    return target


def is_bzimage(path: str) -> bool:
    """Whether a firmware can start it. Raises ``OSError``."""
    with open(path, "rb") as file:
        file.seek(_BZIMAGE_MAGIC_AT)
        return file.read(len(_BZIMAGE_MAGIC)) == _BZIMAGE_MAGIC


def _lay_out(path: str, target: str) -> None:
    """Its loadable segments at their physical addresses. What is zero stays a hole."""
    new = f"{target}.new-{os.getpid()}"  # several workers may do the same at the same time
    try:
        with open(path, "rb") as source, open(new, "wb") as file:
            for offset, address, size in _segments(path, source.read()):
                source.seek(offset)
                file.seek(address - _START)
                file.write(source.read(size))
        os.replace(new, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(new)
        raise


def _segments(path: str, data: bytes) -> list[tuple[int, int, int]]:
    """(offset, physical address, size in the file) of what is to be loaded."""
    try:
        fields = _HEADER.unpack_from(data)
        entry, table, entry_size, count = fields[4], fields[5], fields[9], fields[10]
        all_of_them = [_SEGMENT.unpack_from(data, table + index * entry_size) for index in range(count)]
    except struct.error as exc:
        raise BackendFailed(f"the guest kernel {path} is cut off") from exc
    found = [(each[2], each[4], each[5]) for each in all_of_them if each[0] == _LOAD and each[5]]
    if not found or entry != _START or min(address for _, address, _ in found) != _START:
        raise BackendFailed(f"the guest kernel {path} does not start at {_START:#x}, where StratoVirt enters it")
    for offset, address, size in found:
        if offset + size > len(data) or address + size - _START > _MOST_BYTES:
            raise BackendFailed(f"the guest kernel {path} is cut off, or a segment of it is out of place")
    return found
