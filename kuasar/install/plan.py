"""What would be done, as data: the paths that change, from what to what and why. Nothing here changes anything.

A file that is neither what was there before us nor what we put there is an operator's work. It is never overwritten:
an installation keeps it, and puts ours beside it as ``<path>.kuasar-new`` if ours has changed since it was last
offered; an uninstallation moves it to ``<path>.kuasar-saved``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from kuasar.core.errors import AlreadyExists, InvalidArgument
from kuasar.install.files import ABSENT, LINK, OTHER, Found, look
from kuasar.install.imports import remove_import
from kuasar.install.record import Entry, Record

NEW, SAVED = ".kuasar-new", ".kuasar-saved"


@dataclass(frozen=True)
class Change:
    """One path, as the node sees it."""

    path: str
    action: str
    """``create``, ``update``, ``keep`` (an operator's), ``same``; ``remove``, ``restore``, ``save``."""
    before: Found
    after: Found
    reason: str = ""

    @property
    def changes(self) -> bool:
        """Whether anything happens."""
        return self.before.digest != self.after.digest

    def diff(self) -> str:
        """For people and ``patch``; empty if nothing happens."""
        old, new = ("/dev/null" if found.kind == ABSENT else self.path for found in (self.before, self.after))
        before, after = (found.text.splitlines(keepends=True) for found in (self.before, self.after))
        text = difflib.unified_diff(before, after, fromfile=old, tofile=new)
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in text)


def plan_install(
    wanted: Mapping[str, Found], editable: str, record: Record, root: str
) -> tuple[list[Change], dict[str, Entry]]:
    """The changes in their order, and the entries of the record that go with them.

    ``editable``: the one path of ``wanted`` that is an operator's file with a change of ours in it. Raises
    AlreadyExists for a path that something else occupies.
    """
    changes: list[Change] = []
    entries = dict(record.entries)
    for path, want in wanted.items():
        found = look(below(root, path))
        if found.kind == OTHER or (found.kind != ABSENT and (found.kind == LINK) != (want.kind == LINK)):
            raise AlreadyExists(f"{path}: there is something else, which is not ours; move it away first")
        entry = entries.get(path)
        if path == editable:
            if found.digest == want.digest:
                changes.append(Change(path, "same", found, found))
                continue
            as_it_is = replace(want, mode=found.mode, uid=found.uid, gid=found.gid) if found.kind != ABSENT else want
            entries[path] = Entry(_original(found, entry)).with_ours(want)
            changes.append(Change(path, "create" if found.kind == ABSENT else "update", found, as_it_is))
        elif found.digest == want.digest:
            if entry is not None:
                entries[path] = entry.with_ours(want)
            changes.append(Change(path, "same", found, found))
        elif found.kind == ABSENT or (entry is not None and found.digest in entry.ours):
            entries[path] = (entry or Entry(Found())).with_ours(want)
            changes.append(Change(path, "create" if found.kind == ABSENT else "update", found, want))
        elif want.kind == LINK:
            raise AlreadyExists(f"{path}: is a {found.text.strip()}, which is not ours; move it away first")
        else:
            changes.append(Change(path, "keep", found, found, "edited by an operator, or not ours"))
            _offer(path, want, entry, entries, changes, root)
            entries[path] = replace(entry or Entry(found), offered=want.digest)
            continue
        if path != editable and look(below(root, path + NEW)).digest in entries.get(path + NEW, Entry(Found())).ours:
            changes.append(Change(path + NEW, "remove", look(below(root, path + NEW)), Found(), "not needed any more"))
    return changes, entries


def _original(found: Found, entry: Entry | None) -> Found:
    """What to go back to: with our change still in it, ``found`` would not do."""
    return entry.before if entry is not None and found.digest in entry.ours else found


def _offer(
    path: str, want: Found, entry: Entry | None, entries: dict[str, Entry], changes: list[Change], root: str
) -> None:
    """Put ours beside, unless it was offered before and has been declined by removing it."""
    beside = path + NEW
    found = look(below(root, beside))
    if entry is not None and entry.offered == want.digest and found.kind == ABSENT:
        return
    entries[beside] = entries.get(beside, Entry(Found())).with_ours(want)
    action = "same" if found.digest == want.digest else "create" if found.kind == ABSENT else "update"
    changes.append(Change(beside, action, found, want, f"what would be {path}"))


def plan_uninstall(record: Record, editable: str, ours: str, root: str, purge: bool) -> list[Change]:
    """The way back. ``editable`` imports ``ours``. Raises InvalidArgument if it does so in a way that cannot be
    undone."""
    changes: list[Change] = []
    for path, entry in sorted(record.entries.items(), key=lambda item: item[0] != editable):
        found = look(below(root, path))
        if found.kind == ABSENT or found.digest == entry.before.digest:
            changes.append(Change(path, "same", found, found))
        elif found.digest in entry.ours:
            changes.append(_back(path, found, entry.before))
        elif path == editable:
            changes.append(_take_out(path, found, entry.before, ours))
        else:
            if not purge:
                saved = look(below(root, path + SAVED))
                changes.append(Change(path + SAVED, "save", saved, found, f"{path} was edited by an operator"))
            changes.append(_back(path, found, entry.before))
    return changes


def _back(path: str, found: Found, before: Found) -> Change:
    return Change(path, "remove" if before.kind == ABSENT else "restore", found, before)


def _take_out(path: str, found: Found, before: Found, ours: str) -> Change:
    """It was edited since: only our part of it goes."""
    try:
        text = remove_import(found.content.decode(), ours)
    except (InvalidArgument, UnicodeDecodeError) as exc:
        raise InvalidArgument(f"{path}: {exc}; take {ours} out of its imports by hand, and repeat") from exc
    after = replace(found, content=text.encode(), mtime_ns=0)
    if after.digest == before.digest:
        return _back(path, found, before)
    if after.digest == found.digest:
        return Change(path, "same", found, found)
    return Change(path, "update", found, after, "it was edited since; only our import is taken out")


def below(root: str, path: str) -> str:
    """Where a path of the node is for us."""
    return f"{root.rstrip('/')}{path}"
