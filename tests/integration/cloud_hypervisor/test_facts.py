"""Which Cloud Hypervisor is there: found, missing, broken, too old, hanging."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kuasar.backends.cloud_hypervisor.facts import find_program
from kuasar.backends.probing import Probe, ProbeHost
from kuasar.core.aio import Loop
from kuasar.core.errors import BackendFailed, DeadlineExceeded
from kuasar.core.spawn import Children
from tests.standins.install import install


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


def script(directory: Path, *lines: str) -> str:
    path = directory / "cloud-hypervisor"
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def find(loop: Loop, host: ProbeHost, name: str, seconds: float = 60.0) -> Probe:
    return loop.run(find_program(host, name, time.monotonic() + seconds))


def test_the_program_and_its_version(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    path = install("cloud_hypervisor", tmp_path)
    assert find(loop, host, path) == Probe(path, "50.0.0")


def test_a_version_that_is_too_old(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    path = install("cloud_hypervisor", tmp_path, settings={"STANDIN_VERSION": "48.0.0"})
    with pytest.raises(BackendFailed, match=r"v48\.0\.0 is too old, 50 or newer is needed; .*`binary`"):
        find(loop, host, path)


def test_a_program_that_is_not_there(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"/none does not exist; .*`binary`"):
        find(loop, host, f"{tmp_path}/none")


def test_a_program_that_fails(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=r"cloud-hypervisor --version .*: no such CPU; .*`binary`"):
        find(loop, host, script(tmp_path, "echo no such CPU", "exit 3"))


def test_a_program_that_hangs(loop: Loop, host: ProbeHost, tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceeded):
        find(loop, host, script(tmp_path, "exec sleep 1000"), seconds=0.5)
