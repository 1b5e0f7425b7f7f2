"""Copies of the host's files, in the memory of a machine that shares no directory with it."""

from __future__ import annotations

import os
import stat

from kuasar.agent.files import remove_tree
from kuasar.agent.requests import Body
from kuasar.core.errors import wrap
from kuasar.core.ids import require_id

_ALLOWED = 0o7777
_FILE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Copies:
    """Trees below ``directory``, each under a name of identifiers (``containers/c/m0``)."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def write(self, body: Body) -> None:
        """Make the ``entries`` of a request below ``name``, in their order; what is there already is overwritten.
        Raises InvalidArgument naming the field, BackendFailed with the kernel's words."""
        top = self._place(body)
        for entry in body.maps("entries"):
            path = top + _below(entry)
            try:
                os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
                if os.path.realpath(os.path.dirname(path)) != os.path.dirname(path):
                    raise entry.error("path", f"{path!r:.200} leads through a symbolic link")
                _write(entry, path)
            except OSError as exc:
                raise wrap(exc, f"{entry.path('path')}: cannot write {path}") from exc

    def remove(self, body: Body) -> None:
        """Remove everything called ``name``; harmless when it is gone."""
        path = self._place(body)
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                remove_tree(path)
            elif os.path.lexists(path):
                os.unlink(path)
        except OSError as exc:
            raise wrap(exc, f"name: cannot remove {path}") from exc

    def _place(self, body: Body) -> str:
        parts = body.text("name").split("/")
        return "/".join((self._directory, *(require_id(part, "name") for part in parts)))


def _below(entry: Body) -> str:
    """The path of an entry, with a slash in front; empty for the top itself."""
    path = entry.text("path")
    if not path:
        return ""
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise entry.error("path", f"{path!r:.200} is not a path below the name")
    return f"/{path}"


def _write(entry: Body, path: str) -> None:
    mode, owner = entry.number("mode"), (entry.number("uid"), entry.number("gid"))
    if stat.S_ISDIR(mode):
        if not os.path.isdir(path):
            os.mkdir(path)
    elif stat.S_ISLNK(mode):
        if os.path.lexists(path):
            os.unlink(path)
        os.symlink(entry.text("link"), path)
        os.lchown(path, *owner)
        return
    elif stat.S_ISREG(mode):
        _write_file(entry, path)
    else:
        raise entry.error("mode", f"{mode:o} is no directory, file or symbolic link")
    os.chown(path, *owner)
    os.chmod(path, mode & _ALLOWED)


def _write_file(entry: Body, path: str) -> None:
    offset, data = entry.number("offset"), entry.binary("data")
    if offset < 0:
        raise entry.error("offset", f"{offset} is negative")
    fd = os.open(path, _FILE | (0 if offset else os.O_TRUNC), 0o600)
    try:
        while data:
            written = os.pwrite(fd, data, offset)
            data, offset = data[written:], offset + written
    finally:
        os.close(fd)
