"""The engines, and what those need that run virtual machines: the guest image, KVM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from kuasar.backends.guest_image import ImageUnusable, load
from kuasar.cli.ctl import words
from kuasar.cli.ctl.doctor.finding import Finding, failed, passed, warned
from kuasar.cli.ctl.engines import ask_engines
from kuasar.cli.ctl.failures import Absent, Away, Failed
from kuasar.cli.ctl.node import Node
from kuasar.core.config import Config

_KVM = "/dev/kvm"


def check(node: Node) -> Iterator[Finding]:
    """All of it."""
    try:
        found, _ = ask_engines(node)
    except (Away, Absent, Failed) as exc:
        yield failed("engines", exc.message, "kuasarctl engines")
        return
    yield from _engines(node.config, found)
    yield from _images(node.config)
    yield _kvm(found)


def _engines(config: Config, found: list[dict[str, Any]]) -> Iterator[Finding]:
    if not any(each["usable"] for each in found):
        yield failed("engines", "none of the configured engines can be used", "see the checks of the engines")
    for each in found:
        name = f"engine {each['name']}"
        if each["usable"]:
            yield passed(name, f"{each['kind']} {each['version']}, {each['binary']}")
        else:
            users = [key for key, entry in sorted(config.sandboxers.items()) if entry.engine == each["name"]]
            names = " ".join(users) or "its sandboxer"
            remedy = f"install it, or name its binary; else remove it and {names} from kuasar.toml"
            yield warned(name, each["reason"], remedy)


def _images(config: Config) -> Iterator[Finding]:
    directories = {
        config.engine(name).image: name for name in sorted(config.engines) if config.engine(name).kind == "qemu"
    }
    for directory, engine in directories.items():
        try:
            image = load(directory, digests=True)
        except ImageUnusable as exc:
            yield warned("guest image", f"{exc} (engine {engine})", "make guest, or bring an image of your own")
            continue
        total = sum(file.bytes for file in image.files.values())
        yield passed(
            "guest image", f"{directory}: Linux {image.kernel_release}, {words.size(total)}, every byte as made"
        )


def _kvm(found: list[dict[str, Any]]) -> Finding:
    machines = [each for each in found if "accel" in each["details"]]
    if not os.path.exists(_KVM):
        return warned(
            "kvm", f"there is no {_KVM}: machines are emulated, 10 times slower", "enable virtualisation; modprobe kvm"
        )
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return warned("kvm", f"{_KVM} may not be opened: machines are emulated", f"give root access to {_KVM}")
    if not machines:
        return warned("kvm", f"{_KVM} is there, but no engine that could try it can be used", "see the engines")
    if any(each["details"]["accel"] == "kvm" for each in machines):
        return passed("kvm", "a guest was booted with it, and ran")
    reason = f"{_KVM} is there, but no guest runs with it: machines are emulated"
    return warned("kvm", reason, "nested virtualisation is off or broken here; see dmesg, or use a host with KVM")
