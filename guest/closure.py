"""What has to be in the guest so that its programs run: Python modules, shared libraries, kernel modules.

Each is measured, not listed: our own code is followed import by import, the standard library is asked by importing it
with the guest's own interpreter, libraries by the guest's own loader, kernel modules by what they say they depend on.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from guest import recipe
from guest.packages import BuildFailed, run

_LOADER = "lib64/ld-linux-x86-64.so.2"
_LIBRARY_DIRS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_OURS = ("guest", "kuasar")
# Runs in the guest's interpreter: import what is asked for and say which files that loaded.
_PROBE = """
import sys
sys.path[:0] = sys.argv[1].split(":")
import importlib, json
missing = []
for name in json.loads(sys.argv[2]):
    try:
        importlib.import_module(name)
    except ImportError as exc:
        missing.append(f"{name}: {exc}")
files = {n: getattr(m, "__file__", None) or getattr(getattr(m, "__spec__", None), "origin", None)
         for n, m in sys.modules.items()}
print(json.dumps({"missing": missing, "files": files}))
"""


class Unpacked:
    """The unpacked packages, and running their programs without installing them (and without their libc being ours)."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)

    def path(self, name: str) -> str:
        """The absolute path of a file of a package."""
        return f"{self.directory}/{name}"

    def command(self, program: str, *arguments: str) -> list[str]:
        """The argument list that runs ``program`` with the packages' own loader and libraries."""
        return [*self._loader(), self.path(program), *arguments]

    def libraries(self, files: Iterable[str]) -> set[str]:
        """The names (below the directory) of all shared libraries that ``files`` need, the loader included."""
        found = set()
        for file in files:
            listing = run([*self._loader(), "--list", self.path(file)], f"libraries of {file}")
            for line in listing.splitlines():
                found |= self._library_of(line, file)
        return found

    def _library_of(self, line: str, file: str) -> set[str]:
        if "not found" in line:
            raise BuildFailed(f"{file} needs a library that is in no package of the recipe: {line.strip()}")
        path = re.search(r"=> (/\S+) \(", line)
        if path is None:
            return set()  # the kernel's own pages
        if not path[1].startswith(self.directory + "/"):
            raise BuildFailed(f"{file} would use {path[1]} of this machine: its package is missing in the recipe")
        return {path[1].removeprefix(self.directory + "/")}

    def _loader(self) -> list[str]:
        # The link of the package is absolute and would lead to this machine's loader.
        loader = self.path("lib/x86_64-linux-gnu/" + os.path.basename(_LOADER))
        path = ":".join(self.path(name) for name in _LIBRARY_DIRS)
        return [loader, "--inhibit-cache", "--library-path", path]


def python_modules(checkout: str, unpacked: Unpacked, wanted: Sequence[str]) -> dict[str, str]:
    """The files (below the directory) of ``wanted`` and all that importing them loads, by module name; without those of
    which ``checkout`` has a small one of our own."""
    search = [f"{checkout}/{recipe.SLIM_DIRECTORY}", unpacked.path(recipe.MSGPACK)]
    probe = unpacked.command("usr/bin/python3.11", "-I", "-S", "-B", "-c", _PROBE, ":".join(search), json.dumps(wanted))
    answer = json.loads(run(probe, "imports of the agent"))
    if answer["missing"]:
        raise BuildFailed("the agent imports what the guest's Python does not have: " + "; ".join(answer["missing"]))
    files = {}
    for name, file in answer["files"].items():
        if file == "frozen":  # in the interpreter; the library's copy is used where it asks for a file (getpath, os)
            file = _source_of(unpacked, name)
        if file and file.startswith(unpacked.directory + "/"):
            files[name] = file.removeprefix(unpacked.directory + "/")
    return files


def _source_of(unpacked: Unpacked, name: str) -> str | None:
    for candidate in (f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py"):
        path = unpacked.path(f"{recipe.STDLIB}/{candidate}")
        if os.path.exists(path):
            return path
    return None


def own_modules(root: str, names: Iterable[str], without: Iterable[str] = ()) -> tuple[dict[str, str], set[str]]:
    """Our modules that ``names`` import, at whatever place in them: their files below ``root``, and the other modules
    that all of these import."""
    files: dict[str, str] = {}
    others: set[str] = set()
    barred = set(without)
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in files or name in barred:
            continue
        file = find_module(root, name)
        if file is None:
            raise BuildFailed(f"there is no module {name} below {root}")
        files[name] = file
        parent = name.rpartition(".")[0]
        if parent:
            waiting.append(parent)
        with open(f"{root}/{file}", encoding="utf-8") as source:
            tree = ast.parse(source.read(), file)
        for imported in _imports(tree):
            if imported.partition(".")[0] not in _OURS:
                others.add(imported)
            elif find_module(root, imported):
                waiting.append(imported)
    return files, others


def find_module(root: str, name: str) -> str | None:
    """The source file of a module, below ``root``."""
    base = name.replace(".", "/")
    for candidate in (f"{base}.py", f"{base}/__init__.py"):
        if os.path.isfile(f"{root}/{candidate}"):
            return candidate
    return None


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            if node.module.partition(".")[0] in _OURS:  # ``from package import module``
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


class KernelModules:
    """The modules of one kernel: what they need, read from the files themselves."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._files: dict[str, str] = {}
        for parent, folders, names in os.walk(directory):
            folders.sort()
            for name in names:
                if name.endswith(".ko"):
                    self._files[_canonical(name[:-3])] = os.path.relpath(f"{parent}/{name}", directory)
        with open(f"{directory}/modules.builtin", encoding="ascii") as file:
            self._built_in = {_canonical(os.path.basename(line.strip())[:-3]) for line in file}

    def file(self, name: str) -> str:
        """The file of a module below the directory."""
        return self._files[_canonical(name)]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """``names`` with all they need, each after what it needs, as canonical names."""
        ordered: dict[str, None] = {}
        for name in names:
            self._visit(_canonical(name), ordered, ())
        return list(ordered)

    def _visit(self, name: str, ordered: dict[str, None], path: tuple[str, ...]) -> None:
        if name in ordered or name in self._built_in:
            return
        if name not in self._files:
            raise BuildFailed(f"the kernel has no module {' for '.join((name, *reversed(path)))}")
        if name in path:
            raise BuildFailed(f"the kernel module {name} needs itself: {' needs '.join((*path, name))}")
        for needed in self.needs(name):
            self._visit(needed, ordered, (*path, name))
        ordered[name] = None

    def aliases(self, name: str) -> list[str]:
        """The other names of a module, without patterns (those are of devices, which are there at boot or plugged in
        when their driver has been loaded long since)."""
        with open(f"{self._directory}/{self.file(name)}", "rb") as file:
            found = re.findall(rb"\0alias=([^\0]*)\0", file.read().replace(b"\0", b"\0\0"))
        return [alias.decode() for alias in found if not set(alias) & set(b"*?[ ")]

    def needs(self, name: str) -> list[str]:
        """What a module says it needs: its "depends" entries, in their order."""
        with open(f"{self._directory}/{self.file(name)}", "rb") as file:
            entry = re.search(rb"\0depends=([^\0]*)\0", file.read())
        if entry is None:
            raise BuildFailed(f"the kernel module {name} does not say what it depends on")
        return [_canonical(needed) for needed in entry[1].decode().split(",") if needed]


def _canonical(name: str) -> str:
    return name.replace("-", "_")
