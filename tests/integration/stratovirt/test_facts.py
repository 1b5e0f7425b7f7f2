"""Which StratoVirt is there and what it boots: found, missing, broken, too old, hanging."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kuasar.backends.probing import Probe, ProbeHost
from kuasar.backends.stratovirt.facts import find_program, find_setup
from kuasar.core.aio import Loop
from kuasar.core.config import Engine
from kuasar.core.errors import BackendFailed, DeadlineExceeded
from kuasar.core.spawn import Children
from tests.integration.stratovirt.rig import write_stand_in


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def host(loop: Loop) -> Iterator[ProbeHost]:
    children = Children(loop)
    yield ProbeHost(children)
    children.close()


@pytest.fixture
def settings(tmp_path: Path) -> Engine:
    """Of a q35 that has all it needs."""
    image = tmp_path / "image"
    image.mkdir()
    files = {}
    for name in ("vmlinux", "initrd", "root.erofs"):
        content = name.encode()
        (image / name).write_bytes(content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    description = {
        "format": 1,
        "kernel_release": "6.1.0-1-cloud-amd64",
        "command_line": "root=/dev/vda",
        "source_date_epoch": 1,
        "files": files,
        "packages": [],
    }
    (image / "image.json").write_text(json.dumps(description))
    bzimage = bytearray(1024)
    bzimage[0x202:0x206] = b"HdrS"
    (tmp_path / "vmlinuz").write_bytes(bzimage)
    (tmp_path / "OVMF_CODE.fd").write_bytes(bytes(256 * 1024))
    return Engine(
        kind="stratovirt",
        binary=write_stand_in(tmp_path),
        cache_dir=str(tmp_path / "cache"),
        image=str(image),
        kernel=str(tmp_path / "vmlinuz"),
        firmware=str(tmp_path / "OVMF_CODE.fd"),
        kernel_arguments="quiet",
    )


def script(directory: Path, *lines: str) -> str:
    path = directory / "stratovirt"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def find(loop: Loop, host: ProbeHost, name: str, seconds: float = 60.0) -> Probe:
    return loop.run(find_program(host, name, time.monotonic() + seconds))


def test_the_program_and_its_version(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    path = write_stand_in(tmp_path)
    assert find(loop, host, path) == Probe(path, "2.4.0")


def test_a_version_that_is_too_old(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    path = write_stand_in(tmp_path, STANDIN_VERSION="2.3.0")
    with pytest.raises(BackendFailed, match=r"StratoVirt 2\.3\.0 is too old, 2\.4 or newer is needed; .*`binary`"):
        find(loop, host, path)


def test_a_program_that_is_not_there(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"/none does not exist; .*`binary`"):
        find(loop, host, f"{tmp_path}/none")


def test_a_program_that_fails(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"stratovirt -version .*: no such CPU; .*`binary`"):
        find(loop, host, script(tmp_path, "echo no such CPU", "exit 3"))


def test_a_program_that_hangs(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        find(loop, host, script(tmp_path, "exec sleep 1000"), seconds=0.5)


def test_a_setup(loop: Loop, host: ProbeHost, settings: Engine) -> None:
    setup = loop.run(find_setup(host, settings, time.monotonic() + 60.0))
    assert (setup.kernel, setup.firmware) == (settings.kernel, settings.firmware)
    assert setup.root == f"{settings.image}/root.erofs"
    assert setup.command_line.startswith("console=ttyS0 ")
    assert setup.command_line.endswith(" root=/dev/vda quiet")


def test_a_microvm_needs_neither_firmware_nor_bzimage(loop: Loop, host: ProbeHost, settings: Engine) -> None:
    wish = dataclasses.replace(settings, machine="microvm", kernel="", firmware="")
    setup = loop.run(find_setup(host, wish, time.monotonic() + 60.0))
    assert (setup.kernel, setup.firmware) == (f"{settings.image}/vmlinux", "")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"firmware": ""}, r"a q35 needs a firmware: .*`firmware`.*microvm"),
        ({"firmware": "/none"}, r"the firmware /none: No such file"),
        ({"firmware": "/proc/self/comm"}, r"the firmware /proc/self/comm has 0 bytes, 131072 are needed"),
        ({"kernel": ""}, r"`kernel` of the engine \(boot/vmlinuz-6\.1\.0-1-cloud-amd64 in Debian's package"),
        ({"kernel": "/proc/self/comm"}, r"the guest kernel /proc/self/comm is no bzImage; .*`kernel`"),
        ({"kernel": "/none"}, r"the guest kernel /none: No such file"),
        ({"image": "/none"}, r"the guest image cannot be used: /none/image\.json"),
        ({"machine": "microvm", "kernel": "/none"}, r"the guest kernel /none: No such file"),
    ],
)
def test_what_is_missing(loop: Loop, host: ProbeHost, settings: Engine, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendFailed, match=words):
        loop.run(find_setup(host, dataclasses.replace(settings, **changes), time.monotonic() + 60.0))


def test_a_path_with_a_comma(loop: Loop, host: ProbeHost, settings: Engine, tmp_path: Path) -> None:
    firmware = tmp_path / "a,b.fd"
    firmware.write_bytes(bytes(256 * 1024))
    wish = dataclasses.replace(settings, firmware=str(firmware))
    with pytest.raises(BackendFailed, match=r"a,b\.fd: StratoVirt's options cannot hold a path with a comma"):
        loop.run(find_setup(host, wish, time.monotonic() + 60.0))
