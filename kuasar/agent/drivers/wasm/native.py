"""An engine that is a program of the host: what belongs to it, and how it comes along into a root of its own.

A program needs its loader and its libraries, and the root that a container's process ends up with has neither. So they
are looked up once (the loader itself lists them) and each file is bound, read-only, to its usual path below a small
root: nothing else of the host is there. A program that was unpacked into a folder together with the loader it asks for
is started through that one, which is how it runs on a system with an older libc than it was built for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from contextlib import suppress
from dataclasses import asdict, dataclass

from kuasar.agent.drivers.wasm import syscalls as sys
from kuasar.core.errors import BackendFailed
from kuasar.core.spawn import PATH, Children, Exit

_PT_INTERP = 3
_LISTED = re.compile(r"\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)")
_MISSING = re.compile(r"\s*(\S+) => not found")
_READ_ONLY = sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV


@dataclass(frozen=True)
class Native:
    """A program with all it needs to be started."""

    program: str
    argv: tuple[str, ...]
    """How it is started; its own arguments follow."""
    files: tuple[str, ...]
    version: str
    """What it said when it was asked for its version."""


def find_program(name: str, hint: str) -> str:
    """The absolute path of ``name``. Raises :class:`BackendFailed` naming what was looked for, and ``hint``."""
    if "/" not in name:
        found = shutil.which(name, path=PATH)
        if found is None:
            raise BackendFailed(f"there is no program {name} in {PATH}; {hint}")
        return found
    if not os.path.isfile(name) or not os.access(name, os.X_OK):
        raise BackendFailed(f"{name} is no program that can be executed; {hint}")
    return os.path.abspath(name)


async def inspect(
    children: Children, program: str, version_args: list[str], record: str, env: dict[str, str], deadline: float | None
) -> Native:
    """All about ``program``: from the file ``record`` if it tells of this very program, else by asking it (60 ms).

    Raises :class:`BackendFailed` if it does not run here.
    """
    identity = _identity(program, env)
    known = _load(record, identity)
    if known is not None:
        return known
    start, files = await _resolve(children, program, deadline)
    said = await children.run([*start, *version_args], env=env, deadline=deadline)
    words = said.output.decode(errors="replace").strip()
    if said.exit != Exit(0):
        raise BackendFailed(f"{program} does not run on this host: {words or said.exit.words}")
    native = Native(program, tuple(start), tuple(files), words)
    _store(record, identity, native)
    return native


def furnish(native: Native, root: str) -> None:
    """Put an empty file system on ``root`` and the program's files at their paths below it.

    Nothing there can be written, and nothing but these files executed. Needs a mount namespace of the caller's own.
    """
    sys.mount("engine", root, "tmpfs", 0, "mode=755,size=16m")
    for path in native.files:
        target = f"{root}{path}"
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        bind(path, target)


def bind(source: str, target: str) -> None:
    """Bind one file read-only."""
    tree = sys.clone_tree(source, recursive=False)
    try:
        sys.set_mount_attributes(tree, _READ_ONLY, 0, sys.MS_PRIVATE, recursive=False)
        sys.attach_tree(tree, target)
    finally:
        os.close(tree)


async def _resolve(children: Children, program: str, deadline: float | None) -> tuple[list[str], list[str]]:
    """How to start ``program`` and the files that takes."""
    interpreter = read_interpreter(program)
    if not interpreter:
        return [program], [program]
    loader, folders = _own_loader(program, interpreter)
    path = ["--library-path", ":".join(folders)] if folders else []
    listed = await children.run([loader, *path, "--list", program], deadline=deadline)
    text = listed.output.decode(errors="replace")
    missing = _MISSING.findall(text)
    if missing or listed.exit != Exit(0):
        what = f"misses {', '.join(missing)}" if missing else text.strip() or listed.exit.words
        raise BackendFailed(f"{program} cannot be started: {what}")
    libraries = [match[1] for line in text.splitlines() if (match := _LISTED.match(line)) and match[1] != interpreter]
    folders = list(dict.fromkeys(map(os.path.dirname, libraries)))
    start = [loader, *(["--library-path", ":".join(folders)] if folders else []), program]
    return start, list(dict.fromkeys([loader, program, *libraries]))


def read_interpreter(program: str) -> str:
    """The loader that an ELF program asks for; empty for one that needs none. Raises :class:`BackendFailed`."""
    try:
        with open(program, "rb") as file:
            head = file.read(64)
            if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
                raise BackendFailed(f"{program} is no 64-bit program (a script?); name the program itself")
            (table,) = struct.unpack_from("<Q", head, 32)
            size, count = struct.unpack_from("<HH", head, 54)
            for number in range(count):
                file.seek(table + number * size)
                entry = file.read(56)
                if struct.unpack_from("<I", entry)[0] == _PT_INTERP:
                    file.seek(struct.unpack_from("<Q", entry, 8)[0])
                    return file.read(struct.unpack_from("<Q", entry, 32)[0]).rstrip(b"\0").decode()
    except (OSError, struct.error, UnicodeDecodeError) as exc:
        raise BackendFailed(f"{program} cannot be read as a program: {exc}") from exc
    return ""


def _own_loader(program: str, interpreter: str) -> tuple[str, list[str]]:
    """The loader in the folder that the program was unpacked into, with its library folders; else the system's."""
    folder = os.path.dirname(os.path.dirname(program))  # without bin
    root = folder.removesuffix("/usr")
    for base in (root, f"{root}/usr"):
        loader = base + interpreter
        if root and os.path.exists(loader):
            triplet = os.path.basename(os.path.dirname(os.path.realpath(loader)))
            wanted = [f"{root}{part}/lib{end}" for part in ("/usr", "") for end in (f"/{triplet}", "")]
            return loader, [path for path in wanted if os.path.isdir(path)]
    return interpreter, []


def _identity(program: str, env: dict[str, str]) -> str:
    info = os.stat(program)
    return f"{program} {info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {sorted(env.items())}"


def _load(record: str, identity: str) -> Native | None:
    try:
        with open(record, encoding="utf-8") as file:
            known = json.load(file)
        if known["identity"] != identity or not all(map(os.path.exists, known["files"])):
            return None
        return Native(known["program"], tuple(known["argv"]), tuple(known["files"]), known["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _store(record: str, identity: str, native: Native) -> None:
    """Whoever cannot write it asks the program again."""
    with suppress(OSError):
        os.makedirs(os.path.dirname(record), 0o700, exist_ok=True)
        temporary = f"{record}.{os.getpid()}.tmp"
        fd = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"identity": identity, **asdict(native)}, file)
        os.rename(temporary, record)
