"""A guest kernel as StratoVirt's microvm loads it."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kuasar.backends.stratovirt.facts import require_version
from kuasar.backends.stratovirt.kernel import flat_kernel, is_bzimage
from kuasar.core.errors import BackendFailed

START = 0x1000000
HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SEGMENT = struct.Struct("<IIQQQQQQ")


def elf(segments: list[tuple[int, bytes]], entry: int = START) -> bytes:
    """A kernel with these pieces at these physical addresses, and a note, which is not loaded."""
    table = HEADER.size
    data = table + SEGMENT.size * (len(segments) + 1)
    head = HEADER.pack(b"\x7fELF\x02\x01\x01", 2, 62, 1, entry, table, 0, 0, 64, 56, len(segments) + 1, 0, 0, 0)
    body = b""
    for address, content in segments:
        size = len(content)
        head += SEGMENT.pack(1, 5, data + len(body), 0, address, size, size + 4096, 4096)
        body += content
    return head + SEGMENT.pack(4, 0, table, 0, 0, 16, 16, 4) + body


def test_segments_lie_at_their_addresses(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(elf([(START, b"text"), (START + 8192, b"data")]))
    path = flat_kernel(str(tmp_path / "vmlinux"), str(tmp_path / "cache"), "kernel-1")
    assert path == str(tmp_path / "cache" / "kernel-1.bin")
    assert Path(path).read_bytes() == b"text" + bytes(8188) + b"data"
    assert [each.name for each in (tmp_path / "cache").iterdir()] == ["kernel-1.bin"]


def test_it_is_made_once(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(elf([(START, b"text")]))
    first = flat_kernel(str(tmp_path / "vmlinux"), str(tmp_path), "k")
    Path(first).write_bytes(b"another")
    assert Path(flat_kernel(str(tmp_path / "vmlinux"), str(tmp_path), "k")).read_bytes() == b"another"


def test_what_is_no_elf_file_is_left_alone(tmp_path: Path) -> None:
    image = bytearray(1024)
    image[0x202:0x206] = b"HdrS"
    (tmp_path / "vmlinuz").write_bytes(image)
    path = str(tmp_path / "vmlinuz")
    assert flat_kernel(path, str(tmp_path), "k") == path
    assert is_bzimage(path)
    (tmp_path / "vmlinux").write_bytes(elf([(START, b"text")]))
    assert not is_bzimage(str(tmp_path / "vmlinux"))


@pytest.mark.parametrize(
    "content, words",
    [
        (elf([(START, b"text")], entry=START + 1), "does not start at 0x1000000"),
        (elf([(START + 4096, b"text")]), "does not start at 0x1000000"),
        (elf([]), "does not start at 0x1000000"),
        (elf([(START, b"text")])[:70], "is cut off"),
        (elf([(START, b"text")])[:-1], "is cut off"),
        (elf([(START, b"text"), (1 << 40, b"far")]), "out of place"),
    ],
)
def test_a_kernel_that_cannot_be_loaded(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "vmlinux").write_bytes(content)
    with pytest.raises(BackendFailed, match=words):
        flat_kernel(str(tmp_path / "vmlinux"), str(tmp_path / "cache"), "k")
    assert not list((tmp_path / "cache").iterdir())


def test_a_kernel_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"the guest kernel .*none: No such file"):
        flat_kernel(f"{tmp_path}/none", str(tmp_path), "k")


def test_versions() -> None:
    assert require_version("sv", "StratoVirt 2.4.0 commit-id 6ee16fe0\n\n") == "2.4.0"
    assert require_version("sv", "StratoVirt 3.0") == "3.0"
    with pytest.raises(BackendFailed, match=r"StratoVirt 2\.3\.0 is too old, 2\.4 or newer is needed; .*`binary`"):
        require_version("sv", "StratoVirt 2.3.0")
    with pytest.raises(BackendFailed, match="is no version of StratoVirt"):
        require_version("sv", "QEMU emulator version 7.2")
