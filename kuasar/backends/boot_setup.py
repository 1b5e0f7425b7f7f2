"""What all machines of a VMM have in common on this host: its program, the guest image, the kernel's command line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from kuasar.backends.base import BINARY_HINT
from kuasar.backends.guest_image import INITRD, KERNEL, ROOT_DISK, Image, ImageUnusable, load
from kuasar.backends.probing import Probe, Runner, require_program
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed


@dataclass(frozen=True)
class Setup:
    """All that is the same for every machine of an engine on this host, now."""

    binary: str
    version: str
    kernel: str
    initrd: str
    root: str
    image_digest: str
    command_line: str


async def ask_program(
    host: Runner, name: str, deadline: float, require_version: Callable[[str, str], str], flag: str = "--version"
) -> Probe:
    """The program ``name`` and its version, which ``require_version`` reads from what it says when asked with ``flag``.
    Raises :class:`BackendFailed` naming what is missing, broken or too old, and the key that sets it; DeadlineExceeded
    if it hangs."""
    binary = require_program(name, BINARY_HINT)
    done = await host.run([binary, flag], deadline)
    words = done.output.decode(errors="replace").strip()
    if done.exit.shell_code:
        raise BackendFailed(f"{binary} {flag} {done.exit.words}: {words:.300}; {BINARY_HINT}")
    return Probe(binary, require_version(binary, words))


def require_image(settings: Engine) -> Image:
    """The guest image. Raises :class:`BackendFailed` with what is wrong with it."""
    try:
        return load(settings.image)
    except ImageUnusable as exc:
        raise BackendFailed(f"the guest image cannot be used: {exc}") from exc


def require_kernel(path: str) -> str:
    """The same path. Raises :class:`BackendFailed` if there is no file."""
    if not os.path.isfile(path):
        raise BackendFailed(f"the guest kernel {path} does not exist")
    return path


def command_line_of(image: Image, settings: Engine, words: str) -> str:
    """The kernel's command line: the engine's ``words``, the image's, then the operator's."""
    return " ".join(part for part in (words, image.command_line, settings.kernel_arguments) if part)


def setup_of(program: Probe, settings: Engine, words: str) -> Setup:
    """What ``program`` boots: the image's kernel, or the configured one. Raises :class:`BackendFailed` naming what is
    missing or broken."""
    image = require_image(settings)
    return Setup(
        binary=program.binary,
        version=program.version,
        kernel=require_kernel(settings.kernel or f"{settings.image}/{KERNEL}"),
        initrd=f"{settings.image}/{INITRD}",
        root=f"{settings.image}/{ROOT_DISK}",
        image_digest=image.digest,
        command_line=command_line_of(image, settings, words),
    )


def template_key(setup: Setup, guest: object, version: int) -> str:
    """Names the template of machines like ``guest`` (whose text says all of it): another one for whatever could make
    its state unusable. ``version`` is the template's form."""
    facts = {
        "format": version,
        "version": setup.version,
        "binary": identity(setup.binary),
        "kernel": identity(setup.kernel),
        "image": setup.image_digest,
        "guest": guest,
        "host": os.uname().release,
        "processor": _processor(),
    }
    text = "\n".join(f"{name}={value}" for name, value in facts.items())
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def identity(path: str) -> str:
    """Changes when the file does. Raises ``OSError``."""
    found = os.stat(path)
    return f"{path}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _processor() -> str:
    """What a state must find again: model and features."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        lines = file.read().partition("\n\n")[0].splitlines()
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags", "microcode")
    return "\n".join(line for line in lines if line.split("\t")[0].strip() in wanted)
