"""The Debian packages of the guest: fetched once, unpacked, never installed.

Owns ``<work>/packages`` (the .deb files) and ``<work>/unpacked`` (their trees over each other). Both are made again
when the recipe's list changes or when a refresh is asked for; otherwise a build needs no network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable

from guest import recipe
from kuasar.backends.guest_image import Package

_HERE = os.path.dirname(os.path.abspath(__file__))


class BuildFailed(Exception):
    """The image cannot be built; the message says what is missing or which command failed, and how."""


def run(argv: list[str], what: str) -> str:
    """Standard output of a command; :class:`BuildFailed` with everything it said when it fails."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except OSError as exc:
        raise BuildFailed(f"{what}: cannot start {argv[0]}: {exc.strerror}") from exc
    if done.returncode:
        raise BuildFailed(f"{what}: {argv[0]} exited with {done.returncode}\n{(done.stdout + done.stderr).strip()}")
    return done.stdout


def provide(work: str, say: Callable[[str], None], refresh: bool = False) -> tuple[str, list[Package]]:
    """The unpacked tree and the packages in it, sorted by name."""
    wanted = [f"depends:{recipe.KERNEL_META_PACKAGE}", *recipe.PACKAGES]
    key = hashlib.sha256("\n".join([recipe.SUITE, *wanted]).encode()).hexdigest()
    directory, unpacked = f"{work}/packages", f"{work}/unpacked"
    record = f"{unpacked}/.recipe"
    if refresh or _read(record) != key:
        shutil.rmtree(unpacked, ignore_errors=True)
        fetch = subprocess.run([f"{_HERE}/fetch.sh", recipe.SUITE, directory, *wanted], stdin=subprocess.DEVNULL)
        if fetch.returncode:
            raise BuildFailed("the packages cannot be fetched: see above")
        debs = _debs(directory)
        os.makedirs(unpacked)
        for number, deb in enumerate(debs, 1):
            say(f"unpacking {number}/{len(debs)} {os.path.basename(deb)}")
            run(["dpkg-deb", "-x", deb, unpacked], "unpacking")
        with open(record, "w", encoding="ascii") as file:
            file.write(key)
    return unpacked, [_describe(deb) for deb in _debs(directory)]


def _debs(directory: str) -> list[str]:
    return sorted(f"{directory}/{name}" for name in os.listdir(directory) if name.endswith(".deb"))


def _describe(deb: str) -> Package:
    name, version = run(["dpkg-deb", "-W", "--showformat", "${Package}\n${Version}", deb], "reading a package").split(
        "\n"
    )
    with open(deb, "rb") as file:
        return Package(name, version, hashlib.file_digest(file, "sha256").hexdigest())


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except FileNotFoundError:
        return ""
