"""Which pods start as clones, and when a template is another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from kuasar.backends.base import MachineSpec, Nic
from kuasar.backends.boot_setup import Setup
from kuasar.backends.firecracker.template import key_of, why_not
from kuasar.backends.sizes import Size
from kuasar.core.config import Engine

SETTINGS = Engine(kind="firecracker", memory_mib=256)
NIC = Nic("eth0", "0e:00:00:00:00:01", 1500, (), "tap")
SPEC = MachineSpec("s", "pod", "/run/netns/x", "", False, False, "/log", nics=(NIC,))
SMALL = Size(1, 256 << 20)


@pytest.mark.parametrize(
    ("spec", "size", "settings", "words"),
    [
        (SPEC, SMALL, SETTINGS, ""),
        (SPEC, SMALL, dataclasses.replace(SETTINGS, template=False), "template = false"),
        (dataclasses.replace(SPEC, nics=()), SMALL, SETTINGS, "the pod has 0 network cards, the template 1"),
        (SPEC, Size(2, 256 << 20), SETTINGS, "the pod needs 2 processors and 256 MiB"),
        (SPEC, Size(1, 384 << 20), SETTINGS, "the pod needs 1 processors and 384 MiB"),
    ],
)
def test_who_can_be_a_clone(spec: MachineSpec, size: Size, settings: Engine, words: str) -> None:
    reason = why_not(spec, size, settings)
    assert reason.startswith(words) and bool(reason) == bool(words)


def test_whatever_makes_a_snapshot_unusable_gives_another_template(tmp_path: Path) -> None:
    for name in ("firecracker", "vmlinux", "vmlinux2"):
        (tmp_path / name).write_text(name)
    setup = Setup(f"{tmp_path}/firecracker", "1.12.0", f"{tmp_path}/vmlinux", "/i", "/r", "digest", "words")
    others = [
        (dataclasses.replace(setup, version="1.13.0"), SETTINGS),
        (dataclasses.replace(setup, kernel=f"{tmp_path}/vmlinux2"), SETTINGS),
        (dataclasses.replace(setup, image_digest="other"), SETTINGS),
        (dataclasses.replace(setup, command_line="others"), SETTINGS),
        (setup, dataclasses.replace(SETTINGS, memory_mib=512)),
        (setup, dataclasses.replace(SETTINGS, device_ports=4)),
    ]
    keys = {key_of(setup, SETTINGS), *(key_of(*other) for other in others)}
    assert len(keys) == 1 + len(others)
    assert key_of(setup, SETTINGS) == key_of(setup, dataclasses.replace(SETTINGS, max_vcpus=2))
    (tmp_path / "firecracker").write_text("a new build")
    assert key_of(setup, SETTINGS) not in keys
