"""The kernel file that is made from Debian's: the same memory after loading, without the zeros."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from guest import manifest, vmlinux
from guest.closure import Unpacked
from guest.packages import BuildFailed
from tests.integration.guest.conftest import WORK, Built

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")


def segments(elf: bytes, kind: int) -> list[tuple[int, ...]]:
    header = HEADER.unpack_from(elf)
    found = [SEGMENT.unpack_from(elf, header[5] + number * header[9]) for number in range(header[10])]
    return [segment for segment in found if segment[0] == kind]


def memory(elf: bytes) -> bytes:
    """What a loader leaves in memory, from the lowest address on."""
    loads = segments(elf, 1)
    low = min(segment[4] for segment in loads)
    image = bytearray(max(segment[4] + segment[6] for segment in loads) - low)
    for _, _, offset, _, physical, file_size, memory_size, _ in loads:
        data = elf[offset : offset + file_size].ljust(memory_size, b"\0")
        image[physical - low : physical - low + memory_size] = data
    return bytes(image)


def bzimage() -> Path:
    return next((WORK / "unpacked" / "boot").glob("vmlinuz-*"))


def test_it_loads_the_same_memory_and_says_the_same_notes(built: Built) -> None:
    before = vmlinux.unpack(str(bzimage()), Unpacked(str(WORK / "unpacked")))
    after = (built.directory / manifest.KERNEL).read_bytes()
    assert len(after) < 2 / 3 * len(before)
    assert memory(after) == memory(before)
    assert HEADER.unpack_from(after)[4] == HEADER.unpack_from(before)[4], "the entry point"
    (note_before,), (note_after,) = segments(before, 4), segments(after, 4)
    assert after[note_after[2] :][: note_after[5]] == before[note_before[2] :][: note_before[5]]
    for _, _, offset, virtual, *_ in segments(after, 1):
        assert offset % 4096 == virtual % 4096


def test_what_is_no_kernel_is_refused(built: Built, tmp_path: Path) -> None:
    unpacked = Unpacked(str(WORK / "unpacked"))
    other = tmp_path / "other"
    other.write_bytes(b"\0" * 8192)
    with pytest.raises(BuildFailed, match="is no Linux kernel of the form bzImage"):
        vmlinux.unpack(str(other), unpacked)
    other.write_bytes(bzimage().read_bytes()[: 4 << 20])
    with pytest.raises(BuildFailed, match="is truncated"):
        vmlinux.unpack(str(other), unpacked)
    with pytest.raises(BuildFailed, match="is no 64-bit ELF file"):
        vmlinux.compact(b"MZ")
