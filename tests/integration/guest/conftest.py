"""One image for all tests here, built below .kuasar/guest from the packages kept there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest import build, manifest
from tests import needs
from tests.integration.guest.machine import AgentConnection, Machine, start_machine

CHECKOUT = Path(__file__).parents[3]
WORK = CHECKOUT / ".kuasar" / "guest"

needs_qemu = needs.QEMU
needs_root = needs.ROOT


@dataclass(frozen=True)
class Built:
    """An image and where it is."""

    directory: Path
    image: manifest.Image

    @property
    def root_disk(self) -> Path:
        return self.directory / manifest.ROOT_DISK


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The image of this checkout as it is now, in a directory of the tests' own."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not installed: the image is made from Debian packages")
    directory = tmp_path_factory.mktemp("guest")
    yield Built(directory, build.build(str(WORK), str(directory), lambda step: None))
    shutil.rmtree(directory)


@pytest.fixture(scope="package")
def machine(built: Built) -> Iterator[Machine]:
    """One booted guest for all tests that leave it as it was."""
    with start_machine(built.image, built.directory, built.root_disk) as machine:
        with machine.connect():
            pass
        yield machine


@pytest.fixture
def agent(machine: Machine) -> Iterator[AgentConnection]:
    """A connection to that guest's agent."""
    with machine.connect() as connection:
        yield connection
