"""Machines of the stand-in, with our guest behind it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.cloud_hypervisor.rig import Rig, directory_for_all
from tests.standins.guest.server import running_hardware


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running_hardware() as hardware, directory_for_all() as directory:
        made = Rig(directory, hardware)
        yield made
        made.close()
