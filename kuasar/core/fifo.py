"""The FIFOs that containerd makes for standard streams: their paths checked, opened without ever blocking."""

from __future__ import annotations

import os
import stat

from kuasar.core.errors import InvalidArgument


def check_path(path: str, field: str) -> None:
    """Raise :class:`InvalidArgument` naming ``field`` unless ``path`` is absolute or empty (no such stream)."""
    if "://" in path:
        scheme = path.partition("://")[0]
        raise InvalidArgument(f"{field}: the scheme {scheme}:// is not supported, a FIFO is needed", field=field)
    if path and not os.path.isabs(path):
        raise InvalidArgument(f"{field}: {path!r} is not an absolute path", field=field)


def open_fifo(path: str, mode: int, field: str) -> int:
    """A non-blocking descriptor of the caller's. Raises :class:`InvalidArgument` for what is no FIFO."""
    try:
        fd = os.open(path, mode | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise InvalidArgument(f"{field}: cannot open {path!r}: {reason}", field=field) from exc
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"{field}: {path} is not a FIFO", field=field)
    return fd
