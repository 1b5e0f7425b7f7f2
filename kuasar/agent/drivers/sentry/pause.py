"""The program of a pod's first container, which holds the kernel and does nothing: an ELF file of 136 bytes.

runsc ends the kernel with the first container, and the containers of a pod come and go; so the first one is ours.
"""

from __future__ import annotations

import platform
import struct

from kuasar.core.errors import BackendFailed

# for ever: pause()
_CODE = {
    "x86_64": (62, bytes.fromhex("b8220000000f05ebf7")),
    # ppoll(NULL, 0, NULL, NULL)
    "aarch64": (183, bytes.fromhex("000080d2010080d2020080d2030080d2680980d2010000d4faffff17")),
}
_ADDRESS = 0x400000
_HEADER, _ENTRY = 64, 56


def pause_program(machine: str = "") -> bytes:
    """The program for ``machine`` (this one's by default). Raises :class:`BackendFailed` for one that is not known."""
    machine = machine or platform.machine()
    if machine not in _CODE:
        raise BackendFailed(f"no program to hold a gVisor pod on {machine} (known: {', '.join(_CODE)})")
    kind, code = _CODE[machine]
    start = _HEADER + _ENTRY
    size = start + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 2, kind, 1, _ADDRESS + start, _HEADER, 0, 0, _HEADER, _ENTRY, 1, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)  # read and execute
    return ident + header + load + code
