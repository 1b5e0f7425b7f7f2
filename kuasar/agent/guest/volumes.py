"""Volumes in the machine's memory, which the containers of the pod share and which end with it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from kuasar.agent import kernel
from kuasar.agent.guest import huge_pages
from kuasar.agent.guest.huge_pages import bytes_of
from kuasar.core.errors import InvalidArgument, wrap
from kuasar.core.ids import require_id

PREFIX = "volume:"
KINDS = ("tmpfs", "hugetlbfs")
_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV


class Volumes:
    """Made on first use below ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._made: dict[str, tuple[str, tuple[str, ...]]] = {}

    def provide(self, name: str, kind: str, data: Sequence[str], field: str) -> str:
        """The directory of volume ``name``. ``data``: options of the file system, ``size=`` among them; the same for
        all containers. Huge pages for its size are reserved; without one they
        are made when they are used. Raises :class:`InvalidArgument` naming the field."""
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
        size = bytes_of(options["size"], f"{field}.options") if "size" in options else 0
        if kind == "hugetlbfs":
            text = options.get("pagesize", "")
            page = bytes_of(text, f"{field}.options") if text else huge_pages.DEFAULT_PAGE_BYTES
            if size:
                huge_pages.reserve(size, page, f"{field}.options")
            else:
                huge_pages.allow(page, f"{field}.options")
        try:
            os.makedirs(path, exist_ok=True)
            kernel.mount(kind, path, kind, _FLAGS, ",".join(data))
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise InvalidArgument(
                    f"{field}.options: the kernel refuses {','.join(data)!r:.200} for {kind}", field=f"{field}.options"
                ) from exc
            raise wrap(exc, f"{field}: cannot make the volume") from exc
