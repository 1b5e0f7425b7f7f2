"""What a service tells systemd about itself (``sd_notify``): ``READY=1``, ``WATCHDOG=1``, ``STATUS=…``."""

from __future__ import annotations

import socket
from contextlib import suppress


def notify(address: str, *assignments: str) -> None:
    """Send ``assignments`` in one message to the socket that systemd named in ``NOTIFY_SOCKET``.

    Never blocks and never fails: a service manager that is away must not harm the service. ``@`` begins a name of the
    abstract namespace.
    """
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as out, suppress(OSError):
        out.sendto("\n".join(assignments).encode(), name)
