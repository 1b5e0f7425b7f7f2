"""What this host's QEMU is and can: asked once, remembered in ``<cache dir>/facts.json``.

``/dev/kvm`` can be opened on machines where no guest ever runs (nested without support), so KVM counts only when it has
brought a guest's kernel to its first words. The memory of it ends with the host's boot, a new QEMU or another guest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from kuasar.backends.boot_setup import identity, require_image, require_kernel
from kuasar.backends.guest_image import INITRD, KERNEL
from kuasar.backends.probing import Runner
from kuasar.backends.qemu import channel
from kuasar.backends.qemu.shape import Shape, command_line, cpu_model
from kuasar.core import log
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed, DeadlineExceeded

DEFAULT_BINARY = "qemu-system-x86_64"
_MIB = 1024 * 1024
_ASK_SECONDS = 10.0
_PROBE_SECONDS = 6.0
_FIRST_WORDS = b"kuasar-guest:"


@dataclass(frozen=True)
class Setup:
    """All that is the same for every machine of an engine on this host, now."""

    binary: str
    image: str
    kernel: str
    shape: Shape
    channel_helper: str
    """Program that the channel to the agent needs; empty if it needs none."""
    huge_pages: bool = False
    """Whether memory is of the host's huge pages. Templates are the same either way."""


async def find_setup(host: Runner, settings: Engine) -> Setup:
    """Look at QEMU, the guest image and the host. Raises :class:`BackendFailed` naming what is missing or broken."""
    binary = _find_binary(settings.binary or DEFAULT_BINARY)
    image = require_image(settings)
    kernel = require_kernel(settings.kernel or f"{settings.image}/{KERNEL}")
    facts = await _ask(host, settings, binary, kernel, image.digest)
    accel = facts["accel"] if settings.accel == "auto" else settings.accel
    kind, helper = channel.choose(settings)
    shape = Shape(
        qemu_version=facts["version"],
        accel=accel,
        cpu=cpu_model(accel, facts["version"], image.kernel_release),
        memory_bytes=settings.memory_mib * _MIB,
        max_memory_bytes=settings.max_memory_mib * _MIB,
        max_vcpus=settings.max_vcpus,
        ports=settings.device_ports,
        command_line=command_line(image.command_line, settings.kernel_arguments),
        image_digest=image.digest + (identity(kernel) if settings.kernel else ""),
        host_kernel=os.uname().release,
        channel=kind,
    )
    return Setup(binary, settings.image, kernel, shape, helper, settings.huge_pages)


def _find_binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BackendFailed(f"QEMU is not there: {name} cannot be found or executed (package qemu-system-x86)")
    return os.path.realpath(found)


async def _ask(host: Runner, settings: Engine, binary: str, kernel: str, digest: str) -> Mapping[str, str]:
    """``version`` and ``accel``, from memory where nothing has changed."""
    wanted = {
        "binary": identity(binary),
        "guest": digest + identity(kernel),
        "boot": _boot_id(),
        "wish": settings.accel,
    }
    path = f"{settings.cache_dir}/facts.json"
    known = _read(path)
    if all(known.get(name) == value for name, value in wanted.items()):
        return known
    version = await _version(host, binary)
    accel = settings.accel
    if accel == "auto":
        accel = "kvm" if await _kvm_works(host, binary, kernel, f"{settings.image}/{INITRD}") else "tcg"
    facts = {**wanted, "version": version, "accel": accel}
    _remember(path, facts)
    log.info("QEMU", binary=binary, version=version, accel=accel)
    return facts


async def _version(host: Runner, binary: str) -> str:
    done = await host.run([binary, "--version"], time.monotonic() + _ASK_SECONDS)
    match = re.search(rb"version (\S+)", done.output)
    if done.exit.shell_code or match is None:
        raise BackendFailed(
            f"{binary} --version {done.exit.words}: {done.output.decode(errors='replace').strip():.500}"
        )
    return match[1].decode(errors="replace")


async def _kvm_works(host: Runner, binary: str, kernel: str, initrd: str) -> bool:
    """Boot the guest's kernel without a disk: it says so and switches itself off."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    argv = [binary, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "kvm", "-M", "q35"]
    argv += ["-cpu", "host", "-m", "128", "-kernel", kernel, "-initrd", initrd]
    argv += ["-append", "console=ttyS0 quiet panic=-1", "-serial", "stdio"]
    try:
        done = await host.run(argv, time.monotonic() + _PROBE_SECONDS)
    except DeadlineExceeded:
        log.warning("/dev/kvm is there, but no guest comes up with it: machines are emulated (TCG)")
        return False
    if _FIRST_WORDS in done.output:
        return True
    log.warning("KVM does not work, machines are emulated (TCG)", reason=done.output.decode(errors="replace")[-300:])
    return False


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _read(path: str) -> dict[str, str]:
    try:
        with open(path, "rb") as file:
            values = json.load(file)
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in values.items()} if isinstance(values, dict) else {}


def _remember(path: str, facts: Mapping[str, str]) -> None:
    """Only saves time: a full disk is no reason not to start a machine."""
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
            json.dump(facts, file)
        os.replace(f"{path}.{os.getpid()}", path)


def describe(shape: Shape) -> dict[str, object]:
    """For people: what a template's key stands for."""
    return asdict(shape)
