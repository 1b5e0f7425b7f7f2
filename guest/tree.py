"""The root file system of the guest as a directory: only what its programs need, byte-compiled.

Written from nothing at each build. Owners and times are set by what makes the image of it; nothing in it depends on
when or where it was made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping

from guest import recipe
from guest.closure import KernelModules, Unpacked, own_modules, python_modules
from guest.packages import BuildFailed

# Runs in the guest's interpreter, so that the byte code is its own; at run time there is no source to check it against.
_COMPILE = """
import json, py_compile, sys
unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
for source, target, shown in json.load(sys.stdin):
    # Without docstrings, which would be a tenth of the agent's memory, and without asserts.
    py_compile.compile(source, target, shown, doraise=True, optimize=2, invalidation_mode=unchecked)
"""


def write_root(root: str, checkout: str, unpacked: Unpacked, kernel: KernelModules, modules_from: str) -> None:
    """Make the directory ``root`` anew. ``checkout``: where our own code is; ``modules_from``: the kernel's modules."""
    shutil.rmtree(root, ignore_errors=True)
    os.makedirs(root)
    for name in recipe.DIRECTORIES:
        os.makedirs(f"{root}/{name}")
    for name, target in recipe.LINKS.items():
        os.makedirs(f"{root}/{target}" if not target.startswith("..") else root, exist_ok=True)
        os.symlink(target, f"{root}/{name}")
    for name, text in recipe.FILES.items():
        with open(f"{root}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
    binaries = _write_python(root, checkout, unpacked)
    _write_programs(root, unpacked, binaries)
    _write_applets(root, unpacked)
    write_modules(f"{root}/usr/lib/modules", kernel, modules_from)
    for name, text in recipe.SCRIPTS.items():
        with open(f"{root}/{name}", "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(f"{root}/{name}", 0o755)  # noqa: S103 - a program
    _set_modes(root)


def _write_python(root: str, checkout: str, unpacked: Unpacked) -> list[str]:
    """All Python code; gives the shared objects among it, which need libraries."""
    ours, others = own_modules(checkout, recipe.AGENT_ROOTS, recipe.NOT_IN_GUEST)
    files = python_modules(checkout, unpacked, sorted(others | set(recipe.STDLIB_BESIDES)))
    jobs = [(f"{checkout}/{file}", file) for file in ours.values()]
    jobs += [(f"{checkout}/{recipe.SLIM_DIRECTORY}/{name}.py", f"{name}.py") for name in recipe.SLIM]
    binaries = []
    for file in files.values():
        inside = _below(file, (recipe.STDLIB, recipe.MSGPACK))
        if file.endswith(".py"):
            jobs.append((unpacked.path(file), inside))
        else:
            binaries.append(file)
    # Python looks for its library by this file even when the module itself is frozen into it.
    jobs.append((unpacked.path(f"{recipe.STDLIB}/os.py"), "os.py"))
    _compile(root, unpacked, sorted(set(jobs), key=lambda job: job[1]))
    os.makedirs(f"{root}/{recipe.STDLIB}/lib-dynload", exist_ok=True)
    return sorted(binaries)


def _below(file: str, parents: Iterable[str]) -> str:
    for parent in parents:
        if file.startswith(parent + "/"):
            return file.removeprefix(parent + "/")
    raise BuildFailed(f"the agent imports {file}, which is in none of {', '.join(parents)}")


def _compile(root: str, unpacked: Unpacked, jobs: list[tuple[str, str]]) -> None:
    work = []
    for source, inside in jobs:
        target = f"/{recipe.STDLIB}/{inside}"
        os.makedirs(os.path.dirname(root + target), exist_ok=True)
        work.append((source, f"{root}{target}c", target))
    options = ["-S", "-s", "-P", "-B", "-X", "no_debug_ranges"]  # columns of tracebacks are memory, too
    command = unpacked.command("usr/bin/python3.11", *options, "-c", _COMPILE)
    environment = {"PYTHONHASHSEED": "0"}  # constants that are sets are written in an order that depends on it
    done = subprocess.run(command, input=json.dumps(work), env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed(f"compiling the guest's Python code failed:\n{done.stderr.strip()}")


def _write_programs(root: str, unpacked: Unpacked, binaries: list[str]) -> None:
    """The programs, the interpreter's extension modules, and the libraries of both."""
    needing = [*recipe.PROGRAMS, *binaries]
    for file in sorted({*needing, *unpacked.libraries(needing)}):
        inside = file if file.startswith("usr/") else f"usr/{file}"  # one tree: /lib is a link to /usr/lib
        if inside.startswith(recipe.MSGPACK + "/"):
            inside = f"{recipe.STDLIB}/{inside.removeprefix(recipe.MSGPACK + '/')}"
        os.makedirs(f"{root}/{os.path.dirname(inside)}", exist_ok=True)
        shutil.copyfile(unpacked.path(file), f"{root}/{inside}")
        executable = file in recipe.PROGRAMS or "/ld-linux" in file
        os.chmod(f"{root}/{inside}", 0o755 if executable else 0o644)
        if "/ld-linux" in file:
            os.symlink(
                f"../lib/x86_64-linux-gnu/{os.path.basename(file)}", f"{root}/usr/lib64/{os.path.basename(file)}"
            )


def _write_applets(root: str, unpacked: Unpacked) -> None:
    """Busybox under its names, as far as it has them."""
    program = unpacked.path(recipe.BUSYBOX)
    shutil.copyfile(program, f"{root}/usr/{recipe.BUSYBOX}")
    os.chmod(f"{root}/usr/{recipe.BUSYBOX}", 0o755)  # noqa: S103 - a program
    known = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in sorted(set(recipe.APPLETS.split()) & set(known)):
        os.symlink("busybox", f"{root}/usr/bin/{name}")


def write_modules(directory: str, kernel: KernelModules, modules_from: str) -> None:
    """The kernel modules of PID 1 and the table that guest/pid1/modules.py reads."""
    early = set(kernel.in_order(recipe.EARLY_MODULES))
    at_boot = [name for name in kernel.in_order(recipe.BOOT_MODULES) if name not in early]
    names = kernel.in_order((*recipe.BOOT_MODULES, *recipe.DEMAND_MODULES))
    needs: Mapping[str, list[str]] = {name: kernel.in_order(kernel.needs(name)) for name in names}
    for name in names:
        shutil.copyfile(f"{modules_from}/{kernel.file(name)}", f"{directory}/{name}.ko")
    with open(f"{directory}/needs", "w", encoding="ascii") as file:
        file.writelines(f"{' '.join((name, *needs[name]))}\n" for name in sorted(names))
    with open(f"{directory}/aliases", "w", encoding="ascii") as file:
        file.writelines(sorted(f"{alias} {name}\n" for name in names for alias in kernel.aliases(name)))
    with open(f"{directory}/at-boot", "w", encoding="ascii") as file:
        file.writelines(f"{name}\n" for name in at_boot)


def _set_modes(root: str) -> None:
    """Nothing is writable or special, whatever the umask of the build or the package's file said."""
    for parent, folders, names in os.walk(root):
        for name in folders:
            if not os.path.islink(f"{parent}/{name}"):
                os.chmod(f"{parent}/{name}", 0o755)  # noqa: S103 - what a root file system has
        for name in names:
            path = f"{parent}/{name}"
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.stat(path).st_mode & 0o111 else 0o644)
