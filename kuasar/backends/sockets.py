"""Listening sockets in a sandbox directory, whose path may be longer than a socket address."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kuasar.core.errors import BackendFailed

_BACKLOG = 8


@contextmanager
def _directory(path: str) -> Iterator[tuple[int, str]]:
    """A descriptor of the directory and a short path to it."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd, f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def listen(directory: str, name: str, owner: int = 0) -> socket.socket:
    """A listening socket (0600) that user ``owner`` may connect to (0: we alone); what lay there is removed. Raises
    :class:`BackendFailed`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _directory(directory) as (fd, path):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
            listener.bind(f"{path}/{name}")
            os.chmod(name, 0o600, dir_fd=fd)
            if owner:
                os.chown(name, owner, -1, dir_fd=fd)
            listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise BackendFailed(f"cannot listen on {directory}/{name}: {exc.strerror}") from exc
    return listener


def connect(directory: str, name: str, whom: str) -> socket.socket:
    """A connected socket. Raises :class:`BackendFailed` naming ``whom``."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _directory(directory) as (_, path):
            connection.connect(f"{path}/{name}")
    except OSError as exc:
        connection.close()
        raise BackendFailed(f"cannot connect to {whom} at {directory}/{name}: {exc.strerror}") from exc
    return connection
