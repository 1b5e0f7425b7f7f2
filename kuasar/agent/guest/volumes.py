"""Volumes in the machine's memory, which the containers of the pod share and which end with it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from kuasar.agent import kernel
from kuasar.core.errors import InvalidArgument, ResourceExhausted, wrap
from kuasar.core.ids import require_id

PREFIX = "volume:"
KINDS = ("tmpfs", "hugetlbfs")
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV
_HUGE_PAGES = "/sys/kernel/mm/hugepages"


class Volumes:
    """Made on first use below ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._made: dict[str, tuple[str, tuple[str, ...]]] = {}

    def provide(self, name: str, kind: str, data: Sequence[str], field: str) -> str:
        """The directory of volume ``name``. ``data``: options of the file system, ``size=`` among them; the same for
        all containers. Huge pages for its size are reserved. Raises :class:`InvalidArgument` naming the field."""
        require_id(name, f"{field}.source")
        if kind not in KINDS:
            raise InvalidArgument(f"{field}.type: {kind!r:.80} is none of {', '.join(KINDS)}", field=f"{field}.type")
        path = f"{self._directory}/{name}"
        made = self._made.get(name)
        if made is None:
            self._make(path, kind, data, field)
            self._made[name] = (kind, tuple(data))
        elif made != (kind, tuple(data)):
            raise InvalidArgument(
                f"{field}.options: the volume {name} exists as {made[0]} with {','.join(made[1]) or 'no options'}",
                field=f"{field}.options",
            )
        return path

    def _make(self, path: str, kind: str, data: Sequence[str], field: str) -> None:
        options = dict(option.partition("=")[::2] for option in data)
        size = _bytes(options["size"], f"{field}.options") if "size" in options else 0
        if kind == "hugetlbfs":
            _reserve(size, _bytes(options.get("pagesize", "2M"), f"{field}.options"), f"{field}.options")
        try:
            os.makedirs(path, exist_ok=True)
            kernel.mount(kind, path, kind, _FLAGS, ",".join(data))
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise InvalidArgument(
                    f"{field}.options: the kernel refuses {','.join(data)!r:.200} for {kind}", field=f"{field}.options"
                ) from exc
            raise wrap(exc, f"{field}: cannot make the volume") from exc


def _bytes(text: str, field: str) -> int:
    """A size as mount options spell it."""
    number = text.lower().removesuffix("i").rstrip("kmg")
    unit = text.lower().removesuffix("i")[len(number) :]
    if not number.isdecimal() or unit not in _UNITS:
        raise InvalidArgument(f"{field}: {text!r:.80} is no size", field=field)
    return int(number) * _UNITS[unit]


def _reserve(size: int, page: int, field: str) -> None:
    """As many more huge pages as ``size`` needs."""
    wanted = -(-size // page)
    path = f"{_HUGE_PAGES}/hugepages-{page >> 10}kB/nr_hugepages"
    try:
        with open(path, "r+", encoding="ascii") as file:
            before = int(file.read())
            file.seek(0)
            file.write(str(before + wanted))
        with open(path, encoding="ascii") as file:
            got = int(file.read()) - before
        if got < wanted:
            with open(path, "w", encoding="ascii") as file:
                file.write(str(before))
            raise ResourceExhausted(f"{field}: {wanted} huge pages of {page >> 10} KiB are needed, {got} can be had")
    except FileNotFoundError as exc:
        raise InvalidArgument(f"{field}: there are no huge pages of {page >> 10} KiB", field=field) from exc
    except OSError as exc:
        raise wrap(exc, f"{field}: cannot reserve huge pages") from exc
