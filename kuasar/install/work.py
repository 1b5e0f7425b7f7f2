"""Carries a plan out: files first, then the services, and all of it back when a later step fails.

The record is on the disk before the first file changes. So also after ``kill -9`` at any point a second installation
goes on, and an uninstallation goes back, to the last byte.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from kuasar.core.errors import BackendFailed, KuasarError
from kuasar.core.failpoints import failpoint
from kuasar.core.trees import mounts_below, remove_tree
from kuasar.install.files import ABSENT, Found, look, make_parents, put, remove_empty
from kuasar.install.plan import Change, below
from kuasar.install.record import PATH, Record

Undo = contextlib.ExitStack
_SHOWN = 5


def read_record(root: str) -> Record | None:
    """Of the installation on this node; None without one. Raises InvalidArgument if it is damaged."""
    found = look(below(root, PATH))
    return None if found.kind == ABSENT else Record.from_file(found, PATH)


def put_all(changes: Sequence[Change], record: Record, root: str, undo: Undo) -> Record:
    """Write ``record`` and carry ``changes`` out; what ``undo`` is given takes both back. Gives the record with the
    directories that were made."""
    before = look(below(root, PATH))
    made = _make_parents([PATH, *(change.path for change in changes if change.after.kind != ABSENT)], root, undo)
    inside = tuple(path[len(root.rstrip("/")) :] for path in made)
    record = replace(record, directories=tuple(dict.fromkeys((*record.directories, *inside))))
    undo.callback(put, below(root, PATH), before)
    put(below(root, PATH), record.to_file())
    failpoint("install.recorded")
    for change in changes:
        if change.changes:
            undo.callback(put, below(root, change.path), change.before)
            put(below(root, change.path), change.after)
            failpoint("install.file")
    return record


def _make_parents(paths: Sequence[str], root: str, undo: Undo) -> list[str]:
    made: list[str] = []
    undo.callback(lambda: remove_empty(made))
    for path in paths:
        made += make_parents(below(root, path))
    return made


def take_back_all(changes: Sequence[Change], root: str, undo: Undo) -> None:
    """Carry the changes of an uninstallation out."""
    for change in changes:
        if change.changes:
            undo.callback(put, below(root, change.path), change.before)
            put(below(root, change.path), change.after)
            failpoint("uninstall.file")


def remove_data(directories: Sequence[str], root: str) -> None:
    """Remove directories with all that is in them; what is gone is no error.

    While anything is mounted below one of them, as what a pod uses is, none is touched. Raises BackendFailed that
    names it.
    """
    places = [os.path.realpath(below(root, directory)) for directory in directories]
    mounted = [mount for place in places for mount in mounts_below(place)]
    if mounted:
        raise BackendFailed(f"cannot be removed: something is mounted on {', '.join(mounted[:_SHOWN])}")
    for place in places:
        remove_tree(place)


def forget(record: Record, root: str, say: Callable[[str], None]) -> None:
    """The end of an uninstallation: data, record and directories go. Tells ``say`` what cannot be removed, and stays
    repeatable until there is nothing of that kind."""
    remove_data(record.data, root)
    put(below(root, PATH), Found())
    remove_empty([below(root, directory) for directory in record.directories])
    for directory in record.directories:
        if directory.endswith("/kuasar") and look(below(root, directory)).kind != ABSENT:
            say(f"{directory} stays: there is more in it than we put there")


@contextlib.contextmanager
def all_or_nothing() -> Iterator[Undo]:
    """A stack of what takes things back, used unless its body succeeds. An error of ours then says that it was."""
    undo = Undo()
    try:
        yield undo
    except KuasarError as exc:
        try:
            undo.close()
        except KuasarError as second:
            raise BackendFailed(f"{exc.message}\nand taking it back failed, too: {second.message}") from exc
        raise BackendFailed(f"{exc.message}\neverything was put back as it was") from exc
    except BaseException:
        undo.close()
        raise
