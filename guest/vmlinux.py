"""Debian's compressed kernel as the ELF file that VMMs start directly.

Nothing is decompressed by the guest then, which is a tenth of a cold boot and most of the memory that a boot touches
(docs/decisions/0005-guest-image.md). What is zero is left out of the file: the loader of the VMM fills it in.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator

from guest.closure import Unpacked
from guest.packages import BuildFailed

_SECTOR = 512
_PAGE = 4096
_GAP_PAGES = 64
"""Fewer zero pages than this do not split a segment."""

# Offsets of the boot protocol's header in a bzImage.
_SETUP_SECTORS, _HEADER_MAGIC, _PAYLOAD_OFFSET, _PAYLOAD_LENGTH = 0x1F1, 0x202, 0x248, 0x24C
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
# Runs in the guest's interpreter, which has the library; the archive is a row of blocks of at most 8 MiB.
_UNPACK_LZ4 = """
import ctypes, struct, sys
lz4 = ctypes.CDLL(sys.argv[1])
source, out, at, block = sys.stdin.buffer.read(), sys.stdout.buffer, 4, ctypes.create_string_buffer(8 << 20)
while at + 4 < len(source):
    (size,) = struct.unpack_from("<I", source, at)
    at += 4
    made = lz4.LZ4_decompress_safe(source[at : at + size], block, size, len(block))
    if made < 0 or at + size > len(source):
        sys.exit("a block of the kernel does not decompress")
    out.write(block.raw[:made])
    at += size
"""

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")  # type, flags, offset, virtual, physical, file size, memory size, alignment
_LOAD, _NOTE = 1, 4


def unpack(bzimage: str, unpacked: Unpacked) -> bytes:
    """The ELF file inside a bzImage. Raises :class:`BuildFailed` when it is none, or is compressed otherwise."""
    with open(bzimage, "rb") as file:
        data = file.read()
    if data[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise BuildFailed(f"{bzimage} is no Linux kernel of the form bzImage")
    start = ((data[_SETUP_SECTORS] or 4) + 1) * _SECTOR + struct.unpack_from("<I", data, _PAYLOAD_OFFSET)[0]
    length = struct.unpack_from("<I", data, _PAYLOAD_LENGTH)[0]
    payload = data[start : start + length]
    if len(payload) < length:
        raise BuildFailed(f"{bzimage} is truncated: {len(payload)} bytes of {length}")
    if not payload.startswith(_LZ4_LEGACY):
        raise BuildFailed(f"{bzimage} is compressed in a way not known here (it begins with {payload[:4].hex()})")
    library = unpacked.path("usr/lib/x86_64-linux-gnu/liblz4.so.1")
    command = unpacked.command("usr/bin/python3.11", "-I", "-S", "-B", "-c", _UNPACK_LZ4, library)
    # The last four bytes of the payload are its unpacked length.
    done = subprocess.run(command, input=payload[:-4], capture_output=True)
    (length,) = struct.unpack("<I", payload[-4:])
    if done.returncode or len(done.stdout) != length:
        raise BuildFailed(
            f"{bzimage} cannot be unpacked: {done.stderr.decode(errors='replace').strip() or 'wrong length'}"
        )
    return done.stdout


def compact(elf: bytes) -> bytes:
    """The same kernel without sections, symbols and zero pages: equal memory when it has been loaded."""
    if not elf.startswith(b"\x7fELF\x02\x01"):
        raise BuildFailed("the kernel is no 64-bit ELF file")
    header = list(_ELF_HEADER.unpack_from(elf))
    first, size, count = header[5], header[9], header[10]
    segments = [_SEGMENT.unpack_from(elf, first + number * size) for number in range(count)]
    pieces = [piece for segment in segments if segment[0] == _LOAD for piece in _split(elf, segment)]
    notes = [segment for segment in segments if segment[0] == _NOTE]
    # One header page or more, then the pieces; notes are inside of a piece.
    at = _up(_ELF_HEADER.size + _SEGMENT.size * (len(pieces) + len(notes)))
    table, body = [], bytearray()
    moved: dict[int, int] = {}
    for kind, flags, offset, virtual, physical, file_size, memory_size, _ in pieces:
        moved[offset] = at + len(body)
        table.append((kind, flags, moved[offset], virtual, physical, file_size, memory_size, _PAGE))
        body += elf[offset : offset + file_size]
        body += b"\0" * (_up(len(body)) - len(body))
    for kind, flags, offset, *rest in notes:
        home = max((start for start in moved if start <= offset), default=None)
        if home is None:
            raise BuildFailed("the notes of the kernel are outside of what is loaded")
        table.append((kind, flags, moved[home] + offset - home, *rest))
    header[5], header[6], header[9], header[10] = _ELF_HEADER.size, 0, _SEGMENT.size, len(table)
    header[11], header[12], header[13] = 0, 0, 0  # no sections
    head = _ELF_HEADER.pack(*header) + b"".join(_SEGMENT.pack(*segment) for segment in table)
    return head.ljust(at, b"\0") + bytes(body)


def _split(elf: bytes, segment: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """A segment as one or more, between which there are only zeros. Together they cover the same memory."""
    kind, flags, offset, virtual, physical, file_size, memory_size, align = segment
    starts = _occupied(elf[offset : offset + file_size])
    for number, (start, end) in enumerate(starts):
        last = number == len(starts) - 1
        begin = 0 if number == 0 else start
        covered = (memory_size if last else starts[number + 1][0]) - begin
        size = min(end, file_size) - begin
        yield kind, flags, offset + begin, virtual + begin, physical + begin, size, covered, align


def _occupied(data: bytes) -> list[tuple[int, int]]:
    """Where in ``data`` there is something, in whole pages, small gaps included; at least one stretch."""
    zero = bytes(_PAGE)
    stretches: list[tuple[int, int]] = []
    for start in range(0, len(data), _PAGE):
        page = data[start : start + _PAGE]
        if page == zero[: len(page)]:
            continue
        if stretches and start - stretches[-1][1] < _GAP_PAGES * _PAGE:
            stretches[-1] = (stretches[-1][0], start + _PAGE)
        else:
            stretches.append((start, start + _PAGE))
    return stretches or [(0, 0)]


def _up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
