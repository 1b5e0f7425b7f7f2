"""Huge pages of the machine: set aside for a volume of known size, or made of ordinary memory when they are used.

On a host huge pages are reserved beforehand, and the kubelet counts them. A machine has memory of its own, so pages can
be made as they are asked for; what a container may use is then up to its limit (``hugepageLimits``), if it has one.
"""

from __future__ import annotations

import re

from kuasar.core.errors import InvalidArgument, ResourceExhausted, wrap

DEFAULT_PAGE_BYTES = 2 << 20
_DIRECTORY = "/sys/kernel/mm/hugepages"
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE = re.compile(r"(\d+)([kmg]?)(?:i?b|i)?")
_ANY_NUMBER = 1 << 20
"""Of pages: more than any machine can have."""


def bytes_of(text: str, field: str) -> int:
    """A size as mount options (``2M``, ``2Mi``) and limits (``2MB``) spell it. Raises :class:`InvalidArgument`."""
    match = _SIZE.fullmatch(text.lower())
    if match is None:
        raise InvalidArgument(f"{field}: {text!r:.80} is no size", field=field)
    return int(match[1]) * _UNITS[match[2]]


def reserve(size: int, page: int, field: str) -> None:
    """Set as many more huge pages aside as ``size`` bytes need. Raises ResourceExhausted, InvalidArgument for a size
    of pages that this processor has not."""
    wanted = -(-size // page)
    before = _set(page, "nr_hugepages", None, field)
    got = _set(page, "nr_hugepages", before + wanted, field) - before
    if got < wanted:
        _set(page, "nr_hugepages", before, field)
        raise ResourceExhausted(f"{field}: {wanted} huge pages of {page >> 10} KiB are needed, {got} can be had")


def allow(page: int, field: str) -> None:
    """Let huge pages be made when they are asked for. Harmless to repeat; raises as :func:`reserve`."""
    _set(page, "nr_overcommit_hugepages", _ANY_NUMBER, field)


def _set(page: int, name: str, value: int | None, field: str) -> int:
    """What the kernel's number is afterwards."""
    try:
        with open(f"{_DIRECTORY}/hugepages-{page >> 10}kB/{name}", "r+", encoding="ascii") as file:
            if value is not None:
                file.write(str(value))
                file.flush()
                file.seek(0)
            return int(file.read())
    except FileNotFoundError as exc:
        raise InvalidArgument(f"{field}: there are no huge pages of {page >> 10} KiB", field=field) from exc
    except OSError as exc:
        raise wrap(exc, f"{field}: cannot set {name}") from exc
