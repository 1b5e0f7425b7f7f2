"""Which StratoVirt this host has, and what its machines boot."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from kuasar.backends import boot_setup
from kuasar.backends.base import BINARY_HINT
from kuasar.backends.boot_setup import ask_program, command_line_of, require_image
from kuasar.backends.guest_image import INITRD, KERNEL, ROOT_DISK, Image
from kuasar.backends.probing import Probe, Runner
from kuasar.backends.stratovirt.argv import Q35, is_sayable
from kuasar.backends.stratovirt.kernel import flat_kernel, is_bzimage
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed, wrap

DEFAULT_BINARY = "stratovirt"
_OLDEST = (2, 4)
_VERSION = re.compile(r"^StratoVirt (\d+)\.(\d+)(\.\d+)*", re.MULTILINE)
_SMALLEST_FIRMWARE = 128 * 1024
"""StratoVirt copies so much of its end below 1 MiB."""
_COMMAND_LINE = "console=ttyS0 quiet reboot=t panic=-1 kuasar.end=reboot cryptomgr.notests random.trust_cpu=on"
"""A triple fault is what ends either kind of machine: a microvm has no ACPI, and a q35 that resets starts anew."""


@dataclass(frozen=True)
class Setup(boot_setup.Setup):
    """All that is the same for every machine of an engine on this host, now."""

    firmware: str


async def find_program(host: Runner, name: str, deadline: float) -> Probe:
    """The program ``name`` (empty: by its usual name) and its version. Errors as ``ask_program``."""
    return await ask_program(host, name or DEFAULT_BINARY, deadline, require_version, "-version")


def require_version(binary: str, said: str) -> str:
    """The version in what ``-version`` said. Raises :class:`BackendFailed` if it is older than 2.4 or none."""
    match = _VERSION.search(said)
    if match is None:
        raise BackendFailed(f"{binary}: {said.strip()!r:.100} is no version of StratoVirt; {BINARY_HINT}")
    if (int(match[1]), int(match[2])) < _OLDEST:
        raise BackendFailed(f"{binary}: {match[0]} is too old, 2.4 or newer is needed; {BINARY_HINT}")
    return match[0].removeprefix("StratoVirt ")


async def find_setup(host: Runner, settings: Engine, deadline: float) -> Setup:
    """Look at StratoVirt, the guest image and the firmware. Raises :class:`BackendFailed` naming what is missing or
    broken."""
    program = await find_program(host, settings.binary, deadline)
    image = require_image(settings)
    setup = Setup(
        binary=program.binary,
        version=program.version,
        kernel=_kernel(settings, image),
        initrd=f"{settings.image}/{INITRD}",
        root=f"{settings.image}/{ROOT_DISK}",
        firmware=_firmware(settings),
        image_digest=image.digest,
        command_line=command_line_of(image, settings, _COMMAND_LINE),
    )
    for path in (setup.kernel, setup.initrd, setup.root, setup.firmware):
        require_sayable(path)
    return setup


def require_sayable(path: str) -> str:
    """The same path. Raises :class:`BackendFailed` if it cannot be said on the command line."""
    if not is_sayable(path):
        raise BackendFailed(f"{path}: StratoVirt's options cannot hold a path with a comma")
    return path


def _kernel(settings: Engine, image: Image) -> str:
    if settings.machine == Q35:
        return _firmware_kernel(settings, image)
    path = settings.kernel or f"{settings.image}/{KERNEL}"
    try:
        found = os.stat(path)
    except OSError as exc:
        raise wrap(exc, f"the guest kernel {path}") from exc
    # Changes when the file does.
    name = f"kernel-{image.digest[:16]}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
    return flat_kernel(path, settings.cache_dir, name)


def _firmware_kernel(settings: Engine, image: Image) -> str:
    release = image.kernel_release
    hint = (
        "a q35's firmware starts a bzImage: name the image's own with `kernel` of the engine "
        f"(boot/vmlinuz-{release} in Debian's package linux-image-{release})"
    )
    if not settings.kernel:
        raise BackendFailed(hint)
    try:
        usable = is_bzimage(settings.kernel)
    except OSError as exc:
        raise wrap(exc, f"the guest kernel {settings.kernel}") from exc
    if not usable:
        raise BackendFailed(f"the guest kernel {settings.kernel} is no bzImage; {hint}")
    return settings.kernel


def _firmware(settings: Engine) -> str:
    if settings.machine != Q35:
        return ""
    hint = 'name one with `firmware` of the engine (OVMF_CODE.fd of Debian\'s package ovmf), or set machine = "microvm"'
    if not settings.firmware:
        raise BackendFailed(f"a q35 needs a firmware: {hint}")
    try:
        size = os.stat(settings.firmware).st_size
    except OSError as exc:
        raise wrap(exc, f"the firmware {settings.firmware}") from exc
    if size < _SMALLEST_FIRMWARE:
        raise BackendFailed(
            f"the firmware {settings.firmware} has {size} bytes, {_SMALLEST_FIRMWARE} are needed; {hint}"
        )
    return settings.firmware
